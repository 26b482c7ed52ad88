//! What happened, in numbers.
//!
//! A worker writes its own counters and anybody may read them: relaxed loads and stores, which on
//! the machine are plain ones. Only the owner adds, so no count is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::drop_reason::DropReason;
use crate::tables::ServiceId;

/// A number that only grows. One thread adds; all may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owner may.
    #[inline]
    pub fn add(&self, n: u64) {
        // Not a read-modify-write instruction: there is one writer.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The number now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Frames and the bytes of their IP packets.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames.
    pub frames: Counter,
    /// Bytes, from the IP header to the end of the packet, as they came in.
    pub bytes: Counter,
}

/// The counters of one worker. `received + injected == sent + punted + drops`, after every turn.
#[derive(Debug)]
pub struct Counters {
    /// Frames from ports.
    pub received: Counter,
    /// Frames from the kernel, to be sent.
    pub injected: Counter,
    /// Frames sent.
    pub sent: Counter,
    /// Frames given to the kernel.
    pub punted: Counter,
    /// Frames dropped, by [`DropReason`].
    pub drops: [Counter; DropReason::COUNT],
    /// Turns of the loop.
    pub turns: Counter,
    /// Traffic that services forwarded, by [`ServiceId`].
    services: Box<[Traffic]>,
}

impl Counters {
    /// All zero, for ids below `services`.
    #[must_use]
    pub fn new(services: usize) -> Self {
        Self {
            received: Counter::default(),
            injected: Counter::default(),
            sent: Counter::default(),
            punted: Counter::default(),
            drops: Default::default(),
            turns: Counter::default(),
            services: (0..services).map(|_| Traffic::default()).collect(),
        }
    }

    /// Counts a dropped frame.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Traffic of one service.
    #[inline]
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Traffic> {
        self.services.get(id.0 as usize)
    }

    /// Frames that came in, and frames that are accounted for; equal between turns.
    #[must_use]
    pub fn balance(&self) -> (u64, u64) {
        let drops: u64 = self.drops.iter().map(Counter::get).sum();
        (self.received.get() + self.injected.get(), self.sent.get() + self.punted.get() + drops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_and_what_is_accounted_for() {
        let counters = Counters::new(2);
        assert_eq!(counters.balance(), (0, 0));
        counters.received.add(10);
        counters.injected.add(2);
        counters.sent.add(6);
        counters.punted.add(3);
        assert_eq!(counters.balance(), (12, 9));
        counters.drop(DropReason::Truncated);
        counters.drop(DropReason::TxFull);
        counters.drop(DropReason::TxFull);
        assert_eq!(counters.balance(), (12, 12));
        assert_eq!(counters.drops[DropReason::TxFull as usize].get(), 2);
    }

    #[test]
    fn services_have_counters_up_to_a_limit() {
        let counters = Counters::new(2);
        counters.service(ServiceId(1)).unwrap().bytes.add(1500);
        assert_eq!(counters.service(ServiceId(1)).unwrap().bytes.get(), 1500);
        assert_eq!(counters.service(ServiceId(0)).unwrap().bytes.get(), 0);
        assert!(counters.service(ServiceId(2)).is_none());
    }
}
