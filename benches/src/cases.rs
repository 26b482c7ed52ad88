//! What is measured: each way of forwarding, with bursts and flows of several numbers.

use std::net::IpAddr;
use std::sync::Arc;

use lb_core::model::{ClientAddress, ClientPrefix, Forward, FullNat, GUE_PORT, Tunnel, TunnelKind};
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use lb_core::tuple::address_bytes;

use crate::tracked::tracked;
use crate::world::{BACKEND_PORT, BACKENDS, Served, backend, establish, tables};
use crate::{Args, Failure, scale};
use lb_bench::traffic::{Flow, Flows, to_vip};

const FLOWS: [u32; 3] = [1_000, 1_000_000, 10_000_000];
/// More than anything is remembered of; only if they are asked for, and where nothing is.
const FLOWS_MANY: u32 = 100_000_000;
/// What is asked for to have many services, in use at random.
pub(crate) const SERVICES: &str = "services";
const BURSTS: [usize; 5] = [1, 4, 16, 32, 64];
/// Of a service with a pool of 64 addresses: half of it.
const CONNECTIONS_MAX: u32 = 2_064_384;
const VIP: [&str; 2] = ["10.0.0.100", "fd00::100"];

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tables: Tables,
    pub(crate) packets: Flows,
    pub(crate) burst: usize,
    pub(crate) flows: u32,
    pub(crate) pace: Pace,
    /// Cycles a frame, one for each round.
    pub(crate) cycles: Vec<f64>,
}

/// How a case with tracked flows goes on after the name of the one without.
pub(crate) const TRACKED: &str = " tracked";

/// How the time goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// It stands still: of a flow that was seen, nothing is new.
    Busy,
    /// Most packets are the first of their flow for seconds, which is written down.
    Idle,
}

impl Pace {
    /// The time of a burst.
    pub(crate) fn now(self, burst: u64) -> Tick {
        /// By how much the clocks of workers may differ, in units of 4096 ms: so it may begin again.
        const UNITS: u64 = 8;
        match self {
            Self::Busy => Tick(0),
            Self::Idle => Tick((burst % UNITS) << 12),
        }
    }
}

/// All cases that were asked for.
pub(crate) fn cases(args: &Args) -> Result<Vec<Case>, Failure> {
    let mut cases = Cases { args, cases: Vec::new() };
    if args.only == SERVICES {
        // Beside one that has as many backends.
        for count in [1, 1_000] {
            let tables = scale::tables(count, 1_000)?;
            let packets = Flows::ToVips(scale::FIRST_VIP, count);
            cases.add(&format!("{count} {SERVICES}"), &tables, &packets, u32::MAX);
        }
        return Ok(cases.cases);
    }
    let tunnel = |kind| Forward::Tunnel(Tunnel { kind, source: None });
    cases.one_way("l2dsr IPv4", Forward::L2dsr, [false; 2])?;
    cases.one_way("l2dsr IPv6", Forward::L2dsr, [true; 2])?;
    cases.tracked("l2dsr IPv4", false)?;
    cases.tracked("l2dsr IPv6", true)?;
    for (forward, mode) in [
        (Forward::IPIP, "ipip"),
        (tunnel(TunnelKind::Gue { port: GUE_PORT }), "gue"),
        (tunnel(TunnelKind::Gre), "gre"),
    ] {
        for (families, name) in [
            ([false, false], "IPv4"),
            ([true, true], "IPv6"),
            ([false, true], "IPv4 in 6"),
            ([true, false], "IPv6 in 4"),
        ] {
            cases.one_way(&format!("{mode} {name}"), forward, families)?;
        }
    }
    cases.one_way("nat IPv4", Forward::Nat, [false; 2])?;
    cases.answers("nat IPv4 answers", Forward::Nat, [false; 2])?;
    cases.one_way("nat IPv6", Forward::Nat, [true; 2])?;
    cases.answers("nat IPv6 answers", Forward::Nat, [true; 2])?;
    let prefix = ClientPrefix::new("64:ff9b::/96".parse()?).ok_or("no prefix of 96 bits")?;
    cases.one_way("nat IPv4 to 6", Forward::Nat46(prefix), [false, true])?;
    cases.answers("nat IPv4 to 6 answers", Forward::Nat46(prefix), [false, true])?;
    cases.both_ways("fullnat IPv4", [false, false])?;
    cases.both_ways("fullnat 6 to 4", [true, false])?;
    Ok(cases.cases)
}

struct Cases<'a> {
    args: &'a Args,
    cases: Vec<Case>,
}

