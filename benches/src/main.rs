//! The engine alone: `process()` over bursts in memory, in cycles (of the time stamp counter) and
//! nanoseconds a frame.
//!
//! Only `process()` is timed. Between bursts the frames become others: each the next of a flow that is
//! drawn at random. A round's figure is the median of its bursts, so that what interrupts some of them
//! does not count. Cases take turns, round by round, because machines change their pace from one second
//! to the next; the median of the rounds is what counts, and the least where others use the machine.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod cases;
mod flood;
mod instructions;
mod lines;
mod maglev;
mod parallel;
mod scale;
mod spoofed;
mod tracked;
mod wire;
mod world;

use std::alloc::System;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use cases::{Case, TRACKED, cases};
use clap::Parser;
use instructions::Counts;
use lb_bench::Random;
use lb_bench::report::EngineFigure;
use lb_bench::traffic::BenchFrame;
use lb_core::burst::Burst;
use lb_core::counters::Counters;
use lb_core::frame::Frames;
use lb_core::pipeline::process;
use lb_core::state::State;
use lb_core::stopwatch::{Step, Stopwatch};
use lb_core::tables::Tables;
use lb_core::tables::next_hop::PortId;
use lb_core::wire::tcp;
use quanta::Clock;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use world::{MAC, SETTINGS};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

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
    /// Only cases whose name contains this; `flood`: only what floods do; `workers`: only workers beside each
    /// other; `change`: only what changes of tables cost; `spoofed`: only whether floods push tracked flows
    /// out; `services`: 1,000 services of 1,000 backends, in use at random; `scale`: what large
    /// configurations take. The last three are no part of other runs.
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
    /// Tracked flows in pages of 4 KiB, not in huge ones.
    #[arg(long)]
    small_pages: bool,
    /// The CPU to run on; the last one, if not given.
    #[arg(long)]
    cpu: Option<usize>,
    /// Counts instructions instead, with valgrind.
    #[arg(long, value_enum)]
    instructions: Option<Counts>,
    /// Runs this case alone, to be counted.
    #[arg(long, hide = true)]
    counted: Option<String>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if let Some(counts) = args.instructions {
        return instructions::report(counts);
    }
    if args.counted.is_some() {
        cases(&args)?.iter().for_each(instructions::run);
        return Ok(());
    }
    // As where it runs.
    dpdk::ask_for_huge_pages();
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    let wanted =
        args.cpu.map_or_else(|| cpus.last().copied(), |id| Some(core_affinity::CoreId { id }));
    if let Some(cpu) = wanted {
        core_affinity::set_for_current(cpu);
    }
    let clock = Clock::new();
    if args.only == "spoofed" {
        return spoofed::report(&args, &clock);
    }
    if args.only == "scale" {
        return scale::report();
    }
    let mut cases = cases(&args)?;
    for round in 0..=args.rounds {
        for case in &mut cases {
            let cycles = run(case, round, args.frames, &clock);
            if round > 0 {
                case.cycles.push(cycles); // the first warms up
            }
        }
        eprint!("\rround {round} of {}", args.rounds);
    }
    eprintln!();
    let per_cycle = nanoseconds_per_cycle(&clock);
    let mut figures: Vec<EngineFigure> = cases
        .into_iter()
        .map(|case| {
            let steps = steps(&case, args.frames, &clock);
            EngineFigure { steps, ..figures(case, per_cycle) }
        })
        .collect();
    print(&figures);
    if args.only == cases::SERVICES {
        lines::report(args.rounds, &clock);
        return Ok(());
    }
    maglev::report();
    flood::report(&args, &clock)?;
    figures.extend(parallel::workers(&args, &clock, &cpus)?);
    parallel::change(&args, &cpus)?;
    if let Some(folder) = args.json.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(&args.json)?;
    serde_json::to_writer_pretty(&mut file, &figures)?;
    writeln!(file)?;
    Ok(())
}

/// Cycles a frame.
fn run(case: &Case, round: usize, frames_wanted: u64, clock: &Clock) -> f64 {
    let mut engine = Engine::new(case);
    let bursts = frames_wanted.div_ceil(case.burst as u64);
    let mut cycles = Vec::with_capacity(usize::try_from(bursts).unwrap_or(0));
    let mut empty = cycles.clone();
    empty.reserve_exact(cycles.capacity());
    let region = Region::new(ALLOCATOR);
    for number in 0..bursts {
        engine.state.now = case.pace.now(number + round as u64); // the flows are the same in every round
        engine.fill();
        let start = clock.raw();
        engine.turn();
        cycles.push(clock.raw() - start);
        engine.empty();
        // What reading the counter twice costs.
        let start = clock.raw();
        empty.push(clock.raw() - start);
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "the data path never allocates");
    let burst = median(&mut cycles).saturating_sub(median(&mut empty));
    burst as f64 / case.burst as f64
}

