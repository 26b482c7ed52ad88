//! Frames of flows, and the balancer that takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use lb_core::burst::{Burst, Fate, WorkerId};
use lb_core::continuity::tracker::{Report, Seen};
use lb_core::continuity::{self, Flow, SILENT, TOLD_TIMES, Tracker};
use lb_core::counters::Counters;
use lb_core::frame::Frame as _;
use lb_core::model::{
    Affinity, Backend, DesiredState, Forward, HashKey, Health, PortRange, Protocol, Service,
    ServiceSpec, Vip,
};
use lb_core::pipeline::process;
use lb_core::rate::Tick;
use lb_core::sim::SimFrame;
use lb_core::state::{Settings, State};
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use lb_core::tables::{ServiceId, ServiceTable, Tables};
use lb_core::wire::ethernet::MacAddr;

const BALANCER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
pub(crate) const WORKERS: usize = 3;
/// How long a flow may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(40);
/// How long a backend of one of the services takes to get its share.
const SLOW_START: Duration = Duration::from_secs(10);
/// Backends that there are at all.
pub(crate) const BACKENDS: u8 = 12;

/// What clients talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp4,
    Tcp6,
    Udp,
    /// All flows of a client together.
    Client,
    /// A range of addresses.
    Prefix6,
}

pub(crate) const KINDS: [Kind; 5] =
    [Kind::Tcp4, Kind::Tcp6, Kind::Udp, Kind::Client, Kind::Prefix6];

impl Kind {
    pub(crate) fn is_tcp(self) -> bool {
        self != Self::Udp
    }

    pub(crate) fn is_ipv6(self) -> bool {
        matches!(self, Self::Tcp6 | Self::Prefix6)
    }

    pub(crate) fn vip(self) -> (&'static str, u16) {
        match self {
            Self::Tcp4 => ("10.0.0.100/32", 80),
            Self::Tcp6 => ("fd00::100/128", 80),
            Self::Udp => ("10.0.0.100/32", 53),
            Self::Client => ("10.0.0.101/32", 80),
            Self::Prefix6 => ("fd00:9::/64", 80),
        }
    }
}

pub(crate) fn address(kind: Kind, backend: u8) -> IpAddr {
    if kind.is_ipv6() {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, backend.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 1, backend).into()
    }
}

/// A backend of a service, as wanted now.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) weight: u32,
    pub(crate) drain: bool,
}

/// One of the balancers of the site.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) tables: Arc<Tables>,
    pub(crate) counters: Arc<Counters>,
    states: Vec<State<SimFrame>>,
    pub(crate) is_up: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) balancers: Vec<Balancer>,
    pub(crate) now: Tick,
    pub(crate) wanted: BTreeMap<u8, Wanted>,
    pub(crate) slots: u32,
    pub(crate) failed: BTreeSet<u8>,
    pub(crate) unreachable: BTreeSet<u8>,
    /// The kernel is still finding out where they are.
    pub(crate) unknown: BTreeSet<u8>,
    ports: Arc<[Port]>,
}

impl Balancer {
    fn new(tables: Tables) -> Self {
        let settings = |worker| Settings { worker, workers: 1, punts_per_second: 1000 };
        Self {
            tables: Arc::new(tables),
            counters: Arc::new(Counters::new(100)),
            states: (0..WORKERS).map(|_| State::new(settings(WorkerId(0)))).collect(),
            is_up: true,
        }
    }

    /// May a backend serve, in the tables in force?
    pub(crate) fn may_serve(&self, kind: Kind, backend: u8) -> bool {
        self.is_any(kind, backend, ServiceTable::may_serve)
    }

    /// Does a backend get new flows, in the tables in force?
    pub(crate) fn takes_flows(&self, kind: Kind, backend: u8) -> bool {
        self.is_any(kind, backend, |service, place| service.slots.slots().contains(&place))
    }

    /// So many units after the last packet of a flow, it is known to have ended: what has come since is in
    /// another burst. Several balancers do not tell each other of each packet.
    pub(crate) fn silence(&self, kind: Kind, balancers: usize) -> u16 {
        let place = KINDS.iter().position(|&other| other == kind).unwrap();
        let untold = self.tables.services[place].idle_max / TOLD_TIMES;
        if balancers == 1 { 1 } else { SILENT + untold }
    }

    /// Is something true of a place that a backend has?
    fn is_any(&self, kind: Kind, backend: u8, what: impl Fn(&ServiceTable, u16) -> bool) -> bool {
        let place = KINDS.iter().position(|&other| other == kind).unwrap();
        let service = &self.tables.services[place];
        let members = service.roster.members().iter().zip(0..);
        let is_it = |member: &Option<continuity::Member>| {
            member.as_ref().is_some_and(|it| it.backend.address == address(kind, backend))
        };
        members.into_iter().any(|(member, place)| is_it(member) && what(service, place))
    }

