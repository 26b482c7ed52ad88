//! The running binary.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Netns;
use crate::topology::Segment;

/// How long starting, reloading and leaving may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the printing of counters may pause before it is taken for finished.
const QUIET: Duration = Duration::from_millis(100);

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_weir");

/// How a run ended that was not to begin.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
    /// What weir said on stderr.
    pub(crate) errors: String,
}

/// `weir run`. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Weir {
    child: Child,
    log: Arc<Lines>,
    printed: Arc<Lines>,
    file: PathBuf,
}

impl Weir {
    /// Starts `weir run` in `netns`, connects its ports to their switches, and waits until its
    /// tables are in force.
    pub(crate) fn start(netns: &Netns, config: &str, segments: &[Segment]) -> Self {
        let mut weir = Self::spawn(netns, config, BINARY.as_ref(), &[]);
        for segment in segments {
            // It comes last: the port is set up when it is there.
            weir.wait_until(|| netns.has_interface(&segment.kernel_side()), "kernel side");
            segment.connect_weir(netns);
        }
        weir.wait_for(0, in_force, "the first version in force");
        weir
    }

    /// Starts `weir run` where it is to refuse.
    pub(crate) fn refuse(netns: &Netns, config: &str) -> Refusal {
        Self::spawn(netns, config, BINARY.as_ref(), &[]).into_refusal()
    }

    /// Starts `weir run` as a user who may do nothing, and reach nothing below root's folders.
    pub(crate) fn refuse_nobody(netns: &Netns, config: &str) -> Refusal {
        let copy = temp_file(netns, "weir");
        fs::copy(BINARY, &copy).expect("the temporary folder has room");
        let nobody = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"];
        let refusal = Self::spawn(netns, config, &copy, &nobody).into_refusal();
        fs::remove_file(&copy).ok();
        refusal
    }

    fn spawn(netns: &Netns, config: &str, binary: &Path, user: &[&str]) -> Self {
        let file = temp_file(netns, "toml");
        write_config(&file, config);
        // Every program here becomes the next by exec: the process id is weir's. The kernel ends
        // it with this thread, whatever happens.
        let mut child = netns
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(user)
            .args([binary, "run".as_ref(), "-c".as_ref(), &file])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip (Debian package iproute2) is installed");
        let log = Lines::read(child.stderr.take().expect("is piped"));
        let printed = Lines::read(child.stdout.take().expect("is piped"));
        Self { child, log, printed, file }
    }

