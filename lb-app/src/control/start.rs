//! How a balancer begins: everything is made, and in force, before clients are invited.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lb_config::Config;
use lb_core::continuity::{self, Remembered};
use lb_core::model::{DesiredState, Health, Service};
use lb_core::publish::publication;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{self, NextHops};
use rayon::ThreadPoolBuilder;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{Asked, Control, DrainsFile, Sweeper, Unresolved, needs_fib, vips};
use crate::api::View;
use crate::dataplane::{Dataplane, DataplaneError, KernelQueues};
use crate::health::Checkers;
use crate::kernel::{Exchange, Guard, GuardError, Kernel, KernelError, Pump, Tap};
use crate::memory::{self, Memory, MemoryError};
use crate::peers::{ListenError, Peers};
use crate::source::feed::Feeds;
use crate::source::{Applied, Overlaps, State, Wanted};
use crate::workers::{Settings, WorkerError, Workers, leave_cpus};

/// How long the first tables wait for the next hops of all backends, and for gateways to clients.
const FIRST_RESOLVE_MAX: Duration = Duration::from_secs(1);
/// How long the first tables wait for the first answers to health checks, after that.
const FIRST_ANSWERS_MAX: Duration = Duration::from_secs(1);
/// How long peers are waited for, who may know what was missed.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long the first tables wait for them to answer, while next hops are asked for.
    states: Duration,
    /// How long clients are not invited yet, for what they tell of flows.
    flows: Duration,
}

/// After a restart clients are waiting, and little was missed.
const AFTER_RESTART: Patience =
    Patience { states: Duration::from_millis(200), flows: Duration::from_secs(1) };
/// Nobody has waited for us.
const AFTER_AN_ABSENCE: Patience =
    Patience { states: Duration::from_secs(2), flows: Duration::from_secs(10) };
/// From here on it was an absence.
const RESTART_MAX: Duration = Duration::from_secs(2);

/// What the running balancer may still do, of all that root may: addresses, routes and neighbours; pings as
/// health checks; and peers at whatever port a reload names.
const KEPT: u64 = dpdk::CAP_NET_ADMIN | dpdk::CAP_NET_RAW | dpdk::CAP_NET_BIND_SERVICE;

