//! `weir bench`: how fast is it here?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lb_bench::compare::compare;
use lb_bench::device::Device;
use lb_bench::generator::Rate;
use lb_bench::measure::{Loads, Plan, measure};
use lb_bench::mix::Mix;
use lb_bench::network::{DEVICE_MAC, Place, configuration};
use lb_bench::report::page;
use lb_bench::results::Results;
use lb_bench::search::Goal;
use lb_bench::stamp::stamp;
use lb_config::profile::{Profile, Traffic};
use lb_core::wire::ethernet::MacAddr;

use super::{Failure, render};
use crate::capture::{Reader, Writer};

/// What `weir bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Measure how fast Weir forwards here, without a network card: a generator on one CPU sends frames
/// through a `weir run` on another, over shared memory, and counts and times what comes back.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send at given rates: what comes back, what is lost, how long does it take?
    ///
    /// Needs root, for the `weir run` that is measured; no huge pages, no network card.
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// Frames a second, as in 500k or 2.5M; or "full": as many as are taken. May be repeated.
        #[arg(long = "rate", value_name = "RATE", default_value = "full", value_parser = rate)]
        rates: Vec<Rate>,
        #[command(flatten)]
        measurement: Measurement,
    },
    /// Search the highest rate without loss (RFC 2544), and measure the latency at shares of it.
    #[command(after_help = SEARCH_EXAMPLES)]
    Search {
        /// The loss that counts as none, in percent.
        #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
        loss: f64,
        /// How near to the highest rate is near enough, in percent of it.
        #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
        resolution: f64,
        /// Shares of the highest rate at which the latency is measured, in percent.
        #[arg(
            long,
            value_name = "PERCENT",
            value_delimiter = ',',
            default_value = "10,30,50,70,90"
        )]
        loads: Vec<u8>,
        #[command(flatten)]
        measurement: Measurement,
    },
    /// Make one HTML page, with plots, of what was measured.
    Report {
        /// What `weir bench run` or `search` has saved.
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// The figures of the engine in memory, which `cargo run --release -p lb-bench` saves.
        #[arg(long, value_name = "FILE")]
        engine: Option<PathBuf>,
        /// The page.
        #[arg(short, long, value_name = "FILE", default_value = "weir-bench.html")]
        output: PathBuf,
    },
    /// Compare two runs: exit status 1, if the second is slower in anything.
    Compare {
        /// What was saved first.
        before: PathBuf,
        /// What was saved later.
        after: PathBuf,
        /// A change that counts as none, in percent. Beyond it, the rounds of the two must not overlap.
        #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
        tolerance: f64,
    },
    /// Write what would be sent as a capture, and the configuration for it: for other generators.
    Frames {
        /// The profile; see `weir bench run --help`.
        #[arg(short, long, value_name = "FILE")]
        profile: Option<PathBuf>,
        /// How many frames.
        #[arg(long, default_value_t = 65_536)]
        count: u32,
        /// The capture, as pcap.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The MAC address that the frames are for.
        #[arg(long, default_value_t = DEVICE_MAC, value_parser = mac)]
        mac: MacAddr,
        /// The configuration, for Weir on this DPDK device.
        #[arg(long, num_args = 2, value_names = ["FILE", "DEVICE"])]
        config: Vec<String>,
    },
}

const RUN_EXAMPLES: &str = r#"Examples:
  weir bench run                                    64-byte frames of TCP, as many as are taken
  weir bench run --profile web.toml --rate 1M --rate 2M -o web.json
  weir bench run --against 'macswap=dpdk-testpmd --lcores 0@0,1@1 --no-huge --no-shconf -m 256
      --no-pci --vdev={device} -- --total-num-mbufs=16383 --forward-mode=macswap --auto-start'

The profile says what is sent (TOML; every key may be absent):
  sizes = [64, 512, 1518, "imix"]    # bytes of a frame, its check sequence included
  modes = ["l2dsr", "gue"]           # how Weir forwards
  protocol = "tcp"                   # or "udp"
  flows = 16384                      # at a time
  new_flows = 0                      # begin in a second, and as many end
  ipv6 = "0%"                        # of the flows
  fragments = "0%"                   # of the frames, halves of IPv4 datagrams
  services = 1
  backends = 100                     # of each service
  capture = "clients.pcap"           # its frames instead of made ones
  [[attack]]                         # what comes besides, and need not come back
  kind = "syn"                       # or "fragments", "stray"
  share = "50%"                      # of all frames"#;

