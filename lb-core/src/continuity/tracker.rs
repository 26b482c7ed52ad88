//! The flow table: which backend a flow has, for the flows that a change touches.
//!
//! * **Exact**: an entry holds the whole key, so two flows are never confused. What the service
//!   implies is left out of it: an IPv4 flow takes 16 bytes, an IPv6 flow 32. (Of a service that is a
//!   prefix the destination counts: 32 and 48.)
//! * **Bounded**: allocated at the start, never grows. A flow has two buckets of four entries. What
//!   was seen once only (a SYN; the first packet of a flow during a transition) competes with its
//!   like, and SYNs for half of a bucket: no flood pushes out a flow that goes on. What
//!   peers tell of leaves an entry of each bucket free, and competes with its like only.
//! * **Shared**: all workers search and change the same table, so a flow is found on whatever worker
//!   it arrives, and by the next process with any number of workers. An entry is a word of state,
//!   changed by compare-and-swap, and words of key, which are written only while the state says so,
//!   and believed only if it is the same after reading: see [`crate::pool`]. Loom checks that, with
//!   buckets that are small.
//!
//! The memory may be a file's, and outlives the process: see [`Tracker::over`].

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::{SILENT, TOLD_TIMES};
use crate::burst::Meta;
use crate::model::SERVICES_MAX;
use crate::pool::{units, zeroed};
use crate::rate::Tick;
use crate::sign::Sign;
use crate::tables::{ServiceId, ServiceTable};

/// Calls a method of the table that a shape belongs to.
macro_rules! table_of {
    ($tracker:expr, $shape:expr, $table:ident => $call:expr) => {
        match $shape {
            Shape::Short => {
                let $table = &$tracker.short;
                $call
            }
            Shape::Long => {
                let $table = &$tracker.long;
                $call
            }
            Shape::Longest => {
                let $table = &$tracker.longest;
                $call
            }
        }
    };
}

mod exchange;
mod mark;
mod table;

use exchange::News;
pub use exchange::Report;
use mark::Mark;
pub use mark::Phase;
use table::{Table, WAYS, Words};

/// Flows that a tracker is made for, at most.
pub const FLOWS_MAX: u32 = 1 << 28;
/// How full the table is when it holds as many flows as it is made for, in percent: then two choices
/// of four entries have refused one of a thousand (of those that go on; at 80 % it would be thirteen).
const LOAD_PERCENT: u64 = 66;
/// Ids of services that flows are counted for: as many as there are at once.
const IDS: usize = if cfg!(loom) { 1 } else { 2 * SERVICES_MAX };

/// Room for one flow.
const FLOWS_OF_TRIAL: u32 = 8;

/// What a flow's key has to say, besides who the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IPv4, to one address.
    Short,
    /// IPv6 to one address, or IPv4 to a prefix.
    Long,
    /// IPv6 to a prefix.
    Longest,
}

/// A flow, as it is tracked.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    shape: Shape,
    service: ServiceId,
    /// Its flow hash.
    hash: u64,
    /// How long it is remembered when it is silent, in [`units`].
    idle_max: u16,
    /// Of which the shape uses some.
    key: [u64; 5],
}

impl Flow {
    /// Its flow hash.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// For how long peers may be told nothing of it, although it goes on, in [`units`].
    fn untold_max(&self) -> u16 {
        self.idle_max / (TOLD_TIMES + 1)
    }

    /// The flow that a packet for `service` belongs to; for services that keep clients together,
    /// that is all that comes from the client. Reads `meta.tuple` and `meta.hash`.
    #[inline]
    #[must_use]
    pub fn new(meta: &Meta, service: &ServiceTable) -> Self {
        Self::shaped(service.key_shape, meta, service)
    }

    /// `shape` is the service's; where it is a constant, no more of the key is made than it has.
    #[inline(always)]
    fn shaped(shape: Shape, meta: &Meta, service: &ServiceTable) -> Self {
        let tuple = &meta.tuple;
        let ports = if service.keeps_clients() {
            u32::from(tuple.protocol)
        } else {
            u32::from_be_bytes(tuple.ports)
        };
        let ports = u64::from(ports);
        let [src, dst] = [tuple.src, tuple.dst].map(u128::from_be_bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the parts of an address")]
        let [(src_high, src_low), (dst_high, dst_low)] =
            [src, dst].map(|address| ((address >> 64) as u64, address as u64));
        let key = match shape {
            Shape::Short => [src_low << 32 | ports, 0, 0, 0, 0],
            Shape::Long if !tuple.is_ipv6 => [src_low << 32 | ports, dst_low, 0, 0, 0],
            Shape::Long => [src_high, src_low, ports, 0, 0],
            Shape::Longest => [src_high, src_low, ports, dst_high, dst_low],
        };
        Self::of((shape, service), meta.hash, key)
    }

    #[inline]
    fn of((shape, service): (Shape, &ServiceTable), hash: u64, key: [u64; 5]) -> Self {
        Self { shape, service: service.id, hash, idle_max: service.idle_max, key }
    }
}

/// A tracked flow.
#[derive(Clone, Copy, Debug)]
pub struct Tracked {
    place: usize,
    mark: Mark,
}

impl Tracked {
    /// Place of its backend.
    #[must_use]
    pub fn backend(&self) -> u16 {
        self.mark.backend()
    }

