//! Why a resource is not taken. Whoever runs the control plane reads it.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use lb_core::model::Invalid;

use crate::{
    BYTES_MAX, ENDPOINTS_MAX, Kind, NAME_BYTES_MAX, REFUSAL_BYTES_MAX, RESOURCE_BYTES_MAX,
    RESOURCES_MAX,
};

/// What is wrong with a resource, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each is")]
#[non_exhaustive]
pub enum Unfit {
    #[error("it cannot be decoded: {0}")]
    Garbled(String),
    #[error("it is a {0:?}, which was not asked for here")]
    OtherType(String),
    #[error("it has {0} bytes; at most {RESOURCE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes")]
    Name,
    #[error("it calls itself {0:?}")]
    OtherName(String),
    #[error("it is there twice; names are unique")]
    Twice,
    #[error("a version or nonce has at most {NAME_BYTES_MAX} bytes")]
    LongVersion,
    #[error("{0} resources of this type are too many; at most {RESOURCES_MAX}")]
    TooManyResources(usize),
    #[error("with it there would be {0} endpoints; at most {ENDPOINTS_MAX}")]
    TooManyEndpoints(usize),
    #[error("with it there would be {0} bytes; at most {BYTES_MAX}")]
    TooManyBytes(usize),
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("{0} is not what a layer-4 balancer can do; leave it out")]
    Unsupported(&'static str),
    #[error("{given:?} is not an IP address{wanted}; names are not looked up")]
    NotAnAddress { given: String, wanted: &'static str },
    #[error("{0} is not a port; use 1 to 65535")]
    NotAPort(u32),
    #[error("the filter {0:?} is none that is known here; use one {1}")]
    UnknownFilter(String, &'static str),
    #[error("it has {0} filter chains; use one, without conditions")]
    FilterChains(usize),
    #[error("it has {0} filters; use one")]
    Filters(usize),
    #[error("its type is {0}; use EDS, or STATIC with endpoints")]
    ClusterType(String),
    #[error("its endpoints are to come from somewhere else; write `eds_config: {{ ads: {{}} }}`")]
    OtherSource,
    #[error("metadata \"weir\": {0}")]
    Metadata(String),
    #[error("metadata \"weir\": `backends` come from the cluster; remove it")]
    Backends,
    #[error("metadata \"weir\" of endpoint {0}: it has `mac` and `interface` only, as text")]
    EndpointMetadata(String),
    #[error("its keys, with those of its cluster: {0}")]
    Keys(String),
    #[error("endpoint {0}: {1}")]
    Endpoint(IpAddr, String),
    #[error("endpoint {0}: no [[port]] is named {1:?}")]
    NoSuchPort(IpAddr, String),
    #[error("{0}")]
    Service(Invalid),
    #[error("it and {service:?} want the same: {invalid}")]
    Conflict { service: String, invalid: Invalid },
}

/// Something unfit, and which resource it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What the resource is.
    pub kind: Kind,
    /// Its name; empty, if it is about the whole answer, or there is no telling.
    pub name: String,
    /// What is wrong.
    pub unfit: Unfit,
}

impl Trouble {
    pub(crate) fn new(kind: Kind, name: &str, unfit: Unfit) -> Self {
        Self { kind, name: name.into(), unfit }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "{}: {}", self.kind, self.unfit)
        } else {
            write!(f, "{} {:?}: {}", self.kind, short(&self.name), self.unfit)
        }
    }
}

/// Characters of a name that messages repeat.
const NAME_CHARS_SHOWN_MAX: usize = 80;

pub(crate) fn short(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.into(),
    }
}

/// All troubles in one line of at most [`REFUSAL_BYTES_MAX`].
#[must_use]
pub fn summary(troubles: &[Trouble]) -> String {
    /// Bytes that are kept for how many there are besides.
    const REST_BYTES: usize = 32;
    let mut text = String::new();
    for (told, trouble) in troubles.iter().enumerate() {
        let next = trouble.to_string();
        let is_last = told + 1 == troubles.len();
        let room = REFUSAL_BYTES_MAX - if is_last { 0 } else { REST_BYTES };
        if told > 0 && text.len() + 2 + next.len() > room {
            // Writing to a string does not fail.
            let _ = write!(text, "; and {} more", troubles.len() - told);
            break;
        }
        text.push_str(if told > 0 { "; " } else { "" });
        text.push_str(&next);
    }
    let mut end = text.len().min(REFUSAL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_resource_and_stay_short() {
        let trouble = |name: &str| Trouble::new(Kind::Cluster, name, Unfit::Twice);
        assert_eq!(
            summary(&[trouble("web"), trouble("")]),
            "cluster \"web\": it is there twice; names are unique; \
             cluster: it is there twice; names are unique"
        );
        let many: Vec<_> = (0..1000).map(|i| trouble(&format!("cluster-{i}"))).collect();
        let told = summary(&many);
        assert!(told.len() <= REFUSAL_BYTES_MAX && told.ends_with(" more"), "{told}");
        let long = Trouble::new(Kind::Cluster, "é", Unfit::Garbled("é".repeat(9999)));
        let told = summary(&[long]);
        assert!((REFUSAL_BYTES_MAX - 1..=REFUSAL_BYTES_MAX).contains(&told.len()));
        assert!(trouble(&"x".repeat(1000)).to_string().len() < 200);
    }
}
