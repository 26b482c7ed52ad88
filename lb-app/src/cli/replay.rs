//! `weir replay`: a capture through the pipeline, offline.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lb_config::Config;
use lb_core::burst::{Burst, Fate};
use lb_core::counters::Counters;
use lb_core::drop_reason::DropReason;
use lb_core::frame::Frame as _;
use lb_core::model::SERVICES_MAX;
use lb_core::pipeline::process;
use lb_core::sim::SimFrame;
use lb_core::tables::Tables;
use lb_core::tables::compile::compile;
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::wire::ethernet::{self, MacAddr};
use serde::Serialize;

use super::Failure;
use crate::capture::{CaptureError, Captured, Reader, Writer};

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
#[derive(Debug, Serialize)]
struct Decision<'a> {
    /// From 1, as captures are counted.
    frame: u64,
    /// Seconds since the first frame.
    time: f64,
    /// `send`, `punt` or `drop`.
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<&'a str>,
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
    let mut verdicts = args.verdicts.as_deref().map(create).transpose()?;
    let mut output = Writer::create(&args.output)?;
    let mut input = Reader::open(&args.input)?;
    let mut replay = Replay::new(&changes[0].config, first_station(&args.input)?);
    let mut changes = changes.into_iter().peekable();
    let mut start = None;
    let mut totals = [0_u64; 3];
    while let Some(captured) = input.next()? {
        let elapsed = captured.time.saturating_sub(*start.get_or_insert(captured.time));
        while let Some(change) = changes.next_if(|change| change.after <= elapsed) {
            replay.apply(&change.config);
        }
        let (sent, verdict) = replay.frame(&captured, elapsed);
        totals[["send", "punt", "drop"].iter().position(|v| *v == verdict.verdict).unwrap_or(2)] +=
            1;
        if let Some(file) = &mut verdicts {
            serde_json::to_writer(&mut *file, &verdict)?;
            file.write_all(b"\n")?;
        }
        if let Some(frame) = sent {
            output.write(captured.time, frame.bytes())?;
        }
    }
    output.finish()?;
    if let Some(mut file) = verdicts {
        file.flush()?;
    }
    let [sent, punted, dropped] = totals;
    eprintln!(
        "frames {}: sent {sent}, for the kernel {punted}, dropped {dropped}",
        sent + punted + dropped
    );
    Ok(())
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
    tables: Tables,
    counters: Counters,
    frames: u64,
}

impl Replay {
    fn new(config: &Config, station: Option<MacAddr>) -> Self {
        let ports: Arc<[Port]> = config
            .ports
            .iter()
            .zip(0..)
            .map(|(port, place)| Port {
                name: port.name.clone(),
                mac: port
                    .mac
                    .or(station.filter(|_| place == 0))
                    .unwrap_or(MacAddr([2, 0, 0, 0, 0xff, place])),
                mtu: port.mtu,
                addresses: port.addresses.clone(),
                kernel: port.kernel,
            })
            .collect();
        let tables = compile(&config.desired, &ports, &next_hops(config, &ports), None);
        Self { ports, tables, counters: Counters::new(2 * SERVICES_MAX), frames: 0 }
    }

    fn apply(&mut self, config: &Config) {
        let next_hops = next_hops(config, &self.ports);
        self.tables = compile(&config.desired, &self.ports, &next_hops, Some(&self.tables));
    }

    /// Takes one frame through the pipeline; the frame, if it is sent, and what became of it.
    fn frame(
        &mut self,
        captured: &Captured,
        elapsed: Duration,
    ) -> (Option<SimFrame>, Decision<'_>) {
        self.frames += 1;
        let mut burst = Burst::default();
        burst.refill(PortId(0), |frames| frames.push(SimFrame::new(&captured.bytes)));
        process(&mut burst, &self.tables, &self.counters);
        let fate = burst.fate(0);
        let reason = burst.drops().iter().position(|&n| n > 0).map(|i| DropReason::ALL[i]);
        let meta = *burst.meta(0);
        let place = self.tables.vips.lookup(&meta.tuple).map(|place| place as usize);
        let service = place.and_then(|place| self.tables.services.get(place));
        let spec = service.map(|service| service.source.spec());
        let mut verdict = Decision {
            frame: self.frames,
            time: elapsed.as_secs_f64(),
            verdict: "drop",
            reason: reason.map(|reason| reason.to_string()),
            service: spec.map(|spec| spec.name.as_str()),
            slot: None,
            backend: None,
            port: None,
        };
        let mut sent = None;
        match fate {
            Fate::Send(out) => {
                verdict.verdict = "send";
                verdict.slot = Some(meta.slot);
                let backend = spec.and_then(|spec| spec.backends.get(usize::from(meta.backend)));
                verdict.backend = backend.map(|backend| backend.address);
                verdict.port = self.ports.get(out.index()).map(|port| port.name.as_str());
                burst.take(|frame, _| sent = Some(frame));
            }
            Fate::Punt => verdict.verdict = "punt",
            Fate::Drop => {}
        }
        (sent, verdict)
    }
}

/// Offline there is no kernel to ask: every backend is a station on a port's link.
fn next_hops(config: &Config, ports: &[Port]) -> NextHops {
    let services = config.desired.services().iter();
    let backends = services.flat_map(|service| &service.spec().backends);
    backends
        .map(|backend| {
            let is_on_link =
                |port: &Port| port.addresses.iter().any(|n| n.contains(&backend.address));
            let place = ports.iter().position(is_on_link).unwrap_or(0);
            let octets = lb_core::tuple::address_bytes(backend.address);
            let hop = NextHop {
                port: PortId(u8::try_from(place).unwrap_or(0)),
                mac: MacAddr([2, 0, octets[12], octets[13], octets[14], octets[15]]),
                vlan: None,
            };
            (backend.address, Ok(Resolved { hops: Hops::from_iter([hop]), gateway: None }))
        })
        .collect()
}