    /// How long it has been silent, in [`units`].
    #[must_use]
    pub fn age(&self, now: Tick) -> u16 {
        self.mark.age(units(now))
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.mark.phase()
    }

    /// Is there nothing new in another packet of the flow? So it is with most.
    #[inline]
    #[must_use]
    pub fn knows(&self, sign: Sign, now: Tick) -> bool {
        self.mark.knows(sign, units(now))
    }
}

/// What the first of a flow's two buckets says: where the flow seems to be, and which bucket is to be
/// searched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Glance {
    at: usize,
    bucket: usize,
}

/// What there is to know about an entry, besides who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whose flow.
    pub service: ServiceId,
    /// Place of its backend.
    pub backend: u16,
    /// How long it has been silent, in [`units`].
    pub age: u16,
    /// How far it is.
    pub phase: Phase,
}

/// The flow tables of one balancer.
#[derive(Debug)]
pub struct Tracker {
    short: Table<1>,
    long: Table<3>,
    longest: Table<5>,
    counts: Counts,
    /// Absent: nobody wants to know.
    news: Option<News>,
    /// Has a peer ever told of a flow?
    has_heard: AtomicBool,
}

/// How many flows are tracked.
#[derive(Debug)]
struct Counts {
    by_service: Box<[AtomicU32]>,
    all: AtomicU32,
}

impl Tracker {
    /// For so many IPv4 flows, as many IPv6 flows, and an eighth of that of flows with the longest
    /// keys. Memory is taken when it is used.
    #[must_use]
    pub fn new(flows: u32) -> Self {
        let own = |words| Words::Own(zeroed(words));
        let [short, long, longest] = sizes(flows);
        Self::of(Table::new(own(short)), Table::new(own(long)), Table::new(own(longest)))
    }

    /// Over the words of a file, which has been a tracker of as many flows before, or is all zero.
    /// `None`: there are not [`Tracker::words`].
    #[must_use]
    pub fn over(words: &'static [AtomicU64], flows: u32) -> Option<Self> {
        let [short, long, longest] = sizes(flows);
        let (short, rest) = words.split_at_checked(short)?;
        let (long, rest) = rest.split_at_checked(long)?;
        let longest = rest.get(..longest)?;
        let [short, long, longest] = [short, long, longest].map(Words::Lent);
        let tracker = Self::of(Table::new(short), Table::new(long), Table::new(longest));
        tracker.short.recover(&tracker.counts);
        tracker.long.recover(&tracker.counts);
        tracker.longest.recover(&tracker.counts);
        Some(tracker)
    }

    fn of(short: Table<1>, long: Table<3>, longest: Table<5>) -> Self {
        let counts = Counts { by_service: zeroed(IDS), all: AtomicU32::new(0) };
        Self { short, long, longest, counts, news: None, has_heard: AtomicBool::new(false) }
    }

    /// Words that a tracker for so many flows takes.
    #[must_use]
    pub fn words(flows: u32) -> usize {
        sizes(flows).iter().sum()
    }

    /// Is any flow of a service tracked?
    #[inline]
    #[must_use]
    pub fn tracks(&self, service: ServiceId) -> bool {
        self.count(service) > 0
    }

