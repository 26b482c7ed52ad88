//! Workers, and the sweep, at one bucket of the flow table, in every order (with at most so many
//! changes between them as [`PREEMPTIONS_MAX`] says, beyond those that waiting takes).
//!
//! What a thread has found before is found before it begins: loom takes a word that a thread has read
//! itself for one that nobody has read before, and misses the orders that this would make.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use super::*;

/// See [`crate::pool`]'s.
const PREEMPTIONS_MAX: usize = 3;
/// The only service.
const WEB: ServiceId = ServiceId(0);
/// When flows of [`BEFORE`] are over.
const NOW: Tick = Tick(100 << 12);
const BEFORE: Tick = Tick(0);

fn every_order(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(scenario);
}

/// All in one bucket. Every word of the key says which flow it is.
fn flow(shape: Shape, n: u64) -> Flow {
    Flow { shape, service: WEB, hash: 0, idle_max: 100, key: [n; 5] }
}

/// Its own number is its backend's place.
fn track(tracker: &Tracker, flow: &Flow, now: Tick) -> bool {
    tracker.track(flow, backend(flow), Sign::GoesOn, now)
}

fn backend(flow: &Flow) -> u16 {
    u16::try_from(flow.key[0]).unwrap()
}

fn find(tracker: &Tracker, flow: &Flow) -> Option<u16> {
    tracker.find(flow).map(|found| found.backend())
}

/// Tracks the first flow of a shape.
fn tracker(shape: Shape) -> Arc<Tracker> {
    let tracker = Tracker::new(1);
    assert!(track(&tracker, &flow(shape, 1), BEFORE));
    Arc::new(tracker)
}

/// Looks at all entries.
fn flows(tracker: &Tracker) -> u32 {
    let mut flows = 0;
    tracker.sweep((0, 1), NOW, |_| {
        flows += 1;
        false
    });
    flows
}

fn counts(tracker: &Tracker) -> [u32; 2] {
    [tracker.count(WEB), tracker.len()]
}

/// Who looks for a flow while its place changes hands finds it on its own backend, or not at all; and
/// nobody finds a flow whose key is made of two.
#[test]
fn nobody_finds_half_of_a_flow() {
    let mixed = |key| Flow { key, ..flow(Shape::Long, 0) };
    let mixtures = [[2, 1, 1], [1, 2, 2], [2, 2, 1], [1, 1, 2]].map(|[a, b, c]| [a, b, c, 0, 0]);
    let of_two = mixtures.map(|key| (mixed(key), false));
    let of_one = [(Shape::Short, 1), (Shape::Short, 2), (Shape::Long, 1), (Shape::Long, 2)]
        .map(|(shape, n)| (flow(shape, n), true));
    for (wanted, may_be_found) in of_one.into_iter().chain(of_two) {
        every_order(move || {
            let tracker = tracker(wanted.shape);
            let writer = {
                let tracker = Arc::clone(&tracker);
                let first = flow(wanted.shape, 1);
                let found = tracker.find(&first).unwrap();
                thread::spawn(move || {
                    tracker.forget(&first, &found);
                    assert!(track(&tracker, &flow(wanted.shape, 2), NOW));
                })
            };
            let found = find(&tracker, &wanted);
            assert!(found.is_none_or(|it| may_be_found && it == backend(&wanted)), "{found:?}");
            writer.join().unwrap();
            assert_eq!(find(&tracker, &flow(wanted.shape, 2)), Some(2));
            assert_eq!(counts(&tracker), [1, 1]);
        });
    }
}

/// That a flow goes on is not taken for news of the one that has its place meanwhile.
#[test]
fn news_of_a_flow_is_not_taken_for_another_s() {
    every_order(|| {
        let tracker = tracker(Shape::Short);
        let (first, second) = (flow(Shape::Short, 1), flow(Shape::Short, 2));
        let found = tracker.find(&first).unwrap();
        let other = {
            let tracker = Arc::clone(&tracker);
            thread::spawn(move || tracker.refresh(&first, &found, Sign::Ends, NOW))
        };
        tracker.forget(&first, &found);
        assert!(track(&tracker, &second, NOW));
        other.join().unwrap();
        let found = tracker.find(&second).unwrap();
        assert_eq!((found.backend(), found.phase()), (2, Phase::Seen));
        // To forget it may have come too late, and then the next packet does.
        assert_eq!(counts(&tracker), [flows(&tracker); 2]);
    });
}

/// Two workers that want the same place get one each.
#[test]
fn nobody_gets_a_place_that_another_has() {
    every_order(|| {
        let tracker = Arc::new(Tracker::new(1));
        let [one, other] = [1, 2].map(|n| flow(Shape::Short, n));
        let worker = {
            let tracker = Arc::clone(&tracker);
            thread::spawn(move || assert!(track(&tracker, &other, NOW)))
        };
        assert!(track(&tracker, &one, NOW));
        worker.join().unwrap();
        assert_eq!([one, other].map(|it| find(&tracker, &it)), [Some(1), Some(2)]);
        assert_eq!(counts(&tracker), [2, 2]);
    });
}

/// A worker pushes flows out, another forgets them, and the sweep does: what was taken off is taken
/// off once.
#[test]
fn every_flow_is_counted_once() {
    every_order(|| {
        let tracker = tracker(Shape::Short);
        let first = flow(Shape::Short, 1);
        assert!(track(&tracker, &flow(Shape::Short, 2), BEFORE));
        let worker = {
            let tracker = Arc::clone(&tracker);
            thread::spawn(move || {
                let _ = track(&tracker, &flow(Shape::Short, 3), NOW);
            })
        };
        let sweep = {
            let tracker = Arc::clone(&tracker);
            thread::spawn(move || tracker.sweep((0, 1), NOW, |seen| seen.age > 0))
        };
        if let Some(found) = tracker.find(&first) {
            tracker.forget(&first, &found);
        }
        worker.join().unwrap();
        sweep.join().unwrap();
        assert_eq!(counts(&tracker), [flows(&tracker); 2]);
        assert_eq!(find(&tracker, &first), None);
    });
}
