//! `weir bench` as users type it: through a real `weir run`, over shared memory. Needs root, two CPUs, and
//! neither huge pages nor a network card.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

const PROFILE: &str = r#"
sizes = [64, "imix"]
modes = ["l2dsr", "fullnat"]
flows = 1000
new_flows = 1000
ipv6 = "20%"
services = 3
backends = 10
[[attack]]
kind = "syn"
share = "10%"
"#;

/// Two CPUs are what one measurement takes: beside another, neither end of it keeps its pace.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bench(folder: &Path, args: &[&str]) -> Output {
    Command::new(WEIR).current_dir(folder).arg("bench").args(args).output().unwrap()
}

/// Does it, and returns what it says.
fn done(folder: &Path, args: &[&str]) -> String {
    let output = bench(folder, args);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Of two modes and two sizes at a low rate nothing is lost, or little where others use the machine; what
/// was saved makes a page, and is compared.
#[test]
fn what_is_sent_comes_back() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("profile.toml"), PROFILE).unwrap();
    let measured = ["--rounds", "1", "--seconds", "0.2", "-p", "profile.toml", "-o", "a.json"];
    let text = done(folder.path(), &[&["run", "--rate", "20k"], &measured[..]].concat());
    assert!(text.contains("weir fullnat imix, 20000 frames/s: 0.0"), "{text}");
    let mut results = json(&path("a.json"));
    // Whatever the machine did meanwhile: the rounds are to count.
    for round in results["rounds"].as_array_mut().unwrap() {
        *round = serde_json::json!({ "floor_before": 1.0, "floor_after": 1.0 });
    }
    fs::write(path("a.json"), results.to_string()).unwrap();
    let series = results["series"].as_array().unwrap();
    assert_eq!(series.len(), 4, "{results:#}");
    for one in series {
        let trial = &one["points"][0]["trials"][0];
        let (offered, loss) = (trial["offered"].as_f64().unwrap(), trial["loss"].as_f64().unwrap());
        // Of the frames, those of attacks do not count. Where others use the machine, fewer are sent, and
        // some are lost.
        assert!((1e3..20e3).contains(&offered) && loss < 0.7, "{one:#}");
        assert!(trial["attacks"].as_f64().unwrap() > 50.0, "{one:#}");
        let p50 = trial["latency"]["p50"].as_u64().unwrap();
        assert!((100..100_000_000).contains(&p50), "{one:#}");
    }

    done(folder.path(), &["report", "a.json", "-o", "a.html"]);
    let page = fs::read_to_string(path("a.html")).unwrap();
    assert!(page.contains("weir fullnat imix") && page.contains("<svg"), "{page}");

    let mut slower = results.clone();
    for trial in slower["series"][0]["points"][0]["trials"].as_array_mut().unwrap() {
        trial["received"] = (trial["received"].as_f64().unwrap() / 100.0).into();
    }
    fs::write(path("slower.json"), slower.to_string()).unwrap();
    done(folder.path(), &["compare", "a.json", "a.json"]);
    let output = bench(folder.path(), &["compare", "a.json", "slower.json"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("WORSE").count(), 1, "{text}");
}

/// Another device under test, which is a command; it has a highest rate.
#[test]
fn another_device_is_searched() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["frames", "-o", "a.pcap", "--config", "weir.toml", "DEVICE"]);
    let command = format!(
        "other=sh -c \"sed s@DEVICE@{{device}}@ weir.toml > it.toml && exec {WEIR} run -c it.toml\""
    );
    let search =
        ["search", "--without-weir", "--against", &command, "--loads", "50", "--loss", "20"];
    let measured = ["--resolution", "30", "--rounds", "1", "--seconds", "0.1", "-o", "a.json"];
    done(folder.path(), &[&search[..], &measured].concat());
    let results = json(&folder.path().join("a.json"));
    let series = results["series"].as_array().unwrap();
    assert_eq!((series.len(), &series[0]["device"]), (1, &Value::from("other")));
    let points = series[0]["points"].as_array().unwrap();
    let loads: Vec<&str> = points.iter().map(|point| point["load"].as_str().unwrap()).collect();
    assert_eq!(loads, ["full", "highest", "50%"]);
    let offered = |place: usize| points[place]["trials"][0]["offered"].as_f64().unwrap();
    assert!(offered(1) > 10_000.0, "{results:#}");
    assert!((0.2..0.8).contains(&(offered(2) / offered(1))), "{results:#}");
}

