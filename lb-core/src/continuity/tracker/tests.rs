#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::table::OPENING_MAX;
use super::*;
use crate::tables::{BackendEntry, Path};

const WEB: ServiceId = ServiceId(3);

fn flow(shape: Shape, n: u64) -> Flow {
    let key = [n, 0, 0, 0, 0];
    let hash = n.wrapping_mul(0x2545_f491_4f6c_dd1d);
    Flow { shape, service: WEB, hash, idle_max: 100, key }
}

#[test]
fn entries_are_as_small_as_promised() {
    let per_flow = |flows: u32| Tracker::words(flows) * 8 / flows as usize;
    // IPv4 16, IPv6 32, and an eighth of 48; half as much again, so that no bucket is full too early.
    assert_eq!(per_flow(1 << 20), (16 + 32 + 48 / 8) * 3 / 2);
    assert_eq!((Table::<1>::ENTRY * 8, Table::<3>::ENTRY * 8), (16, 32));
    assert_eq!(Table::<1>::BUCKET * 8, 64);
}

#[test]
fn a_flow_is_found_until_it_is_forgotten() {
    for shape in [Shape::Short, Shape::Long, Shape::Longest] {
        let tracker = Tracker::new(100);
        let one = flow(shape, 1);
        assert!(tracker.find(&one).is_none());
        assert!(tracker.track(&one, 7, Sign::Opens, Tick(0)));
        let found = tracker.find(&one).unwrap();
        assert_eq!((found.backend(), found.phase()), (7, Phase::Opening));
        // Another service's is another flow, and so is one with another key in the same place.
        assert!(tracker.find(&Flow { service: ServiceId(4), ..one }).is_none());
        for i in 0..5 {
            let mut other = one;
            other.key[i] ^= 1;
            let counts = i < match shape {
                Shape::Short => 1,
                Shape::Long => 3,
                Shape::Longest => 5,
            };
            assert_eq!(tracker.find(&other).is_none(), counts, "{shape:?} {i}");
        }
        let later = Tick(10 * 4096);
        assert_eq!(found.age(later), 10);
        tracker.refresh(&one, &found, Sign::Opens, later);
        let found = tracker.find(&one).unwrap();
        assert_eq!((found.age(later), found.phase()), (0, Phase::Opening));
        tracker.refresh(&one, &found, Sign::GoesOn, later);
        assert_eq!(tracker.find(&one).unwrap().phase(), Phase::Established);
        assert_eq!((tracker.count(WEB), tracker.len()), (1, 1));
        tracker.forget(&one, &found); // as it was before: nothing happens
        assert_eq!(tracker.count(WEB), 1);
        tracker.forget(&one, &tracker.find(&one).unwrap());
        assert!(tracker.find(&one).is_none());
        assert!(!tracker.tracks(WEB) && tracker.is_empty());
    }
}

#[test]
fn as_many_flows_fit_as_it_is_made_for() {
    let tracker = Tracker::new(10_000);
    let refused =
        (0..10_000).filter(|n| !tracker.track(&flow(Shape::Short, *n), 1, Sign::GoesOn, Tick(0)));
    let refused = refused.count();
    // A flow that was seen once may have had to go for another.
    let lost = (0..10_000).filter(|n| tracker.find(&flow(Shape::Short, *n)).is_none()).count();
    assert_eq!(refused, 0);
    assert!(lost < 100, "{lost}");
}

/// Whatever is opened, and whatever is seen once, whoever goes on stays.
#[test]
fn a_flood_pushes_out_nobody_who_goes_on() {
    for sign in [Sign::Opens, Sign::GoesOn] {
        let tracker = Tracker::new(1000);
        let mut kept = Vec::new();
        for n in 0..900 {
            let flow = flow(Shape::Short, n);
            if tracker.track(&flow, 5, Sign::GoesOn, Tick(0)) {
                let found = tracker.find(&flow).unwrap();
                tracker.refresh(&flow, &found, Sign::GoesOn, Tick(0));
                kept.push(flow);
            }
        }
        assert!(kept.len() > 890, "{}", kept.len());
        for n in 1_000_000..2_000_000 {
            let _ = tracker.track(&flow(Shape::Short, n), 6, sign, Tick(n / 1000));
        }
        for flow in &kept {
            assert_eq!(tracker.find(flow).map(|found| found.backend()), Some(5));
        }
        // Of an empty table SYNs get half, so that there is room for others.
        let tracker = Tracker::new(1000);
        for n in 1_000_000..1_100_000 {
            let _ = tracker.track(&flow(Shape::Short, n), 6, Sign::Opens, Tick(0));
        }
        let half = tracker.short.buckets * u32::try_from(OPENING_MAX).unwrap();
        assert!(tracker.len() <= half, "{} of {half}", tracker.len());
        assert!(tracker.track(&flow(Shape::Short, 1), 5, Sign::GoesOn, Tick(0)));
    }
}

