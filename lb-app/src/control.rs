//! The one task that owns what is wanted and what is true, and makes tables of it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dpdk::{Port, Started};
use lb_config::Config;
use lb_core::continuity::{self, Remembered, Standing};
use lb_core::model::{DesiredState, Forward, Health, Service, ServiceSpec, Vip};
use lb_core::pool;
use lb_core::publish::{Publisher, publication};
use lb_core::rate::Tick;
use lb_core::tables::compile::{Circumstances, compile, ways};
use lb_core::tables::next_hop::{self, NextHops};
use lb_core::tables::{ServiceId, Tables};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::counters::{self, Baselines};
use crate::dataplane::{Dataplane, DataplaneError, KernelQueues};
use crate::health::Checkers;
use crate::kernel::{Exchange, Guard, GuardError, InterfaceState, Kernel, KernelError, Pump, Tap};
use crate::memory::{self, Memory, MemoryError};
use crate::peers::{ListenError, Peers};
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
/// How long peers are still told of flows when nothing is forwarded any more.
const LAST_WORDS: Duration = Duration::from_millis(20);
/// Changes of the network come in swarms: how long one is given to be over.
const SWARM: Duration = Duration::from_millis(20);
/// Parts of the flow table, of which one is swept at a time.
const SWEEP_PARTS: usize = 16;
/// Time from one to the next: all of them in a few seconds.
const SWEEP_PAUSE: Duration = Duration::from_millis(250);
/// How long workers may take to acknowledge a version before somebody is told.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(2);
/// Backends without a next hop that are named in the log, after each change.
const UNRESOLVED_SHOWN_MAX: usize = 20;

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
    Thread(#[from] std::io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Peers(#[from] ListenError),
}

/// Why a new configuration is not taken. What runs, runs on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("[dataplane] or a [[port]] has changed; that takes a restart")]
    NeedsRestart,
    #[error("`hash_key` has changed; that takes a restart, and moves most flows to other backends")]
    OtherKey,
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Peers(#[from] ListenError),
}

/// What is true and no longer as it was.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Links, addresses, routes or neighbours.
    Network,
    /// Which backends have failed their health checks.
    Health,
}

/// A running balancer. In the order in which its parts are stopped.
pub(crate) struct Control {
    workers: Workers,
    pump: Pump,
    devices: Vec<(String, Port<Started>)>,
    kernel: Kernel,
    publisher: Publisher<Tables>,
    tables: Arc<Tables>,
    memory: Memory,
    sweeper: Sweeper,
    next_sweep: Instant,
    ports: Arc<[next_hop::Port]>,
    config: Config,
    next_hops: NextHops,
    checkers: Checkers,
    peers: Peers,
    /// Which backends may not serve, as last looked at.
    health: Health,
    /// Why backends take no traffic, by service and address, as last logged.
    unresolved: BTreeMap<(String, IpAddr), String>,
    baselines: Baselines,
    /// Last, so that the kernel's stack wakes up when its addresses are gone.
    _guards: Vec<Guard>,
}

