//! The judge of "no connection broken": thousands of TCP connections through the balancer, while
//! backends and balancers come, change and go. `scripts/chaos --help` says how to use it.
//!
//! It needs root, and the tools that `scripts/setup` installs. It shares the files of the end-to-end
//! tests that make namespaces and run the balancer.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test: what must not happen fails it"
)]

mod client;
mod flood;
mod interrupt;
mod journal;
mod load;
mod options;
mod plane;
mod process;
mod random;
mod scenarios;
mod server;
mod site;
mod stage;
mod verdict;

#[path = "../e2e/config.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod config;
#[path = "../e2e/decap.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod decap;
#[path = "../e2e/netns.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod netns;
#[path = "../e2e/topology.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod topology;
#[path = "../e2e/weir.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod weir;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use serde::Serialize;

use crate::options::Options;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::stage::Stage;
use crate::verdict::Row;

/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Serialize)]
struct Judgement<'a> {
    options: &'a Options,
    rows: &'a [Row],
}

fn main() -> ExitCode {
    if let Some(status) = load::run_role() {
        return status;
    }
    let options = Options::parse().with_smoke();
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|scenario| options.is_chosen(scenario.name))
        .filter(|scenario| !scenario.changes_balancer || options.mode.can_change_balancer())
        .collect();
    if options.list || chosen.is_empty() {
        for Scenario { name, .. } in SCENARIOS {
            println!("{name}");
        }
        if options.list {
            return ExitCode::SUCCESS;
        }
        eprintln!("chaos: these are the scenarios; none was chosen by {:?}", options.only);
        return ExitCode::from(2);
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("chaos: it makes network namespaces, and needs root: sudo scripts/chaos");
        return ExitCode::from(2);
    }
    netns::remove_leftovers();
    interrupt::watch();
    println!("chaos: seed {}", options.seed);
    let rows = run(&chosen, &options);
    if let Some(file) = &options.json {
        let judgement = Judgement { options: &options, rows: &rows };
        let json = serde_json::to_string_pretty(&judgement).expect("is plain data");
        fs::write(file, json).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    verdict::print(&rows, options.seed);
    if interrupt::is_wanted() {
        ExitCode::from(INTERRUPTED)
    } else if rows.len() == chosen.len() && rows.iter().all(Row::is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the scenarios one after the other; ends early if it is interrupted, or if the balancer does not
/// even start.
fn run(chosen: &[&Scenario], options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let run = AssertUnwindSafe(|| {
        let mut stage = Stage::new(options)?;
        for scenario in chosen {
            rows.push(stage.judge(scenario)?);
        }
        Ok::<_, interrupt::Interrupted>(())
    });
    // (A panic has said why, and unwinding has cleaned up.)
    match catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(interrupt::Interrupted)) => println!("chaos: interrupted"),
        Err(_) => println!("chaos: given up"),
    }
    rows
}
