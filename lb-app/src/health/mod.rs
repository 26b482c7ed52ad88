//! Health checks: is a backend fit to serve?
//!
//! In reading order:
//! * `target` says who is asked what: one target for each backend of a service with checks.
//! * `probe` asks, by the kernel's sockets; `tcp`, `http`, `grpc`, `udp` and `icmp` have one kind
//!   each. `failure` is why an answer is no good.
//! * `through` has the packets of checks that go to a service's own address.
//! * `judge` says what follows from answers: rise, fall, and panic.
//! * `schedule` asks everybody in turn, on a thread of its own: neither the data path nor control
//!   waits for a backend.
//!
//! Control is told whole states: whoever looks late sees the newest, and misses nothing.

mod failure;
mod grpc;
mod http;
mod icmp;
mod judge;
mod limits;
mod probe;
mod schedule;
mod target;
mod tcp;
mod through;
mod tls;
mod udp;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lb_core::model::{DesiredState, Health};
use lb_core::tables::next_hop::{NextHops, Port};
use tokio::sync::watch;
use tracing::{debug, error};

use probe::Prober;
use schedule::Schedule;
use target::{Target, Targets};
use through::Through;
pub(crate) use through::{Carrier, ThroughCell};

use crate::kernel::KernelError;

/// What is to be checked. Whole, and numbered, so that an answer can say what it is an answer to.
#[derive(Clone, Debug, Default)]
struct Orders {
    number: u64,
    /// Of one service after the other. A list that is the same one as it was, at its place, is not looked at.
    targets: Vec<Arc<[Target]>>,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Findings {
    health: Health,
    /// The orders that this is about.
    number: u64,
    /// Targets that have not answered, or failed to, even once.
    unknown: usize,
}

/// The running checks. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Checkers {
    targets: Targets,
    orders: Option<watch::Sender<Orders>>,
    findings: watch::Receiver<Findings>,
    through: ThroughCell,
    thread: Option<JoinHandle<()>>,
}

impl Checkers {
    /// Starts the thread. Nothing is checked yet.
    pub(crate) fn start() -> io::Result<Self> {
        let under_way_max = limits::checks_under_way_max();
        let (orders, ordered) = watch::channel(Orders::default());
        let (found, findings) = watch::channel(Findings::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let through = ThroughCell::default();
        let prober = Prober::new(Arc::clone(&through)).map_err(io::Error::other)?;
        let thread = thread::Builder::new().name("health".into()).spawn(move || {
            let schedule = Schedule::new(prober, under_way_max, found);
            runtime.block_on(schedule.run(ordered));
        })?;
        let (targets, orders, thread) = (Targets::none(), Some(orders), Some(thread));
        Ok(Self { targets, orders, findings, through, thread })
    }

    /// Makes the network of checks through services, whether there are some or not: they may come when the
    /// process has no right to make one any more. Where it has none now, there can be no such checks.
    pub(crate) fn make_network(&self, desired: &DesiredState, ports: &Arc<[Port]>) {
        if ports.iter().any(|port| port.kernel && !port.addresses.is_empty())
            && let Err(error) = self.make_through(desired, ports)
        {
            debug!("{error}");
        }
    }

    /// Makes what checks of these backends need besides sockets, if it is not there.
    ///
    /// # Errors
    /// There are checks through services, and no network for them.
    pub(crate) fn prepare(
        &self,
        desired: &DesiredState,
        ports: &Arc<[Port]>,
    ) -> Result<(), KernelError> {
        if through::is_wanted(desired) && self.through.get().is_none() {
            self.make_through(desired, ports)?;
        }
        Ok(())
    }

    fn make_through(&self, desired: &DesiredState, ports: &Arc<[Port]>) -> Result<(), KernelError> {
        // Nobody else sets it.
        let _ = self.through.set(Arc::new(Through::open(desired, ports)?));
        Ok(())
    }

    /// Where the packets of checks through services are, when there are some.
    pub(crate) fn through(&self) -> &ThroughCell {
        &self.through
    }

    /// These are the ways to backends now.
    pub(crate) fn follow_ways(
        &self,
        desired: &DesiredState,
        ports: &Arc<[Port]>,
        next_hops: &NextHops,
    ) {
        if let Some(through) = self.through.get() {
            through.follow(desired, ports, next_hops);
        }
    }

    /// Checks these backends from now on. What is known of those that were checked before stays.
    pub(crate) fn check(&mut self, desired: &DesiredState) {
        let targets = self.targets.follow(desired).to_vec();
        self.order(targets);
    }

    fn order(&self, targets: Vec<Arc<[Target]>>) {
        if let Some(orders) = &self.orders {
            orders.send_modify(|orders| {
                *orders = Orders { number: orders.number + 1, targets };
            });
        }
    }

    /// Waits until something is known of every backend, for at most `patience`.
    pub(crate) async fn first_answers(&mut self, patience: Duration) {
        let number = self.orders.as_ref().map_or(0, |orders| orders.borrow().number);
        let all_known = |found: &Findings| found.number == number && found.unknown == 0;
        // Whether they are all known or not: what is known is taken.
        let _ = tokio::time::timeout(patience, self.findings.wait_for(all_known)).await;
    }

    /// Returns when there is something new. Nothing is lost when this is cancelled.
    pub(crate) async fn changed(&mut self) {
        if self.findings.changed().await.is_err() {
            error!("health checks have ended; what was known last stays");
            std::future::pending::<()>().await;
        }
    }

    /// What is known now.
    pub(crate) fn health(&mut self) -> Health {
        self.findings.borrow_and_update().health.clone()
    }
}

impl Drop for Checkers {
    fn drop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread of the health checks ended early");
        }
    }
}

#[cfg(test)]
mod tests;
