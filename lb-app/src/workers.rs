//! Worker threads: pinned, known to EAL, turning until they are told to leave.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use dpdk::{Eal, Mbuf};
use lb_config::Idle;
use lb_core::burst::WorkerId;
use lb_core::counters::Counters;
use lb_core::model::SERVICES_MAX;
use lb_core::publish::Subscriber;
use lb_core::rate::Tick;
use lb_core::state;
use lb_core::tables::Tables;
use lb_core::worker::Worker;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use quanta::Clock;
use tracing::{error, warn};

use crate::adapter::{DpdkIo, HandOverQueue, PortQueues};
use crate::memory;

/// Empty turns in a row before an adaptive worker sleeps: some tens of microseconds of polling.
const EMPTY_TURNS_MAX: u32 = 1000;
/// How long it sleeps at first, and at most: a frame that ends a pause waits no longer.
const SLEEP_MIN: Duration = Duration::from_micros(10);
const SLEEP_MAX: Duration = Duration::from_micros(500);

/// What all workers have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) idle: Idle,
    /// For each port, of all workers together.
    pub(crate) punts_per_second: u32,
}

/// The running workers. Dropping them stops them.
#[derive(Debug)]
pub(crate) struct Workers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    counters: Vec<Arc<Counters>>,
}

/// Why workers do not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error("cannot start a worker thread: {0}")]
    Spawn(#[from] std::io::Error),
    #[error("the worker on CPU {cpu} cannot start: {cause}")]
    Start { cpu: usize, cause: String },
}

impl Workers {
    /// Starts a worker on each of `cpus`, each with its queues and its end of the publication.
    pub(crate) fn start(
        eal: Eal,
        cpus: &[usize],
        queues: Vec<Vec<PortQueues>>,
        subscribers: Vec<Subscriber<Tables>>,
        settings: Settings,
    ) -> Result<Self, WorkerError> {
        let mut workers = Self { stop: Arc::default(), threads: Vec::new(), counters: Vec::new() };
        let count = u8::try_from(cpus.len()).unwrap_or(u8::MAX).max(1);
        let clock = Clock::new();
        let ids = (0..=u8::MAX).map(WorkerId);
        for (((&cpu, queues), tables), id) in cpus.iter().zip(queues).zip(subscribers).zip(ids) {
            // An id may be as high as twice the services: those of this version and of the last.
            let counters = Arc::new(Counters::new(2 * SERVICES_MAX));
            let ports = queues.len();
            let settings_of_one = state::Settings {
                worker: id,
                workers: count,
                punts_per_second: settings.punts_per_second.div_ceil(count.into()),
            };
            let io = DpdkIo::new(id, queues);
            let mut worker = Worker::new(io, ports, tables, Arc::clone(&counters), settings_of_one);
            let (stop, clock) = (Arc::clone(&workers.stop), clock.clone());
            let cycles = clock.clone();
            worker.set_clock(Arc::new(move || cycles.raw()));
            let started = Arc::new(ArrayQueue::new(1));
            let report = Arc::clone(&started);
            let thread = thread::Builder::new().name(format!("worker-{cpu}")).spawn(move || {
                let _registration = match prepare(eal, cpu) {
                    Ok(registration) => registration,
                    Err(cause) => return drop(report.push(Err(cause))),
                };
                drop(report.push(Ok(())));
                run(worker, &stop, &clock, settings.idle);
            })?;
            workers.threads.push(thread);
            workers.counters.push(counters);
            wait_for(&started).map_err(|cause| WorkerError::Start { cpu, cause })?;
        }
        Ok(workers)
    }

    /// Stops them; their counters are final.
    pub(crate) fn stop(mut self) -> Vec<Arc<Counters>> {
        mem::take(&mut self.counters)
    }

    /// The counters of each worker.
    pub(crate) fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a worker ended early");
            }
        }
    }
}

fn prepare(eal: Eal, cpu: usize) -> Result<dpdk::ThreadRegistration, String> {
    if !core_affinity::set_for_current(CoreId { id: cpu }) {
        return Err(format!(
            "it may not run there; choose CPUs that exist and that this process may use \
             ({})",
            available_cpus()
        ));
    }
    eal.register_thread().map_err(|error| error.to_string())
}

/// Leaves the CPUs of workers to them, if there are others: the calling thread, and those that it starts.
/// The kernel would put them there when they wake up, and each time the worker stands still.
pub(crate) fn leave_cpus(workers: &[usize]) {
    let this_thread = Pid::from_raw(0);
    let mut others = CpuSet::new();
    for cpu in core_affinity::get_core_ids().unwrap_or_default() {
        if !workers.contains(&cpu.id) {
            // Below the set's size, as the kernel's is the same.
            let _ = others.set(cpu.id);
        }
    }
    if others != CpuSet::new()
        && let Err(error) = sched_setaffinity(this_thread, &others)
    {
        warn!("other threads may disturb workers: {error}");
    }
}

/// The CPUs that this process may use, for people.
pub(crate) fn available_cpus() -> String {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    cpus.iter().map(|cpu| cpu.id.to_string()).collect::<Vec<_>>().join(", ")
}

fn wait_for(started: &ArrayQueue<Result<(), String>>) -> Result<(), String> {
    loop {
        if let Some(result) = started.pop() {
            return result;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How long a worker goes by the time stamp counter alone, in nanoseconds: it strays from the time
/// that processes have in common.
const DEAD_RECKONING_MAX: u64 = 1_000_000_000;

fn run(mut worker: Worker<DpdkIo>, stop: &AtomicBool, clock: &Clock, idle: Idle) {
    let (mut start, mut base) = (clock.raw(), memory::now());
    let mut empty_turns = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let elapsed = clock.delta_as_nanos(start, clock.raw());
        let now = Tick(base.0 + elapsed / 1_000_000);
        if elapsed > DEAD_RECKONING_MAX {
            (start, base) = (clock.raw(), memory::now().max(now)); // no system call: vDSO
        }
        if worker.turn(now) > 0 {
            empty_turns = 0;
            continue;
        }
        empty_turns = empty_turns.saturating_add(1);
        if idle == Idle::Adaptive && empty_turns > EMPTY_TURNS_MAX {
            let slept = empty_turns - EMPTY_TURNS_MAX;
            thread::sleep((SLEEP_MIN * slept).min(SLEEP_MAX));
        } else {
            std::hint::spin_loop();
        }
    }
    worker.leave();
}

/// A queue from all workers to each of them, for what came in by one port.
pub(crate) fn hand_over_queues(workers: usize) -> Arc<[HandOverQueue]> {
    /// Frames that may wait: some bursts.
    const FRAMES_MAX: usize = 512;
    (0..workers).map(|_| Arc::new(ArrayQueue::new(FRAMES_MAX))).collect()
}

/// A queue between a port's workers and the kernel's side.
pub(crate) fn kernel_queue() -> crate::adapter::KernelQueue {
    /// Frames that may wait.
    const FRAMES_MAX: usize = 1024;
    Arc::new(ArrayQueue::<Mbuf>::new(FRAMES_MAX))
}
