//! One turn of a worker's loop.

use std::sync::Arc;

use crate::burst::{Burst, Exit, Fate};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::{Frames, Io};
use crate::pipeline::process;
use crate::publish::Subscriber;
use crate::rate::{RateLimit, Tick};
use crate::state::{Settings, State};
use crate::stopwatch::{Clock, Step, Stopwatch};
use crate::tables::Tables;
use crate::tables::next_hop::PortId;

/// All that one worker owns.
#[derive(Debug)]
pub struct Worker<I: Io> {
    io: I,
    tables: Subscriber<Tables>,
    counters: Arc<Counters>,
    state: State<I::Frame>,
    burst: Burst<I::Frame>,
    /// By port: what it is to send.
    outgoing: Box<[Frames<I::Frame>]>,
    /// By port: what the kernel takes of what came in there.
    punts: Box<[RateLimit]>,
    dropped: Frames<I::Frame>,
}

impl<I: Io> Worker<I> {
    /// A worker at `ports` ports that has remembered nothing yet.
    #[must_use]
    pub fn new(
        io: I,
        ports: usize,
        tables: Subscriber<Tables>,
        counters: Arc<Counters>,
        settings: Settings,
    ) -> Self {
        let limit = RateLimit::new(settings.punts_per_second);
        Self {
            io,
            tables,
            counters,
            state: State::new(settings),
            burst: Burst::default(),
            outgoing: (0..ports).map(|_| Frames::new()).collect(),
            punts: vec![limit; ports].into(),
            dropped: Frames::new(),
        }
    }

    /// From now on some bursts are timed, see [`Stopwatch`].
    pub fn set_clock(&mut self, clock: Clock) {
        self.state.stopwatch = Stopwatch::new(clock);
    }

    /// Takes one burst of every port through the pipeline, what other workers hand over, and what
    /// the kernel sends to the ports. Returns how many frames came in.
    pub fn turn(&mut self, now: Tick) -> usize {
        self.state.now = now;
        let mut came = 0;
        for place in 0..self.outgoing.len() {
            #[expect(clippy::cast_possible_truncation, reason = "at most PORTS_MAX ports")]
            let port = PortId(place as u8);
            came += self.receive(port);
            came += self.take_over(port);
            came += self.inject(port);
        }
        self.give_up_late_fragments();
        // Also without traffic: a version is in force only when every worker says so.
        self.tables.newest();
        self.counters.turns.add(1);
        debug_assert_eq!(self.counters.balance().0, self.counters.balance().1, "a frame was lost");
        came
    }

    /// The last that a worker does: the tables go back to where they are freed.
    pub fn leave(self) {
        self.tables.leave();
    }

    /// The queues, for their owner to look at between turns.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// What waits at `port`.
    fn receive(&mut self, port: PortId) -> usize {
        self.state.stopwatch.start();
        self.burst.refill(port, |frames| self.io.receive(port, frames));
        let came = self.burst.frames().len();
        if came > 0 {
            self.counters.received.add(came as u64);
            self.run();
        }
        self.state.stopwatch.stop(came, &self.counters);
        came
    }

    /// What other workers hand over that came in by `port`.
    fn take_over(&mut self, port: PortId) -> usize {
        self.burst.refill(port, |frames| self.io.take_over(port, frames));
        let came = self.burst.frames().len();
        if came > 0 {
            self.counters.taken_over.add(came as u64);
            self.run();
        }
        came
    }

    /// The burst through the pipeline, and then the fragments that were waiting for what was in it.
    fn run(&mut self) {
        self.run_once();
        self.state.is_releasing = true;
        loop {
            let mut frames = Frames::new();
            let Some(port) = self.state.fragments.take_ready(&mut frames) else { break };
            self.counters.released.add(frames.len() as u64);
            self.burst.refill(port, |into| into.extend(frames));
            self.run_once();
        }
        self.state.is_releasing = false;
    }

