//! Frames through a real worker over simulated queues, and what has to be true afterwards.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lb_core::burst::WorkerId;
use lb_core::counters::Counters;
use lb_core::drop_reason::DropReason;
use lb_core::fragments::LIFETIME_MS;
use lb_core::frame::{BURST_MAX, Checked, Frame as _};
use lb_core::publish::publication;
use lb_core::rate::Tick;
use lb_core::sim::{HEADROOM_BYTES, SimFrame, SimIo};
use lb_core::state::Settings;
use lb_core::tables::next_hop::PortId;
use lb_core::worker::Worker;

use super::model::{Known, Model, Verdict, datagram_of};
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
    /// The connections that were opened.
    pub(crate) known: Vec<Known>,
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
    let (_publisher, mut subscribers) = publication(&world.untouched(), 1);
    let counters = Arc::new(Counters::new(world.tables.services.len()));
    let settings =
        Settings { worker: WorkerId(0), workers: 1, punts_per_second: limits.punts_per_second };
    let subscriber = subscribers.pop().unwrap();
    let mut worker =
        Worker::new(io, world.ports.len(), subscriber, Arc::clone(&counters), settings);
    let arrivals: Vec<&Arrival> = turns.iter().flatten().collect();
    let mut expected = Expected::new(world, &arrivals);
    let mut numbers = 0..;
    let mut now = Tick(0);
    for turn in turns {
        for (arrival, number) in turn.iter().zip(&mut numbers) {
            let io = worker.io();
            let queues = if arrival.from_kernel { &mut io.from_kernel } else { &mut io.arriving };
            queues[arrival.port.index()].push_back(arrival.frame(number));
            if !arrival.from_kernel {
                expected.waiting[arrival.port.index()].push_back(number);
            }
        }
        for _ in 0..=turn.len() / BURST_MAX {
            // Less than a fragment waits: that it is given up then, others test.
            now.0 = (now.0 + 3).min(LIFETIME_MS - 1);
            worker.turn(now);
            expected.turn(now.0);
        }
    }
    let io = worker.io();
    assert!(io.arriving.iter().chain(&io.from_kernel).all(VecDeque::is_empty));
    check_order(&arrivals, &expected.released, &io.sent);
    let fates = judge(&expected, &arrivals, io, &limits, now, &counters);
    let known = expected.model.known();
    world.forget(&known);
    Outcome { fates, drops: std::array::from_fn(|i| counters.drops[i].get()), known }
}

/// What the model says, frame by frame in the order in which a worker takes them.
struct Expected<'w> {
    world: &'w World,
    arrivals: &'w [&'w Arrival],
    model: Model<'w>,
    /// By port: numbers of the frames that wait to be received.
    waiting: Vec<VecDeque<usize>>,
    /// Numbers of the fragments that wait for their first one; of those whose first one came.
    held: Vec<usize>,
    ready: VecDeque<usize>,
    verdicts: BTreeMap<usize, Verdict>,
    /// Frames that did not leave in their turn.
    released: BTreeSet<usize>,
}

