//! Tables with one service or a few, and the connections of those that have any.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lb_core::burst::{Burst, Meta, WorkerId};
use lb_core::counters::Counters;
use lb_core::frame::{BURST_MAX, Frame as _, Frames};
use lb_core::model::{
    Backend, DesiredState, Forward, HashKey, PortRange, Protocol, Service, ServiceSpec, Vip,
};
use lb_core::pipeline::process;
use lb_core::state::{Settings, State};
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::fib::{Fib, RouteWays};
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::tuple::{address_bytes, mapped};
use lb_core::wire::ethernet::MacAddr;
use lb_core::wire::tcp;

use crate::Failure;
use crate::traffic::{BenchFrame, Flow, to_vip};

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
    let services: Result<Vec<Service>, Failure> = (0..).zip(services).map(service).collect();
    let desired =
        DesiredState::new(HASH_KEY, services?).map_err(|findings| format!("{findings:?}"))?;
    let ports: Arc<[Port]> = Arc::new([Port {
        name: "lan0".into(),
        mac: MAC,
        mtu: 9000,
        addresses: vec!["10.0.0.2/16".parse()?, "fd00::2/64".parse()?],
        kernel: true,
        udp_checksums: false,
    }]);
    let hop = |n| NextHop { port: PortId(0), mac: MacAddr([2, 0, 0, 0, 1, n]), vlan: None };
    let resolved = |n| Ok(Resolved { hops: Hops::from_iter([hop(n)]), gateway: None });
    let numbers = (1..=BACKENDS).flat_map(|n| [(n, false), (n, true)]);
    let next_hops: NextHops =
        numbers.map(|(n, is_ipv6)| (backend(n, is_ipv6), resolved(n))).collect();
    let mut tables = compile(&desired, &Circumstances::new(&ports, &next_hops), None);
    let routes = BTreeMap::from([
        ("0.0.0.0/0".parse()?, RouteWays::Gateways(vec![hop(254)])),
        ("::/0".parse()?, RouteWays::Gateways(vec![hop(254)])),
    ]);
    tables.fib = Arc::new(Fib::new(&routes, &BTreeMap::new(), &ports));
    Ok(tables)
}

fn service((number, served): (u32, &Served)) -> Result<Service, Failure> {
    let Served { forward, vip, ipv6_backends } = *served;
    let port = matches!(forward, Forward::Nat | Forward::FullNat(_)).then_some(BACKEND_PORT);
    let backend = |n| Backend {
        address: backend(n, ipv6_backends),
        port,
        weight: 1,
        drain: false,
        static_hop: None,
    };
    let vip = Vip { address: vip.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
    let spec = ServiceSpec {
        backends: (1..=BACKENDS).map(backend).collect(),
        ..ServiceSpec::new(&format!("bench{number}"), vip, forward)
    };
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
