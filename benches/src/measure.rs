//! Rounds of trials: every device with every kind of traffic, in turn, round after round.
//!
//! Machines change their pace from one minute to the next, so what is to be compared has to be measured in
//! the same rounds.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{io, mem};

use core_affinity::CoreId;
use dpdk::{Eal, EalConfig, LogLevel, MbufPool, PoolConfig};
use lb_config::ForwardMode;
use lb_config::profile::{Profile, Size, Traffic};
use lb_core::wire::ethernet::MacAddr;

use crate::device::{Device, Running, Thread, machine};
use crate::floor::floor;
use crate::generator::{Count, Frames, Line, LineError, Rate};
use crate::mix::Mix;
use crate::network::{Place, configuration};
use crate::results::{About, FORMAT, FULL, HIGHEST, Latency, Point, Results, Round, Series, Trial};
use crate::search::{Goal, Outcome, highest};

/// How long a device may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is sent before a trial, so that caches are warm.
const WARM_UP_SECONDS: f64 = 0.1;
/// Rounds for one that counts, at most.
const ATTEMPTS: usize = 2;
/// An interruption that is told: a share of the time.
const AWAY_MAX: f64 = 1e-3;
/// A wait for the CPU that is none: in a window of a trial.
const WAIT_MAX: Duration = Duration::from_micros(1);
/// By how much the highest rate without loss may exceed what comes back at full load.
const CEILING: f64 = 1.02;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order of their turns.
    pub devices: Vec<Device>,
    /// What is sent.
    pub profile: Profile,
    /// Its file, for the report.
    pub profile_name: String,
    /// The frames of the profile's capture, if it has one.
    pub captured: Vec<Vec<u8>>,
    /// How much is sent.
    pub loads: Loads,
    /// For how long, in each trial.
    pub seconds: f64,
    /// How often; rounds that do not count are repeated.
    pub rounds: usize,
    /// What is searched for.
    pub goal: Goal,
    /// Where frames are sent and received.
    pub generator_cpu: usize,
    /// The MAC address that frames are sent to.
    pub mac: MacAddr,
}

/// How much is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Loads {
    /// These.
    Given(Vec<Rate>),
    /// The highest rate without loss, and then these shares of it, in percent.
    Search(Vec<u8>),
}

