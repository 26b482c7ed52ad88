//! Moves frames between the workers' queues and the TAPs: a thread of its own, since workers make no
//! system calls.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dpdk::MbufPool;
use lb_core::frame::Frame as _;
use lb_core::rate::{RateLimit, Tick};
use lb_core::tables::next_hop::PortId;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tracing::{error, warn};

use super::Tap;
use crate::adapter::KernelQueue;
use crate::health::{Carrier, ThroughCell};

/// Frames of one TAP and direction that are moved before the next has its turn.
const BATCH: usize = 64;
/// Longest frame that the kernel sends: the largest MTU, an Ethernet header, two tags.
const FRAME_BYTES_MAX: usize = 9000 + 22;
/// How long a frame to the kernel may wait: workers do not wake anybody.
const PAUSE: Duration = Duration::from_millis(1);

/// One port's way to the kernel and back.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) port: PortId,
    pub(crate) tap: Tap,
    pub(crate) to_kernel: KernelQueue,
    pub(crate) from_kernel: KernelQueue,
}

/// What the pump lost.
#[derive(Debug, Default)]
pub(crate) struct PumpCounters {
    /// Frames to the kernel that it did not take.
    pub(crate) refused: AtomicU64,
    /// Frames from the kernel for which there was no buffer or no room in a queue.
    pub(crate) lost: AtomicU64,
}

/// The running thread. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Pump {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<PumpCounters>,
}

impl Pump {
    /// Starts the thread. `frames_per_second` bounds what is taken from each TAP; what checks through
    /// services send is bounded by their number.
    pub(crate) fn start(
        exchanges: Vec<Exchange>,
        pool: MbufPool,
        frames_per_second: u32,
        checks: ThroughCell,
    ) -> std::io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let counters = Arc::<PumpCounters>::default();
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&counters));
        let thread = thread::Builder::new().name("kernel-pump".into()).spawn(move || {
            let limit = RateLimit::new(frames_per_second);
            let side = |exchange| Side { exchange, limit, failed: false };
            let sides = exchanges.into_iter().map(side).collect();
            run(sides, &pool, &checks, &told, &counted);
        })?;
        Ok(Self { stop, thread: Some(thread), counters })
    }

    pub(crate) fn counters(&self) -> &PumpCounters {
        &self.counters
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread between workers and kernel ended early");
        }
    }
}

/// A port as the pump sees it.
struct Side {
    exchange: Exchange,
    /// Of what comes from the kernel.
    limit: RateLimit,
    /// Somebody deleted the interface: there is nothing to read any more.
    failed: bool,
}

fn run(
    mut sides: Vec<Side>,
    pool: &MbufPool,
    checks: &ThroughCell,
    stop: &AtomicBool,
    counters: &PumpCounters,
) {
    let mut carrier = None;
    let start = Instant::now();
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        let now = Tick::from(start.elapsed());
        let mut moved = 0;
        let mut limited = false;
        if carrier.is_none() {
            carrier = checks.get().map(|through| Carrier::new(Arc::clone(through)));
        }
        if let Some(carrier) = &mut carrier {
            moved += from_checks(carrier, &sides, pool, &mut buffer, counters);
        }
        for side in &mut sides {
            moved += to_kernel(&side.exchange, carrier.as_ref(), counters);
            let came = from_kernel(side, now, pool, &mut buffer, counters);
            moved += came.moved;
            limited |= came.limited;
        }
        if limited && moved == 0 {
            thread::sleep(PAUSE); // above the rate: a TAP is readable, but not to be read
        } else if moved == 0 {
            wait(&sides, carrier.as_ref());
        }
    }
}

/// Until the kernel sends something; briefly, since workers wake nobody.
fn wait(sides: &[Side], carrier: Option<&Carrier>) {
    let taps = sides.iter().filter(|side| !side.failed).map(|side| &side.exchange.tap);
    let taps = taps.chain(carrier.map(Carrier::tun));
    let mut fds: Vec<PollFd> =
        taps.map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN)).collect();
    if ppoll(&mut fds, Some(TimeSpec::from_duration(PAUSE)), None).is_err() {
        thread::sleep(PAUSE);
    }
}

fn to_kernel(exchange: &Exchange, carrier: Option<&Carrier>, counters: &PumpCounters) -> usize {
    let mut moved = 0;
    while moved < BATCH
        && let Some(frame) = exchange.to_kernel.pop()
    {
        moved += 1;
        if carrier.is_some_and(|carrier| carrier.takes(frame.bytes())) {
            continue;
        }
        if exchange.tap.write(frame.bytes()).is_err() {
            counters.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    moved
}

/// What checks through services send.
fn from_checks(
    carrier: &mut Carrier,
    sides: &[Side],
    pool: &MbufPool,
    buffer: &mut [u8],
    counters: &PumpCounters,
) -> usize {
    let mut moved = 0;
    // It cannot fail: nobody else is in that network.
    while moved < BATCH
        && let Ok(Some(len)) = carrier.tun().try_read(buffer)
    {
        moved += 1;
        let Some((out, frame)) = carrier.forward(&buffer[..len]) else { continue };
        let exchange = sides.iter().map(|side| &side.exchange).find(|it| it.port == out);
        if exchange.and_then(|it| inject(frame.bytes(), pool, it)).is_none() {
            counters.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
    moved
}

struct Came {
    moved: usize,
    /// There may be more, above the rate.
    limited: bool,
}

fn from_kernel(
    side: &mut Side,
    now: Tick,
    pool: &MbufPool,
    buffer: &mut [u8],
    counters: &PumpCounters,
) -> Came {
    let mut moved = 0;
    while moved < BATCH && !side.failed {
        if !side.limit.allow(now) {
            return Came { moved, limited: true };
        }
        match side.exchange.tap.try_read(buffer) {
            Ok(Some(len)) => {
                moved += 1;
                if inject(&buffer[..len], pool, &side.exchange).is_none() {
                    counters.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(None) => {
                side.limit.give_back();
                break;
            }
            Err(error) => {
                warn!("interface {} is lost: {error}", side.exchange.tap.name());
                side.failed = true;
            }
        }
    }
    Came { moved, limited: false }
}

fn inject(bytes: &[u8], pool: &MbufPool, exchange: &Exchange) -> Option<()> {
    let mut frame = pool.alloc()?;
    frame.append(u16::try_from(bytes.len()).ok()?)?.copy_from_slice(bytes);
    exchange.from_kernel.push(frame).ok()
}
