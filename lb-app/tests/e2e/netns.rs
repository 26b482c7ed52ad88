//! Network namespaces, and threads that enter them.

use std::fs::{self, File};
use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// Starts every name, followed by the process id: so that a later run knows what is left over.
const PREFIX: &str = "weir-e2e-";

/// A network namespace of this test process. Dropping it removes it, and all interfaces in it.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with `lo` up, in which IPv6 addresses can be used at once.
    pub(crate) fn new(role: &str) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("{PREFIX}{}-{serial}-{role}", std::process::id()) };
        expect_success(Command::new("ip").args(["netns", "add", &netns.name]));
        netns.ip("link set lo up");
        // Duplicate address detection would hold every new address back for a second.
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0");
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0");
        netns
    }

    /// The name, as `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs the lines of `script` as `ip` commands in this namespace.
    pub(crate) fn ip(&self, script: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip (Debian package iproute2) is installed");
        child.stdin.take().expect("is piped").write_all(script.as_bytes()).expect("ip reads");
        let output = child.wait_with_output().expect("ip ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip -n {}: {stderr}\nin: {script}", self.name);
    }

    /// Whether an interface of this name is there.
    pub(crate) fn has_interface(&self, name: &str) -> bool {
        // (A thread's own `/proc/net` shows its namespace.)
        let devices = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let devices = devices.expect("Linux has it");
        devices.lines().any(|line| line.split(':').next().is_some_and(|it| it.trim() == name))
    }

    /// A command that will run in this namespace, with `/sys` showing this namespace's interfaces.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Sets a kernel parameter of this namespace, named as its path below `/proc/sys`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))
            .unwrap_or_else(|error| panic!("sysctl {key} = {value}: {error}"));
    }

    /// Runs `work` on a thread in this namespace. A panic in there goes on out here.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.name);
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As [`run`](Self::run), for a future on a runtime of its own.
    pub(crate) fn block_on<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> T {
        self.run(|| runtime().block_on(async { work().await }))
    }

    /// Starts a thread in this namespace: `start` runs to its end, and the tasks it spawned go on
    /// until the handle is dropped.
    pub(crate) fn serve<F: Future<Output = ()>>(
        &self,
        start: impl FnOnce() -> F + Send + 'static,
    ) -> Servers {
        let name = self.name.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let thread = thread::spawn(move || {
            enter(&name);
            runtime().block_on(async {
                start().await;
                ready.send(()).ok();
                stopped.await.ok();
            });
        });
        is_ready.blocking_recv().expect("the servers start");
        Servers { stop: Some(stop), thread: Some(thread) }
    }
}

/// Tasks on a thread in a namespace. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct Servers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Moves the calling thread into a namespace, for good.
fn enter(name: &str) {
    let file = File::open(Path::new(NAMES).join(name)).expect("the namespace exists");
    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll")
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
        // What balancers in it have remembered.
        let state = std::env::temp_dir().join(&self.name).with_extension("state");
        fs::remove_dir_all(state).ok();
    }
}

/// Removes the namespaces of earlier runs whose process is gone (killed, as by Ctrl-C), and the
/// temporary files that are named after them.
pub(crate) fn remove_leftovers() {
    leftovers(Path::new(NAMES)).for_each(|name| remove(&name));
    let temporary = std::env::temp_dir();
    leftovers(&temporary).map(|name| temporary.join(name)).for_each(|path| {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.ok();
    });
}

fn leftovers(folder: &Path) -> impl Iterator<Item = String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    })
}

/// Removes a namespace. Never panics: it runs while a failed test is unwinding.
fn remove(name: &str) {
    match Command::new("ip").args(["netns", "del", name]).status() {
        Ok(status) if status.success() => {}
        other => eprintln!("ip netns del {name}: {other:?}"),
    }
}

/// Runs a command to its end and returns what it printed; panics with its errors if it fails.
pub(crate) fn expect_success(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}
