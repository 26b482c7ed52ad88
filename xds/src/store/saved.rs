//! All that is known, as bytes, for the process that comes next: the control plane may be away then.
//!
//! It is taken as answers are, by the same code and in the same steps. Only a service that is not what was
//! told last is a case of its own, since nobody would tell what it is made of again.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::Resource as Wrapper;
use envoy_types::pb::google::protobuf::Any;

use super::{Made, Parts, Store};
use crate::cluster::Source;
use crate::protocol::{Answer, Protocol};
use crate::resource::{Body, Resource};
use crate::unfit::{Trouble, Unfit};
use crate::{Kind, NAME_BYTES_MAX};

/// See above.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Saved {
    /// What was told last, as the control plane calls it.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Clusters, endpoints, and the listeners whose services are made of them; with their versions.
    #[prost(message, repeated, tag = "2")]
    told: Vec<Wrapper>,
    /// The other listeners.
    #[prost(message, repeated, tag = "3")]
    behind: Vec<Behind>,
}

/// A listener whose service is not what was told last, or does not exist.
#[derive(Clone, PartialEq, prost::Message)]
struct Behind {
    #[prost(message, optional, tag = "1")]
    told: Option<Wrapper>,
    /// What the service is made of, if there is one: listener, cluster, and endpoints that are not in that.
    #[prost(message, repeated, tag = "2")]
    parts: Vec<Any>,
}

impl Saved {
    /// What `store` and `protocol` know; `version` is what was told last.
    #[must_use]
    pub fn of(store: &Store, protocol: &impl Protocol, version: &str) -> Self {
        let told = |kind: Kind, name: &str, bytes: &[u8]| Wrapper {
            name: name.into(),
            version: protocol.version(kind, name).unwrap_or_default().into(),
            resource: Some(any(kind, bytes)),
            ..Wrapper::default()
        };
        let mut saved = Self { version: version.into(), ..Self::default() };
        let clusters = store.clusters.iter();
        saved.told.extend(clusters.map(|(name, it)| told(Kind::Cluster, name, &it.bytes)));
        let endpoints = store.endpoints.iter();
        saved.told.extend(endpoints.map(|(name, it)| told(Kind::Endpoints, name, &it.bytes)));
        for (name, listener) in &store.listeners {
            let told = told(Kind::Listener, name, &listener.bytes);
            if store.is_up_to_date(name) {
                saved.told.push(told);
                continue;
            }
            let made = store.places.get(name).and_then(|place| place.made.as_ref());
            let parts = made.map(parts).unwrap_or_default();
            saved.behind.push(Behind { told: Some(told), parts });
        }
        saved
    }

    /// Has `store` and `protocol`, which know nothing yet, know all of it again. What is wrong with it, by
    /// now or as it was then; the rest is taken. Then the control plane is to tell all of it again.
    pub fn restore(self, store: &mut Store, protocol: &mut impl Protocol) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for kind in Kind::ALL {
            let of_kind = |it: &&Wrapper| {
                it.resource.as_ref().is_some_and(|any| any.type_url == kind.type_url())
            };
            troubles.extend(store.take_saved(kind, self.told.iter().filter(of_kind)));
        }
        // Who is there comes before who would like to be.
        troubles.extend(store.bring_back(self.behind.iter().map(|it| it.parts.as_slice())));
        let listeners = self.behind.iter().filter_map(|it| it.told.as_ref());
        troubles.extend(store.take_saved(Kind::Listener, listeners));
        if troubles.is_empty() {
            let behind = self.behind.into_iter().filter_map(|it| it.told);
            for Wrapper { name, version, resource, .. } in self.told.into_iter().chain(behind) {
                let kind = resource.and_then(|any| Kind::of(&any.type_url));
                if let Some(kind) = kind.filter(|_| (1..=NAME_BYTES_MAX).contains(&version.len())) {
                    protocol.resume(kind, name, version);
                }
            }
        }
        troubles
    }
}

fn any(kind: Kind, bytes: &[u8]) -> Any {
    Any { type_url: kind.type_url().into(), value: bytes.into() }
}

fn parts(Made { parts: (listener, cluster, endpoints), .. }: &Made) -> Vec<Any> {
    let mut all = vec![any(Kind::Listener, &listener.bytes), any(Kind::Cluster, &cluster.bytes)];
    if matches!(cluster.endpoints, Source::Eds(_)) {
        all.push(any(Kind::Endpoints, &endpoints.bytes));
    }
    all
}

impl Store {
    fn take_saved<'a>(
        &mut self,
        kind: Kind,
        resources: impl Iterator<Item = &'a Wrapper> + Clone,
    ) -> Vec<Trouble> {
        let count = resources.clone().count();
        let resources =
            resources.filter_map(|it| Some((Some(it.name.as_str()), it.resource.as_ref()?)));
        let Answer { update, mut troubles, .. } = Answer::read(kind, count, resources);
        troubles.extend(self.take(kind, update));
        troubles
    }

    /// Puts services in place that are made of these parts.
    fn bring_back<'a>(&mut self, all: impl Iterator<Item = &'a [Any]>) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for parts in all.filter(|parts| !parts.is_empty()) {
            let (name, parts) = match read_parts(parts) {
                Ok(read) => read,
                Err(trouble) => {
                    troubles.push(trouble);
                    continue;
                }
            };
            let place = self.places.entry(name.clone()).or_default();
            match place.remake(&self.defaults, &self.ports, parts) {
                Ok(made) => place.held = Some(made),
                Err(unfit) => {
                    let trouble = |unfit| Trouble::new(Kind::Listener, &name, unfit);
                    troubles.extend(unfit.into_iter().map(trouble));
                }
            }
        }
        let conflicts = self.settle().into_iter();
        troubles.extend(conflicts.map(|(name, it)| Trouble::new(Kind::Listener, &name, it)));
        troubles
    }
}

/// The listener's name, and what a service can be made of.
fn read_parts(all: &[Any]) -> Result<(String, Parts), Trouble> {
    let (mut listener, mut cluster, mut endpoints) = (None, None, None);
    for any in all {
        let kind = Kind::of(&any.type_url).unwrap_or(Kind::Listener);
        let Resource { name, body, .. } = Resource::read(kind, None, any);
        let name = name.unwrap_or_default();
        match body.map_err(|unfit| Trouble::new(kind, &name, unfit))? {
            Body::Listener(it) => listener = Some((name, it)),
            Body::Cluster(it) => cluster = Some(it),
            Body::Endpoints(it) => endpoints = Some(it),
        }
    }
    let missing = |name: &str, what| Trouble::new(Kind::Listener, name, Unfit::Missing(what));
    let (name, listener) = listener.ok_or_else(|| missing("", "listener"))?;
    let cluster = cluster.ok_or_else(|| missing(&name, "cluster"))?;
    let endpoints = match (&cluster.endpoints, endpoints) {
        (Source::Here(endpoints), _) => Arc::clone(endpoints),
        (Source::Eds(_), Some(endpoints)) => Arc::new(endpoints),
        (Source::Eds(_), None) => return Err(missing(&name, "endpoints")),
    };
    Ok((name, (Arc::new(listener), Arc::new(cluster), endpoints)))
}
