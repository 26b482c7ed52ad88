//! Real networks for tests: namespaces, a second host, a wire. All vanish with their values.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::tap::Tap;

/// Runs a test in a network namespace of its own.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        enter_namespace();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs an asynchronous test in a network namespace of its own.
pub(super) fn block_on_in_namespace<F: Future<Output = ()>>(
    test: impl FnOnce() -> F + Send + 'static,
) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_mins(1), test()).await.expect("within a minute");
        });
    });
}

/// The calling thread alone leaves its namespace; the new one lives as long as it.
fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNET)
        .unwrap_or_else(|errno| panic!("this test needs root, for network namespaces: {errno}"));
    ip("link set lo up");
}

/// Runs `ip ARGUMENTS` in the namespace of the calling thread.
pub(super) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Is the interface of a TAP that was closed gone soon? A process that another test is just starting
/// has a copy of the TAP until it runs its program.
pub(super) fn vanishes(interface: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while ip("link show").contains(interface) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

pub(super) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs many `ip` commands at once.
pub(super) fn ip_batch(commands: impl Iterator<Item = String>) {
    let file = std::env::temp_dir().join(format!("weir-ip-batch-{}", gettid()));
    std::fs::write(&file, commands.collect::<Vec<_>>().join("\n")).unwrap();
    let output = Command::new("ip").arg("-batch").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{output:?}");
}

type Job = Box<dyn FnOnce() + Send>;

/// Another machine: a namespace, and a thread in it.
pub(super) struct Host {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// What `ip link set ... netns` calls the namespace.
    pub(super) netns: String,
}

impl Host {
    pub(super) fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            enter_namespace();
            tell.send(gettid().to_string()).unwrap();
            for job in queue {
                job();
            }
        });
        let netns = told.recv().expect("another namespace");
        Self { jobs: Some(jobs), thread: Some(thread), netns }
    }

    /// Runs `job` there.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = Box::new(move || tell.send(job()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().expect("the job ran")
    }

    pub(super) fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("a job of another host panicked");
        }
    }
}

/// A wire between two TAPs, as the data plane is between a TAP and a port.
pub(super) struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    pub(super) fn between(one: Tap, other: Tap) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut frame = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let mut ends =
                    [&one, &other].map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN));
                poll(&mut ends, PollTimeout::from(50u16)).unwrap();
                for (from, to) in [(&one, &other), (&other, &one)] {
                    while let Ok(Some(len)) = from.try_read(&mut frame) {
                        // A frame that the other end does not take is lost, as on any wire.
                        let _ = to.write(&frame[..len]);
                    }
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
