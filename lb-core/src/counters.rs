//! What happened, in numbers.
//!
//! A worker writes its own counters and anybody may read them: relaxed loads and stores, which on
//! the machine are plain ones. Only the owner adds, so no count is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::drop_reason::DropReason;
use crate::stopwatch::Step;
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

/// The counters of one worker. After every turn `received + injected + created + taken_over +
/// released == sent + punted + drops + handed_over + held`.
#[derive(Debug)]
pub struct Counters {
    /// Frames from ports.
    pub received: Counter,
    /// Frames from the kernel, to be sent.
    pub injected: Counter,
    /// Frames that the worker made: the later pieces of packets that had to be split.
    pub created: Counter,
    /// Frames that came from other workers, and that went to them.
    pub taken_over: Counter,
    /// See `taken_over`.
    pub handed_over: Counter,
    /// Fragments that had to wait for their first one, and that have waited.
    pub held: Counter,
    /// See `held`.
    pub released: Counter,
    /// Of the frames sent: those that became an answer to their sender.
    pub answered: Counter,
    /// Of the frames answered: SYNs that were challenged.
    pub challenged: Counter,
    /// Clients that have answered a challenge, for a service and for a while.
    pub admitted: Counter,
    /// Frames sent.
    pub sent: Counter,
    /// Frames given to the kernel.
    pub punted: Counter,
    /// Frames dropped, by [`DropReason`].
    pub drops: [Counter; DropReason::COUNT],
    /// Turns of the loop.
    pub turns: Counter,
    /// Flows that were tracked because their slot had moved.
    pub tracked: Counter,
    /// Flows that should have been, but there was no room.
    pub untracked: Counter,
    /// What each [`Step`] took of some bursts, in cycles; and how many frames those bursts had.
    pub step_cycles: [Counter; Step::COUNT],
    /// See `step_cycles`.
    pub timed_frames: Counter,
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
            created: Counter::default(),
            taken_over: Counter::default(),
            handed_over: Counter::default(),
            held: Counter::default(),
            released: Counter::default(),
            answered: Counter::default(),
            challenged: Counter::default(),
            admitted: Counter::default(),
            sent: Counter::default(),
            punted: Counter::default(),
            drops: Default::default(),
            turns: Counter::default(),
            tracked: Counter::default(),
            untracked: Counter::default(),
            step_cycles: Default::default(),
            timed_frames: Counter::default(),
            services: (0..services).map(|_| Traffic::default()).collect(),
        }
    }

    /// Counts a dropped frame.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Counts a frame forwarded for a service, with an IP packet of `packet_len` bytes as it came.
    #[inline]
    pub fn forwarded(&self, id: ServiceId, packet_len: u64) {
        if let Some(traffic) = self.service(id) {
            traffic.frames.add(1);
            traffic.bytes.add(packet_len);
        }
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
        let sum = |counters: &[&Counter]| counters.iter().map(|counter| counter.get()).sum::<u64>();
        let came =
            [&self.received, &self.injected, &self.created, &self.taken_over, &self.released];
        let left = [&self.sent, &self.punted, &self.handed_over, &self.held];
        let drops: u64 = self.drops.iter().map(Counter::get).sum();
        (sum(&came), sum(&left) + drops)
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
        for counter in [&counters.created, &counters.taken_over, &counters.released] {
            counter.add(1);
        }
        counters.handed_over.add(2);
        counters.held.add(2);
        assert_eq!(counters.balance(), (15, 16));
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
