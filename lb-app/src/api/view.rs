//! What control shows of itself: shared parts, so that a view is cheap and stays as it is.

use std::sync::Arc;

use lb_config::Config;
use lb_core::counters::Counters;
use lb_core::model::Health;
use lb_core::tables::Tables;
use lb_core::tables::next_hop::NextHops;

use crate::control::{Drains, FlowCounts};
use crate::counters::Baselines;
use crate::source::Wanted;
use crate::source::feed::Standing;

/// How a balancer is after a change.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// What the file says.
    pub(crate) config: Arc<Config>,
    /// What all sources want.
    pub(crate) wanted: Arc<Wanted>,
    /// How the feeds are; this goes on changing.
    pub(crate) feeds: Arc<[Arc<Standing>]>,
    /// The newest version.
    pub(crate) tables: Arc<Tables>,
    /// The version that all workers have acknowledged.
    pub(crate) in_force: u64,
    /// What is known of backends' health.
    pub(crate) health: Health,
    /// Who was drained by command.
    pub(crate) drains: Arc<Drains>,
    /// The ways to backends, and why there are none.
    pub(crate) next_hops: NextHops,
    /// Tracked flows, by service and place of their backend, as last counted.
    pub(crate) flows: Arc<FlowCounts>,
    /// What the ids of services had counted before the services had them.
    pub(crate) baselines: Arc<Baselines>,
    /// By worker: its CPU, and what it counts.
    pub(crate) workers: Arc<[(usize, Arc<Counters>)]>,
}