impl Control {
    /// Starts everything. Services take traffic when this returns.
    pub(crate) async fn start(config: Config) -> Result<Self, StartError> {
        let started = memory::now();
        let mut guards = Vec::new();
        for port in &config.ports {
            let guard = Guard::for_device(&port.device)
                .map_err(|error| StartError::Guard { name: port.name.clone(), error })?;
            guards.extend(guard);
        }
        let Dataplane { eal, pool, ports, devices, cpus, queues, kernel: kernel_queues } =
            Dataplane::start(&config)?;
        leave_cpus(&cpus);
        let (kernel, taps) = Kernel::start(&ports).await?;
        let ports: Arc<[next_hop::Port]> = ports.into();
        let nothing = DesiredState::empty(config.desired.hash_key());
        let next_hops = NextHops::new();
        let mut empty = compile(&nothing, &Circumstances::new(&ports, &next_hops), None);
        let lb_config::Dataplane { flows_max, state_dir, .. } = &config.dataplane;
        let (memory, before) = Memory::open(state_dir, *flows_max, &empty)?;
        empty.tracker = Arc::clone(memory.tracker());
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
        checkers.prepare(&config.desired, &ports)?;
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
            memory,
            sweeper: Sweeper::default(),
            next_sweep: Instant::now(),
            ports,
            config,
            next_hops,
            checkers,
            peers,
            health: Health::default(),
            unresolved: BTreeMap::new(),
            baselines: Baselines::default(),
            _guards: guards,
        };
        control.checkers.check(&control.config.desired);
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
        control.health = control.checkers.health();
        control.put_in_force().await;
        control.peers.first_flows(patience.flows).await;
        // Clients are invited only now.
        control.kernel.set_vips(&vips(&control.config.desired)).await?;
        Ok(control)
    }

    /// Goes on from where peers are. `false`: from where we were.
    fn adopt(&mut self, mut states: Vec<Vec<Remembered>>) -> bool {
        let mut is_change = false;
        // Who knows most, last.
        states.sort_by_key(|state| state.iter().filter(|it| it.transitions.is_some()).count());
        let wanted = self.config.desired.services().iter();
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
            if self.next_hops.values().all(Result::is_ok) && !self.kernel.awaits_gateways() {
                return Ok(());
            }
            tokio::select! {
                changed = self.kernel.changed() => changed?,
                () = sleep_until(deadline) => return Ok(()),
            }
        }
    }

    /// Asks for the ways to backends, and to clients if anything but answers about their own packets
    /// goes there.
    async fn resolve(&mut self) -> Result<(), KernelError> {
        let desired = &self.config.desired;
        self.kernel.want_fib(needs_fib(desired));
        self.next_hops = self.kernel.resolve(&asked(desired, &self.tables)).await?;
        self.checkers.follow_ways(desired, &self.ports, &self.next_hops);
        Ok(())
    }

    /// Takes a new configuration. All of it is in force when this returns, or nothing of it.
    pub(crate) async fn reload(&mut self, config: Config) -> Result<(), ReloadError> {
        if (&config.dataplane, &config.ports) != (&self.config.dataplane, &self.config.ports) {
            return Err(ReloadError::NeedsRestart);
        }
        if config.desired.hash_key() != self.config.desired.hash_key() {
            return Err(ReloadError::OtherKey);
        }
        // New VIPs first, since they may be refused; old ones last, since they are in use.
        let peers = self.peers.prepare(config.site.peering.as_ref())?;
        self.checkers.prepare(&config.desired, &self.ports)?;
        let new = vips(&config.desired);
        let both = new.union(&vips(&self.config.desired)).copied().collect();
        self.kernel.set_vips(&both).await?;
        if config.site.peering != self.config.site.peering {
            self.peers.talk(peers);
        }
        self.config = config;
        self.checkers.check(&self.config.desired);
        self.resolve().await?;
        self.put_in_force().await;
        self.kernel.set_vips(&new).await?;
        Ok(())
    }

    /// Returns when the world has changed; see [`Kernel::changed`], [`Checkers::changed`].
    pub(crate) async fn changed(&mut self) -> Result<Change, KernelError> {
        tokio::select! {
            changed = self.kernel.changed() => changed.map(|()| Change::Network),
            () = self.checkers.changed() => Ok(Change::Health),
        }
    }

    /// Looks at the network again, and changes the tables if it makes a difference.
    pub(crate) async fn follow_network(&mut self) -> Result<(), KernelError> {
        sleep(SWARM).await;
        for (id, state) in self.kernel.interfaces() {
            let name = self.ports.get(id.index()).map_or("?", |port| port.name.as_str());
            match state {
                InterfaceState::Up => {}
                InterfaceState::Down => {
                    warn!("interface {name} is down; set it up (`ip link set {name} up`)");
                }
                InterfaceState::Gone => {
                    warn!("interface {name} is gone; restart to have it again");
                }
            }
        }
        // What somebody else did is no reason to end: a VIP of theirs is theirs to take back.
        if let Err(error) = self.kernel.set_vips(&vips(&self.config.desired)).await {
            warn!("{error}");
        }
        self.resolve().await?;
        self.publish_if_changed().await;
        Ok(())
    }

    /// When [`Control::look_after_flows`] has something to do. It does not move when other things happen.
    pub(crate) fn flows_need_care(&self) -> Instant {
        let change =
            self.tables.next_change().map(|change| change.0.saturating_sub(memory::now().0));
        let change = change.map(|change| Instant::now() + Duration::from_millis(change));
        change.map_or(self.next_sweep, |change| change.min(self.next_sweep))
    }

    /// Forgets flows that are over, ends transitions, lets go of backends that have no flows.
    pub(crate) async fn look_after_flows(&mut self) -> Result<(), KernelError> {
        let now = memory::now();
        let mut has_news = false;
        if self.next_sweep <= Instant::now() {
            self.next_sweep = Instant::now() + SWEEP_PAUSE;
            self.memory.note_alive();
            if !self.tables.tracker.is_empty() || Sweeper::is_waiting(&self.tables) {
                has_news = self.sweeper.sweep(&self.tables, now);
            }
        }
        if has_news || self.tables.next_change().is_some_and(|change| change <= now) {
            self.resolve().await?;
            self.publish_if_changed().await;
        }
        Ok(())
    }

    /// Takes what is known of backends, and changes the tables if it makes a difference.
    pub(crate) async fn follow_health(&mut self) {
        let health = self.checkers.health();
        if health == self.health {
            return;
        }
        self.health = health;
        self.publish_if_changed().await;
    }

    /// Stops in good order: clients are no longer invited, then nothing is forwarded any more.
    /// Returns the counters as they were at the end.
    pub(crate) async fn leave(mut self) -> String {
        if let Err(error) = self.kernel.set_vips(&BTreeSet::new()).await {
            warn!("cannot withdraw the VIPs: {error}");
        }
        let Self { workers, pump, devices, tables, baselines, peers, .. } = self;
        let counters = workers.stop();
        sleep(LAST_WORDS).await;
        let peers = peers.counters();
        counters::table(&counters, pump.counters(), &devices, &tables, &baselines, peers)
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> String {
        let workers = self.workers.counters();
        let Self { pump, devices, tables, baselines, peers, .. } = self;
        counters::table(workers, pump.counters(), devices, tables, baselines, peers.counters())
    }

    /// The version that was published last.
    pub(crate) fn version(&self) -> u64 {
        self.tables.version
    }

    async fn put_in_force(&mut self) {
        let tables = self.compile();
        self.publish(tables).await;
    }

    /// As [`Self::put_in_force`], if it makes a difference to workers.
    async fn publish_if_changed(&mut self) {
        let tables = self.compile();
        if !tables.decides_like(&self.tables) {
            self.publish(tables).await;
        }
    }

    fn compile(&mut self) -> Tables {
        let Self { config, ports, next_hops, tables, kernel, health, sweeper, memory, .. } = self;
        let idle = sweeper.idle();
        let pools = memory.pools(&config.desired.pools());
        let health = Some(&*health);
        let circumstances =
            Circumstances { ports, next_hops, health, pools, idle, now: memory::now() };
        let mut tables = compile(&config.desired, &circumstances, Some(tables));
        tables.fib = kernel.fib(ports);
        tables
    }

    /// Publishes, and waits until every worker has said that it goes by the new version.
    async fn publish(&mut self, tables: Tables) {
        self.tables = Arc::new(tables);
        self.sweeper.begin();
        self.memory.save(&self.tables);
        self.baselines.update(&self.tables, self.workers.counters());
        let version = self.publisher.publish(&self.tables);
        self.peers.follow(&self.tables);
        debug_assert_eq!(version, self.tables.version, "counted apart");
        self.log_unresolved();
        let deadline = Instant::now() + ACKNOWLEDGE_MAX;
        while self.publisher.in_force() < version {
            if Instant::now() > deadline {
                error!("version {version} is not in force: a worker does not turn");
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        self.publisher.reclaim();
        let services = self.config.desired.services();
        let backends: usize = services.iter().map(|service| service.spec().backends.len()).sum();
        info!(
            "version {version} is in force on every worker: services {}, backends {backends}",
            services.len()
        );
    }

    /// Says which backends take no traffic for want of a next hop, and which do again.
    fn log_unresolved(&mut self) {
        let mut now = BTreeMap::new();
        for service in self.config.desired.services() {
            let spec = service.spec();
            for backend in &spec.backends {
                let key = (spec.name.clone(), backend.address);
                match ways(backend, spec.forward, &self.ports, &self.next_hops) {
                    Err(why) => drop(now.insert(key, why.to_string())),
                    Ok(_) if self.unresolved.contains_key(&key) => {
                        info!("backend {} of service {} has a next hop", key.1, key.0);
                    }
                    Ok(_) => {}
                }
            }
        }
        let before = mem::replace(&mut self.unresolved, now);
        let news = self.unresolved.iter().filter(|(key, why)| before.get(*key) != Some(*why));
        for ((service, address), why) in news.clone().take(UNRESOLVED_SHOWN_MAX) {
            warn!("backend {address} of service {service} takes no traffic: {why}");
        }
        let more = news.count().saturating_sub(UNRESOLVED_SHOWN_MAX);
        if more > 0 {
            warn!("{more} more backends take no traffic");
        }
    }
}

/// All service addresses that the kernel is to have, and those of pools, so that it answers ARP and
/// neighbour discovery for them. A service's prefix is routed here, not assigned.
fn vips(desired: &DesiredState) -> BTreeSet<IpAddr> {
    let specs = || desired.services().iter().map(|service| service.spec());
    let vips = specs().map(|spec| spec.vip).filter(Vip::is_one_address);
    let pools = specs().filter_map(ServiceSpec::pool).flat_map(pool::all_addresses);
    vips.map(|vip| vip.address.addr()).chain(pools).collect()
}

/// Are there services whose answers come through the balancer, or tunnels, of whose errors clients
/// are told?
fn needs_fib(desired: &DesiredState) -> bool {
    let has_news = |forward| !matches!(forward, Forward::L2dsr);
    desired.services().iter().any(|service| has_news(service.spec().forward))
}

/// The backends that the kernel is asked about: those that are wanted, and that may serve still.
fn asked(desired: &DesiredState, tables: &Tables) -> BTreeSet<IpAddr> {
    let services = desired.services().iter();
    let wanted = services.flat_map(|service| &service.spec().backends);
    let known = tables.services.iter().flat_map(|service| service.roster.serving());
    let backends = wanted.chain(known.map(|member| &member.backend));
    backends.filter(|backend| backend.static_hop.is_none()).map(|b| b.address).collect()
}

/// Goes over the tracked flows again and again, a part at a time.
#[derive(Debug, Default)]
struct Sweeper {
    /// The part that comes next.
    part: usize,
    /// Has nothing changed since the first part?
    is_whole: bool,
    /// What this round has found so far: leaving backends without flows.
    found: BTreeSet<(ServiceId, u16)>,
    /// What the last whole round has found.
    idle: BTreeSet<(ServiceId, u16)>,
}

impl Sweeper {
    /// Goes over a part; does it follow that a leaving backend has no flow any more?
    fn sweep(&mut self, tables: &Tables, now: Tick) -> bool {
        let swept = continuity::sweep(tables, (self.part, SWEEP_PARTS), now);
        if self.part == 0 {
            (self.found, self.is_whole) = (swept.idle, true);
        } else {
            self.found.retain(|place| swept.idle.contains(place));
        }
        self.part = (self.part + 1) % SWEEP_PARTS;
        if self.part > 0 || !self.is_whole {
            return false;
        }
        self.idle = mem::take(&mut self.found);
        !self.idle.is_empty()
    }

    /// Other tables: what was found is not known of them.
    fn begin(&mut self) {
        (self.part, self.is_whole) = (0, false);
        self.idle.clear();
    }

    fn idle(&self) -> &BTreeSet<(ServiceId, u16)> {
        &self.idle
    }

    /// Is there a backend that may leave when it has no flows?
    fn is_waiting(tables: &Tables) -> bool {
        let members = tables.services.iter().flat_map(|service| service.roster.serving());
        members.into_iter().any(|member| matches!(member.standing, Standing::Leaving(_)))
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
