//! Two workers at one pool, in every order (with at most so many changes between them as
//! [`PREEMPTIONS_MAX`] says, beyond those that waiting takes).
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sign::Sign;
use crate::wire::SCTP;

/// Most errors in lock-free code show with two (Musuvathi, Qadeer, PLDI '07).
const PREEMPTIONS_MAX: usize = 3;
/// Milliseconds after which nobody remembers a connection.
const LATER: Tick = Tick(1 << 24);

fn every_order(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(scenario);
}

/// Every word of it says which it is.
fn connection(client: u8) -> Connection {
    Connection {
        client: [client; 16],
        vip: [client; 16],
        backend: [client; 16],
        client_port: [client; 2],
        vip_port: [client; 2],
        backend_port: [client; 2],
        protocol: SCTP,
        idle_max: 100,
        place: client.into(),
        isn: client.into(),
        ..Connection::default()
    }
}

/// All in the same two buckets: the first is full with half-open connections when it has one.
const HASH: u64 = 1;

fn pool() -> Arc<Pool> {
    let pool = Pool::new("10.0.0.64/32".parse().unwrap());
    let [first, second] = pool.buckets_of(HASH);
    assert_ne!(first, second);
    Arc::new(pool)
}

fn open(pool: &Pool, client: u8, now: Tick) -> Option<u32> {
    pool.open(&connection(client), HASH, now)
}

fn find(pool: &Pool, client: u8) -> Option<Found> {
    pool.find(&connection(client).flow(), HASH)
}

/// Whoever reads while another connection is written sees one of them, or none.
#[test]
fn nobody_reads_half_of_a_connection() {
    every_order(|| {
        let pool = pool();
        let place = open(&pool, 1, Tick(0)).unwrap();
        let writer = {
            let pool = Arc::clone(&pool);
            let before = find(&pool, 1).unwrap();
            thread::spawn(move || {
                assert!(pool.rewrite(&before, &connection(2), before.state.reopened(0)));
            })
        };
        if let Some(found) = pool.get(place) {
            let [one, other] = [1, 2].map(connection);
            assert!([one, other].contains(found.connection()), "{found:?}");
        }
        writer.join().unwrap();
        assert_eq!(*pool.get(place).unwrap().connection(), connection(2));
    });
}

/// Two clients that want the same port get one each.
#[test]
fn nobody_gets_a_place_that_another_has() {
    every_order(|| {
        let pool = pool();
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || open(&pool, 2, Tick(0)))
        };
        let place = open(&pool, 1, Tick(0)).unwrap();
        let other = other.join().unwrap().unwrap();
        assert_ne!(place, other);
        let found = [place, other].map(|place| *pool.get(place).unwrap().connection());
        assert_eq!(found, [1, 2].map(connection));
        assert_eq!([1, 2].map(|client| find(&pool, client).unwrap().place), [place, other]);
    });
}

/// What is said of a connection does not touch the one that has its place meanwhile.
#[test]
fn news_of_a_connection_is_not_taken_for_another_s() {
    every_order(|| {
        let pool = pool();
        let place = open(&pool, 1, Tick(0)).unwrap();
        let last = {
            let pool = Arc::clone(&pool);
            let found = find(&pool, 1).unwrap();
            thread::spawn(move || pool.update(&found, found.state.client_sent(Sign::Ends, 0)))
        };
        let found = find(&pool, 1).unwrap();
        let taken = pool.rewrite(&found, &connection(2), found.state.reopened(units(LATER)));
        last.join().unwrap();
        let found = pool.get(place).unwrap();
        let phase = if taken { Phase::Opening } else { Phase::Closed };
        let is_whose = connection(if taken { 2 } else { 1 });
        assert_eq!((found.state.phase(), *found.connection()), (phase, is_whose));
    });
}

/// Both sides end a connection at once, by two workers: one of the two may have to say it again, but
/// what is there is what one of them said.
#[test]
fn both_sides_may_speak_at_once() {
    every_order(|| {
        let pool = pool();
        let place = open(&pool, 1, Tick(0)).unwrap();
        let backend = {
            let pool = Arc::clone(&pool);
            let found = find(&pool, 1).unwrap();
            thread::spawn(move || {
                pool.update(&found, found.state.backend_sent(Sign::GoesOn, 0));
            })
        };
        let found = pool.get(place).unwrap();
        let said = found.state.client_sent(Sign::IsDone, 1);
        pool.update(&found, said);
        backend.join().unwrap();
        let state = pool.get(place).unwrap().state;
        let answered = find(&pool, 1).unwrap().state.phase() == Phase::Answered;
        assert!(answered || state == said, "{state:?}");
        assert_eq!(*pool.get(place).unwrap().connection(), connection(1));
    });
}
