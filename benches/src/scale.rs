//! What large configurations take: memory, and time to compile a change.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_core::model::{
    Backend, DesiredState, Forward, PortRange, Protocol, Service, ServiceSpec, Vip,
};
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::wire::ethernet::MacAddr;

use crate::Failure;
use crate::tracked::Memory;
use crate::world::{HASH_KEY, MAC};

/// Of the first service; the others follow. No client has such an address.
pub(crate) const FIRST_VIP: [u8; 4] = [12, 0, 0, 0];

/// The service that changes.
const CHANGED: u32 = 77;

/// Prints both, for several shapes of configuration.
pub(crate) fn report() -> Result<(), Failure> {
    println!("                            first      other weights:   one backend more:");
    println!(
        "mode   services  backends   tables     state, tables    state, tables       MiB  bytes/service"
    );
    for forward in [Forward::L2dsr, Forward::Nat] {
        for (services, backends) in [(1_000, 10), (10_000, 10), (10_000, 100)] {
            measure(forward, services, backends)?;
        }
    }
    Ok(())
}

fn measure(forward: Forward, services: u32, backends: u32) -> Result<(), Failure> {
    let before = Memory::now()?;
    let network = network(services * backends);
    let circumstances =
        Circumstances { now: Tick(0), ..Circumstances::new(&network.0, &network.1) };
    let mut wanted = desired(forward, services, backends)?;
    let mut desired = DesiredState::empty(HASH_KEY).followed_by(wanted.clone()).map_err(told)?;
    let start = Instant::now();
    let mut tables = compile(&desired, &circumstances, None);
    let first = start.elapsed();
    let after = Memory::now()?;
    let kib = after.all_kib - before.all_kib;
    // As a source tells of it: what has not changed is the same.
    let mut change = |weight, gone| -> Result<[Duration; 2], Failure> {
        let start = Instant::now();
        wanted[CHANGED as usize] = service(forward, (CHANGED, backends), weight, gone)?;
        desired = desired.followed_by(wanted.clone()).map_err(told)?;
        let state = start.elapsed();
        let start = Instant::now();
        tables = compile(&desired, &circumstances, Some(&tables));
        Ok([state, start.elapsed()])
    };
    let weights = (2..13).map(|weight| change(weight, 0));
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    let one_more = (2..13).map(|_| change(1, 1).and_then(|_| change(1, 0)));
    let one_more = one_more.collect::<Result<Vec<_>, _>>()?;
    let [weights, one_more] = [weights, one_more].map(|times| medians(&times));
    println!(
        "{:<5}  {services:>8}  {backends:>8}  {first:>8.1?}  {:>8.1?} {:>8.1?}  {:>8.1?} {:>8.1?}  {:>7}  {:>8}",
        if forward == Forward::Nat { "nat" } else { "l2dsr" },
        weights[0],
        weights[1],
        one_more[0],
        one_more[1],
        kib / 1024,
        kib * 1024 / u64::from(services),
    );
    drop::<Tables>(tables);
    Ok(())
}

fn medians(times: &[[Duration; 2]]) -> [Duration; 2] {
    [0, 1].map(|which| {
        let mut times: Vec<Duration> = times.iter().map(|both| both[which]).collect();
        times.sort_unstable();
        times[times.len() / 2]
    })
}

/// Tables for so many services of so many backends each.
pub(crate) fn tables(services: u32, backends: u32) -> Result<Tables, Failure> {
    let (ports, next_hops) = network(services * backends);
    let circumstances = Circumstances { now: Tick(0), ..Circumstances::new(&ports, &next_hops) };
    let desired =
        DesiredState::empty(HASH_KEY).followed_by(desired(Forward::L2dsr, services, backends)?);
    Ok(compile(&desired.map_err(told)?, &circumstances, None))
}

fn desired(forward: Forward, services: u32, backends: u32) -> Result<Vec<Arc<Service>>, Failure> {
    (0..services).map(|number| service(forward, (number, backends), 1, 0)).collect()
}

/// All backends have weight 1, but the first; of the last ones, so many are gone.
fn service(
    forward: Forward,
    (number, backends): (u32, u32),
    weight: u32,
    gone: u32,
) -> Result<Arc<Service>, Failure> {
    let backend = |n: u32| {
        let address = backend(number * backends + n);
        let weight = if n == 0 { weight } else { 1 };
        Backend { address, port: None, weight, drain: false, static_hop: None }
    };
    let address = IpAddr::from(Ipv4Addr::from(u32::from_be_bytes(FIRST_VIP) + number));
    let vip = Vip { address: address.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
    let spec = ServiceSpec {
        backends: (0..backends - gone).map(backend).collect(),
        ..ServiceSpec::new(&format!("service{number}"), vip, forward)
    };
    Ok(Arc::new(Service::new(spec).map_err(told)?))
}

fn told(findings: impl Debug) -> String {
    format!("{findings:?}")
}

fn backend(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + 256 + number).into()
}

fn network(backends: u32) -> (Arc<[Port]>, NextHops) {
    let port = Port {
        name: "lan0".into(),
        mac: MAC,
        mtu: 1500,
        addresses: Vec::new(),
        kernel: true,
        udp_checksums: false,
    };
    let hop = NextHop { port: PortId(0), mac: MacAddr([2, 0, 0, 0, 1, 1]), vlan: None };
    let resolved = Arc::new(Ok(Resolved { hops: Hops::from_iter([hop]), gateway: None }));
    let next_hops = (0..backends).map(|number| (backend(number), Arc::clone(&resolved))).collect();
    (Arc::new([port]), next_hops)
}
