//! `weir replay`: a capture through the pipeline, offline.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lb_config::Config;
use lb_core::burst::{Exit, Fate, Meta, WorkerId};
use lb_core::continuity;
use lb_core::counters::Counters;
use lb_core::drop_reason::DropReason;
use lb_core::fragments::{LIFETIME_MS, WAITING_MAX};
use lb_core::frame::{Frame as _, Frames, Io};
use lb_core::model::{DesiredState, SERVICES_MAX};
use lb_core::publish::{Publisher, publication};
use lb_core::sim::{SimFrame, SimIo};
use lb_core::state::Settings;
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{NextHops, Port, PortId};
use lb_core::wire::ethernet::{self, MacAddr};
use lb_core::worker::Worker;
use serde::Serialize;

use super::Failure;
use crate::capture::{CaptureError, Captured, Reader, Writer};
use crate::offline;
use crate::verdict::{ANSWER, DROP, PUNT, SEND, Verdict};

/// What `weir replay` takes.
///
/// Frames come in by the first port, in the order of the capture. A port without a `mac` in the
/// file has the one that the capture's first unicast frame is for. A backend without a `mac` has
/// 02:00 and the last four bytes of its address, on the port whose subnet has it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The capture, pcap or pcapng.
    #[arg(long = "in", value_name = "CAPTURE")]
    input: PathBuf,
    /// Where the frames that are sent are written, as pcap.
    #[arg(long = "out", value_name = "CAPTURE")]
    output: PathBuf,
    /// Where one JSON line for each input frame is written; "-" for the terminal.
    #[arg(long, value_name = "FILE")]
    verdicts: Option<PathBuf>,
    /// Apply another configuration, so many seconds after the first frame. May be repeated.
    #[arg(long, num_args = 2, value_names = ["SECONDS", "FILE"], action = clap::ArgAction::Append)]
    at: Vec<String>,
}

/// What became of one frame.
#[derive(Clone, Debug, Serialize)]
struct Decision {
    /// From 1, as captures are counted.
    frame: usize,
    /// Seconds since the first frame.
    time: f64,
    #[serde(flatten)]
    verdict: Verdict,
}

/// A configuration, and when it comes.
struct Change {
    after: Duration,
    config: Config,
}

/// Takes the capture through the pipeline. The same files give the same results, always.
pub(crate) fn replay(args: &Args) -> Result<(), Failure> {
    let mut changes = vec![load(Duration::ZERO, &args.config)?];
    for pair in args.at.chunks_exact(2) {
        let after =
            pair[0].parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let after = after.ok_or_else(|| format!("--at {:?}: not a number of seconds", pair[0]))?;
        changes.push(load(after, Path::new(&pair[1]))?);
    }
    changes.sort_by_key(|change| change.after);
    let verdicts = args.verdicts.as_deref().map(create).transpose()?;
    let mut output = Writer::create(&args.output)?;
    let mut input = Reader::open(&args.input)?;
    let mut replay = Replay::new(&changes[0].config, first_station(&args.input)?);
    let mut changes = changes.into_iter().peekable();
    let mut start = None;
    let mut report = Report { verdicts, totals: BTreeMap::new() };
    while let Some(captured) = input.next()? {
        let elapsed = captured.time.saturating_sub(*start.get_or_insert(captured.time));
        while let Some(change) = changes.next_if(|change| change.after <= elapsed) {
            replay.apply(&change.config, elapsed);
        }
        for frame in replay.frame(&captured, elapsed) {
            output.write(captured.time, frame.bytes())?;
        }
        report.write(replay.decided())?;
    }
    replay.end();
    report.write(replay.decided())?;
    output.finish()?;
    report.finish()
}

/// What is told of the decisions.
struct Report {
    verdicts: Option<Box<dyn std::io::Write>>,
    totals: BTreeMap<&'static str, u64>,
}

impl Report {
    fn write(&mut self, decisions: impl Iterator<Item = Decision>) -> Result<(), Failure> {
        for decision in decisions {
            *self.totals.entry(decision.verdict.word).or_default() += 1;
            if let Some(file) = &mut self.verdicts {
                serde_json::to_writer(&mut *file, &decision)?;
                file.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        if let Some(mut file) = self.verdicts {
            file.flush()?;
        }
        let count = |verdict| self.totals.get(verdict).copied().unwrap_or_default();
        let mut line = format!(
            "frames {}: sent {}, for the kernel {}, dropped {}",
            self.totals.values().sum::<u64>(),
            count(SEND),
            count(PUNT),
            count(DROP),
        );
        if count(ANSWER) > 0 {
            write!(line, ", answered {}", count(ANSWER))?;
        }
        eprintln!("{line}");
        Ok(())
    }
}

fn load(after: Duration, file: &Path) -> Result<Change, Failure> {
    let config = super::load(file).ok_or_else(|| format!("{} is not valid", file.display()))?;
    Ok(Change { after, config })
}

fn create(path: &Path) -> Result<Box<dyn std::io::Write>, CaptureError> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdout().lock()));
    }
    let unwritten = |source| CaptureError::Write { path: path.into(), source };
    Ok(Box::new(BufWriter::new(File::create(path).map_err(unwritten)?)))
}

/// The destination of the first unicast frame: most likely the balancer.
fn first_station(capture: &Path) -> Result<Option<MacAddr>, CaptureError> {
    let mut reader = Reader::open(capture)?;
    while let Some(captured) = reader.next()? {
        if let Ok((header, _)) = ethernet::parse(&captured.bytes)
            && header.dst.is_station()
        {
            return Ok(Some(header.dst));
        }
    }
    Ok(None)
}

