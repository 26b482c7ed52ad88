//! No connection broken by a change: what is remembered of flows whose slot is changing.
//!
//! A flow on a slot that has not changed needs no memory: every worker and every balancer picks the
//! same backend from the packet alone. When a slot moves from backend A to B, a [`transition`] of
//! that slot begins, and while it lasts the [`tracker`] remembers the flows that it touches. What a
//! packet of flow f on slot x does (`stage::select`):
//!
//! 1. f is tracked and its backend may still serve: that backend. Except for a packet that opens a
//!    flow, if f is at its end, or its backend takes no new flows (see [`Tracker::is_over`]): that is
//!    another flow, with a port that has been used before, and goes by the other rules.
//! 2. x is not in transition: the backend of x. Nothing is remembered.
//! 3. x is in transition, and the packet opens a flow (a SYN without ACK, an INIT): the backend of x,
//!    and f is tracked.
//! 4. x is in transition, and the packet does not: the backend that x was on, if that may still
//!    serve, and f is tracked; else the backend of x.
//!
//! The [`tracker`] is asked only about flows of slots that changes have [`touched`].
//!
//! A backend's place is the same in all versions of the tables, so that flows and transitions can
//! name it: that is what the [`roster`] is for. A backend that is no longer wanted keeps its place,
//! and serves the flows that it has, until they are over.

use std::collections::{BTreeMap, BTreeSet};

use crate::rate::Tick;
use crate::tables::{ServiceId, ServiceTable, Tables};

pub mod growth;
pub mod join;
pub mod moves;
pub mod remembered;
pub mod roster;
pub mod touched;
pub mod tracker;
pub mod transition;

pub use growth::Growth;
pub use join::join;
pub use moves::{Moves, moves};
pub use remembered::{Remembered, Seat};
pub use roster::{Member, Roster, Standing};
pub use touched::Touched;
pub use tracker::{Flow, Tracker};
pub use transition::Transitions;

/// What [`sweep`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that are tracked still, by service and place of their backend.
    pub flows: BTreeMap<(ServiceId, u16), u64>,
    /// Places of backends that are leaving, and have no flow among those; after a whole round: any.
    pub idle: BTreeSet<(ServiceId, u16)>,
}

/// Forgets the flows of a part of the tracker, of `parts`, that have been silent for too long, or
/// whose backend is gone. For the control thread, from time to time.
#[must_use]
pub fn sweep(tables: &Tables, (part, parts): (usize, usize), now: Tick) -> Swept {
    let services: BTreeMap<ServiceId, &ServiceTable> =
        tables.services.iter().map(|service| (service.id, &**service)).collect();
    let mut flows = BTreeMap::new();
    tables.tracker.sweep((part, parts), now, |seen| {
        let Some(service) = services.get(&seen.service) else { return true };
        let idle_max = match seen.phase {
            tracker::Phase::Opening => service.idle_max.min(OPENING_MAX),
            _ => service.idle_max,
        };
        // One that has failed may be back before its flows' next packets.
        let standing = service.roster.get(seen.backend).map(|member| member.standing);
        let is_gone = matches!(standing, None | Some(Standing::Gone(_)));
        let is_over = seen.age > idle_max || is_gone;
        if !is_over {
            *flows.entry((seen.service, seen.backend)).or_insert(0) += 1;
        }
        is_over
    });
    let leaving = tables.leaving().flat_map(|service| {
        let members = service.roster.members().iter().zip(0..);
        let leaving = members.filter(|(member, _)| {
            let standing = member.as_ref().map(|member| member.standing);
            matches!(standing, Some(Standing::Leaving(_)))
        });
        // Pools have a memory of their own.
        leaving.filter(|_| service.pooled.is_none()).map(|(_, place)| (service.id, place))
    });
    let idle = leaving.filter(|place| !flows.contains_key(place)).collect();
    Swept { flows, idle }
}

/// How long half-open flows are remembered, in [`crate::pool::units`]: as long as a client repeats
/// its SYN, about a minute.
const OPENING_MAX: u16 = 15;

/// A flow that a peer has seen so much later, in [`crate::pool::units`], on another backend than that
/// which is known here, is another, with the same ports: more than 4 s.
pub const SILENT: u16 = 2;

/// Peers tell each other of a flow that goes on so many times in the time that it may be silent; and it
/// is remembered for so much longer.
pub const TOLD_TIMES: u16 = 4;

/// No backend's place.
pub const NOBODY: u16 = u16::MAX;
