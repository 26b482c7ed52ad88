//! From the messages of programs and control planes to services; and what is wrong, as they are told.
//!
//! Together with `feed/resources.rs`, which knows what came before, this is all that decides what an unknown
//! sender's bytes mean: `fuzz/fuzz_targets/told.rs` has both.

use std::collections::HashMap;
use std::sync::Arc;

use lb_config::{Diagnostics, Place, PortConfig, Problem};
use lb_core::model::Service;

use crate::api::proto::{Document, ResourceError};

/// Errors that are told at once, at most.
pub(crate) const ERRORS_MAX: usize = 50;

/// What documents have.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) services: Vec<Arc<Service>>,
    /// Whose service it is, by its name: the document's place.
    pub(crate) homes: HashMap<String, usize>,
}

/// Reads documents that are there as a whole; `ports` are the file's.
pub(crate) fn read(
    documents: &[Document],
    ports: &[PortConfig],
) -> Result<Read, Vec<ResourceError>> {
    let (mut all, mut errors) = (Read::default(), Vec::new());
    for (place, Document { name, text, .. }) in documents.iter().enumerate() {
        match lb_config::services(name, text, ports) {
            Ok(read) => {
                all.homes.extend(read.iter().map(|service| (service.spec().name.clone(), place)));
                all.services.extend(read.into_iter().map(Arc::new));
            }
            Err(wrong) => errors.extend(document_errors(name, &wrong)),
        }
    }
    errors.truncate(ERRORS_MAX);
    if errors.is_empty() { Ok(all) } else { Err(errors) }
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