struct Replay {
    ports: Arc<[Port]>,
    desired: DesiredState,
    next_hops: NextHops,
    tables: Arc<Tables>,
    publisher: Publisher<Tables>,
    worker: Worker<Observed>,
    /// The time of every frame; frames are numbered from 0.
    times: Vec<Duration>,
    /// Decisions are told in the order of the frames: those that wait for an earlier one.
    early: BTreeMap<usize, Decision>,
    told: usize,
}

impl Replay {
    fn new(config: &Config, station: Option<MacAddr>) -> Self {
        let (tables, next_hops) = offline::tables(config, station);
        let (ports, tables) = (Arc::clone(&tables.ports), Arc::new(tables));
        let (publisher, mut subscribers) = publication(&tables, 1);
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: u32::MAX };
        let io = Observed { io: SimIo::new(ports.len()), decided: BTreeMap::new() };
        let counters = Arc::new(Counters::new(2 * SERVICES_MAX));
        let worker = Worker::new(io, ports.len(), subscribers.remove(0), counters, settings);
        let (times, early) = (Vec::new(), BTreeMap::new());
        let desired = config.desired.clone();
        Self { ports, desired, next_hops, tables, publisher, worker, times, early, told: 0 }
    }

    fn apply(&mut self, config: &Config, elapsed: Duration) {
        self.desired = config.desired.clone();
        // Backends that are no longer wanted keep their ways.
        self.next_hops.extend(offline::next_hops(&config.desired, &self.ports));
        self.compile(elapsed);
    }

    /// Makes the tables of this time, and puts them in force before the next frame.
    fn compile(&mut self, elapsed: Duration) {
        let now = elapsed.into();
        let idle = continuity::sweep(&self.tables, (0, 1), now).idle;
        let circumstances =
            Circumstances { idle: &idle, now, ..Circumstances::new(&self.ports, &self.next_hops) };
        self.tables = Arc::new(compile(&self.desired, &circumstances, Some(&self.tables)));
        self.publisher.publish(&self.tables);
        self.turn(self.times.last().copied().unwrap_or_default());
    }

    /// What changes by itself has changed by then.
    fn follow(&mut self, elapsed: Duration) {
        if self.tables.next_change().is_some_and(|change| change <= elapsed.into()) {
            self.compile(elapsed);
        }
    }

    /// Takes one frame through the pipeline; the frames that are sent.
    fn frame(&mut self, captured: &Captured, elapsed: Duration) -> Vec<SimFrame> {
        self.follow(elapsed);
        let mut frame = SimFrame::new(&captured.bytes);
        frame.number = self.times.len();
        self.times.push(elapsed);
        if let Some(port) = self.worker.io().io.arriving.first_mut() {
            port.push_back(frame);
        }
        self.turn(elapsed)
    }

    fn turn(&mut self, elapsed: Duration) -> Vec<SimFrame> {
        self.worker.turn(elapsed.into());
        let decided = mem::take(&mut self.worker.io().decided);
        for (number, (meta, fate)) in decided {
            if let Some(decision) = self.decision(number, &meta, fate) {
                self.early.insert(number, decision);
            }
        }
        let io = &mut self.worker.io().io;
        io.punted.iter_mut().for_each(Vec::clear);
        io.sent.iter_mut().flat_map(mem::take).collect()
    }

    /// What was decided, in the order of the frames, as far as nothing before it is undecided.
    fn decided(&mut self) -> impl Iterator<Item = Decision> {
        std::iter::from_fn(|| {
            let decision = self.early.remove(&self.told)?;
            self.told += 1;
            Some(decision)
        })
    }

    /// Nothing comes any more, but time goes on: what waits has waited in vain.
    fn end(&mut self) {
        let last = self.times.iter().max().copied().unwrap_or_default();
        let later = last + Duration::from_millis(LIFETIME_MS);
        for _ in 0..WAITING_MAX {
            self.turn(later); // looks at some of them
        }
    }

    /// `None`: it is not decided yet.
    fn decision(&self, number: usize, meta: &Meta, fate: Fate) -> Option<Decision> {
        let verdict = Verdict::new(&self.tables, meta, fate)?;
        Some(Decision { frame: number + 1, time: self.times.get(number)?.as_secs_f64(), verdict })
    }
}

/// Queues in memory that note what became of each frame.
struct Observed {
    io: SimIo,
    /// By number, what was told last.
    decided: BTreeMap<usize, (Meta, Fate)>,
}

impl Io for Observed {
    type Frame = SimFrame;

    fn receive(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        self.io.receive(port, frames);
    }

    fn send(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        self.io.send(port, frames);
    }

    fn punt(&mut self, port: PortId, frame: SimFrame) -> Result<(), SimFrame> {
        self.io.punt(port, frame)
    }

    fn receive_from_kernel(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        self.io.receive_from_kernel(port, frames);
    }

    fn hand_over(
        &mut self,
        worker: WorkerId,
        port: PortId,
        frame: SimFrame,
    ) -> Result<(), SimFrame> {
        self.io.hand_over(worker, port, frame)
    }

    fn take_over(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        self.io.take_over(port, frames);
    }

    fn decided(&mut self, frame: &SimFrame, meta: &Meta, fate: Fate) {
        if fate != Fate::Exit(Exit::Hold) {
            self.decided.insert(frame.number, (*meta, fate));
        }
    }

    fn dropped(&mut self, frame: &SimFrame, reason: DropReason) {
        let fate = Fate::Exit(reason.into());
        // Of those that had to wait nothing is known but that.
        self.decided.entry(frame.number).or_insert((Meta::default(), fate)).1 = fate;
    }
}

#[cfg(test)]
mod tests;
