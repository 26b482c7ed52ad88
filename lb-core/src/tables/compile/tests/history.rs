//! Tables that are made of a version before are those that are made anew: whatever has changed.

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::*;
use crate::model::{ClientAddress, FullNat};
use crate::tables::Return;
use crate::tuple::mapped;

const BACKENDS: [&str; 6] =
    ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.1.0.11", "10.0.0.98", "10.0.0.99"];
/// Only these are used with a mode whose services may not share backends.
const OWN_BACKENDS: [[&str; 2]; 4] = [
    ["10.0.0.21", "10.0.0.22"],
    ["10.0.0.23", "10.0.0.24"],
    ["10.0.0.25", "10.0.0.26"],
    ["10.0.0.27", "10.0.0.28"],
];

/// Something happens.
#[derive(Clone, Debug)]
enum Event {
    /// The service is wanted so, or again so; another one, if there is none at the place.
    Wanted(Index, Wish),
    /// The service is not wanted any more.
    Unwanted(Index),
    /// The list is in another order.
    Turned,
    /// The next hop of a backend becomes known, another one, or unknown.
    Way(Index, Option<u8>),
    /// Exactly these of the first service's backends have failed.
    Failed(Vec<usize>),
    /// Time passes, in seconds.
    Time(u64),
    /// Nobody remembers flows of those that are leaving.
    Idle,
}

#[derive(Clone, Debug)]
struct Wish {
    mode: u8,
    backends: Vec<usize>,
    weight: u32,
    has_other_vip: bool,
    has_bound: bool,
    is_slow: bool,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let backends = || subsequence((0..BACKENDS.len()).collect::<Vec<_>>(), 0..=BACKENDS.len());
    let wish = (0_u8..4, backends(), 1_u32..3, any::<bool>(), any::<bool>(), any::<bool>());
    let wish = wish.prop_map(|(mode, backends, weight, has_other_vip, has_bound, is_slow)| Wish {
        mode,
        backends,
        weight,
        has_other_vip,
        has_bound,
        is_slow,
    });
    let event = prop_oneof![
        4 => (any::<Index>(), wish).prop_map(|(at, wish)| Event::Wanted(at, wish)),
        1 => any::<Index>().prop_map(Event::Unwanted),
        1 => Just(Event::Turned),
        2 => (any::<Index>(), any::<Option<u8>>()).prop_map(|(at, host)| Event::Way(at, host)),
        1 => backends().prop_map(Event::Failed),
        3 => prop_oneof![0_u64..30, 30_u64..200_000].prop_map(Event::Time),
        1 => Just(Event::Idle),
    ];
    proptest::collection::vec(event, 1..40)
}

/// The service with this number, which is its name.
fn service(number: usize, wish: &Wish) -> Arc<Service> {
    let Wish { mode, backends, weight, has_other_vip, has_bound, is_slow } = wish;
    let address = format!("10.9.{}.{number}", u8::from(*has_other_vip));
    let names: Vec<&str> = match mode {
        2 => OWN_BACKENDS[number].iter().take(backends.len()).copied().collect(),
        _ => backends.iter().map(|&place| BACKENDS[place]).collect(),
    };
    let mut spec = small(&format!("service{number}"), &address, &names);
    for backend in spec.backends.iter_mut().take(1) {
        backend.weight = *weight;
    }
    let pool = format!("10.8.{number}.0/31").parse().unwrap();
    let client_address = ClientAddress::Hidden;
    spec.forward = match mode {
        0 => Forward::L2dsr,
        1 => Forward::IPIP,
        2 => Forward::Nat,
        _ => Forward::FullNat(FullNat { pool, client_address }),
    };
    spec.syn = has_bound.then_some(SynBound { rate: 100, above: AboveRate::Drop });
    spec.slow_start = is_slow.then(|| std::time::Duration::from_secs(20));
    Arc::new(Service::new(spec).unwrap())
}

/// What is true, as it changes.
struct World {
    /// By number.
    services: Vec<Option<Arc<Service>>>,
    is_turned: bool,
    next_hops: NextHops,
    health: Health,
    now: Tick,
    is_idle: bool,
}

impl World {
    fn happens(&mut self, event: &Event) {
        self.is_idle = false;
        let count = self.services.len();
        match event {
            Event::Wanted(at, wish) => {
                let number = at.index(count);
                self.services[number] = Some(service(number, wish));
            }
            Event::Unwanted(at) => self.services[at.index(count)] = None,
            Event::Turned => self.is_turned ^= true,
            Event::Way(at, host) => {
                let own = OWN_BACKENDS.iter().flatten();
                let all: Vec<&&str> = BACKENDS.iter().chain(own).collect();
                let address: IpAddr = all[at.index(all.len())].parse().unwrap();
                match host {
                    None => drop(self.next_hops.remove(&address)),
                    Some(host) => {
                        let hops = [hop(0, *host)].into_iter().collect();
                        let way = Arc::new(Ok(Resolved { hops, gateway: None }));
                        self.next_hops.insert(address, way);
                    }
                }
            }
            Event::Failed(places) => {
                let failed = places
                    .iter()
                    .map(|&place| ("service0".to_owned(), BACKENDS[place].parse().unwrap(), None));
                self.health = Health::new(failed);
            }
            Event::Time(seconds) => self.now.0 += seconds * 1000,
            Event::Idle => self.is_idle = true,
        }
    }