const SEARCH_EXAMPLES: &str = r"Examples:
  weir bench search -o a.json && weir bench report a.json -o a.html
  nice -n -20 weir bench search --loss 0.1 --rounds 7        on a machine that others use

The loss is that of the device: while its CPU is somebody else's, as far as the kernel knows, it can lose
what comes then, which is subtracted.
The profile is described by `weir bench run --help`.";

/// How something is measured.
#[derive(Debug, clap::Args)]
struct Measurement {
    /// What is sent, and through what; without, 64-byte frames of 16,384 TCP flows to one `l2dsr` service
    /// with 100 backends.
    #[arg(short, long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Where the results are saved, as JSON.
    #[arg(short, long, value_name = "FILE", default_value = "weir-bench.json")]
    output: PathBuf,
    /// How long a trial sends, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often all is measured, in turn. Figures are medians; rounds in which the machine itself became
    /// slower or faster by more than 15 % do not count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The CPU that sends and receives.
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    generator_cpu: usize,
    /// The CPUs of Weir's workers.
    #[arg(long, value_name = "CPU", value_delimiter = ',', default_value = "1")]
    worker_cpus: Vec<usize>,
    /// Another device under test, measured in the same rounds: a command that sends back what comes in by
    /// the DPDK device {device}. May be repeated.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named)]
    against: Vec<(String, String)>,
    /// Something that runs already, and is where this DPDK device leads to, such as 0000:01:00.0; instead
    /// of Weir. May be repeated.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Measure no `weir run`, only --against or --device.
    #[arg(long)]
    without_weir: bool,
    /// The MAC address that frames are sent to.
    #[arg(long, default_value_t = DEVICE_MAC, value_parser = mac)]
    mac: MacAddr,
}

