//! What happens to the site. Each scenario finds and leaves the first balancer running and all
//! backends in the file with equal weights (the first adds one that was missing).

use std::time::{Duration, Instant};

use crate::interrupt::{Interrupted, pause};
use crate::site::{Backend, WEIGHT};
use crate::stage::Stage;

/// At random, so many backends stay active.
const ACTIVE_MIN: usize = 5;

/// Transitions have begun, and most connections have shown that they are there.
const IN_TRANSITION_MS: u64 = 2000;

/// Something that happens, while connections are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Done before connections are judged.
    pub(crate) prepare: fn(&mut Stage) -> Done,
    pub(crate) run: fn(&mut Stage) -> Done,
    /// Whether flows change from one balancer to another.
    pub(crate) changes_balancer: bool,
}

/// Half of a flood.
const FLOOD_MS: u64 = 60_000;

type Done = Result<(), Interrupted>;

const fn scenario(name: &'static str, run: fn(&mut Stage) -> Done) -> Scenario {
    Scenario { name, prepare: |_| Ok(()), run, changes_balancer: false }
}

const fn of_two(name: &'static str, run: fn(&mut Stage) -> Done) -> Scenario {
    Scenario { changes_balancer: true, ..scenario(name, run) }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { prepare: without_one, ..scenario("add 1 of 10", add_one) },
    scenario("drain 1 of 10", drain_one),
    scenario("remove 1 of 10 from the file", remove_one),
    scenario("drain 5 of 10 one after another", drain_five),
    scenario("weights changed", weights),
    scenario("reload with no change", reload_unchanged),
    scenario("backend killed", backend_killed),
    scenario("SIGTERM and restart", |stage| restart(stage, true)),
    scenario("SIGTERM and restart in mid-drain", |stage| restart_in_mid_drain(stage, true)),
    scenario("kill -9 and restart", |stage| restart(stage, false)),
    scenario("kill -9 and restart in mid-drain", |stage| restart_in_mid_drain(stage, false)),
    scenario("restart with other workers", other_workers),
    of_two("one of two balancers killed", balancer_killed),
    of_two("one of two balancers killed in mid-drain", balancer_killed_in_mid_drain),
    scenario("floods in mid-drain", flooded),
    Scenario { prepare: be_told, ..scenario("a feed that churns", churn) },
    scenario("all of it at random", at_random),
];

fn without_one(stage: &mut Stage) -> Done {
    stage.remove("b10");
    stage.settle()
}

fn add_one(stage: &mut Stage) -> Done {
    stage.site.backend("b10").listed = true;
    stage.reload("add b10");
    stage.expect_opened("b10 is to get new connections", |report| report.opened.contains_key("b10"))
}

fn drain_one(stage: &mut Stage) -> Done {
    drain(stage, "b3")?;
    stage.restore()
}

/// Drains a backend, which then is to keep its connections and to get no more.
fn drain(stage: &mut Stage, name: &str) -> Done {
    stage.site.backend(name).drain = true;
    stage.reload(&format!("drain {name}"));
    let what = format!("{name} is drained and to get no new connection");
    stage.expect_opened(&what, |report| !report.opened.contains_key(name))
}

fn remove_one(stage: &mut Stage) -> Done {
    stage.remove("b4");
    stage.settle()?;
    stage.restore()
}

/// Faster than transitions end: slots move again that are moving already.
fn drain_five(stage: &mut Stage) -> Done {
    for name in ["b2", "b4", "b5", "b7"] {
        stage.site.backend(name).drain = true;
        stage.reload(&format!("drain {name}"));
        pause(5000)?;
    }
    drain(stage, "b9")?;
    for name in ["b5", "b2", "b9"] {
        stage.site.backend(name).drain = false;
        stage.reload(&format!("{name} is active again"));
        pause(5000)?;
    }
    stage.restore()
}

