//! Sends frames at a rate, and counts and times those that come back.

use std::thread;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use dpdk::{
    Eal, Mbuf, MbufPool, Port, PortConfig, RxQueue, Started, StartedPort, TxQueue, free_bulk,
};
use hdrhistogram::Histogram;
use quanta::Clock;

use crate::mix::Mix;
use crate::stamp::{STAMP_BYTES, stamp, stamped};

/// Frames that are sent or received at once, at most.
const BURST: usize = 64;
/// Frames in a queue of a port's.
const DESCRIPTORS: u16 = 1024;
/// Who is behind by more than this, or a burst, does not catch up: the wait would be the generator's own.
const BEHIND_MAX: Duration = Duration::from_micros(20);
/// A turn of the loop takes some microseconds. When one takes this long, the CPU was somebody else's.
const TURN_MAX: Duration = Duration::from_micros(10);
/// How often it is asked whether the device was interrupted.
const WINDOW: Duration = Duration::from_millis(2);
/// When nothing has come for so long, what is not back is lost.
const SILENCE: Duration = Duration::from_millis(50);
/// Flows that begin in a second, before a measurement.
const BEGINNINGS_PER_SECOND: f64 = 500_000.0;
/// Latencies are told to one part in a hundred.
const DIGITS: u8 = 2;
/// Cycles: longer than any latency that a stamp can tell.
const CYCLES_MAX: u64 = 1 << 32;

/// What is sent.
#[derive(Debug)]
pub enum Frames {
    /// Frames that are made.
    Made(Box<Mix>),
    /// Those of a capture, over and over; whatever comes back is taken for one of them.
    Captured {
        /// In the capture's order; not empty.
        frames: Vec<Vec<u8>>,
        /// Which is next.
        next: usize,
    },
}

/// How much is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As much as the device takes.
    Full,
    /// Frames a second, whether the device takes them or not.
    Of(f64),
}

/// What came of a load.
#[derive(Clone, Debug)]
pub struct Count {
    /// For how long frames were sent.
    pub seconds: f64,
    /// Frames that should come back, those included that found the device's queue full.
    pub offered: u64,
    /// Of those, the ones that found it full.
    pub refused: u64,
    /// Frames that came back.
    pub received: u64,
    /// Frames of attacks.
    pub attacks: u64,
    /// Frames of somebody else's.
    pub others: u64,
    /// Share of the time in which the generator's CPU was somebody else's.
    pub away: f64,
    /// From sending to receiving, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The same without the frames that were on their way while the generator was interrupted, and without
    /// the windows in which the device was, and those that follow: queues have to become empty again.
    pub calm: Histogram<u64>,
}

/// A port that frames are sent to, and come back by.
#[derive(Debug)]
pub struct Line {
    port: Port<Started>,
    rx: RxQueue,
    tx: TxQueue,
    pool: MbufPool,
    clock: Clock,
    cycles_per_second: f64,
    /// An empty one.
    histogram: Histogram<u64>,
}

