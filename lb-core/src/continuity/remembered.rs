//! What is to be known of the tables by the next process, so that no flow notices the change.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Growth, Member, NOBODY, Roster, Standing, Transitions};
use crate::model::{
    Affinity, BACKENDS_MAX, Forward, SERVICES_MAX, SLOTS_MAX, Service, ServiceSpec, Vip,
};
use crate::rate::Tick;
use crate::tables::{ServiceId, ServiceTable, SlotTable, Tables};

/// What is remembered of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its name.
    pub name: String,
    /// Its id, which its tracked flows name.
    pub id: ServiceId,
    /// What clients address.
    pub vip: Vip,
    /// What keeps together.
    pub affinity: Affinity,
    /// Slots of its table; 0, if nobody took any.
    pub slots: u32,
    /// By place.
    pub seats: Vec<Option<Seat>>,
    /// By slot: whom it was on ([`NOBODY`]: it has not moved), and until when that matters.
    pub transitions: Option<(Vec<u16>, Vec<Tick>)>,
}

/// A place that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Who.
    pub member: Member,
    /// The weight that counted.
    pub weight: u32,
    /// When it began to serve, if its share still grows.
    pub since: Option<Tick>,
}

impl Remembered {
    /// What there is to remember of a service.
    #[must_use]
    pub fn new(table: &ServiceTable) -> Self {
        let spec = table.source.spec();
        let weights = table.slots.weights();
        let members = table.roster.members().iter().enumerate();
        let seats = members.map(|(place, member)| {
            let weight = weights.get(place).copied().unwrap_or(0);
            let since = table.growth.since(place);
            member.clone().map(|member| Seat { member, weight, since })
        });
        let transitions = table.transitions.as_ref().map(|transitions| {
            let (from, until) = transitions.parts();
            (from.to_vec(), until.to_vec())
        });
        Self {
            name: spec.name.clone(),
            id: table.id,
            vip: spec.vip,
            affinity: spec.affinity,
            slots: table.slots.len(),
            seats: seats.collect(),
            transitions,
        }
    }

    /// Do packets mean the same flows to this service?
    #[must_use]
    pub fn is_of(&self, service: &Service) -> bool {
        let spec = service.spec();
        (&self.name, self.vip, self.affinity) == (&spec.name, spec.vip, spec.affinity)
    }

    /// The same on the clock of another machine, which says `to` when this one's says `from`.
    #[must_use]
    pub fn on_clock(mut self, from: Tick, to: Tick) -> Self {
        let shifted = |tick: &mut Tick| tick.0 = tick.0.saturating_add(to.0).saturating_sub(from.0);
        for Seat { member, since, .. } in self.seats.iter_mut().flatten() {
            match &mut member.standing {
                Standing::Wanted => {}
                Standing::Leaving(until) | Standing::Gone(until) => shifted(until),
            }
            since.iter_mut().for_each(shifted);
        }
        if let Some((_, until)) = &mut self.transitions {
            until.iter_mut().for_each(shifted);
        }
        self
    }

    /// The service as the next version's predecessor: nothing of it leads anywhere. `None`, if it
    /// contradicts itself.
    fn table(self, nothing: &ServiceTable) -> Option<ServiceTable> {
        let id_max = 2 * u32::try_from(SERVICES_MAX).ok()?;
        let places = self.seats.len();
        if self.slots > SLOTS_MAX || self.id.0 >= id_max || places > BACKENDS_MAX {
            return None;
        }
        let spec = ServiceSpec {
            affinity: self.affinity,
            ..ServiceSpec::new(&self.name, self.vip, Forward::L2dsr)
        };
        let seats = || self.seats.iter().map(Option::as_ref);
        let weights = seats().map(|seat| seat.map_or(0, |seat| seat.weight)).collect();
        let growth = Growth::restore(seats().map(|seat| seat.and_then(|seat| seat.since)));
        let members = seats().map(|seat| seat.map(|seat| seat.member.clone())).collect();
        let roster = Roster::restore(members)?;
        let slots = SlotTable::new(roster.identities(&spec), weights, self.slots);
        let transitions = match self.transitions {
            None => None,
            Some((from, until)) => {
                let exists = |from: &u16| *from == NOBODY || usize::from(*from) < places;
                if from.len() > SLOTS_MAX as usize || !from.iter().all(exists) {
                    return None;
                }
                Some(Arc::new(Transitions::restore(from, until, slots.len())?))
            }
        };
        Some(ServiceTable {
            id: self.id,
            roster: Arc::new(roster),
            slots,
            growth,
            transitions,
            source: Arc::new(Service::new(spec).ok()?),
            ..nothing.clone()
        })
    }
}

impl Tables {
    /// What there is to remember of all services.
    #[must_use]
    pub fn remember(&self) -> Vec<Remembered> {
        self.services.iter().map(|table| Remembered::new(table)).collect()
    }

    /// These tables, which have no services, as the successor of those that `services` were
    /// remembered of: the next version goes on from there. Not for workers. `None`, if what was
    /// remembered contradicts itself.
    #[must_use]
    pub fn resume(&self, services: Vec<Remembered>) -> Option<Self> {
        let nothing = ServiceTable::nothing()?;
        let mut ids: Vec<ServiceId> = services.iter().map(|service| service.id).collect();
        ids.sort_unstable();
        let is_unique = ids.windows(2).all(|pair| pair[0] != pair[1]);
        let tables = services.into_par_iter().map(|it| it.table(&nothing).map(Arc::new));
        let services: Option<Vec<Arc<ServiceTable>>> = tables.collect();
        Some(self.with_services(services.filter(|_| is_unique)?))
    }
}
