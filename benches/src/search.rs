//! The highest rate without loss, by halving what it may be (RFC 2544 §26.1).

/// What a device did at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Frames a second that were offered to it.
    pub offered: f64,
    /// Of those, the share that did not come back.
    pub loss: f64,
}

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The loss that counts as none: a share.
    pub loss_max: f64,
    /// How near to the highest rate is near enough: a share of it.
    pub resolution: f64,
}

/// Rates that are tried, at most.
const TRIALS_MAX: usize = 24;
/// A rate below this share of the first one is none.
const RATE_MIN: f64 = 1e-3;

/// The highest rate that `attempt` meets the goal at, between nothing and `ceiling`, in frames a second.
/// `None`: none does.
///
/// A device that does better at a higher rate than at a lower one has no highest rate; found is one that it
/// met the goal at.
///
/// # Errors
/// The first of `attempt`'s.
pub fn highest<E>(
    ceiling: f64,
    goal: Goal,
    mut attempt: impl FnMut(f64) -> Result<Outcome, E>,
) -> Result<Option<f64>, E> {
    let (mut good, mut bad) = (None, ceiling);
    let mut rate = ceiling;
    for _ in 0..TRIALS_MAX {
        let outcome = attempt(rate)?;
        if outcome.loss <= goal.loss_max {
            // The generator may have offered less than it was told.
            good = Some(outcome.offered.min(rate));
            if rate >= ceiling {
                break;
            }
        } else {
            bad = rate;
        }
        let low = good.unwrap_or(0.0);
        if bad - low <= bad * goal.resolution || bad < ceiling * RATE_MIN {
            break;
        }
        rate = f64::midpoint(low, bad);
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const GOAL: Goal = Goal { loss_max: 0.0, resolution: 0.01 };

    /// Loses what is above its limit.
    fn device(limit: f64) -> impl Fn(f64) -> Result<Outcome, Infallible> {
        move |rate| Ok(Outcome { offered: rate, loss: (1.0 - limit / rate).max(0.0) })
    }

    proptest! {
        #[test]
        fn the_limit_is_found(limit in 0.01..=1.0_f64, resolution in 0.001..0.1_f64) {
            let (ceiling, mut trials) = (20e6, 0);
            let goal = Goal { resolution, ..GOAL };
            let found = highest(ceiling, goal, |rate| {
                trials += 1;
                device(limit * ceiling)(rate)
            });
            let found = found.unwrap().unwrap();
            prop_assert!(found <= limit * ceiling);
            prop_assert!(found >= limit * ceiling * (1.0 - 2.0 * resolution), "{found} of {limit}");
            prop_assert!(trials <= TRIALS_MAX);
        }
    }

    #[test]
    fn some_loss_may_be_allowed() {
        let goal = Goal { loss_max: 0.1, resolution: 0.001 };
        let found = highest(9e6, goal, device(4.5e6)).unwrap().unwrap();
        assert!((4.95e6..=5.0e6).contains(&found), "{found}");
    }

    #[test]
    fn a_device_that_takes_all_is_tried_once() {
        let mut rates = Vec::new();
        let found = highest(5e6, GOAL, |rate| {
            rates.push(rate);
            device(7e6)(rate)
        });
        assert_eq!((found.unwrap(), rates), (Some(5e6), vec![5e6]));
    }

    #[test]
    fn what_was_offered_is_what_counts() {
        let weak = |rate: f64| Ok::<_, Infallible>(Outcome { offered: rate.min(3e6), loss: 0.0 });
        assert_eq!(highest(5e6, GOAL, weak).unwrap(), Some(3e6));
    }

    #[test]
    fn a_device_that_always_loses_has_none() {
        let lossy = |rate| Ok::<_, Infallible>(Outcome { offered: rate, loss: 0.5 });
        assert_eq!(highest(5e6, GOAL, lossy).unwrap(), None);
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(highest(5e6, GOAL, |_| Err("gone")), Err("gone"));
    }
}
