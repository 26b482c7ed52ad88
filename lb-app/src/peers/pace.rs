//! A bounded rate, for tasks that may wait.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// So many a second, on average since the beginning of a burst.
#[derive(Debug)]
pub(super) struct Pace {
    each: Duration,
    /// When all that has passed is due.
    due: Instant,
}

/// How far a burst may be ahead.
const AHEAD_MAX: Duration = Duration::from_millis(10);

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self { each: Duration::from_secs(1) / per_second.max(1), due: Instant::now() }
    }

    /// Notes that so many have passed; returns when the next may. Lets others run in any case.
    pub(super) async fn keep(&mut self, passed: u32) {
        self.due = self.due.max(Instant::now()) + self.each * passed;
        if self.due > Instant::now() + AHEAD_MAX {
            sleep_until(self.due).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}
