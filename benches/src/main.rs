//! The engine alone: `process()` over bursts in memory, in cycles (of the time stamp counter) and
//! nanoseconds a frame.
//!
//! Only `process()` is timed. Between bursts the frames become others: each the next of a flow that is
//! drawn at random. Cases take turns, round by round, because machines change their pace from one
//! second to the next; the median of the rounds is what counts.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod maglev;
mod traffic;

use std::alloc::System;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use lb_core::burst::{Burst, WorkerId};
use lb_core::counters::Counters;
use lb_core::flow_hash::reduce;
use lb_core::frame::{BURST_MAX, Frames};
use lb_core::model::{
    Backend, DesiredState, Forward, GUE_PORT, HashKey, PortRange, Protocol, Service, ServiceSpec,
    Tunnel, TunnelKind, Vip,
};
use lb_core::pipeline::process;
use lb_core::state::{Settings, State};
use lb_core::tables::Tables;
use lb_core::tables::compile::compile;
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::tuple::address_bytes;
use lb_core::wire::ethernet::MacAddr;
use quanta::Clock;
use serde::Serialize;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use traffic::{BenchFrame, Kind};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The balancer's MAC.
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Backends of the service.
const BACKENDS: u8 = 100;

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
#[command(about = "Measures the pipeline in memory")]
struct Args {
    /// Rounds; each case is timed once a round.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Frames of a case in a round.
    #[arg(long, default_value_t = 1_000_000)]
    frames: u64,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only cases with bursts of this many frames.
    #[arg(long)]
    burst: Option<usize>,
    /// Only cases with this many flows.
    #[arg(long)]
    flows: Option<u32>,
    /// Where the figures are written.
    #[arg(long, default_value = "target/bench/engine.json")]
    json: PathBuf,
    /// The CPU to run on; the last one, if not given.
    #[arg(long)]
    cpu: Option<usize>,
}

struct Case {
    name: String,
    kind: Kind,
    tables: Tables,
    vip: [u8; 16],
    burst: usize,
    flows: u32,
    /// Cycles a frame, one for each round.
    cycles: Vec<f64>,
}

/// What is saved of a case.
#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    burst: usize,
    flows: u32,
    cycles: f64,
    cycles_min: f64,
    cycles_max: f64,
    nanoseconds: f64,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    let wanted =
        args.cpu.map_or_else(|| cpus.last().copied(), |id| Some(core_affinity::CoreId { id }));
    if let Some(cpu) = wanted {
        core_affinity::set_for_current(cpu);
    }
    let clock = Clock::new();
    let mut cases = cases()?;
    cases.retain(|case| {
        case.name.contains(&args.only)
            && args.burst.is_none_or(|burst| case.burst == burst)
            && args.flows.is_none_or(|flows| case.flows == flows)
    });
    for round in 0..=args.rounds {
        for case in &mut cases {
            let cycles = run(case, args.frames, &clock);
            if round > 0 {
                case.cycles.push(cycles); // the first warms up
            }
        }
        eprint!("\rround {round} of {}", args.rounds);
    }
    eprintln!();
    let per_cycle = nanoseconds_per_cycle(&clock);
    let figures: Vec<Figures> = cases.into_iter().map(|case| figures(case, per_cycle)).collect();
    print(&figures);
    maglev::report();
    if let Some(folder) = args.json.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(&args.json)?;
    serde_json::to_writer_pretty(&mut file, &figures)?;
    writeln!(file)?;
    Ok(())
}

fn cases() -> Result<Vec<Case>, Failure> {
    const FLOWS: [u32; 3] = [1_000, 1_000_000, 10_000_000];
    const BURSTS: [usize; 5] = [1, 4, 16, 32, 64];
    let mut cases = Vec::new();
    let tunnel = |kind| Forward::Tunnel(Tunnel { kind, source: None });
    for (forward, mode) in [
        (Forward::L2dsr, "l2dsr"),
        (Forward::IPIP, "ipip"),
        (tunnel(TunnelKind::Gue { port: GUE_PORT }), "gue"),
        (tunnel(TunnelKind::Gre), "gre"),
    ] {
        for (vip, backend, families) in [
            ("10.0.0.100", "10.0.0.0", "4"),
            ("fd00::100", "fd00::", "6"),
            ("10.0.0.100", "fd00::", "4 in 6"),
            ("fd00::100", "10.0.0.0", "6 in 4"),
        ] {
            if forward == Forward::L2dsr && families.len() > 1 {
                continue;
            }
            let vip: IpAddr = vip.parse()?;
            let tables = tables(forward, vip, backend.parse()?)?;
            let kind = Kind { is_ipv6: vip.is_ipv6(), protocol: 6 };
            let all = FLOWS.into_iter().flat_map(|flows| BURSTS.map(|burst| (flows, burst)));
            cases.extend(all.map(|(flows, burst)| Case {
                name: format!("{mode} IPv{families} tcp"),
                kind,
                tables: tables.clone(),
                vip: address_bytes(vip),
                burst,
                flows,
                cycles: Vec::new(),
            }));
        }
    }
    Ok(cases)
}

