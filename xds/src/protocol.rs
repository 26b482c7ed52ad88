//! The conversation: what both variants of ADS have in common.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;

use crate::resource::{Body, Resource};
use crate::store::{Store, Update};
use crate::unfit::{Trouble, Unfit, short, summary};
use crate::{Kind, NAME_BYTES_MAX, RESOURCES_MAX};

/// Notes of an answer that are told; more are not.
const NOTES_MAX: usize = 20;
/// `INVALID_ARGUMENT` (google/rpc/code.proto).
const INVALID_ARGUMENT: i32 = 3;

/// A variant of the protocol. It has the state of one conversation, and what outlives it: versions.
pub trait Protocol {
    /// What is sent to the control plane.
    type Request;
    /// What comes from it.
    type Answer;

    /// A conversation begins: what is said first.
    fn begin(&mut self, store: &Store) -> Vec<Self::Request>;

    /// Takes an answer into the store.
    fn receive(&mut self, store: &mut Store, answer: Self::Answer) -> Reply<Self::Request>;

    /// The version of a resource that was taken, where the variant has one for each.
    fn version(&self, _kind: Kind, _name: &str) -> Option<&str> {
        None
    }

    /// A process before this one had taken the resource in that version.
    fn resume(&mut self, _kind: Kind, _name: String, _version: String) {}
}

/// What is to be said to an answer.
#[derive(Debug)]
pub struct Reply<R> {
    /// The answer to the answer: it was taken, or not (then there are `troubles`). Absent: it was
    /// about something that nobody asked for.
    pub verdict: Option<R>,
    /// What is said besides, in this order, after the verdict.
    pub requests: Vec<R>,
    /// Which type it was about.
    pub kind: Option<Kind>,
    /// The version that the answer has, as the control plane calls it.
    pub version: String,
    /// How many resources it had, those that are gone included.
    pub resources: usize,
    /// How often in a row this very version was refused, this time included. Some control planes answer
    /// a refusal at once with the same again: from the second one on, the verdict should wait.
    pub refusals: u32,
    /// Why it was refused, in part or as a whole.
    pub troubles: Vec<Trouble>,
    /// What was taken otherwise than it says.
    pub notes: Vec<String>,
}

impl<R> Reply<R> {
    /// Nothing was asked for; the protocol has nothing to say to it.
    pub(crate) fn ignored(type_url: &str) -> Self {
        Self {
            verdict: None,
            requests: Vec::new(),
            kind: None,
            version: String::new(),
            resources: 0,
            refusals: 0,
            troubles: Vec::new(),
            notes: vec![format!(
                "an answer of type {:?}, which was not asked for",
                short(type_url)
            )],
        }
    }

    /// The troubles, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        summary(&self.troubles)
    }
}

/// What an answer brought, before it is taken.
#[derive(Debug, Default)]
pub struct Answer {
    pub(crate) update: Update,
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) notes: Vec<String>,
    /// The names that it had, good or not.
    pub(crate) named: BTreeSet<String>,
    /// There was something without a name.
    pub(crate) is_unclear: bool,
}

impl Answer {
    /// Reads resources; each with the name that the answer gives it, if it does.
    pub(crate) fn read<'a>(
        kind: Kind,
        count: usize,
        resources: impl Iterator<Item = (Option<&'a str>, &'a Any)>,
    ) -> Self {
        let mut answer = Self::default();
        if count > RESOURCES_MAX {
            answer.refuse(kind, Unfit::TooManyResources(count));
            return answer;
        }
        let mut bodies: BTreeMap<String, Body> = BTreeMap::new();
        for (outer, any) in resources {
            let Resource { name, body, notes } = Resource::read(kind, outer, any);
            let Some(name) = name else {
                answer.is_unclear = true;
                answer.troubles.extend(body.err().map(|unfit| Trouble::new(kind, "", unfit)));
                continue;
            };
            let room = NOTES_MAX.saturating_sub(answer.notes.len());
            let notes = notes.into_iter().take(room);
            answer.notes.extend(notes.map(|note| format!("{kind} {:?}: {note}", short(&name))));
            if !answer.named.insert(name.clone()) {
                // Which of the two is meant, nobody knows.
                bodies.remove(&name);
                answer.troubles.push(Trouble::new(kind, &name, Unfit::Twice));
                continue;
            }
            match body {
                Ok(body) => drop(bodies.insert(name, body)),
                Err(unfit) => answer.troubles.push(Trouble::new(kind, &name, unfit)),
            }
        }
        answer.update.resources = bodies;
        answer
    }

    /// Takes nothing of it.
    pub(crate) fn refuse(&mut self, kind: Kind, unfit: Unfit) {
        self.update = Update::default();
        self.is_unclear = true;
        self.troubles.push(Trouble::new(kind, "", unfit));
    }
}

/// Is it short enough to be kept and sent back?
pub(crate) fn is_token(token: &str) -> bool {
    token.len() <= NAME_BYTES_MAX
}

/// What is said of a refusal. `None`: it is none.
pub(crate) fn refusal(troubles: &[Trouble]) -> Option<Status> {
    (!troubles.is_empty()).then(|| Status {
        code: INVALID_ARGUMENT,
        message: summary(troubles),
        details: Vec::new(),
    })
}

/// Counts refusals of the same version in a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    version: String,
    count: u32,
}

impl Refusals {
    pub(crate) fn count(&mut self, version: &str, is_refused: bool) -> u32 {
        if !is_refused {
            *self = Self::default();
        } else if self.count > 0 && self.version == version {
            self.count = self.count.saturating_add(1);
        } else {
            *self = Self { version: version.into(), count: 1 };
        }
        self.count
    }
}
