//! What is wanted as a whole, and what of it may be in another service's way.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::conflicts::ambiguous_returns_of;
use super::{
    Backend, Finding, HashKey, Invalid, Key, SERVICES_MAX, Service, ServiceSpec, ambiguous_returns,
    conflicts, pool_conflicts,
};

/// All that a source wants, valid as a whole.
///
/// **Having one tells you**: names and VIPs are unique, and there are at most [`SERVICES_MAX`]
/// services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    hash_key: HashKey,
    services: Arc<[Arc<Service>]>,
}

impl DesiredState {
    /// Joins services.
    ///
    /// # Errors
    /// Every finding, with the place of the service in the list.
    pub fn new(hash_key: HashKey, services: Vec<Service>) -> Result<Self, Vec<(usize, Finding)>> {
        Self::empty(hash_key).followed_by(services.into_iter().map(Arc::new).collect())
    }

    /// As [`DesiredState::new`], of what is wanted after this. What is the same `Arc` as it was is not
    /// checked again, if what has become of the others cannot be in its way.
    ///
    /// # Errors
    /// As there.
    pub fn followed_by(&self, services: Vec<Arc<Service>>) -> Result<Self, Vec<(usize, Finding)>> {
        let new = Self { hash_key: self.hash_key, services: services.into() };
        let specs = || new.services.iter().map(|service| &service.spec);
        let gained = new.gained_since(self);
        let mut found = match &gained {
            Some(gained) if gained.is_empty() => return Ok(new),
            Some(gained) => ambiguous_returns_of(specs(), |address| gained.contains(address)),
            None => {
                let mut found = conflicts(specs().map(|spec| (spec.name.as_str(), spec.vip)));
                found.extend(ambiguous_returns(specs()));
                found
            }
        };
        found.extend(pool_conflicts(specs()));
        let mut findings: Vec<_> =
            found.into_iter().map(|conflict| (conflict.place, conflict.finding)).collect();
        if new.services.len() > SERVICES_MAX {
            let invalid = Invalid::TooManyServices(new.services.len());
            findings.push((SERVICES_MAX, Finding { key: Key::Name, invalid }));
        }
        if findings.is_empty() { Ok(new) } else { Err(findings) }
    }

    /// The addresses of backends that services have gained and that may be in another service's way, if nothing
    /// else may. `None`: all may.
    fn gained_since(&self, old: &Self) -> Option<BTreeSet<IpAddr>> {
        let has_pools = LazyCell::new(|| self.services.iter().any(|it| it.spec.pool().is_some()));
        let mut gained = BTreeSet::new();
        for (old, new) in self.changed_since(old)? {
            if !new.spec.claims_as(&old.spec) {
                return None;
            }
            // Backends may not answer as another's, nor stand in a pool.
            if new.spec.forward.has_stations() || *has_pools {
                gained.extend(new.spec.gained_since(&old.spec));
            }
        }
        Some(gained)
    }

    /// The services that are not the same `Arc` as those at their places in `old`: what was there, and
    /// what is. `None`, if the places are not the same.
    #[must_use]
    pub fn changed_since<'a>(
        &'a self,
        old: &'a Self,
    ) -> Option<impl Iterator<Item = (&'a Arc<Service>, &'a Arc<Service>)>> {
        let both = old.services.iter().zip(&*self.services);
        let has_same_places = old.services.len() == self.services.len();
        has_same_places.then(|| both.filter(|(old, new)| !Arc::ptr_eq(old, new)))
    }

    /// No services.
    #[must_use]
    pub fn empty(hash_key: HashKey) -> Self {
        Self { hash_key, services: Arc::default() }
    }

    /// With those of the services that `keep` says.
    #[must_use]
    pub fn filtered(&self, keep: impl Fn(&Service) -> bool) -> Self {
        let services = self.services.iter().filter(|service| keep(service)).map(Arc::clone);
        Self { hash_key: self.hash_key, services: services.collect() }
    }

    /// The same, but that those backends of the named services are drained that `is_drained` says, too.
    #[must_use]
    pub fn draining(
        &self,
        names: &BTreeSet<&str>,
        is_drained: impl Fn(&ServiceSpec, &Backend) -> bool,
    ) -> Self {
        if names.is_empty() {
            return self.clone();
        }
        let drained = |service: &Arc<Service>| {
            let mut new = Arc::clone(service);
            if !names.contains(&*service.spec.name) {
                return new;
            }
            for (place, backend) in service.spec.backends.iter().enumerate() {
                if !backend.drain && is_drained(&service.spec, backend) {
                    Arc::make_mut(&mut new).spec.backends[place].drain = true;
                }
            }
            new
        };
        Self { hash_key: self.hash_key, services: self.services.iter().map(drained).collect() }
    }

    /// The key of the flow hash.
    #[must_use]
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// In the order in which they were given.
    #[must_use]
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The addresses that clients stand behind, of all services.
    #[must_use]
    pub fn pools(&self) -> BTreeSet<IpNet> {
        self.services.iter().filter_map(|service| service.spec.pool()).collect()
    }
}

impl ServiceSpec {
    /// Does it claim for itself what `other` does of what services may not share?
    fn claims_as(&self, other: &Self) -> bool {
        let [one, other] = [self, other].map(|spec| (&spec.name, spec.vip, spec.forward));
        one == other
    }

    /// The addresses of backends that `old` does not have, or with other ports.
    fn gained_since(&self, old: &Self) -> impl Iterator<Item = IpAddr> {
        let had: BTreeSet<_> = old.backends.iter().map(|it| (it.address, it.port)).collect();
        let gained = self.backends.iter().filter(move |it| !had.contains(&(it.address, it.port)));
        gained.map(|it| it.address)
    }
}
