//! Both variants, from the first request on.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::{shown, store};
use crate::protocol::Protocol;
use crate::testing::*;
use crate::{Delta, Kind, NAME_BYTES_MAX, RESOURCE_BYTES_MAX, StateOfTheWorld, Store};

fn answer(kind: Kind, version: &str, nonce: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.into(),
        resources,
        type_url: kind.type_url().into(),
        nonce: nonce.into(),
        ..Default::default()
    }
}

/// A request in one line: type, version, nonce, names, what is refused.
fn said(request: &DiscoveryRequest) -> String {
    let kind = Kind::of(&request.type_url).unwrap();
    let names = request.resource_names.join(" ");
    let refusal = request.error_detail.as_ref().map_or("", |it| it.message.as_str());
    let (version, nonce) = (&request.version_info, &request.response_nonce);
    format!("{kind:?} v{version} n{nonce} [{names}] {refusal}").trim_end().into()
}

fn said_delta(request: &DeltaDiscoveryRequest) -> String {
    let kind = Kind::of(&request.type_url).unwrap();
    let mut versions: Vec<_> =
        request.initial_resource_versions.iter().map(|(k, v)| format!("{k}={v}")).collect();
    versions.sort();
    let refusal = request.error_detail.as_ref().map_or("", |it| it.message.as_str());
    let text = format!(
        "{kind:?} n{} +[{}] -[{}] {{{}}} {refusal}",
        request.response_nonce,
        request.resource_names_subscribe.join(" "),
        request.resource_names_unsubscribe.join(" "),
        versions.join(" "),
    );
    text.trim_end().into()
}

fn named<M: Message + Name>(name: &str, version: &str, message: &M) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(any(message)),
        ..Default::default()
    }
}

fn changes(
    kind: Kind,
    nonce: &str,
    resources: Vec<Resource>,
    gone: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        type_url: kind.type_url().into(),
        removed_resources: gone.iter().map(|&name| name.into()).collect(),
        nonce: nonce.into(),
        ..Default::default()
    }
}

/// What is said to an answer: the verdict first.
fn all<P: Protocol>(
    protocol: &mut P,
    store: &mut crate::Store,
    answer: P::Answer,
    said: fn(&P::Request) -> String,
) -> Vec<String> {
    let reply = protocol.receive(store, answer);
    reply.verdict.iter().chain(&reply.requests).map(said).collect()
}

/// A conversation in which the cluster "pool" was told.
fn with_a_pool() -> (StateOfTheWorld, Store) {
    let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
    ads.begin(&store);
    let clusters = vec![any(&eds_cluster("pool"))];
    all(&mut ads, &mut store, answer(Kind::Cluster, "1", "a", clusters), said);
    (ads, store)
}

#[test]
fn clusters_first_then_their_endpoints_then_listeners() {
    let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
    let first = ads.begin(&store);
    assert_eq!(first.iter().map(said).collect::<Vec<_>>(), ["Cluster v n []"]);
    assert_eq!(first[0].node.as_ref().unwrap().id, "edge-1");
    let clusters = vec![any(&eds_cluster("a")), any(&eds_cluster("b"))];
    let told = all(&mut ads, &mut store, answer(Kind::Cluster, "1", "x", clusters), said);
    assert_eq!(told, ["Cluster v1 nx []", "Endpoints v n [a b]", "Listener v n []"]);
    let listener = any(&tcp_listener("web", "10.0.0.100", 80, "a"));
    let told = all(&mut ads, &mut store, answer(Kind::Listener, "7", "y", vec![listener]), said);
    assert_eq!(told, ["Listener v7 ny []"]);
    assert_eq!(shown(&store.services()), [""; 0], "its endpoints are not there yet");
    // Endpoints that nobody asked for are not taken, whatever they are.
    let endpoints =
        vec![any(&assignment("a", &["10.0.0.11"], 80)), any(&assignment("z", &["no"], 80))];
    let told = all(&mut ads, &mut store, answer(Kind::Endpoints, "3", "z", endpoints), said);
    assert_eq!(told, ["Endpoints v3 nz [a b]"]);
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.11]"]);

    // One cluster less: its endpoints are asked for no more. No endpoints at all changes nothing.
    let told = all(
        &mut ads,
        &mut store,
        answer(Kind::Cluster, "2", "u", vec![any(&eds_cluster("a"))]),
        said,
    );
    assert_eq!(told, ["Cluster v2 nu []", "Endpoints v3 nz [a]"]);
    let told = all(&mut ads, &mut store, answer(Kind::Endpoints, "4", "v", Vec::new()), said);
    assert_eq!(told, ["Endpoints v4 nv [a]"]);
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.11]"]);

    // A new conversation: what is known, without nonces of the old one.
    let told: Vec<_> = ads.begin(&store).iter().map(said).collect();
    assert_eq!(told, ["Cluster v2 n []", "Endpoints v4 n [a]", "Listener v7 n []"]);
    // A listener that is not there any more is gone.
    all(&mut ads, &mut store, answer(Kind::Listener, "8", "w", Vec::new()), said);
    assert_eq!(shown(&store.services()), [""; 0]);
}