/// A liar who fills all that is there for him takes nothing from flows here, nor the room for others.
#[test]
fn peers_cannot_push_out_what_is_seen_here() {
    let tracker = Tracker::new(1000);
    let service = service();
    let tell = |n: u64, phase| {
        let seen = Seen { service: WEB, backend: 6, age: 0, phase };
        tracker.tell(&flow(Shape::Short, n), seen, &service, Tick(0))
    };
    let goes_on = |n: u64| {
        let flow = flow(Shape::Short, n);
        assert!(tracker.track(&flow, 5, Sign::GoesOn, Tick(0)));
        let found = tracker.find(&flow).unwrap();
        tracker.refresh(&flow, &found, Sign::GoesOn, Tick(0));
    };
    (0..200).for_each(goes_on);
    for n in 0..100_000 {
        let _ = tell(n, if n % 2 == 0 { Phase::Established } else { Phase::Opening });
    }
    let backend = |n: u64| tracker.find(&flow(Shape::Short, n)).map(|found| found.backend());
    assert!((0..200).all(|n| backend(n) == Some(5)));
    (200_000..200_100).for_each(goes_on);
    assert!((200_000..200_100).all(|n| backend(n) == Some(5)));
}

/// What peers tell of that goes on stays, and the rest is told to have no room.
#[test]
fn peers_flows_give_way_when_they_are_silent() {
    let tracker = Tracker::new(1000);
    let (service, now) = (service(), Tick::from(Duration::from_hours(1)));
    let tell = |n: u64, age| {
        let seen = Seen { service: WEB, backend: 6, age, phase: Phase::Established };
        tracker.tell(&flow(Shape::Short, n), seen, &service, now)
    };
    let is_there = |n: &u64| tracker.find(&flow(Shape::Short, *n)).is_some();
    let first = (0..2000).filter(|n| tell(*n, 40)).count();
    let there: Vec<u64> = (0..2000).filter(is_there).collect();
    assert_eq!(there.len(), first);
    assert!((900..1500).contains(&first), "{first}");
    for age in [200, 40, 20] {
        let taken = (2000..4000).filter(|n| tell(*n, age)).count();
        let left = there.iter().filter(|n| is_there(n)).count();
        assert_eq!(left, first, "taken: {taken}, silent for {age} units");
    }
    assert!((4000..8000).filter(|n| tell(*n, 0)).count() > first / 2);
    assert!(there.iter().filter(|n| is_there(n)).count() < first / 2);
}

#[test]
fn what_is_new_is_news_once() {
    let tracker = Tracker::new(1000).with_news(100);
    let next = || tracker.next_news(Tick(0)).map(|it| (it.key[0], it.seen.backend, it.seen.phase));
    let one = flow(Shape::Long, 7);
    let found = || tracker.find(&one).unwrap();
    assert!(tracker.track(&one, 3, Sign::Opens, Tick(0)));
    assert_eq!([next(), next()], [Some((7, 3, Phase::Opening)), None]);
    tracker.refresh(&one, &found(), Sign::GoesOn, Tick(0));
    assert_eq!([next(), next()], [Some((7, 3, Phase::Established)), None]);
    tracker.refresh(&one, &found(), Sign::GoesOn, Tick(4096 * 2));
    assert_eq!(next(), None);
    tracker.refresh(&one, &found(), Sign::GoesOn, Tick(4096 * 90));
    assert_eq!([next(), next()], [Some((7, 3, Phase::Established)), None], "after a silence");
    tracker.forget(&one, &found());
    assert_eq!([next(), next()], [Some((7, 3, Phase::Free)), None]);
    // What was told is told to nobody.
    let seen = Seen { service: WEB, backend: 4, age: 0, phase: Phase::Established };
    assert!(tracker.tell(&one, seen, &service(), Tick(0)));
    assert_eq!((next(), found().phase()), (None, Phase::Told));
    // More than there is room for.
    for n in 0..500 {
        assert!(tracker.track(&flow(Shape::Short, n), 3, Sign::GoesOn, Tick(0)));
    }
    assert_eq!(std::iter::from_fn(next).count(), 100);
    let mut all = 0;
    tracker.reports((0, 1), Tick(0), |_| all += 1);
    assert_eq!(all, tracker.len());
}

