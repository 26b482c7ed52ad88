#![cfg(not(loom))]

use super::*;
use crate::flow_hash::FlowHasher;
use crate::model::HashKey;
use crate::sign::Sign::{self, Ends, GoesOn, IsDone, Opens};
use crate::wire::{SCTP, TCP, UDP};

/// Milliseconds in a unit.
const UNIT: u64 = 4096;

fn pool(net: &str) -> Pool {
    Pool::new(net.parse().unwrap())
}

fn connection(client: u32) -> Connection {
    let [a, b, c, d] = client.to_be_bytes();
    Connection {
        client: address_bytes([10, b, c, d].into()),
        vip: address_bytes([10, 0, 0, 100].into()),
        backend: address_bytes([10, 0, 0, 11].into()),
        client_port: [0x9c, a],
        vip_port: [0, 80],
        backend_port: [31, 144],
        protocol: [TCP, UDP, SCTP][client as usize % 3],
        idle_max: 200,
        place: 7,
        isn: client,
        ..Connection::default()
    }
}

fn hash(connection: &Connection) -> u64 {
    FlowHasher::new(HashKey([7; 16])).hash(&connection.flow(), true)
}

/// Opens the connection of a client; its place.
fn open(pool: &Pool, client: u32, now: u64) -> Option<u32> {
    let connection = connection(client);
    pool.open(&connection, hash(&connection), Tick(now))
}

fn find(pool: &Pool, client: u32) -> Option<Found> {
    let connection = connection(client);
    pool.find(&connection.flow(), hash(&connection))
}

fn at(pool: &Pool, address: [u8; 16], port: [u8; 2]) -> Option<Found> {
    let mut found = Found::default();
    pool.at(&address, port, &mut found).then_some(found)
}

/// Both sides talk.
fn establish(pool: &Pool, client: u32, now: u64) {
    let found = find(pool, client).unwrap();
    let state = found.state.backend_sent(GoesOn, units(Tick(now)));
    pool.update(&found, state.client_sent(GoesOn, units(Tick(now))));
    assert_eq!(find(pool, client).unwrap().state.phase(), Phase::Established);
}

#[test]
fn a_place_is_an_address_and_port_and_is_found_by_both() {
    for net in ["10.0.0.64/30", "fd00::64/126"] {
        let pool = pool(net);
        let mut places = std::collections::BTreeSet::new();
        for client in 0..1000 {
            let place = open(&pool, client, 0).unwrap();
            assert!(places.insert(place), "{place} was taken");
            let Station { address, port } = pool.station(place);
            let port = port.unwrap();
            assert!(u16::from_be_bytes(port) >= FIRST_PORT);
            for found in [find(&pool, client), at(&pool, address, port), pool.get(place)] {
                let found = found.unwrap();
                assert_eq!((found.place, *found.connection()), (place, connection(client)));
            }
        }
        let first = pool.station(0).address;
        assert!(find(&pool, 1000).is_none());
        assert!(at(&pool, first, 1023_u16.to_be_bytes()).is_none());
        let mut beyond = u128::from_be_bytes(first);
        beyond += 4;
        assert!(at(&pool, beyond.to_be_bytes(), [255; 2]).is_none());
        beyond -= 5;
        assert!(at(&pool, beyond.to_be_bytes(), [255; 2]).is_none());
    }
}

#[test]
fn large_prefixes_are_used_in_part() {
    for (net, expect) in [("10.0.0.1/32", 1), ("10.0.0.0/26", 64), ("10.0.0.0/8", 64), ("::/0", 64)]
    {
        assert_eq!(addresses(net.parse().unwrap()), expect, "{net}");
    }
}

/// Who talks keeps its port, whoever else comes; the pool can be filled almost wholly.
#[test]
fn a_full_pool_refuses_and_takes_nothing_away() {
    let pool = pool("10.0.0.64/32");
    let mut opened = Vec::new();
    for client in 0..PORTS {
        if open(&pool, client, 0).is_some() {
            establish(&pool, client, 0);
            opened.push(client);
        }
    }
    let share = f64::from(u32::try_from(opened.len()).unwrap()) / f64::from(PORTS);
    assert!(share > 0.9, "{share} of the ports were used");
    for client in PORTS..2 * PORTS {
        open(&pool, client, 0);
    }
    for client in &opened {
        assert!(find(&pool, *client).is_some(), "{client} was pushed out");
    }
    // When they are over, there is room again.
    let later = 202 * UNIT;
    assert!((0..100).all(|client| open(&pool, 2 * PORTS + client, later).is_some()));
}

#[test]
fn a_flood_competes_with_itself() {
    let pool = pool("10.0.0.64/32");
    for client in 0..10_000 {
        open(&pool, client, 0).unwrap();
        establish(&pool, client, 0);
    }
    let flood = 100_000..400_000;
    for client in flood.clone() {
        open(&pool, client, 0);
    }
    let left = flood.filter(|client| find(&pool, *client).is_some()).count();
    assert!(left <= PORTS as usize / 2, "{left} half-open ones");
    for client in 0..10_000 {
        assert!(find(&pool, client).is_some(), "{client} was pushed out");
    }
    // And who comes now finds a place.
    assert!((500_000..500_100).all(|client| open(&pool, client, 1).is_some()));
}

/// Is it the client's, what it says, and the phase after it.
type Step = (bool, Sign, Phase);