    fn run_once(&mut self) {
        let port = self.burst.port();
        let Self { io, tables, counters, state, burst, outgoing, punts, dropped } = self;
        let tables = tables.newest();
        process(burst, tables, counters, state);
        burst.take(|place, frame, meta, fate| {
            io.decided(&frame, meta, fate);
            let refused = match fate {
                Fate::Send(out) | Fate::Exit(Exit::Answer(out, _)) => {
                    let refused = push(io, outgoing, counters, out, frame);
                    while let Some((out, piece)) = state.take_created(place) {
                        if let Err((piece, reason)) = push(io, outgoing, counters, out, piece) {
                            refuse(piece, reason, dropped, counters, io);
                        }
                    }
                    refused
                }
                Fate::Exit(Exit::Punt) => {
                    let allowed =
                        punts.get_mut(port.index()).is_some_and(|punts| punts.allow(state.now));
                    let punted = if allowed { io.punt(port, frame) } else { Err(frame) };
                    punted
                        .map(|()| counters.punted.add(1))
                        .map_err(|frame| (frame, DropReason::PuntLimit))
                }
                Fate::Exit(Exit::Hold) => state
                    .fragments
                    .hold(place, port, frame, state.now)
                    .map(|()| counters.held.add(1))
                    .map_err(|frame| (frame, DropReason::FragmentFull)),
                Fate::Exit(Exit::HandOver(worker)) => io
                    .hand_over(worker, port, frame)
                    .map(|()| counters.handed_over.add(1))
                    .map_err(|frame| (frame, DropReason::HandOverFull)),
                Fate::Exit(Exit::Drop(reason)) => Err((frame, reason)),
            };
            if let Err((frame, reason)) = refused {
                refuse(frame, reason, dropped, counters, io);
            }
        });
        self.io.discard(&mut self.dropped);
        self.flush();
        self.state.stopwatch.lap(Step::Send);
    }

    /// Sends what the kernel has for `port`.
    fn inject(&mut self, port: PortId) -> usize {
        let Some(frames) = self.outgoing.get_mut(port.index()) else {
            return 0;
        };
        self.io.receive_from_kernel(port, frames);
        let came = frames.len();
        if came > 0 {
            self.counters.injected.add(came as u64);
            self.flush();
        }
        came
    }

    fn give_up_late_fragments(&mut self) {
        let Self { io, counters, state, dropped, .. } = self;
        state.fragments.expire(state.now, |frame| {
            counters.released.add(1);
            refuse(frame, DropReason::FragmentTimeout, dropped, counters, io);
        });
        self.io.discard(&mut self.dropped);
    }

    /// Sends all that waits; what a queue refuses is dropped.
    fn flush(&mut self) {
        for (frames, port) in self.outgoing.iter_mut().zip((0..).map(PortId)) {
            send(&mut self.io, port, frames, &self.counters);
        }
    }
}

/// Sends `frames`; what the queue refuses is dropped.
fn send<I: Io>(io: &mut I, port: PortId, frames: &mut Frames<I::Frame>, counters: &Counters) {
    let waiting = frames.len();
    if waiting == 0 {
        return;
    }
    io.send(port, frames);
    counters.sent.add((waiting - frames.len()) as u64);
    if !frames.is_empty() {
        counters.drops[DropReason::TxFull as usize].add(frames.len() as u64);
        frames.iter().for_each(|frame| io.dropped(frame, DropReason::TxFull));
        io.discard(frames);
    }
}

/// Adds a frame to what is to be sent by `out`; sends what is there first, if that is a burst. One
/// burst comes from one port, so only packets in pieces fill a queue.
#[inline]
fn push<I: Io>(
    io: &mut I,
    outgoing: &mut [Frames<I::Frame>],
    counters: &Counters,
    out: PortId,
    frame: I::Frame,
) -> Result<(), (I::Frame, DropReason)> {
    let Some(frames) = outgoing.get_mut(out.index()) else {
        return Err((frame, DropReason::NextHopUnresolved));
    };
    if frames.is_full() {
        send(io, out, frames, counters);
    }
    frames.push(frame);
    Ok(())
}