    /// How many flows of a service are tracked.
    #[inline]
    #[must_use]
    pub fn count(&self, service: ServiceId) -> u32 {
        let count = self.counts.by_service.get(service.0 as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many flows of all services are tracked.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        self.counts.all.load(Ordering::Relaxed)
    }

    /// Is no flow tracked?
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks for the memory where a flow with this hash would most likely be.
    #[inline]
    pub fn prefetch(&self, shape: Shape, hash: u64) {
        table_of!(self, shape, table => table.prefetch(hash));
    }

    /// Looks for the flow of a packet for `service` where it most likely is; if it is not there, asks
    /// for the memory where else it would be.
    #[inline(always)]
    #[must_use]
    pub fn glance(&self, meta: &Meta, service: &ServiceTable) -> Glance {
        let flow = |shape| Flow::shaped(shape, meta, service);
        match service.key_shape {
            Shape::Short => self.short.glance(&flow(Shape::Short)),
            Shape::Long => self.long.glance(&flow(Shape::Long)),
            Shape::Longest => self.longest.glance(&flow(Shape::Longest)),
        }
    }

    /// The flow of a packet for `service`, if it was tracked at the [`Self::glance`] at it.
    #[inline(always)]
    #[must_use]
    pub fn find_after(
        &self,
        glance: Glance,
        meta: &Meta,
        service: &ServiceTable,
    ) -> Option<Tracked> {
        let flow = |shape| Flow::shaped(shape, meta, service);
        match service.key_shape {
            Shape::Short => self.short.find_after(glance, &flow(Shape::Short)),
            Shape::Long => self.long.find_after(glance, &flow(Shape::Long)),
            Shape::Longest => self.longest.find_after(glance, &flow(Shape::Longest)),
        }
    }

    /// The flow, if it is tracked.
    #[inline]
    #[must_use]
    pub fn find(&self, flow: &Flow) -> Option<Tracked> {
        table_of!(self, flow.shape, table => table.find_after(table.glance(flow), flow))
    }

    /// Is a packet that opens a tracked flow, whose backend takes no new ones, the first of another, for
    /// all that is known? A peer may have seen it go on and not told of it yet, and would not believe
    /// it: not before the flow has been [`SILENT`] for sure.
    #[must_use]
    pub fn is_over(&self, flow: &Flow, found: &Tracked, now: Tick) -> bool {
        let has_heard = self.has_heard.load(Ordering::Relaxed);
        !has_heard || found.age(now) > SILENT + flow.untold_max()
    }

    /// Notes that a packet of a tracked flow has come. A flow stays half-open as long as its packets
    /// open it.
    #[inline]
    pub fn refresh(&self, flow: &Flow, found: &Tracked, sign: Sign, now: Tick) {
        let to = found.mark.refreshed(sign, units(now));
        if to != found.mark {
            // Another worker was faster: as good.
            let _ = table_of!(self, flow.shape, table => table.change(found, to));
            if to.phase() != found.phase() || found.age(now) > flow.untold_max() {
                self.note(flow.shape, found.place, to.phase());
            }
        }
    }

    /// Remembers the backend of a flow that is not tracked. `false`: there is no room.
    pub fn track(&self, flow: &Flow, backend: u16, sign: Sign, now: Tick) -> bool {
        let phase = match sign {
            Sign::Opens => Phase::Opening,
            Sign::GoesOn => Phase::Seen,
            Sign::IsDone | Sign::Ends => Phase::Closing,
        };
        let place = self.put(flow, Mark::new(flow.service, backend, phase, units(now)), units(now));
        if let Some(place) = place {
            self.note(flow.shape, place, phase);
        }
        place.is_some()
    }

    /// An empty one, with room for one flow: for who tries what would become of a packet.
    #[must_use]
    pub(crate) fn for_trial() -> Self {
        Self::new(FLOWS_OF_TRIAL)
    }

    /// Knows of a flow what another tracker has found.
    pub(crate) fn copy(&self, flow: &Flow, found: &Tracked, now: Tick) {
        self.put(flow, found.mark, units(now));
    }

    /// Where it was put; `None`: there is no room.
    fn put(&self, flow: &Flow, mark: Mark, now: u16) -> Option<usize> {
        let taken = table_of!(self, flow.shape, table => table.insert(flow, mark, now))?;
        self.counts.add(flow.service);
        self.counts.take_off(taken.mark);
        Some(taken.place)
    }

    /// Remembers a flow no more.
    pub fn forget(&self, flow: &Flow, found: &Tracked) {
        self.free(flow, found);
        self.note(flow.shape, found.place, Phase::Free);
    }

    fn free(&self, flow: &Flow, found: &Tracked) {
        if table_of!(self, flow.shape, table => table.change(found, found.mark.freed())) {
            self.counts.take_off(found.mark);
        }
    }

    /// Goes over a part of the table, of `parts`, and forgets the flows that `is_over`. Bounded work
    /// for the control thread; workers go on meanwhile.
    pub fn sweep(
        &self,
        (part, parts): (usize, usize),
        now: Tick,
        mut is_over: impl FnMut(Seen) -> bool,
    ) {
        let now = units(now);
        let mut visit = |mark: Mark| {
            let over = mark.phase().is_flow() && is_over(mark.seen_at(now));
            over.then(|| mark.freed())
        };
        let off = |mark| self.counts.take_off(mark);
        self.short.sweep((part, parts), &mut visit, &off);
        self.long.sweep((part, parts), &mut visit, &off);
        self.longest.sweep((part, parts), &mut visit, &off);
    }
}

impl Counts {
    fn add(&self, service: ServiceId) {
        if let Some(count) = self.by_service.get(service.0 as usize) {
            count.fetch_add(1, Ordering::Relaxed);
            self.all.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was there was a flow, or not.
    fn take_off(&self, mark: Mark) {
        if mark.phase().is_flow()
            && let Some(count) = self.by_service.get(mark.service().0 as usize)
        {
            count.fetch_sub(1, Ordering::Relaxed);
            self.all.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Words of each table.
fn sizes(flows: u32) -> [usize; 3] {
    let words = |flows: u32, entry_words: usize| {
        let entries = u64::from(flows.min(FLOWS_MAX)) * 100 / LOAD_PERCENT;
        let buckets = entries.div_ceil(WAYS as u64).max(1);
        usize::try_from(buckets).unwrap_or(1) * WAYS * entry_words
    };
    [words(flows, 2), words(flows, 4), words(flows / 8, 6)]
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
