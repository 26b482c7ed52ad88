//! What the control plane has said last, and the services of it that were last good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_config::PortConfig;
use lb_core::model::{Conflict, Finding, Service, ambiguous_returns, conflicts, pool_conflicts};

use crate::cluster::{Cluster, Source};
use crate::endpoints::Endpoints;
use crate::keys::Keys;
use crate::listener::Listener;
use crate::resource::{Body, Told};
use crate::service::{self, Failed};
use crate::unfit::{Trouble, Unfit};
use crate::{BYTES_MAX, ENDPOINTS_MAX, Kind, RESOURCES_MAX};

mod saved;

pub use saved::Saved;

/// How often services that cannot be together are looked for, before all that is new is given up.
const ROUNDS_MAX: usize = 8;

/// All services, as a source has them.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// By the name of the listener; the same `Arc` as before for what has not changed. Valid together.
    pub services: Vec<Arc<Service>>,
    /// The backends that are said not to serve: service, address and port, as in
    /// [`lb_core::model::Health`].
    pub failed: Vec<(String, IpAddr, Option<u16>)>,
}

/// The resources by name, and what was made of them.
#[derive(Debug, Default)]
pub struct Store {
    /// Keys of services that do not say otherwise.
    defaults: Keys,
    ports: Vec<PortConfig>,
    clusters: BTreeMap<String, Arc<Told<Cluster>>>,
    endpoints: BTreeMap<String, Arc<Told<Endpoints>>>,
    listeners: BTreeMap<String, Arc<Told<Listener>>>,
    /// By the name of the listener.
    places: BTreeMap<String, Place>,
}

/// What a service was made of, whether it was good or not.
type Parts = (Arc<Told<Listener>>, Arc<Told<Cluster>>, Arc<Told<Endpoints>>);

/// A service that was made.
#[derive(Clone, Debug)]
struct Made {
    service: Arc<Service>,
    failed: Failed,
    parts: Parts,
}

/// A service's place.
#[derive(Debug, Default)]
struct Place {
    tried: Option<Parts>,
    template: Option<Service>,
    made: Option<Made>,
    /// What would be there, if others did not want the same.
    held: Option<Made>,
    /// Why what was tried is not there, and what kind of answer brought it.
    trouble: Option<(Kind, Vec<Unfit>)>,
}

/// What there is of all that is kept.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    endpoints: usize,
    bytes: usize,
}

/// What an answer changes.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// By name.
    pub(crate) resources: BTreeMap<String, Body>,
    pub(crate) removed: BTreeSet<String>,
}

impl Store {
    /// Nothing was said yet. `defaults` are keys of a `[[service]]` for services that do not say
    /// otherwise; `ports` are the balancer's.
    #[must_use]
    pub fn new(defaults: Keys, ports: &[PortConfig]) -> Self {
        Self { defaults, ports: ports.to_vec(), ..Self::default() }
    }

    /// What is to be in force.
    #[must_use]
    pub fn services(&self) -> Services {
        let made = || self.places.values().filter_map(|place| place.made.as_ref());
        let failed = made().flat_map(|made| {
            let name = &made.service.spec().name;
            made.failed.iter().map(|(address, port)| (name.clone(), *address, *port))
        });
        Services {
            services: made().map(|made| Arc::clone(&made.service)).collect(),
            failed: failed.collect(),
        }
    }

    /// The names of the endpoints that clusters ask for.
    pub(crate) fn wanted_endpoints(&self) -> BTreeSet<String> {
        let sources = self.clusters.values().map(|cluster| &cluster.endpoints);
        let names = sources.filter_map(|source| match source {
            Source::Eds(name) => Some(name.clone()),
            Source::Here(_) => None,
        });
        names.collect()
    }

    /// The names of the resources of `kind`.
    pub(crate) fn names(&self, kind: Kind) -> BTreeSet<String> {
        match kind {
            Kind::Cluster => self.clusters.keys().cloned().collect(),
            Kind::Endpoints => self.endpoints.keys().cloned().collect(),
            Kind::Listener => self.listeners.keys().cloned().collect(),
        }
    }

