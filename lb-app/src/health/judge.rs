//! What follows from answers.

use lb_core::model::HealthCheck;

/// What is thought of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is known yet; it may serve.
    #[default]
    Unknown,
    Healthy,
    Failed,
}

/// Judges a target by the answers to its checks.
///
/// **First** answer: decides at once, so that after a start no flow is given to a backend that is
/// down. If that was bad, the first good one decides, too: the network may have been later than we.
/// From then on, `fall` failures or `rise` successes in a row change the verdict.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judge {
    verdict: Verdict,
    /// Answers in a row that speak against the verdict.
    run: u32,
    was_healthy: bool,
}

impl Judge {
    pub(super) fn verdict(self) -> Verdict {
        self.verdict
    }

    /// Takes the next answer.
    pub(super) fn take(&mut self, is_good: bool, check: &HealthCheck) {
        let (says, needed) = match (is_good, self.verdict) {
            (true, Verdict::Unknown) => (Verdict::Healthy, 1),
            (false, Verdict::Unknown) => (Verdict::Failed, 1),
            (true, _) if !self.was_healthy => (Verdict::Healthy, 1),
            (true, _) => (Verdict::Healthy, check.rise),
            (false, _) => (Verdict::Failed, check.fall),
        };
        if says == self.verdict {
            self.run = 0;
            return;
        }
        self.run += 1;
        if self.run >= needed {
            let was_healthy = self.was_healthy || says == Verdict::Healthy;
            *self = Self { verdict: says, run: 0, was_healthy };
        }
    }
}

/// How many targets of a service take flows, and how many of these have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) active: usize,
    pub(super) failed: usize,
}

impl Tally {
    /// Are so few healthy that the checks are more likely to be wrong than the backends down, or
    /// that those few could not bear the load?
    pub(super) fn is_panic(self, check: &HealthCheck) -> bool {
        let healthy = self.active - self.failed;
        healthy * 100 < self.active * usize::from(check.panic_below)
    }
}

#[cfg(test)]
mod tests {
    use lb_core::model::Probe;
    use proptest::prelude::*;

    use super::*;

    fn check(rise: u32, fall: u32) -> HealthCheck {
        HealthCheck { rise, fall, ..HealthCheck::new(Probe::Tcp) }
    }

    /// The verdicts after each answer: '+' good, '-' bad.
    fn verdicts(answers: &str, check: &HealthCheck) -> String {
        let mut judge = Judge::default();
        let mut after = |answer| {
            judge.take(answer == '+', check);
            match judge.verdict() {
                Verdict::Unknown => '?',
                Verdict::Healthy => 'h',
                Verdict::Failed => 'f',
            }
        };
        answers.chars().map(&mut after).collect()
    }

    #[test]
    fn rise_and_fall() {
        for (rise, fall, answers, expected) in [
            (2, 3, "+---", "hhhf"),
            (2, 3, "+--+---", "hhhhhhf"),
            (2, 3, "+---+-++", "hhhffffh"),
            (2, 3, "+---++--+---", "hhhffhhhhhhf"),
            (1, 1, "+-+-", "hfhf"),
            (3, 1, "+-++-+++", "hffffffh"),
        ] {
            assert_eq!(verdicts(answers, &check(rise, fall)), expected, "{answers}");
        }
    }

    #[test]
    fn the_first_answer_decides() {
        assert_eq!(Judge::default().verdict(), Verdict::Unknown);
        assert_eq!(verdicts("-", &check(9, 9)), "f");
        assert_eq!(verdicts("+", &check(9, 9)), "h");
        assert_eq!(verdicts("--+--", &check(9, 2)), "ffhhf", "and the first good one");
    }

    proptest! {
        /// The verdict is what the last run of `rise` or `fall` equal answers said; but a first answer
        /// is long enough, and so is the first good one.
        #[test]
        fn a_verdict_is_the_last_long_run(
            rise in 1_u32..5,
            fall in 1_u32..5,
            answers in proptest::collection::vec(any::<bool>(), 1..60),
        ) {
            let check = check(rise, fall);
            let mut judge = Judge::default();
            for answer in &answers {
                judge.take(*answer, &check);
            }
            let mut expected = answers[0];
            let first_good = answers.iter().position(|answer| *answer);
            for end in 1..=answers.len() {
                if first_good == Some(end - 1) {
                    expected = true;
                    continue;
                }
                let run_of = |good: bool, len: u32| {
                    let len = len as usize;
                    end >= len && answers[end - len..end].iter().all(|answer| *answer == good)
                };
                expected = if run_of(true, rise) {
                    true
                } else if run_of(false, fall) {
                    false
                } else {
                    expected
                };
            }
            let expected = if expected { Verdict::Healthy } else { Verdict::Failed };
            prop_assert_eq!(judge.verdict(), expected);
        }
    }

    #[test]
    fn panic_is_when_less_than_the_share_is_healthy() {
        let panics = |active, failed, panic_below| {
            let check = HealthCheck { panic_below, ..check(2, 3) };
            Tally { active, failed }.is_panic(&check)
        };
        assert!(!panics(10, 10, 0));
        assert!(!panics(10, 5, 50));
        assert!(panics(10, 6, 50));
        assert!(panics(10, 1, 100));
        assert!(!panics(10, 0, 100));
        assert!(!panics(0, 0, 100));
        assert!(!panics(3, 2, 33));
        assert!(panics(3, 2, 34));
    }
}