/// With backends that may serve.
fn service() -> ServiceTable {
    let backends = (0..8).map(|_| BackendEntry::without_ways(Path::Plain, true));
    ServiceTable { id: WEB, backends: backends.collect(), ..ServiceTable::nothing().unwrap() }
}

#[test]
fn another_process_finds_what_this_one_has_left() {
    let words = zeroed::<AtomicU64>(Tracker::words(100));
    let words: &'static [AtomicU64] = Box::leak(words);
    let first = Tracker::over(words, 100).unwrap();
    for n in 0..10 {
        assert!(first.track(&flow(Shape::Short, n), 4, Sign::GoesOn, Tick(0)));
        assert!(first.track(&flow(Shape::Long, n), 5, Sign::GoesOn, Tick(0)));
    }
    // In the middle of writing: this one never came to its end.
    let torn = first.find(&flow(Shape::Short, 3)).unwrap();
    words[torn.place].store(torn.mark.busy().0, Ordering::Relaxed);
    drop(first);
    let second = Tracker::over(words, 100).unwrap();
    assert_eq!((second.count(WEB), second.len()), (19, 19));
    assert!(second.find(&flow(Shape::Short, 3)).is_none());
    assert_eq!(second.find(&flow(Shape::Short, 4)).unwrap().backend(), 4);
    assert_eq!(second.find(&flow(Shape::Long, 3)).unwrap().backend(), 5);
    assert!(second.track(&flow(Shape::Short, 3), 9, Sign::GoesOn, Tick(0)));
    assert!(Tracker::over(&words[1..], 100).is_none());
}

#[test]
fn a_sweep_in_parts_sees_everything_once() {
    let tracker = Tracker::new(1000);
    for n in 0..300 {
        assert!(tracker.track(
            &flow(Shape::Short, n),
            u16::try_from(n % 7).unwrap(),
            Sign::GoesOn,
            Tick(0)
        ));
        assert!(tracker.track(&flow(Shape::Longest, n), 9, Sign::Opens, Tick(n * 4096)) || n > 90);
    }
    let before = tracker.len();
    let mut seen = Vec::new();
    for part in 0..13 {
        tracker.sweep((part, 13), Tick(100 * 4096), |entry| {
            seen.push(entry);
            entry.backend == 3 || entry.age > 50
        });
    }
    assert_eq!(seen.len(), before as usize);
    let gone = seen.iter().filter(|entry| entry.backend == 3 || entry.age > 50).count();
    assert_eq!(tracker.len() as usize, seen.len() - gone);
    assert!((0..300).all(|n| tracker.find(&flow(Shape::Short, n)).is_none()), "all are too old");
}

proptest! {
    /// Against a map: what is found is what was put there, and nothing is found that was not.
    #[test]
    fn like_a_map(steps in proptest::collection::vec((0_u64..60, 0_u16..4, 0_u8..4), 0..400)) {
        let tracker = Tracker::new(400);
        let mut map = BTreeMap::new();
        for (n, backend, what) in steps {
            let flow = flow(if n % 2 == 0 { Shape::Short } else { Shape::Long }, n);
            let found = tracker.find(&flow);
            prop_assert_eq!(found.map(|found| found.backend()), map.get(&n).copied());
            match (found, what) {
                (None, _) => {
                    prop_assert!(tracker.track(&flow, backend, Sign::GoesOn, Tick(0)));
                    map.insert(n, backend);
                }
                (Some(found), 0) => {
                    tracker.forget(&flow, &found);
                    map.remove(&n);
                }
                (Some(found), _) => {
                    let sign = if what == 1 { Sign::Opens } else { Sign::Ends };
                    tracker.refresh(&flow, &found, sign, Tick(n));
                },
            }
            prop_assert_eq!(tracker.len() as usize, map.len());
        }
    }
}