    fn send(&mut self, worker: usize, frames: &[Vec<u8>], now: Tick) -> Vec<Option<u8>> {
        let mut burst = Burst::default();
        burst.refill(PortId(0), |into| {
            into.extend(frames.iter().map(|bytes| SimFrame::new(bytes)));
        });
        let state = &mut self.states[worker];
        state.now = now;
        process(&mut burst, &self.tables, &self.counters, state);
        let mut reached = Vec::new();
        burst.take(|_, frame, _, fate| {
            let is_sent = matches!(fate, Fate::Send(_));
            reached.push(is_sent.then(|| frame.bytes()[5]));
        });
        reached
    }

    /// Hears of a flow from another balancer, whose places and ids are others.
    fn hear(&self, report: &Report, other: &Tables, now: Tick) {
        let by_id = |service: &&Arc<ServiceTable>| service.id == report.seen.service;
        let theirs = other.services.iter().find(by_id).unwrap();
        let spec = theirs.source.spec();
        let is_same = |service: &&Arc<ServiceTable>| service.source.spec().vip == spec.vip;
        let service = self.tables.services.iter().find(is_same).unwrap();
        let mut names = theirs.roster.names(spec);
        let Some((name, _)) = names.find(|(_, place)| *place == report.seen.backend) else {
            return; // gone there
        };
        let Some((_, place)) = service.roster.names(spec).find(|(own, _)| *own == name) else {
            return; // gone here
        };
        let flow = Flow::with_key(report.key, service, &self.tables.hasher);
        let seen = Seen { backend: place, ..report.seen };
        assert!(self.tables.tracker.tell(&flow, seen, service, now), "there is room");
    }
}

impl World {
    pub(crate) fn new(balancers: usize) -> Self {
        let port = Port {
            name: "lan0".into(),
            mac: BALANCER,
            mtu: 1500,
            addresses: vec!["10.0.0.2/8".parse().unwrap(), "fd00::2/32".parse().unwrap()],
            kernel: true,
            udp_checksums: false,
        };
        let ports: Arc<[Port]> = [port].into();
        Self {
            balancers: (0..balancers).map(|_| Balancer::new(without_services(&ports))).collect(),
            now: Tick(0),
            wanted: (1..9).map(|n| (n, Wanted { weight: 1, drain: false })).collect(),
            slots: 1009,
            failed: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            unknown: BTreeSet::new(),
            ports,
        }
    }

    fn desired(&self) -> DesiredState {
        let services = KINDS.iter().map(|&kind| {
            let (net, port) = kind.vip();
            let protocol = if kind.is_tcp() { Protocol::Tcp } else { Protocol::Udp };
            let vip = Vip { address: net.parse().unwrap(), ports: PortRange::one(port), protocol };
            let affinity = if kind == Kind::Client { Affinity::Client } else { Affinity::Flow };
            let backends = self.wanted.iter().map(|(&n, wanted)| Backend {
                address: address(kind, n),
                port: None,
                weight: wanted.weight,
                drain: wanted.drain,
                static_hop: None,
            });
            Service::new(ServiceSpec {
                affinity,
                idle_timeout: Some(IDLE),
                slots: Some(self.slots),
                slow_start: (kind == Kind::Tcp6).then_some(SLOW_START),
                backends: backends.collect(),
                ..ServiceSpec::new(&format!("{kind:?}"), vip, Forward::L2dsr)
            })
            .unwrap()
        });
        DesiredState::new(HashKey([7; 16]), services.collect()).unwrap()
    }

    /// What control does after a change, and when the tables change by themselves; on all balancers.
    pub(crate) fn compile(&mut self) {
        self.compile_with(|balancer, now| continuity::sweep(&balancer.tables, (0, 1), now).idle);
    }

    fn compile_with(&mut self, idle: impl Fn(&Balancer, Tick) -> BTreeSet<(ServiceId, u16)>) {
        let (desired, hops) = (self.desired(), self.next_hops());
        let failed = KINDS.iter().flat_map(|kind| {
            self.failed.iter().map(move |&n| (format!("{kind:?}"), address(*kind, n), None))
        });
        let health = Health::new(failed);
        for balancer in self.balancers.iter_mut().filter(|balancer| balancer.is_up) {
            let idle = idle(balancer, self.now);
            let circumstances = Circumstances {
                health: Some(&health),
                idle: &idle,
                now: self.now,
                ..Circumstances::new(&self.ports, &hops)
            };
            let tables = compile(&desired, &circumstances, Some(&balancer.tables));
            balancer.tables = Arc::new(tables);
        }
    }

    /// Is there a backend that may not serve?
    pub(crate) fn lets_down(&self) -> bool {
        !self.failed.is_empty() || !self.unreachable.is_empty()
    }

    /// When the tables of a balancer change by themselves.
    pub(crate) fn next_change(&self) -> Option<Tick> {
        let up = self.balancers.iter().filter(|balancer| balancer.is_up);
        up.filter_map(|balancer| balancer.tables.next_change()).min()
    }