fn weights(stage: &mut Stage) -> Done {
    for (name, weight) in [("b1", 1), ("b2", 2 * WEIGHT), ("b3", 10 * WEIGHT), ("b1", WEIGHT)] {
        stage.site.backend(name).weight = weight;
        stage.reload(&format!("weight {weight} for {name}"));
        pause(5000)?;
    }
    stage.settle()?;
    stage.restore()
}

fn reload_unchanged(stage: &mut Stage) -> Done {
    for _ in 0..5 {
        stage.reload("reload");
        pause(1000)?;
    }
    stage.settle()
}

/// It comes back, too: what was opened meanwhile is to stay where it is.
fn backend_killed(stage: &mut Stage) -> Done {
    stage.kill_backend("b6")?;
    stage.settle()?;
    stage.restore()
}

fn restart(stage: &mut Stage, properly: bool) -> Done {
    stage.restart(0, properly, stage.site.workers(0));
    stage.settle()
}

/// Transitions and tracked flows are to outlive the process: restarted while slots move, and again when
/// only tracked flows are left of it.
fn restart_in_mid_drain(stage: &mut Stage, properly: bool) -> Done {
    start_draining(stage)?;
    stage.restart(0, properly, stage.site.workers(0));
    stage.settle()?;
    stage.restart(0, properly, stage.site.workers(0));
    stage.settle()?;
    stage.restore()
}

/// Drains two backends, and returns while their slots are in transition. They are others every time: so
/// what one scenario broke has no bearing on the next.
fn start_draining(stage: &mut Stage) -> Done {
    for _ in 0..2 {
        if let Some(name) = choose(stage, Backend::is_active) {
            stage.site.backend(&name).drain = true;
            stage.reload(&format!("drain {name}"));
        }
    }
    pause(IN_TRANSITION_MS)
}

/// As much as can be sent, and a bound on new connections: those that are open are to stay, and the
/// process is not to grow.
fn flooded(stage: &mut Stage) -> Done {
    stage.site.syn_rate = 500;
    stage.reload("at most 500 new connections a second, unasked");
    let before = stage.site.memory_mib();
    let mut flood = stage.begin_flood();
    start_draining(stage)?;
    pause(FLOOD_MS)?;
    start_draining(stage)?;
    pause(FLOOD_MS)?;
    let after = stage.site.memory_mib();
    stage.end_flood(&mut flood, (before, after));
    drop(flood);
    stage.site.syn_rate = 0;
    stage.restore()
}

fn other_workers(stage: &mut Stage) -> Done {
    start_draining(stage)?;
    let workers = stage.site.workers(0);
    stage.restart(0, true, 3 - workers);
    stage.settle()?;
    stage.restart(0, true, workers);
    stage.settle()?;
    stage.restore()
}

fn balancer_killed(stage: &mut Stage) -> Done {
    stage.use_both();
    stage.settle()?;
    stage.kill_balancer(1)?;
    stage.settle()
}

/// What the one remembers, the other has to know. Killed are the second and then the first.
fn balancer_killed_in_mid_drain(stage: &mut Stage) -> Done {
    stage.use_both();
    stage.settle()?;
    start_draining(stage)?;
    stage.kill_balancer(1)?;
    stage.settle()?;
    stage.use_both();
    stage.settle()?;
    stage.kill_balancer(0)?;
    stage.settle()?;
    only_first(stage)?;
    stage.restore()
}

/// Back to the first balancer alone, without a gap.
fn only_first(stage: &mut Stage) -> Done {
    if stage.site.running() != [0] {
        stage.use_both();
        pause(2000)?;
        stage.say("  only the first balancer");
        stage.site.lead_through(&[0]);
        pause(2000)?;
        stage.site.leave(1);
    }
    Ok(())
}

/// The service comes by a feed.
fn be_told(stage: &mut Stage) -> Done {
    stage.site.use_plane();
    let workers = stage.site.workers(0);
    stage.restart(0, true, workers);
    stage.settle()
}

