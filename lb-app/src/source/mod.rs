//! Where what is wanted comes from. A source yields whole states, never changes; control joins those of
//! all sources.
//!
//! * `wanted` joins them, and refuses what two sources want.
//! * `applied` is what the API was told last.
//! * `feed` is the client of control planes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use lb_config::{Config, Diagnostics, Place, Problem};
use lb_core::model::{Health, Service};
use tokio::sync::oneshot;

mod applied;
pub(crate) mod feed;
mod wanted;

pub(crate) use applied::{Application, Applied, ApplyError};
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

/// Errors that are told at once, at most.
pub(crate) const ERRORS_MAX: usize = 50;

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

/// What is wrong with a document.
pub(crate) fn document_errors(name: &str, wrong: &Diagnostics) -> Vec<ResourceError> {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let error = |(at, problem): (Option<Place>, &Problem)| ResourceError {
        line: at.map_or(0, |at| number(at.line)),
        column: at.map_or(0, |at| number(at.column)),
        ..problem_error(name, None, problem)
    };
    wrong.places().map(error).take(ERRORS_MAX).collect()
}

/// What is wrong with `resource`, or with what has this place in its list.
pub(crate) fn problem_error(
    resource: &str,
    place: Option<usize>,
    problem: &Problem,
) -> ResourceError {
    ResourceError {
        resource: resource.into(),
        line: place.map_or(0, |place| u32::try_from(place + 1).unwrap_or(u32::MAX)),
        column: 0,
        message: problem.to_string(),
        help: problem.advice().unwrap_or_default(),
    }
}

/// An error in one line.
pub(crate) fn told(error: &ResourceError) -> String {
    let ResourceError { resource, line, column, message, help } = error;
    let mut text = String::new();
    for part in [resource.as_str(), &number(*line), &number(*column)] {
        if !part.is_empty() {
            text.extend([part, ":"]);
        }
    }
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(message);
    if !help.is_empty() {
        text.extend(["; ", help]);
    }
    text
}

fn number(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}
