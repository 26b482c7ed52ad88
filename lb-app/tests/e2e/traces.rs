//! What a balancer might leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::netns::{Netns, expect_success};

/// How long the kernel may take to clear up after a process.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where DPDK keeps its files.
const FOLDERS: [&str; 2] = ["/dev/hugepages", "/run/dpdk"];

/// The interfaces, rules and processes in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Traces(BTreeSet<String>);

impl Traces {
    pub(crate) fn now(netns: &Netns) -> Self {
        let each = |kind: &str, text: String| -> Vec<String> {
            text.lines().map(|line| format!("{kind} {line}")).collect()
        };
        let links = expect_success(netns.command("ip").args(["-brief", "link"]));
        let links = links.lines().filter_map(|line| line.split_whitespace().next());
        let mut all: BTreeSet<_> = links.map(|link| format!("interface {link}")).collect();
        all.extend(each("nft", expect_success(netns.command("nft").args(["list", "tables"]))));
        // (`ip netns pids`, unlike `exec`, is not itself in the namespace.)
        let pids = std::process::Command::new("ip")
            .args(["netns", "pids", netns.name()])
            .output()
            .expect("ip runs");
        let own = std::process::id().to_string();
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        all.extend(each("process", pids).into_iter().filter(|line| !line.ends_with(&own)));
        Self(all)
    }

    /// Waits until everything that was not there before is gone; panics if something stays.
    pub(crate) fn assert_nothing_left(&self, netns: &Netns, pid: u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut left: Vec<_> = Self::now(netns).0.difference(&self.0).cloned().collect();
            left.extend(files_of(pid));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind: {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// DPDK's files that have this process id in their names.
fn files_of(pid: u32) -> impl Iterator<Item = String> {
    let names = FOLDERS.into_iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    names
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .filter(move |path| path.contains(&pid.to_string()))
}
