//! The one task that owns what is wanted and what is true, and makes tables of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dpdk::{Port, Started};
use lb_config::Config;
use lb_core::model::{DesiredState, Forward, ServiceSpec, Vip};
use lb_core::pool;
use lb_core::publish::{Publisher, publication};
use lb_core::tables::Tables;
use lb_core::tables::compile::{compile, ways};
use lb_core::tables::next_hop::{self, NextHops};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::counters::{self, Baselines};
use crate::dataplane::{Dataplane, DataplaneError, KernelQueues};
use crate::kernel::{Exchange, Guard, GuardError, InterfaceState, Kernel, KernelError, Pump, Tap};
use crate::workers::{Settings, WorkerError, Workers};

/// How long the first tables wait for the next hops of all backends, and for gateways to clients.
const FIRST_RESOLVE_MAX: Duration = Duration::from_secs(1);
/// Changes of the network come in swarms: how long one is given to be over.
const SWARM: Duration = Duration::from_millis(20);
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
}

/// Why a new configuration is not taken. What runs, runs on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error("[dataplane] or a [[port]] has changed; that takes a restart")]
    NeedsRestart,
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A running balancer. In the order in which its parts are stopped.
pub(crate) struct Control {
    workers: Workers,
    pump: Pump,
    devices: Vec<(String, Port<Started>)>,
    kernel: Kernel,
    publisher: Publisher<Tables>,
    tables: Arc<Tables>,
    ports: Arc<[next_hop::Port]>,
    config: Config,
    next_hops: NextHops,
    /// Why backends take no traffic, by service and address, as last logged.
    unresolved: BTreeMap<(String, IpAddr), String>,
    baselines: Baselines,
    /// Last, so that the kernel's stack wakes up when its addresses are gone.
    _guards: Vec<Guard>,
}

impl Control {
    /// Starts everything. Services take traffic when this returns.
    pub(crate) async fn start(config: Config) -> Result<Self, StartError> {
        let mut guards = Vec::new();
        for port in &config.ports {
            let guard = Guard::for_device(&port.device)
                .map_err(|error| StartError::Guard { name: port.name.clone(), error })?;
            guards.extend(guard);
        }
        let Dataplane { eal, pool, ports, devices, cpus, queues, kernel: kernel_queues } =
            Dataplane::start(&config)?;
        let (kernel, taps) = Kernel::start(&ports).await?;
        let ports: Arc<[next_hop::Port]> = ports.into();
        let nothing = DesiredState::empty(config.desired.hash_key());
        let tables = Arc::new(compile(&nothing, &ports, &NextHops::new(), None));
        let (publisher, subscribers) = publication(&tables, cpus.len());
        let settings = Settings {
            idle: config.dataplane.idle,
            punts_per_second: config.dataplane.punts_per_second,
        };
        let workers = Workers::start(eal, &cpus, queues, subscribers, settings)?;
        let exchanges = exchanges(taps, kernel_queues);
        let pump = Pump::start(exchanges, pool, settings.punts_per_second)?;
        let names = ports.iter().map(|port| port.name.clone());
        let mut control = Self {
            workers,
            pump,
            devices: names.zip(devices).collect(),
            kernel,
            publisher,
            tables,
            ports,
            config,
            next_hops: NextHops::new(),
            unresolved: BTreeMap::new(),
            baselines: Baselines::default(),
            _guards: guards,
        };
        control.resolve_all().await?;
        control.put_in_force().await;
        // Clients are invited only now.
        control.kernel.set_vips(&vips(&control.config.desired)).await?;
        Ok(control)
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
        self.next_hops = self.kernel.resolve(&asked(desired)).await?;
        Ok(())
    }

    /// Takes a new configuration. All of it is in force when this returns, or nothing of it.
    pub(crate) async fn reload(&mut self, config: Config) -> Result<(), ReloadError> {
        if (&config.dataplane, &config.ports) != (&self.config.dataplane, &self.config.ports) {
            return Err(ReloadError::NeedsRestart);
        }
        // New VIPs first, since they may be refused; old ones last, since they are in use.
        let new = vips(&config.desired);
        let both = new.union(&vips(&self.config.desired)).copied().collect();
        self.kernel.set_vips(&both).await?;
        self.config = config;
        self.resolve().await?;
        self.put_in_force().await;
        self.kernel.set_vips(&new).await?;
        Ok(())
    }

    /// Returns when the network has changed; see [`Kernel::changed`].
    pub(crate) async fn network_changed(&mut self) -> Result<(), KernelError> {
        self.kernel.changed().await
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
        let tables = self.compile();
        if !tables.decides_like(&self.tables) {
            self.publish(tables).await;
        }
        Ok(())
    }

    /// Stops in good order: clients are no longer invited, then nothing is forwarded any more.
    /// Returns the counters as they were at the end.
    pub(crate) async fn leave(mut self) -> String {
        if let Err(error) = self.kernel.set_vips(&BTreeSet::new()).await {
            warn!("cannot withdraw the VIPs: {error}");
        }
        let Self { workers, pump, devices, tables, baselines, .. } = self;
        let counters = workers.stop();
        counters::table(&counters, pump.counters(), &devices, &tables, &baselines)
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> String {
        let workers = self.workers.counters();
        counters::table(workers, self.pump.counters(), &self.devices, &self.tables, &self.baselines)
    }

    /// The version that was published last.
    pub(crate) fn version(&self) -> u64 {
        self.tables.version
    }

    async fn put_in_force(&mut self) {
        let tables = self.compile();
        self.publish(tables).await;
    }

    fn compile(&mut self) -> Tables {
        let Self { config, ports, next_hops, tables, kernel, .. } = self;
        let mut tables = compile(&config.desired, ports, next_hops, Some(tables));
        tables.fib = kernel.fib(ports);
        tables
    }

    /// Publishes, and waits until every worker has said that it goes by the new version.
    async fn publish(&mut self, tables: Tables) {
        self.tables = Arc::new(tables);
        self.baselines.update(&self.tables, self.workers.counters());
        let version = self.publisher.publish(&self.tables);
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
        let before = std::mem::replace(&mut self.unresolved, now);
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

/// The backends that the kernel is asked about.
fn asked(desired: &DesiredState) -> BTreeSet<IpAddr> {
    let services = desired.services().iter();
    let backends = services.flat_map(|service| &service.spec().backends);
    backends.filter(|backend| backend.static_hop.is_none()).map(|b| b.address).collect()
}

/// Each TAP with its port's queues.
fn exchanges(
    taps: Vec<(next_hop::PortId, Tap)>,
    mut queues: Vec<Option<KernelQueues>>,
) -> Vec<Exchange> {
    taps.into_iter()
        .filter_map(|(id, tap)| {
            let KernelQueues { to_kernel, from_kernel } = queues.get_mut(id.index())?.take()?;
            Some(Exchange { tap, to_kernel, from_kernel })
        })
        .collect()
}
