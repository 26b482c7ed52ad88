//! [`Kernel`]: the state that is shared with the kernel, kept the same on both sides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use ipnet::IpNet;
use lb_core::tables::fib::Fib;
use lb_core::tables::next_hop::{
    Answer, HOPS_MAX, Hops, NextHop, NextHops, Port, PortId, Resolved, Unresolved,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use tokio::time::Instant;

use super::classes::{self, Classes};
use super::error::KernelError;
use super::interface::{self, Assigned};
use super::links::{self, Links};
use super::neighbours::{self, Neighbours, Station};
use super::netlink::{Netlink, Request};
use super::notices::{Notice, Notices};
use super::reach::Reach;
use super::routes::{self, Route, Routes, Way};
use super::tap::Tap;

/// Stations that the kernel is asked about at once, and how often: 2,000 a second.
const ASKS_MAX: usize = 100;
const ASK_TICK: Duration = Duration::from_millis(50);
/// Besides, clients that were flushed: 400 a second.
const CLIENT_ASKS_MAX: usize = 20;
/// Of more new stations than that, all neighbours are read at once.
const READ_ONE_BY_ONE_MAX: usize = 100;
/// Of more backends without a known route than that, all routes are read first, so that the kernel is asked
/// once for those that have the same. But there may be a million routes: to read a few takes as long as to ask
/// for one.
const ASK_ONE_BY_ONE_MAX: usize = 256;
const READ_WORTH: usize = 8;
/// How often they are read because they have changed meanwhile.
const CLASS_READS_MAX: usize = 4;
/// When one of so many backends has gone, it is looked whose stations are none any more.
const GONE_SHARE: usize = 100;

/// What has become of a port's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterfaceState {
    /// As it should be.
    Up,
    /// An administrator set it down: the kernel neither answers nor has routes through it.
    Down,
    /// Somebody deleted it.
    Gone,
}

/// A port's kernel side.
#[derive(Debug)]
struct KernelPort {
    id: PortId,
    name: String,
    /// Of its interface.
    index: u32,
    /// Its own.
    addresses: Vec<IpNet>,
}

/// The ports' kernel side: their interfaces, the VIPs on them, and the ways to backends.
///
/// To be owned by one task, which calls [`Kernel::set_vips`] and [`Kernel::resolve`] when the
/// configuration changes and whenever [`Kernel::changed`] returns. Of its futures only that of
/// [`Kernel::changed`] may be given up halfway.
pub(crate) struct Kernel {
    netlink: Netlink,
    notices: Notices,
    /// The ports that have a kernel side, in the balancer's order.
    ports: Vec<KernelPort>,
    links: Links,
    routes: Routes,
    neighbours: Neighbours,
    /// The ways to everybody; only while they are wanted.
    reach: Option<Reach>,
    /// The VIPs that we added, each with the index of its interface.
    vips: BTreeMap<IpAddr, u32>,
    /// The backends that [`Self::resolve`] was asked for last, and what it answered.
    asked: OrdSet<IpAddr>,
    answers: NextHops,
    /// Backends that are not asked for any more, and whose stations may still be asked about.
    gone: usize,
    /// How many routes and rules there were when they were last read.
    destinations: usize,
    /// Something has changed that answers go by.
    is_stale: bool,
    /// Notices were lost: what is mirrored has to be asked for anew.
    lost: bool,
    /// [`Self::resolve`] took notices that its caller has to know of otherwise.
    news: bool,
    /// When the kernel may next be asked about stations.
    next_ask: Instant,
}