impl<'w> Expected<'w> {
    fn new(world: &'w World, arrivals: &'w [&'w Arrival]) -> Self {
        Self {
            world,
            arrivals,
            model: Model::new(world),
            waiting: vec![VecDeque::new(); world.ports.len()],
            held: Vec::new(),
            ready: VecDeque::new(),
            verdicts: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    fn turn(&mut self, now_ms: u64) {
        for port in 0..self.waiting.len() {
            let n = self.waiting[port].len().min(BURST_MAX);
            let burst: Vec<usize> = self.waiting[port].drain(..n).collect();
            self.burst(&burst, (now_ms, false));
            while let Some(&first) = self.ready.front() {
                let port = self.arrivals[first].port;
                let mut burst = Vec::new();
                while burst.len() < BURST_MAX
                    && let Some(next) = self.ready.pop_front_if(|n| self.arrivals[*n].port == port)
                {
                    burst.push(next);
                }
                self.burst(&burst, (now_ms, true));
            }
        }
    }

    fn burst(&mut self, burst: &[usize], now: (u64, bool)) {
        let (now_ms, _) = now;
        let mut new = Vec::new();
        let mut on_their_way = Vec::new();
        for &number in burst {
            match self.model.find(self.arrivals[number], now) {
                Err(Verdict::Hold) => {
                    new.push(number);
                    continue;
                }
                Err(verdict) => drop(self.verdicts.insert(number, verdict)),
                Ok(packet) => on_their_way.push((number, packet)),
            }
            // Whoever waited for this one is ready now.
            for number in std::mem::take(&mut self.held) {
                if self.is_followed(number, now_ms) {
                    self.ready.push_back(number);
                } else {
                    self.held.push(number);
                }
            }
        }
        on_their_way.retain_mut(|(number, packet)| {
            let connected = self.model.connect(packet);
            connected.map_err(|verdict| self.verdicts.insert(*number, verdict)).is_ok()
        });
        // Identifications are given in this order.
        on_their_way.sort_by_key(|(_, packet)| packet.kind());
        for (number, packet) in on_their_way {
            let verdict = self.model.leave(self.arrivals[number], &packet);
            self.verdicts.insert(number, verdict);
        }
        for number in new {
            self.released.insert(number);
            if self.is_followed(number, now_ms) {
                self.ready.push_back(number);
            } else {
                self.held.push(number);
            }
        }
    }

    /// Has the first fragment of this one's datagram come, or is there nothing to wait for?
    fn is_followed(&mut self, number: usize, now_ms: u64) -> bool {
        let name = datagram_of(self.arrivals[number]).expect("a fragment");
        self.model.datagrams.is_decided(self.world, &name, now_ms)
    }
}

/// Frames that came by one port and leave by one port keep their order.
/// Not so those that had to wait, and pieces of one frame come together.
fn check_order(arrivals: &[&Arrival], released: &BTreeSet<usize>, sent: &[Vec<SimFrame>]) {
    for frames in sent {
        let mut last = BTreeMap::new();
        for frame in frames.iter().filter(|frame| !released.contains(&frame.number)) {
            let arrival = arrivals[frame.number];
            let before = last.insert((arrival.port, arrival.from_kernel), frame.number);
            assert!(before.is_none_or(|before| before <= frame.number), "overtaken: {frame:?}");
        }
    }
}

/// Why an answer was not seen: it was one too many, or found no room. If both may be, nobody can tell.
const UNCLEAR: [DropReason; 3] = [DropReason::TooBig, DropReason::TtlExceeded, DropReason::TxFull];

/// Compares what came out with what the model says about each frame.
fn judge(
    expected: &Expected,
    arrivals: &[&Arrival],
    io: &SimIo,
    limits: &Limits,
    now: Tick,
    counters: &Counters,
) -> Vec<Verdict> {
    let mut out = came_out(io);
    let mut drops = [0; DropReason::COUNT];
    let mut traffic = 0;
    let mut fates = Vec::new();
    for (number, arrival) in arrivals.iter().enumerate() {
        let kernels = || Verdict::Send(arrival.port, vec![arrival.bytes.clone()]);
        let expect = if arrival.from_kernel {
            kernels()
        } else {
            expected.verdicts.get(&number).cloned().unwrap_or(Verdict::Hold)
        };
        traffic += u64::from(!arrival.from_kernel && matches!(expect, Verdict::Send(..)));
        let came = out.remove(&number);
        let fate = fate(&expect, came, (number, arrival), io, limits);
        match (&fate, &expect) {
            (Verdict::Drop(reason), Verdict::Send(_, frames)) => {
                drops[*reason as usize] += frames.len();
            }
            (Verdict::Drop(reason), _) => drops[*reason as usize] += 1,
            // Of the pieces of a frame some may have found no room.
            (Verdict::Send(_, sent), Verdict::Send(_, all)) if sent.len() < all.len() => {
                drops[DropReason::TxFull as usize] += all.len() - sent.len();
                assert_eq!(*sent, all[..sent.len()], "frame {number}");
            }
            _ => assert_eq!(fate, expect, "frame {number}: {arrival:?}"),
        }
        fates.push(fate);
    }
    assert!(out.is_empty(), "nobody sent {out:?}");
    let has_unclear = limits.punts_per_second < u32::MAX && limits.send_max < usize::MAX;
    let sums = UNCLEAR
        .map(|reason| (drops[reason as usize] as u64, counters.drops[reason as usize].get()));
    let [counted, found] = sums.iter().fold([0, 0], |[a, b], sum| [a + sum.0, b + sum.1]);
    assert_eq!(counted, found, "of {UNCLEAR:?} in all");
    for (reason, (count, counter)) in DropReason::ALL.iter().zip(drops.iter().zip(&counters.drops))
    {
        if !(has_unclear && UNCLEAR.contains(reason)) {
            assert_eq!(*count as u64, counter.get(), "{reason}");
        }
    }
    check_totals(expected, arrivals, io, traffic, counters);
    check_punt_limits(arrivals, &fates, io, limits, now);
    fates
}

/// What became of a frame.
fn fate(
    expect: &Verdict,
    came: Option<(Option<PortId>, Vec<SimFrame>)>,
    (number, arrival): (usize, &Arrival),
    io: &SimIo,
    limits: &Limits,
) -> Verdict {
    let bytes = |frames: &[SimFrame]| -> Vec<Vec<u8>> {
        frames.iter().map(|frame| frame.bytes().to_vec()).collect()
    };
    let is_full = |port: &PortId| {
        let sent = io.sent[port.index()].len();
        assert_eq!(sent, limits.send_max, "there was room to send frame {number}");
        Verdict::Drop(DropReason::TxFull)
    };
    match (came, expect) {
        (Some((Some(port), frames)), Verdict::Send(..)) => Verdict::Send(port, bytes(&frames)),
        (Some((Some(port), frames)), Verdict::Answer(_, _, reason)) => {
            Verdict::Answer(port, bytes(&frames).concat(), *reason)
        }
        (Some((None, frames)), Verdict::Punt) if bytes(&frames) == [&arrival.bytes[..]] => {
            Verdict::Punt
        }
        (None, Verdict::Drop(reason)) => Verdict::Drop(*reason),
        (None, Verdict::Hold) => Verdict::Hold,
        (None, Verdict::Answer(_, _, reason))
            if limits.punts_per_second < u32::MAX && *reason != DropReason::SynLimit =>
        {
            Verdict::Drop(*reason)
        }
        (None, Verdict::Send(port, _) | Verdict::Answer(port, ..)) => is_full(port),
        (None, Verdict::Punt) => Verdict::Drop(DropReason::PuntLimit),
        (came, expect) => panic!("frame {number} {arrival:?}: {came:?}, not {expect:?}"),
    }
}

/// By number: the frames, and the port that they were sent by; none, if punted.
fn came_out(io: &SimIo) -> BTreeMap<usize, (Option<PortId>, Vec<SimFrame>)> {
    let mut out: BTreeMap<usize, (Option<PortId>, Vec<SimFrame>)> = BTreeMap::new();
    for (frames, port) in io.sent.iter().zip((0..).map(PortId)) {
        for frame in frames {
            let (by, pieces) = out.entry(frame.number).or_insert((Some(port), Vec::new()));
            assert_eq!(*by, Some(port), "frame {} went two ways", frame.number);
            pieces.push(frame.clone());
        }
    }
    for frame in io.punted.iter().flatten() {
        let twice = out.insert(frame.number, (None, vec![frame.clone()]));
        assert!(twice.is_none(), "frame {} came out twice", frame.number);
    }
    out
}

fn check_totals(
    expected: &Expected,
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
    assert_eq!(counters.held.get(), expected.released.len() as u64);
    let held = counters.held.get() - counters.released.get();
    assert_eq!(held, expected.held.len() as u64);
    let is_challenged =
        |verdict: &&Verdict| matches!(verdict, Verdict::Answer(_, _, DropReason::SynLimit));
    let challenged = expected.verdicts.values().filter(is_challenged).count();
    assert_eq!(counters.challenged.get(), challenged as u64);
    assert_eq!(counters.admitted.get(), expected.model.admitted());
    let (came, went) = counters.balance();
    assert_eq!(came, went);
    let services = expected.world.tables.services.iter();
    let forwarded: u64 =
        services.map(|table| counters.service(table.id).unwrap().frames.get()).sum();
    assert_eq!(forwarded, traffic);
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
