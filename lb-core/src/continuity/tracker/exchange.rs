//! What balancers tell each other of tracked flows.
//!
//! Told again and again are the flows that a balancer has seen itself: so nothing goes round in
//! circles, and a flow that no balancer sees any more is forgotten by all. Only who is new, and may
//! have forgotten what it said itself, hears of all.

#[cfg(not(loom))]
use std::sync::atomic::fence;

use crossbeam_queue::ArrayQueue;
#[cfg(loom)]
use loom::sync::atomic::fence;

use super::{Flow, Mark, Ordering, Phase, Seen, Shape, Table, Tracked, Tracker};
use crate::flow_hash::FlowHasher;
use crate::pool::units;
use crate::rate::Tick;
use crate::tables::ServiceTable;
use crate::tuple::{Tuple, address_bytes, mapped};

/// How long ago a flow may have come here, in [`units`], to be known better here than by peers.
const RECENT_MAX: u16 = 3;

/// Places of flows of which there is something new, for one reader.
#[derive(Debug)]
pub(super) struct News {
    going_on: ArrayQueue<(Shape, usize)>,
    /// Apart, so that a flood of them keeps back nobody.
    opening: ArrayQueue<(Shape, usize)>,
}

/// A tracked flow, as others are told of it; or one that is tracked no more: [`Phase::Free`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose flow, on which backend, and how long it has been silent.
    pub seen: Seen,
    /// What the key holds of the packet.
    pub key: [u64; 5],
}

impl Report {
    /// Has a packet of it come here?
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.seen.phase != Phase::Told
    }
}

impl Shape {
    /// How many words of a key it uses.
    #[must_use]
    pub fn words(self) -> usize {
        match self {
            Self::Short => 1,
            Self::Long => 3,
            Self::Longest => 5,
        }
    }
}

impl Flow {
    /// The flow of `service` with this key: the reverse of [`Flow::new`]. Whatever the words are, it
    /// is some flow of the service.
    #[must_use]
    pub fn with_key(key: [u64; 5], service: &ServiceTable, hasher: &FlowHasher) -> Self {
        let shape = service.key_shape;
        let vip = &service.source.spec().vip;
        let is_ipv6 = vip.address.addr().is_ipv6();
        let [first, second, third, ..] = key;
        let (src, ports, dst) = match shape {
            Shape::Short => (ipv4(first >> 32), low_half(first), None),
            Shape::Long if !is_ipv6 => (ipv4(first >> 32), low_half(first), Some(ipv4(second))),
            Shape::Long => (ipv6(first, second), low_half(third), None),
            Shape::Longest => (ipv6(first, second), low_half(third), Some(ipv6(key[3], key[4]))),
        };
        let dst = dst.unwrap_or_else(|| address_bytes(vip.address.addr()));
        let (ports, protocol) = if service.keeps_clients() {
            ([0; 4], ports[3])
        } else {
            (ports, vip.protocol.number().unwrap_or_default())
        };
        let tuple = Tuple { src, dst, ports, protocol, is_ipv6 };
        let hash = hasher.hash(&tuple, !service.keeps_clients());
        Self::of((shape, service), hash, key)
    }
}

impl Tracker {
    /// Notes which flows are new or have shown that they go on, for [`Self::next_news`]; so many of
    /// either kind, at most.
    #[must_use]
    pub fn with_news(self, places: usize) -> Self {
        let queue = || ArrayQueue::new(places.max(1));
        Self { news: Some(News { going_on: queue(), opening: queue() }), ..self }
    }

    /// The next flow that is news. Flows of which there are more news than there is room for are
    /// found by [`Self::reports`] only.
    pub fn next_news(&self, now: Tick) -> Option<Report> {
        let News { going_on, opening } = self.news.as_ref()?;
        // Another's by now: then that one is news.
        std::iter::from_fn(|| going_on.pop().or_else(|| opening.pop())).find_map(
            |(shape, place)| {
                let report = table_of!(self, shape, table => table.report(place, units(now)))?;
                report.is_own().then_some(report)
            },
        )
    }

