//! A balancer that was away, or is new, goes on from where its peers are.
//!
//! What it missed are changes: which slots have moved meanwhile, and from whom. Its peer knows; so the
//! peer's table of slots and its transitions are taken, and nothing of them is kept that was true here
//! before. But backends have the places that they had here, since tracked flows name those.

use std::collections::BTreeMap;

use super::roster::{Name, name};
use super::{NOBODY, Remembered, Seat, Standing, Tracker};
use crate::model::{Forward, ServiceSpec};
use crate::tables::ServiceId;

/// What is remembered here, brought to where a peer is; the clock is the same. If that can be gone on from,
/// what is known of flows is to be [deferred](Tracker::defer).
#[must_use]
pub fn join(own: Vec<Remembered>, theirs: Vec<Remembered>, tracker: &Tracker) -> Vec<Remembered> {
    let mut joined = own;
    let mut next_id = 0;
    for their in theirs {
        let is_same = |own: &&mut Remembered| {
            (&own.name, own.vip, own.affinity) == (&their.name, their.vip, their.affinity)
        };
        if let Some(own) = joined.iter_mut().find(is_same) {
            own.follow(their);
            continue;
        }
        // Who has the name for something else here has it no more.
        joined.retain(|own| own.name != their.name);
        let is_taken = |id| joined.iter().any(|own| own.id == id) || tracker.tracks(id);
        while is_taken(ServiceId(next_id)) {
            next_id += 1;
        }
        joined.push(Remembered { id: ServiceId(next_id), ..their });
    }
    joined
}

impl Remembered {
    /// Takes the state of the same service at a peer.
    fn follow(&mut self, theirs: Self) {
        let places = self.seat(theirs.seats);
        self.slots = theirs.slots;
        let place = |from: u16| places.get(usize::from(from)).copied().unwrap_or(NOBODY);
        self.transitions =
            theirs.transitions.map(|(from, until)| (from.into_iter().map(place).collect(), until));
    }

    /// Gives a peer's backends places: those that they have here, or new ones. Nobody else takes
    /// slots. Returns the places here by those there.
    fn seat(&mut self, theirs: Vec<Option<Seat>>) -> Vec<u16> {
        let spec = ServiceSpec::new(&self.name, self.vip, Forward::L2dsr);
        let mut places: BTreeMap<Name, usize> = BTreeMap::new();
        for (place, seat) in self.seats.iter_mut().enumerate() {
            if let Some(seat) = seat {
                places.insert(name(&spec, &seat.member.backend), place);
                (seat.weight, seat.since) = (0, None);
            }
        }
        let seat = |theirs: Option<Seat>| {
            let theirs = theirs?;
            let known = places.get(&name(&spec, &theirs.member.backend)).copied();
            let place = known.unwrap_or_else(|| {
                self.seats.push(None);
                self.seats.len() - 1
            });
            let here = u16::try_from(place).ok().filter(|here| *here != NOBODY)?;
            let seat = self.seats.get_mut(place)?;
            match seat {
                // Flows may be left here.
                Some(_) if matches!(theirs.member.standing, Standing::Gone(_)) => {}
                _ => *seat = Some(theirs),
            }
            Some(here)
        };
        theirs.into_iter().map(seat).map(|here| here.unwrap_or(NOBODY)).collect()
    }
}

#[cfg(test)]
mod tests;
