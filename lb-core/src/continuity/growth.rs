//! Slow start: a backend that begins to serve gets its share in steps, each of them a table.
//!
//! So a server that has just been started is not met by its whole share of new connections at once.
//! Whether a backend begins, the table before says: it had no slots there. In the first table of a
//! service nobody begins: there is nobody else who could serve meanwhile.

use std::time::Duration;

use crate::rate::Tick;

/// Steps from nothing to the whole share, at most.
const STEPS_MAX: u32 = 10;
/// How long a step lasts, at least: a table is not made more often for it.
const STEP_MIN: Duration = Duration::from_secs(1);

/// Which backends' shares grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// By place: when it began to serve, if its share still grows.
    since: Vec<Option<Tick>>,
    /// When the next share grows.
    next_step: Option<Tick>,
}

/// How a service's shares grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Steps {
    count: u32,
    /// How long each of them lasts.
    each: Tick,
}

impl Steps {
    /// `None`: at once.
    fn new(slow_start: Option<Duration>) -> Option<Self> {
        let whole = slow_start.filter(|whole| !whole.is_zero())?;
        let count = whole.as_millis() / STEP_MIN.as_millis();
        let count = u32::try_from(count).unwrap_or(u32::MAX).clamp(1, STEPS_MAX);
        Some(Self { count, each: Tick::from(whole / count) })
    }

    /// Which step a backend is at that began at `since`: from 1.
    fn at(self, since: Tick, now: Tick) -> u32 {
        let steps = now.0.saturating_sub(since.0) / self.each.0.max(1);
        u32::try_from(steps).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl Growth {
    /// As it was remembered.
    #[must_use]
    pub fn restore(since: impl Iterator<Item = Option<Tick>>) -> Self {
        Self { since: since.collect(), next_step: None }
    }

    /// When the backend at `place` began to serve, if its share still grows.
    #[must_use]
    pub fn since(&self, place: usize) -> Option<Tick> {
        self.since.get(place).copied().flatten()
    }

    /// When the next share grows.
    #[must_use]
    pub fn next_step(&self) -> Option<Tick> {
        self.next_step
    }

    /// Makes of whole `weights` what counts now, and the growth that goes with it. `before`: the growth
    /// and the weights that counted, by place; absent: there was nothing.
    #[must_use]
    pub fn next(
        slow_start: Option<Duration>,
        weights: &mut [u32],
        before: Option<(&Self, &[u32])>,
        now: Tick,
    ) -> Self {
        let (Some(steps), Some((old, counted))) = (Steps::new(slow_start), before) else {
            return Self::default();
        };
        let since = |(place, weight): (usize, &u32)| {
            let had_some = counted.get(place).is_some_and(|weight| *weight > 0);
            let since = if had_some { old.since(place)? } else { now };
            (*weight > 0 && steps.at(since, now) < steps.count).then_some(since)
        };
        let is_nobody = counted.iter().all(|weight| *weight == 0);
        let since: Vec<Option<Tick>> =
            if is_nobody { Vec::new() } else { weights.iter().enumerate().map(since).collect() };
        if since.iter().all(Option::is_none) {
            return Self::default();
        }
        for (weight, since) in weights.iter_mut().zip(&since) {
            *weight *= since.map_or(steps.count, |since| steps.at(since, now));
        }
        let end_of_step = |since: &Tick| {
            let passed = u64::from(steps.at(*since, now)).saturating_mul(steps.each.0);
            Tick(since.0.saturating_add(passed))
        };
        let next_step = since.iter().flatten().map(end_of_step).min();
        Self { since, next_step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Option<Duration> = Some(Duration::from_secs(20));

    fn grown(
        weights: &[u32],
        before: Option<(&Growth, &[u32])>,
        seconds: u64,
    ) -> (Growth, Vec<u32>) {
        let mut weights = weights.to_vec();
        let growth = Growth::next(SLOW, &mut weights, before, Tick(seconds * 1000));
        (growth, weights)
    }

    #[test]
    fn who_begins_gets_its_share_in_steps() {
        let (first, counted) = grown(&[1, 2], None, 0);
        assert_eq!((first.next_step(), &counted[..]), (None, &[1, 2][..]));
        let (mut growth, mut counted) = grown(&[1, 2, 3], Some((&first, &counted)), 100);
        for step in 1..10 {
            assert_eq!(counted, [10, 20, 3 * step]);
            assert_eq!(growth.next_step(), Some(Tick(100_000 + u64::from(step) * 2000)));
            // In the middle of a step nothing changes.
            let seconds = 100 + u64::from(step) * 2;
            assert_eq!(grown(&[1, 2, 3], Some((&growth, &counted)), seconds - 1).1, counted);
            (growth, counted) = grown(&[1, 2, 3], Some((&growth, &counted)), seconds);
        }
        assert_eq!((growth, &counted[..]), (Growth::default(), &[1, 2, 3][..]));
    }

    #[test]
    fn who_is_away_begins_again() {
        let (first, counted) = grown(&[1, 1], None, 0);
        let (growth, counted) = grown(&[1, 0], Some((&first, &counted)), 50);
        assert_eq!((growth.next_step(), &counted[..]), (None, &[1, 0][..]));
        let (growth, counted) = grown(&[1, 1], Some((&growth, &counted)), 60);
        assert_eq!((growth.since(1), &counted[..]), (Some(Tick(60_000)), &[10, 1][..]));
        // After everybody was away, there is nobody to wait for.
        let (growth, counted) = grown(&[0, 0], Some((&growth, &counted)), 62);
        assert_eq!(grown(&[1, 1], Some((&growth, &counted)), 70), (Growth::default(), vec![1, 1]));
    }

    #[test]
    fn steps_are_a_second_at_least() {
        let steps = |milliseconds| Steps::new(Some(Duration::from_millis(milliseconds)));
        assert_eq!(steps(0), None);
        assert_eq!(steps(700), Some(Steps { count: 1, each: Tick(700) }));
        assert_eq!(steps(3500), Some(Steps { count: 3, each: Tick(1166) }));
        assert_eq!(steps(3_600_000), Some(Steps { count: 10, each: Tick(360_000) }));
    }
}
