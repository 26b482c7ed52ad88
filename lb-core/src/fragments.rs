//! Datagrams that come in pieces: all pieces follow the first, which alone has the ports.
//!
//! A worker remembers each datagram of which it has seen a fragment, for [`LIFETIME_MS`], in a table
//! of fixed size; what a new one finds no room among is the oldest of its bucket. Later fragments
//! that come before the first wait in a store of fixed size, each for as long, whatever becomes of
//! what the table remembers. All fragments of a datagram are handled by one worker, whichever queue
//! they came in by, so nothing here is shared.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Frames};
use crate::rate::Tick;
use crate::tables::next_hop::PortId;

/// Datagrams that one worker remembers.
pub const DATAGRAMS_MAX: usize = 4096;
/// Fragments that wait at one worker for their first one.
pub const WAITING_MAX: usize = 1024;
/// Separate stretches of one datagram that have come. Sixteen is enough for 64 kB in pieces of 1,500
/// bytes in any order, but for the most unlucky ones.
pub const STRETCHES_MAX: usize = 16;
/// How long a datagram is remembered, and a fragment waits, in milliseconds.
pub const LIFETIME_MS: u64 = 2000;
/// Datagrams in one bucket.
const WAYS: usize = 4;
/// Places of the store that are looked at for expiry in one turn.
const EXPIRE_STEP: usize = 16;

/// Names a datagram (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Identification.
    pub id: u32,
    /// As the fragment's header tells it.
    pub protocol: u8,
    /// Did it come as IPv6?
    pub is_ipv6: bool,
}

/// What the first fragment told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// Source port, destination port.
    pub ports: [u8; 4],
    /// The protocol behind all headers.
    pub protocol: u8,
}

/// A datagram of which there was a fragment.
#[derive(Debug)]
struct Datagram {
    key: Key,
    since: Tick,
    first: Option<First>,
    /// Why nothing more of it passes, if so.
    bad: Option<DropReason>,
    /// The bytes that came, as sorted, disjoint stretches.
    came: ArrayVec<(u32, u32), STRETCHES_MAX>,
}

/// Datagrams with hashes that are alike.
#[derive(Debug, Default)]
struct Bucket {
    ways: [Option<Datagram>; WAYS],
    /// How many fragments wait for one of them, or for one that was forgotten: mostly none, and then
    /// nobody searches the store.
    waiting: usize,
}

/// Why a stretch is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Others had all of its bytes.
    Again,
    /// Others had some of its bytes.
    Overlap,
    /// It would be one stretch too many.
    Full,
}

/// A fragment that waits.
#[derive(Debug)]
struct Waiting<F> {
    key: Key,
    since: Tick,
    port: PortId,
    frame: F,
}

impl<F> Waiting<F> {
    fn is_late(&self, now: Tick) -> bool {
        now.0 >= self.since.0 + LIFETIME_MS
    }
}

/// The memory of one worker for datagrams in pieces.
#[derive(Debug)]
pub struct Fragments<F> {
    buckets: Box<[Bucket]>,
    /// In the order of arrival, with gaps.
    waiting: Vec<Option<Waiting<F>>>,
    /// For each place in `waiting` the bucket of its datagram, so that a search stays in few cache
    /// lines.
    tags: Vec<usize>,
    waiting_count: usize,
    /// By place in the burst: the datagrams of those that are about to wait, and the hashes of the keys.
    names: Box<[(Key, u64)]>,
    /// Where the search for what has waited too long goes on.
    cursor: usize,
    /// Those whose first fragment came; in the order of arrival.
    ready: VecDeque<(PortId, F)>,
}

impl<F> Default for Fragments<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a datagram is remembered. Good until the next call of [`Fragments::find`].
#[derive(Clone, Copy, Debug)]
pub struct Place(usize, usize);

impl<F> Fragments<F> {
    /// Nothing remembered; all memory is taken now.
    #[must_use]
    pub fn new() -> Self {
        let buckets = (0..DATAGRAMS_MAX / WAYS).map(|_| Bucket::default()).collect();
        Self {
            buckets,
            waiting: Vec::with_capacity(WAITING_MAX),
            tags: Vec::with_capacity(WAITING_MAX),
            waiting_count: 0,
            names: vec![(Key::default(), 0); BURST_MAX].into(),
            cursor: 0,
            ready: VecDeque::with_capacity(WAITING_MAX),
        }
    }