/// Wireshark finds nothing wrong with what is sent, checksums included; and what is sent is what the
/// configuration is for.
#[test]
fn frames_are_sound() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let profile = "protocol = 'udp'\nsizes = ['imix']\nipv6 = '30%'\nfragments = '20%'\nservices = 2\n\
                   [[attack]]\nkind = 'syn'\nshare = '10%'";
    fs::write(folder.path().join("profile.toml"), profile).unwrap();
    let args = ["frames", "-p", "profile.toml", "-o", "a.pcap", "--count", "2000"];
    done(folder.path(), &[&args[..], &["--config", "weir.toml", "net_null0"]].concat());
    let mut tshark = Command::new("tshark");
    tshark.current_dir(folder.path()).args(["-r", "a.pcap", "-2"]);
    for checked in ["ip", "tcp", "udp"] {
        tshark.args(["-o", &format!("{checked}.check_checksum:TRUE")]);
    }
    tshark.args([
        "-T",
        "fields",
        "-e",
        "frame.number",
        "-e",
        "_ws.expert.message",
        "-e",
        "udp.length",
    ]);
    let output = tshark.args(["-e", "ip.checksum.status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 2000);
    for line in &lines {
        assert!(!line[1].contains("hecksum"), "{line:?}");
        assert!(!line[1].contains("alformed"), "{line:?}");
        assert!(line[3].is_empty() || line[3] == "1", "{line:?}");
    }

    let replay = Command::new(WEIR)
        .current_dir(folder.path())
        .args(["replay", "-c", "weir.toml", "--in", "a.pcap", "--out", "b.pcap"])
        .output()
        .unwrap();
    let text = String::from_utf8(replay.stderr).unwrap();
    // All but the SYNs, which are for a service of UDP.
    let sent = text.split("sent ").nth(1).and_then(|it| it.split(',').next()).unwrap();
    assert!((1750..=1850).contains(&sent.parse::<u32>().unwrap()), "{text}");
}

/// Whatever else wakes up would stop the worker, and frames would wait.
#[test]
fn a_worker_has_its_cpu_to_itself() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    done(
        folder.path(),
        &["frames", "-o", "a.pcap", "--count", "1", "--config", "weir.toml", "net_null0"],
    );
    let mut weir = Command::new(WEIR)
        .current_dir(folder.path())
        .args(["run", "-c", "weir.toml"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(weir.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("ready")), "it leaves before it is ready");
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", weir.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        let (name, cpus) = (field("Name:"), field("Cpus_allowed_list:"));
        let bounds = |range: &str| -> Option<(u32, u32)> {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let mut ranges = cpus.split(',').map(|range| bounds(range).unwrap());
        let is_there = ranges.any(|(first, last)| (first..=last).contains(&1));
        assert_eq!(is_there, name == "worker-1", "{name}: {cpus}");
        names.push(name);
    }
    weir.kill().unwrap();
    weir.wait().unwrap();
    assert!(names.contains(&"worker-1".to_owned()) && names.len() > 2, "{names:?}");
}

#[test]
fn mistakes_say_what_to_change() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bad.toml"), "sizes = [32]").unwrap();
    for (args, expect) in [
        (&["run", "-p", "bad.toml"][..], "write a number from 64 to 1518"),
        (&["run", "-p", "none.toml"], "cannot read none.toml"),
        (&["run", "--rate", "fast"], "as in 500k or 2.5M"),
        (&["run", "--rounds", "0"], "--rounds at least 1"),
        (&["run", "--without-weir"], "--without-weir needs --against or --device"),
        (&["run", "--against", "a=b"], "has {device} where its DPDK device"),
        (
            &["run", "--rounds", "1", "--without-weir", "--against", "a=false {device}"],
            "it has ended",
        ),
        (&["compare", "a.json", "b.json"], "cannot read a.json"),
    ] {
        let output = bench(folder.path(), args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(expect), "{args:?}: {text}");
    }
}