#[test]
fn what_is_good_is_taken_and_what_is_not_is_named() {
    let (mut ads, mut store) = with_a_pool();
    let endpoints = any(&assignment("pool", &["10.0.0.11"], 80));
    all(&mut ads, &mut store, answer(Kind::Endpoints, "1", "b", vec![endpoints]), said);
    let web = any(&tcp_listener("web", "10.0.0.100", 80, "pool"));
    all(&mut ads, &mut store, answer(Kind::Listener, "1", "c", vec![web.clone()]), said);

    let dns = any(&udp_listener("dns", "10.0.0.100", 53, "pool"));
    let bad = any(&tcp_listener("web", "www.example.org", 80, "pool"));
    let mut endpoints = assignment("pool", &["10.0.0.11"], 0);
    let told =
        all(&mut ads, &mut store, answer(Kind::Endpoints, "2", "d", vec![any(&endpoints)]), said);
    assert_eq!(told, ["Endpoints v2 nd [pool]"]);
    let both = vec![bad.clone(), dns.clone()];
    let reply = ads.receive(&mut store, answer(Kind::Listener, "2", "e", both.clone()));
    assert_eq!(reply.refusals, 1);
    let told = said(reply.verdict.as_ref().unwrap());
    assert!(told.starts_with("Listener v1 ne [] listener \"web\": "), "{told}");
    assert!(told.contains("\"www.example.org\" is not an IP address"), "{told}");
    let both_there = ["dns udp 10.0.0.100:53 [10.0.0.11]", "web tcp 10.0.0.100:80 [10.0.0.11]"];
    assert_eq!(shown(&store.services()), both_there);
    // The same again is counted; another version begins anew.
    assert_eq!(ads.receive(&mut store, answer(Kind::Listener, "2", "f", both.clone())).refusals, 2);
    assert_eq!(
        ads.receive(&mut store, answer(Kind::Listener, "3", "g", vec![bad, web.clone()])).refusals,
        1
    );
    assert_eq!(
        ads.receive(&mut store, answer(Kind::Listener, "4", "h", vec![web, dns])).refusals,
        0
    );
    assert_eq!(shown(&store.services()), both_there);

    // An endpoint that makes a service impossible is told with the service.
    endpoints.endpoints[0].lb_endpoints.push(endpoint("10.0.0.100", 0, 1, super::WELL));
    let told =
        all(&mut ads, &mut store, answer(Kind::Endpoints, "3", "i", vec![any(&endpoints)]), said);
    assert!(
        told[0].starts_with("Endpoints v2 ni [pool] listener \"dns\": endpoint 10.0.0.100: "),
        "{told:?}"
    );
    assert_eq!(shown(&store.services()), both_there);
}

/// Without a name nobody knows whose it is: then nothing is taken to be gone.
#[test]
fn garbage_takes_nothing_away() {
    let (mut ads, mut store) = with_a_pool();
    let url = || Kind::Cluster.type_url().to_owned();
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let garbage: Vec<(Vec<Any>, &str)> = vec![
        (vec![Any { type_url: url(), value: vec![0xff; 9] }], "it cannot be decoded"),
        (vec![Any { type_url: url(), value: vec![0; RESOURCE_BYTES_MAX + 1] }], "at most 4194304"),
        (vec![any(&assignment("pool", &[], 80))], "which was not asked for here"),
        (vec![any(&Cluster::default())], "a name has 1 to 1024 bytes"),
        (vec![any(&eds_cluster(&long))], "a name has 1 to 1024 bytes"),
        (
            vec![any(&eds_cluster("pool")), any(&eds_cluster("pool"))],
            "cluster \"pool\": it is there twice",
        ),
        (
            vec![Any::default(); crate::RESOURCES_MAX + 1],
            "65537 resources of this type are too many",
        ),
    ];
    for (resources, says) in garbage {
        let told = all(&mut ads, &mut store, answer(Kind::Cluster, "2", "b", resources), said);
        assert!(
            told[0].starts_with("Cluster v1 nb [] cluster") && told[0].contains(says),
            "{told:?}"
        );
        assert_eq!(store.wanted_endpoints().len(), 1, "{says}");
    }
    let told = all(&mut ads, &mut store, answer(Kind::Cluster, &long, "c", Vec::new()), said);
    assert_eq!(told, ["Cluster v1 nb [] cluster: a version or nonce has at most 1024 bytes"]);
    assert_eq!(store.wanted_endpoints().len(), 1);
    // Types that nobody asked for have no verdict.
    let other = DiscoveryResponse { type_url: "x".into(), ..Default::default() };
    let reply = ads.receive(&mut store, other);
    assert!(reply.verdict.is_none() && reply.requests.is_empty() && reply.notes.len() == 1);
}