    /// Remembers a datagram, if it is not known yet. `hash` is of the key, and keyed itself.
    pub fn find(&mut self, key: &Key, hash: u64, now: Tick) -> Place {
        let bucket = usize::try_from(hash).unwrap_or(0) % self.buckets.len();
        let ways = &mut self.buckets[bucket].ways;
        let known = |way: &Option<Datagram>| way.as_ref().is_some_and(|it| it.key == *key);
        let is_alive = |it: &Datagram| now.0 < it.since.0 + LIFETIME_MS;
        if let Some(way) = ways.iter().position(known) {
            if ways[way].as_ref().is_some_and(is_alive) {
                return Place(bucket, way);
            }
            ways[way] = None;
        }
        let age = |way: &Option<Datagram>| way.as_ref().map_or(0, |it| it.since.0 + 1);
        let oldest = (0..WAYS).min_by_key(|&way| age(&ways[way])).unwrap_or(0);
        let came = ArrayVec::new();
        ways[oldest] = Some(Datagram { key: *key, since: now, first: None, bad: None, came });
        Place(bucket, oldest)
    }

    fn datagram(&mut self, Place(bucket, way): Place) -> Option<&mut Datagram> {
        self.buckets[bucket].ways[way].as_mut()
    }

    /// What the first fragment told, if it came.
    pub fn first(&mut self, place: Place) -> Option<First> {
        self.datagram(place)?.first
    }

    /// Lets nothing more of the datagram pass. What waits for it waits no more.
    pub fn condemn(&mut self, place: Place, why: DropReason, now: Tick) {
        if let Some(datagram) = self.datagram(place) {
            datagram.bad = Some(why);
            self.release(place, now);
        }
    }

    /// Why nothing more of the datagram is to pass, if so.
    pub fn condemned(&mut self, place: Place) -> Option<DropReason> {
        self.datagram(place)?.bad
    }

    /// Notes that the bytes from `start` to `end` of the datagram came.
    ///
    /// # Errors
    /// [`Refused`]; if some of them were there already, the datagram is to be condemned (RFC 5722 §4).
    pub fn note(&mut self, place: Place, start: u32, end: u32) -> Result<(), Refused> {
        let Some(datagram) = self.datagram(place) else { return Err(Refused::Full) };
        let came = &mut datagram.came;
        let at = came.partition_point(|&(_, before)| before < start);
        // What is at `at` ends at or behind the start: it touches, overlaps, or is behind.
        match came.get(at).copied() {
            Some((s, e)) if s < end && start < e => {
                let is_whole = s <= start && end <= e;
                return Err(if is_whole { Refused::Again } else { Refused::Overlap });
            }
            Some((s, e)) if e == start => {
                // Behind it, and perhaps right before the next.
                match came.get(at + 1).copied() {
                    Some((next, _)) if next < end => return Err(Refused::Overlap),
                    Some((next, next_end)) if next == end => {
                        came[at] = (s, next_end);
                        came.remove(at + 1);
                    }
                    _ => came[at] = (s, end),
                }
            }
            Some((s, e)) if s == end => came[at] = (start, e),
            _ if came.is_full() => return Err(Refused::Full),
            _ => came.insert(at, (start, end)),
        }
        Ok(())
    }

    /// Notes what the first fragment told. Those that waited for it are ready now.
    pub fn set_first(&mut self, place: Place, first: First, now: Tick) {
        if let Some(datagram) = self.datagram(place) {
            datagram.first = Some(first);
            self.release(place, now);
        }
    }

    /// What waits for this datagram waits no more; but who is late already is given up.
    fn release(&mut self, place: Place, now: Tick) {
        let Place(bucket, _) = place;
        let Some(key) = self.datagram(place).map(|it| it.key) else { return };
        for at in 0..self.waiting.len() {
            if self.buckets[bucket].waiting == 0 {
                break;
            }
            if self.tags[at] == bucket
                && let Some(waiting) = self.take(at, |it| it.key == key && !it.is_late(now))
            {
                self.ready.push_back((waiting.port, waiting.frame));
            }
        }
        self.forget_gaps();
    }

