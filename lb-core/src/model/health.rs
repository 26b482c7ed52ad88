//! What is true of backends: which of them may not serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Backend;

/// Address and port, as in [`Backend`].
type Servers = BTreeSet<(IpAddr, Option<u16>)>;

/// The backends that have failed their health checks. [`Health::default`]: all may serve.
///
/// A whole state, never a change: whoever has the newest one has all there is to know. Cheap to
/// clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    failed: Arc<BTreeMap<String, Servers>>,
}

impl Health {
    /// From the backends that may not serve: the service's name, and the backend's address and port
    /// as in [`Backend`].
    pub fn new(failed: impl IntoIterator<Item = (String, IpAddr, Option<u16>)>) -> Self {
        let mut by_service: BTreeMap<_, Servers> = BTreeMap::new();
        for (service, address, port) in failed {
            by_service.entry(service).or_default().insert((address, port));
        }
        Self { failed: Arc::new(by_service) }
    }

    /// With those that have failed by `other`.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        if other.failed.is_empty() {
            return self.clone();
        }
        let mut failed = (*self.failed).clone();
        for (service, servers) in &*other.failed {
            failed.entry(service.clone()).or_default().extend(servers);
        }
        Self { failed: Arc::new(failed) }
    }

    /// Has `backend` of the service `service` failed?
    #[must_use]
    pub fn is_failed(&self, service: &str, backend: &Backend) -> bool {
        let failed = self.failed.get(service);
        failed.is_some_and(|failed| failed.contains(&(backend.address, backend.port)))
    }

    /// The services of which others had failed by `old`.
    #[must_use]
    pub fn changed_since<'a>(&'a self, old: &'a Self) -> BTreeSet<&'a str> {
        if Arc::ptr_eq(&self.failed, &old.failed) {
            return BTreeSet::new();
        }
        let either = self.failed.keys().chain(old.failed.keys());
        let is_changed = |name: &&String| self.failed.get(*name) != old.failed.get(*name);
        either.filter(is_changed).map(String::as_str).collect()
    }

    /// How many backends have failed; one of several services counts once for each.
    #[must_use]
    pub fn failed_len(&self) -> usize {
        self.failed.values().map(BTreeSet::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::backend;
    use super::*;

    #[test]
    fn a_backend_fails_as_what_it_is_listed_as() {
        let (plain, other) = (backend("10.0.0.11"), backend("10.0.0.12"));
        let with_port = Backend { port: Some(8080), ..plain.clone() };
        let health = Health::new([("web".to_owned(), with_port.address, with_port.port)]);
        assert!(health.is_failed("web", &with_port));
        assert!(!health.is_failed("web", &plain));
        assert!(!health.is_failed("web", &other));
        assert!(!health.is_failed("mail", &with_port));
        assert_eq!(health.failed_len(), 1);
        assert!(!Health::default().is_failed("web", &plain));
    }

    #[test]
    fn who_has_failed_by_one_has_failed_by_both() {
        let failed = |service: &str, address: &str| {
            Health::new([(service.to_owned(), address.parse().unwrap(), None)])
        };
        let (one, other) = (failed("web", "10.0.0.11"), failed("web", "10.0.0.12"));
        let both = one.and(&other).and(&failed("dns", "10.0.0.11"));
        assert_eq!(both.failed_len(), 3);
        assert!(both.is_failed("web", &backend("10.0.0.12")));
        assert_eq!(one.and(&Health::default()), one);
        assert_eq!(Health::default().and(&one), one);
        assert_eq!(one.and(&one), one);
    }

    #[test]
    fn equal_states_are_equal_whatever_their_order() {
        let failed =
            ["10.0.0.11", "10.0.0.12"].map(|a| ("web".to_owned(), a.parse().unwrap(), None));
        let backwards = Health::new(failed.iter().rev().cloned());
        assert_eq!(Health::new(failed), backwards);
        assert_ne!(backwards, Health::default());
        assert_eq!(Health::new([]), Health::default());
    }
}