    fn into_refusal(mut self) -> Refusal {
        let status = self.wait_for_exit();
        Refusal { pid: self.pid(), status, errors: self.log_tail() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What was logged last: enough to see what went wrong.
    pub(crate) fn log_tail(&self) -> String {
        self.log.since(self.log.count().saturating_sub(60)).join("\n")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Loads a new configuration and waits until it is in force.
    pub(crate) fn reload(&mut self, config: &str) {
        let before = self.version();
        let logged = self.signal_reload(config);
        // A version in force may be of something else: see `version`.
        let reloaded = |line: &str| line.rsplit_once("reloaded: version ")?.1.parse().ok();
        let version = self.wait_for(logged, reloaded, "a reload");
        assert!(version > before, "version {version} follows {before}");
    }

    /// Tries to load an invalid configuration; returns what weir says about it.
    pub(crate) fn reload_refused(&mut self, config: &str) -> String {
        let logged = self.signal_reload(config);
        self.wait_for_line(logged, " stays in force");
        // A later version may have come by itself: for a next hop, for the end of a transition.
        assert!(!self.has_logged(logged, "reloaded: version"), "it was taken");
        self.log.since(logged).join("\n")
    }

    /// The newest version that is in force. (There is a new one not only after a reload: also when
    /// a backend's next hop is found.)
    fn version(&self) -> u64 {
        self.log.since(0).iter().rev().find_map(|line| in_force(line)).unwrap_or_default()
    }

    fn signal_reload(&mut self, config: &str) -> usize {
        let logged = self.log.count();
        write_config(&self.file, config);
        self.signal(Signal::SIGHUP);
        logged
    }

    /// How many lines have been logged.
    pub(crate) fn logged(&self) -> usize {
        self.log.count()
    }

    /// Is there a line with this in it, from the line `from` on?
    pub(crate) fn has_logged(&self, from: usize, text: &str) -> bool {
        self.log.since(from).iter().any(|line| line.contains(text))
    }

    /// How many lines have this in them.
    pub(crate) fn count_logged(&self, text: &str) -> usize {
        self.log.since(0).iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until a line with this in it is logged, from the line `from` on.
    pub(crate) fn wait_for_line(&self, from: usize, text: &str) {
        self.wait_for(from, |line| line.contains(text).then_some(0), text);
    }

    /// Runs a command that asks this balancer.
    pub(crate) fn command(&self, args: &[&str]) -> Said {
        let mut command = Command::new(BINARY);
        let output = command.args(args).args(["--api", &api(&self.file)]).output();
        let output = output.expect("the binary under test runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("is text");
        Said {
            status: output.status.code(),
            text: text(output.stdout),
            errors: text(output.stderr),
        }
    }

    /// What a command says as JSON.
    pub(crate) fn ask(&self, args: &[&str]) -> Value {
        let text = self.command(&[args, &["--json"]].concat()).done();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Starts a command that asks this balancer, and goes on.
    pub(crate) fn start_command(&self, args: &[&str]) -> Running {
        let mut command = Command::new(BINARY);
        command.args(args).args(["--api", &api(&self.file)]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test runs");
        let lines = Lines::read(child.stdout.take().expect("is piped"));
        Running { child, lines }
    }

    /// Writes another configuration, and does no more.
    pub(crate) fn write(&self, config: &str) {
        write_config(&self.file, config);
    }

    /// The configuration file.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Where its socket is.
    pub(crate) fn socket(&self) -> PathBuf {
        self.file.with_extension("sock")
    }

    /// The counters as of now.
    pub(crate) fn counters(&mut self) -> Counters {
        let printed = self.printed.count();
        self.signal(Signal::SIGUSR1);
        self.printed.wait(printed, PATIENCE, |_| Some(())).expect("SIGUSR1 prints the counters");
        self.printed.wait_until_quiet();
        Counters::parse(&self.printed.since(printed))
    }

    /// Asks weir to leave, and checks that it does so properly: exit status 0, no frame lost.
    pub(crate) fn leave(mut self) -> Counters {
        let printed = self.printed.count();
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_exit();
        assert!(status.success(), "after SIGTERM: {status}");
        let counters = Counters::parse(&self.printed.since(printed));
        counters.assert_conserved();
        counters
    }

    /// Kills weir, which it cannot prepare for.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.wait_for_exit();
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("process ids are small"));
        kill(pid, signal).expect("weir runs");
    }

    fn wait_for(&self, from: usize, found: impl Fn(&str) -> Option<u64>, what: &str) -> u64 {
        let found = self.log.wait(from, PATIENCE, found);
        found.unwrap_or_else(|| panic!("waited in vain for {what}"))
    }

    fn wait_until(&mut self, done: impl Fn() -> bool, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(self.is_running() && Instant::now() < end, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < end, "weir does not leave");
            thread::sleep(Duration::from_millis(20));
        };
        // What it still had to say is in the pipes.
        self.log.wait_until_closed();
        self.printed.wait_until_closed();
        status
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- weir's log ---\n{}", self.log_tail());
        }
        if self.is_running() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        fs::remove_file(&self.file).ok();
        fs::remove_file(self.socket()).ok();
    }
}

/// Where the balancer of this configuration file serves its API.
fn api(file: &Path) -> String {
    format!("unix:{}", file.with_extension("sock").display())
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: Option<i32>,
    pub(crate) text: String,
    pub(crate) errors: String,
}

impl Said {
    /// What was printed, of a command that is to be done.
    pub(crate) fn done(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.text
    }
}

/// A command that goes on. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    lines: Arc<Lines>,
}

impl Running {
    /// Waits until it has printed a line, `from` this one on, that has all of this in it. Returns how many
    /// lines there are then.
    pub(crate) fn wait_for_line(&self, from: usize, parts: &[&str]) -> usize {
        let has_all = |line: &str| parts.iter().all(|part| line.contains(part)).then_some(());
        let found = self.lines.wait(from, PATIENCE, has_all);
        assert!(found.is_some(), "waited in vain for {parts:?} in {:?}", self.lines.since(from));
        self.lines.count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes a configuration, with the namespace's directory for what outlives the process, and its socket
/// for commands.
fn write_config(file: &Path, config: &str) {
    let dataplane = format!(
        "[api]\ngrpc = \"{}\"\n[dataplane]\nstate_dir = \"{}\"\n",
        api(file),
        file.with_extension("state").display(),
    );
    let config = config.replacen("[dataplane]\n", &dataplane, 1);
    fs::write(file, config).expect("the temporary folder can be written");
}

/// A file of this test process, where every user can reach it.
fn temp_file(netns: &Netns, extension: &str) -> PathBuf {
    std::env::temp_dir().join(netns.name()).with_extension(extension)
}

/// The N of `version N is in force on every worker`.
fn in_force(line: &str) -> Option<u64> {
    let before = &line[..line.find(" is in force on every worker")?];
    before.rsplit_once("version ")?.1.parse().ok()
}

/// What weir counted, as it prints it.
#[derive(Debug)]
pub(crate) struct Counters {
    values: BTreeMap<String, u64>,
    /// Frames and bytes of each service.
    services: BTreeMap<String, (u64, u64)>,
}

impl Counters {
    fn parse(lines: &[String]) -> Self {
        let mut counters = Self { values: BTreeMap::new(), services: BTreeMap::new() };
        for line in lines {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [name, value] => {
                    let value = value.parse().unwrap_or_else(|_| panic!("a counter: {line}"));
                    counters.values.insert(name.to_owned(), value);
                }
                ["service", name, "frames", frames, "bytes", bytes] => {
                    let [frames, bytes] = [frames, bytes]
                        .map(|it| it.parse().unwrap_or_else(|_| panic!("a counter: {line}")));
                    counters.services.insert(name.to_owned(), (frames, bytes));
                }
                _ => panic!("neither `name value` nor a service: {line}"),
            }
        }
        counters
    }

    /// The counter with this name; 0 where weir does not print it.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    /// Frames of the service with this name.
    pub(crate) fn service_frames(&self, name: &str) -> u64 {
        self.service_frames_and_bytes(name).0
    }

    /// The same, and bytes of their packets.
    pub(crate) fn service_frames_and_bytes(&self, name: &str) -> (u64, u64) {
        self.services.get(name).copied().unwrap_or_default()
    }

    /// Panics unless every frame that came in was sent, punted or dropped.
    fn assert_conserved(&self) {
        let drops = self.values.iter().filter(|(name, _)| name.starts_with("dropped."));
        let dropped: u64 = drops.map(|(_, value)| value).sum();
        let sum = |names: &[&str]| names.iter().map(|name| self.get(name)).sum::<u64>();
        let came = sum(&["received", "injected", "created", "taken_over", "released"]);
        let went = sum(&["sent", "punted", "handed_over", "held"]) + dropped;
        assert!(came > 0, "nothing was received: {self:?}");
        assert_eq!(came, went, "frames got lost: {self:?}");
    }
}

/// Lines that a thread reads from a pipe.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    closed: bool,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let grow = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                grow.lock().lines.push(line);
                grow.grown.notify_all();
            }
            grow.lock().closed = true;
            grow.grown.notify_all();
        });
        lines
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.lock().lines.len()
    }

    fn since(&self, from: usize) -> Vec<String> {
        self.lock().lines[from..].to_vec()
    }

    /// Waits for a line, `from` this one on, in which something is found. `None` when time is up,
    /// or when no more lines can come.
    fn wait<T>(
        &self,
        from: usize,
        timeout: Duration,
        found: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = state.lines[from..].iter().find_map(|line| found(line)) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return None;
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until no line has come for a while.
    fn wait_until_quiet(&self) {
        while self.wait(self.count(), QUIET, |_| Some(())).is_some() {}
    }

    fn wait_until_closed(&self) {
        self.wait(0, PATIENCE, |_| None::<()>);
    }
}