    fn wanted(&self, before: &DesiredState) -> DesiredState {
        let mut services: Vec<_> = self.services.iter().flatten().map(Arc::clone).collect();
        if self.is_turned {
            services.reverse();
        }
        before.followed_by(services).unwrap()
    }

    fn tables(&self, desired: &DesiredState, previous: Option<&Tables>) -> Tables {
        let mut idle = BTreeSet::new();
        for table in previous.iter().flat_map(|tables| &tables.services).filter(|_| self.is_idle) {
            idle.extend((0..8).map(|place| (table.id, place)));
        }
        let ports = ports();
        let circumstances = Circumstances {
            health: Some(&self.health),
            idle: &idle,
            now: self.now,
            ..Circumstances::new(&ports, &self.next_hops)
        };
        compile(desired, &circumstances, previous)
    }
}

/// What becomes of answers of backends that are one service's.
fn answered(answers: &Answers) -> Vec<Option<Return>> {
    let own = OWN_BACKENDS.iter().flatten().map(|backend| {
        let client = [10, 9, 9, 9].into();
        let tuple = Tuple::new(backend.parse().unwrap(), client, 80, 0, TCP);
        let (service, place) = answers.find(&tuple)?;
        let found = *answers.get(place).unwrap();
        assert_eq!(found.service, service);
        Some(found)
    });
    own.collect()
}

/// All that workers and control go by.
fn seen(tables: &Tables) -> impl PartialEq + std::fmt::Debug + use<> {
    let services = tables.services.iter().map(|it| {
        let pool = it.pooled.as_ref().map(|it| (it.pool.net(), it.idle_max));
        let bound = it.gate.as_ref().map(|gate| gate.bound());
        (
            (it.id, it.affinity, it.mss, it.without_slots, pool, bound, it.idle_max),
            (it.slots.clone(), Arc::clone(&it.backends), Arc::clone(&it.roster)),
            (it.growth.clone(), it.transitions.clone(), Arc::clone(&it.source)),
        )
    });
    let numbers = || (0..2).flat_map(|other| (0..4).map(move |number| [10, 9, other, number]));
    let found = numbers().map(|address| {
        let (dst, ports) = (mapped(address), [0, 0, 0, 80]);
        let tuple = Tuple { dst, ports, protocol: TCP, ..Tuple::default() };
        tables.vips.lookup(&tuple)
    });
    let pools: Vec<IpNet> = tables.pools.iter().map(|pool| pool.net()).collect();
    (
        (services.collect::<Vec<_>>(), found.collect::<Vec<_>>(), answered(&tables.answers), pools),
        (tables.in_transition, tables.next_change(), tables.version),
        tables.admission.is_some(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn made_of_the_version_before_is_as_made_anew(events in events()) {
        let mut world = World {
            services: vec![None; OWN_BACKENDS.len()],
            is_turned: false,
            next_hops: next_hops(),
            health: Health::default(),
            now: Tick(1_000_000),
            is_idle: false,
        };
        let mut desired = DesiredState::empty(HashKey([7; 16]));
        let mut tables = world.tables(&desired, None);
        for event in &events {
            world.happens(event);
            desired = world.wanted(&desired);
            let next = world.tables(&desired, Some(&tables));
            // That nothing is known of.
            let unknown = tables.with_services(tables.services.clone());
            let anew = world.tables(&desired, Some(&unknown));
            prop_assert_eq!(seen(&next), seen(&anew), "{:?}", event);
            let all = Answers::new(&next.services);
            prop_assert_eq!(next.answers.claimed(), all.claimed(), "{:?}", event);
            prop_assert_eq!(answered(&next.answers), answered(&all), "{:?}", event);
            prop_assert_eq!(next.decides_like(&tables), anew.decides_like(&tables), "{:?}", event);
            tables = next;
        }
    }
}

/// A change of one service leaves the tables of the others alone, the very same.
#[test]
fn others_are_not_made_again() {
    let wish = |weight| Wish {
        mode: 0,
        backends: vec![0, 1, 2],
        weight,
        has_other_vip: false,
        has_bound: false,
        is_slow: false,
    };
    let mut services: Vec<_> = (0..4).map(|number| service(number, &wish(1))).collect();
    let ports = ports();
    let next_hops = next_hops();
    let circumstances = Circumstances::new(&ports, &next_hops);
    let first = DesiredState::empty(HashKey([7; 16])).followed_by(services.clone()).unwrap();
    let before = compile(&first, &circumstances, None);
    services[2] = service(2, &wish(2));
    let second = first.followed_by(services.clone()).unwrap();
    let after = compile(&second, &circumstances, Some(&before));
    let is_same = |place: usize| Arc::ptr_eq(&before.services[place], &after.services[place]);
    assert_eq!([0, 1, 2, 3].map(is_same), [true, true, false, true]);
    assert!(after.vips.is_shared_with(&before.vips));
    // Those behind it take other places.
    services.remove(0);
    let third = second.followed_by(services).unwrap();
    let last = compile(&third, &circumstances, Some(&after));
    let is_same = |place: usize| Arc::ptr_eq(&after.services[place + 1], &last.services[place]);
    assert_eq!([0, 1, 2].map(is_same), [true; 3]);
}
