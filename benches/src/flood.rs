//! What a flood costs those who are no part of it: bursts of established flows through a worker, each
//! followed by a burst of something worse, with tables, caches and memory shared. Only the
//! established ones are timed; all of them have to be sent.

use std::sync::Arc;

use lb_core::admission::{Admission, Gate};
use lb_core::counters::Counters;
use lb_core::fragments::WAITING_MAX;
use lb_core::frame::BURST_MAX;
use lb_core::model::{AboveRate, Forward, SynBound};
use lb_core::publish::publication;
use lb_core::rate::Tick;
use lb_core::tuple::address_bytes;
use lb_core::wire::checksum::Checksum;
use lb_core::wire::{ICMP, TCP, icmp, tcp};
use lb_core::worker::Worker;
use quanta::Clock;
use stats_alloc::Region;
use zerocopy::IntoBytes;

use crate::cases::full_nat;
use crate::wire::Wire;
use crate::world::{HASH_KEY, MAC, SETTINGS, Served, establish, tables};
use crate::{ALLOCATOR, Args, Failure, median};
use lb_bench::Random;
use lb_bench::traffic::{BenchFrame, Flow, Flows, cut, headers, to_vip};

/// Frames of a burst, of either kind.
const BURST: usize = 32;
/// Established flows, unless another number was asked for.
const FLOWS: u32 = 1_000_000;
/// Of those who flood; they come again after so many.
const FLOODERS: u32 = 1 << 24;
/// Bursts in a millisecond: two million frames a second.
const BURSTS_PER_TICK: usize = 62;
const VIPS: [&str; 2] = ["10.0.0.100", "10.0.0.101"];

/// What comes between the bursts of the established flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// More of the same.
    None,
    /// First fragments whose rest never comes.
    Firsts,
    /// Later fragments whose first never comes.
    Rests,
    /// ICMP errors about flows of the service.
    Errors,
    /// From as many clients as there are frames, to the `fullnat` service.
    Syns,
    /// More of the same, to services with a bound on SYNs.
    Bounded,
    /// From as many clients as there are frames, to the service that has the established flows, and a
    /// bound.
    Challenged,
}

impl Flood {
    /// Do the services have a bound?
    fn is_bounded(self) -> bool {
        matches!(self, Self::Bounded | Self::Challenged)
    }
}

/// SYNs in a second: hardly any of a flood.
const BOUND: SynBound = SynBound { rate: 1000, above: AboveRate::Challenge };

const FLOODS: [(Flood, &str); 7] = [
    (Flood::None, "none"),
    (Flood::Firsts, "first fragments"),
    (Flood::Rests, "later fragments"),
    (Flood::Errors, "ICMP errors"),
    (Flood::Syns, "SYNs"),
    (Flood::Bounded, "none, bounded"),
    (Flood::Challenged, "SYNs, bounded"),
];

struct Scene {
    worker: Worker<Wire<()>>,
    counters: Arc<Counters>,
    established: Flows,
    flows: u32,
    /// Of the service that has the established flows.
    vip: [u8; 16],
    pooled_vip: [u8; 16],
    random: Random,
    flooded: u32,
    bursts: usize,
}

/// Prints what each flood does to each kind of service.
pub(crate) fn report(args: &Args, clock: &Clock) -> Result<(), Failure> {
    if !args.only.is_empty() && !args.only.contains("flood") {
        return Ok(());
    }
    println!("established  flood             cycles a frame   rise  of the flood, a frame");
    for (name, is_pooled) in [("l2dsr", false), ("fullnat", true)] {
        let mut scenes = Vec::new();
        for (flood, title) in FLOODS {
            let scene = Scene::new(args, is_pooled, flood.is_bounded())?;
            scenes.push((flood, title, scene, Vec::new(), Vec::new()));
        }
        for round in 0..=args.rounds {
            for (flood, _, scene, ours, theirs) in &mut scenes {
                let (our, their) = scene.run(*flood, args.frames, clock);
                if round > 0 {
                    ours.push(our);
                    theirs.push(their);
                }
            }
        }
        let least = |cycles: &[f64]| cycles.iter().copied().fold(f64::INFINITY, f64::min);
        let alone = least(&scenes[0].3);
        for (_, title, _, ours, theirs) in &scenes {
            let (ours, theirs) = (least(ours), least(theirs));
            let rise = (ours / alone - 1.0) * 100.0;
            println!("{name:<12} {title:<16} {ours:>15.1} {rise:>5.0}% {theirs:>23.1}");
        }
    }
    Ok(())
}

impl Scene {
    fn new(args: &Args, is_pooled: bool, is_bounded: bool) -> Result<Self, Failure> {
        let [vip, pooled_vip] = VIPS.map(str::parse);
        let (vip, pooled_vip) = (vip?, pooled_vip?);
        let served = [
            Served { forward: Forward::L2dsr, vip, ipv6_backends: false },
            Served { forward: full_nat(false)?, vip: pooled_vip, ipv6_backends: false },
        ];
        let mut tables = tables(&served)?;
        let mut flows = args.flows.unwrap_or(FLOWS);
        let established = if is_pooled {
            let opened = establish(&tables, pooled_vip, flows).from_clients;
            flows = u32::try_from(opened.len())?;
            Flows::Listed(opened.into())
        } else {
            Flows::ToVip(address_bytes(vip))
        };
        if is_bounded {
            tables.admission = Some(Arc::new(Admission::new(HASH_KEY)));
            for service in tables.services.iter_mut().map(Arc::make_mut) {
                service.gate = Some(Arc::new(Gate::new(BOUND)));
            }
        }
        let counters = Arc::new(Counters::new(16));
        let (_, subscribers) = publication(&Arc::new(tables), 1);
        let subscriber = subscribers.into_iter().next().ok_or("no worker")?;
        // As many as may wait, and two bursts.
        let idle = (0..WAITING_MAX + 2 * BURST_MAX).map(|_| BenchFrame::default()).collect();
        let wire = Wire::new(idle, ());
        Ok(Self {
            worker: Worker::new(wire, 1, subscriber, Arc::clone(&counters), SETTINGS),
            counters,
            established,
            flows,
            vip: address_bytes(if is_pooled { pooled_vip } else { vip }),
            pooled_vip: address_bytes(pooled_vip),
            random: Random::default(),
            flooded: 0,
            bursts: 0,
        })
    }

