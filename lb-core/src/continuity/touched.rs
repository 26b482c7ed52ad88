//! Which slots have flows that may be tracked: a bit for each, so that the others need not be looked up.
//!
//! Control sets the bits of all slots in transition before workers see them, and whoever takes a peer's word the bit
//! of that flow's slot. Bits are never taken back one by one; once no flow of the service is tracked, control begins
//! anew. It outlives versions of the tables, because peers are heard while one is made.

use std::sync::atomic::{AtomicU64, Ordering};

/// The slots of a service that changes have touched, a bit each.
#[derive(Debug)]
pub struct Touched {
    bits: Box<[AtomicU64]>,
    slots: u32,
}

impl Touched {
    /// Of a service with so many slots: none.
    #[must_use]
    pub fn none(slots: u32) -> Self {
        Self::of(slots, 0)
    }

    /// All of them: what may be tracked is not known.
    #[must_use]
    pub fn all(slots: u32) -> Self {
        Self::of(slots, u64::MAX)
    }

    fn of(slots: u32, word: u64) -> Self {
        let words = slots.div_ceil(u64::BITS);
        Self { bits: (0..words).map(|_| AtomicU64::new(word)).collect(), slots }
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// May a flow of the slot be tracked, or become so?
    #[inline]
    #[must_use]
    pub fn has(&self, slot: u32) -> bool {
        let word = self.bits.get((slot / u64::BITS) as usize);
        word.is_none_or(|word| word.load(Ordering::Relaxed) >> (slot % u64::BITS) & 1 == 1)
    }

    /// A flow of the slot is about to be tracked. Written only if it is news: workers read it all the time.
    pub fn add(&self, slot: u32) {
        if let Some(word) = self.bits.get((slot / u64::BITS) as usize)
            && !self.has(slot)
        {
            word.fetch_or(1 << (slot % u64::BITS), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_its_bit() {
        let touched = Touched::none(251);
        for slot in [0, 63, 64, 250] {
            assert!(!touched.has(slot));
            touched.add(slot);
        }
        let found: Vec<u32> = (0..251).filter(|slot| touched.has(*slot)).collect();
        assert_eq!(found, [0, 63, 64, 250]);
        let all = Touched::all(251);
        assert!((0..251).all(|slot| all.has(slot)));
        // A service without backends has no slot, and its packets are in slot 0.
        assert!(Touched::none(0).has(0));
    }
}