fn tables(forward: Forward, vip: IpAddr, backends: IpAddr) -> Result<Tables, Failure> {
    let address = |n: u8| match backends {
        IpAddr::V4(net) => IpAddr::from([net.octets()[0], 0, 1, n]),
        IpAddr::V6(net) => IpAddr::from([net.segments()[0], 0, 0, 0, 0, 0, 1, u16::from(n)]),
    };
    let backend =
        |n| Backend { address: address(n), port: None, weight: 1, drain: false, static_hop: None };
    let vip = Vip { address: vip.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
    let spec = ServiceSpec {
        backends: (1..=BACKENDS).map(backend).collect(),
        ..ServiceSpec::new("bench", vip, forward)
    };
    let service = Service::new(spec).map_err(|findings| format!("{findings:?}"))?;
    let desired = DesiredState::new(HashKey(*b"key of the bench"), vec![service])
        .map_err(|findings| format!("{findings:?}"))?;
    let ports: Arc<[Port]> = Arc::new([Port {
        name: "lan0".into(),
        mac: MAC,
        mtu: 9000,
        addresses: vec!["10.0.0.2/16".parse()?, "fd00::2/64".parse()?],
        kernel: true,
        udp_checksums: false,
    }]);
    let hop = |n| NextHop { port: PortId(0), mac: MacAddr([2, 0, 0, 0, 1, n]), vlan: None };
    let next_hops: NextHops = (1..=BACKENDS)
        .map(|n| (address(n), Ok(Resolved { hops: Hops::from_iter([hop(n)]), gateway: None })))
        .collect();
    Ok(compile(&desired, &ports, &next_hops, None))
}

/// Cycles a frame.
fn run(case: &Case, frames_wanted: u64, clock: &Clock) -> f64 {
    let len = if case.kind.is_ipv6 { 74 } else { 60 };
    let counters = Counters::new(16);
    let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1000 };
    let mut state = State::new(settings);
    let mut burst = Burst::default();
    let mut frames: Frames<BenchFrame> = (0..case.burst.min(BURST_MAX))
        .map(|_| BenchFrame::new(case.kind, MAC, case.vip, len))
        .collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut cycles, mut empty, mut done) = (0, 0, 0);
    let region = Region::new(ALLOCATOR);
    while done < frames_wanted {
        for frame in &mut frames {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            frame.reset(case.kind, MAC, len, reduce(random, case.flows));
        }
        burst.refill(PortId(0), |into| into.extend(frames.drain(..)));
        let start = clock.raw();
        process(&mut burst, &case.tables, &counters, &mut state);
        cycles += clock.raw() - start;
        assert_eq!(burst.live_and_punted().0 as usize, case.burst, "all are forwarded");
        burst.take(|_, frame, _, _| frames.push(frame));
        done += case.burst as u64;
        // What reading the counter twice costs.
        let start = clock.raw();
        empty += clock.raw() - start;
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "the data path never allocates");
    (cycles - empty.min(cycles)) as f64 / done as f64
}

fn nanoseconds_per_cycle(clock: &Clock) -> f64 {
    const CYCLES: u64 = 1_000_000_000;
    clock.delta_as_nanos(0, CYCLES) as f64 / CYCLES as f64
}

fn figures(case: Case, nanoseconds_per_cycle: f64) -> Figures {
    let mut cycles = case.cycles;
    cycles.sort_unstable_by(f64::total_cmp);
    let median = cycles.get(cycles.len() / 2).copied().unwrap_or_default();
    Figures {
        name: case.name,
        burst: case.burst,
        flows: case.flows,
        cycles: median,
        cycles_min: cycles.first().copied().unwrap_or_default(),
        cycles_max: cycles.last().copied().unwrap_or_default(),
        nanoseconds: median * nanoseconds_per_cycle,
    }
}

fn print(figures: &[Figures]) {
    println!("cycles a frame: median of the rounds (min to max); nanoseconds");
    println!(
        "{:<18} {:>6} {:>11}  {:>7} {:>17} {:>7}",
        "case", "burst", "flows", "cycles", "min to max", "ns"
    );
    for f in figures {
        let spread = format!("{:.1} to {:.1}", f.cycles_min, f.cycles_max);
        println!(
            "{:<18} {:>6} {:>11}  {:>7.1} {:>17} {:>7.1}",
            f.name, f.burst, f.flows, f.cycles, spread, f.nanoseconds
        );
    }
}
