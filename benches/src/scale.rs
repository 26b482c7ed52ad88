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
    println!("services  backends  first compile  a change: compile (state)  MiB  bytes/service");
    for (services, backends) in [(1_000, 10), (10_000, 10), (10_000, 100)] {
        measure(services, backends)?;
    }
    Ok(())
}

fn measure(services: u32, backends: u32) -> Result<(), Failure> {
    let before = Memory::now()?;
    let network = network(services * backends);
    let circumstances =
        Circumstances { now: Tick(0), ..Circumstances::new(&network.0, &network.1) };
    let mut wanted = desired(services, backends)?;
    let mut desired = DesiredState::empty(HASH_KEY).followed_by(wanted.clone()).map_err(told)?;
    let start = Instant::now();
    let mut tables = compile(&desired, &circumstances, None);
    let first = start.elapsed();
    let after = Memory::now()?;
    let kib = after.all_kib - before.all_kib;
    let mut changes = Vec::new();
    let mut states = Vec::new();
    // As a source tells of it: what has not changed is the same.
    for weight in 2..13 {
        let start = Instant::now();
        wanted[CHANGED as usize] = service(CHANGED, backends, weight)?;
        desired = desired.followed_by(wanted.clone()).map_err(told)?;
        states.push(start.elapsed());
        let start = Instant::now();
        tables = compile(&desired, &circumstances, Some(&tables));
        changes.push(start.elapsed());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    println!(
        "{services:>8}  {backends:>8}  {first:>13.1?}  {:>10.1?} ({:.1?})  {:>6}  {:>8}",
        median(&mut changes),
        median(&mut states),
        kib / 1024,
        kib * 1024 / u64::from(services),
    );
    drop::<Tables>(tables);
    Ok(())
}

/// Tables for so many services of so many backends each.
pub(crate) fn tables(services: u32, backends: u32) -> Result<Tables, Failure> {
    let (ports, next_hops) = network(services * backends);
    let circumstances = Circumstances { now: Tick(0), ..Circumstances::new(&ports, &next_hops) };
    let desired = DesiredState::empty(HASH_KEY).followed_by(desired(services, backends)?);
    Ok(compile(&desired.map_err(told)?, &circumstances, None))
}

fn desired(services: u32, backends: u32) -> Result<Vec<Arc<Service>>, Failure> {
    (0..services).map(|number| service(number, backends, 1)).collect()
}

/// All backends have weight 1, but the first.
fn service(number: u32, backends: u32, weight: u32) -> Result<Arc<Service>, Failure> {
    let backend = |n: u32| {
        let address = backend(number * backends + n);
        let weight = if n == 0 { weight } else { 1 };
        Backend { address, port: None, weight, drain: false, static_hop: None }
    };
    let address = IpAddr::from(Ipv4Addr::from(u32::from_be_bytes(FIRST_VIP) + number));
    let vip = Vip { address: address.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
    let spec = ServiceSpec {
        backends: (0..backends).map(backend).collect(),
        ..ServiceSpec::new(&format!("service{number}"), vip, Forward::L2dsr)
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
