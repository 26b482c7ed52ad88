//! Frames through a real worker over simulated queues, and what has to be true afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_core::counters::Counters;
use lb_core::drop_reason::DropReason;
use lb_core::frame::{BURST_MAX, Checked, Frame as _};
use lb_core::publish::publication;
use lb_core::sim::{HEADROOM_BYTES, SimFrame, SimIo};
use lb_core::tables::next_hop::PortId;
use lb_core::worker::{Tick, Worker};

use super::model::{Verdict, verdict};
use super::world::World;

/// A frame on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) port: PortId,
    /// Not received: the kernel wants it sent out of `port`.
    pub(crate) from_kernel: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) headroom: usize,
    pub(crate) is_split: bool,
    pub(crate) checked: Checked,
}

impl Arrival {
    /// A frame that comes in by the first port, without a fault.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            port: PortId(0),
            from_kernel: false,
            bytes,
            headroom: HEADROOM_BYTES,
            is_split: false,
            checked: Checked::Unknown,
        }
    }

    /// The arrival, changed.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn frame(&self, number: usize) -> SimFrame {
        let mut frame = SimFrame::with_headroom(&self.bytes, self.headroom);
        frame.number = number;
        frame.is_split = self.is_split;
        frame.ipv4_checked = self.checked;
        frame
    }
}

/// What the queues refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Frames that each port sends, in all.
    pub(crate) send_max: usize,
    /// Frames that the kernel takes from each port, in all.
    pub(crate) punt_max: usize,
    /// The worker's own limit.
    pub(crate) punts_per_second: u32,
}

impl Limits {
    pub(crate) const NONE: Self =
        Self { send_max: usize::MAX, punt_max: usize::MAX, punts_per_second: u32::MAX };
}

/// What became of each frame, by its number, and the drops that were counted.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) fates: Vec<Verdict>,
    pub(crate) drops: [u64; DropReason::COUNT],
}

/// Sends `turns` of frames through a worker, a few milliseconds apart, and checks all of it against
/// the model.
///
/// # Panics
/// A frame is lost, multiplied or changed, goes where the model does not send it, or is dropped
/// for another reason or none; a counter is wrong; a queue is given more than it takes.
pub(crate) fn run(world: &World, turns: &[Vec<Arrival>], limits: Limits) -> Outcome {
    let mut io = SimIo::new(world.ports.len());
    (io.send_max, io.punt_max) = (limits.send_max, limits.punt_max);
    let (_publisher, mut subscribers) = publication(&world.tables, 1);
    let counters = Arc::new(Counters::new(world.tables.services.len()));
    let mut worker = Worker::new(
        io,
        world.ports.len(),
        subscribers.pop().unwrap(),
        Arc::clone(&counters),
        limits.punts_per_second,
    );
    let mut numbers = 0..;
    let mut now = Tick(0);
    for arrivals in turns {
        for (arrival, number) in arrivals.iter().zip(&mut numbers) {
            let io = worker.io();
            let queues = if arrival.from_kernel { &mut io.from_kernel } else { &mut io.arriving };
            queues[arrival.port.index()].push_back(arrival.frame(number));
        }
        for _ in 0..=arrivals.len() / BURST_MAX {
            now.0 += 3;
            worker.turn(now);
        }
    }
    let io = worker.io();
    assert!(io.arriving.iter().chain(&io.from_kernel).all(std::collections::VecDeque::is_empty));
    let arrivals: Vec<&Arrival> = turns.iter().flatten().collect();
    check_order(&arrivals, &io.sent);
    let fates = judge(world, &arrivals, io, &limits, now, &counters);
    Outcome { fates, drops: std::array::from_fn(|i| counters.drops[i].get()) }
}

/// Frames that came by one port and leave by one port keep their order.
fn check_order(arrivals: &[&Arrival], sent: &[Vec<SimFrame>]) {
    for frames in sent {
        let mut last = BTreeMap::new();
        for frame in frames {
            let arrival = arrivals[frame.number];
            let before = last.insert((arrival.port, arrival.from_kernel), frame.number);
            assert!(before.is_none_or(|before| before < frame.number), "overtaken: {frame:?}");
        }
    }
}