/// A line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// There is no such device.
    #[error("{0}; check the device and its arguments")]
    Attach(#[from] dpdk::AttachError),
    /// It cannot be used as it should.
    #[error(transparent)]
    Port(#[from] dpdk::PortError),
    /// Latencies cannot be counted.
    #[error("no histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// A port without queues.
    #[error("the device has no queues")]
    NoQueue,
    /// It has left before it was measured.
    #[error("it has ended")]
    Ended,
    /// Nobody is at the other end.
    #[error("the link of {port} is not up after {seconds} s")]
    NoLink {
        /// The port.
        port: String,
        /// How long that was waited for.
        seconds: u64,
    },
    /// What is sent does not come back.
    #[error("nothing comes back after {seconds} s")]
    Silent {
        /// How long that was waited for.
        seconds: u64,
    },
}

impl Line {
    /// Opens a device of DPDK's.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn open(eal: Eal, pool: MbufPool, device: &str) -> Result<Self, LineError> {
        let config = PortConfig {
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
            promiscuous: true,
            ..PortConfig::default()
        };
        let StartedPort { port, queues } = eal.attach(device)?.configure(&config)?.start(&pool)?;
        let (rx, tx) = queues.into_iter().next().ok_or(LineError::NoQueue)?;
        let clock = Clock::new();
        let nanoseconds = clock.delta_as_nanos(0, 1_000_000_000) as f64;
        let histogram = Histogram::new_with_bounds(1, CYCLES_MAX, DIGITS)?;
        Ok(Self { port, rx, tx, pool, clock, cycles_per_second: 1e18 / nanoseconds, histogram })
    }

    /// Waits until somebody is at the other end; `is_there` says whether he still can come.
    ///
    /// # Errors
    /// [`LineError::NoLink`], [`LineError::Ended`].
    pub fn wait_for_link(
        &self,
        patience: Duration,
        mut is_there: impl FnMut() -> bool,
    ) -> Result<(), LineError> {
        let start = Instant::now();
        while !self.port.link_up() {
            if !is_there() {
                return Err(LineError::Ended);
            }
            if start.elapsed() > patience {
                let (port, seconds) = (self.port.name().into(), start.elapsed().as_secs());
                return Err(LineError::NoLink { port, seconds });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends frames, a few at a time, until some come back; then the beginnings of all flows.
    ///
    /// # Errors
    /// [`LineError::Silent`], [`LineError::Ended`].
    pub fn begin(
        &mut self,
        frames: &mut Frames,
        patience: Duration,
        mut is_there: impl FnMut() -> bool,
    ) -> Result<(), LineError> {
        let start = Instant::now();
        loop {
            if self.beginnings(frames, 16).received > 0 {
                break;
            }
            if !is_there() {
                return Err(LineError::Ended);
            }
            if start.elapsed() > patience {
                return Err(LineError::Silent { seconds: start.elapsed().as_secs() });
            }
        }
        if let Frames::Made(mix) = frames {
            let flows = mix.flows();
            self.beginnings(frames, flows);
        }
        Ok(())
    }

    /// Sends the first frames of this many flows.
    fn beginnings(&mut self, frames: &mut Frames, count: u32) -> Count {
        let seconds = f64::from(count) / BEGINNINGS_PER_SECOND;
        let mut part = Part::Beginnings { next: 0, count };
        self.run((frames, &mut part), Rate::Of(BEGINNINGS_PER_SECOND), seconds, || false)
    }

    /// Sends frames at a rate for so many seconds, and waits for those that are on their way.
    /// `was_interrupted` says whether the device was, since it was asked the last time.
    pub fn load(
        &mut self,
        frames: &mut Frames,
        (rate, seconds): (Rate, f64),
        new_flows: u32,
        was_interrupted: impl FnMut() -> bool,
    ) -> Count {
        let per_cycle = f64::from(new_flows) / self.cycles_per_second;
        let mut part = Part::Load { start: self.clock.raw(), begun: 0, per_cycle };
        self.run((frames, &mut part), rate, seconds, was_interrupted)
    }

    fn run(
        &mut self,
        (frames, part): (&mut Frames, &mut Part),
        rate: Rate,
        seconds: f64,
        mut was_interrupted: impl FnMut() -> bool,
    ) -> Count {
        let mut tally = Tally::new(&self.histogram, matches!(frames, Frames::Captured { .. }));
        let mut outgoing = Outgoing::default();
        was_interrupted();
        let start = self.clock.raw();
        let end = start + (seconds * self.cycles_per_second) as u64;
        let silence = self.cycles(SILENCE);
        let mut pace = Pace::new(rate, start, (self.cycles_per_second, self.cycles(BEHIND_MAX)));
        let mut turns = Turns::new(start, [self.cycles(TURN_MAX), self.cycles(WINDOW)]);
        let mut last_came = end;
        loop {
            let now = self.clock.raw();
            turns.begin(now);
            if now < end {
                let stamp = stamp(low(now));
                let made = outgoing
                    .fill(pace.due(now), &self.pool, |frame| frames.write(part, now, stamp, frame));
                pace.made += made;
            }
            outgoing.send(&mut self.tx, rate);
            if tally.receive(&mut self.rx, &self.clock, turns.resumed) {
                last_came = now.max(end);
            }
            if now >= turns.window_end {
                tally.end_window(!was_interrupted());
                turns.begin_window(self.clock.raw()); // what this takes is no absence
            }
            if now >= end && now - last_came.min(now) > silence {
                break;
            }
        }
        tally.end_window(!was_interrupted());
        Count {
            seconds,
            // What no queue has taken at full speed was never sent.
            offered: outgoing.offered - u64::from(outgoing.counting.count_ones()),
            refused: outgoing.refused,
            received: tally.received,
            attacks: outgoing.attacks,
            others: tally.others,
            away: turns.away as f64 / self.cycles_per_second / seconds,
            latency: self.nanoseconds(&tally.latency),
            calm: self.nanoseconds(&tally.calm),
        }
    }

    fn cycles(&self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * self.cycles_per_second) as u64
    }

    /// A histogram of cycles as one of nanoseconds.
    fn nanoseconds(&self, cycles: &Histogram<u64>) -> Histogram<u64> {
        let mut histogram = self.histogram.clone();
        for value in cycles.iter_recorded() {
            let nanoseconds = value.value_iterated_to() as f64 * 1e9 / self.cycles_per_second;
            histogram.saturating_record_n(nanoseconds as u64, value.count_at_value());
        }
        histogram
    }
}

/// The part of the time that a stamp tells.
fn low(cycles: u64) -> u32 {
    (cycles & u64::from(u32::MAX)) as u32
}

/// Room in a frame.
fn room<'f>(frame: &'f mut Mbuf) -> impl FnOnce(usize) -> Option<&'f mut [u8]> {
    |len| frame.append(u16::try_from(len).ok()?)
}