/// Nothing can be measured.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants and their fields")]
pub enum MeasureError {
    #[error("DPDK does not start: {0}")]
    Eal(#[from] dpdk::EalError),
    #[error(transparent)]
    Pool(#[from] dpdk::PoolError),
    #[error("a folder for the device's files: {0}")]
    Folder(io::Error),
    #[error("{device} does not start: {source}")]
    Start { device: String, source: io::Error },
    #[error("CPU {0} does not exist here or may not be used: choose another for the generator")]
    NoCpu(usize),
    #[error("the generator cannot run: {0}")]
    Thread(#[from] dpdk::ThreadError),
    #[error("the generator has ended early")]
    Ended,
    #[error("measuring {device}: {error}{}", said(words))]
    Line { device: String, error: Box<LineError>, words: String },
    #[error(
        "{device} loses frames at every rate that was tried: allow for some with --loss, or send for a \
         longer time when the machine is idle"
    )]
    Lossy { device: String },
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; it said:\n{words}") }
}

/// One kind of traffic: how it is forwarded, and how long frames are.
type Case = (Option<ForwardMode>, Option<Size>);

/// Measures all of it. `tell` is told what was measured, line by line.
///
/// # Errors
/// [`MeasureError`]; what was measured before is lost.
pub fn measure(plan: &Plan, mut tell: impl FnMut(&str)) -> Result<Results, MeasureError> {
    let is_pci =
        |device: &Device| matches!(device, Device::Port { device } if !device.starts_with("net_"));
    let eal = Eal::start(&EalConfig {
        pci: plan.devices.iter().any(is_pci),
        main_cpu: Some(plan.generator_cpu),
        log_level: LogLevel::Error,
        memory_mb: 256,
        ..EalConfig::default()
    })?;
    let pool = MbufPool::create(eal, &PoolConfig::default())?;
    let (cpu, kernel) = machine();
    let mut results = Results {
        format: FORMAT,
        about: About {
            version: env!("CARGO_PKG_VERSION").into(),
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            cpu,
            cpus: thread::available_parallelism().map_or(0, usize::from),
            kernel,
            dpdk: eal.version(),
            profile: plan.profile_name.clone(),
            seconds: plan.seconds,
            loss_max: plan.goal.loss_max,
        },
        rounds: Vec::new(),
        series: Vec::new(),
    };
    let mut cpus = vec![plan.generator_cpu];
    for device in &plan.devices {
        if let Device::Weir { workers, .. } = device {
            cpus.extend(workers);
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    let mut left = plan.rounds;
    for round in 0..plan.rounds * ATTEMPTS {
        let floor_before = floor(&cpus);
        for case in plan.cases() {
            for device in &plan.devices {
                let trials = one(plan, (eal, pool), device, case, round)?;
                enter(&mut results, (device, case), trials, &mut tell);
            }
        }
        let floors = Round { floor_before, floor_after: floor(&cpus) };
        results.rounds.push(floors);
        if floors.is_steady() {
            left -= 1;
        } else {
            tell("the machine has changed its pace during this round, which does not count");
        }
        if left == 0 {
            break;
        }
    }
    Ok(results)
}

impl Plan {
    fn cases(&self) -> Vec<Case> {
        let Traffic::Made(made) = &self.profile.traffic else { return vec![(None, None)] };
        let sizes = |mode| made.sizes.iter().map(move |&size| (mode, Some(size)));
        // Only Weir is told how to forward.
        if self.devices.iter().any(|device| matches!(device, Device::Weir { .. })) {
            self.profile.modes.iter().flat_map(|&mode| sizes(Some(mode))).collect()
        } else {
            sizes(None).collect()
        }
    }

    fn frames(&self, (_, size): Case) -> Frames {
        if let (Traffic::Made(made), Some(size)) = (&self.profile.traffic, size) {
            return Frames::Made(Box::new(Mix::new(made, size, self.profile.services, self.mac)));
        }
        let mut frames = self.captured.clone();
        for frame in &mut frames {
            if let Some(dst) = frame.first_chunk_mut() {
                *dst = self.mac.0;
            }
        }
        Frames::Captured { frames, next: 0 }
    }
}

/// Puts trials where they belong.
fn enter(
    results: &mut Results,
    (device, (mode, size)): (&Device, Case),
    trials: Vec<(String, Trial)>,
    tell: &mut impl FnMut(&str),
) {
    let is_weir = matches!(device, Device::Weir { .. });
    let series = Series {
        device: device.name().into(),
        mode: mode.filter(|_| is_weir).map_or("", ForwardMode::name).into(),
        size: size.map_or("capture".into(), |size| size.to_string()),
        points: Vec::new(),
    };
    let name = series.name();
    let place = results.series.iter().position(|it| it.name() == name);
    let place = place.unwrap_or_else(|| {
        results.series.push(series);
        results.series.len() - 1
    });
    let points = &mut results.series[place].points;
    for (load, trial) in trials {
        tell(&format!("round {}: {name}, {load}: {}", trial.round + 1, describe(&trial)));
        match points.iter_mut().find(|point| point.load == load) {
            Some(point) => point.trials.push(trial),
            None => points.push(Point { load, trials: vec![trial] }),
        }
    }
}

/// A trial in a line.
fn describe(trial: &Trial) -> String {
    let mut text = format!(
        "{:.3} of {:.3} million frames/s, lost {:.3}%",
        trial.received / 1e6,
        trial.offered / 1e6,
        trial.own_loss() * 100.0
    );
    if let Some(latency) = trial.calm.or(trial.latency) {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let _ = write!(
            text,
            ", p50 {:.1}, p99 {:.1}, p99.9 {:.1} µs",
            micros(latency.p50),
            micros(latency.p99),
            micros(latency.p99_9)
        );
    }
    let device_away = trial.device_away.unwrap_or(0.0);
    if trial.generator_away.max(device_away) > AWAY_MAX {
        let _ = write!(
            text,
            " (the generator was interrupted for {:.1}% of the time, the device for {:.1}%)",
            trial.generator_away * 100.0,
            device_away * 100.0
        );
    }
    text
}

/// All trials of a device with one kind of traffic, in a round.
fn one(
    plan: &Plan,
    (eal, pool): (Eal, MbufPool),
    device: &Device,
    case: Case,
    round: usize,
) -> Result<Vec<(String, Trial)>, MeasureError> {
    let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir();
    let folder = folder.map_err(MeasureError::Folder)?;
    let (ours, theirs) = ports(device, plan.mac, folder.path());
    let name = || device.name().to_owned();
    let failed = |error: LineError, words| MeasureError::Line {
        device: name(),
        error: Box::new(error),
        words,
    };
    let mut line = Line::open(eal, pool, &ours).map_err(|error| failed(error, String::new()))?;
    let text = match (device, case.0) {
        (Device::Weir { workers, .. }, Some(mode)) => {
            let state_dir = &folder.path().join("state");
            let place = Place { device: &theirs, mac: plan.mac, workers, state_dir };
            configuration(&plan.profile, mode, place)
        }
        _ => String::new(),
    };
    let mut running = Running::start(device, &theirs, &text, folder.path())
        .map_err(|source| MeasureError::Start { device: name(), source })?;
    let mut frames = plan.frames(case);
    let generate = || {
        if !core_affinity::set_for_current(CoreId { id: plan.generator_cpu }) {
            return Err(MeasureError::NoCpu(plan.generator_cpu));
        }
        let _registration = eal.register_thread()?;
        let begun = line
            .wait_for_link(PATIENCE, || running.is_there())
            .and_then(|()| line.begin(&mut frames, PATIENCE, || running.is_there()));
        begun.map_err(|error| failed(error, running.words()))?;
        let (line, frames, thread) = (&mut line, &mut frames, running.busiest());
        Bench { plan, line, frames, thread, round }.trials(&name())
    };
    thread::scope(|scope| scope.spawn(generate).join().unwrap_or(Err(MeasureError::Ended)))
}

/// Our end of the line, and the device's.
fn ports(device: &Device, mac: MacAddr, folder: &Path) -> (String, String) {
    if let Device::Port { device } = device {
        return (device.clone(), String::new());
    }
    let socket = folder.join("memif.sock");
    let end = |role: &str| {
        format!("net_memif0,role={role},socket={},socket-abstract=no", socket.display())
    };
    (end("server"), format!("{},mac={mac}", end("client")))
}

/// A device that runs, and a line to it.
struct Bench<'a> {
    plan: &'a Plan,
    line: &'a mut Line,
    frames: &'a mut Frames,
    /// Of the device.
    thread: Option<Thread>,
    round: usize,
}

impl Bench<'_> {
    fn trials(mut self, device: &str) -> Result<Vec<(String, Trial)>, MeasureError> {
        let mut trials = Vec::new();
        let shares = match &self.plan.loads {
            Loads::Given(rates) => {
                for &rate in rates {
                    let load = match rate {
                        Rate::Full => FULL.into(),
                        Rate::Of(rate) => format!("{rate:.0} frames/s"),
                    };
                    trials.push((load, self.trial(rate)));
                }
                return Ok(trials);
            }
            Loads::Search(shares) => shares,
        };
        let full = self.trial(Rate::Full);
        let ceiling = full.received * CEILING;
        trials.push((FULL.into(), full));
        let found = highest(ceiling, self.plan.goal, |rate| {
            let trial = self.trial(Rate::Of(rate));
            Ok::<_, MeasureError>(Outcome { offered: trial.offered, loss: trial.own_loss() })
        })?;
        let highest = found.ok_or_else(|| MeasureError::Lossy { device: device.into() })?;
        trials.push((HIGHEST.into(), self.trial(Rate::Of(highest))));
        for &share in shares {
            let rate = Rate::Of(highest * f64::from(share) / 100.0);
            trials.push((format!("{share}%"), self.trial(rate)));
        }
        Ok(trials)
    }

    fn trial(&mut self, rate: Rate) -> Trial {
        self.load(rate, WARM_UP_SECONDS.min(self.plan.seconds));
        let before = self.kept_waiting();
        let count = self.load(rate, self.plan.seconds);
        let waited =
            self.kept_waiting().zip(before).map(|(now, before)| now.saturating_sub(before));
        let device_away = waited.map(|waited| waited.as_secs_f64() / count.seconds);
        let is_timed = rate != Rate::Full;
        let latency = |histogram| Latency::of(histogram).filter(|_| is_timed);
        Trial {
            round: self.round,
            offered: count.offered as f64 / count.seconds,
            received: count.received as f64 / count.seconds,
            loss: (1.0 - count.received as f64 / count.offered.max(1) as f64).max(0.0),
            attacks: count.attacks as f64 / count.seconds,
            generator_away: count.away,
            device_away,
            latency: latency(&count.latency),
            calm: latency(&count.calm),
        }
    }

    fn kept_waiting(&self) -> Option<Duration> {
        self.thread.as_ref().map(Thread::kept_waiting)
    }

    fn load(&mut self, rate: Rate, seconds: f64) -> Count {
        let new_flows = match &self.plan.profile.traffic {
            Traffic::Made(made) => made.new_flows,
            Traffic::Captured(_) => 0,
        };
        let thread = self.thread.as_ref();
        let kept_waiting = || thread.map_or(Duration::ZERO, Thread::kept_waiting);
        let mut waited = kept_waiting();
        let was_interrupted = || {
            let now = kept_waiting();
            now.saturating_sub(mem::replace(&mut waited, now)) > WAIT_MAX
        };
        self.line.load(self.frames, (rate, seconds), new_flows, was_interrupted)
    }
}
