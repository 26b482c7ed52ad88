//! The same with real threads: workers forward while the tables change and the tracker is swept. A
//! flow may come by any worker, and none moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;

use lb_core::burst::{Burst, Fate, WorkerId};
use lb_core::continuity;
use lb_core::counters::Counters;
use lb_core::frame::Frame as _;
use lb_core::publish::publication;
use lb_core::rate::Tick;
use lb_core::sim::SimFrame;
use lb_core::state::{Settings, State};
use lb_core::tables::next_hop::PortId;

use crate::world::{Kind, Wanted, World, frame};

const FLOWS: u16 = 400;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

#[test]
fn no_flow_moves_while_workers_share_the_tracker() {
    let changes = std::env::var("CONTINUITY_CHANGES").map_or(150, |text| text.parse().unwrap());
    let mut world = World::new(1);
    world.compile();
    let (mut publisher, subscribers) = publication(&world.balancers[0].tables, 2);
    // The backend of each flow; 0: it has none yet.
    let backends: Arc<[AtomicU8]> = (0..FLOWS).map(|_| AtomicU8::new(0)).collect();
    let (stop, now, moved) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let packets = AtomicU64::new(0);
    thread::scope(|scope| {
        for (mut subscriber, seed) in subscribers.into_iter().zip(1_u64..) {
            let (stop, now, moved, packets) = (&stop, &now, &moved, &packets);
            let backends = Arc::clone(&backends);
            scope.spawn(move || {
                let counters = Counters::new(100);
                let worker = WorkerId(0);
                let settings = Settings { worker, workers: 1, punts_per_second: 1 };
                let mut state = State::new(settings);
                let mut random = seed;
                while !stop.load(Ordering::Relaxed) {
                    let tables = subscriber.newest();
                    state.now = Tick(now.load(Ordering::Relaxed));
                    let mut burst = Burst::default();
                    let mut flows = Vec::new();
                    for _ in 0..16 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        flows.push(u16::try_from((random >> 33) % u64::from(FLOWS)).unwrap());
                    }
                    let bytes = flows.iter().map(|flow| {
                        // Only the first worker opens flows: who sends a SYN by two workers at once
                        // has two connections in mind.
                        let is_open = backends[usize::from(*flow)].load(Ordering::Acquire) != 0;
                        let flags = if is_open { ACK } else { SYN };
                        (flags == ACK || seed == 1)
                            .then(|| SimFrame::new(&frame(Kind::Tcp4, *flow, 40_000, flags)))
                    });
                    let (flows, frames): (Vec<u16>, Vec<SimFrame>) = flows
                        .iter()
                        .zip(bytes)
                        .filter_map(|(flow, frame)| Some((*flow, frame?)))
                        .unzip();
                    burst.refill(PortId(0), |into| into.extend(frames));
                    lb_core::pipeline::process(&mut burst, tables, &counters, &mut state);
                    burst.take(|place, frame, _, fate| {
                        assert!(matches!(fate, Fate::Send(_)), "{fate:?}");
                        packets.fetch_add(1, Ordering::Relaxed);
                        let reached = frame.bytes()[5];
                        let backend = &backends[usize::from(flows[place])];
                        let before = backend.swap(reached, Ordering::AcqRel);
                        moved.fetch_add(
                            u64::from(before != 0 && before != reached),
                            Ordering::Relaxed,
                        );
                    });
                }
                subscriber.leave();
            });
        }
        let mut wanted: BTreeMap<u8, Wanted> = world.wanted.clone();
        for change in 0..changes {
            let n = 1 + u8::try_from(change * 7 % 8).unwrap();
            let drains = wanted.get(&n).is_some_and(|it| !it.drain) && n != 1;
            wanted.insert(n, Wanted { weight: 1, drain: drains });
            world.wanted = wanted.clone();
            world.now = Tick(world.now.0 + 500);
            now.store(world.now.0, Ordering::Relaxed);
            world.compile();
            let version = publisher.publish(&world.balancers[0].tables);
            while publisher.in_force() < version {
                thread::yield_now();
            }
            publisher.reclaim();
            for part in 0..4 {
                let _ = continuity::sweep(&world.balancers[0].tables, (part, 4), world.now);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(moved.load(Ordering::Relaxed), 0);
    assert!(packets.load(Ordering::Relaxed) > 1000);
}
