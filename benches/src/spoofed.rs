//! Does a flood of packets from clients that are none push a tracked flow out? Established flows of
//! services in transition, and between their packets very many others, through a worker's whole turns.
//! In the end no slot is in transition any more, so a flow that was forgotten is on another backend.

use std::sync::Arc;

use lb_core::continuity;
use lb_core::continuity::Tracker;
use lb_core::counters::Counters;
use lb_core::fragments::WAITING_MAX;
use lb_core::frame::{BURST_MAX, Frame as _};
use lb_core::model::{Forward, Protocol};
use lb_core::publish::{Publisher, publication};
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use lb_core::tuple::address_bytes;
use lb_core::wire::{UDP, tcp};
use lb_core::worker::Worker;
use quanta::Clock;

use crate::flood::fragment;
use crate::tracked::{Memory, memory, tracker};
use crate::wire::{Watch, Wire};
use crate::world::{MAC, SETTINGS, Served, moved_tables, moving_tables};
use crate::{Args, Failure, median};
use lb_bench::traffic::{BenchFrame, Flow, client_of, datagram, headers, to_vip};

/// Flows that can be tracked.
const FLOWS_MAX: u32 = 4_000_000;
/// Established flows, half of them of each protocol.
const FLOWS: u32 = 1_000_000;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Frames of a burst.
const BURST: usize = 32;
/// Bursts of a flood for one of established flows.
const FLOOD_BURSTS: u64 = 4;
/// Bursts in a millisecond: two million frames a second.
const BURSTS_PER_TICK: u64 = 62;
/// Parts of the flow table, of which one is swept every [`SWEEP_BURSTS`].
const PARTS: usize = 64;
const SWEEP_BURSTS: u64 = 16 * BURSTS_PER_TICK;
/// Bursts of a flood whose cycles are remembered: the last ones.
const TIMED: usize = 1 << 14;
/// When no slot is in transition any more, whatever the service.
const LATER_MS: u64 = 24 * 3600 * 1000;

#[derive(Clone, Copy, Debug)]
enum Flood {
    /// Datagrams for a service whose packets do not open flows.
    Datagrams,
    /// Later fragments of datagrams whose first never comes.
    Rests,
    Syns,
}

const FLOODS: [(Flood, &str, u64); 3] = [
    (Flood::Datagrams, "UDP", 10_000_000),
    (Flood::Rests, "later fragments", 10_000_000),
    (Flood::Syns, "SYNs", 100_000_000),
];

/// Knows where established flows have to go.
#[derive(Debug)]
struct Judge {
    /// By protocol and client: the last byte of the backend's MAC; 0: none yet.
    backends: [Vec<u8>; 2],
    sent: u64,
    moved: u64,
}

impl Watch for Judge {
    fn sent(&mut self, frame: &BenchFrame) {
        let bytes = frame.bytes();
        let backends = &mut self.backends[usize::from(bytes[23] == UDP)];
        if let Some(backend) = backends.get_mut(client_of(bytes) as usize) {
            self.sent += 1;
            self.moved += u64::from(*backend != 0 && *backend != bytes[5]);
            *backend = bytes[5];
        }
    }
}

struct Scene {
    worker: Worker<Wire<Judge>>,
    counters: Arc<Counters>,
    publisher: Publisher<Tables>,
    tables: Arc<Tables>,
    served: Served,
    vip: [u8; 16],
    bursts: u64,
    /// Clients that have flooded.
    flooded: u32,
    /// Of the established flows, the next that sends.
    next: u32,
}

/// Prints what becomes of established flows in each flood, how much memory it takes, and the cycles of
/// one of its frames in a worker's turn.
///
/// # Errors
/// A flow is lost.
pub(crate) fn report(args: &Args, clock: &Clock) -> Result<(), Failure> {
    let flows = args.flows.unwrap_or(FLOWS / 2).min(FLOWS_MAX / 4);
    println!(
        "{:<16} {:>9} {:>9} {:>8}  {:>16} {:>9} {:>5}  {:>10} {:>14}",
        "flood of",
        "frames",
        "tracked",
        "no room",
        "established sent",
        "of flows",
        "lost",
        "more KiB",
        "cycles a frame"
    );
    let mut lost = 0;
    for (flood, title, frames) in FLOODS {
        let mut scene = Scene::new(flows)?;
        for _ in 0..2 {
            scene.all_send(flows);
        }
        assert_eq!(scene.tables.tracker.len(), 2 * flows, "all established flows are tracked");
        lost += scene.run((flood, title), (frames, flows), clock)?;
    }
    if lost > 0 { Err("established flows were lost".into()) } else { Ok(()) }
}

impl Scene {
    fn new(flows: u32) -> Result<Self, Failure> {
        let vip = "10.0.0.100".parse()?;
        let served = Served { forward: Forward::L2dsr, vip, ipv6_backends: false };
        let memory = memory(Tracker::words(FLOWS_MAX), true)?;
        memory.fill(0); // it is there from the beginning
        let tracker = tracker(FLOWS_MAX, memory)?;
        let tables = Arc::new(moving_tables(&served, &PROTOCOLS, tracker)?);
        let counters = Arc::new(Counters::new(16));
        let (publisher, subscribers) = publication(&tables, 1);
        let subscriber = subscribers.into_iter().next().ok_or("no worker")?;
        // As many as may wait, and two bursts.
        let idle = (0..WAITING_MAX + 2 * BURST_MAX).map(|_| BenchFrame::default()).collect();
        let backends = [(); 2].map(|()| vec![0; flows as usize]);
        let wire = Wire::new(idle, Judge { backends, sent: 0, moved: 0 });
        let worker = Worker::new(wire, 1, subscriber, Arc::clone(&counters), SETTINGS);
        let vip = address_bytes(vip);
        let (bursts, flooded, next) = (0, 0, 0);
        Ok(Self { worker, counters, publisher, tables, served, vip, bursts, flooded, next })
    }

