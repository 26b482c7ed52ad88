//! Workers beside each other, and beside a control thread that changes the tables all the time.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use lb_bench::Random;
use lb_bench::report::{EngineFigure, WORKERS};
use lb_bench::results::Spread;
use lb_bench::traffic::{BenchFrame, to_vip};
use lb_core::continuity::Tracker;
use lb_core::counters::Counters;
use lb_core::model::{Backend, DesiredState, Forward, Protocol};
use lb_core::publish::{Publisher, Subscriber, publication};
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{Hops, NextHops, Resolved};
use lb_core::tuple::address_bytes;
use lb_core::wire::tcp;
use lb_core::worker::Worker;
use quanta::Clock;

use crate::wire::Wire;
use crate::world::{HASH_KEY, MAC, SETTINGS, Served, hop, made, member, ports, tables};
use crate::{Args, Failure, median, nanoseconds_per_cycle};

const BURST: usize = 32;
const FLOWS: u32 = 16_384;
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100));
/// Of the service whose tables change.
const BACKENDS: u16 = 1000;
/// Backends of which one after the other is drained: none, and tables are only other copies of the same; a few, so that
/// few slots are in transition; or all, so that most slots are, soon.
const DRAINED: [u16; 3] = [0, 10, BACKENDS];
/// How often tables change.
const PERIOD: Duration = Duration::from_millis(10);
/// How long a round takes, of each kind.
const ROUND: Duration = Duration::from_millis(500);
/// A turn that takes this many cycles was interrupted: it does not count.
const TURN_MAX: u64 = 100_000;

/// Cycles of each turn of one worker.
struct Turns(Vec<u64>);

impl Turns {
    /// Cycles a frame of the middle one.
    fn median(&mut self) -> f64 {
        median(&mut self.0) as f64 / BURST as f64
    }

    /// Cycles a frame of all that were not interrupted.
    fn mean(&self) -> f64 {
        let counting = || self.0.iter().filter(|&&cycles| cycles < TURN_MAX);
        counting().sum::<u64>() as f64 / (counting().count() * BURST) as f64
    }
}

/// Turns until it is time, and all frames are sent.
fn run(subscriber: Subscriber<Tables>, cpu: CoreId, seed: u32, start: &Barrier) -> Turns {
    core_affinity::set_for_current(cpu);
    let counters = Arc::new(Counters::new(16));
    let idle = (0..2 * BURST).map(|_| BenchFrame::default()).collect();
    let mut worker =
        Worker::new(Wire::new(idle, ()), 1, subscriber, Arc::clone(&counters), SETTINGS);
    let (clock, mut random) = (Clock::new(), Random::default());
    let vip = address_bytes(VIP);
    let mut cycles = Vec::with_capacity(1 << 22);
    start.wait();
    let begin = Instant::now();
    while begin.elapsed() < ROUND && cycles.len() < cycles.capacity() {
        let now = Tick(u64::try_from(begin.elapsed().as_millis()).unwrap_or_default());
        for _ in 0..BURST {
            let Some(mut frame) = worker.io().idle.pop() else { break };
            let flow = seed * FLOWS + random.below(FLOWS);
            frame.reset(MAC, &to_vip(vip, flow), tcp::ACK);
            worker.io().arriving.push(frame);
        }
        let turn = clock.raw();
        worker.turn(now);
        cycles.push(clock.raw() - turn);
    }
    assert_eq!(counters.sent.get(), (cycles.len() * BURST) as u64, "no frame is lost");
    worker.leave();
    Turns(cycles)
}

/// One worker, and two: what does each of them cost?
pub(crate) fn workers(
    args: &Args,
    clock: &Clock,
    cpus: &[CoreId],
) -> Result<Vec<EngineFigure>, Failure> {
    if !args.only.is_empty() && args.only != "workers" {
        return Ok(Vec::new());
    }
    let mut cpus: Vec<CoreId> = cpus.into();
    cpus.reverse(); // the first has most to do besides
    let served = Served { forward: Forward::L2dsr, vip: VIP, ipv6_backends: false };
    let tables = Arc::new(tables(&[served])?);
    let mut cycles: Vec<Vec<f64>> = vec![Vec::new(); cpus.len()];
    for _ in 0..args.rounds {
        for count in 1..=cpus.len() {
            let (_publisher, subscribers) = publication(&tables, count);
            let start = Barrier::new(count);
            let medians: Vec<f64> = thread::scope(|scope| {
                let threads: Vec<_> = subscribers
                    .into_iter()
                    .zip(&cpus)
                    .zip(0..)
                    .map(|((subscriber, &cpu), seed)| {
                        scope.spawn({
                            let start = &start;
                            move || run(subscriber, cpu, seed, start).median()
                        })
                    })
                    .collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
            });
            // Of all together: each sends at its own pace.
            let rate: f64 = medians.iter().map(|cycles| 1.0 / cycles).sum();
            cycles[count - 1].push(count as f64 / rate);
        }
    }
    let per_cycle = nanoseconds_per_cycle(clock);
    println!("workers  cycles a frame of each (min to max)  million frames/s  times one");
    let mut figures = Vec::new();
    for (count, mut cycles) in (1..).zip(cycles) {
        cycles.sort_unstable_by(f64::total_cmp);
        let figure = EngineFigure {
            name: format!("{WORKERS}{count}"),
            burst: BURST,
            flows: FLOWS,
            cycles: cycles[cycles.len() / 2],
            cycles_min: cycles[0],
            cycles_max: cycles[cycles.len() - 1],
            nanoseconds: cycles[cycles.len() / 2] * per_cycle,
            steps: Vec::new(),
        };
        let rate = |figure: &EngineFigure, count: i32| f64::from(count) * 1e3 / figure.nanoseconds;
        let one = figures.first().map_or(rate(&figure, count), |one| rate(one, 1));
        let (cycles, spread) = (figure.cycles, (figure.cycles_min, figure.cycles_max));
        let rate = rate(&figure, count);
        println!(
            "{count:>7} {cycles:>9.1} ({:.1} to {:.1}) {rate:>29.1} {:>10.2}",
            spread.0,
            spread.1,
            rate / one
        );
        figures.push(figure);
    }
    Ok(figures)
}

