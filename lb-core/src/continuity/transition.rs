//! Which slots have moved, from whom, and until when that matters.

use super::NOBODY;
use crate::flow_hash::reduce;
use crate::rate::Tick;
use crate::tables::SlotTable;

/// The slots of a service that are in transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    /// By slot: the place of the backend that it was on; [`NOBODY`]: it has not moved.
    from: Box<[u16]>,
    /// By slot: when its transition ends. Not for workers: control takes away what is over.
    until: Box<[Tick]>,
    /// `from` has the slots of a table of another size than the one in force: then every slot of
    /// that one is in transition.
    resized: bool,
    /// When the next of them ends.
    next_end: Tick,
}

/// What a slot's transition says about its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The slot is where it was.
    No,
    /// The slot was on this backend.
    From(u16),
    /// It was on none that may serve, but the flows that it gets are to be remembered.
    FromNobody,
}

impl Transitions {
    /// The transitions of a service whose slots move from `old` to `new`, on top of those that were
    /// in progress. A slot that moves again stays in its transition; one that returns ends it; one
    /// whose backend `may_serve` no more is with the new backend at once.
    #[must_use]
    pub fn next(
        in_progress: Option<&Self>,
        old: &SlotTable,
        new: &SlotTable,
        may_serve: impl Fn(u16) -> bool,
        (now, window): (Tick, Tick),
    ) -> Option<Self> {
        let before = Before { in_progress, old };
        let len = in_progress.map_or(old.len() as usize, |it| it.from.len());
        let is_resized = len != new.len() as usize;
        if len == 0 || in_progress.is_none() && std::ptr::eq(old, new) {
            return None;
        }
        let was_resized = in_progress.is_some_and(|it| it.resized);
        let end = Tick(now.0 + window.0);
        let (from, until): (Vec<u16>, Vec<Tick>) = (0..len)
            .map(|slot| {
                let current = new.slots().get(slot).copied().filter(|_| !is_resized);
                let candidates = [
                    before.of_transition(slot, now),
                    // What flows were opened onto since a change of size is tracked.
                    before.of_slot(slot, end).filter(|_| !was_resized),
                ];
                let from = candidates.into_iter().flatten().find(|(from, _)| may_serve(*from));
                from.filter(|(from, _)| Some(*from) != current).unwrap_or((NOBODY, Tick(0)))
            })
            .unzip();
        let moving = from.iter().zip(&until).filter(|(from, _)| **from != NOBODY);
        let next_end = moving.map(|(_, until)| *until).min()?;
        Some(Self { from: from.into(), until: until.into(), resized: is_resized, next_end })
    }

    /// As it was remembered; `None`, if that cannot be. `table_len` is the size of the table in force.
    #[must_use]
    pub fn restore(from: Vec<u16>, until: Vec<Tick>, table_len: u32) -> Option<Self> {
        let moving = from.iter().zip(&until).filter(|(from, _)| **from != NOBODY);
        let next_end = moving.map(|(_, until)| *until).min()?;
        let resized = from.len() != table_len as usize;
        (from.len() == until.len()).then(|| Self {
            from: from.into(),
            until: until.into(),
            resized,
            next_end,
        })
    }

    /// By slot: whom it was on ([`NOBODY`]: it has not moved), and when that is over.
    #[must_use]
    pub fn parts(&self) -> (&[u16], &[Tick]) {
        (&self.from, &self.until)
    }

    /// What there is about the slot of a flow, by its hash.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "at most SLOTS_MAX")]
    pub fn of(&self, hash: u64) -> Moved {
        let slot = reduce(hash, self.from.len() as u32);
        match self.from.get(slot as usize) {
            Some(&from) if from != NOBODY => Moved::From(from),
            _ if self.resized => Moved::FromNobody,
            _ => Moved::No,
        }
    }

    /// When the next transition ends.
    #[must_use]
    pub fn next_end(&self) -> Tick {
        self.next_end
    }

    /// How many slots are in transition.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots().count()
    }

    /// Are these the slots of a table of another size?
    #[must_use]
    pub fn is_resized(&self) -> bool {
        self.resized
    }

    /// The slots that are in transition.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.from).filter(|(_, from)| **from != NOBODY).map(|(slot, _)| slot)
    }

    /// The places that slots were on.
    pub fn sources(&self) -> impl Iterator<Item = u16> {
        self.from.iter().copied().filter(|from| *from != NOBODY)
    }
}

/// How it was.
struct Before<'a> {
    in_progress: Option<&'a Transitions>,
    old: &'a SlotTable,
}

impl Before<'_> {
    /// Whom a slot in transition was on.
    fn of_transition(&self, slot: usize, now: Tick) -> Option<(u16, Tick)> {
        let it = self.in_progress?;
        let (from, until) = (*it.from.get(slot)?, *it.until.get(slot)?);
        (from != NOBODY && until > now).then_some((from, until))
    }

    /// Whom a slot is on that begins one.
    fn of_slot(&self, slot: usize, end: Tick) -> Option<(u16, Tick)> {
        Some((*self.old.slots().get(slot)?, end))
    }
}