    /// The listeners whose service waits for something, and what that is.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, String)> {
        self.listeners.iter().filter_map(|(name, listener)| {
            let cluster = &listener.cluster;
            let missing = match self.clusters.get(cluster).map(|found| &found.endpoints) {
                None => format!("cluster {:?}", crate::unfit::short(cluster)),
                Some(Source::Eds(eds)) if !self.endpoints.contains_key(eds) => {
                    format!("endpoints of {:?}", crate::unfit::short(eds))
                }
                Some(_) => return None,
            };
            Some((name.as_str(), missing))
        })
    }

    /// Takes what came of `kind`, and makes services of it. What is wrong; the rest is taken, and a
    /// service that cannot be made stays as it was.
    pub(crate) fn take(&mut self, kind: Kind, update: Update) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        let named: BTreeSet<String> = update.resources.keys().cloned().collect();
        for name in &update.removed {
            match kind {
                Kind::Cluster => drop(self.clusters.remove(name)),
                Kind::Endpoints => drop(self.endpoints.remove(name)),
                Kind::Listener => drop(self.listeners.remove(name)),
            }
        }
        let mut sums = self.sums();
        for (name, body) in update.resources {
            if let Err(unfit) = self.put(&name, body, &mut sums) {
                troubles.push(Trouble::new(kind, &name, unfit));
            }
        }
        let wanted = self.wanted_endpoints();
        self.endpoints.retain(|name, _| wanted.contains(name));
        let fresh = self.make(kind);
        troubles.extend(self.troubles(kind, &named, &fresh));
        troubles
    }

    /// What is wrong with services because of an answer of `kind` that named these: what is new, and
    /// what such an answer brought before, if it says the same again.
    fn troubles(
        &self,
        kind: Kind,
        named: &BTreeSet<String>,
        fresh: &BTreeSet<String>,
    ) -> Vec<Trouble> {
        let is_of = |name: &String, place: &Place, brought: Kind| {
            let part = place.tried.as_ref().and_then(|(listener, cluster, _)| match kind {
                Kind::Listener => Some(name),
                Kind::Cluster => Some(&listener.cluster),
                Kind::Endpoints => match &cluster.endpoints {
                    Source::Eds(endpoints) => Some(endpoints),
                    Source::Here(_) => None,
                },
            });
            fresh.contains(name) || brought == kind && part.is_some_and(|it| named.contains(it))
        };
        let mut troubles = Vec::new();
        for (name, place) in &self.places {
            if let Some((brought, unfit)) = &place.trouble
                && is_of(name, place, *brought)
            {
                let trouble = |it: &Unfit| Trouble::new(Kind::Listener, name, it.clone());
                troubles.extend(unfit.iter().map(trouble));
            }
        }
        troubles
    }

    /// Endpoints, and bytes, of all that is kept: also of what services are still made of, although there
    /// is something newer.
    fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for cluster in self.clusters.values() {
            sums.endpoints += inline_count(cluster);
            sums.bytes += cluster.bytes.len();
        }
        for endpoints in self.endpoints.values() {
            sums.endpoints += endpoints.0.len();
            sums.bytes += endpoints.bytes.len();
        }
        sums.bytes += self.listeners.values().map(|listener| listener.bytes.len()).sum::<usize>();
        for (name, place) in &self.places {
            let Some(Made { parts, .. }) = &place.made else { continue };
            if self.is_up_to_date(name) {
                continue;
            }
            let (listener, cluster, endpoints) = parts;
            sums.bytes += listener.bytes.len() + cluster.bytes.len() + endpoints.bytes.len();
        }
        sums
    }

    /// One that says the same as before is left as it is, so that it is seen that nothing changed.
    fn put(&mut self, name: &str, body: Body, sums: &mut Sums) -> Result<(), Unfit> {
        let (before, now) = match &body {
            Body::Cluster(cluster) => {
                (self.clusters.get(name).map_or(0, |it| inline_count(it)), inline_count(cluster))
            }
            Body::Endpoints(endpoints) => {
                (self.endpoints.get(name).map_or(0, |it| it.0.len()), endpoints.0.len())
            }
            Body::Listener(_) => (0, 0),
        };
        let endpoints = sums.endpoints - before + now;
        if endpoints > ENDPOINTS_MAX && now > before {
            return Err(Unfit::TooManyEndpoints(endpoints));
        }
        // A service may go on with what it replaces.
        let bytes = sums.bytes + body.bytes().len();
        if bytes > BYTES_MAX {
            return Err(Unfit::TooManyBytes(bytes));
        }
        match body {
            Body::Cluster(cluster) => put(&mut self.clusters, name, cluster)?,
            Body::Endpoints(endpoints) => put(&mut self.endpoints, name, endpoints)?,
            Body::Listener(listener) => put(&mut self.listeners, name, listener)?,
        }
        *sums = Sums { endpoints, bytes };
        Ok(())
    }

    /// Makes services of all whose parts have changed. Those that there is something new to say of.
    fn make(&mut self, kind: Kind) -> BTreeSet<String> {
        self.places.retain(|name, _| self.listeners.contains_key(name));
        let changed = |(name, listener): (&String, &Arc<Told<Listener>>)| {
            let parts = self.parts(listener)?;
            let tried = self.places.get(name).and_then(|place| place.tried.as_ref());
            tried.is_none_or(|tried| !is_same(tried, &parts)).then(|| (name.clone(), parts))
        };
        let changed: Vec<_> = self.listeners.iter().filter_map(changed).collect();
        let mut fresh = BTreeSet::new();
        for (name, parts) in changed {
            let place = self.places.entry(name.clone()).or_default();
            // That it has to wait for others is told once of a listener.
            let waits = place.held.take().is_some()
                && place.tried.as_ref().is_some_and(|tried| Arc::ptr_eq(&tried.0, &parts.0));
            match place.remake(&self.defaults, &self.ports, parts) {
                Ok(made) => {
                    place.held = Some(made);
                    place.trouble.take_if(|_| !waits);
                }
                Err(unfit) => {
                    place.trouble = Some((kind, unfit));
                    fresh.insert(name);
                }
            }
        }
        for (name, unfit) in self.settle() {
            if let Some(place) = self.places.get_mut(&name).filter(|place| place.trouble.is_none())
            {
                place.trouble = Some((kind, vec![unfit]));
                fresh.insert(name);
            }
        }
        fresh
    }

    fn parts(&self, listener: &Arc<Told<Listener>>) -> Option<Parts> {
        let cluster = self.clusters.get(&listener.cluster)?;
        let endpoints = match &cluster.endpoints {
            Source::Eds(name) => self.endpoints.get(name)?,
            Source::Here(endpoints) => endpoints,
        };
        Some((Arc::clone(listener), Arc::clone(cluster), Arc::clone(endpoints)))
    }

    /// Is the service of that listener made of what was told last?
    fn is_up_to_date(&self, name: &str) -> bool {
        let made = self.places.get(name).and_then(|place| place.made.as_ref());
        let now = self.listeners.get(name).and_then(|listener| self.parts(listener));
        made.zip(now).is_some_and(|(made, now)| is_same(&made.parts, &now))
    }

    /// Puts in place what is held, but for what cannot be together with the rest.
    fn settle(&mut self) -> BTreeMap<String, Unfit> {
        let mut all_blamed = BTreeMap::new();
        let mut new = BTreeSet::new();
        for (name, place) in self.places.iter_mut().filter(|(_, place)| place.held.is_some()) {
            std::mem::swap(&mut place.made, &mut place.held);
            new.insert(name.clone());
        }
        for round in 0.. {
            let blamed = if new.is_empty() { BTreeMap::new() } else { self.conflicts(&new) };
            if blamed.is_empty() {
                break;
            }
            // What was there before was valid together.
            let is_last = round >= ROUNDS_MAX;
            let back: Vec<String> = if is_last {
                new.iter().cloned().collect()
            } else {
                blamed.keys().cloned().collect()
            };
            for name in back {
                new.remove(&name);
                if let Some(place) = self.places.get_mut(&name) {
                    std::mem::swap(&mut place.made, &mut place.held);
                }
            }
            all_blamed.extend(blamed);
        }
        for name in new {
            if let Some(place) = self.places.get_mut(&name) {
                (place.held, place.trouble) = (None, None);
            }
        }
        all_blamed
    }

    /// The new services that conflict, each with one reason.
    fn conflicts(&self, new: &BTreeSet<String>) -> BTreeMap<String, Unfit> {
        let made: Vec<(&str, &Service)> = self
            .places
            .iter()
            .filter_map(|(name, place)| Some((name.as_str(), &*place.made.as_ref()?.service)))
            .collect();
        let specs = || made.iter().map(|(_, service)| service.spec());
        let found = conflicts(specs().map(|spec| (spec.name.as_str(), spec.vip)))
            .into_iter()
            .chain(ambiguous_returns(specs()))
            .chain(pool_conflicts(specs()));
        let mut blamed = BTreeMap::new();
        for Conflict { place, first, finding: Finding { invalid, .. }, .. } in found {
            let both = [made[place].0, made[first].0];
            let is_newcomer = |name: &&str| self.places.get(*name).is_some_and(Place::is_newcomer);
            // Who is there already stays; else the later one has to wait.
            let mut new = both.into_iter().filter(|name| new.contains(*name));
            let Some(name) = new.clone().find(is_newcomer).or(new.next()) else { continue };
            let other = both.into_iter().find(|it| *it != name).unwrap_or(name);
            let unfit = Unfit::Conflict { service: other.into(), invalid };
            blamed.entry(name.to_owned()).or_insert(unfit);
        }
        blamed
    }
}

