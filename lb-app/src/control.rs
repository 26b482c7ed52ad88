//! The one task that owns what is wanted and what is true, and makes tables of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dpdk::{Port, Started};
use lb_config::Config;
use lb_core::model::{DesiredState, Forward, Health, ServiceSpec, Vip};
use lb_core::pool;
use lb_core::publish::Publisher;
use lb_core::tables::Tables;
use lb_core::tables::next_hop::{self, NextHops};
use rayon::ThreadPool;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::warn;

mod asked;
mod difference;
mod drains;
mod in_force;
mod sources;
mod start;
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
use crate::health::Checkers;
use crate::kernel::{Guard, InterfaceState, Kernel, KernelError, Pump};
use crate::memory::{self, Memory};
use crate::peers::{ListenError, Peers};
use crate::source::feed::Feeds;
use crate::source::{Applied, Offer, Overlaps, State, Wanted};
use crate::workers::Workers;

/// How long peers are still told of flows when nothing is forwarded any more.
const LAST_WORDS: Duration = Duration::from_millis(20);
/// Changes of the network come in swarms: how long one is given to be over.
const SWARM: Duration = Duration::from_millis(20);

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
    /// On all CPUs, those of workers too: until services are in force, workers have nothing to do.
    makers: Option<ThreadPool>,
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