    /// Takes what waits at a place of the store, if it is as `wanted`.
    fn take(
        &mut self,
        at: usize,
        wanted: impl FnOnce(&mut Waiting<F>) -> bool,
    ) -> Option<Waiting<F>> {
        let waiting = self.waiting[at].take_if(wanted)?;
        self.buckets[self.tags[at]].waiting -= 1;
        self.waiting_count -= 1;
        Some(waiting)
    }

    /// Notes whose fragment the frame is that will be given to [`Fragments::hold`]: `number` is its place
    /// in the burst.
    pub fn name(&mut self, number: usize, key: Key, hash: u64) {
        if let Some(name) = self.names.get_mut(number) {
            *name = (key, hash);
        }
    }

    /// Keeps a fragment that has its name until the first one of its datagram comes, or its time is
    /// over.
    ///
    /// # Errors
    /// The frame, if the store is full.
    pub fn hold(&mut self, number: usize, port: PortId, frame: F, now: Tick) -> Result<(), F> {
        let Some(&(key, hash)) = self.names.get(number) else { return Err(frame) };
        if self.waiting() >= WAITING_MAX {
            return Err(frame);
        }
        let place = self.find(&key, hash, now);
        let Some(datagram) = self.datagram(place) else { return Err(frame) };
        if datagram.first.is_some() || datagram.bad.is_some() {
            self.ready.push_back((port, frame)); // it came in the same burst, behind this one
            return Ok(());
        }
        if self.waiting.len() == WAITING_MAX {
            let mut is_used = self.waiting.iter().map(Option::is_some);
            self.tags.retain(|_| is_used.next().unwrap_or(false));
            self.waiting.retain(Option::is_some);
        }
        self.waiting.push(Some(Waiting { key, since: now, port, frame }));
        let Place(bucket, _) = place;
        self.tags.push(bucket);
        self.buckets[bucket].waiting += 1;
        self.waiting_count += 1;
        Ok(())
    }

    /// Appends fragments that are ready, as many as fit: of one port, which is returned, in the order
    /// of arrival.
    pub fn take_ready(&mut self, frames: &mut Frames<F>) -> Option<PortId> {
        let port = self.ready.front()?.0;
        while !frames.is_full()
            && let Some((_, frame)) = self.ready.pop_front_if(|(of, _)| *of == port)
        {
            frames.push(frame);
        }
        Some(port)
    }

    /// Gives up some fragments that have waited for too long, if there are any.
    pub fn expire(&mut self, now: Tick, mut give_up: impl FnMut(F)) {
        for _ in 0..EXPIRE_STEP.min(self.waiting.len()) {
            self.cursor = (self.cursor + 1) % self.waiting.len();
            if let Some(waiting) = self.take(self.cursor, |it| it.is_late(now)) {
                give_up(waiting.frame);
            }
        }
        self.forget_gaps();
    }

