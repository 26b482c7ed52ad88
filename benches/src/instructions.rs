//! Instructions a frame: the same on every machine, however busy it is, so that a test can judge them.
//!
//! Each case runs in a process of its own under `valgrind --tool=callgrind`, which counts within
//! [`crate::timed`] only. What is counted is compared with `instructions.json`, beside this crate's
//! manifest.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use crate::cases::Case;
use crate::{Engine, Failure};

/// What is counted.
const CASES: [&str; 15] = [
    "l2dsr IPv4",
    "l2dsr IPv6",
    "l2dsr IPv4 tracked",
    "l2dsr IPv6 tracked",
    "ipip IPv4",
    "gre IPv4",
    "gue IPv4",
    "gue IPv4 in 6",
    "nat IPv4",
    "nat IPv4 answers",
    "nat IPv6",
    "nat IPv4 to 6",
    "nat IPv4 to 6 answers",
    "fullnat IPv4",
    "fullnat IPv4 answers",
];
const BURST: usize = 32;
const BURSTS: usize = 500;
const FLOWS: &str = "1000";
/// By how much a count may be above the recorded one: compilers differ.
const TOLERANCE: f64 = 0.03;
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

/// What becomes of the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Counts {
    /// They are compared with the recorded ones.
    Compare,
    /// They are recorded.
    Record,
}

/// Counts all cases.
pub(crate) fn report(counts: Counts) -> Result<(), Failure> {
    let recorded: BTreeMap<String, f64> = match std::fs::read(BASELINE) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) if counts == Counts::Record => BTreeMap::new(),
        Err(cause) => return Err(format!("{BASELINE}: {cause}").into()),
    };
    println!("{:<24} {:>8} {:>8} {:>7}", "instructions a frame", "now", "before", "change");
    let mut now = BTreeMap::new();
    let mut worse = Vec::new();
    for name in CASES {
        let count = count(name)?;
        let before = recorded.get(name).copied();
        let change = before.map(|before| count / before - 1.0);
        let [before, percent] = [before, change.map(|it| it * 100.0)]
            .map(|it| it.map_or("-".into(), |it| format!("{it:.1}")));
        println!("{name:<24} {count:>8.1} {before:>8} {percent:>6}%");
        if change.is_none_or(|it| it > TOLERANCE) {
            worse.push(name);
        }
        now.insert(name, count);
    }
    if counts == Counts::Record {
        std::fs::write(BASELINE, serde_json::to_string_pretty(&now)? + "\n")?;
    } else if !worse.is_empty() {
        let cases = worse.join(", ");
        return Err(format!(
            "more than {:.0} % above {BASELINE}: {cases}; if that is worth it, record the new \
             counts: cargo run --release -p lb-bench -- --instructions record",
            TOLERANCE * 100.0
        )
        .into());
    }
    Ok(())
}

/// Instructions a frame of a case.
fn count(name: &str) -> Result<f64, Failure> {
    let out = std::env::temp_dir().join(format!("weir-callgrind-{}", std::process::id()));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=engine::timed"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--counted", name, "--flows", FLOWS, "--burst", &BURST.to_string()])
        .output()
        .map_err(|cause| format!("valgrind: {cause}; install it: apt-get install valgrind"))?;
    if !run.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&run.stderr)).into());
    }
    let total = total(&out)?;
    std::fs::remove_file(&out)?;
    Ok(total / (BURSTS * BURST) as f64)
}

/// What callgrind has counted, by the file that it wrote.
fn total(file: &Path) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(file)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.ok_or("callgrind's file has no totals")?.trim().parse()?;
    if total == 0.0 {
        return Err("callgrind has counted nothing: is the function `timed` still there?".into());
    }
    Ok(total)
}

/// The child's part.
pub(crate) fn run(case: &Case) {
    let mut engine = Engine::new(case);
    for _ in 0..BURSTS {
        engine.fill();
        engine.turn();
        engine.empty();
    }
}
