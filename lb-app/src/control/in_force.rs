//! What is known becomes tables, and tables are put in force; the API is shown what is.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use super::Control;
use crate::api::View;
use crate::memory;

/// Workers acknowledge a version at once, unless they sleep: so long is a turn, and so many are waited for
/// with nothing else done, because the runtime's sleep takes a millisecond or two.
const TURN: Duration = Duration::from_micros(50);
const TURNS_MAX: usize = 20;
/// How long workers may take to acknowledge a version before somebody is told.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(2);

impl Control {
    /// Shows the API how things are.
    pub(super) fn show(&self) {
        let counters = self.workers.counters().iter().map(Arc::clone);
        self.shown.send_replace(Some(Arc::new(View {
            config: Arc::clone(&self.config),
            wanted: Arc::clone(&self.wanted),
            feeds: Arc::clone(self.feeds.standings()),
            tables: Arc::clone(&self.tables),
            in_force: self.in_force(),
            health: self.health.clone(),
            drains: Arc::clone(&self.drains),
            next_hops: self.next_hops.clone(),
            flows: Arc::clone(self.sweeper.flows()),
            baselines: Arc::clone(&self.baselines),
            workers: self.cpus.iter().copied().zip(counters).collect(),
        })));
    }

    /// Makes tables of what has been known `since` then, and publishes them.
    pub(super) async fn put_in_force(&mut self, since: Instant) {
        let tables = self.compile();
        self.publish(tables, since).await;
    }

    /// As [`Self::put_in_force`], if it makes a difference to workers.
    pub(super) async fn publish_if_changed(&mut self, since: Instant) {
        let tables = self.compile();
        if tables.decides_like(&self.tables) {
            self.show(); // why a backend takes no flows may have changed
        } else {
            self.publish(tables, since).await;
        }
    }

    pub(super) fn compile(&mut self) -> Tables {
        let Self {
            desired, ports, next_hops, tables, makers, kernel, health, sweeper, memory, ..
        } = self;
        let idle = sweeper.idle();
        let pools = memory.pools(&desired.pools());
        let health = Some(&*health);
        let circumstances =
            Circumstances { ports, next_hops, health, pools, idle, now: memory::now() };
        let make = || compile(desired, &circumstances, Some(tables));
        let mut tables = match makers {
            Some(makers) => makers.install(make),
            None => make(),
        };
        tables.fib = kernel.fib(ports);
        tables
    }

    /// Publishes, and waits until every worker has said that it goes by the new version.
    pub(super) async fn publish(&mut self, tables: Tables, since: Instant) {
        if !tables.services.is_empty() {
            self.makers = None;
        }
        let before = mem::replace(&mut self.tables, Arc::new(tables));
        self.sweeper.begin();
        self.memory.save(&self.tables);
        let baselines = self.baselines.next(&before, &self.tables, self.workers.counters());
        if let Some(baselines) = baselines {
            self.baselines = Arc::new(baselines);
        }
        let version = self.publisher.publish(&self.tables);
        self.peers.follow(&self.tables);
        debug_assert_eq!(version, self.tables.version, "counted apart");
        self.unresolved.log(&self.tables, &self.next_hops);
        let deadline = Instant::now() + ACKNOWLEDGE_MAX;
        let mut turns = 0;
        while self.publisher.in_force() < version {
            if Instant::now() > deadline {
                error!("version {version} is not in force: a worker does not turn");
                self.show();
                return;
            }
            turns += 1;
            if turns > TURNS_MAX {
                sleep(Duration::from_millis(1)).await;
            } else {
                std::thread::sleep(TURN);
            }
        }
        self.publisher.reclaim();
        self.show();
        info!(
            "version {version} is in force on every worker: services {}, backends {}, after {:.1} ms",
            self.desired.services().len(),
            self.asked.backends(),
            since.elapsed().as_secs_f64() * 1000.0
        );
    }
}
