//! Checks through services: to a service's address, and to one backend as packets of clients go there.
//!
//! Their sockets are in a [`CheckNet`]. A packet from there is known by its socket's address, gets the
//! form that the service's flows have on their way to the backend, and leaves by a port. A backend
//! answers to the balancer's address from the service's; nobody else does, since the machine has that
//! one itself. Such packets are taken out of what goes to the kernel.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ipnet::IpNet;
use lb_core::burst::{Burst, Fate, WorkerId};
use lb_core::counters::Counters;
use lb_core::model::{DesiredState, Service, Via};
use lb_core::pipeline;
use lb_core::sim::SimFrame;
use lb_core::state::{Settings, State};
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{NextHops, Port, PortId};
use lb_core::tuple::Tuple;
use lb_core::wire::ethernet::{self, MacAddr};
use lb_core::wire::ipv4::Ipv4;
use lb_core::wire::ipv6::Ipv6;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::failure::Failure;
use super::target::Id;
use crate::kernel::{CheckNet, KernelError, Tap};

/// Empty where no such network could be made.
pub(crate) type ThroughCell = Arc<OnceLock<Arc<Through>>>;

/// The network of checks through services, and the ways from there to backends.
#[derive(Debug)]
pub(crate) struct Through {
    net: CheckNet,
    ways: watch::Sender<Arc<Ways>>,
    /// Whom a socket's packets are for, by protocol and address. Never removed: the last packets come
    /// when the socket is closed. There are not more than ports.
    sockets: Mutex<HashMap<(u8, SocketAddr), Id>>,
}

/// The ways to the backends of services that are checked so.
#[derive(Debug)]
struct Ways {
    /// Of these services only; and as if all backends were healthy, since the others are asked too.
    tables: Tables,
    of: HashMap<Id, Way>,
    /// The addresses of these services.
    vips: HashSet<IpAddr>,
    /// What this was made from, besides services.
    next_hops: NextHops,
}

/// The way to a backend.
#[derive(Clone, Copy, Debug)]
struct Way {
    service: u32,
    backend: u16,
    /// Where it answers to: an address of the port that its packets leave by, else of any.
    from: IpAddr,
}

/// Is a service of `desired` checked so?
pub(super) fn is_wanted(desired: &DesiredState) -> bool {
    desired.services().iter().any(|service| is_checked_so(service))
}

fn is_checked_so(service: &Service) -> bool {
    service.spec().health.as_ref().is_some_and(|check| check.via == Via::Service)
}

impl Through {
    /// A network with the addresses of `ports`, and no ways yet.
    pub(super) fn open(desired: &DesiredState, ports: &Arc<[Port]>) -> Result<Self, KernelError> {
        let own = ports.iter().filter(|port| port.kernel).flat_map(|port| &port.addresses);
        let net = CheckNet::open(own.map(IpNet::addr).collect())?;
        let nothing = DesiredState::empty(desired.hash_key());
        let ways = Ways::new(&nothing, ports, &NextHops::new(), None);
        Ok(Self { net, ways: watch::Sender::new(Arc::new(ways)), sockets: Mutex::default() })
    }

    /// These are the services and the next hops now.
    pub(super) fn follow(&self, desired: &DesiredState, ports: &Arc<[Port]>, next_hops: &NextHops) {
        let before = Arc::clone(&self.ways.borrow());
        let checked = desired.filtered(is_checked_so);
        // Of other services nothing is kept, nor is any backend that has left.
        let known = &before.tables.services;
        let mut pairs = known.iter().zip(checked.services());
        let is_same = known.len() == checked.services().len()
            && pairs.all(|(table, service)| Arc::ptr_eq(&table.source, service));
        if is_same && before.next_hops == *next_hops {
            return;
        }
        let ways = Ways::new(&checked, ports, next_hops, is_same.then_some(&before.tables));
        self.ways.send_replace(Arc::new(ways));
    }

    /// Where checks run whose sockets are in that network.
    pub(super) fn runtime(&self) -> &Handle {
        self.net.runtime()
    }

    /// Where a check of a backend comes from. Waits until there is a way there.
    pub(super) async fn source<'a>(&'a self, id: &'a Id) -> Result<Source<'a>, Failure> {
        let mut ways = self.ways.subscribe();
        let known = ways.wait_for(|ways| ways.of.contains_key(id)).await;
        let known = known.ok().and_then(|ways| ways.of.get(id).map(|way| way.from));
        // It does not end, since we are here.
        let address = known.ok_or_else(|| Failure::Ours(io::ErrorKind::NotConnected.into()))?;
        Ok(Source { through: self, id, address })
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<(u8, SocketAddr), Id>> {
        // Whoever panicked did so between two whole changes.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way_of(&self, tuple: &Tuple, ways: &Ways) -> Option<Way> {
        let address = IpAddr::from(tuple.src).to_canonical();
        let local = SocketAddr::new(address, tuple.src_port());
        ways.of.get(self.sockets().get(&(tuple.protocol, local))?).copied()
    }
}

/// Where the packets of a check come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    through: &'a Through,
    id: &'a Id,
    address: IpAddr,
}

