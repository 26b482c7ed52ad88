//! The variant where an answer is what has changed.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wrapper,
};
use envoy_types::pb::google::protobuf::Any;

use crate::protocol::{Answer, Protocol, Refusals, Reply, is_token, refusal};
use crate::store::Store;
use crate::unfit::{Trouble, Unfit};
use crate::{Kind, RESOURCES_MAX};

/// What stands for all names.
const ALL: &str = "*";

/// Incremental.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    /// By kind.
    types: [Subscription; 3],
}

#[derive(Debug, Default)]
struct Subscription {
    /// The version of each resource that was taken; they outlive the conversation.
    versions: BTreeMap<String, String>,
    refusals: Refusals,
    /// The names that are subscribed to; `None`: nothing was said yet, in this conversation.
    asked: Option<BTreeSet<String>>,
}

impl Delta {
    /// For the balancer that `node` describes.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node, types: Default::default() }
    }

    /// Asks for `kind`, if there is something new to ask for.
    fn ask(&mut self, kind: Kind, store: &Store) -> Option<DeltaDiscoveryRequest> {
        let wanted = if kind.is_wildcard() {
            BTreeSet::from([ALL.into()])
        } else {
            store.wanted_endpoints()
        };
        let subscription = &mut self.types[kind.index()];
        let mut request =
            DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..Default::default() };
        if let Some(asked) = &subscription.asked {
            request.resource_names_unsubscribe = asked.difference(&wanted).cloned().collect();
            for name in &request.resource_names_unsubscribe {
                subscription.versions.remove(name);
            }
            request.resource_names_subscribe = wanted.difference(asked).cloned().collect();
        } else {
            request.resource_names_subscribe = wanted.iter().cloned().collect();
            // Only the first of a type has them.
            request.initial_resource_versions =
                subscription.versions.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        }
        let is_empty = request.resource_names_subscribe.is_empty()
            && request.resource_names_unsubscribe.is_empty();
        if is_empty {
            return None;
        }
        subscription.asked = Some(wanted);
        Some(request)
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    fn version(&self, kind: Kind, name: &str) -> Option<&str> {
        self.types[kind.index()].versions.get(name).map(String::as_str)
    }

    fn resume(&mut self, kind: Kind, name: String, version: String) {
        self.types[kind.index()].versions.insert(name, version);
    }

    /// As in the other variant; what is known is told by name and version.
    fn begin(&mut self, store: &Store) -> Vec<DeltaDiscoveryRequest> {
        for (kind, subscription) in Kind::ALL.into_iter().zip(&mut self.types) {
            subscription.asked = None;
            // All that is known is said, so that what is gone by now is told; without a version, what was
            // not taken as it came: so that it comes again.
            let mut versions = std::mem::take(&mut subscription.versions);
            let with_version = |name: String| {
                let version = versions.remove(&name).unwrap_or_default();
                (name, version)
            };
            subscription.versions = store.names(kind).into_iter().map(with_version).collect();
        }
        let is_resumed = self.types.iter().any(|it| !it.versions.is_empty());
        let kinds = Kind::ALL.into_iter().filter(|kind| is_resumed || *kind == Kind::Cluster);
        let mut requests: Vec<_> = kinds.filter_map(|kind| self.ask(kind, store)).collect();
        if let Some(first) = requests.first_mut() {
            first.node = Some(self.node.clone());
        }
        requests
    }

    fn receive(
        &mut self,
        store: &mut Store,
        answer: DeltaDiscoveryResponse,
    ) -> Reply<DeltaDiscoveryRequest> {
        let asked = |kind: &Kind| self.types[kind.index()].asked.is_some();
        let Some(kind) = Kind::of(&answer.type_url).filter(asked) else {
            return Reply::ignored(&answer.type_url);
        };
        let missing = Any::default();
        let resources = answer.resources.iter().map(|resource| {
            (Some(resource.name.as_str()), resource.resource.as_ref().unwrap_or(&missing))
        });
        let count = answer.resources.len() + answer.removed_resources.len();
        let mut read = Answer::read(kind, count, resources);
        if count <= RESOURCES_MAX {
            read.update.removed = answer.removed_resources.into_iter().collect();
        }
        let both: Vec<_> = read.update.removed.intersection(&read.named).cloned().collect();
        for name in both {
            // Whether it is there, nobody knows: it stays as it was.
            read.update.removed.remove(&name);
            read.update.resources.remove(&name);
            read.troubles.push(Trouble::new(kind, &name, Unfit::Twice));
        }
        let is_sound = is_token(&answer.system_version_info)
            && is_token(&answer.nonce)
            && answer.resources.iter().all(|resource| is_token(&resource.version));
        if !is_sound {
            read.refuse(kind, Unfit::LongVersion);
        }
        if let (Some(asked), false) = (&self.types[kind.index()].asked, kind.is_wildcard()) {
            read.update.resources.retain(|name, _| asked.contains(name));
            read.troubles
                .retain(|trouble| trouble.name.is_empty() || asked.contains(&trouble.name));
        }
        let removed = read.update.removed.clone();
        let taken: BTreeSet<String> = read.update.resources.keys().cloned().collect();
        let mut troubles = read.troubles;
        troubles.extend(store.take(kind, read.update));

        let subscription = &mut self.types[kind.index()];
        subscription.versions.retain(|name, _| !removed.contains(name));
        let at_fault: BTreeSet<&str> = troubles.iter().map(|it| it.name.as_str()).collect();
        let good = |it: &&Wrapper| taken.contains(&it.name) && !at_fault.contains(it.name.as_str());
        for resource in answer.resources.iter().filter(good) {
            subscription.versions.insert(resource.name.clone(), resource.version.clone());
        }
        let refusals =
            subscription.refusals.count(&answer.system_version_info, !troubles.is_empty());
        let verdict = DeltaDiscoveryRequest {
            type_url: kind.type_url().into(),
            response_nonce: if is_sound { answer.nonce } else { String::new() },
            error_detail: refusal(&troubles),
            ..Default::default()
        };
        let requests = Kind::ALL.into_iter().filter_map(|other| self.ask(other, store)).collect();
        Reply {
            verdict: Some(verdict),
            requests,
            kind: Some(kind),
            version: answer.system_version_info,
            resources: count,
            refusals,
            troubles,
            notes: read.notes,
        }
    }
}
