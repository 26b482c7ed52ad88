//! The one task that owns what is wanted and what is true, and makes tables of it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dpdk::{Port, Started};
use lb_config::Config;
use lb_core::continuity::{self, Remembered};
use lb_core::model::{DesiredState, Forward, Health, Service, ServiceSpec, Vip};
use lb_core::pool;
use lb_core::publish::{Publisher, publication};
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{self, NextHops};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

mod asked;
mod difference;
mod drains;
mod sources;
mod sweeper;
mod unresolved;

use asked::Asked;
use difference::Difference;
use drains::DrainsFile;
pub(crate) use drains::{DrainError, Drains, Which};
pub(crate) use sweeper::FlowCounts;
use sweeper::{News, Sweeper};
use unresolved::Unresolved;

use crate::api::{self, View, proto};
use crate::counters::{self, Baselines};
use crate::dataplane::{Dataplane, DataplaneError, KernelQueues};
use crate::health::Checkers;
use crate::kernel::{Exchange, Guard, GuardError, InterfaceState, Kernel, KernelError, Pump, Tap};
use crate::memory::{self, Memory, MemoryError};
use crate::peers::{ListenError, Peers};
use crate::source::feed::Feeds;
use crate::source::{Applied, Offer, Overlaps, State, Wanted};
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
/// Workers acknowledge a version at once, unless they sleep: so long is a turn, and so many are waited for
/// with nothing else done, because the runtime's sleep takes a millisecond or two.
const TURN: Duration = Duration::from_micros(50);
const TURNS_MAX: usize = 20;
/// How long workers may take to acknowledge a version before somebody is told.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(2);

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
    Thread(#[from] std::io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Peers(#[from] ListenError),
    #[error(transparent)]
    Overlaps(#[from] Overlaps),
    #[error(transparent)]
    Privileges(#[from] dpdk::PrivilegesError),
}

/// Why a new configuration is not taken. What runs, runs on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("[dataplane] or a [[port]] has changed; that takes a restart")]
    NeedsRestart,
    #[error("[api] has changed; that takes a restart")]
    OtherApi,
    #[error("[feed] has changed; that takes a restart")]
    OtherFeeds,
    #[error("`hash_key` has changed; that takes a restart, and moves most flows to other backends")]
    OtherKey,
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Peers(#[from] ListenError),
    #[error(transparent)]
    Overlaps(#[from] Overlaps),
}

/// Why a change that was asked for is not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Drain(#[from] DrainError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What is true and no longer as it was.
#[derive(Debug)]
pub(crate) enum Change {
    /// Links, addresses, routes or neighbours.
    Network,
    /// Which backends have failed their health checks.
    Health,
    /// What a feed wants.
    Wanted(Offer),
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
    /// As the file has it; its services are in `wanted`.
    config: Arc<Config>,
    /// What the sources want.
    wanted: Arc<Wanted>,
    applied: Applied,
    feeds: Feeds,
    /// Who was drained by command, and where that is remembered.
    drains: Arc<Drains>,
    drains_file: DrainsFile,
    /// What follows from both.
    desired: DesiredState,
    /// The backends that the kernel is asked about, and what it says.
    asked: Asked,
    next_hops: NextHops,
    checkers: Checkers,
    peers: Peers,
    /// Which backends may not serve, as last looked at.
    health: Health,
    unresolved: Unresolved,
    baselines: Arc<Baselines>,
    /// What the API is shown.
    shown: watch::Sender<Option<Arc<View>>>,
    /// The CPU of each worker.
    cpus: Vec<usize>,
    /// Last, so that the kernel's stack wakes up when its addresses are gone.
    _guards: Vec<Guard>,
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
        let (memory, before) = Memory::open(state_dir, *flows_max, &empty)?;
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
        control.put_in_force(Instant::now()).await;
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

    /// Asks for the ways to backends, and to clients if anything but answers about their own packets
    /// goes there.
    async fn resolve(&mut self) -> Result<(), KernelError> {
        let asked = self.asked.follow(&self.desired, &self.tables);
        self.next_hops = self.kernel.resolve(asked).await?;
        self.checkers.follow_ways(&self.desired, &self.ports, &self.next_hops);
        Ok(())
    }

    /// Takes a new configuration. All of it is in force when this returns, or nothing of it.
    pub(crate) async fn reload(&mut self, config: Config) -> Result<(), ReloadError> {
        takes_no_restart(&self.config, &config)?;
        let (wanted, drains, desired) = self.with(State::of_file(&config))?;
        let peers = self.peers.prepare(config.site.peering.as_ref())?;
        let difference = self.prepare(&desired).await?;
        if config.site.peering != self.config.site.peering {
            self.peers.talk(peers);
        }
        self.config = Arc::new(config);
        self.wanted = Arc::new(wanted);
        self.follow_drains(drains);
        self.want(desired, difference).await?;
        Ok(())
    }

    /// Gives backends no new flows, or (not `drain`) gives them some again. The services that have them.
    pub(crate) async fn drain(
        &mut self,
        which: &Which,
        drain: bool,
    ) -> Result<Vec<String>, ChangeError> {
        let wanted = self.wanted.desired();
        let change = if drain { Drains::with } else { Drains::without };
        let (drains, services) = change(&self.drains, which, wanted)?;
        let desired = drains.applied_to(wanted);
        let difference = self.prepare(&desired).await?;
        self.follow_drains(drains);
        self.want(desired, difference).await?;
        Ok(services)
    }

    fn follow_drains(&mut self, drains: Drains) {
        if drains != *self.drains {
            self.drains_file.write(&drains);
            self.drains = Arc::new(drains);
        }
    }

    /// Does what of a change may be refused: new VIPs first; old ones go last, since they are in use.
    async fn prepare(&mut self, desired: &DesiredState) -> Result<Difference, KernelError> {
        let difference = Difference::between(&self.desired, desired);
        if difference.checks {
            self.checkers.prepare(desired, &self.ports)?;
        }
        if difference.addresses {
            let both = vips(desired).union(&vips(&self.desired)).copied().collect();
            self.kernel.set_vips(&both).await?;
        }
        Ok(difference)
    }

    /// Puts what was prepared in force.
    async fn want(
        &mut self,
        desired: DesiredState,
        difference: Difference,
    ) -> Result<(), KernelError> {
        self.desired = desired;
        if difference.checks {
            self.checkers.check(&self.desired);
        }
        if difference.modes {
            self.kernel.want_fib(needs_fib(&self.desired));
        }
        self.health = self.known_health();
        self.resolve().await?;
        self.put_in_force(difference.since).await;
        if difference.addresses {
            self.kernel.set_vips(&vips(&self.desired)).await?;
        }
        Ok(())
    }

    /// Returns when the world has changed, or what is wanted of it; see [`Kernel::changed`],
    /// [`Checkers::changed`], [`Feeds::next`].
    pub(crate) async fn changed(&mut self) -> Result<Change, KernelError> {
        tokio::select! {
            changed = self.kernel.changed() => changed.map(|()| Change::Network),
            () = self.checkers.changed() => Ok(Change::Health),
            offer = self.feeds.next() => Ok(Change::Wanted(offer)),
        }
    }

    /// Looks at the network again, and changes the tables if it makes a difference.
    pub(crate) async fn follow_network(&mut self) -> Result<(), KernelError> {
        sleep(SWARM).await;
        let since = Instant::now();
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
        if let Err(error) = self.kernel.set_vips(&vips(&self.desired)).await {
            warn!("{error}");
        }
        self.resolve().await?;
        self.publish_if_changed(since).await;
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
        let (since, now) = (Instant::now(), memory::now());
        let mut news = News::default();
        if self.next_sweep <= Instant::now() {
            self.next_sweep = Instant::now() + sweeper::PAUSE;
            self.memory.note_alive();
            if self.sweeper.has_work(&self.tables) {
                news = self.sweeper.sweep(&self.tables, now);
            }
        }
        if news.has_idle || self.tables.next_change().is_some_and(|change| change <= now) {
            self.resolve().await?;
            self.publish_if_changed(since).await;
        } else if news.has_counted {
            self.show();
        }
        Ok(())
    }

    /// Who has failed: the checks have found it, or their source says so.
    fn known_health(&mut self) -> Health {
        self.checkers.health().and(&self.wanted.failed())
    }

    /// Takes what is known of backends, and changes the tables if it makes a difference.
    pub(crate) async fn follow_health(&mut self) {
        let health = self.known_health();
        if health == self.health {
            return;
        }
        self.health = health;
        self.publish_if_changed(Instant::now()).await;
    }

    /// Stops in good order: clients are no longer invited, then nothing is forwarded any more.
    /// Returns the counters as they were at the end.
    pub(crate) async fn leave(mut self) -> String {
        if let Err(error) = self.kernel.set_vips(&BTreeSet::new()).await {
            warn!("cannot withdraw the VIPs: {error}");
        }
        let Self { workers, pump, devices, tables, baselines, peers, feeds, .. } = self;
        let counters = workers.stop();
        sleep(LAST_WORDS).await;
        let (peers, feeds) = (peers.counters(), feeds.standings());
        counters::table(&counters, pump.counters(), &devices, &tables, &baselines, peers, feeds)
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> String {
        let workers = self.workers.counters();
        let Self { pump, devices, tables, baselines, peers, feeds, .. } = self;
        let (peers, feeds) = (peers.counters(), feeds.standings());
        counters::table(workers, pump.counters(), devices, tables, baselines, peers, feeds)
    }

    /// The version that was published last.
    pub(crate) fn version(&self) -> u64 {
        self.tables.version
    }

    /// The version that every worker goes by.
    pub(crate) fn in_force(&self) -> u64 {
        // Before the first, no version is anybody's.
        self.publisher.in_force().min(self.tables.version)
    }

    /// The ports, and what they have counted, for the API.
    pub(crate) fn ports(&self) -> Vec<proto::Port> {
        let devices = self.devices.iter().map(|(_, device)| device);
        self.ports.iter().zip(devices).map(|(port, device)| api::port(port, device)).collect()
    }

    /// Shows the API how things are.
    fn show(&self) {
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
    async fn put_in_force(&mut self, since: Instant) {
        let tables = self.compile();
        self.publish(tables, since).await;
    }

    /// As [`Self::put_in_force`], if it makes a difference to workers.
    async fn publish_if_changed(&mut self, since: Instant) {
        let tables = self.compile();
        if tables.decides_like(&self.tables) {
            self.show(); // why a backend takes no flows may have changed
        } else {
            self.publish(tables, since).await;
        }
    }

    fn compile(&mut self) -> Tables {
        let Self { desired, ports, next_hops, tables, kernel, health, sweeper, memory, .. } = self;
        let idle = sweeper.idle();
        let pools = memory.pools(&desired.pools());
        let health = Some(&*health);
        let circumstances =
            Circumstances { ports, next_hops, health, pools, idle, now: memory::now() };
        let mut tables = compile(desired, &circumstances, Some(tables));
        tables.fib = kernel.fib(ports);
        tables
    }

    /// Publishes, and waits until every worker has said that it goes by the new version.
    async fn publish(&mut self, tables: Tables, since: Instant) {
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

/// Can a balancer go from one configuration to the other while it runs?
pub(crate) fn takes_no_restart(old: &Config, new: &Config) -> Result<(), ReloadError> {
    if (&new.dataplane, &new.ports) != (&old.dataplane, &old.ports) {
        return Err(ReloadError::NeedsRestart);
    }
    if new.api != old.api {
        return Err(ReloadError::OtherApi);
    }
    if new.feeds != old.feeds {
        return Err(ReloadError::OtherFeeds);
    }
    if new.desired.hash_key() != old.desired.hash_key() {
        return Err(ReloadError::OtherKey);
    }
    Ok(())
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
