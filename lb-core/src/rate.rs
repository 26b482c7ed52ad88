//! Time, as the data path knows it, and what may happen in it.

use std::time::Duration;

/// Coarse monotonic time: milliseconds since the process began.
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

#[cfg(test)]
mod tests {
    use super::*;

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
