//! What all sources want together.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use lb_core::model::{
    Conflict, DesiredState, HashKey, Health, Invalid, SERVICES_MAX, Service, ambiguous_returns,
    conflicts, pool_conflicts,
};

use super::{Source, State};

/// Overlaps that are told; more are counted.
const OVERLAPS_TOLD_MAX: usize = 20;

/// The states of all sources, valid together.
///
/// **Having one tells you**: each service is of one source, and no two want the same.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    states: BTreeMap<Source, Arc<State>>,
    desired: DesiredState,
    /// By the service's name.
    sources: Arc<HashMap<String, Source>>,
}

impl Wanted {
    pub(crate) fn nothing(hash_key: HashKey) -> Self {
        let desired = DesiredState::empty(hash_key);
        Self { states: BTreeMap::new(), desired, sources: Arc::default() }
    }

    /// With `state` in place of what its source wanted before.
    pub(crate) fn with(&self, state: State) -> Result<Self, Overlaps> {
        let mut states = self.states.clone();
        let (source, services) = (state.source.clone(), state.services.len());
        let old = states.insert(source, Arc::new(state));
        let is_as_long = old.is_some_and(|old| old.services.len() == services);
        let services = states.values().flat_map(|state| &state.services);
        let services: Vec<Arc<Service>> = services.map(Arc::clone).collect();
        let desired = self.desired.followed_by(services).map_err(|_| Overlaps::of(&states))?;
        let has_name =
            |(old, new): (&Arc<Service>, &Arc<Service>)| old.spec().name == new.spec().name;
        let same_places = desired.changed_since(&self.desired).filter(|_| is_as_long);
        if same_places.is_some_and(|mut changed| changed.all(has_name)) {
            let sources = Arc::clone(&self.sources);
            return Ok(Self { states, desired, sources });
        }
        let of_state = |state: &Arc<State>| {
            let source = state.source.clone();
            let names = state.services.iter().map(|service| service.spec().name.clone());
            names.map(move |name| (name, source.clone())).collect::<Vec<_>>()
        };
        let sources = states.values().flat_map(of_state).collect();
        Ok(Self { states, desired, sources: Arc::new(sources) })
    }

    /// In the order of the sources.
    pub(crate) fn desired(&self) -> &DesiredState {
        &self.desired
    }

    /// Whose service this is.
    pub(crate) fn source_of(&self, service: &str) -> Option<&Source> {
        self.sources.get(service)
    }

    /// The backends that sources say do not serve.
    pub(crate) fn failed(&self) -> Health {
        self.states().fold(Health::default(), |all, state| all.and(&state.failed))
    }

    /// What each source wants.
    pub(crate) fn states(&self) -> impl Iterator<Item = &State> {
        self.states.values().map(|state| &**state)
    }
}

/// Two services that want the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// The later one, in the order of sources, with what it cannot have.
    pub(crate) service: String,
    pub(crate) source: Source,
    pub(crate) invalid: Invalid,
    /// The one that has it.
    pub(crate) other: String,
    pub(crate) other_source: Source,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, source, invalid, other, other_source } = self;
        write!(f, "service {service:?} of {source} and {other:?} of {other_source}: {invalid}")
    }
}

/// Why states cannot be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlaps {
    /// At most [`OVERLAPS_TOLD_MAX`].
    pub(crate) told: Vec<Overlap>,
    /// Services of all sources.
    services: usize,
    count: usize,
}

impl std::error::Error for Overlaps {}

impl Overlaps {
    /// Looked for again: it is known that there are some.
    fn of(states: &BTreeMap<Source, Arc<State>>) -> Self {
        let all: Vec<(&Source, &Service)> = states
            .values()
            .flat_map(|state| state.services.iter().map(|service| (&state.source, &**service)))
            .collect();
        let specs = || all.iter().map(|(_, service)| service.spec());
        let mut found = conflicts(specs().map(|spec| (spec.name.as_str(), spec.vip)));
        found.extend(ambiguous_returns(specs()));
        found.extend(pool_conflicts(specs()));
        let overlap = |conflict: &Conflict| {
            let (source, service) = all[conflict.place];
            let (other_source, other) = all[conflict.first];
            Overlap {
                service: service.spec().name.clone(),
                source: source.clone(),
                invalid: conflict.finding.invalid.clone(),
                other: other.spec().name.clone(),
                other_source: other_source.clone(),
            }
        };
        let told = found.iter().take(OVERLAPS_TOLD_MAX).map(overlap).collect();
        Self { told, services: all.len(), count: found.len() }
    }
}

impl fmt::Display for Overlaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.services > SERVICES_MAX {
            write!(f, "{}", Invalid::TooManyServices(self.services))?;
            return Ok(());
        }
        for (place, overlap) in self.told.iter().enumerate() {
            write!(f, "{}{overlap}", if place == 0 { "" } else { "; " })?;
        }
        match self.count - self.told.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
