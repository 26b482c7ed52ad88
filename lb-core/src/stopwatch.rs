//! Where a worker's cycles go: of one burst in [`EVERY`], how many each step takes.
//!
//! The clock is given, as all time is; without one nothing is timed.

use std::fmt;
use std::sync::Arc;

use crate::counters::Counters;

/// One burst of so many is timed: ten readings of a clock of 20 cycles are then 3 cycles a burst.
pub const EVERY: u32 = 64;

/// What is timed, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Taking frames from a port's queue, and asking for their first bytes.
    Receive,
    /// The stage of this name.
    Parse,
    /// The stage of this name.
    Fragment,
    /// The stage of this name.
    Classify,
    /// The stage of this name.
    Admit,
    /// The stage of this name.
    Select,
    /// The stage of this name.
    Connect,
    /// The stage of this name.
    Forward,
    /// Giving frames to where they go.
    Send,
}

impl Step {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Receive,
        Self::Parse,
        Self::Fragment,
        Self::Classify,
        Self::Admit,
        Self::Select,
        Self::Connect,
        Self::Forward,
        Self::Send,
    ];

    /// Its name, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Parse => "parse",
            Self::Fragment => "fragment",
            Self::Classify => "classify",
            Self::Admit => "admit",
            Self::Select => "select",
            Self::Connect => "connect",
            Self::Forward => "forward",
            Self::Send => "send",
        }
    }
}

/// Counts cycles; any unit that does not go backwards is as good.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Times the steps of some bursts.
#[derive(Default)]
pub struct Stopwatch {
    clock: Option<Clock>,
    /// Is this burst one of those?
    is_running: bool,
    /// Bursts until the next one that is.
    left: u32,
    last: u64,
    cycles: [u64; Step::COUNT],
}

impl fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopwatch")
            .field("has_clock", &self.clock.is_some())
            .finish_non_exhaustive()
    }
}

impl Stopwatch {
    /// One that goes by `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock: Some(clock), ..Self::default() }
    }

    /// A burst begins, if any frames have come.
    #[inline]
    pub fn start(&mut self) {
        if self.left == 0
            && let Some(clock) = &self.clock
        {
            (self.is_running, self.last) = (true, clock());
        }
    }

    /// Is this burst one in [`EVERY`] that stands for the others, and is not timed?
    #[inline]
    #[must_use]
    pub fn is_sample(&self) -> bool {
        self.left == EVERY / 2
    }

    /// A step ends, and the next one begins.
    #[inline]
    pub fn lap(&mut self, step: Step) {
        if self.is_running {
            self.note(step);
        }
    }

    #[inline(never)]
    fn note(&mut self, step: Step) {
        if let Some(clock) = &self.clock {
            let now = clock();
            // Of two CPUs, which a thread may be moved between, one may be a little behind.
            self.cycles[step as usize] += now.saturating_sub(self.last);
            self.last = now;
        }
    }

    /// The burst is over, which had so many frames; without any, it was none.
    #[inline]
    pub fn stop(&mut self, frames: usize, counters: &Counters) {
        if frames == 0 {
            self.is_running = false;
            return;
        }
        self.left = self.left.checked_sub(1).unwrap_or(EVERY - 1);
        if self.is_running {
            self.is_running = false;
            for (counter, cycles) in counters.step_cycles.iter().zip(&mut self.cycles) {
                counter.add(std::mem::take(cycles));
            }
            counters.timed_frames.add(frames as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn one_burst_of_many_is_timed() {
        let time = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&time);
        let mut watch = Stopwatch::new(Arc::new(move || clock.load(Ordering::Relaxed)));
        let counters = Counters::new(0);
        let mut burst = |frames| {
            watch.start();
            if frames > 0 {
                for (step, cycles) in [(Step::Receive, 7), (Step::Parse, 11), (Step::Send, 13)] {
                    time.fetch_add(cycles, Ordering::Relaxed);
                    watch.lap(step);
                }
            }
            watch.stop(frames, &counters);
        };
        for _ in 0..5 {
            burst(0); // as if it had not been
        }
        for _ in 0..2 * EVERY {
            burst(3);
            burst(0);
        }
        let cycles = |step: Step| counters.step_cycles[step as usize].get();
        assert_eq!(counters.timed_frames.get(), 6);
        let found = [Step::Receive, Step::Parse, Step::Select, Step::Send].map(cycles);
        assert_eq!(found, [14, 22, 0, 26]);
    }

    #[test]
    fn without_a_clock_nothing_is_timed() {
        let (mut watch, counters) = (Stopwatch::default(), Counters::new(0));
        watch.start();
        watch.lap(Step::Parse);
        watch.stop(1, &counters);
        assert_eq!(counters.timed_frames.get(), 0);
    }

    #[test]
    fn steps_are_numbered_as_they_are_listed() {
        assert!(Step::ALL.iter().enumerate().all(|(i, step)| *step as usize == i));
    }
}
