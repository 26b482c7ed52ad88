//! The variant where an answer is the state of the world: of listeners and clusters it has all.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

use crate::Kind;
use crate::protocol::{Answer, Protocol, Refusals, Reply, is_token, refusal};
use crate::store::Store;
use crate::unfit::Unfit;

/// State of the world.
#[derive(Debug)]
pub struct StateOfTheWorld {
    node: Node,
    /// By kind.
    types: [Subscription; 3],
}

#[derive(Debug, Default)]
struct Subscription {
    /// What was taken last; it outlives the conversation.
    version: String,
    refusals: Refusals,
    /// Of the newest answer in this conversation.
    nonce: String,
    /// The names that were asked for last; `None`: nothing was yet, in this conversation.
    asked: Option<BTreeSet<String>>,
}

impl StateOfTheWorld {
    /// For the balancer that `node` describes.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node, types: Default::default() }
    }

    fn request(&self, kind: Kind, error_detail: Option<Status>) -> DiscoveryRequest {
        let subscription = &self.types[kind.index()];
        DiscoveryRequest {
            version_info: subscription.version.clone(),
            resource_names: subscription.asked.iter().flatten().cloned().collect(),
            type_url: kind.type_url().into(),
            response_nonce: subscription.nonce.clone(),
            error_detail,
            ..Default::default()
        }
    }

    /// Asks for `kind`, if there is something new to ask for.
    fn ask(&mut self, kind: Kind, store: &Store) -> Option<DiscoveryRequest> {
        // An empty list stands for all.
        let wanted = if kind.is_wildcard() { BTreeSet::new() } else { store.wanted_endpoints() };
        let subscription = &mut self.types[kind.index()];
        let is_new = match &subscription.asked {
            None => kind.is_wildcard() || !wanted.is_empty(),
            Some(asked) => *asked != wanted,
        };
        if !is_new {
            return None;
        }
        subscription.asked = Some(wanted);
        Some(self.request(kind, None))
    }
}

impl Protocol for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    /// Clusters first; what depends on them is asked for when they are known. With a version that was
    /// seen before, so that what is known need not be sent again.
    fn begin(&mut self, store: &Store) -> Vec<DiscoveryRequest> {
        for subscription in &mut self.types {
            subscription.nonce.clear();
            subscription.asked = None;
        }
        let is_resumed = self.types.iter().any(|it| !it.version.is_empty());
        let kinds = Kind::ALL.into_iter().filter(|kind| is_resumed || *kind == Kind::Cluster);
        let mut requests: Vec<_> = kinds.filter_map(|kind| self.ask(kind, store)).collect();
        // Only the first has to say who asks.
        if let Some(first) = requests.first_mut() {
            first.node = Some(self.node.clone());
        }
        requests
    }

    fn receive(&mut self, store: &mut Store, answer: DiscoveryResponse) -> Reply<DiscoveryRequest> {
        let asked = |kind: &Kind| self.types[kind.index()].asked.is_some();
        let Some(kind) = Kind::of(&answer.type_url).filter(asked) else {
            return Reply::ignored(&answer.type_url);
        };
        let DiscoveryResponse { version_info: version, resources, nonce, .. } = answer;
        let count = resources.len();
        let mut read = Answer::read(kind, count, resources.iter().map(|any| (None, any)));
        let is_sound = is_token(&version) && is_token(&nonce);
        if !is_sound {
            read.refuse(kind, Unfit::LongVersion);
        }
        if kind.is_wildcard() {
            // What is not there is gone, unless there is no telling what is there.
            if !read.is_unclear {
                read.update.removed = store.names(kind).difference(&read.named).cloned().collect();
            }
        } else if let Some(asked) = &self.types[kind.index()].asked {
            // The protocol lets servers send more.
            read.update.resources.retain(|name, _| asked.contains(name));
            read.troubles
                .retain(|trouble| trouble.name.is_empty() || asked.contains(&trouble.name));
        }
        let mut troubles = read.troubles;
        troubles.extend(store.take(kind, read.update));

        let subscription = &mut self.types[kind.index()];
        let refusals = subscription.refusals.count(&version, !troubles.is_empty());
        if is_sound {
            subscription.nonce = nonce;
            if troubles.is_empty() {
                subscription.version.clone_from(&version);
            }
        }
        let verdict = self.request(kind, refusal(&troubles));
        let requests = Kind::ALL.into_iter().filter_map(|other| self.ask(other, store)).collect();
        Reply {
            verdict: Some(verdict),
            requests,
            kind: Some(kind),
            version,
            resources: count,
            refusals,
            troubles,
            notes: read.notes,
        }
    }
}