/// Does what was asked for.
pub(crate) fn bench(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Run { rates, measurement } => measurement.run(Loads::Given(rates), 0.0, 1.0),
        Command::Search { loss, resolution, loads, measurement } => {
            measurement.run(Loads::Search(loads), loss / 100.0, resolution / 100.0)
        }
        Command::Report { results, engine, output } => report(&results, engine.as_deref(), &output),
        Command::Compare { before, after, tolerance } => {
            let comparison =
                compare(&Results::load(&before)?, &Results::load(&after)?, tolerance / 100.0);
            for line in &comparison.lines {
                println!("{line}");
            }
            for line in &comparison.alone {
                println!("{line}");
            }
            if comparison.lines.is_empty() {
                return Err(
                    "the two have nothing in common: no load of the same device, mode and size"
                        .into(),
                );
            }
            Ok(if comparison.is_worse() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Frames { profile, count, output, mac, config } => {
            frames(profile.as_deref(), (count, mac), &output, &config)
        }
    }
}

impl Measurement {
    fn run(self, loads: Loads, loss_max: f64, resolution: f64) -> Result<ExitCode, Failure> {
        if !(self.seconds > 0.0 && self.seconds <= 3600.0) || self.rounds == 0 {
            return Err("--seconds is above 0 and at most 3600, --rounds at least 1".into());
        }
        let (profile, profile_name) = load(self.profile.as_deref())?;
        let mut devices = Vec::new();
        if !self.without_weir && self.device.is_empty() {
            let program = std::env::current_exe()?;
            devices.push(Device::Weir { program, workers: self.worker_cpus });
        }
        let command = |(name, command)| Device::Command { name, command };
        devices.extend(self.against.into_iter().map(command));
        devices.extend(self.device.into_iter().map(|device| Device::Port { device }));
        if devices.is_empty() {
            return Err(
                "there is nothing to measure: --without-weir needs --against or --device".into()
            );
        }
        let mut captured = Vec::new();
        if let Traffic::Captured(path) = &profile.traffic {
            let mut reader = Reader::open(path)?;
            while let Some(frame) = reader.next()? {
                captured.push(frame.bytes);
            }
            if captured.is_empty() {
                return Err(format!("{} has no frames", path.display()).into());
            }
        }
        let plan = Plan {
            devices,
            profile,
            profile_name,
            captured,
            loads,
            seconds: self.seconds,
            rounds: self.rounds,
            goal: Goal { loss_max, resolution },
            generator_cpu: self.generator_cpu,
            mac: self.mac,
        };
        let results = measure(&plan, |line| eprintln!("{line}"))?;
        results.save(&self.output)?;
        println!("saved: {}", self.output.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// The profile, and what results call it.
fn load(path: Option<&Path>) -> Result<(Profile, String), Failure> {
    let Some(path) = path else { return Ok((Profile::default(), "(built in)".into())) };
    match Profile::load(path) {
        Ok(profile) => Ok((profile, path.display().to_string())),
        Err(error) => {
            eprintln!("{}", render(&error));
            Err(format!("{} is not valid; nothing was measured", path.display()).into())
        }
    }
}

fn report(paths: &[PathBuf], engine: Option<&Path>, output: &Path) -> Result<ExitCode, Failure> {
    let load = |path: &PathBuf| Ok((path.display().to_string(), Results::load(path)?));
    let results = paths.iter().map(load).collect::<Result<Vec<_>, Failure>>()?;
    let engine = match engine {
        Some(path) => serde_json::from_slice(
            &fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        )
        .map_err(|error| format!("{} has no figures of lb-bench: {error}", path.display()))?,
        None => Vec::new(),
    };
    fs::write(output, page(&results, &engine))
        .map_err(|error| format!("cannot write {}: {error}", output.display()))?;
    println!("written: {}", output.display());
    Ok(ExitCode::SUCCESS)
}

fn frames(
    profile: Option<&Path>,
    (count, mac): (u32, MacAddr),
    output: &Path,
    config: &[String],
) -> Result<ExitCode, Failure> {
    const BYTES_MAX: usize = 2048;
    let (profile, _) = load(profile)?;
    let Traffic::Made(made) = &profile.traffic else {
        return Err("the profile's frames are a capture already".into());
    };
    let mut writer = Writer::create(output)?;
    let mut mix = Mix::new(made, made.sizes[0], profile.services, mac);
    let mut room = [0; BYTES_MAX];
    for number in 0..count {
        let mut len = 0;
        mix.write(stamp(number), |wanted| {
            len = wanted;
            room.get_mut(..wanted)
        });
        writer.write(Duration::from_micros(number.into()), &room[..len])?;
    }
    writer.finish()?;
    if let [file, device] = config {
        let folder = std::path::absolute(file)?;
        let state_dir = &folder.parent().unwrap_or(Path::new("/")).join("state");
        let place = Place { device, mac, workers: &[1], state_dir };
        let text = configuration(&profile, profile.modes[0], place);
        fs::write(file, text).map_err(|error| format!("cannot write {file}: {error}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A number with a unit, or "full".
fn rate(text: &str) -> Result<Rate, String> {
    if text == "full" {
        return Ok(Rate::Full);
    }
    let (digits, unit) = match text.strip_suffix(['k', 'M']) {
        Some(digits) if text.ends_with('M') => (digits, 1e6),
        Some(digits) => (digits, 1e3),
        None => (text, 1.0),
    };
    let rate = digits.parse::<f64>().map(|number| number * unit);
    rate.ok()
        .filter(|rate| (1.0..=1e9).contains(rate))
        .map(Rate::Of)
        .ok_or_else(|| "write frames a second, as in 500k or 2.5M, or \"full\"".into())
}

fn named(text: &str) -> Result<(String, String), String> {
    let (name, command) =
        text.split_once('=').ok_or("write a name, \"=\" and a command, as in 'other=program …'")?;
    if name.is_empty() || name == "weir" || !command.contains(lb_bench::device::DEVICE_PLACE) {
        return Err(
            "the name is not \"weir\", and the command has {device} where its DPDK device \
                    is to be"
                .into(),
        );
    }
    Ok((name.into(), command.into()))
}

fn mac(text: &str) -> Result<MacAddr, String> {
    text.parse().map_err(|_| "write a MAC address, as in 02:00:00:00:00:02".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        for (text, expect) in [
            ("full", Some(Rate::Full)),
            ("1500", Some(Rate::Of(1500.0))),
            ("500k", Some(Rate::Of(500e3))),
            ("2.5M", Some(Rate::Of(2.5e6))),
            ("0", None),
            ("-1M", None),
            ("2G", None),
            ("M", None),
        ] {
            assert_eq!(rate(text).ok(), expect, "{text}");
        }
    }

    #[test]
    fn what_is_measured_against_has_a_name_and_a_device() {
        let command = |text| named(text).ok().map(|(name, command)| format!("{name}|{command}"));
        assert_eq!(command("a=b --vdev={device}").as_deref(), Some("a|b --vdev={device}"));
        for wrong in ["", "a", "a=b", "=b {device}", "weir=b {device}"] {
            assert_eq!(command(wrong), None, "{wrong}");
        }
    }
}
