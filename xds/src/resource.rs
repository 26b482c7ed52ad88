//! From the bytes of a resource to what a service can be made of.

use std::fmt;
use std::ops::Deref;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::service::discovery::v3::Resource as Wrapper;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::cluster::Cluster;
use crate::endpoints::Endpoints;
use crate::listener::Listener;
use crate::{NAME_BYTES_MAX, RESOURCE_BYTES_MAX, Unfit};

/// What all type URLs begin with.
const PREFIX: &str = "type.googleapis.com/";
/// What a resource may be wrapped in.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The types of resources that services are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A service's policy, and where its endpoints come from.
    Cluster,
    /// A cluster's endpoints.
    Endpoints,
    /// A service's address.
    Listener,
}

impl Kind {
    /// In the order in which they are of use: what a service needs comes before it.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Endpoints, Self::Listener];

    /// How the protocol calls it.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        }
    }

    /// `None`: none that was asked for.
    #[must_use]
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Are all of them subscribed to, whatever their names? Then an answer that is the state of the
    /// world has all of them.
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        self != Self::Endpoints
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints of",
            Self::Listener => "listener",
        })
    }
}

/// What a resource says, and the bytes that say it, which outlive the process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told<T> {
    pub(crate) says: T,
    pub(crate) bytes: Box<[u8]>,
}

impl<T> Told<T> {
    pub(crate) fn new(says: T, bytes: &[u8]) -> Self {
        Self { says, bytes: bytes.into() }
    }
}

impl<T> Deref for Told<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.says
    }
}

/// A resource, by its kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Cluster(Told<Cluster>),
    Endpoints(Told<Endpoints>),
    Listener(Told<Listener>),
}

impl Body {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Cluster(it) => &it.bytes,
            Self::Endpoints(it) => &it.bytes,
            Self::Listener(it) => &it.bytes,
        }
    }
}

/// A resource that came.
#[derive(Debug)]
pub(crate) struct Resource {
    /// `None`: there is no telling.
    pub(crate) name: Option<String>,
    pub(crate) body: Result<Body, Unfit>,
    /// What was taken otherwise than it says.
    pub(crate) notes: Vec<String>,
}

impl Resource {
    /// Reads a resource of `kind`; `outer` is what the answer calls it.
    pub(crate) fn read(kind: Kind, outer: Option<&str>, any: &Any) -> Self {
        let unnamed = |unfit| Self {
            name: outer.filter(|name| is_name(name)).map(Into::into),
            body: Err(unfit),
            notes: Vec::new(),
        };
        if any.value.len() > RESOURCE_BYTES_MAX {
            return unnamed(Unfit::TooLarge(any.value.len()));
        }
        if any.type_url == WRAPPER && outer.is_none() {
            return match Wrapper::decode(any.value.as_slice()) {
                Ok(Wrapper { name, resource: Some(inner), .. }) => {
                    Self::read(kind, Some(&name), &inner)
                }
                Ok(_) => unnamed(Unfit::Missing("resource")),
                Err(error) => unnamed(Unfit::Garbled(error.to_string())),
            };
        }
        if any.type_url != kind.type_url() {
            let given = any.type_url.strip_prefix(PREFIX).unwrap_or(&any.type_url);
            return unnamed(Unfit::OtherType(crate::unfit::short(given)));
        }
        let mut notes = Vec::new();
        let (name, body) = match decode(kind, &any.value, &mut notes) {
            Ok(read) => read,
            Err(error) => return unnamed(Unfit::Garbled(error.to_string())),
        };
        match outer {
            _ if !is_name(&name) => unnamed(Unfit::Name),
            Some(outer) if outer != name => unnamed(Unfit::OtherName(crate::unfit::short(&name))),
            _ => Self { name: Some(name), body, notes },
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
}

/// The resource's own name, and what it says.
fn decode(
    kind: Kind,
    bytes: &[u8],
    notes: &mut Vec<String>,
) -> Result<(String, Result<Body, Unfit>), prost::DecodeError> {
    Ok(match kind {
        Kind::Cluster => {
            let proto = ClusterProto::decode(bytes)?;
            let body = Cluster::read(&proto, notes);
            let body = body.map(|says| Body::Cluster(Told::new(says, bytes)));
            (proto.name, body)
        }
        Kind::Endpoints => {
            let proto = ClusterLoadAssignment::decode(bytes)?;
            let body = Endpoints::read(&proto, notes);
            let body = body.map(|says| Body::Endpoints(Told::new(says, bytes)));
            (proto.cluster_name, body)
        }
        Kind::Listener => {
            let proto = ListenerProto::decode(bytes)?;
            let body = Listener::read(&proto, notes);
            let body = body.map(|says| Body::Listener(Told::new(says, bytes)));
            (proto.name, body)
        }
    })
}

/// The socket that an address is of.
pub(crate) fn socket(address: Option<&Address>) -> Result<&SocketAddress, Unfit> {
    match address.and_then(|address| address.address.as_ref()) {
        Some(address::Address::SocketAddress(socket)) => Ok(socket),
        Some(address::Address::Pipe(_)) => Err(Unfit::Unsupported("a pipe")),
        Some(address::Address::EnvoyInternalAddress(_)) => {
            Err(Unfit::Unsupported("an internal address"))
        }
        None => Err(Unfit::Missing("address")),
    }
}

/// A configuration that is a message of type `M`. `None`: it is of another type.
pub(crate) fn unpack<M: Message + Default + prost::Name>(any: &Any) -> Option<Result<M, Unfit>> {
    let decoded = || M::decode(any.value.as_slice());
    (any.type_url == M::type_url())
        .then(|| decoded().map_err(|error| Unfit::Garbled(error.to_string())))
}
