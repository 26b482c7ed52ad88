//! Time, as the data path knows it, and what may happen in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Coarse monotonic time: milliseconds since some beginning; in the balancer, since the machine's
/// start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

impl From<Duration> for Tick {
    fn from(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A bounded rate: so many a second, and no more than a tenth of that at once.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    per_second: u64,
    /// In thousandths, so that no millisecond's part is lost.
    tokens: u64,
    last: Tick,
}

impl RateLimit {
    /// At least one at once.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let mut limit = Self { per_second: per_second.into(), tokens: 0, last: Tick(0) };
        limit.tokens = limit.tokens_max();
        limit
    }

    fn tokens_max(&self) -> u64 {
        (self.per_second * 100).max(1000)
    }

    /// May one more pass?
    pub fn allow(&mut self, now: Tick) -> bool {
        let elapsed_ms = now.0.saturating_sub(self.last.0).min(1000);
        self.last = self.last.max(now);
        self.tokens = (self.tokens + elapsed_ms * self.per_second).min(self.tokens_max());
        let allowed = self.tokens >= 1000;
        self.tokens -= if allowed { 1000 } else { 0 };
        allowed
    }

    /// Takes an [`allow`](Self::allow) back: nothing passed after all.
    pub fn give_back(&mut self) {
        self.tokens = (self.tokens + 1000).min(self.tokens_max());
    }
}

/// As [`RateLimit`], for several threads together: the generic cell rate algorithm (ITU-T I.371, Annex
/// A). Whoever is refused has only read; what is written is written at the rate, whatever comes.
#[derive(Debug)]
pub struct SharedRate {
    /// Nanoseconds between two.
    interval: u64,
    /// How far ahead of its time the next may come, in nanoseconds.
    tolerance: u64,
    /// When the next is due, in nanoseconds.
    due: AtomicU64,
}

impl Clone for SharedRate {
    fn clone(&self) -> Self {
        let Self { interval, tolerance, .. } = *self;
        Self { interval, tolerance, due: AtomicU64::new(self.due.load(Ordering::Relaxed)) }
    }
}

impl SharedRate {
    /// How often one tries when others are faster; then it is refused.
    const TRIES: usize = 8;

    /// At least one a second.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let interval = 1_000_000_000 / u64::from(per_second.max(1));
        let tolerance = 100_000_000_u64.saturating_sub(interval);
        Self { interval, tolerance, due: AtomicU64::new(0) }
    }

    /// May one more pass?
    #[inline]
    pub fn allow(&self, now: Tick) -> bool {
        let now_ns = now.0.saturating_mul(1_000_000);
        let mut due = self.due.load(Ordering::Relaxed);
        for _ in 0..Self::TRIES {
            let at = due.max(now_ns);
            if at - now_ns > self.tolerance {
                return false;
            }
            let next = at.saturating_add(self.interval);
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.due.compare_exchange_weak(due, next, success, failure) {
                Ok(_) => return true,
                Err(others) => due = others,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_rate_is_the_same() {
        for (per_second, milliseconds, expect) in [
            (1, 10_000, 10),
            (10, 10_000, 100),
            (100, 10_000, 10 + 999),
            (1000, 10_000, 10_000),
            (1_000_000, 10_000, 10_000),
        ] {
            let rate = SharedRate::new(per_second);
            let passed = (0..milliseconds).filter(|&ms| rate.allow(Tick(ms))).count();
            assert_eq!(passed, expect, "{per_second} a second");
        }
        for (per_second, expect) in [(1, 1), (10, 1), (1000, 100), (5000, 500)] {
            let rate = SharedRate::new(per_second);
            let at_once = |now| (0..10_000).filter(|_| rate.allow(Tick(now))).count();
            assert_eq!((at_once(0), at_once(3_600_000)), (expect, expect), "{per_second}");
            assert_eq!(at_once(0), 0, "time does not run backwards");
        }
    }

    #[test]
    fn a_shared_rate_is_that_of_all_threads_together() {
        let rate = SharedRate::new(10_000);
        let passed: usize = std::thread::scope(|scope| {
            let one = || {
                (0..1000).map(|ms| (0..50).filter(|_| rate.allow(Tick(ms))).count()).sum::<usize>()
            };
            let all: Vec<_> = (0..2).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((9_000..=11_000).contains(&passed), "{passed}");
    }

    #[test]
    fn rates_are_bounded_and_the_bound_is_used() {
        // How many pass of one a millisecond, for so long?
        for (per_second, milliseconds, expect) in [
            (0, 10_000, 1),
            (1, 10_000, 1 + 9),
            (10, 10_000, 1 + 99),
            (100, 10_000, 10 + 999),
            (1000, 10_000, 10_000),
            (1_000_000, 10_000, 10_000),
        ] {
            let mut limit = RateLimit::new(per_second);
            let passed = (0..milliseconds).filter(|&ms| limit.allow(Tick(ms))).count();
            assert_eq!(passed, expect, "{per_second} a second");
        }
        // And at once, after a long silence?
        for (per_second, expect) in [(1, 1), (10, 1), (1000, 100), (5000, 500)] {
            let mut limit = RateLimit::new(per_second);
            let at_once =
                |limit: &mut RateLimit, now| (0..10_000).filter(|_| limit.allow(Tick(now))).count();
            assert_eq!(at_once(&mut limit, 0), expect);
            assert_eq!(at_once(&mut limit, 3_600_000), expect);
            assert_eq!(at_once(&mut limit, 0), 0, "time does not run backwards");
            limit.give_back();
            assert_eq!(at_once(&mut limit, 3_600_000), 1);
        }
    }
}