/// Cycles a frame by step, as a worker counts its own.
fn steps(case: &Case, frames_wanted: u64, clock: &Clock) -> Vec<(String, f64)> {
    let mut engine = Engine::new(case);
    let raw = clock.clone();
    engine.state.stopwatch = Stopwatch::new(Arc::new(move || raw.raw()));
    for number in 0..frames_wanted.div_ceil(case.burst as u64) {
        engine.state.now = case.pace.now(number);
        engine.fill();
        engine.state.stopwatch.start();
        engine.turn();
        engine.state.stopwatch.stop(case.burst, &engine.counters);
        engine.empty();
    }
    let frames = engine.counters.timed_frames.get().max(1) as f64;
    let counted = Step::ALL.into_iter().zip(&engine.counters.step_cycles);
    let steps =
        counted.map(|(step, cycles)| (step.name().to_owned(), cycles.get() as f64 / frames));
    steps.filter(|(_, cycles)| *cycles > 0.0).collect() // those of the pipeline
}

/// What a case is run with.
struct Engine<'a> {
    case: &'a Case,
    counters: Counters,
    state: State<BenchFrame>,
    burst: Burst<BenchFrame>,
    frames: Frames<BenchFrame>,
    random: Random,
}

impl<'a> Engine<'a> {
    fn new(case: &'a Case) -> Self {
        Self {
            case,
            counters: Counters::new(case.tables.services.len()),
            state: State::new(SETTINGS),
            burst: Burst::default(),
            frames: (0..case.burst).map(|_| BenchFrame::default()).collect(),
            random: Random::default(),
        }
    }

    /// Makes the next burst, of flows that are drawn at random.
    fn fill(&mut self) {
        let Self { case, burst, frames, random, .. } = self;
        for frame in &mut *frames {
            frame.reset(MAC, &case.packets.get(random.below(case.flows)), tcp::ACK);
        }
        burst.refill(PortId(0), |into| into.extend(frames.drain(..)));
    }

    #[inline]
    fn turn(&mut self) {
        timed(&mut self.burst, &self.case.tables, &self.counters, &mut self.state);
    }

    /// Takes the burst's frames away, all of which have to be forwarded.
    fn empty(&mut self) {
        let Self { case, burst, frames, .. } = self;
        assert_eq!(burst.live_and_punted().0 as usize, case.burst, "all are forwarded");
        burst.take(|_, frame, _, _| frames.push(frame));
    }
}

/// The middle one: of bursts, it is one that nothing has interrupted.
fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A function of its own, so that an instruction counter finds it: `valgrind --tool=callgrind
/// --toggle-collect='*engine*timed*'`.
#[inline(never)]
fn timed(
    burst: &mut Burst<BenchFrame>,
    tables: &Tables,
    counters: &Counters,
    state: &mut State<BenchFrame>,
) {
    process(burst, tables, counters, state);
}

fn nanoseconds_per_cycle(clock: &Clock) -> f64 {
    const CYCLES: u64 = 1_000_000_000;
    clock.delta_as_nanos(0, CYCLES) as f64 / CYCLES as f64
}

fn figures(case: Case, nanoseconds_per_cycle: f64) -> EngineFigure {
    let mut cycles = case.cycles;
    cycles.sort_unstable_by(f64::total_cmp);
    let median = cycles.get(cycles.len() / 2).copied().unwrap_or_default();
    EngineFigure {
        name: case.name,
        burst: case.burst,
        flows: case.flows,
        cycles: median,
        cycles_min: cycles.first().copied().unwrap_or_default(),
        cycles_max: cycles.last().copied().unwrap_or_default(),
        nanoseconds: median * nanoseconds_per_cycle,
        steps: Vec::new(),
    }
}

fn print(figures: &[EngineFigure]) {
    println!(
        "cycles a frame: median of the rounds (min to max); nanoseconds; of tracked flows, how many"
    );
    println!("cycles more it is than without");
    println!(
        "{:<24} {:>6} {:>11}  {:>7} {:>17} {:>7} {:>6}",
        "case", "burst", "flows", "cycles", "min to max", "ns", "more"
    );
    for f in figures {
        let spread = format!("{:.1} to {:.1}", f.cycles_min, f.cycles_max);
        let untracked = f.name.split_once(TRACKED).and_then(|(name, _)| {
            figures.iter().find(|it| (&*it.name, it.burst, it.flows) == (name, f.burst, f.flows))
        });
        let more = untracked.map_or(String::new(), |it| format!("{:.1}", f.cycles - it.cycles));
        println!(
            "{:<24} {:>6} {:>11}  {:>7.1} {:>17} {:>7.1} {more:>6}",
            f.name, f.burst, f.flows, f.cycles, spread, f.nanoseconds
        );
    }
}