impl Place {
    /// While it is settled, what was there is held: is what is there now new to its address?
    fn is_newcomer(&self) -> bool {
        let vip = |made: &Option<Made>| made.as_ref().map(|it| it.service.spec().vip);
        vip(&self.held) != vip(&self.made)
    }

    /// Tries `new`, which are not what was tried last.
    fn remake(
        &mut self,
        defaults: &Keys,
        ports: &[PortConfig],
        new: Parts,
    ) -> Result<Made, Vec<Unfit>> {
        let (listener, cluster, endpoints) = &new;
        let is_known = self.tried.as_ref().is_some_and(|(old_listener, old_cluster, _)| {
            Arc::ptr_eq(old_listener, listener) && Arc::ptr_eq(old_cluster, cluster)
        });
        // Endpoints come and go far more often than what they are behind.
        if !is_known {
            self.template = None;
        }
        let made = match &self.template {
            Some(template) => service::service(template, ports, endpoints),
            None => service::template(defaults, ports, listener, cluster).and_then(|template| {
                let made = service::service(&template, ports, endpoints);
                self.template = Some(template);
                made
            }),
        };
        self.tried = Some(new.clone());
        let (mut service, failed) = made?;
        if let Some(old) = self.made.as_ref().filter(|old| *old.service == *service) {
            service = Arc::clone(&old.service);
        }
        Ok(Made { service, failed, parts: new })
    }
}

fn inline_count(cluster: &Cluster) -> usize {
    match &cluster.endpoints {
        Source::Eds(_) => 0,
        Source::Here(endpoints) => endpoints.0.len(),
    }
}

fn is_same(a: &Parts, b: &Parts) -> bool {
    Arc::ptr_eq(&a.0, &b.0) && Arc::ptr_eq(&a.1, &b.1) && Arc::ptr_eq(&a.2, &b.2)
}

fn put<T: PartialEq>(
    all: &mut BTreeMap<String, Arc<Told<T>>>,
    name: &str,
    new: Told<T>,
) -> Result<(), Unfit> {
    let count = all.len();
    match all.get_mut(name) {
        Some(old) if old.says == new.says => {}
        Some(old) => *old = Arc::new(new),
        None if count >= RESOURCES_MAX => return Err(Unfit::TooManyResources(count + 1)),
        None => drop(all.insert(name.into(), Arc::new(new))),
    }
    Ok(())
}
