//! What is measured: each way of forwarding, with bursts and flows of several numbers.

use std::net::IpAddr;
use std::sync::Arc;

use lb_core::model::{ClientAddress, Forward, FullNat, GUE_PORT, Tunnel, TunnelKind};
use lb_core::tables::Tables;
use lb_core::tuple::address_bytes;

use crate::traffic::{Flow, Flows, to_vip};
use crate::world::{BACKEND_PORT, BACKENDS, Served, backend, establish, tables};
use crate::{Args, Failure};

const FLOWS: [u32; 3] = [1_000, 1_000_000, 10_000_000];
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
    /// Cycles a frame, one for each round.
    pub(crate) cycles: Vec<f64>,
}

/// All cases that were asked for.
pub(crate) fn cases(args: &Args) -> Result<Vec<Case>, Failure> {
    let mut cases = Cases { args, cases: Vec::new() };
    let tunnel = |kind| Forward::Tunnel(Tunnel { kind, source: None });
    cases.one_way("l2dsr IPv4", Forward::L2dsr, [false; 2])?;
    cases.one_way("l2dsr IPv6", Forward::L2dsr, [true; 2])?;
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
    cases.answers("nat IPv4 answers", false)?;
    cases.one_way("nat IPv6", Forward::Nat, [true; 2])?;
    cases.answers("nat IPv6 answers", true)?;
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
        name.contains(&self.args.only)
    }

    fn add(&mut self, name: &str, tables: &Tables, packets: &Flows, flows_max: u32) {
        if !self.wants(name) {
            return;
        }
        for flows in FLOWS.into_iter().filter(|flows| self.args.flows.is_none_or(|n| n == *flows)) {
            for burst in BURSTS.into_iter().filter(|n| self.args.burst.is_none_or(|it| it == *n)) {
                self.cases.push(Case {
                    name: name.into(),
                    tables: tables.clone(),
                    packets: packets.clone(),
                    burst,
                    flows: flows.min(flows_max),
                    cycles: Vec::new(),
                });
            }
        }
    }

    /// What clients send.
    fn one_way(
        &mut self,
        name: &str,
        forward: Forward,
        families: [bool; 2],
    ) -> Result<(), Failure> {
        let (tables, vip) = served(forward, families)?;
        self.add(name, &tables, &Flows::ToVip(address_bytes(vip)), u32::MAX);
        Ok(())
    }

    /// What the backends of a `nat` service answer.
    fn answers(&mut self, name: &str, is_ipv6: bool) -> Result<(), Failure> {
        if !self.wants(name) {
            return Ok(());
        }
        let (tables, vip) = served(Forward::Nat, [is_ipv6; 2])?;
        let backends = (1..=BACKENDS).map(|n| address_bytes(backend(n, is_ipv6)));
        let backends: Vec<[u8; 16]> = backends.collect();
        let answer = |n: u32| {
            let Flow { src: client, ports: [client_port, _], .. } = to_vip(address_bytes(vip), n);
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
