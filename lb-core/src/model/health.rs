//! Which backends may serve.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Backend;

/// What is known of the health of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// By service: address and port of those that may not serve.
    failed: BTreeSet<(String, IpAddr, Option<u16>)>,
}

impl Health {
    /// All may serve.
    pub const ALL_WELL: Self = Self { failed: BTreeSet::new() };

    /// Of these it is known that they may not serve.
    #[must_use]
    pub fn new(failed: impl IntoIterator<Item = (String, IpAddr, Option<u16>)>) -> Self {
        Self { failed: failed.into_iter().collect() }
    }

    /// Is it known that a backend may not serve?
    #[must_use]
    pub fn is_failed(&self, service: &str, backend: &Backend) -> bool {
        !self.failed.is_empty()
            && self.failed.contains(&(service.to_owned(), backend.address, backend.port))
    }
}
