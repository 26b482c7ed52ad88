//! Goes over the tracked flows again and again, a part at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use lb_core::continuity;
use lb_core::rate::Tick;
use lb_core::tables::{ServiceId, Tables};

/// Parts of the flow table, of which one is swept at a time.
const PARTS: usize = 16;
/// Time from one to the next: all of them in a few seconds.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// Flows, by service and place of their backend.
pub(crate) type FlowCounts = BTreeMap<(ServiceId, u16), u64>;

/// See above.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// The part that comes next.
    part: usize,
    /// Has nothing changed since the first part?
    is_whole: bool,
    /// What this round has found so far: leaving backends without flows.
    found: BTreeSet<(ServiceId, u16)>,
    /// What the last whole round has found.
    idle: BTreeSet<(ServiceId, u16)>,
    /// The flows that this round has seen so far, and those of the last.
    seen: FlowCounts,
    flows: Arc<FlowCounts>,
}

impl Sweeper {
    /// Goes over a part; is there news at the end of a round?
    pub(super) fn sweep(&mut self, tables: &Tables, now: Tick) -> News {
        let swept = continuity::sweep(tables, (self.part, PARTS), now);
        if self.part == 0 {
            (self.found, self.is_whole) = (swept.idle, true);
            self.seen.clear();
        } else {
            self.found.retain(|place| swept.idle.contains(place));
        }
        for (place, flows) in swept.flows {
            *self.seen.entry(place).or_default() += flows;
        }
        self.part = (self.part + 1) % PARTS;
        if self.part > 0 || !self.is_whole {
            return News::default();
        }
        self.idle = mem::take(&mut self.found);
        let flows = mem::take(&mut self.seen);
        let has_counted = flows != *self.flows;
        if has_counted {
            self.flows = Arc::new(flows);
        }
        News { has_idle: !self.idle.is_empty(), has_counted }
    }

    /// Other tables: what was found is not known of them.
    pub(super) fn begin(&mut self) {
        (self.part, self.is_whole) = (0, false);
        self.idle.clear();
    }

    pub(super) fn idle(&self) -> &BTreeSet<(ServiceId, u16)> {
        &self.idle
    }

    /// The flows of each backend, as the last whole round has counted them.
    pub(super) fn flows(&self) -> &Arc<FlowCounts> {
        &self.flows
    }

    /// Is there anything to go over: flows, numbers of them, or a backend that may leave when it has
    /// none?
    pub(super) fn has_work(&self, tables: &Tables) -> bool {
        !tables.tracker.is_empty() || !self.flows.is_empty() || tables.leaving().next().is_some()
    }
}

/// What the end of a round has brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// A leaving backend has no flow any more.
    pub(super) has_idle: bool,
    /// There is another number of flows.
    pub(super) has_counted: bool,
}
