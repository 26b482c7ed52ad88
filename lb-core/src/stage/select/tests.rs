use super::*;
use crate::burst::tests::burst_of;
use crate::continuity::tracker::Seen;
use crate::model::Backend;
use crate::model::tests::{backend, spec};
use crate::sim::SimFrame;
use crate::sim::packet::Packet;
use crate::stage::classify::tests::{classified, tables, tables_after};
use crate::wire::tcp;

#[test]
fn the_slot_s_owner_is_the_backend() {
    let backends = ["10.0.0.11", "10.0.0.12"];
    let mut web = spec("web", "10.0.0.100", &backends);
    web.slots = Some(251);
    let mut drained = spec("drained", "10.0.0.103", &[]);
    drained.backends = vec![Backend { drain: true, ..backend("10.0.0.11") }];
    let waiting = spec("waiting", "10.0.0.104", &["10.0.0.99"]);
    let tables = tables([spec("empty", "10.0.0.101", &[]), web, drained, waiting]);
    let slots = tables.services[1].slots.slots();
    for (service, slot, expect) in [
        (1, 0, Ok(slots[0])),
        (1, 1, Ok(slots[1])),
        (1, 250, Ok(slots[250])),
        (1, 251, Err(DropReason::NextHopUnresolved)),
        (0, 0, Err(DropReason::NoBackend)),
        (2, 0, Err(DropReason::NoBackend)),
        (3, 0, Err(DropReason::NextHopUnresolved)),
        (4, 0, Err(DropReason::NoBackend)),
    ] {
        let mut burst = burst_of([SimFrame::new(&[])]);
        burst.for_each_live(|_, meta| {
            (meta.service, meta.slot) = (service, slot);
            Ok(())
        });
        select(&mut burst, &tables, &Counters::new(3), Tick(0));
        match expect {
            Ok(backend) => {
                assert_eq!((burst.live_and_punted().0, burst.meta(0).backend), (1, backend));
            }
            Err(reason) => assert_eq!(burst.drops()[reason as usize], 1, "{service} {slot}"),
        }
    }
}

/// What a flow's first packet decides is known to the second, also if both are in one burst.
#[test]
fn a_flow_may_begin_and_go_on_in_one_burst() {
    let with = |backends: &[&str]| [spec("web", "10.0.0.100", backends)];
    let before = tables(with(&["10.0.0.11", "10.0.0.12"]));
    let tables = tables_after(Some(&before), with(&["10.0.0.12"]));
    let packets = (0..32).flat_map(|client| {
        let packet = Packet::tcp(&format!("198.51.100.{client}:40000"), "10.0.0.100:80");
        [packet.clone(), packet]
    });
    let mut burst = classified(&tables, packets);
    burst.for_each(burst.live(), |i, frame, meta| {
        let flags = usize::from(meta.l4_offset) + tcp::FLAGS;
        frame.bytes_mut()[flags] = [tcp::SYN, tcp::ACK][i % 2];
        Ok(())
    });
    let counters = Counters::new(1);
    select(&mut burst, &tables, &counters, Tick(0));
    for i in 0..64 {
        let Meta { backend, .. } = burst.meta(i);
        let address = &tables.services[0].roster.get(*backend).unwrap().backend.address;
        assert_eq!(address.to_string(), "10.0.0.12", "{i}: it has begun with the change");
    }
    assert!((8..=24).contains(&counters.tracked.get()), "half of the slots have moved");
}

/// How many of 32 flows go to a backend, if they say so.
fn on(backend: &str, tables: &Tables, flags: u8, at: u64) -> usize {
    let packets =
        (0..32).map(|client| Packet::tcp(&format!("198.51.100.{client}:40000"), "10.0.0.100:80"));
    let mut burst = classified(tables, packets);
    burst.for_each(burst.live(), |_, frame, meta| {
        let at = usize::from(meta.l4_offset) + tcp::FLAGS;
        frame.bytes_mut()[at] = flags;
        Ok(())
    });
    select(&mut burst, tables, &Counters::new(1), Tick(at));
    let roster = &tables.services[0].roster;
    let address = |i| roster.get(burst.meta(i).backend).unwrap().backend.address;
    (0..32).filter(|&i| address(i).to_string() == backend).count()
}

/// A client that uses a port again is not led to where its last connection was, as if that went on, if
/// nothing new goes there; and if no peer can know better.
#[test]
fn what_opens_a_flow_of_a_leaving_backend_opens_another() {
    let [first, second] = ["10.0.0.11", "10.0.0.12"];
    let with = |backends: &[&str]| [spec("web", "10.0.0.100", backends)];
    for has_peers in [false, true] {
        let both = tables(with(&[first, second]));
        let leaving = tables_after(Some(&both), with(&[second]));
        let moved = on(first, &leaving, tcp::ACK, 0);
        assert!((8..=24).contains(&moved), "half of the slots have moved: {moved}");
        // It decides itself what a SYN means, while it takes others.
        let back = tables_after(Some(&leaving), with(&[first, second]));
        assert_eq!(on(first, &back, tcp::SYN, 4096), moved);
        let leaving = tables_after(Some(&back), with(&[second]));
        assert_eq!(on(first, &leaving, tcp::ACK, 8192), moved, "who goes on stays");
        if has_peers {
            let service = &leaving.services[0];
            let flow = Flow::with_key([1, 0, 0, 0, 0], service, &leaving.hasher);
            let seen = Seen { service: service.id, backend: 0, age: 0, phase: Phase::Established };
            assert!(leaving.tracker.tell(&flow, seen, service, Tick(8192)));
        }
        let later = u64::from(leaving.services[0].idle_max / 2) << 12;
        for (at, expect) in [(8192, if has_peers { moved } else { 0 }), (later, 0)] {
            assert_eq!(on(first, &leaving, tcp::SYN, at), expect, "{has_peers} {at}");
        }
        assert_eq!(on(first, &leaving, tcp::ACK, later), 0, "the new flow stays");
    }
}