    /// How many are held.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting_count + self.ready.len()
    }

    fn forget_gaps(&mut self) {
        if self.waiting_count == 0 {
            self.waiting.clear();
            self.tags.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(id: u32) -> Key {
        Key { src: [1; 16], dst: [2; 16], id, protocol: 17, is_ipv6: false }
    }

    fn hash(id: u32) -> u64 {
        u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn hold(
        fragments: &mut Fragments<u32>,
        (key, hash): (Key, u64),
        port: PortId,
        frame: u32,
        now: Tick,
    ) -> Result<(), u32> {
        fragments.name(3, key, hash);
        fragments.hold(3, port, frame, now)
    }

    /// Takes all that is ready.
    fn ready(fragments: &mut Fragments<u32>) -> Vec<u32> {
        let mut all = Vec::new();
        let mut frames = Frames::new();
        while fragments.take_ready(&mut frames).is_some() {
            all.extend(frames.drain(..));
        }
        all
    }

    const FIRST: First = First { ports: [0, 1, 0, 2], protocol: 17 };

    proptest! {
        /// Whatever is forgotten, a first one releases all that have waited for it and not for too
        /// long; those are given up; and nobody is lost.
        #[test]
        fn who_waits_follows_or_is_given_up(
            steps in proptest::collection::vec((0_u8..4, 0_u32..12, 0_u64..300), 1..200),
        ) {
            let mut fragments = Fragments::new();
            let mut now = Tick(0);
            let mut waiting = Vec::new();
            for ((step, id, elapsed_ms), frame) in steps.into_iter().zip(0..) {
                now.0 += elapsed_ms;
                let is_late = |since: u64| now.0 >= since + LIFETIME_MS;
                let bucket = u64::from(id % 2); // six datagrams for four ways
                match step {
                    0 | 1 => {
                        prop_assert!(hold(&mut fragments, (key(id), bucket), PortId(0), frame, now).is_ok());
                        if ready(&mut fragments) != [frame] {
                            waiting.push((frame, id, now.0));
                        }
                    }
                    2 => {
                        let place = fragments.find(&key(id), bucket, now);
                        fragments.set_first(place, FIRST, now);
                        let follows = |&mut (_, of, since): &mut _| of == id && !is_late(since);
                        let follow: Vec<_> = waiting.extract_if(.., follows).map(|it| it.0).collect();
                        prop_assert_eq!(ready(&mut fragments), follow);
                    }
                    _ => {
                        let mut given_up = Vec::new();
                        for _ in 0..=200 / EXPIRE_STEP {
                            fragments.expire(now, |frame| given_up.push(frame));
                        }
                        given_up.sort_unstable();
                        let late = |&mut (_, _, since): &mut _| is_late(since);
                        let late: Vec<_> = waiting.extract_if(.., late).map(|it| it.0).collect();
                        prop_assert_eq!(given_up, late);
                    }
                }
                prop_assert_eq!(fragments.waiting(), waiting.len());
                let counted: usize = fragments.buckets.iter().map(|bucket| bucket.waiting).sum();
                prop_assert_eq!(counted, waiting.len());
            }
        }

        /// A set of bytes says the same.
        #[test]
        fn stretches_are_a_set_of_bytes(parts in proptest::collection::vec((0_u32..60, 1_u32..12), 1..40)) {
            let mut fragments = Fragments::<()>::new();
            let place = fragments.find(&key(1), hash(1), Tick(0));
            let mut passed = std::collections::BTreeSet::new();
            for (start, len) in parts {
                let new: std::collections::BTreeSet<u32> = (start..start + len).collect();
                let common = passed.intersection(&new).count();
                let result = fragments.note(place, start, start + len);
                match result {
                    Ok(()) => {
                        prop_assert_eq!(common, 0);
                        passed.extend(&new);
                    }
                    Err(Refused::Again) => prop_assert_eq!(common, new.len()),
                    Err(Refused::Overlap) => prop_assert!(common > 0 && common < new.len()),
                    Err(Refused::Full) => prop_assert_eq!(common, 0),
                }
            }
        }
    }

    #[test]
    fn what_waits_is_ready_when_the_first_comes_and_keeps_its_order() {
        let mut fragments = Fragments::new();
        for (n, id) in [(0, 7), (1, 8), (2, 7), (3, 7)] {
            let port = PortId(u8::from(n == 3));
            assert!(hold(&mut fragments, (key(id), hash(id)), port, n, Tick(0)).is_ok());
        }
        assert_eq!(fragments.waiting(), 4);
        let place = fragments.find(&key(7), hash(7), Tick(1));
        fragments.set_first(place, FIRST, Tick(1));
        let mut frames = Frames::new();
        assert_eq!(fragments.take_ready(&mut frames), Some(PortId(0)));
        assert_eq!(frames[..], [0, 2]);
        frames.clear();
        assert_eq!(fragments.take_ready(&mut frames), Some(PortId(1)));
        assert_eq!(frames[..], [3]);
        assert_eq!(fragments.take_ready(&mut frames), None);
        assert_eq!(fragments.waiting(), 1, "another datagram's");
        // One more comes late: it need not wait.
        frames.clear();
        assert!(hold(&mut fragments, (key(7), hash(7)), PortId(0), 9, Tick(2)).is_ok());
        assert_eq!(fragments.take_ready(&mut frames), Some(PortId(0)));
    }

    #[test]
    fn the_store_is_bounded_and_its_gaps_are_used() {
        let mut fragments = Fragments::new();
        let n = u32::try_from(WAITING_MAX).unwrap();
        for id in 0..n {
            assert!(hold(&mut fragments, (key(id), hash(id)), PortId(0), id, Tick(0)).is_ok());
        }
        assert_eq!(hold(&mut fragments, (key(n), hash(n)), PortId(0), n, Tick(0)), Err(n));
        let capacities = |it: &Fragments<u32>| (it.waiting.capacity(), it.tags.capacity());
        let before = capacities(&fragments);
        for id in 0..n / 2 {
            let place = fragments.find(&key(id), hash(id), Tick(1));
            fragments.set_first(place, FIRST, Tick(1));
            let mut frames = Frames::new();
            while fragments.take_ready(&mut frames).is_some() {
                frames.clear();
            }
        }
        let left = fragments.waiting();
        for id in n..2 * n - u32::try_from(left).unwrap() {
            assert!(hold(&mut fragments, (key(id), hash(id)), PortId(0), id, Tick(1)).is_ok());
        }
        assert_eq!(fragments.waiting(), WAITING_MAX);
        assert_eq!(capacities(&fragments), before, "no memory is taken later");
    }

    #[test]
    fn who_waits_too_long_is_given_up() {
        let mut fragments = Fragments::new();
        for id in 0..40 {
            let since = Tick(u64::from(id) * 100);
            assert!(hold(&mut fragments, (key(id), hash(id)), PortId(0), id, since).is_ok());
        }
        let mut given_up = Vec::new();
        for _ in 0..10 {
            fragments.expire(Tick(LIFETIME_MS + 950), |id| given_up.push(id));
        }
        given_up.sort_unstable();
        assert_eq!(given_up, (0..10).collect::<Vec<_>>());
        assert_eq!(fragments.waiting(), 30);
    }

    #[test]
    fn a_datagram_is_remembered_for_its_time() {
        let mut fragments = Fragments::<()>::new();
        let place = fragments.find(&key(1), hash(1), Tick(0));
        fragments.set_first(place, FIRST, Tick(0));
        fragments.condemn(place, DropReason::FragmentTiny, Tick(0));
        let place = fragments.find(&key(1), hash(1), Tick(LIFETIME_MS - 1));
        let bad = fragments.condemned(place);
        assert_eq!((fragments.first(place), bad), (Some(FIRST), Some(DropReason::FragmentTiny)));
        let place = fragments.find(&key(1), hash(1), Tick(LIFETIME_MS));
        assert_eq!((fragments.first(place), fragments.condemned(place)), (None, None));
    }

    #[test]
    fn a_full_bucket_forgets_its_oldest() {
        let mut fragments = Fragments::<()>::new();
        for id in 0..5 {
            let place = fragments.find(&key(id), 0, Tick(u64::from(id)));
            fragments.set_first(place, FIRST, Tick(0));
        }
        for (id, is_known) in [(4, true), (3, true), (2, true), (1, true), (0, false)] {
            let place = fragments.find(&key(id), 0, Tick(5));
            assert_eq!(fragments.first(place).is_some(), is_known, "{id}");
        }
    }

    #[test]
    fn who_waits_outlives_what_is_remembered_of_its_datagram() {
        let last = LIFETIME_MS - 1;
        for (name, waits_since, others, first_at) in [
            ("others of its bucket came", 0, 4, 1),
            ("it came when the datagram was old", last, 0, LIFETIME_MS + 1),
        ] {
            let mut fragments = Fragments::new();
            fragments.find(&key(1), 0, Tick(0));
            assert!(hold(&mut fragments, (key(1), 0), PortId(0), 7, Tick(waits_since)).is_ok());
            for id in 2..2 + others {
                fragments.find(&key(id), 0, Tick(first_at));
            }
            let place = fragments.find(&key(1), 0, Tick(first_at));
            fragments.set_first(place, FIRST, Tick(first_at));
            assert_eq!(ready(&mut fragments), [7], "{name}");
        }
    }

    #[test]
    fn the_first_one_comes_too_late_for_who_has_waited_too_long() {
        let mut fragments = Fragments::new();
        for since in [0, 1] {
            let frame = u32::try_from(since).unwrap();
            assert!(hold(&mut fragments, (key(1), 0), PortId(0), frame, Tick(since)).is_ok());
        }
        let now = Tick(LIFETIME_MS);
        let place = fragments.find(&key(1), 0, now);
        fragments.set_first(place, FIRST, now);
        assert_eq!(ready(&mut fragments), [1]);
        let mut given_up = Vec::new();
        fragments.expire(now, |frame| given_up.push(frame));
        assert_eq!((given_up, fragments.waiting()), (vec![0], 0));
    }
}
