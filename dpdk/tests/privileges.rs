//! All threads give up their rights: EAL's, those that wait in the kernel, those that begin meanwhile. A process
//! of its own, since nothing gives them back.

mod common;

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, Builder};
use std::time::Duration;
use std::{fs, io};

use dpdk::{CAP_NET_ADMIN, CAP_NET_RAW, keep_capabilities};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::geteuid;

const KEPT: u64 = CAP_NET_ADMIN | CAP_NET_RAW;

/// May the calling thread do what root may, and what was kept?
fn rights() -> (bool, bool) {
    let is_root = unshare(CloneFlags::CLONE_NEWUTS) != Err(Errno::EPERM);
    let icmp = SockProtocol::Icmp;
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), icmp);
    (is_root, raw.is_ok())
}

#[test]
fn every_thread_gives_up_its_rights() {
    if !geteuid().is_root() {
        return;
    }
    common::eal();
    // It waits in the kernel, and goes on waiting.
    let (mut pipe, mut end) = io::pipe().expect("a pipe");
    let waiting = thread::spawn(move || {
        let mut byte = [0];
        pipe.read_exact(&mut byte).map(|()| rights())
    });
    // Its threads begin and end all the time.
    let stop = Arc::<AtomicBool>::default();
    let chain = Builder::new().name("chain".into()).spawn({
        let stop = Arc::clone(&stop);
        move || loop {
            let is_last = stop.load(Ordering::Relaxed);
            let next = thread::spawn(|| {
                thread::sleep(Duration::from_micros(50));
                rights()
            });
            let seen = next.join().expect("it does not panic");
            if is_last {
                return seen;
            }
        }
    });
    let chain = chain.expect("threads can be made");
    let (go, told) = channel::<()>();
    let (ready, is_ready) = channel();
    let deaf = Builder::new().name("deaf".into()).spawn(move || {
        let mut set = SigSet::empty();
        set.add(Signal::SIGURG);
        set.thread_block().expect("may be blocked");
        ready.send(()).expect("the test waits");
        told.recv().expect("the test says so");
        set.thread_unblock().expect("may be unblocked");
        told.recv().expect("the test says so");
        rights()
    });
    let deaf = deaf.expect("threads can be made");
    is_ready.recv().expect("it begins");

    let refused = keep_capabilities::<KEPT>().expect_err("one thread is deaf").to_string();
    assert!(refused.contains("\"deaf\""), "{refused}");
    go.send(()).expect("it listens");
    keep_capabilities::<KEPT>().unwrap_or_else(|error| panic!("{error}"));

    assert_eq!(rights(), (false, true));
    go.send(()).expect("it listens");
    stop.store(true, Ordering::Relaxed);
    end.write_all(&[1]).expect("somebody reads");
    let waited = waiting.join().expect("it does not panic").expect("reading goes on");
    assert_eq!(waited, (false, true));
    assert_eq!(chain.join().expect("it does not panic"), (false, true));
    assert_eq!(deaf.join().expect("it does not panic"), (false, true));

    let mut threads = 0;
    for task in fs::read_dir("/proc/self/task").expect("is there") {
        let status = fs::read_to_string(task.expect("is there").path().join("status"));
        let status = status.expect("is there");
        for line in ["CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{status}");
        }
        threads += 1;
    }
    assert!(threads >= 3, "this one, the runner's, and EAL's");
    let shown = Command::new("grep").args(["Cap", "/proc/self/status"]).output().expect("runs");
    let shown = String::from_utf8(shown.stdout).expect("is text");
    assert_eq!(shown.matches("\t0000000000000000").count(), 5, "programs have none: {shown}");
    // Again, there is nothing left to give up.
    keep_capabilities::<KEPT>().unwrap_or_else(|error| panic!("{error}"));
}