/// Compares what came out with what the model says about each frame.
fn judge(
    world: &World,
    arrivals: &[&Arrival],
    io: &SimIo,
    limits: &Limits,
    now: Tick,
    counters: &Counters,
) -> Vec<Verdict> {
    let mut out = came_out(io);
    let mut drops = [0; DropReason::COUNT];
    let mut traffic = 0;
    let fates: Vec<Verdict> = arrivals
        .iter()
        .enumerate()
        .map(|(number, arrival)| {
            let expect = if arrival.from_kernel {
                Verdict::Send(arrival.port, arrival.bytes.clone())
            } else {
                let expect = verdict(world, arrival);
                traffic += u64::from(matches!(expect, Verdict::Send(..)));
                expect
            };
            let fate = match (out.remove(&number), &expect) {
                (Some((port, frame)), Verdict::Send(..)) => {
                    Verdict::Send(port.expect("not punted"), frame.bytes().to_vec())
                }
                (Some((None, frame)), Verdict::Punt) if frame.bytes() == arrival.bytes => {
                    Verdict::Punt
                }
                (None, Verdict::Drop(reason)) => Verdict::Drop(*reason),
                (None, Verdict::Send(port, _)) => {
                    let sent = io.sent[port.index()].len();
                    assert_eq!(sent, limits.send_max, "there was room to send frame {number}");
                    Verdict::Drop(DropReason::TxFull)
                }
                (None, Verdict::Punt) => Verdict::Drop(DropReason::PuntLimit),
                (out, expect) => panic!("frame {number} {arrival:?}: {out:?}, not {expect:?}"),
            };
            match fate {
                Verdict::Drop(reason) => drops[reason as usize] += 1,
                _ => assert_eq!(fate, expect, "frame {number}: {arrival:?}"),
            }
            fate
        })
        .collect();
    assert!(out.is_empty(), "nobody sent {out:?}");
    for (reason, (count, counter)) in DropReason::ALL.iter().zip(drops.iter().zip(&counters.drops))
    {
        assert_eq!(*count, counter.get(), "{reason}");
    }
    check_totals(world, arrivals, io, traffic, counters);
    check_punt_limits(arrivals, &fates, io, limits, now);
    fates
}

/// By number: the frame, and the port that it was sent by; none, if it was punted.
fn came_out(io: &SimIo) -> BTreeMap<usize, (Option<PortId>, SimFrame)> {
    let mut out = BTreeMap::new();
    for (frames, port) in io.sent.iter().zip((0..).map(PortId)) {
        for frame in frames {
            let twice = out.insert(frame.number, (Some(port), frame.clone()));
            assert!(twice.is_none(), "frame {} came out twice", frame.number);
        }
    }
    for frame in io.punted.iter().flatten() {
        let twice = out.insert(frame.number, (None, frame.clone()));
        assert!(twice.is_none(), "frame {} came out twice", frame.number);
    }
    out
}

fn check_totals(
    world: &World,
    arrivals: &[&Arrival],
    io: &SimIo,
    traffic: u64,
    counters: &Counters,
) {
    let (injected, received): (Vec<&Arrival>, Vec<&Arrival>) =
        arrivals.iter().partition(|arrival| arrival.from_kernel);
    let count = |queues: &[Vec<SimFrame>]| queues.iter().map(Vec::len).sum::<usize>() as u64;
    assert_eq!(counters.received.get(), received.len() as u64);
    assert_eq!(counters.injected.get(), injected.len() as u64);
    assert_eq!(counters.sent.get(), count(&io.sent));
    assert_eq!(counters.punted.get(), count(&io.punted));
    let (came, went) = counters.balance();
    assert_eq!(came, went);
    let forwarded =
        |table: &lb_core::tables::ServiceTable| counters.service(table.id).unwrap().frames.get();
    assert_eq!(world.tables.services.iter().map(forwarded).sum::<u64>(), traffic);
}

/// The worker's limit lets a tenth of a second's frames through at once (or one), and the rest as
/// time passes; what it lets through, the kernel takes if it has room.
fn check_punt_limits(
    arrivals: &[&Arrival],
    fates: &[Verdict],
    io: &SimIo,
    limits: &Limits,
    now: Tick,
) {
    let per_second = u64::from(limits.punts_per_second);
    let at_once_thousandths = (per_second * 100).max(1000);
    let at_once = at_once_thousandths / 1000;
    let in_all = (at_once_thousandths + per_second * now.0) / 1000;
    let refused: BTreeSet<PortId> = fates
        .iter()
        .zip(arrivals)
        .filter(|(fate, _)| **fate == Verdict::Drop(DropReason::PuntLimit))
        .map(|(_, arrival)| arrival.port)
        .collect();
    for (punted, port) in io.punted.iter().zip((0..).map(PortId)) {
        assert!(punted.len() <= limits.punt_max && punted.len() as u64 <= in_all);
        let had_room = punted.len() < limits.punt_max && (punted.len() as u64) < at_once;
        assert!(!(had_room && refused.contains(&port)), "the kernel could have had more");
    }
}
