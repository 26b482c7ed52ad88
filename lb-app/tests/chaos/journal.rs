//! What a client saw: written by the client process, read by the judge.

use std::collections::BTreeMap;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Between two messages of a connection.
pub(crate) const INTERVAL_MS: u64 = 1000;

/// A point in time: nanoseconds of the monotonic clock, which all processes of a machine share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has it");
        let part = |part| u64::try_from(part).expect("no time before the start");
        Self(part(now.tv_sec()) * 1_000_000_000 + part(now.tv_nsec()))
    }

    /// Milliseconds since `earlier`; 0 if that is later.
    pub(crate) fn ms_since(self, earlier: Self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "2^53 ns are a hundred days")]
        let ns = self.0.saturating_sub(earlier.0) as f64;
        ns / 1e6
    }

    pub(crate) fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1_000_000)
    }
}

/// How a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// Nobody listens (only when opening).
    Refused,
    /// By a reset.
    Reset,
    /// The other end closed it.
    Closed,
    /// An answer did not come in time, or the network gave up.
    Silent,
    /// Another backend answered.
    OtherBackend,
    /// The answer was not the one that was due.
    Garbled,
}

/// An open connection that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Broken {
    /// Empty if it was not even answered once.
    pub(crate) backend: String,
    /// The client's, to find it in a capture.
    pub(crate) port: u16,
    pub(crate) opened: Moment,
    pub(crate) at: Moment,
    pub(crate) how: How,
}

/// A connection that could not be opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) from: Moment,
    pub(crate) to: Moment,
    pub(crate) how: How,
}

/// A time without an answer on any connection.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Gap {
    pub(crate) from: Moment,
    pub(crate) to: Moment,
}

/// What happened since the report before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Open connections now, by backend.
    pub(crate) open: BTreeMap<String, u64>,
    /// Connections opened, by backend.
    pub(crate) opened: BTreeMap<String, u64>,
    /// Messages that were answered as they should be.
    pub(crate) exchanged: u64,
    /// The longest that an answered message waited for its answer.
    pub(crate) worst_pause_ms: f64,
    pub(crate) broken: Vec<Broken>,
    pub(crate) failed: Vec<Failed>,
    pub(crate) gaps: Vec<Gap>,
}

impl Report {
    /// Appends what happened next.
    pub(crate) fn append(&mut self, next: Self) {
        self.open = next.open;
        for (backend, opened) in next.opened {
            *self.opened.entry(backend).or_default() += opened;
        }
        self.exchanged += next.exchanged;
        self.worst_pause_ms = self.worst_pause_ms.max(next.worst_pause_ms);
        self.broken.extend(next.broken);
        self.failed.extend(next.failed);
        self.gaps.extend(next.gaps);
    }

    /// Open connections now.
    pub(crate) fn open_total(&self) -> u64 {
        self.open.values().sum()
    }
}