/// Which frames are due.
enum Part {
    /// The first ones of so many flows.
    Beginnings { next: u32, count: u32 },
    /// Those of a load, in which flows begin and end.
    Load { start: u64, begun: u64, per_cycle: f64 },
}

impl Frames {
    /// Writes the next frame. True: it has to come back.
    #[inline]
    fn write(
        &mut self,
        part: &mut Part,
        now: u64,
        stamp: [u8; STAMP_BYTES],
        frame: &mut Mbuf,
    ) -> bool {
        let room = room(frame);
        match (self, part) {
            (Self::Captured { frames, next }, _) => {
                if let Some(bytes) = frames.get(*next)
                    && let Some(room) = room(bytes.len())
                {
                    room.copy_from_slice(bytes);
                }
                *next = if *next + 1 >= frames.len() { 0 } else { *next + 1 };
                true
            }
            (Self::Made(mix), Part::Beginnings { next, count }) => {
                mix.write_beginning(*next, stamp, room);
                *next = if *next + 1 >= *count { 0 } else { *next + 1 };
                true
            }
            (Self::Made(mix), Part::Load { start, begun, per_cycle }) => {
                let is_due = (now - *start) as f64 * *per_cycle > *begun as f64;
                if *per_cycle > 0.0 && is_due {
                    *begun += 1;
                    mix.write_new(stamp, room);
                    return true;
                }
                mix.write(stamp, room)
            }
        }
    }
}

/// How many frames are due.
struct Pace {
    rate: Rate,
    start: u64,
    per_cycle: f64,
    /// Frames; see [`BEHIND_MAX`].
    behind_max: u64,
    forgiven: u64,
    made: u64,
}

impl Pace {
    fn new(rate: Rate, start: u64, (cycles_per_second, behind_max): (f64, u64)) -> Self {
        let per_cycle = match rate {
            Rate::Full => 0.0,
            Rate::Of(rate) => rate / cycles_per_second,
        };
        let behind_max = ((behind_max as f64 * per_cycle) as u64 + 1).min(BURST as u64);
        Self { rate, start, per_cycle, behind_max, forgiven: 0, made: 0 }
    }

    #[inline]
    fn due(&mut self, now: u64) -> u64 {
        if self.rate == Rate::Full {
            return BURST as u64;
        }
        let due = ((now - self.start) as f64 * self.per_cycle) as u64;
        let behind = due.saturating_sub(self.forgiven + self.made);
        self.forgiven += behind.saturating_sub(self.behind_max);
        behind.min(self.behind_max)
    }
}

/// What is to be sent.
#[derive(Default)]
struct Outgoing {
    burst: ArrayVec<Mbuf, BURST>,
    /// Of the burst, those that have to come back: a bit each.
    counting: u64,
    offered: u64,
    refused: u64,
    attacks: u64,
}

