//! Starting EAL: once, without side effects, leaving nothing behind.

#![expect(clippy::unwrap_used, reason = "a failure in a helper fails the test")]

mod common;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{self, Command, Stdio},
    thread,
    time::Duration,
};

use common::{eal, frame, pool, start};
use dpdk::{
    Eal, EalConfig, EalError, MbufPool, Memory, PoolConfig, PoolError, PortConfig, ThreadError,
};
use nix::{sched::sched_getaffinity, unistd::Pid};

fn allowed_cpus() -> Vec<usize> {
    let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..1024).filter(|&cpu| cpus.is_set(cpu).unwrap()).collect()
}

/// Where DPDK makes its runtime directories.
fn runtime_dir(process: u32) -> PathBuf {
    PathBuf::from(format!("/var/run/dpdk/dpdk-{process}"))
}

#[test]
fn a_second_start_is_refused() {
    eal();
    assert_eq!(Eal::start(&EalConfig::default()).unwrap_err(), EalError::StartedBefore);
}

#[test]
fn what_can_be_checked_before_the_start_is() {
    eal();
    let bad = EalConfig { extra_args: vec!["a\0b".to_owned()], ..EalConfig::default() };
    assert_eq!(Eal::start(&bad).unwrap_err(), EalError::Argument("a\0b".to_owned()));
    let bad = EalConfig { main_cpu: Some(1023), ..EalConfig::default() };
    assert_eq!(Eal::start(&bad).unwrap_err(), EalError::MainCpu { cpu: 1023 });
    let bad = EalConfig { memory: Memory::HugePages, memory_mb: u32::MAX, ..EalConfig::default() };
    let error = Eal::start(&bad).unwrap_err();
    assert!(matches!(error, EalError::HugePages { asked_mb: u32::MAX, .. }), "{error}");
}

#[test]
fn the_version_is_known() {
    assert!(eal().version().starts_with("DPDK "), "{}", eal().version());
}

#[test]
fn the_callers_cpu_affinity_stays() {
    let all = allowed_cpus();
    eal();
    assert_eq!(allowed_cpus(), all);
    assert_eq!(thread::spawn(allowed_cpus).join().unwrap(), all);
}

#[test]
fn nothing_is_left_behind_even_when_killed() {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let up = lines.map_while(Result::ok).any(|line| line.contains("child is up"));
    assert!(up);
    let interface = PathBuf::from(format!("/sys/class/net/dpdkt{}", child.id()));
    let has_tap = interface.exists();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!runtime_dir(child.id()).exists());
    assert!(has_tap && !interface.exists());

    eal();
    assert!(!runtime_dir(process::id()).exists());
}

#[test]
#[ignore = "run by another test"]
fn child() {
    let pool = pool("child");
    let device = format!("net_tap9,iface=dpdkt{}", process::id());
    let _started = start(&device, &pool, &PortConfig { rx_descriptors: 64, ..Default::default() });
    println!("child is up");
    thread::sleep(Duration::from_mins(1));
}

#[test]
fn a_bad_argument_is_named_and_nothing_is_printed() {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child_with_bad_argument", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let error = stdout.lines().find(|line| line.contains("rte_eal_init")).unwrap();
    assert!(
        error.ends_with("dpdk: unrecognized option '--bogus' (rte_eal_init: EINVAL)"),
        "{error}"
    );
    assert!(!stdout.contains("Usage"), "{stdout}");
}

#[test]
#[ignore = "run by another test"]
fn child_with_bad_argument() {
    let bad = EalConfig { extra_args: vec!["--bogus".to_owned()], ..EalConfig::default() };
    println!("{}", Eal::start(&bad).unwrap_err());
    assert!(!runtime_dir(process::id()).exists());
    assert_eq!(
        Eal::start(&EalConfig::default()).unwrap_err(),
        EalError::StartedBefore,
        "half of the first one is still there"
    );
}

#[test]
fn a_thread_registers_once() {
    let eal = eal();
    thread::spawn(move || {
        let first = eal.register_thread().unwrap();
        assert_eq!(eal.register_thread().unwrap_err(), ThreadError::RegisteredBefore);
        drop(first);
        eal.register_thread().unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn registrations_do_not_run_out() {
    let eal = eal();
    let pool = pool("threads");
    for _ in 0..300 {
        thread::spawn(move || {
            let _registration = eal.register_thread().unwrap();
            drop(frame(&pool, b"held for a moment"));
        })
        .join()
        .unwrap();
    }
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn pool_errors_say_what_is_wrong() {
    let eal = eal();
    pool("taken");
    let create = |name: &str, count| {
        let config = PoolConfig { name: name.to_owned(), count, ..PoolConfig::default() };
        MbufPool::create(eal, &config).unwrap_err()
    };
    let taken = create("taken", 1023);
    assert!(matches!(taken, PoolError::Create { .. }), "{taken}");
    assert!(taken.to_string().contains("EEXIST"), "{taken}");
    let huge = create("huge", 1_000_000);
    assert!(huge.to_string().contains("ENOMEM"), "{huge}");
    assert_eq!(create("a\0b", 1023), PoolError::Name("a\0b".to_owned()));
}

#[test]
fn no_huge_page_file_is_made() {
    eal();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("rtemap"), "{maps}");
}