impl Cases<'_> {
    fn wants(&self, name: &str) -> bool {
        match &self.args.counted {
            Some(counted) => name == counted,
            None => name.contains(&self.args.only),
        }
    }

    fn add(&mut self, name: &str, tables: &Tables, packets: &Flows, flows_max: u32) {
        for flows in self.flows() {
            self.add_bursts(name, tables, packets, (flows.min(flows_max), Pace::Busy));
        }
    }

    /// The numbers of flows that were asked for.
    fn flows(&self) -> impl Iterator<Item = u32> + use<> {
        let wanted = self.args.flows;
        FLOWS.into_iter().filter(move |flows| wanted.is_none_or(|n| n == *flows))
    }

    fn add_bursts(
        &mut self,
        name: &str,
        tables: &Tables,
        packets: &Flows,
        (flows, pace): (u32, Pace),
    ) {
        if !self.wants(name) {
            return;
        }
        for burst in BURSTS.into_iter().filter(|n| self.args.burst.is_none_or(|it| it == *n)) {
            self.cases.push(Case {
                name: name.into(),
                tables: tables.clone(),
                packets: packets.clone(),
                burst,
                flows,
                pace,
                cycles: Vec::new(),
            });
        }
    }

    /// What clients send while all slots of the service are in transition, and all flows are tracked.
    fn tracked(&mut self, name: &str, is_ipv6: bool) -> Result<(), Failure> {
        let name = &format!("{name}{TRACKED}");
        let idle = &format!("{name}, idle");
        if !self.wants(name) && !self.wants(idle) {
            return Ok(());
        }
        let vip = VIP[usize::from(is_ipv6)].parse()?;
        let served = Served { forward: Forward::L2dsr, vip, ipv6_backends: is_ipv6 };
        let packets = Flows::ToVip(address_bytes(vip));
        for flows in self.flows() {
            for (name, pace) in [(name, Pace::Busy), (idle, Pace::Idle)] {
                if self.wants(name) {
                    let tables = tracked(&served, flows, !self.args.small_pages)?;
                    self.add_bursts(name, &tables, &packets, (flows, pace));
                }
            }
        }
        Ok(())
    }

    /// What clients send.
    fn one_way(
        &mut self,
        name: &str,
        forward: Forward,
        families: [bool; 2],
    ) -> Result<(), Failure> {
        let (tables, vip) = served(forward, families)?;
        let packets = Flows::ToVip(address_bytes(vip));
        self.add(name, &tables, &packets, u32::MAX);
        if self.args.flows == Some(FLOWS_MANY) {
            self.add_bursts(name, &tables, &packets, (FLOWS_MANY, Pace::Busy));
        }
        Ok(())
    }

    /// What the backends of a `nat` service answer.
    fn answers(
        &mut self,
        name: &str,
        forward: Forward,
        families: [bool; 2],
    ) -> Result<(), Failure> {
        if !self.wants(name) {
            return Ok(());
        }
        let (tables, vip) = served(forward, families)?;
        let backends = (1..=BACKENDS).map(|n| address_bytes(backend(n, families[1])));
        let backends: Vec<[u8; 16]> = backends.collect();
        let prefix = forward.client_prefix();
        let answer = |n: u32| {
            let Flow { src: mut client, ports: [client_port, _], .. } =
                to_vip(address_bytes(vip), n);
            if let Some(prefix) = prefix {
                client[..prefix.len()].copy_from_slice(&prefix);
            }
            let src = backends[n as usize % backends.len()];
            Flow { src, dst: client, ports: [BACKEND_PORT, client_port] }
        };
        let max = self.args.flows.unwrap_or(FLOWS[2]);
        self.add(name, &tables, &Flows::Listed((0..max).map(answer).collect()), u32::MAX);
        Ok(())
    }

    /// Connections of a `fullnat` service.
    fn both_ways(&mut self, name: &str, families: [bool; 2]) -> Result<(), Failure> {
        let answers = format!("{name} answers");
        if !self.wants(name) && !self.wants(&answers) {
            return Ok(());
        }
        let (tables, vip) = served(full_nat(families[1])?, families)?;
        let wanted = self.args.flows.unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX);
        let established = establish(&tables, vip, wanted);
        let there = u32::try_from(established.answers.len())?;
        let listed = |flows: Vec<Flow>| Flows::Listed(Arc::from(flows));
        self.add(name, &tables, &listed(established.from_clients), there);
        self.add(&answers, &tables, &listed(established.answers), there);
        Ok(())
    }
}

/// `fullnat` from 64 addresses.
pub(crate) fn full_nat(is_ipv6: bool) -> Result<Forward, Failure> {
    let pool = if is_ipv6 { "fd00:0:0:1::/122" } else { "10.1.0.0/26" };
    Ok(Forward::FullNat(FullNat { pool: pool.parse()?, client_address: ClientAddress::Hidden }))
}

/// Tables with a service, whose VIP and backends are of these families, and the VIP.
fn served(
    forward: Forward,
    [is_ipv6, ipv6_backends]: [bool; 2],
) -> Result<(Tables, IpAddr), Failure> {
    let vip = VIP[usize::from(is_ipv6)].parse()?;
    Ok((tables(&[Served { forward, vip, ipv6_backends }])?, vip))
}
