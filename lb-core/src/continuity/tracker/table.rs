//! The memory of the flow table: buckets of entries of one size, searched and changed by all workers at
//! once. See [`super`] for who may push out whom, and why what is read is true.

use std::ops::Range;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use super::mark::{Mark, Phase};
use super::{Counts, Flow, Glance, Tracked};
use crate::flow_hash::two_choices;
use crate::prefetch::prefetch;

/// Entries of a bucket.
pub(super) const WAYS: usize = if cfg!(loom) { 2 } else { 4 };
/// Words of a cache line.
const LINE: usize = 8;
/// Entries of a bucket that may be half-open, at most.
pub(super) const OPENING_MAX: usize = WAYS / 2;
/// Entries of a bucket that peers may have told of, at most.
const TOLD_MAX: usize = WAYS - 1;

/// Memory of a table.
#[derive(Debug)]
pub(super) enum Words {
    Own(Box<[AtomicU64]>),
    Lent(&'static [AtomicU64]),
}

/// Entries with keys of so many words: the state, and then the key.
#[derive(Debug)]
pub(super) struct Table<const KEY: usize> {
    words: Words,
    pub(super) buckets: u32,
}

/// No place.
pub(super) const NOWHERE: usize = usize::MAX;

/// Where a flow could be put, and what is there.
pub(super) struct Candidate {
    pub(super) place: usize,
    pub(super) mark: Mark,
}

/// Does an entry have the key of a flow, or half of it while it is written?
#[inline]
fn has_key(entry: &[AtomicU64], flow: &Flow) -> bool {
    let words = entry.iter().skip(1).zip(flow.key);
    words.fold(0, |other, (word, key)| other | word.load(Ordering::Relaxed) ^ key) == 0
}

impl<const KEY: usize> Table<KEY> {
    pub(super) const ENTRY: usize = KEY + 1;
    pub(super) const BUCKET: usize = WAYS * Self::ENTRY;

    pub(super) fn new(words: Words) -> Self {
        let mut table = Self { words, buckets: 0 };
        table.buckets = u32::try_from(table.words().len() / Self::BUCKET).unwrap_or(u32::MAX);
        table
    }

    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        match &self.words {
            Words::Own(words) => words,
            Words::Lent(words) => words,
        }
    }