/// A service's backends change all the time: what does that cost the worker?
pub(crate) fn change(args: &Args, cpus: &[CoreId]) -> Result<(), Failure> {
    if !args.only.is_empty() && args.only != "change" {
        return Ok(());
    }
    let [control_cpu, .., cpu] = *cpus else {
        println!("changes of tables are not measured: that takes two CPUs");
        return Ok(());
    };
    core_affinity::set_for_current(control_cpu);
    println!("tables of {BACKENDS} backends that change, cycles a frame: medians (least to most)");
    for drained in DRAINED {
        let mut control = Control::new(drained)?;
        let (mut still, mut moving, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        let mut changes = 0;
        for _ in 0..args.rounds {
            let (unchanged, _) = control.beside(cpu, false)?;
            let (beside_changes, count) = control.beside(cpu, true)?;
            still.push(unchanged);
            moving.push(beside_changes);
            shares.push(unchanged / beside_changes * 100.0);
            changes += count;
        }
        let seconds = ROUND.as_secs_f64() * args.rounds as f64;
        println!(
            "{drained:>4} of them drained in turn, {:.0} versions a second: {}, else {}; throughput {} %, no \
             frame lost",
            f64::from(changes) / seconds,
            spread(moving),
            spread(still),
            spread(shares),
        );
    }
    Ok(())
}

fn spread(values: Vec<f64>) -> String {
    let spread = Spread::of(values);
    spread.map_or("-".into(), |it| format!("{:.1} ({:.1} to {:.1})", it.median, it.min, it.max))
}

/// Drains a backend, and lets it serve again, another one each time.
struct Control {
    tables: Arc<Tables>,
    next_hops: NextHops,
    /// The backends that are drained are the first so many.
    drained: u16,
    changes: u16,
}

impl Control {
    fn new(drained: u16) -> Result<Self, Failure> {
        let resolved = || Arc::new(Ok(Resolved { hops: Hops::from_iter([hop(1)]), gateway: None }));
        let next_hops = (0..BACKENDS).map(|n| (address(n), resolved())).collect();
        let mut tables = tables_without(None, &next_hops, None)?;
        tables.tracker = Arc::new(Tracker::new(2 * FLOWS));
        Ok(Self { tables: Arc::new(tables), next_hops, drained, changes: 0 })
    }

    /// Cycles a frame of a worker on `cpu`, while tables change or not; and how many changes there were.
    fn beside(&mut self, cpu: CoreId, is_moving: bool) -> Result<(f64, u32), Failure> {
        let (mut publisher, mut subscribers) = publication(&self.tables, 1);
        let subscriber = subscribers.pop().ok_or("no worker")?;
        let (stop, start) = (AtomicBool::new(false), Barrier::new(2));
        let mut count = 0;
        let turns = thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let turns = run(subscriber, cpu, 0, &start);
                stop.store(true, Ordering::Relaxed);
                turns
            });
            start.wait();
            while is_moving && !stop.load(Ordering::Relaxed) {
                let next = Instant::now() + PERIOD;
                if self.change(&mut publisher).is_ok() {
                    count += 1;
                }
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            worker.join()
        });
        Ok((turns.map_err(|_| "the worker has ended early")?.mean(), count))
    }

    fn change(&mut self, publisher: &mut Publisher<Tables>) -> Result<(), Failure> {
        self.changes = self.changes.wrapping_add(1);
        let mut tables = if self.drained == 0 {
            tables_without(None, &self.next_hops, None)?
        } else {
            let drained = (self.changes % 2 == 1).then_some(self.changes / 2 % self.drained);
            tables_without(drained, &self.next_hops, Some(&self.tables))?
        };
        tables.tracker = Arc::clone(&self.tables.tracker);
        self.tables = Arc::new(tables);
        publisher.publish(&self.tables);
        Ok(())
    }
}

fn tables_without(
    drained: Option<u16>,
    next_hops: &NextHops,
    previous: Option<&Tables>,
) -> Result<Tables, Failure> {
    let backend = |n: u16| Backend { drain: drained == Some(n), ..member(address(n), None) };
    let served = Served { forward: Forward::L2dsr, vip: VIP, ipv6_backends: false };
    let backends = (0..BACKENDS).map(backend).collect();
    let service = made(0, &served, (Protocol::Tcp, backends))?;
    let desired = DesiredState::new(HASH_KEY, vec![service]);
    let desired = desired.map_err(|findings| format!("{findings:?}"))?;
    Ok(compile(&desired, &Circumstances::new(&ports()?, next_hops), previous))
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 0, 4 + high, low).into()
}