    /// Cycles a frame, of the established flows and of the flood.
    fn run(&mut self, flood: Flood, frames: u64, clock: &Clock) -> (f64, f64) {
        let bursts = usize::try_from(frames).unwrap_or(usize::MAX) / BURST;
        let (mut ours, mut theirs) = (Vec::with_capacity(bursts), Vec::with_capacity(bursts));
        let region = Region::new(ALLOCATOR);
        for _ in 0..bursts {
            let before = self.counters.sent.get();
            ours.push(self.turn(clock, |scene, frame| {
                let flow = scene.established.get(scene.random.below(scene.flows));
                frame.reset(MAC, &flow, tcp::ACK);
            }));
            let sent = self.counters.sent.get() - before;
            assert_eq!(sent, BURST as u64, "a flood pushes no established flow out");
            theirs.push(self.turn(clock, |scene, frame| scene.worse(flood, frame)));
        }
        let change = region.change();
        let grown = (change.allocations, change.reallocations);
        assert_eq!(grown, (0, 0), "memory is bounded");
        let a_frame = |cycles: &mut Vec<u64>| median(cycles) as f64 / BURST as f64;
        (a_frame(&mut ours), a_frame(&mut theirs))
    }

    /// Cycles of a turn with a burst of what `make` makes.
    fn turn(&mut self, clock: &Clock, make: impl Fn(&mut Self, &mut BenchFrame)) -> u64 {
        for _ in 0..BURST {
            let Some(mut frame) = self.worker.io().idle.pop() else { break };
            make(self, &mut frame);
            self.worker.io().arriving.push(frame);
        }
        assert_eq!(self.worker.io().arriving.len(), BURST, "what waits is bounded");
        self.bursts += 1;
        let now = Tick((self.bursts / BURSTS_PER_TICK) as u64);
        let start = clock.raw();
        self.worker.turn(now);
        clock.raw() - start
    }

    /// Makes a frame of the flood.
    fn worse(&mut self, flood: Flood, frame: &mut BenchFrame) {
        self.flooded = (self.flooded + 1) % FLOODERS;
        let number = self.flooded;
        match flood {
            Flood::None | Flood::Bounded => {
                let flow = self.established.get(self.random.below(self.flows));
                frame.reset(MAC, &flow, tcp::ACK);
            }
            Flood::Firsts => fragment(frame, &to_vip(self.vip, number), (number, 0x2000)),
            Flood::Rests => fragment(frame, &to_vip(self.vip, number), (number, 3)),
            Flood::Errors => {
                error(frame, &self.established.get(self.random.below(self.flows)));
            }
            Flood::Syns => {
                // Clients that have no connection.
                let flow = to_vip(self.pooled_vip, number | 1 << 31);
                frame.reset(MAC, &flow, tcp::SYN);
            }
            Flood::Challenged => {
                frame.reset(MAC, &to_vip(self.vip, number | 1 << 31), tcp::SYN);
            }
        }
    }
}

/// 24 bytes of a datagram, with this number, flags and offset.
pub(crate) fn fragment(frame: &mut BenchFrame, flow: &Flow, (number, place): (u32, u16)) {
    let bytes = frame.restart(14 + 20 + 24);
    headers(bytes, MAC, flow, (TCP, 24));
    let [.., high, low] = number.to_be_bytes();
    cut(&mut bytes[14..], u16::from_be_bytes([high, low]), place);
    let [src, dst] = flow.ports.map(u16::to_be_bytes);
    bytes[34..38].copy_from_slice([src, dst].as_bytes());
    bytes[38..].fill(0);
}

/// "Fragmentation needed" about a packet that the service has sent to the client of a flow.
fn error(frame: &mut BenchFrame, flow: &Flow) {
    const MESSAGE: u16 = 8 + 20 + 8;
    let router = lb_core::tuple::mapped([192, 0, 2, 9]);
    let bytes = frame.restart(14 + 20 + usize::from(MESSAGE));
    headers(bytes, MAC, &Flow { src: router, ..*flow }, (ICMP, MESSAGE));
    let message = &mut bytes[34..];
    message[..8].copy_from_slice(&[
        icmp::UNREACHABLE,
        icmp::FRAGMENTATION_NEEDED,
        0,
        0,
        0,
        0,
        5,
        0,
    ]);
    let mut quoted = [0; 14 + 20 + 8];
    headers(&mut quoted, MAC, &Flow { src: flow.dst, dst: flow.src, ..*flow }, (TCP, 1000));
    let [src, dst] = flow.ports.map(u16::to_be_bytes);
    quoted[34..38].copy_from_slice([dst, src].as_bytes());
    message[8..].copy_from_slice(&quoted[14..]);
    let checksum = Checksum::of(message);
    message[2..4].copy_from_slice(checksum.as_bytes());
}