impl Kernel {
    /// Makes the TAPs of the ports that have a kernel side, and sets them up. All that is made
    /// vanishes with the TAPs.
    ///
    /// # Errors
    /// Nothing is changed if an address is in use on another interface
    /// ([`KernelError::AddressTaken`]) or an interface of a port's name exists; nothing is left
    /// behind in any case.
    pub(crate) async fn start(ports: &[Port]) -> Result<(Self, Vec<(PortId, Tap)>), KernelError> {
        let mut netlink = Netlink::open()?;
        // Before anything is looked at, so that no change is missed.
        let notices = Notices::subscribe()?;
        let ports: Vec<(PortId, &Port)> =
            (0..=u8::MAX).map(PortId).zip(ports).filter(|(_, port)| port.kernel).collect();
        let own = ports.iter().flat_map(|(_, port)| &port.addresses).map(IpNet::addr).collect();
        let assigned = interface::assigned(&mut netlink).await?;
        refuse_taken(&mut netlink, &own, &assigned, &[]).await?;

        let mut taps = Vec::with_capacity(ports.len());
        for (id, port) in &ports {
            taps.push((*id, Tap::open(&port.name)?));
        }
        let mut kernel_ports = Vec::with_capacity(ports.len());
        for (id, port) in ports {
            let index = if_nametoindex(port.name.as_str())
                .map_err(|_| KernelError::InterfaceGone(port.name.clone()))?;
            interface::configure(&mut netlink, port, index).await?;
            let (name, addresses) = (port.name.clone(), port.addresses.clone());
            kernel_ports.push(KernelPort { id, name, index, addresses });
        }
        let mut kernel = Self {
            netlink,
            notices,
            links: Links::new(kernel_ports.iter().map(|port| (port.index, port.id)).collect()),
            ports: kernel_ports,
            routes: Routes::default(),
            neighbours: Neighbours::default(),
            reach: None,
            vips: BTreeMap::new(),
            asked: OrdSet::new(),
            answers: NextHops::new(),
            gone: 0,
            destinations: 0,
            is_stale: false,
            lost: false,
            news: false,
            next_ask: Instant::now(),
        };
        kernel.read_links().await?;
        Ok((kernel, taps))
    }

    /// Makes `vips` the addresses that the kernel answers for, besides the ports' own: each on the
    /// port whose subnet holds it, else on the first port. Those of earlier calls that are not
    /// among them are removed; an empty set withdraws all. Repairs what others removed. An address
    /// that is a port's own is left alone.
    ///
    /// # Errors
    /// Nothing is changed if a VIP is an address of another interface
    /// ([`KernelError::AddressTaken`]). Where the kernel refuses one, the others are in place.
    pub(crate) async fn set_vips(&mut self, vips: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        let assigned = interface::assigned(&mut self.netlink).await?;
        let ours: Vec<u32> = self.ports.iter().map(|port| port.index).collect();
        refuse_taken(&mut self.netlink, vips, &assigned, &ours).await?;
        let present: BTreeSet<(IpAddr, u32)> =
            assigned.iter().map(|it| (it.address, it.index)).collect();
        let wanted = self.place(vips);
        let missing = wanted.iter().filter(|(vip, index)| !present.contains(&(**vip, **index)));
        let missing: Vec<_> = missing.map(|(vip, index)| (*vip, *index)).collect();
        let before = mem::replace(&mut self.vips, wanted);
        let gone: Vec<_> =
            before.into_iter().filter(|(vip, _)| !self.vips.contains_key(vip)).collect();

        let added = self.change_vips("add", &missing, interface::add_vip).await?;
        let removed = self.change_vips("remove", &gone, interface::remove).await?;
        added.or(removed).map_or(Ok(()), Err)
    }

    /// Adds or removes VIPs, each on its interface; gives the first refusal.
    async fn change_vips(
        &mut self,
        verb: &str,
        vips: &[(IpAddr, u32)],
        request: fn(u32, IpNet) -> Request,
    ) -> Result<Option<KernelError>, KernelError> {
        let requests = vips.iter().map(|(vip, index)| request(*index, (*vip).into()));
        let answers = self.netlink.ask_all(requests).await?;
        let refusals = vips.iter().zip(answers).filter_map(|((vip, index), answer)| {
            let name = || {
                let port = self.ports.iter().find(|port| port.index == *index);
                port.map_or_else(String::new, |port| port.name.clone())
            };
            match (verb, answer.err()?) {
                // Somebody else did it meanwhile, or it went with its interface.
                ("add", Errno::EEXIST) | ("remove", Errno::EADDRNOTAVAIL | Errno::ENODEV) => None,
                ("add", Errno::ENODEV) => Some(KernelError::InterfaceGone(name())),
                (_, errno) => {
                    let request = format!("{verb} {vip} on {}", name());
                    Some(KernelError::Refused { request, errno })
                }
            }
        });
        Ok({ refusals }.next())
    }

