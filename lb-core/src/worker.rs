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