    /// A balancer is back, with what it had or without, and goes on from where the other is.
    pub(crate) fn start(&mut self, balancer: usize, remembers: bool) {
        let theirs = self.balancers[1 - balancer].tables.remember();
        let mut tables = without_services(&self.ports);
        let mut own = Vec::new();
        if remembers {
            tables.tracker = Arc::clone(&self.balancers[balancer].tables.tracker);
            own = self.balancers[balancer].tables.remember();
        }
        let joined = continuity::join(own, theirs, &tables.tracker);
        let tables = tables.resume(joined).unwrap();
        tables.tracker.defer(self.now);
        self.balancers[balancer] = Balancer::new(tables);
        // Who has no flow is not known before these have come.
        self.compile_with(|_, _| BTreeSet::new());
        self.tell_whole(&self.balancers[1 - balancer], |_| true);
        self.tell_whole(&self.balancers[balancer], Report::is_own);
    }

    /// Balancers tell each other of new flows.
    pub(crate) fn tell_news(&self) {
        for teller in &self.balancers {
            while let Some(report) = teller.tables.tracker.next_news(self.now) {
                self.tell(teller, &report);
            }
        }
    }

    /// Balancers tell each other of all flows that they have seen.
    pub(crate) fn tell_all(&self) {
        for teller in self.balancers.iter().filter(|balancer| balancer.is_up) {
            self.tell_whole(teller, Report::is_own);
        }
    }

    fn tell_whole(&self, teller: &Balancer, is_meant: impl Fn(&Report) -> bool) {
        teller.tables.tracker.reports((0, 1), self.now, |report| {
            if is_meant(&report) {
                self.tell(teller, &report);
            }
        });
    }

    fn tell(&self, teller: &Balancer, report: &Report) {
        let is_other = |other: &&Balancer| other.is_up && !std::ptr::eq(*other, teller);
        for other in self.balancers.iter().filter(is_other) {
            other.hear(report, &teller.tables, self.now);
        }
    }

    fn next_hops(&self) -> NextHops {
        let of = |kind: Kind, n: u8| {
            let mac = MacAddr([2, 0, 0, 0, 1, n]);
            let hop = NextHop { port: PortId(0), mac, vlan: None };
            let way = if self.unreachable.contains(&n) {
                Err(Unresolved::NoNeighbour(address(kind, n), "lan0".into()))
            } else if self.unknown.contains(&n) {
                Err(Unresolved::Unknown)
            } else {
                Ok(Resolved { hops: Hops::from_iter([hop]), gateway: None })
            };
            (address(kind, n), Arc::new(way))
        };
        KINDS.iter().flat_map(|&kind| (1..=BACKENDS).map(move |n| of(kind, n))).collect()
    }

    /// Sends packets through a worker of a balancer; which backend each one reaches, if any.
    pub(crate) fn send(
        &mut self,
        (balancer, worker): (usize, usize),
        frames: &[Vec<u8>],
    ) -> Vec<Option<u8>> {
        self.balancers[balancer].send(worker, frames, self.now)
    }
}

fn without_services(ports: &Arc<[Port]>) -> Tables {
    let nothing = DesiredState::empty(HashKey([7; 16]));
    let mut tables = compile(&nothing, &Circumstances::new(ports, &NextHops::new()), None);
    tables.tracker = Arc::new(Tracker::new(100_000).with_news(10_000));
    tables
}

/// A packet of a flow: a TCP segment with these flags, or a datagram.
pub(crate) fn frame(kind: Kind, client: u16, port: u16, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(74);
    bytes.extend(BALANCER.0);
    bytes.extend([2, 0, 0, 0, 0, 9]);
    let (_, dst_port) = kind.vip();
    let [high, low] = client.to_be_bytes();
    let l4: &[u8] = if kind.is_tcp() {
        &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]
    } else {
        &[0, 8, 0, 0]
    };
    let protocol = if kind.is_tcp() { 6 } else { 17 };
    let l4_bytes = u8::try_from(l4.len() + 4).unwrap();
    if kind.is_ipv6() {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4_bytes, protocol, 64]);
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low]);
        let vip: Ipv6Addr = if kind == Kind::Prefix6 {
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, client % 7)
        } else {
            "fd00::100".parse().unwrap()
        };
        bytes.extend(vip.octets());
    } else {
        let vip = if kind == Kind::Client { 101 } else { 100 };
        let mut header = [
            0x45,
            0,
            0,
            20 + l4_bytes,
            0,
            0,
            0x40,
            0,
            64,
            protocol,
            0,
            0,
            198,
            51,
            high,
            low,
            10,
            0,
            0,
            vip,
        ];
        let words = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([8, 0]);
        bytes.extend(header);
    }
    bytes.extend(port.to_be_bytes());
    bytes.extend(dst_port.to_be_bytes());
    bytes.extend(l4);
    bytes
}