impl Outgoing {
    /// Makes frames, so many if they fit. Returns how many.
    #[inline]
    fn fill(
        &mut self,
        count: u64,
        pool: &MbufPool,
        mut write: impl FnMut(&mut Mbuf) -> bool,
    ) -> u64 {
        let had = self.burst.len();
        pool.alloc_bulk(count as usize, &mut self.burst);
        for (place, frame) in self.burst.iter_mut().enumerate().skip(had) {
            self.counting |= u64::from(write(frame)) << place;
        }
        let new = (self.burst.len() - had) as u64;
        let counting = u64::from(self.counting.checked_shr(had as u32).unwrap_or(0).count_ones());
        self.offered += counting;
        self.attacks += new - counting;
        new
    }

    /// Sends them. What the queue does not take at a rate is lost.
    #[inline]
    fn send(&mut self, tx: &mut TxQueue, rate: Rate) {
        if self.burst.is_empty() {
            return;
        }
        let sent = tx.send(&mut self.burst);
        self.counting = self.counting.checked_shr(sent as u32).unwrap_or(0);
        if rate != Rate::Full && !self.burst.is_empty() {
            self.refused += u64::from(self.counting.count_ones());
            self.counting = 0;
            free_bulk(&mut self.burst);
        }
    }
}

/// The turns of the loop, for what interrupts them.
struct Turns {
    now: u64,
    turn_max: u64,
    window: u64,
    window_end: u64,
    /// When the last interruption was over.
    resumed: u64,
    /// Cycles that were somebody else's.
    away: u64,
}

impl Turns {
    fn new(now: u64, [turn_max, window]: [u64; 2]) -> Self {
        Self { now, turn_max, window, window_end: now + window, resumed: now, away: 0 }
    }

    #[inline]
    fn begin(&mut self, now: u64) {
        if now - self.now > self.turn_max {
            self.away += now - self.now;
            self.resumed = now;
        }
        self.now = now;
    }

    fn begin_window(&mut self, now: u64) {
        (self.now, self.window_end) = (now, now + self.window);
    }
}

/// What came back.
struct Tally {
    received: u64,
    others: u64,
    /// Frames have no stamps.
    is_captured: bool,
    frames: ArrayVec<Mbuf, BURST>,
    latency: Histogram<u64>,
    calm: Histogram<u64>,
    /// The last window was calm.
    was_calm: bool,
    /// Of this window, what may become calm.
    window: Histogram<u64>,
    /// Frames in a row with the same latency, which are entered together: how many, and are they calm?
    same: (u64, u64, bool),
}

impl Tally {
    fn new(empty: &Histogram<u64>, is_captured: bool) -> Self {
        Self {
            received: 0,
            others: 0,
            is_captured,
            frames: ArrayVec::new(),
            latency: empty.clone(),
            calm: empty.clone(),
            was_calm: false,
            window: empty.clone(),
            same: (0, 0, false),
        }
    }

    /// Receives a burst; false, if nothing has come. `resumed`: when an interruption of the generator was
    /// over.
    #[inline]
    fn receive(&mut self, rx: &mut RxQueue, clock: &Clock, resumed: u64) -> bool {
        if rx.receive(&mut self.frames) == 0 {
            return false;
        }
        let now = clock.raw();
        let undisturbed = now - resumed;
        for place in 0..self.frames.len() {
            let Some(time) = stamped(self.frames[place].bytes()).filter(|_| !self.is_captured)
            else {
                if self.is_captured {
                    self.received += 1;
                } else {
                    self.others += 1;
                }
                continue;
            };
            self.received += 1;
            let latency = u64::from(low(now).wrapping_sub(time)).max(1);
            let is_calm = latency < undisturbed;
            if (latency, is_calm) != (self.same.0, self.same.2) {
                self.enter();
                self.same = (latency, 0, is_calm);
            }
            self.same.1 += 1;
        }
        free_bulk(&mut self.frames);
        true
    }

    fn enter(&mut self) {
        let (latency, count, is_calm) = self.same;
        if count > 0 {
            self.latency.saturating_record_n(latency, count);
        }
        if count > 0 && is_calm {
            self.window.saturating_record_n(latency, count);
        }
        self.same.1 = 0;
    }

    fn end_window(&mut self, is_calm: bool) {
        self.enter();
        if is_calm && self.was_calm {
            let _ = self.calm.add(&self.window); // of the same bounds: nothing can go wrong
        }
        self.was_calm = is_calm;
        self.window.reset();
    }
}