    /// The ways to `backends`, as the kernel knows them now, in one entry each. Has the kernel
    /// find out MACs that it does not know; [`Self::changed`] says when it has. Looks only at new ones,
    /// if nothing else has changed.
    ///
    /// # Errors
    /// Only if netlink does not work: what is wrong with one backend is in its entry.
    pub(crate) async fn resolve(
        &mut self,
        backends: &OrdSet<IpAddr>,
    ) -> Result<NextHops, KernelError> {
        let (notices, are_all) = self.notices.ready()?;
        self.apply_all(notices);
        if self.lost {
            (self.news, self.is_stale) = (true, true);
            self.lost = !are_all;
            self.read_anew().await?;
        }
        self.read_routes().await?;
        let new = self.ask_for(backends);
        // Until this has gone well.
        let is_stale = mem::replace(&mut self.is_stale, true);
        let mut looked_at = if is_stale { backends.iter().copied().collect() } else { new };
        let is_stale = self.look_up(&mut looked_at, backends).await? || is_stale;

        let mut stations = self.stations(&looked_at);
        if let Some(reach) = &self.reach {
            stations.extend(reach.gateways(&self.links));
        }
        let now = Instant::now();
        if is_stale {
            self.gone = 0;
            self.routes.retain(&looked_at);
            let released = self.neighbours.retain(&stations);
            let requests = released.into_iter().map(neighbours::release);
            self.netlink.ask_all(requests).await?;
        }
        let new = self.neighbours.track(&stations, now);
        let reads_all =
            new.len() > READ_ONE_BY_ONE_MAX || self.reach.as_ref().is_some_and(|it| it.is_new);
        if reads_all {
            let read = self.read_neighbours().await;
            self.or_later(read)?;
            looked_at = backends.iter().copied().collect();
        } else {
            self.read_stations(new).await?;
        }
        self.answer_all(&looked_at);
        self.is_stale = false;
        Ok(self.answers.clone())
    }

    /// Asks for the routes of these that are not known. Of many, looks at all backends instead; has it?
    async fn look_up(
        &mut self,
        looked_at: &mut Vec<IpAddr>,
        backends: &OrdSet<IpAddr>,
    ) -> Result<bool, KernelError> {
        let most = ASK_ONE_BY_ONE_MAX.max(self.destinations / READ_WORTH);
        let unknown = looked_at.iter().filter(|address| !self.routes.has(**address));
        let are_many = unknown.take(most + 1).count() > most;
        let classes = if are_many { self.read_classes().await? } else { None };
        if are_many {
            *looked_at = backends.iter().copied().collect();
        }
        if classes.is_some() {
            self.routes.forget_all();
        }
        let last_of = |address| classes.as_ref().map_or(address, |it| it.last_of(address));
        let missing = self.routes.missing(looked_at, last_of);
        let requests = missing.iter().map(|(first, _)| routes::request(*first));
        let answers = self.netlink.ask_all(requests).await?;
        for (range, answer) in missing.into_iter().zip(answers) {
            self.routes.set(range, answer);
        }
        Ok(are_many)
    }

