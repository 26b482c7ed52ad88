//! One turn of a worker's loop.

use std::sync::Arc;

use crate::burst::{Burst, Fate};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::{Frame, Frames, Io};
use crate::pipeline::process;
use crate::publish::Subscriber;
use crate::tables::Tables;
use crate::tables::next_hop::PortId;

/// Coarse monotonic time: milliseconds since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// A bounded rate: so many a second, and no more than a tenth of that at once.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    per_second: u64,
    /// In thousandths, so that no millisecond's part is lost.
    tokens: u64,
    last: Tick,
}

impl RateLimit {
    /// At least one at once.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let mut limit = Self { per_second: per_second.into(), tokens: 0, last: Tick(0) };
        limit.tokens = limit.tokens_max();
        limit
    }

    fn tokens_max(&self) -> u64 {
        (self.per_second * 100).max(1000)
    }

    /// May one more pass?
    pub fn allow(&mut self, now: Tick) -> bool {
        let elapsed_ms = now.0.saturating_sub(self.last.0).min(1000);
        self.last = self.last.max(now);
        self.tokens = (self.tokens + elapsed_ms * self.per_second).min(self.tokens_max());
        let allowed = self.tokens >= 1000;
        self.tokens -= if allowed { 1000 } else { 0 };
        allowed
    }

    /// Takes an [`allow`](Self::allow) back: nothing passed after all.
    pub fn give_back(&mut self) {
        self.tokens = (self.tokens + 1000).min(self.tokens_max());
    }
}

/// All that one worker owns.
#[derive(Debug)]
pub struct Worker<I: Io> {
    io: I,
    tables: Subscriber<Tables>,
    counters: Arc<Counters>,
    burst: Burst<I::Frame>,
    /// By port: what it is to send.
    outgoing: Box<[Frames<I::Frame>]>,
    /// By port: what the kernel takes of what came in there.
    punts: Box<[RateLimit]>,
    dropped: Frames<I::Frame>,
}

impl<I: Io> Worker<I> {
    /// `punts_per_second` bounds what this worker gives to the kernel, for each port.
    #[must_use]
    pub fn new(
        io: I,
        ports: usize,
        tables: Subscriber<Tables>,
        counters: Arc<Counters>,
        punts_per_second: u32,
    ) -> Self {
        Self {
            io,
            tables,
            counters,
            burst: Burst::default(),
            outgoing: (0..ports).map(|_| Frames::new()).collect(),
            punts: (0..ports).map(|_| RateLimit::new(punts_per_second)).collect(),
            dropped: Frames::new(),
        }
    }

    /// Takes one burst of every port through the pipeline, and what the kernel sends to the ports.
    /// Returns how many frames came in.
    pub fn turn(&mut self, now: Tick) -> usize {
        let mut came = 0;
        for place in 0..self.outgoing.len() {
            #[expect(clippy::cast_possible_truncation, reason = "at most PORTS_MAX ports")]
            let port = PortId(place as u8);
            came += self.turn_port(port, now);
            came += self.inject(port);
        }
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

    fn turn_port(&mut self, port: PortId, now: Tick) -> usize {
        self.burst.refill(port, |frames| self.io.receive(port, frames));
        let came = self.burst.frames().len();
        if came == 0 {
            return 0;
        }
        self.counters.received.add(came as u64);
        process(&mut self.burst, self.tables.newest(), &self.counters);
        for (counter, &n) in self.counters.drops.iter().zip(self.burst.drops()) {
            if n != 0 {
                counter.add(n.into());
            }
        }
        let Self { io, burst, outgoing, punts, dropped, counters, .. } = self;
        burst.take(|frame, fate| match fate {
            Fate::Send(out) => match outgoing.get_mut(out.index()) {
                Some(frames) => frames.push(frame),
                None => refuse(frame, DropReason::NextHopUnresolved, dropped, counters),
            },
            Fate::Punt => {
                let allowed = punts.get_mut(port.index()).is_some_and(|punts| punts.allow(now));
                match if allowed { io.punt(port, frame) } else { Err(frame) } {
                    Ok(()) => counters.punted.add(1),
                    Err(frame) => refuse(frame, DropReason::PuntLimit, dropped, counters),
                }
            }
            Fate::Drop => dropped.push(frame),
        });
        self.io.discard(&mut self.dropped);
        self.flush();
        came
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

    /// Sends all that waits; what a queue refuses is dropped. One burst comes from one port, so each
    /// queue of frames has room for all of it.
    fn flush(&mut self) {
        for (frames, port) in self.outgoing.iter_mut().zip((0..).map(PortId)) {
            let waiting = frames.len();
            if waiting == 0 {
                continue;
            }
            self.io.send(port, frames);
            self.counters.sent.add((waiting - frames.len()) as u64);
            if !frames.is_empty() {
                self.counters.drops[DropReason::TxFull as usize].add(frames.len() as u64);
                self.io.discard(frames);
            }
        }
    }
}

#[cold]
fn refuse<F: Frame>(frame: F, reason: DropReason, dropped: &mut Frames<F>, counters: &Counters) {
    counters.drop(reason);
    dropped.push(frame);
}

#[cfg(test)]
mod tests {
    use super::*;
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
        (Worker::new(SimIo::new(ports), ports, subscriber, counters, punts_per_second), publisher)
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
    fn rates_are_bounded_and_the_bound_is_used() {
        // How many pass of one a millisecond, for so long?
        for (per_second, milliseconds, expect) in [
            (0, 10_000, 1),
            (1, 10_000, 1 + 9),
            (10, 10_000, 1 + 99),
            (100, 10_000, 10 + 999),
            (1000, 10_000, 10_000),
            (1_000_000, 10_000, 10_000),
        ] {
            let mut limit = RateLimit::new(per_second);
            let passed = (0..milliseconds).filter(|&ms| limit.allow(Tick(ms))).count();
            assert_eq!(passed, expect, "{per_second} a second");
        }
        // And at once, after a long silence?
        for (per_second, expect) in [(1, 1), (10, 1), (1000, 100), (5000, 500)] {
            let mut limit = RateLimit::new(per_second);
            let at_once =
                |limit: &mut RateLimit, now| (0..10_000).filter(|_| limit.allow(Tick(now))).count();
            assert_eq!(at_once(&mut limit, 0), expect);
            assert_eq!(at_once(&mut limit, 3_600_000), expect);
            assert_eq!(at_once(&mut limit, 0), 0, "time does not run backwards");
            limit.give_back();
            assert_eq!(at_once(&mut limit, 3_600_000), 1);
        }
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
