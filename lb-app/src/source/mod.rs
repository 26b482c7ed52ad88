//! Where what is wanted comes from. A source yields whole states, never changes; control joins those of
//! all sources.
//!
//! * `documents` reads what API and control planes say, and tells them what is wrong.
//! * `wanted` joins them, and refuses what two sources want.
//! * `applied` is what the API was told last.
//! * `feed` is the client of control planes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use lb_config::Config;
use lb_core::model::{Health, Service};
use tokio::sync::oneshot;

mod applied;
mod documents;
pub(crate) mod feed;
mod wanted;

pub(crate) use applied::{Application, Applied, ApplyError};
pub(crate) use documents::{ERRORS_MAX, document_errors, problem_error, told};
pub(crate) use wanted::{Overlap, Overlaps, Wanted};

use crate::api::proto::ResourceError;
use crate::kernel::KernelError;

/// Who wants something. In this order services are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The configuration file.
    File,
    /// Programs, by the API.
    Api,
    /// A control plane: the feed's name.
    Feed(Arc<str>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::Api => f.write_str("the API"),
            Self::Feed(name) => write!(f, "feed {name:?}"),
        }
    }
}

/// All that a source wants.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) source: Source,
    /// The same `Arc` as before for what has not changed.
    pub(crate) services: Vec<Arc<Service>>,
    /// Those of their backends that the source says do not serve.
    pub(crate) failed: Health,
    /// The source's own name for it; empty, if it has none.
    pub(crate) version: String,
    /// When the source had it.
    pub(crate) since: SystemTime,
}

impl State {
    /// What the file wants.
    pub(crate) fn of_file(config: &Config) -> Self {
        let services = config.desired.services().iter().map(Arc::clone).collect();
        let since = SystemTime::now();
        let failed = Health::default();
        Self { source: Source::File, services, failed, version: String::new(), since }
    }
}

/// What a source wants, on its way to control, which says what became of it.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) state: State,
    pub(crate) answer: oneshot::Sender<Verdict>,
}

/// The version of the tables that has it in force; or why it is not, and what was, still is.
pub(crate) type Verdict = Result<u64, Refused>;

/// Why a state is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Overlaps(#[from] Overlaps),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("version {0} of the tables is not in force: a worker does not turn")]
    NotInForce(u64),
    #[error("the balancer is ending")]
    Ending,
}

impl Refused {
    /// What is wrong, to the source `ours`; `document_of` names the resource that has a service.
    pub(crate) fn errors(
        &self,
        ours: &Source,
        document_of: impl Fn(&str) -> Option<String>,
    ) -> Vec<ResourceError> {
        let Self::Overlaps(overlaps) = self else {
            return vec![ResourceError { message: self.to_string(), ..ResourceError::default() }];
        };
        let error = |overlap: &Overlap| {
            let is_ours = overlap.source == *ours;
            let service = if is_ours { &overlap.service } else { &overlap.other };
            ResourceError {
                resource: document_of(service).unwrap_or_else(|| service.clone()),
                message: overlap.to_string(),
                ..ResourceError::default()
            }
        };
        if overlaps.told.is_empty() {
            let message = overlaps.to_string();
            return vec![ResourceError { message, ..ResourceError::default() }];
        }
        overlaps.told.iter().map(error).collect()
    }
}

#[cfg(test)]
mod damaged;