/// Why the balancer does not start. One line: the cause, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("port {name:?}: {error}")]
    Guard { name: String, error: GuardError },
    #[error(transparent)]
    Workers(#[from] WorkerError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Peers(#[from] ListenError),
    #[error(transparent)]
    Overlaps(#[from] Overlaps),
    #[error(transparent)]
    Privileges(#[from] dpdk::PrivilegesError),
}

impl Control {
    /// Starts everything. Services take traffic when this returns.
    pub(crate) async fn start(
        config: Config,
        shown: watch::Sender<Option<Arc<View>>>,
    ) -> Result<Self, StartError> {
        let started = memory::now();
        let mut guards = Vec::new();
        for port in &config.ports {
            let guard = Guard::for_device(&port.device)
                .map_err(|error| StartError::Guard { name: port.name.clone(), error })?;
            guards.extend(guard);
        }
        // Before this thread leaves the CPUs of workers to them.
        let makers = ThreadPoolBuilder::new().build().map_err(io::Error::other)?;
        let Dataplane { eal, pool, ports, devices, cpus, queues, kernel: kernel_queues } =
            Dataplane::start(&config)?;
        leave_cpus(&cpus);
        let (kernel, taps) = Kernel::start(&ports).await?;
        let ports: Arc<[next_hop::Port]> = ports.into();
        let nothing = DesiredState::empty(config.desired.hash_key());
        let next_hops = NextHops::new();
        let mut empty = compile(&nothing, &Circumstances::new(&ports, &next_hops), None);
        let asked = Asked::new(nothing);
        let lb_config::Dataplane { flows_max, state_dir, .. } = &config.dataplane;
        let (memory, before) = makers.install(|| Memory::open(state_dir, *flows_max, &empty))?;
        empty.tracker = Arc::clone(memory.tracker());
        let drains_file = DrainsFile::new(state_dir);
        let mut wanted =
            Wanted::nothing(config.desired.hash_key()).with(State::of_file(&config))?;
        let applied = Applied::read(state_dir, &config.ports, &mut wanted);
        let feeds = Feeds::start(&config, &mut wanted)?;
        let drains = drains_file.read().retained(wanted.desired());
        let desired = drains.applied_to(wanted.desired());
        let peers = Peers::start(memory::key(&empty))?;
        let empty = Arc::new(empty);
        let (publisher, subscribers) = publication(&empty, cpus.len());
        // What is published next goes on from there.
        let tables = before.map_or(empty, Arc::new);
        let settings = Settings {
            idle: config.dataplane.idle,
            punts_per_second: config.dataplane.punts_per_second,
        };
        let workers = Workers::start(eal, &cpus, queues, subscribers, settings)?;
        let exchanges = exchanges(taps, kernel_queues);
        let checkers = Checkers::start()?;
        checkers.make_network(&desired, &ports);
        checkers.prepare(&desired, &ports)?;
        let checks = Arc::clone(checkers.through());
        let pump = Pump::start(exchanges, pool, settings.punts_per_second, checks)?;
        let names = ports.iter().map(|port| port.name.clone());
        let mut control = Self {
            workers,
            pump,
            devices: names.zip(devices).collect(),
            kernel,
            publisher,
            tables,
            makers: Some(makers),
            memory,
            sweeper: Sweeper::default(),
            next_sweep: Instant::now(),
            ports,
            config: Arc::new(config),
            wanted: Arc::new(wanted),
            applied,
            feeds,
            drains: Arc::new(drains),
            drains_file,
            desired,
            asked,
            next_hops,
            checkers,
            peers,
            health: Health::default(),
            unresolved: Unresolved::default(),
            baselines: Arc::default(),
            shown,
            cpus,
            _guards: guards,
        };
        control.checkers.check(&control.desired);
        control.kernel.want_fib(needs_fib(&control.desired));
        control.peers.talk(control.peers.prepare(control.config.site.peering.as_ref())?);
        let is_restart = control.memory.away(started).is_some_and(|away| away < RESTART_MAX);
        let patience = if is_restart { AFTER_RESTART } else { AFTER_AN_ABSENCE };
        let states = control.peers.first_states(patience.states);
        let (resolved, states) = tokio::join!(control.resolve_all(), states);
        resolved?;
        if control.adopt(states) {
            control.resolve_all().await?;
        }
        control.checkers.first_answers(FIRST_ANSWERS_MAX).await;
        control.health = control.known_health();
        let since = Instant::now();
        control.put_in_force(since).await;
        control.peers.first_flows(patience.flows).await;
        // All threads are there, and all that takes more has been made.
        dpdk::keep_capabilities::<KEPT>()?;
        // Clients are invited only now.
        control.kernel.set_vips(&vips(&control.desired)).await?;
        Ok(control)
    }

    /// Goes on from where peers are. `false`: from where we were.
    fn adopt(&mut self, mut states: Vec<Vec<Remembered>>) -> bool {
        let mut is_change = false;
        // Who knows most, last.
        states.sort_by_key(|state| state.iter().filter(|it| it.transitions.is_some()).count());
        let wanted = self.desired.services().iter();
        let wanted: BTreeMap<&str, &Service> =
            wanted.map(|service| (service.spec().name.as_str(), &**service)).collect();
        for mut state in states {
            // What is asked for decides, where a peer has not had the file yet, or we had not.
            state.retain(|it| wanted.get(&*it.name).is_some_and(|service| it.is_of(service)));
            let own = self.tables.remember();
            let joined = continuity::join(own, state, &self.tables.tracker);
            if let Some(tables) = self.tables.resume(joined) {
                tables.tracker.defer(memory::now());
                (self.tables, is_change) = (Arc::new(tables), true);
            } else {
                warn!("what a peer says of services contradicts itself");
            }
        }
        is_change
    }

    /// Asks for the next hops of all backends, and waits a little for stations to answer.
    async fn resolve_all(&mut self) -> Result<(), KernelError> {
        let deadline = Instant::now() + FIRST_RESOLVE_MAX;
        loop {
            self.resolve().await?;
            if self.next_hops.values().all(|it| it.is_ok()) && !self.kernel.awaits_gateways() {
                return Ok(());
            }
            tokio::select! {
                changed = self.kernel.changed() => changed?,
                () = sleep_until(deadline) => return Ok(()),
            }
        }
    }
}

/// Each TAP with its port's queues.
fn exchanges(
    taps: Vec<(next_hop::PortId, Tap)>,
    mut queues: Vec<Option<KernelQueues>>,
) -> Vec<Exchange> {
    taps.into_iter()
        .filter_map(|(id, tap)| {
            let KernelQueues { to_kernel, from_kernel } = queues.get_mut(id.index())?.take()?;
            Some(Exchange { port: id, tap, to_kernel, from_kernel })
        })
        .collect()
}