/// Ten thousand endpoints a second of other services, and now and then something happens to the backends: no
/// frame is lost, and memory stays as it is when all that churns has been seen.
fn churn(stage: &mut Stage) -> Done {
    let churn = stage.site.churn().expect("there is a control plane");
    let end = Instant::now() + Duration::from_secs(stage.options.seconds);
    stage.settle()?;
    let before = stage.site.memory_mib();
    while Instant::now() < end {
        something_to_a_backend(stage)?;
        pause(stage.random.between(500, 12_000))?;
    }
    let after = stage.site.memory_mib();
    stage.end_churn(churn.changed(), (before, after));
    drop(churn);
    stage.restore()?;
    let workers = stage.site.workers(0);
    stage.site.end_plane();
    // It says so when it leaves, if a frame was lost.
    stage.restart(0, true, workers);
    stage.settle()
}

fn at_random(stage: &mut Stage) -> Done {
    let end = Instant::now() + Duration::from_secs(stage.options.seconds);
    let workers = stage.site.workers(0);
    while Instant::now() < end {
        something(stage)?;
        // From faster than transitions to as slow as they.
        pause(stage.random.between(500, 12_000))?;
    }
    only_first(stage)?;
    if stage.site.workers(0) != workers {
        stage.restart(0, true, workers);
    }
    stage.restore()
}

/// Does one thing of all that can be done now.
fn something(stage: &mut Stage) -> Done {
    if stage.random.between(0, 3) == 0 {
        something_to_a_balancer(stage)
    } else {
        something_to_a_backend(stage)
    }
}

fn something_to_a_backend(stage: &mut Stage) -> Done {
    let is_one_spare = stage.site.names(Backend::is_active).len() > ACTIVE_MIN;
    match stage.random.between(0, 8) {
        0 | 1 if is_one_spare => {
            on_one_of(stage, Backend::is_active, |backend| backend.drain = true, "drain");
        }
        2 if is_one_spare => {
            if let Some(name) = choose(stage, Backend::is_active) {
                stage.remove(&name);
            }
        }
        3 if is_one_spare => {
            if let Some(name) = choose(stage, Backend::is_active) {
                stage.kill_backend(&name)?;
            }
        }
        4 => {
            let weight = u32::try_from(stage.random.between(1, 5)).expect("is small");
            let set = |backend: &mut Backend| backend.weight = weight;
            on_one_of(stage, Backend::is_active, set, &format!("weight {weight} for"));
        }
        5 => on_one_of(
            stage,
            |backend| backend.listed && backend.drain,
            |backend| backend.drain = false,
            "back to active:",
        ),
        // The more are away, the more often one comes.
        _ => {
            if let Some(name) = choose(stage, |backend| !backend.listed) {
                stage.site.revive(&name);
                stage.site.backend(&name).listed = true;
                stage.reload(&format!("add {name}"));
            }
        }
    }
    Ok(())
}

fn something_to_a_balancer(stage: &mut Stage) -> Done {
    let balancers = stage.site.running();
    let balancer = stage.random.one_of(&balancers).expect("one runs always");
    let workers = stage.site.workers(balancer);
    match stage.random.between(0, 5) {
        0 => stage.restart(balancer, true, workers),
        1 => stage.restart(balancer, false, workers),
        2 if balancer == 0 => stage.restart(0, true, 3 - workers),
        3 if stage.options.mode.can_change_balancer() => match balancers[..] {
            [_] => stage.use_both(),
            _ => stage.kill_balancer(balancer)?,
        },
        _ => stage.reload("reload"),
    }
    Ok(())
}

fn choose(stage: &mut Stage, is_meant: impl Fn(&Backend) -> bool) -> Option<String> {
    let names = stage.site.names(is_meant);
    stage.random.one_of(&names).map(str::to_owned)
}

fn on_one_of(
    stage: &mut Stage,
    is_meant: impl Fn(&Backend) -> bool,
    change: impl FnOnce(&mut Backend),
    what: &str,
) {
    if let Some(name) = choose(stage, is_meant) {
        change(stage.site.backend(&name));
        stage.reload(&format!("{what} {name}"));
    }
}