/// Servers may wrap resources, as the other variant does.
#[test]
fn a_resource_may_be_wrapped() {
    let (mut ads, mut store) = (StateOfTheWorld::new(node()), store());
    ads.begin(&store);
    let good = any(&named("pool", "1", &eds_cluster("pool")));
    let told = all(&mut ads, &mut store, answer(Kind::Cluster, "1", "a", vec![good]), said);
    assert_eq!(told[0], "Cluster v1 na []");
    let other = any(&named("other", "1", &eds_cluster("pool")));
    let told = all(&mut ads, &mut store, answer(Kind::Cluster, "2", "b", vec![other]), said);
    assert_eq!(told[0], "Cluster v1 nb [] cluster \"other\": it calls itself \"pool\"");
}

#[test]
fn changes_only() {
    let (mut ads, mut store) = (Delta::new(node()), store());
    let first = ads.begin(&store);
    assert_eq!(first.iter().map(said_delta).collect::<Vec<_>>(), ["Cluster n +[*] -[] {}"]);
    assert_eq!(first[0].node.as_ref().unwrap().id, "edge-1");
    let clusters = vec![named("a", "1", &eds_cluster("a")), named("b", "1", &eds_cluster("b"))];
    let told = all(&mut ads, &mut store, changes(Kind::Cluster, "x", clusters, &[]), said_delta);
    assert_eq!(
        told,
        ["Cluster nx +[] -[] {}", "Endpoints n +[a b] -[] {}", "Listener n +[*] -[] {}"]
    );
    let endpoints = vec![named("a", "5", &assignment("a", &["10.0.0.11"], 80))];
    let told =
        all(&mut ads, &mut store, changes(Kind::Endpoints, "y", endpoints, &["b"]), said_delta);
    assert_eq!(told, ["Endpoints ny +[] -[] {}"]);
    let listeners = vec![
        named("web", "7", &tcp_listener("web", "10.0.0.100", 80, "a")),
        named("bad", "7", &tcp_listener("bad", "", 80, "a")),
    ];
    let told = all(&mut ads, &mut store, changes(Kind::Listener, "z", listeners, &[]), said_delta);
    assert!(told[0].starts_with("Listener nz +[] -[] {} listener \"bad\": "), "{told:?}");
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.11]"]);

    // What is not there any more is told by name, and so is what nobody asks for any more.
    let told =
        all(&mut ads, &mut store, changes(Kind::Cluster, "u", Vec::new(), &["b", "?"]), said_delta);
    assert_eq!(told, ["Cluster nu +[] -[] {}", "Endpoints n +[] -[b] {}"]);
    // There and gone at once: it stays.
    let both = vec![named("a", "2", &eds_cluster("a"))];
    let told = all(&mut ads, &mut store, changes(Kind::Cluster, "v", both, &["a"]), said_delta);
    assert_eq!(told, ["Cluster nv +[] -[] {} cluster \"a\": it is there twice; names are unique"]);

    // A new conversation: all that is known, by name; by version, too, but for what was refused.
    let told: Vec<_> = ads.begin(&store).iter().map(said_delta).collect();
    assert_eq!(
        told,
        [
            "Cluster n +[*] -[] {a=1}",
            "Endpoints n +[a] -[] {a=5}",
            "Listener n +[*] -[] {bad= web=7}"
        ]
    );
}

#[test]
fn garbage_changes_nothing() {
    let (mut ads, mut store) = (Delta::new(node()), store());
    ads.begin(&store);
    let pool = || named("pool", "1", &eds_cluster("pool"));
    all(&mut ads, &mut store, changes(Kind::Cluster, "x", vec![pool()], &[]), said_delta);
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for (resource, says) in [
        (Resource { resource: None, ..pool() }, "it is a \"\", which was not asked for here"),
        (Resource { name: "other".into(), ..pool() }, "it calls itself \"pool\""),
        (Resource { version: long.clone(), ..pool() }, "a version or nonce has at most 1024 bytes"),
    ] {
        let told = all(
            &mut ads,
            &mut store,
            changes(Kind::Cluster, "y", vec![resource], &["pool"]),
            said_delta,
        );
        assert!(told[0].contains(says), "{told:?}");
    }
}