    /// One flood. Returns how many established flows were lost.
    fn run(
        &mut self,
        (flood, title): (Flood, &str),
        (frames, flows): (u64, u32),
        clock: &Clock,
    ) -> Result<u64, Failure> {
        let counters = Arc::clone(&self.counters);
        let count = || [counters.tracked.get(), counters.untracked.get()];
        let mut cycles = vec![u64::MAX; TIMED]; // not zero: so it is there before memory is looked at
        let earlier = (count(), self.worker.io().watch.sent, Memory::now()?.all_kib);
        for burst in 0..frames / BURST as u64 {
            self.arrive(|scene, frame, _| scene.worse(flood, frame));
            let start = clock.raw();
            self.turn();
            let place = usize::try_from(burst % TIMED as u64)?;
            cycles[place] = clock.raw() - start;
            if burst.is_multiple_of(FLOOD_BURSTS) {
                self.established_send(flows);
            }
        }
        let later = (count(), self.worker.io().watch.sent, Memory::now()?.all_kib);
        self.end(flows)?;
        let lost = self.worker.io().watch.moved;
        let [tracked, untracked] = [0, 1].map(|n| later.0[n] - earlier.0[n]);
        println!(
            "{title:<16} {frames:>9} {tracked:>9} {untracked:>8}  {:>16} {:>9} {lost:>5}  {:>10} {:>14.0}",
            later.1 - earlier.1,
            2 * flows,
            later.2.cast_signed() - earlier.2.cast_signed(),
            median(&mut cycles) as f64 / BURST as f64,
        );
        Ok(lost)
    }

    /// A burst of what `make` makes comes.
    fn arrive(&mut self, make: impl Fn(&mut Self, &mut BenchFrame, usize)) {
        for place in 0..BURST {
            let Some(mut frame) = self.worker.io().idle.pop() else { break };
            make(self, &mut frame, place);
            self.worker.io().arriving.push(frame);
        }
        assert_eq!(self.worker.io().arriving.len(), BURST, "what waits is bounded");
        self.bursts += 1;
        if self.bursts.is_multiple_of(SWEEP_BURSTS) {
            // As control does it.
            let part = usize::try_from(self.bursts / SWEEP_BURSTS).unwrap_or(0) % PARTS;
            let _ = continuity::sweep(&self.tables, (part, PARTS), self.now());
        }
    }

    fn now(&self) -> Tick {
        Tick(self.bursts / BURSTS_PER_TICK)
    }

    fn turn(&mut self) {
        let now = self.now();
        self.worker.turn(now);
    }

    /// A packet of the next established flows, half of them TCP.
    fn established_send(&mut self, flows: u32) {
        let before = self.worker.io().watch.sent;
        self.arrive(|scene, frame, place| {
            let flow = to_vip(scene.vip, scene.next);
            if place % 2 == 0 {
                frame.reset(MAC, &flow, tcp::ACK);
            } else {
                whole(frame, &flow);
                scene.next = (scene.next + 1) % flows;
            }
        });
        self.turn();
        let sent = self.worker.io().watch.sent - before;
        assert_eq!(sent, BURST as u64, "established flows go on");
    }

    /// A packet of each established flow.
    fn all_send(&mut self, flows: u32) {
        self.next = 0;
        for _ in 0..(2 * flows as usize).div_ceil(BURST) {
            self.established_send(flows);
        }
    }

    /// Ends the transitions; then established flows send once more.
    fn end(&mut self, flows: u32) -> Result<(), Failure> {
        let later = Tick(LATER_MS);
        let tables = moved_tables(&self.served, &PROTOCOLS, (&self.tables, later))?;
        assert!(!tables.in_transition, "all transitions are over");
        self.tables = Arc::new(tables);
        self.publisher.publish(&self.tables);
        self.all_send(flows);
        Ok(())
    }

    /// Makes a frame of the flood.
    fn worse(&mut self, flood: Flood, frame: &mut BenchFrame) {
        self.flooded += 1;
        // Clients that are none of the established ones.
        let flow = to_vip(self.vip, self.flooded | 1 << 31);
        match flood {
            Flood::Datagrams => whole(frame, &flow),
            Flood::Rests => fragment(frame, &flow, (self.flooded, 3)),
            Flood::Syns => frame.reset(MAC, &flow, tcp::SYN),
        }
    }
}

/// A UDP datagram of 18 bytes.
fn whole(frame: &mut BenchFrame, flow: &Flow) {
    const LEN: u16 = 26;
    let bytes = frame.restart(14 + 20 + usize::from(LEN));
    headers(bytes, MAC, flow, (UDP, LEN));
    datagram(&mut bytes[34..], flow);
}
