//! Tables with one service or a few, and the connections of those that have any.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ipnet::IpNet;

use lb_core::burst::{Burst, Meta, WorkerId};
use lb_core::continuity::Tracker;
use lb_core::counters::Counters;
use lb_core::frame::{BURST_MAX, Frame as _, Frames};
use lb_core::model::{
    Backend, DesiredState, Forward, HashKey, PortRange, Protocol, Service, ServiceSpec, Vip,
};
use lb_core::pipeline::process;
use lb_core::pool::Pool;
use lb_core::rate::Tick;
use lb_core::state::{Settings, State};
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::fib::{Fib, RouteWays};
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::tuple::{address_bytes, mapped};
use lb_core::wire::ethernet::MacAddr;
use lb_core::wire::tcp;
use zerocopy::FromBytes as _;

use crate::Failure;
use crate::tracked::memory;
use lb_bench::traffic::{BenchFrame, Flow, VIP_PORT, to_vip};

/// The balancer's MAC.
pub(crate) const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Backends of a service.
pub(crate) const BACKENDS: u8 = 100;
/// The port of backends that packets are translated for.
pub(crate) const BACKEND_PORT: u16 = 8080;
/// What a worker is told.
pub(crate) const SETTINGS: Settings =
    Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1000 };

/// Of the flow hash.
pub(crate) const HASH_KEY: HashKey = HashKey(*b"key of the bench");

/// A service with [`BACKENDS`] backends of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) forward: Forward,
    pub(crate) vip: IpAddr,
    pub(crate) ipv6_backends: bool,
}

/// Address of the backend with this number, from 1 on.
pub(crate) fn backend(n: u8, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 1, n).into()
    }
}

/// Tables for these services, with a gateway to all clients.
pub(crate) fn tables(services: &[Served]) -> Result<Tables, Failure> {
    let services = (0..).zip(services).map(|(number, served)| service(number, served));
    let network = Network::new()?;
    let services: Vec<Service> = services.collect::<Result<_, Failure>>()?;
    let pools = services.iter().filter_map(|service| service.spec().pool());
    let network = Network { pools: pools.map(pool).collect::<Result<_, _>>()?, ..network };
    let mut tables = network.compile(services, None, Tick(0))?;
    let gateway = || RouteWays::Gateways(vec![hop(254)]);
    let routes = BTreeMap::from([("0.0.0.0/0".parse()?, gateway()), ("::/0".parse()?, gateway())]);
    tables.fib = Arc::new(Fib::new(&routes, &BTreeMap::new(), &network.ports));
    Ok(tables)
}

/// Tables for services that have just moved from [`BACKENDS`] backends, which drain, to as many others:
/// all of their slots are in transition, and the flows that they have are to be tracked.
pub(crate) fn moving_tables(
    served: &Served,
    protocols: &[Protocol],
    tracker: Tracker,
) -> Result<Tables, Failure> {
    let network = Network::new()?;
    let mut before = network.compile(sharing(served, protocols, 1)?, None, Tick(0))?;
    before.tracker = Arc::new(tracker);
    network.compile(sharing(served, protocols, 1 + BACKENDS)?, Some(&before), Tick(0))
}

/// The tables after those of [`moving_tables`], by a time when no slot is in transition any more.
pub(crate) fn moved_tables(
    served: &Served,
    protocols: &[Protocol],
    (moving, now): (&Tables, Tick),
) -> Result<Tables, Failure> {
    let services = sharing(served, protocols, 1 + BACKENDS)?;
    Network::new()?.compile(services, Some(moving), now)
}

/// A service for each protocol, with backends of which only those from number `first` on take slots.
fn sharing(served: &Served, protocols: &[Protocol], first: u8) -> Result<Vec<Service>, Failure> {
    let backends = (1..=2 * BACKENDS).map(|n| Backend {
        drain: !(first..first + BACKENDS).contains(&n),
        ..member(backend(n, served.ipv6_backends), None)
    });
    let backends: Vec<Backend> = backends.collect();
    let service =
        |(number, protocol): (u32, &Protocol)| made(number, served, (*protocol, backends.clone()));
    (0..).zip(protocols).map(service).collect()
}

/// What there is besides services.
struct Network {
    ports: Arc<[Port]>,
    next_hops: NextHops,
    /// In memory of their own.
    pools: Vec<Arc<Pool>>,
}

impl Network {
    fn new() -> Result<Self, Failure> {
        let ports = ports()?;
        let resolved =
            |n| Arc::new(Ok(Resolved { hops: Hops::from_iter([hop(n)]), gateway: None }));
        let numbers = (1..=2 * BACKENDS).flat_map(|n| [(n, false), (n, true)]);
        let next_hops = numbers.map(|(n, is_ipv6)| (backend(n, is_ipv6), resolved(n))).collect();
        Ok(Self { ports, next_hops, pools: Vec::new() })
    }

    fn compile(
        &self,
        services: Vec<Service>,
        previous: Option<&Tables>,
        now: Tick,
    ) -> Result<Tables, Failure> {
        let desired =
            DesiredState::new(HASH_KEY, services).map_err(|findings| format!("{findings:?}"))?;
        let circumstances = Circumstances::new(&self.ports, &self.next_hops);
        let circumstances = Circumstances { now, pools: &self.pools, ..circumstances };
        Ok(compile(&desired, &circumstances, previous))
    }
}

