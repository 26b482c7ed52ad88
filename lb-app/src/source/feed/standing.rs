//! What is shown of a feed: read at any time, by whoever likes to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How a feed stands, and what it has counted since the start.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) name: String,
    /// Calls that the control plane has answered.
    pub(crate) calls: AtomicU64,
    /// Calls that have failed, or ended.
    pub(crate) breaks: AtomicU64,
    /// Updates that have come whole.
    pub(crate) updates: AtomicU64,
    /// Resources that have changed with them.
    pub(crate) resources: AtomicU64,
    /// States that are, or were, in force; and those that were refused.
    pub(crate) taken: AtomicU64,
    pub(crate) refused: AtomicU64,
    now: Mutex<Now>,
}

/// How it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// Since when there has been no control plane; absent: it is there.
    pub(crate) away: Option<SystemTime>,
    /// The version of what was told last.
    pub(crate) told: String,
    /// Why that is not in force, or why the control plane is away; empty: it is, and is not.
    pub(crate) reason: String,
}

impl Standing {
    pub(super) fn new(name: String) -> Self {
        let away = Some(SystemTime::now());
        Self {
            name,
            calls: AtomicU64::new(0),
            breaks: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            resources: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            now: Mutex::new(Now { away, ..Now::default() }),
        }
    }

    pub(crate) fn now(&self) -> Now {
        self.lock().clone()
    }

    /// The control plane is there.
    pub(super) fn found(&self) {
        count(&self.calls, 1);
        let mut now = self.lock();
        (now.away, now.reason) = (None, String::new());
    }

    /// It is away. Is that news?
    pub(super) fn lost(&self, why: &str) -> bool {
        count(&self.breaks, 1);
        let mut now = self.lock();
        let is_news = now.away.is_none() || now.reason != why;
        now.away.get_or_insert_with(SystemTime::now);
        now.reason = why.into();
        is_news
    }

    /// An update has come.
    pub(super) fn told(&self, version: &str, resources: usize) {
        count(&self.updates, 1);
        count(&self.resources, resources as u64);
        self.lock().told = version.into();
    }

    /// What was told is in force.
    pub(super) fn took(&self) {
        count(&self.taken, 1);
        let mut now = self.lock();
        if now.away.is_none() {
            now.reason.clear();
        }
    }

    /// What was told is refused. Is that news?
    pub(super) fn refuses(&self, why: &str) -> bool {
        count(&self.refused, 1);
        let mut now = self.lock();
        let is_news = now.reason != why;
        now.reason = why.into();
        is_news
    }

    /// The counters, by name.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let away = self.lock().away.and_then(|since| since.elapsed().ok());
        [
            ("calls", get(&self.calls)),
            ("breaks", get(&self.breaks)),
            ("updates", get(&self.updates)),
            ("resources", get(&self.resources)),
            ("taken", get(&self.taken)),
            ("refused", get(&self.refused)),
            ("away_seconds", away.map_or(0, |away| away.as_secs())),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // Nothing panics while it is held.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
