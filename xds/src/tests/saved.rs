//! What the next process knows.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::{any as some, prop, prop_assert_eq, proptest};
use prost::Message;

use super::{shown, store};
use crate::protocol::Protocol;
use crate::testing::*;
use crate::{Delta, Keys, Kind, Saved, StateOfTheWorld, Store, Trouble};

/// The next process: its store, and what it finds wrong.
fn next<P: Protocol>(protocol: &mut P, saved: &Saved) -> (Store, Vec<Trouble>) {
    let saved = Saved::decode(saved.encode_to_vec().as_slice()).unwrap();
    let mut store = store();
    let troubles = saved.restore(&mut store, protocol);
    (store, troubles)
}

fn tell(ads: &mut StateOfTheWorld, store: &mut Store, kind: Kind, resources: Vec<Any>) {
    let type_url = kind.type_url().into();
    ads.receive(store, DiscoveryResponse { resources, type_url, ..Default::default() });
}

/// One of a few resources, good or not: they take each other's addresses, they cannot be together with
/// what is behind them, or they lack it.
fn resource(kind: Kind, which: u8, variant: u8) -> Any {
    let name = ["a", "b", "c"][usize::from(which % 3)];
    match kind {
        Kind::Cluster => {
            let metadata = match variant % 4 {
                0 => metadata([("forward", string("ipip"))]),
                1 => metadata([("forward", string("nonsense"))]),
                2 => metadata([("slots", number(1009.0))]),
                _ => metadata([]),
            };
            let cluster = eds_cluster(name);
            any(&envoy_types::pb::envoy::config::cluster::v3::Cluster {
                metadata: Some(metadata),
                ..cluster
            })
        }
        Kind::Endpoints => {
            let address = ["10.0.0.11", "10.0.0.12", "10.0.0.100", "10.0.0.13"];
            any(&assignment(name, &[address[usize::from(variant % 4)]], 0))
        }
        Kind::Listener => {
            let port = 80 + u32::from(variant % 3);
            let cluster = ["a", "b", "c"][usize::from(variant / 3 % 3)];
            any(&tcp_listener(name, "10.0.0.100", port, cluster))
        }
    }
}

fn kind(number: u8) -> Kind {
    Kind::ALL[usize::from(number % 3)]
}

proptest! {
    /// Whatever was told, in whatever order: the next process has the same services, and what it is told
    /// next has the same consequences.
    #[test]
    fn the_next_process_knows_the_same(
        told in prop::collection::vec(
            (some::<u8>(), prop::collection::vec(some::<(u8, u8)>(), 0..4)), 0..20),
        later in prop::collection::vec(some::<(u8, u8, u8)>(), 0..6),
    ) {
        let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
        ads.begin(&store);
        for of in 0..3 {
            let all = (0..3).map(|which| resource(kind(of), which, 6 * (of / 2) + 3 + which));
            tell(&mut ads, &mut store, kind(of), all.collect());
        }
        for (of, resources) in told {
            let all = resources.iter().map(|(which, variant)| resource(kind(of), *which, *variant));
            tell(&mut ads, &mut store, kind(of), all.collect());
        }
        let saved = Saved::of(&store, &ads, "v");
        let mut next_ads = StateOfTheWorld::new(node());
        let (mut next, _) = next(&mut next_ads, &saved);
        prop_assert_eq!(shown(&next.services()), shown(&store.services()));
        prop_assert_eq!(Saved::of(&next, &next_ads, "v"), saved, "and the one after that");

        next_ads.begin(&next);
        for of in [0, 1] {
            // So that all is asked for, in both.
            let all: Vec<Any> = (0..3).map(|which| resource(kind(of), which, 3)).collect();
            tell(&mut ads, &mut store, kind(of), all.clone());
            tell(&mut next_ads, &mut next, kind(of), all);
        }
        for (of, which, variant) in later {
            let all = vec![resource(kind(of), which, variant)];
            tell(&mut ads, &mut store, kind(of), all.clone());
            tell(&mut next_ads, &mut next, kind(of), all);
        }
        prop_assert_eq!(shown(&next.services()), shown(&store.services()));
    }
}

/// A control plane has told of one service: its listener.
fn with_web() -> (StateOfTheWorld, Store, Any) {
    let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
    ads.begin(&store);
    tell(&mut ads, &mut store, Kind::Cluster, vec![resource(Kind::Cluster, 0, 3)]);
    let endpoints = any(&assignment("a", &["10.0.0.11"], 80));
    tell(&mut ads, &mut store, Kind::Endpoints, vec![endpoints]);
    let web = any(&tcp_listener("web", "10.0.0.100", 80, "a"));
    tell(&mut ads, &mut store, Kind::Listener, vec![web.clone()]);
    (ads, store, web)
}

