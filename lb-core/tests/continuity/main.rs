//! No live flow ever moves, except off a backend that may not serve: random histories of changes and
//! packets through the pipeline, beside a map from each flow to the backend that it first reached.
//!
//! `CONTINUITY_PACKETS` says how many; `scripts/continuity` runs millions.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    reason = "a test: what is not as it should be ends it; threads are what one of them is about"
)]

mod history;
mod threads;
mod world;

use history::History;

/// Seeds are apart, so that a failure is repeated by its own.
#[test]
fn no_live_flow_moves() {
    histories(1);
}

/// The same with two balancers that come and go, and a network that leads flows now to the one, now to
/// the other.
#[test]
fn no_live_flow_moves_between_two_balancers() {
    assert!(histories(2).handed_over > 10_000);
}

fn histories(balancers: usize) -> history::Totals {
    let packets = std::env::var("CONTINUITY_PACKETS").map_or(200_000, |text| text.parse().unwrap());
    let seeds = 1 + packets / 500_000;
    let mut totals = history::Totals::default();
    for seed in 0..seeds {
        let mut history = History::new(seed, balancers);
        history.run(packets / seeds);
        totals.add(&history.totals);
    }
    println!("{totals:?}");
    // The test tests something: slots moved, flows were tracked, backends failed.
    let tracked = if balancers == 1 { totals.tracked } else { totals.tracked_most.into() };
    assert!(totals.changes > 100 && tracked > 1000, "{totals:?}");
    assert!((10..totals.flows / 2).contains(&totals.moved_off_failed), "{totals:?}");
    assert_eq!(totals.untracked, 0, "there was room");
    totals
}