/// A pool in huge pages, where there are any.
fn pool(net: IpNet) -> Result<Arc<Pool>, Failure> {
    let memory = memory(Pool::words(net), true)?;
    let words = <[AtomicU64]>::mut_from_bytes(memory).map_err(|error| error.to_string())?;
    Ok(Arc::new(Pool::over(net, words).ok_or("too few words")?))
}

/// The balancer's only port.
pub(crate) fn ports() -> Result<Arc<[Port]>, Failure> {
    Ok(Arc::new([Port {
        name: "lan0".into(),
        mac: MAC,
        mtu: 9000,
        addresses: vec!["10.0.0.2/16".parse()?, "fd00::2/64".parse()?],
        kernel: true,
        udp_checksums: false,
    }]))
}

pub(crate) fn hop(n: u8) -> NextHop {
    NextHop { port: PortId(0), mac: MacAddr([2, 0, 0, 0, 1, n]), vlan: None }
}

fn service(number: u32, served: &Served) -> Result<Service, Failure> {
    let port = served.forward.translates().then_some(BACKEND_PORT);
    let backend = |n| member(backend(n, served.ipv6_backends), port);
    made(number, served, (Protocol::Tcp, (1..=BACKENDS).map(backend).collect()))
}

pub(crate) fn member(address: IpAddr, port: Option<u16>) -> Backend {
    Backend { address, port, weight: 1, drain: false, static_hop: None }
}

pub(crate) fn made(
    number: u32,
    served: &Served,
    (protocol, backends): (Protocol, Vec<Backend>),
) -> Result<Service, Failure> {
    let vip = Vip { address: served.vip.into(), ports: PortRange::one(VIP_PORT), protocol };
    let name = format!("bench{number}");
    let spec = ServiceSpec { backends, ..ServiceSpec::new(&name, vip, served.forward) };
    Service::new(spec).map_err(|findings| format!("{findings:?}").into())
}

/// Connections of clients to a VIP that is `fullnat`'s: `from_clients` and `answers` belong together.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) from_clients: Vec<Flow>,
    pub(crate) answers: Vec<Flow>,
}

/// Opens so many connections. Those that find no place in the pool are left out.
pub(crate) fn establish(tables: &Tables, vip: IpAddr, wanted: u32) -> Established {
    let counters = Counters::new(16);
    let mut state = State::new(SETTINGS);
    let mut frames: Frames<BenchFrame> = (0..BURST_MAX).map(|_| BenchFrame::default()).collect();
    let mut pass = |flows: &[Flow], flags: u8, mut sent: Option<&mut Vec<Option<Flow>>>| {
        let mut burst = Burst::default();
        for (frame, flow) in frames.iter_mut().zip(flows) {
            frame.reset(MAC, flow, flags);
        }
        burst.refill(PortId(0), |into| into.extend(frames.drain(..flows.len())));
        process(&mut burst, tables, &counters, &mut state);
        let live: Vec<bool> = (0..flows.len())
            .map(|i| matches!(burst.fate(i), lb_core::burst::Fate::Send(_)))
            .collect();
        burst.take(|i, frame, _: &Meta, _| {
            if let Some(sent) = &mut sent {
                sent.push(live[i].then(|| flow_of(frame.bytes())));
            }
            frames.push(frame);
        });
    };
    let mut established = Established { from_clients: Vec::new(), answers: Vec::new() };
    for first in (0..wanted).step_by(BURST_MAX) {
        let last = wanted.min(first + 64);
        let clients: Vec<Flow> = (first..last).map(|n| to_vip(address_bytes(vip), n)).collect();
        let mut sent = Vec::new();
        pass(&clients, tcp::SYN, Some(&mut sent));
        let opened: Vec<(Flow, Flow)> = clients
            .iter()
            .zip(sent)
            .filter_map(|(client, sent)| Some((*client, reversed(&sent?))))
            .collect();
        let (clients, answers): (Vec<Flow>, Vec<Flow>) = opened.into_iter().unzip();
        pass(&answers, tcp::SYN | tcp::ACK, None);
        pass(&clients, tcp::ACK, None);
        established.from_clients.extend(clients);
        established.answers.extend(answers);
    }
    established
}

fn reversed(flow: &Flow) -> Flow {
    let [src, dst] = flow.ports;
    Flow { src: flow.dst, dst: flow.src, ports: [dst, src] }
}

/// The flow of a TCP segment without tags and options.
fn flow_of(frame: &[u8]) -> Flow {
    let ip = &frame[14..];
    let address = |at: usize, len: usize| {
        let bytes = &ip[at..at + len];
        <[u8; 16]>::try_from(bytes)
            .or_else(|_| <[u8; 4]>::try_from(bytes).map(mapped))
            .unwrap_or_default()
    };
    let (src, dst, l4) = if ip[0] >> 4 == 6 {
        (address(8, 16), address(24, 16), 40)
    } else {
        (address(12, 4), address(16, 4), 20)
    };
    let port = |at: usize| u16::from_be_bytes([ip[l4 + at], ip[l4 + at + 1]]);
    Flow { src, dst, ports: [port(0), port(2)] }
}