fn refuse<I: Io>(
    frame: I::Frame,
    reason: DropReason,
    dropped: &mut Frames<I::Frame>,
    counters: &Counters,
    io: &mut I,
) {
    counters.drop(reason);
    io.dropped(&frame, reason);
    if dropped.is_full() {
        io.discard(dropped);
    }
    dropped.push(frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::WorkerId;
    use crate::counters::Counter;
    use crate::model::tests::spec;
    use crate::publish::{Publisher, publication};
    use crate::sim::packet::{self, BALANCER, Packet};
    use crate::sim::{SimFrame, SimIo};
    use crate::stage::classify::tests::tables;

    const LAN0: PortId = PortId(0);
    const LAN1: PortId = PortId(1);

    /// A worker with one service, whose backend is on the second port's link.
    fn worker(ports: usize, punts_per_second: u32) -> (Worker<SimIo>, Publisher<Tables>) {
        let tables = Arc::new(tables([spec("web", "10.0.0.100", &["10.1.0.11"])]));
        let (publisher, mut subscribers) = publication(&tables, 1);
        let counters = Arc::new(Counters::new(1));
        let subscriber = subscribers.pop().unwrap();
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second };
        (Worker::new(SimIo::new(ports), ports, subscriber, counters, settings), publisher)
    }

    fn for_service() -> SimFrame {
        SimFrame::new(&Packet::tcp("198.51.100.7:40000", "10.0.0.100:80").frame())
    }

    fn for_kernel() -> SimFrame {
        SimFrame::new(&packet::other(BALANCER, 0x0806, &[0; 28]))
    }

    fn drops(worker: &Worker<SimIo>, reason: DropReason) -> u64 {
        worker.counters.drops[reason as usize].get()
    }

    #[test]
    fn a_turn_moves_what_waits_at_every_port() {
        let (mut worker, _publisher) = worker(2, 1000);
        let io = worker.io();
        io.arriving[0].extend([for_service(), for_kernel(), for_service()]);
        io.arriving[1].push_back(for_service()); // another port's MAC
        io.from_kernel[0].push_back(for_kernel());
        io.from_kernel[1].extend([for_kernel(), for_kernel()]);
        assert_eq!(worker.turn(Tick(0)), 7);
        assert_eq!(worker.turn(Tick(1)), 0);
        let io = worker.io();
        let lengths = |queues: &[Vec<SimFrame>]| queues.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((lengths(&io.sent), lengths(&io.punted)), (vec![1, 4], vec![1, 0]));
        let counters = &worker.counters;
        let [received, injected] = [&counters.received, &counters.injected].map(Counter::get);
        assert_eq!((received, injected, counters.sent.get()), (4, 3, 5));
        assert_eq!((counters.punted.get(), counters.turns.get()), (1, 2));
        assert_eq!(drops(&worker, DropReason::NotOurs), 1);
        assert_eq!(worker.counters.balance(), (7, 7));
    }

    #[test]
    fn a_burst_a_port_is_taken_in_a_turn() {
        let (mut worker, _publisher) = worker(2, 1000);
        worker.io().arriving[0].extend((0..130).map(|_| for_service()));
        let turns: Vec<usize> = (0..4).map(|ms| worker.turn(Tick(ms))).collect();
        assert_eq!(turns, [64, 64, 2, 0]);
        assert_eq!(worker.io().sent[LAN1.index()].len(), 130);
    }

    #[test]
    fn what_a_queue_refuses_is_dropped_and_counted() {
        let (mut worker, _publisher) = worker(2, 1_000_000);
        (worker.io().send_max, worker.io().punt_max) = (5, 2);
        worker.io().arriving[0].extend((0..8).map(|_| for_service()));
        worker.io().arriving[0].extend((0..6).map(|_| for_kernel()));
        worker.io().from_kernel[0].extend((0..9).map(|_| for_kernel()));
        worker.turn(Tick(0));
        assert_eq!(worker.io().sent.iter().map(Vec::len).collect::<Vec<_>>(), [5, 5]);
        assert_eq!(drops(&worker, DropReason::TxFull), 3 + 4);
        assert_eq!(drops(&worker, DropReason::PuntLimit), 4);
        assert_eq!(worker.counters.punted.get(), 2);
    }

    /// Its flood at one port leaves the other ports' share of the kernel alone.
    #[test]
    fn punts_are_limited_port_by_port() {
        let (mut worker, _publisher) = worker(2, 100);
        worker.io().arriving[0].extend((0..64).map(|_| for_kernel()));
        let arp = SimFrame::new(&packet::other([0xff; 6], 0x0806, &[0; 28]));
        worker.io().arriving[1].push_back(arp);
        worker.turn(Tick(0));
        assert_eq!(worker.io().punted.iter().map(Vec::len).collect::<Vec<_>>(), [10, 1]);
        assert_eq!(drops(&worker, DropReason::PuntLimit), 54);
    }

    #[test]
    fn a_new_version_is_in_force_without_traffic() {
        let (mut worker, mut publisher) = worker(2, 1000);
        publisher.publish(&Arc::new(tables([])));
        assert_eq!(publisher.in_force(), 1);
        worker.turn(Tick(0));
        assert_eq!(publisher.in_force(), 2);
        worker.io().arriving[0].push_back(for_service());
        worker.turn(Tick(1));
        assert_eq!(worker.io().punted[LAN0.index()].len(), 1, "nobody's any more");
    }

    #[test]
    fn nothing_leaves_by_a_port_that_the_worker_does_not_have() {
        let (mut worker, _publisher) = worker(1, 1000);
        worker.io().arriving[0].push_back(for_service());
        worker.turn(Tick(0));
        assert_eq!(drops(&worker, DropReason::NextHopUnresolved), 1);
    }

    #[test]
    fn nothing_comes_in_by_a_port_that_the_tables_do_not_have() {
        let (mut worker, _publisher) = worker(3, 1000);
        worker.io().arriving[0].push_back(for_service());
        worker.io().arriving[2].push_back(for_service());
        worker.turn(Tick(0));
        assert_eq!(drops(&worker, DropReason::NotOurs), 1);
        assert_eq!(worker.io().sent.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0]);
    }
}
