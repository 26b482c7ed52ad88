use super::*;
use crate::continuity::Member;
use crate::model::tests::{backend, spec};
use crate::model::{Affinity, Vip};
use crate::rate::Tick;

const A: &str = "10.0.0.11";
const B: &str = "10.0.0.12";
const C: &str = "10.0.0.13";

fn seat(address: &str, standing: Standing, weight: u32) -> Seat {
    let member = Member { backend: backend(address), standing };
    Seat { member, weight, since: Some(Tick(8)).filter(|_| weight == 2) }
}

fn remembered(id: u32, seats: Vec<Option<Seat>>, from: Option<Vec<u16>>) -> Remembered {
    let vip: Vip = spec("web", "10.0.0.100", &[]).vip;
    Remembered {
        name: "web".into(),
        id: ServiceId(id),
        vip,
        affinity: Affinity::Flow,
        slots: 3,
        seats,
        transitions: from.map(|from| {
            let until = vec![Tick(9); from.len()];
            (from, until)
        }),
    }
}

#[test]
fn a_peers_state_is_taken_by_the_places_here() {
    let wanted = Standing::Wanted;
    let own = remembered(
        5,
        vec![Some(seat(A, wanted, 1)), Some(seat(B, wanted, 1))],
        Some(vec![0, 1, NOBODY]),
    );
    let leaving = Standing::Leaving(Tick(100));
    let theirs =
        vec![Some(seat(B, leaving, 0)), None, Some(seat(C, wanted, 2)), Some(seat(A, wanted, 1))];
    let theirs = remembered(9, theirs, Some(vec![NOBODY, 0, 3]));
    let [joined] = &join(vec![own], vec![theirs], &Tracker::new(10))[..] else { panic!() };
    // Ids and places are ours; who stands how, what counts and what has moved is theirs.
    assert_eq!(joined.id, ServiceId(5));
    assert_eq!(
        joined.seats,
        [Some(seat(A, wanted, 1)), Some(seat(B, leaving, 0)), Some(seat(C, wanted, 2))]
    );
    assert_eq!(joined.transitions, Some((vec![NOBODY, 1, 0], vec![Tick(9); 3])));
}

#[test]
fn who_is_gone_there_keeps_his_flows_here() {
    let own = remembered(0, vec![Some(seat(A, Standing::Wanted, 4))], Some(vec![0, 0, 0]));
    let theirs = remembered(0, vec![Some(seat(A, Standing::Gone(Tick(7)), 0))], None);
    let [joined] = &join(vec![own], vec![theirs], &Tracker::new(10))[..] else { panic!() };
    assert_eq!(
        (&joined.seats[..], &joined.transitions),
        (&[Some(seat(A, Standing::Wanted, 0))][..], &None)
    );
}

#[test]
fn a_service_that_is_new_here_gets_an_id_of_its_own() {
    let own = Remembered { name: "dns".into(), ..remembered(0, vec![], None) };
    let theirs = remembered(0, vec![Some(seat(A, Standing::Wanted, 1))], None);
    let tracker = Tracker::new(10);
    let joined = join(vec![own.clone()], vec![theirs.clone()], &tracker);
    assert_eq!(joined, [own, Remembered { id: ServiceId(1), ..theirs }]);
}

#[test]
fn times_are_those_of_the_clock_here() {
    let service = remembered(0, vec![Some(seat(A, Standing::Leaving(Tick(50)), 0))], Some(vec![0]));
    let here = service.clone().on_clock(Tick(40), Tick(1000));
    assert_eq!(here.seats, [Some(seat(A, Standing::Leaving(Tick(1010)), 0))]);
    // 9 was over at 40.
    assert_eq!(here.transitions, Some((vec![0], vec![Tick(969)])));
    assert_eq!(service.clone().on_clock(Tick(40), Tick(3)).transitions.unwrap().1, [Tick(0)]);
    let for_ever = remembered(0, vec![Some(seat(A, Standing::Gone(Tick(u64::MAX)), 0))], None);
    let _ = for_ever.on_clock(Tick(0), Tick(u64::MAX));
}