    /// Which addresses the kernel does not tell apart. `None`, if that is not known for sure. A route that
    /// comes later has a notice, by which what was asked for is forgotten.
    async fn read_classes(&mut self) -> Result<Option<Classes>, KernelError> {
        for _ in 0..CLASS_READS_MAX {
            let mut destinations = Vec::new();
            for request in classes::requests() {
                match self.netlink.dump_as(request, "routes", classes::read).await {
                    Ok(dump) => destinations.extend(dump),
                    Err(KernelError::Unsettled(_) | KernelError::Refused { .. }) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
            }
            self.destinations = destinations.len();
            // While routes go, the kernel may pass over others, and does not say so.
            let (notices, _) = self.notices.ready()?;
            let has_moved = notices.iter().any(Notice::is_about_routes);
            self.apply_all(notices);
            self.news |= self.lost;
            if !has_moved {
                return Ok(Classes::new(destinations));
            }
        }
        Ok(None)
    }

    /// Notes the answers for these, which are in order.
    fn answer_all(&mut self, looked_at: &[IpAddr]) {
        let mut answers = mem::take(&mut self.answers);
        let mut last: Option<Answer> = None;
        for (route, group) in self.routes.groups(looked_at) {
            let alike = if route.is_the_same_way() { group.len() } else { 1 };
            for these in group.chunks(alike) {
                let answer = self.answer(these[0], route);
                let shared =
                    last.filter(|last| **last == answer).unwrap_or_else(|| Arc::new(answer));
                for address in these {
                    if answers.get(address) != Some(&shared) {
                        answers.insert(*address, Arc::clone(&shared));
                    }
                }
                last = Some(shared);
            }
        }
        self.answers = answers;
    }

    /// Notes that these are asked for, and forgets the others; gives the new ones.
    fn ask_for(&mut self, backends: &OrdSet<IpAddr>) -> Vec<IpAddr> {
        let before = mem::replace(&mut self.asked, backends.clone());
        let mut new = Vec::new();
        for change in before.diff(backends) {
            match change {
                DiffItem::Add(address) => new.push(*address),
                DiffItem::Remove(address) => {
                    self.answers.remove(address);
                    self.gone += 1;
                }
            }
        }
        // Others may be reached by the same station: to find out takes a look at all of them.
        self.is_stale |= self.gone * GONE_SHARE > backends.len();
        new
    }

    /// The stations on the ways to these.
    fn stations(&self, backends: &[IpAddr]) -> BTreeSet<neighbours::Key> {
        let mut stations = BTreeSet::new();
        for (route, group) in self.routes.groups(backends) {
            let Route::Ways(ways) = route else { continue };
            for way in ways.iter().filter(|way| self.links.port(way.index).is_some()) {
                match way.gateway {
                    Some(gateway) => drop(stations.insert((way.index, gateway))),
                    None => stations.extend(group.iter().map(|backend| (way.index, *backend))),
                }
            }
        }
        stations
    }

    /// Are the ways to everybody wanted? Then [`Self::resolve`] reads them, too.
    pub(crate) fn want_fib(&mut self, wanted: bool) {
        if wanted {
            self.reach.get_or_insert_with(Reach::new);
        } else {
            self.reach = None;
        }
    }

    /// The ways to any address through `ports`, as of the last [`Self::resolve`] or of a little
    /// earlier: clients come and go all the time, so they are looked at only so often. Empty unless
    /// they are wanted.
    pub(crate) fn fib(&mut self, ports: &[Port]) -> Arc<Fib> {
        let station = |key| match self.neighbours.station(key) {
            Station::At(mac) => Some(mac),
            Station::Silent | Station::Unknown => None,
        };
        let reach = self.reach.as_mut();
        reach.map(|reach| reach.fib(&self.links, ports, station)).unwrap_or_default()
    }

    /// Has a gateway of the ways to everybody neither been found nor found silent yet?
    pub(crate) fn awaits_gateways(&self) -> bool {
        let mut gateways = self.reach.iter().flat_map(|reach| reach.gateways(&self.links));
        gateways.any(|key| self.neighbours.station(key) == Station::Unknown)
    }

    /// Returns when [`Self::resolve`] or [`Self::fib`] could give another answer, when an address
    /// is gone from an interface ([`Self::set_vips`] repairs it if it was a VIP), or when
    /// [`Self::interfaces`] has news. Changes come in swarms: wait some milliseconds before
    /// looking. Cancel-safe; has the kernel probe stations while it waits, so keep it awaited.
    ///
    /// # Errors
    /// If netlink does not work.
    pub(crate) async fn changed(&mut self) -> Result<(), KernelError> {
        if mem::take(&mut self.news) {
            return Ok(());
        }
        loop {
            let is_client_doubtful =
                self.reach.as_ref().is_some_and(|it| it.clients.has_doubtful());
            let due =
                if is_client_doubtful { Some(self.next_ask) } else { self.neighbours.next_due() };
            let ask_at = due.map(|due| due.max(self.next_ask));
            let reach_at = self.reach.as_ref().and_then(Reach::due);
            tokio::select! {
                notices = self.notices.next() => {
                    if self.apply_all(notices?) {
                        self.news = false;
                        return Ok(());
                    }
                }
                () = time(ask_at) => self.ask().await?,
                () = time(reach_at) => return Ok(()),
            }
        }
    }

    /// What has become of the ports' interfaces, in the order of the ports.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = (PortId, InterfaceState)> {
        self.ports.iter().map(|port| {
            let state = match self.links.get(port.index) {
                None => InterfaceState::Gone,
                Some(link) if link.up => InterfaceState::Up,
                Some(_) => InterfaceState::Down,
            };
            (port.id, state)
        })
    }