    /// All flows of a part of the table, of `parts`.
    pub fn reports(
        &self,
        (part, parts): (usize, usize),
        now: Tick,
        mut report: impl FnMut(Report),
    ) {
        self.short.reports((part, parts), units(now), &mut report);
        self.long.reports((part, parts), units(now), &mut report);
        self.longest.reports((part, parts), units(now), &mut report);
    }

    /// Takes a peer's word about a flow of `service`, where [`Seen::backend`] is a place here. What goes
    /// on here stays as it is, if its backend may serve, and the peer has not seen it on another clearly
    /// later; and so does whatever is known here, if the peer was only told. `false`: there is no room.
    pub fn tell(&self, flow: &Flow, seen: Seen, service: &ServiceTable, now: Tick) -> bool {
        self.has_heard.store(true, Ordering::Relaxed);
        if seen.age > flow.idle_max {
            return true;
        }
        let found = self.find(flow);
        let stands = |it: &Tracked| service.may_serve(it.backend()) && it.age(now) <= flow.idle_max;
        let last = units(now).wrapping_sub(seen.age);
        let told = |phase| Mark::new(flow.service, seen.backend, phase, last);
        if seen.phase == Phase::Free {
            let is_needed = |it: &Tracked| {
                let is_settled = service.settled(flow.hash) == Some(it.backend());
                let is_another =
                    it.backend() != seen.backend && told(Phase::Free).is_after(it.mark, units(now));
                it.phase() == Phase::Established && stands(it) && !is_settled && !is_another
            };
            if let Some(found) = found.filter(|found| !is_needed(found)) {
                self.free(flow, &found);
            }
            return true;
        }
        let phase = if seen.phase == Phase::Opening { Phase::Opening } else { Phase::Told };
        let told = told(phase);
        let Some(found) = found else {
            service.touch(flow.hash);
            return self.put(flow, told, units(now)).is_some();
        };
        let to = if !stands(&found) {
            found.mark.replaced(told)
        } else if seen.phase == Phase::Told || !service.may_serve(seen.backend) {
            found.mark
        } else {
            found.mark.told(told, units(now))
        };
        if to != found.mark {
            // A worker was faster: it has seen the flow just now.
            table_of!(self, flow.shape, table => table.change(&found, to));
        }
        true
    }

    /// Forgets what peers know better: flows that have been silent for a while here, and those that peers
    /// have told of. For who was away; what is true of them still is told again.
    pub fn defer(&self, now: Tick) {
        self.sweep((0, 1), now, |seen| seen.phase == Phase::Told || seen.age > RECENT_MAX);
    }

    pub(super) fn note(&self, shape: Shape, place: usize, phase: Phase) {
        if let Some(News { going_on, opening }) = &self.news {
            let queue = if phase == Phase::Opening { opening } else { going_on };
            // No room: told with all the others.
            let _ = queue.push((shape, place));
        }
    }
}

/// The lower half of a word, as it lies on the wire.
fn low_half(word: u64) -> [u8; 4] {
    let [.., a, b, c, d] = word.to_be_bytes();
    [a, b, c, d]
}

fn ipv4(word: u64) -> [u8; 16] {
    mapped(low_half(word))
}

fn ipv6(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

impl<const KEY: usize> Table<KEY> {
    /// The flow at a place, or the one that was there last.
    fn report(&self, place: usize, now: u16) -> Option<Report> {
        let [state, words @ ..] = self.words().get(place..place + Self::ENTRY)? else {
            return None;
        };
        let mark = Mark(state.load(Ordering::Acquire));
        if mark.phase() == Phase::Busy {
            return None;
        }
        let mut key = [0; 5];
        for (word, key) in words.iter().zip(&mut key) {
            *key = word.load(Ordering::Relaxed);
        }
        // As in `find`.
        fence(Ordering::Acquire);
        Mark(state.load(Ordering::Relaxed))
            .is_same_writing(mark)
            .then(|| Report { seen: mark.seen_at(now), key })
    }

    fn reports(&self, (part, parts): (usize, usize), now: u16, report: &mut impl FnMut(Report)) {
        let places = self.part(part, parts).step_by(Self::ENTRY);
        let all = places.filter_map(|place| self.report(place, now));
        all.filter(|it| it.seen.phase.is_flow()).for_each(report);
    }
}
