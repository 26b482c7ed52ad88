//! The device under test: a process of ours at the other end of a memif, or whatever a port leads to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// This program, as `weir run`, with a configuration for the profile.
    Weir {
        /// The program.
        program: PathBuf,
        /// CPUs of its workers.
        workers: Vec<usize>,
    },
    /// A command that forwards what comes in by [`DEVICE_PLACE`], a DPDK device.
    Command {
        /// What it is called.
        name: String,
        /// For a shell.
        command: String,
    },
    /// It runs already, and is where this DPDK device leads to.
    Port {
        /// Such as a PCI address.
        device: String,
    },
}

/// In a command, where the device's name and arguments are to be.
pub const DEVICE_PLACE: &str = "{device}";
/// Lines that are told of a log's beginning, and of its end.
const LOG_LINES: usize = 8;
/// How long a process may take to leave.
const LEAVE: Duration = Duration::from_secs(5);

impl Device {
    /// What results call it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Weir { .. } => "weir",
            Self::Command { name, .. } => name,
            Self::Port { device } => device,
        }
    }
}

/// A device under test that runs. A process ends with it.
#[derive(Debug)]
pub struct Running {
    process: Option<(Child, PathBuf)>,
}

impl Running {
    /// Starts the device, which is to use `port`, a DPDK device. `folder` is for its files.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        device: &Device,
        port: &str,
        configuration: &str,
        folder: &Path,
    ) -> io::Result<Self> {
        let mut command = match device {
            Device::Port { .. } => return Ok(Self { process: None }),
            Device::Weir { program, .. } => {
                let file = folder.join("weir.toml");
                fs::write(&file, configuration)?;
                let mut command = Command::new(program);
                command.arg("run").arg("-c").arg(file);
                command
            }
            Device::Command { command: line, .. } => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!("exec {}", line.replace(DEVICE_PLACE, port)));
                command
            }
        };
        let log = folder.join("log");
        let out = File::create(&log)?;
        // Some leave when their standard input ends: it is held open.
        command.stdin(Stdio::piped()).stderr(out.try_clone()?).stdout(out);
        Ok(Self { process: Some((command.spawn()?, log)) })
    }

    /// Does it still run?
    pub fn is_there(&mut self) -> bool {
        match &mut self.process {
            Some((child, _)) => matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    /// The first and the last that it said.
    #[must_use]
    pub fn words(&self) -> String {
        let text = self.process.as_ref().and_then(|(_, log)| fs::read(log).ok());
        let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let (first, last) = lines.split_at(lines.len().min(LOG_LINES));
        let last = &last[last.len().saturating_sub(LOG_LINES)..];
        [first, last].concat().join("\n")
    }

    /// Its busiest thread, to see when that is kept from running; `None`: nobody knows.
    #[must_use]
    pub fn busiest(&self) -> Option<Thread> {
        /// How long that is looked at.
        const LOOK: Duration = Duration::from_millis(50);
        let (child, _) = self.process.as_ref()?;
        let entries = fs::read_dir(format!("/proc/{}/task", child.id())).ok()?;
        let threads = entries.flatten().filter_map(|entry| {
            let thread = Thread { schedstat: File::open(entry.path().join("schedstat")).ok()? };
            let (ran, _) = thread.schedule()?;
            Some((thread, ran))
        });
        let threads: Vec<(Thread, Duration)> = threads.collect();
        thread::sleep(LOOK);
        let has_run = |(thread, before): &(Thread, Duration)| {
            thread.schedule().unwrap_or_default().0.saturating_sub(*before)
        };
        threads.into_iter().max_by_key(has_run).map(|(thread, _)| thread)
    }
}

/// A thread of the device's.
#[derive(Debug)]
pub struct Thread {
    schedstat: File,
}

impl Thread {
    /// For how long it was kept from running, so far: it could run, but its CPU was somebody else's.
    #[must_use]
    pub fn kept_waiting(&self) -> Duration {
        self.schedule().unwrap_or_default().1
    }

    fn schedule(&self) -> Option<(Duration, Duration)> {
        let mut text = [0; 80];
        let len = self.schedstat.read_at(&mut text, 0).ok()?;
        schedule(str::from_utf8(&text[..len]).ok()?)
    }
}

/// From /proc/…/schedstat: time on a CPU, and time waiting for one (Documentation/scheduler/sched-stats).
fn schedule(text: &str) -> Option<(Duration, Duration)> {
    let mut numbers = text.split_whitespace().map(str::parse).filter_map(Result::ok);
    Some((Duration::from_nanos(numbers.next()?), Duration::from_nanos(numbers.next()?)))
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some((child, _)) = &mut self.process else { return };
        let pid = Pid::from_raw(child.id().cast_signed());
        // Not there any more, at worst.
        let _ = kill(pid, Signal::SIGTERM);
        let start = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if start.elapsed() > LEAVE {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What the machine is.
#[must_use]
pub fn machine() -> (String, String) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let fields: BTreeMap<&str, &str> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    let cpu = fields.get("model name").copied().unwrap_or("unknown");
    (cpu.into(), read("/proc/sys/kernel/osrelease").trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Device {
        Device::Command { name: "it".into(), command: line.into() }
    }

    #[test]
    fn a_command_is_told_its_device_and_ends_with_us() {
        let folder = tempfile::tempdir().unwrap();
        let device = command("sh -c 'echo {device}; sleep 60'");
        let mut running = Running::start(&device, "net_memif0,id=7", "", folder.path()).unwrap();
        let start = Instant::now();
        while running.words().is_empty() && start.elapsed() < LEAVE {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(running.is_there());
        assert_eq!(running.words(), "net_memif0,id=7");
        let pid = running.process.as_ref().unwrap().0.id();
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn one_that_left_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut running = Running::start(&command("false"), "", "", folder.path()).unwrap();
        let start = Instant::now();
        while running.is_there() {
            assert!(start.elapsed() < LEAVE);
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn who_waits_for_a_cpu_is_known() {
        let time = |run, wait| Some((Duration::from_nanos(run), Duration::from_nanos(wait)));
        assert_eq!(schedule("123 456 7\n"), time(123, 456));
        assert_eq!(schedule(""), None);
        let folder = tempfile::tempdir().unwrap();
        let device = command("sh -c 'while :; do :; done'");
        let running = Running::start(&device, "", "", folder.path()).unwrap();
        let thread = running.busiest().unwrap();
        assert!(thread.schedule().unwrap().0 > Duration::ZERO);
    }
}