    /// Takes notices; does one concern more than the ways to clients?
    fn apply_all(&mut self, notices: Vec<Notice>) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for notice in notices {
            changed |= self.apply(notice, now);
        }
        changed
    }

    fn apply(&mut self, notice: Notice, now: Instant) -> bool {
        if let Some(reach) = &mut self.reach {
            match &notice {
                Notice::Neighbour(message) => reach.learn(message, &self.links),
                Notice::NeighbourGone(message) => reach.forget(message),
                _ => reach.routes_are_stale = true,
            }
        }
        let changed = match notice {
            Notice::Link(index, link) => self.links.set(index, link) && self.forget_routes(),
            Notice::LinkGone(index) => self.links.remove(index) && self.forget_routes(),
            Notice::Neighbour(message) => self.neighbours.set(&message, now),
            Notice::NeighbourGone(message) => self.neighbours.remove(&message, now),
            Notice::Routes(prefix) => self.routes.forget(prefix),
            Notice::EveryRoute => self.routes.forget_all(),
            Notice::AddressGone => self.forget_routes(),
            Notice::Lost => {
                tracing::debug!("netlink notices were lost: reading all anew");
                self.lost = true;
                true
            }
        };
        // Gateways are among the neighbours.
        self.reach.iter_mut().for_each(|reach| reach.fib_is_stale |= changed);
        self.is_stale |= changed;
        changed
    }

    /// With a link or an address, the kernel drops routes without further notice.
    fn forget_routes(&mut self) -> bool {
        self.routes.forget_all();
        self.news = true;
        true
    }

    /// Asks about the stations whose time has come.
    async fn ask(&mut self) -> Result<(), KernelError> {
        let now = Instant::now();
        self.next_ask = now + ASK_TICK;
        let keys = self.neighbours.take_due(now, ASKS_MAX);
        let requests = keys.iter().copied().map(neighbours::ask);
        let answers = self.netlink.ask_all(requests).await?;
        for ((index, address), answer) in keys.into_iter().zip(answers) {
            if let Err(errno) = answer {
                let interface = self.links.name(index);
                tracing::warn!("cannot have {interface} look for {address}: {}", errno.desc());
            }
        }
        let clients = self.reach.as_mut().map(|it| it.clients.take_doubtful(CLIENT_ASKS_MAX));
        let requests = clients.into_iter().flatten().map(neighbours::ask_once);
        // Where the kernel has no room for one, what we know of it holds.
        self.netlink.ask_all(requests).await?;
        Ok(())
    }

    /// Reads the routes to everybody, if it is time to.
    async fn read_routes(&mut self) -> Result<(), KernelError> {
        let Some(reach) = &mut self.reach else { return Ok(()) };
        if !reach.wants_routes(Instant::now()) {
            return Ok(());
        }
        match self.netlink.dump(Reach::request(), "routes").await {
            Ok(dump) => {
                reach.replace_routes(&dump, &self.links);
                self.is_stale = true; // gateways may not be asked about any more
            }
            Err(KernelError::Unsettled(_)) => {} // and so still stale
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notices were lost: reads all that is mirrored.
    async fn read_anew(&mut self) -> Result<(), KernelError> {
        self.routes.forget_all();
        let read = self.read_links().await;
        self.or_later(read)?;
        let read = self.read_neighbours().await;
        self.or_later(read)?;
        self.reach.iter_mut().for_each(|reach| reach.routes_are_stale = true);
        Ok(())
    }

    /// A table that did not stand still is read at the next opportunity. What is known of it holds.
    fn or_later(&mut self, read: Result<(), KernelError>) -> Result<(), KernelError> {
        match read {
            Err(KernelError::Unsettled(what)) => {
                tracing::debug!("the kernel's {what} changed while they were read");
                (self.lost, self.news) = (true, true);
                Ok(())
            }
            other => other,
        }
    }

    async fn read_links(&mut self) -> Result<(), KernelError> {
        self.links.replace(&self.netlink.dump(Links::request(), "interfaces").await?);
        Ok(())
    }

    async fn read_neighbours(&mut self) -> Result<(), KernelError> {
        let dump = self.netlink.dump(Neighbours::request(), "neighbours").await?;
        self.neighbours.replace(&dump, Instant::now());
        if let Some(reach) = &mut self.reach {
            reach.learn_all(&dump, &self.links);
            reach.fib_is_stale = true; // gateways may have become known
        }
        Ok(())
    }

    /// Reads what the kernel knows of single stations.
    async fn read_stations(&mut self, stations: Vec<neighbours::Key>) -> Result<(), KernelError> {
        let requests = stations.into_iter().map(neighbours::look);
        let now = Instant::now();
        // Most are not known yet, and refused.
        for message in self.netlink.ask_all(requests).await?.into_iter().flatten().flatten() {
            if let RouteNetlinkMessage::NewNeighbour(message) = message {
                self.neighbours.set(&message, now);
            }
        }
        Ok(())
    }

    /// The interface that each VIP belongs on.
    fn place(&self, vips: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, u32> {
        let own: BTreeSet<IpAddr> =
            self.ports.iter().flat_map(|port| &port.addresses).map(IpNet::addr).collect();
        let place = |vip: &IpAddr| {
            let on_link = |port: &&KernelPort| port.addresses.iter().any(|net| net.contains(vip));
            let port = self.ports.iter().find(on_link).or(self.ports.first())?;
            Some((*vip, port.index))
        };
        vips.difference(&own).filter_map(place).collect()
    }

    fn answer(&self, backend: IpAddr, route: &Route) -> Result<Resolved, Unresolved> {
        let ways = match route {
            Route::Ways(ways) => ways,
            Route::Local => return Err(Unresolved::Local),
            Route::None => return Err(Unresolved::NoRoute),
        };
        let mut found = BTreeMap::new();
        let mut reason = Unresolved::NoRoute;
        for way in ways {
            match self.hop(backend, way) {
                Ok(hop) => {
                    found.entry(hop).or_insert(way.gateway);
                }
                Err(why) => reason = why,
            }
        }
        let hops: Hops = found.keys().copied().take(HOPS_MAX).collect();
        if hops.is_empty() {
            return Err(reason);
        }
        let gateway = found.into_values().take(HOPS_MAX).flatten().next();
        Ok(Resolved { hops, gateway })
    }

    fn hop(&self, backend: IpAddr, way: &Way) -> Result<NextHop, Unresolved> {
        let name = || self.links.name(way.index);
        let Some((port, vlan)) = self.links.port(way.index) else {
            return Err(Unresolved::ForeignInterface(name()));
        };
        let address = way.gateway.unwrap_or(backend);
        match self.neighbours.station((way.index, address)) {
            Station::At(mac) => Ok(NextHop { port, mac, vlan }),
            Station::Silent => Err(Unresolved::NoNeighbour(address, name())),
            Station::Unknown => Err(Unresolved::Unknown),
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// That point in time; without one, never.
async fn time(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Fails if one of `wanted` is an address of an interface that is not among `ours`. Link-local
/// addresses are each interface's own.
async fn refuse_taken(
    netlink: &mut Netlink,
    wanted: &BTreeSet<IpAddr>,
    assigned: &[Assigned],
    ours: &[u32],
) -> Result<(), KernelError> {
    let link_local = |address: IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let taken = assigned.iter().find(|it| {
        wanted.contains(&it.address) && !link_local(it.address) && !ours.contains(&it.index)
    });
    let Some(taken) = taken else { return Ok(()) };
    let links = links::from_dump(&netlink.dump(Links::request(), "interfaces").await?);
    let name = links.get(&taken.index).map(|link| link.name.clone());
    Err(KernelError::AddressTaken {
        address: taken.address,
        prefix_len: taken.prefix_len,
        interface: name.unwrap_or_else(|| format!("interface {}", taken.index)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::block_on_in_namespace;
    use super::*;

    #[test]
    fn a_table_that_never_stands_still_is_read_later() {
        block_on_in_namespace(async || {
            let (mut kernel, _taps) = Kernel::start(&[]).await.unwrap();
            kernel.or_later(Err(KernelError::Unsettled("routes"))).unwrap();
            kernel.changed().await.unwrap();
            kernel.resolve(&OrdSet::new()).await.unwrap();
            assert!(!kernel.lost, "read");
        });
    }
}
