//! End-to-end tests: the binary `weir`, real clients and real servers, in network namespaces.
//!
//! They need root, and the tools that `scripts/setup` installs. The scenarios of one setup (driver
//! and number of workers) run one after the other over one balancer; `cargo test --test e2e --
//! "net_tap, 1 worker"` runs some of them, by any part of their names.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test: what must not happen fails it"
)]

mod ads;
mod backend;
mod checksums;
mod client;
mod commands;
mod config;
mod crowd;
mod decap;
mod feeds;
mod fragments;
mod fullnat;
mod health;
mod jumbo;
mod lan;
mod nat;
mod netns;
mod nginx;
mod pattern;
mod pmtu;
mod refusals;
mod routed;
mod scenarios;
mod stage;
mod syn;
mod topology;
mod traces;
mod tunnels;
mod vlan;
mod weir;
mod xds;

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::refusals::REFUSALS;
use crate::scenarios::SCENARIOS;
use crate::stage::Stage;
use crate::topology::{Driver, Setup};

/// The stage that scenarios of one setup share. There is at most one at a time.
type Shared = Arc<Mutex<Option<Stage>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list && !nix::unistd::geteuid().is_root() {
        eprintln!("the end-to-end tests make network namespaces: run them as root");
        return ExitCode::from(2);
    }
    // The balancer's workers, its clients and its backends need the CPUs for one test at a time.
    arguments.test_threads = Some(1);
    netns::remove_leftovers();
    allow_open_files();

    let shared = Shared::default();
    let conclusion = libtest_mimic::run(&arguments, trials(&shared));
    drop(shared);
    conclusion.exit_code()
}

fn trials(shared: &Shared) -> Vec<Trial> {
    let mut trials = vec![trial("the tests' own tunnel end".to_owned(), tunnels::all_combinations)];
    let name = "checksums by the device and by the balancer, in every mode";
    trials.push(trial(name.to_owned(), checksums::device_and_balancer_agree));
    trials.push(trial("jumbo frames, in every mode".to_owned(), jumbo::in_every_mode));
    let name = "frames longer than a buffer, with every driver";
    trials.push(trial(name.to_owned(), jumbo::longer_than_a_buffer));
    let name = "feeds: two balancers follow a control plane";
    trials.push(trial(name.to_owned(), feeds::two_balancers_follow_a_control_plane));
    let name = "thousands of clients at the API";
    trials.push(trial(name.to_owned(), crowd::thousands_of_clients));
    let name = "xds: endpoints come and go under connections";
    trials.push(trial(name.to_owned(), xds::endpoints_come_and_go_under_connections));
    trials.extend(
        REFUSALS
            .iter()
            .map(|case| trial(format!("refused: {}", case.name), || refusals::refused(case))),
    );
    let cpus = available_parallelism().map_or(1, NonZero::get);
    for setup in setups() {
        let too_few_cpus = setup.workers > cpus;
        for (name, scenario) in SCENARIOS {
            let shared = Arc::clone(shared);
            let run = move || on_stage(&shared, setup, *scenario);
            let trial = Trial::test(format!("{setup}: {name}"), run);
            trials.push(trial.with_ignored_flag(too_few_cpus));
        }
        let name = format!("{setup}: path MTU discovery, both ways, in every mode");
        let pmtu = trial(name, move || pmtu::both_ways(setup));
        trials.push(pmtu.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: path MTU discovery in tunnels");
        let tunnels = trial(name, move || pmtu::in_tunnels(setup));
        trials.push(tunnels.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: nat, between two networks");
        let nat = trial(name, move || nat::between_two_networks(setup));
        trials.push(nat.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: fullnat, without a way back");
        let fullnat = trial(name, move || fullnat::without_a_way_back(setup));
        trials.push(fullnat.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: above the rate, in nat and fullnat");
        let challenges = trial(name, move || syn::before_translation(setup));
        trials.push(challenges.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: health checks, through the port");
        let health = trial(name, move || health::through_the_port(setup));
        trials.push(health.with_ignored_flag(too_few_cpus));
        let name = format!("{setup}: two ports, and backends behind a gateway");
        let trial = trial(name, move || routed::through_a_gateway(setup));
        trials.push(trial.with_ignored_flag(too_few_cpus));
    }
    trials
}

fn setups() -> impl Iterator<Item = Setup> {
    let drivers = [Driver::Tap, Driver::AfPacket];
    drivers.into_iter().flat_map(|driver| [1, 2].map(|workers| Setup { driver, workers }))
}

/// A test that brings its own surroundings.
fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        catch_unwind(AssertUnwindSafe(test)).map_err(|panic| said(&*panic).into())
    })
}

/// Runs a scenario on the stage of its setup, with the balancer running and as configured at first.
fn on_stage(shared: &Shared, setup: Setup, scenario: fn(&mut Stage)) -> Result<(), Failed> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let run = AssertUnwindSafe(|| {
        let stage = match &mut *shared {
            Some(stage) if stage.setup == setup => stage,
            other => {
                // The one before goes first: it may still have a balancer on these CPUs.
                drop(other.take());
                other.insert(Stage::new(setup))
            }
        };
        if !stage.is_running() {
            stage.start();
        }
        scenario(stage);
        stage.restore();
    });
    catch_unwind(run).map_err(|panic| {
        let log = shared.as_mut().map(Stage::give_up).unwrap_or_default();
        format!("{}\n--- weir's log ---\n{log}", said(&*panic)).into()
    })
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panicked")
}

/// A thousand connections have two thousand ends, all in this process.
fn allow_open_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("is known");
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).expect("may be raised so far");
}