impl Source<'_> {
    /// What a socket is to be bound to.
    pub(super) fn address(&self) -> SocketAddr {
        (self.address, 0).into()
    }

    /// The socket is at `local` now, and about to send.
    pub(super) fn announce(&self, protocol: u8, local: SocketAddr) {
        self.through.sockets().insert((protocol, local), self.id.clone());
    }
}

impl Ways {
    fn new(
        desired: &DesiredState,
        ports: &Arc<[Port]>,
        next_hops: &NextHops,
        before: Option<&Tables>,
    ) -> Self {
        let tables = compile(desired, &Circumstances::new(ports, next_hops), before);
        let mut of = HashMap::new();
        for (place, table) in (0..).zip(&tables.services) {
            let spec = table.source.spec();
            let service: Arc<str> = spec.name.as_str().into();
            let is_ipv6 = spec.vip.address.addr().is_ipv6();
            for ((member, entry), backend) in
                table.roster.members().iter().zip(&*table.backends).zip(0..)
            {
                let (Some(member), Some(hop)) = (member, entry.hops().first()) else { continue };
                if let Some(from) = source(ports, hop.out, is_ipv6) {
                    let (address, port) = (member.backend.address, member.backend.port);
                    let id = Id { service: Arc::clone(&service), address, port };
                    of.insert(id, Way { service: place, backend, from });
                }
            }
        }
        let vips = desired.services().iter().map(|service| service.spec().vip.address.addr());
        let vips = vips.collect();
        Self { tables, of, vips, next_hops: next_hops.clone() }
    }
}

/// An address of the port that a packet leaves by; of any other, if that one has none.
fn source(ports: &[Port], out: PortId, is_ipv6: bool) -> Option<IpAddr> {
    let mut candidates = ports.get(out.index()).into_iter().chain(ports).filter(|it| it.kernel);
    if is_ipv6 {
        candidates.find_map(Port::ipv6).map(IpAddr::V6)
    } else {
        candidates.find_map(Port::ipv4).map(IpAddr::V4)
    }
}

/// Carries the packets of such checks, for the thread that does so.
#[derive(Debug)]
pub(crate) struct Carrier {
    through: Arc<Through>,
    burst: Burst<SimFrame>,
    state: State<SimFrame>,
    counters: Counters,
}

impl Carrier {
    /// Remembers nothing yet.
    pub(crate) fn new(through: Arc<Through>) -> Self {
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 0 };
        Self {
            through,
            burst: Burst::default(),
            state: State::new(settings),
            counters: Counters::new(0),
        }
    }

    /// What checks send; readable when there is something.
    pub(crate) fn tun(&self) -> &Tap {
        self.through.net.tun()
    }

    /// Makes of a packet of a check the frame that it leaves as, and says where; `None`: there is no way
    /// to the backend now.
    pub(crate) fn forward(&mut self, packet: &[u8]) -> Option<(PortId, SimFrame)> {
        let Self { through, burst, state, counters } = self;
        let ways = Arc::clone(&through.ways.borrow());
        let frame = framed(packet, ways.tables.ports.first()?.mac);
        burst.refill(PortId(0), |frames| frames.push(frame));
        let choose =
            |tuple: &Tuple| through.way_of(tuple, &ways).map(|way| (way.service, way.backend));
        pipeline::deliver(burst, &ways.tables, choose, counters, state);
        let mut sent = None;
        burst.take(|_, frame, _, fate| {
            if let Fate::Send(out) = fate {
                sent = Some((out, frame));
            }
        });
        sent
    }

    /// Takes a frame that a port gives the kernel, if it is an answer to a check.
    pub(crate) fn takes(&self, frame: &[u8]) -> bool {
        let Some(packet) = answer(frame, &self.through.ways.borrow().vips) else { return false };
        // What finds no room there is lost, as in any network.
        let _ = self.tun().write(packet);
        true
    }
}

/// The packet, as if it had come in by a port with this MAC.
fn framed(packet: &[u8], mac: MacAddr) -> SimFrame {
    let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let ether_type = if is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let header = [&mac.0[..], &mac.0, &ether_type.to_be_bytes()].concat();
    SimFrame::new(&[&header, packet].concat())
}

/// The packet of a frame that comes from one of these addresses.
fn answer<'a>(frame: &'a [u8], from: &HashSet<IpAddr>) -> Option<&'a [u8]> {
    let (_, payload) = ethernet::parse(frame).ok()?;
    let packet = frame.get(payload.offset..)?;
    let (src, len): (IpAddr, _) = match payload.ether_type {
        ethernet::IPV4 => {
            let ip = Ipv4::parse(packet).ok()?;
            (ip.src.into(), ip.total_len.get().into())
        }
        ethernet::IPV6 => {
            let ip = Ipv6::parse(packet).ok()?;
            (ip.src.into(), ip.total_len())
        }
        _ => return None,
    };
    packet.get(..len).filter(|_| from.contains(&src))
}