#[test]
fn phases_follow_what_both_sides_say() {
    use Phase::{Answered, Closed, Established, Opening};
    let start = State::opening(State::default(), 5, 1);
    let cases: [(&str, &[Step]); 6] = [
        (
            "to the end",
            &[
                (true, Opens, Opening),
                (false, GoesOn, Answered),
                (true, GoesOn, Established),
                (true, IsDone, Established),
                (false, GoesOn, Established),
                (false, IsDone, Closed),
                (true, GoesOn, Closed),
            ],
        ),
        ("another beginning is no answer", &[(false, GoesOn, Answered), (true, Opens, Answered)]),
        ("refused", &[(false, Ends, Closed)]),
        ("given up", &[(false, GoesOn, Answered), (true, Ends, Closed)]),
        ("UDP", &[(true, GoesOn, Opening), (false, GoesOn, Answered), (true, GoesOn, Established)]),
        ("half closed", &[(false, IsDone, Answered), (true, GoesOn, Established)]),
    ];
    for (name, steps) in cases {
        let mut state = start;
        for (is_client, sign, expect) in steps {
            state =
                if *is_client { state.client_sent(*sign, 2) } else { state.backend_sent(*sign, 2) };
            assert_eq!(state.phase(), *expect, "{name}");
        }
        assert_eq!((state.tag(), state.age(5)), (5, 3), "{name}");
    }
}

/// Silence ends a connection after its time, across the wrap of the clock too.
#[test]
fn ports_are_free_again_after_silence() {
    for start in [0, (u64::from(u16::MAX) - 3) * UNIT] {
        for (phase, units) in [("opening", 8), ("established", 200), ("closed", 16)] {
            let state = State::opening(State::default(), 0, super::units(Tick(start)));
            let now = super::units(Tick(start));
            let state = match phase {
                "opening" => state,
                "established" => state.backend_sent(GoesOn, now).client_sent(GoesOn, now),
                _ => state.backend_sent(Ends, now),
            };
            let is_over = |after: u64| {
                state.age(super::units(Tick(start + after * UNIT))) > state.idle_max(|| 200)
            };
            assert!(!is_over(units) && is_over(units + 1), "{phase}");
        }
    }
}

/// Of a change that comes too late, nothing is seen.
#[test]
fn who_is_late_changes_nothing() {
    let pool = pool("10.0.0.64/32");
    open(&pool, 1, 0).unwrap();
    let early = find(&pool, 1).unwrap();
    establish(&pool, 1, 0);
    pool.update(&early, early.state.client_sent(Ends, 9));
    assert_eq!(find(&pool, 1).unwrap().state.phase(), Phase::Established);
    assert!(!pool.rewrite(&early, &connection(3), early.state.reopened(9)));
    assert_eq!(*find(&pool, 1).unwrap().connection(), connection(1));
    let found = find(&pool, 1).unwrap();
    let moved = Connection { place: 9, ..connection(1) };
    assert!(pool.rewrite(&found, &moved, found.state));
    assert_eq!(*find(&pool, 1).unwrap().connection(), moved);
}

/// Many workers, one pool: nobody ever reads half of one connection and half of another.
#[test]
fn workers_share_a_pool() {
    let pool = pool("10.0.0.64/32");
    // So that all fight for a few buckets.
    let crowd = |client: u32| (connection(client), u64::from(client % 3) << 20);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..20_000_u32 {
                    let (connection, hash) = crowd(worker * 1_000_000 + round % 50);
                    let now = Tick(u64::from(round) * 1000);
                    let found = pool.find(&connection.flow(), hash).map(|found| found.place);
                    let place = found.or_else(|| pool.open(&connection, hash, now));
                    if let Some(found) = place.and_then(|place| pool.get(place)) {
                        let (whole, _) = crowd(found.connection().isn);
                        assert_eq!(*found.connection(), whole);
                    }
                }
            });
        }
    });
}

#[test]
fn another_process_finds_what_this_one_has_left() {
    use zerocopy::FromZeros as _;
    let net: IpNet = "10.0.0.64/31".parse().unwrap();
    let words = <[AtomicU64]>::new_box_zeroed_with_elems(Pool::words(net)).unwrap();
    let words: &'static [AtomicU64] = Box::leak(words);
    let first = Pool::over(net, words).unwrap();
    let own = Pool::new(net);
    let opened: Vec<_> = (0..500_u16)
        .map(|n| {
            let connection = Connection { client_port: n.to_be_bytes(), ..Connection::default() };
            let hash = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let place = first.open(&connection, hash, Tick(0)).unwrap();
            // It makes no difference whose the memory is.
            assert_eq!(own.open(&connection, hash, Tick(0)), Some(place));
            (connection, hash, place)
        })
        .collect();
    let torn = first.get(opened[3].2).unwrap();
    let state = first.entry(torn.place).unwrap().state;
    state.store(torn.state.busy().0, Ordering::Relaxed);
    drop(first);
    let second = Pool::over(net, words).unwrap();
    for (n, (connection, hash, place)) in opened.iter().enumerate() {
        let found = second.find(&connection.flow(), *hash);
        let expected = (n != 3).then_some((*place, *connection));
        assert_eq!(found.map(|found| (found.place, *found.connection())), expected);
    }
    assert!(Pool::over(net, &words[1..]).is_none());
}