/// It is not kept from changing by one who waits for its address, and whom it is not left to.
#[test]
fn who_has_an_address_may_change_there() {
    let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
    ads.begin(&store);
    tell(&mut ads, &mut store, Kind::Cluster, vec![resource(Kind::Cluster, 0, 3)]);
    tell(&mut ads, &mut store, Kind::Endpoints, vec![resource(Kind::Endpoints, 0, 0)]);
    let listener = |name, port| any(&tcp_listener(name, "10.0.0.100", port, "a"));
    for port in [81, 80] {
        let all = vec![listener("also", port), listener("web", 80)];
        tell(&mut ads, &mut store, Kind::Listener, all);
        let expected = ["also tcp 10.0.0.100:81 [10.0.0.11]", "web tcp 10.0.0.100:80 [10.0.0.11]"];
        assert_eq!(shown(&store.services()), expected);
    }
    // That "also" wants to be at 80 does not keep "web" from other endpoints there.
    tell(&mut ads, &mut store, Kind::Endpoints, vec![resource(Kind::Endpoints, 0, 1)]);
    let expected = ["also tcp 10.0.0.100:81 [10.0.0.11]", "web tcp 10.0.0.100:80 [10.0.0.12]"];
    assert_eq!(shown(&store.services()), expected);
}

/// What was told last cannot be: what is in force is older, and nobody would tell it again.
#[test]
fn a_service_that_is_older_than_what_was_told_stays_so() {
    let (mut ads, mut store, web) = with_web();
    // The newcomer comes first by name; who is there stays all the same.
    let same = any(&tcp_listener("also", "10.0.0.100", 80, "a"));
    tell(&mut ads, &mut store, Kind::Listener, vec![web, same]);
    tell(&mut ads, &mut store, Kind::Cluster, vec![resource(Kind::Cluster, 0, 1)]);
    let expected = ["web tcp 10.0.0.100:80 [10.0.0.11]"];
    assert_eq!(shown(&store.services()), expected);

    let mut next_ads = StateOfTheWorld::new(node());
    let (mut next, troubles) = next(&mut next_ads, &Saved::of(&store, &ads, "v"));
    assert_eq!(shown(&next.services()), expected);
    assert!(troubles.iter().any(|it| it.to_string().contains("\"nonsense\"")), "{troubles:?}");
    // The listener goes, and with it the service.
    next_ads.begin(&next);
    tell(&mut next_ads, &mut next, Kind::Cluster, vec![resource(Kind::Cluster, 0, 3)]);
    tell(&mut next_ads, &mut next, Kind::Listener, Vec::new());
    assert_eq!(shown(&next.services()), [""; 0]);
}

fn named(name: &str, version: &str, resource: Any) -> Resource {
    let (name, version) = (name.into(), version.into());
    Resource { name, version, resource: Some(resource), ..Default::default() }
}

/// The control plane is told what is known, so that it sends what is new, and what is gone; but without
/// versions if something is wrong with it by now, for then it is to hear of that.
#[test]
fn changes_go_on_where_they_were() {
    let (mut ads, mut store) = (Delta::new(node()), store());
    ads.begin(&store);
    for (kind, name, resource) in [
        (Kind::Cluster, "a", resource(Kind::Cluster, 0, 3)),
        (Kind::Endpoints, "a", any(&assignment("a", &["10.0.0.11"], 80))),
        (Kind::Listener, "web", any(&tcp_listener("web", "10.0.0.100", 80, "a"))),
    ] {
        let resources = vec![named(name, "7", resource)];
        let type_url = kind.type_url().into();
        ads.receive(
            &mut store,
            DeltaDiscoveryResponse { resources, type_url, ..Default::default() },
        );
    }
    let saved = Saved::of(&store, &ads, "v");

    let mut next_ads = Delta::new(node());
    let (store, troubles) = next(&mut next_ads, &saved);
    assert_eq!(troubles, []);
    let said = next_ads.begin(&store);
    let known: Vec<_> = said.iter().map(|it| it.initial_resource_versions.clone()).collect();
    let seven = |name: &str| [(name.to_owned(), "7".to_owned())].into();
    assert_eq!(known, [seven("a"), seven("a"), seven("web")]);
    assert_eq!(said[1].resource_names_subscribe, ["a"]);

    let mut other_ads = Delta::new(node());
    let mut other = Store::new(Keys::default().with("forward", "nonsense"), &super::ports());
    assert_eq!(saved.restore(&mut other, &mut other_ads).len(), 1);
    let said = other_ads.begin(&other);
    let known: Vec<_> = said.iter().map(|it| it.initial_resource_versions.clone()).collect();
    let none = |name: &str| [(name.to_owned(), String::new())].into();
    assert_eq!(
        known,
        [none("a"), none("a"), none("web")],
        "or nobody would say that they are gone"
    );
}

/// It was written by a balancer, but nobody knows what has become of it.
#[test]
fn nonsense_is_refused_by_name() {
    let (mut ads, mut store, _) = with_web();
    tell(&mut ads, &mut store, Kind::Cluster, vec![resource(Kind::Cluster, 0, 1)]);
    let bytes = Saved::of(&store, &ads, "v").encode_to_vec();
    for place in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[place] ^= flip;
            let Ok(saved) = Saved::decode(bytes.as_slice()) else { continue };
            let mut ads = StateOfTheWorld::new(node());
            let mut store = super::store();
            // Whatever it says: no panic, and services that are valid.
            saved.restore(&mut store, &mut ads);
            assert!(store.services().services.len() <= 1);
        }
    }
}