    /// Where the two buckets of a hash begin.
    #[inline]
    fn buckets_of(&self, hash: u64) -> [usize; 2] {
        two_choices(hash, self.buckets).map(|bucket| bucket as usize * Self::BUCKET)
    }

    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        let [first, _] = self.buckets_of(hash);
        self.ask_for(first);
    }

    /// Asks for the memory of a bucket.
    #[inline]
    fn ask_for(&self, begin: usize) {
        let bucket = self.words().get(begin..begin + Self::BUCKET).unwrap_or_default();
        bucket.iter().step_by(LINE).for_each(prefetch);
    }

    /// The entries of a bucket.
    #[inline]
    fn bucket(&self, begin: usize) -> impl Iterator<Item = (usize, &[AtomicU64])> {
        let words = self.words().get(begin..begin + Self::BUCKET).unwrap_or_default();
        (begin..).step_by(Self::ENTRY).zip(words.chunks_exact(Self::ENTRY))
    }

    /// Seven flows of ten are in their first bucket: then the line of the other is left alone. No
    /// branches: which entry it is, is chance, and would often be predicted wrong.
    #[inline(always)]
    pub(super) fn glance(&self, flow: &Flow) -> Glance {
        let [first, second] = self.buckets_of(flow.hash);
        let at = self.alike(first, flow, NOWHERE);
        let bucket = if at == NOWHERE { second } else { first };
        self.ask_for(bucket);
        Glance { at, bucket }
    }

    #[inline(always)]
    pub(super) fn find_after(&self, glance: Glance, flow: &Flow) -> Option<Tracked> {
        let at = self.alike(glance.bucket, flow, glance.at);
        let found = self.read(at, flow);
        // What was freed keeps its key, and another service may have a flow with the same.
        if found.is_none() && at != NOWHERE { self.find_among(*flow) } else { found }
    }

    /// The place in a bucket that has the key of a flow; `before`, if none has.
    #[inline(always)]
    fn alike(&self, begin: usize, flow: &Flow, before: usize) -> usize {
        let entries = self.bucket(begin);
        entries.fold(before, |at, (place, entry)| if has_key(entry, flow) { place } else { at })
    }

    /// The flow, if it is anywhere in its buckets.
    #[cold]
    fn find_among(&self, flow: Flow) -> Option<Tracked> {
        let buckets = self.buckets_of(flow.hash);
        let mut places = buckets.into_iter().flat_map(|begin| self.bucket(begin));
        places.find_map(|(place, _)| self.read(place, &flow))
    }

    /// The flow, if it is at this place.
    #[inline(always)]
    fn read(&self, place: usize, flow: &Flow) -> Option<Tracked> {
        let entry = self.words().get(place..)?.get(..Self::ENTRY)?;
        let state = entry.first()?;
        let mark = Mark(state.load(Ordering::Acquire));
        let is_same = mark.is_of(flow.service) && has_key(entry, flow);
        // What was read is believed only if nobody has written in the meantime.
        fence(Ordering::Acquire);
        let is_true = Mark(state.load(Ordering::Relaxed)).is_same_writing(mark);
        (is_same && is_true).then_some(Tracked { place, mark })
    }

    /// Changes the state of an entry; `false`, if it was not as it was found.
    pub(super) fn change(&self, found: &Tracked, to: Mark) -> bool {
        self.words().get(found.place).is_some_and(|state| {
            let (from, to) = (found.mark.0, to.0);
            state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    /// Puts a flow somewhere; where, and what was there. `None`: there is no room.
    pub(super) fn insert(&self, flow: &Flow, mark: Mark, now: u16) -> Option<Candidate> {
        // Another worker may be faster: then there is one candidate less.
        for _ in 0..2 * WAYS {
            let Candidate { place, mark: before } = self.candidate(flow.hash, mark, now)?;
            let entry = self.words().get(place..place + Self::ENTRY)?;
            let [state, key @ ..] = entry else { return None };
            let busy = before.busy();
            let taken = state
                .compare_exchange(before.0, busy.0, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            if taken {
                // Who reads any of the new words will see that the state has changed.
                fence(Ordering::Release);
                for (word, key) in key.iter().zip(flow.key) {
                    word.store(key, Ordering::Relaxed);
                }
                state.store(mark.written_after(busy).0, Ordering::Release);
                return Some(Candidate { place, mark: before });
            }
        }
        None
    }

    /// A place for a flow: a free one in the emptier bucket, else that of one that was seen once
    /// only, the oldest first.
    fn candidate(&self, hash: u64, new: Mark, now: u16) -> Option<Candidate> {
        let mut best: Option<(usize, Candidate)> = None;
        let mut worst: Option<(u16, Candidate)> = None;
        let mut keep = |mark: Mark, place: usize| {
            if worst.as_ref().is_none_or(|(age, _)| mark.age(now) > *age) {
                worst = Some((mark.age(now), Candidate { place, mark }));
            }
        };
        for begin in self.buckets_of(hash) {
            let (mut free, mut taken, mut alike) = (None, 0, 0);
            for (place, entry) in self.bucket(begin) {
                let [state, ..] = entry else { continue };
                let mark = Mark(state.load(Ordering::Relaxed));
                match mark.phase() {
                    Phase::Free => free = Some(Candidate { place, mark }),
                    phase => {
                        taken += 1;
                        alike += usize::from(phase == new.phase());
                        if new.may_push_out(mark, now) {
                            keep(mark, place);
                        }
                    }
                }
            }
            let alike_max = match new.phase() {
                Phase::Opening => OPENING_MAX,
                Phase::Told => TOLD_MAX,
                _ => WAYS,
            };
            if let Some(free) = free.filter(|_| alike < alike_max)
                && best.as_ref().is_none_or(|(least, _)| taken < *least)
            {
                best = Some((taken, free));
            }
        }
        best.map(|(_, free)| free).or(worst.map(|(_, candidate)| candidate))
    }

    /// What a process has left behind: entries that it was writing are freed, the others counted.
    pub(super) fn recover(&self, counts: &Counts) {
        for entry in self.words().chunks_exact(Self::ENTRY) {
            let [state, ..] = entry else { continue };
            let mark = Mark(state.load(Ordering::Relaxed));
            if mark.phase().is_flow() {
                counts.add(mark.service());
            } else if mark.phase() == Phase::Busy {
                state.store(mark.freed().0, Ordering::Relaxed);
            }
        }
    }

    /// The words of a part of the table.
    pub(super) fn part(&self, part: usize, parts: usize) -> Range<usize> {
        let entries = self.buckets as usize * WAYS;
        let place = |part: usize| entries * part / parts.max(1) * Self::ENTRY;
        place(part)..place(part + 1)
    }

    pub(super) fn sweep(
        &self,
        (part, parts): (usize, usize),
        visit: &mut impl FnMut(Mark) -> Option<Mark>,
        off: &impl Fn(Mark),
    ) {
        let words = self.words().get(self.part(part, parts)).unwrap_or_default();
        for entry in words.chunks_exact(Self::ENTRY) {
            let [state, ..] = entry else { continue };
            let mark = Mark(state.load(Ordering::Relaxed));
            if let Some(to) = visit(mark) {
                let (from, to) = (mark.0, to.0);
                if state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    off(mark);
                }
            }
        }
    }
}
