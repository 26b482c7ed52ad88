//! One listener, one cluster, its endpoints: what becomes of them.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    ConfigSource, HealthStatus, PathConfigSource, TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::{FilterChainMatch, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};
use envoy_types::pb::google::protobuf::Duration;
use lb_core::model::{Affinity, Forward};
use prost::{Message, Name};

use super::{WELL, shown, store};
use crate::protocol::Answer;
use crate::testing::*;
use crate::{Kind, Store};

/// What is wrong with the resources, in the order in which they are taken.
fn take(store: &mut Store, parts: (&Cluster, &ClusterLoadAssignment, &Listener)) -> Vec<String> {
    let mut told = take_one(store, Kind::Cluster, parts.0);
    told.extend(take_one(store, Kind::Endpoints, parts.1));
    told.extend(take_one(store, Kind::Listener, parts.2));
    told
}

fn take_one<M: Message + Name>(store: &mut Store, kind: Kind, message: &M) -> Vec<String> {
    let any = any(message);
    let read = Answer::read(kind, 1, [(None, &any)].into_iter());
    let mut troubles = read.troubles;
    troubles.extend(store.take(kind, read.update));
    troubles.iter().map(ToString::to_string).chain(read.notes).collect()
}

fn web() -> Listener {
    tcp_listener("web", "10.0.0.100", 80, "pool")
}

#[test]
fn tcp_and_udp_listeners_are_services() {
    let mut store = store();
    let endpoints = assignment("pool", &["10.0.0.11", "10.0.0.12"], 80);
    assert_eq!(take(&mut store, (&eds_cluster("pool"), &endpoints, &web())), [""; 0]);
    let dns = udp_listener("dns", "10.0.0.100", 53, "resolvers");
    let resolvers = assignment("resolvers", &["10.0.0.53"], 53);
    assert_eq!(take(&mut store, (&eds_cluster("resolvers"), &resolvers, &dns)), [""; 0]);
    assert_eq!(
        shown(&store.services()),
        ["dns udp 10.0.0.100:53 [10.0.0.53]", "web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]",]
    );
}

#[test]
fn fields_that_xds_has_not_come_from_metadata_and_defaults() {
    let mut store = store();
    let mut cluster = eds_cluster("pool");
    cluster.metadata = Some(metadata([
        ("forward", string("nat")),
        ("slots", number(1009.0)),
        ("health", table([("check", string("tcp")), ("interval", string("5s"))])),
    ]));
    let proxy = TcpProxy {
        stat_prefix: "web".into(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("pool".into())),
        idle_timeout: Some(Duration { seconds: 600, nanos: 0 }),
        hash_policy: vec![HashPolicy {
            policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(
                hash_policy::SourceIp {},
            )),
        }],
        ..Default::default()
    };
    let mut listener = with_filter("a listener", "10.0.0.100", 80, any(&proxy));
    listener.metadata = Some(metadata([("name", string("web")), ("slots", number(2003.0))]));
    let endpoints = assignment("pool", &["10.0.0.11"], 8080);
    assert_eq!(take(&mut store, (&cluster, &endpoints, &listener)), [""; 0]);
    let services = store.services();
    assert_eq!(shown(&services), ["web tcp 10.0.0.100:80 [10.0.0.11:8080]"]);
    let spec = services.services[0].spec();
    assert_eq!((spec.forward, spec.affinity), (Forward::Nat, Affinity::Client));
    assert_eq!((spec.slots, spec.idle_timeout().as_secs()), (Some(2003), 600));
    assert_eq!(spec.health.as_ref().unwrap().interval.as_secs(), 5);
}

#[test]
fn priorities_conditions_and_weights() {
    use HealthStatus::{Degraded, Draining, Timeout, Unhealthy, Unknown};
    let at = |last: u8, weight, health| endpoint(&format!("10.0.0.{last}"), 80, weight, health);
    let cases: Vec<(&str, Vec<LocalityLbEndpoints>, &str)> = vec![
        (
            "who drains keeps what it has; who is out does not",
            vec![locality(
                0,
                None,
                vec![
                    at(1, 1, WELL),
                    at(3, 1, Unknown),
                    at(4, 1, Draining),
                    at(5, 1, Unhealthy),
                    at(6, 1, Timeout),
                    at(7, 1, Degraded),
                ],
            )],
            "10.0.0.1, 10.0.0.3, 10.0.0.4 drain, 10.0.0.5 failed, 10.0.0.6 failed, 10.0.0.7 drain",
        ),
        (
            "the first priority that has somebody",
            vec![
                locality(0, None, vec![at(1, 1, Unhealthy), at(3, 1, Degraded)]),
                locality(2, None, vec![at(4, 1, WELL)]),
                locality(1, None, vec![at(5, 1, WELL), at(6, 1, Degraded)]),
            ],
            "10.0.0.1 failed, 10.0.0.3 drain, 10.0.0.4 drain, 10.0.0.5, 10.0.0.6 drain",
        ),
        (
            "degraded only if nobody else",
            vec![
                locality(0, None, vec![at(1, 1, Unhealthy)]),
                locality(1, None, vec![at(3, 1, Degraded), at(4, 1, Draining)]),
                locality(2, None, vec![at(5, 1, Degraded)]),
            ],
            "10.0.0.1 failed, 10.0.0.3, 10.0.0.4 drain, 10.0.0.5 drain",
        ),
        (
            "weights of localities and endpoints are multiplied, and have no common divisor",
            vec![
                locality(0, Some(30), vec![at(1, 2, WELL), at(3, 4, WELL)]),
                locality(0, Some(10), vec![at(4, 2, WELL)]),
                locality(0, None, vec![at(5, 2, WELL)]),
            ],
            "10.0.0.1 x3, 10.0.0.3 x6, 10.0.0.4, 10.0.0.5 x0",
        ),
        (
            "weights that are too large keep their proportion, and nobody is lost",
            vec![
                locality(0, Some(u32::MAX), vec![at(1, u32::MAX, WELL)]),
                locality(0, Some(u32::MAX), vec![at(3, u32::MAX / 3 + 1, WELL), at(4, 1, WELL)]),
            ],
            "10.0.0.1 x65535, 10.0.0.3 x21845, 10.0.0.4",
        ),
        ("nobody", vec![], ""),
    ];
    for (what, localities, backends) in cases {
        let mut store = store();
        let told = take(&mut store, (&eds_cluster("pool"), &assigned("pool", localities), &web()));
        assert_eq!(told, [""; 0], "{what}");
        assert_eq!(
            shown(&store.services()),
            [format!("web tcp 10.0.0.100:80 [{backends}]")],
            "{what}"
        );
    }
}

#[test]
fn endpoints_may_stand_in_the_cluster() {
    let mut store = store();
    let cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(assignment("pool", &["10.0.0.11"], 80)),
        lb_policy: LbPolicy::RoundRobin.into(),
        ..eds_cluster("pool")
    };
    assert_eq!(
        take_one(&mut store, Kind::Cluster, &cluster),
        ["cluster \"pool\": its lb_policy ROUND_ROBIN is taken as MAGLEV"]
    );
    assert_eq!(take_one(&mut store, Kind::Listener, &web()), [""; 0]);
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.11]"]);
}

#[test]
fn a_next_hop_may_be_written() {
    let mut store = store();
    let mut endpoints = assignment("pool", &["10.0.0.11"], 80);
    let hop =
        |mac, interface| Some(metadata([("mac", string(mac)), ("interface", string(interface))]));
    endpoints.endpoints[0].lb_endpoints[0].metadata = hop("02:00:00:00:00:0c", "lan0");
    assert_eq!(take(&mut store, (&eds_cluster("pool"), &endpoints, &web())), [""; 0]);
    let services = store.services();
    let backend = &services.services[0].spec().backends[0];
    assert_eq!(backend.static_hop.as_ref().unwrap().mac.to_string(), "02:00:00:00:00:0c");
    for (mac, interface, says) in [
        ("02:00:00:00:00:0c", "lan7", "no [[port]] is named \"lan7\""),
        ("no", "lan0", "it has `mac` and `interface` only"),
    ] {
        endpoints.endpoints[0].lb_endpoints[0].metadata = hop(mac, interface);
        let told = take_one(&mut store, Kind::Endpoints, &endpoints);
        assert!(told[0].contains(says), "{told:?}");
        assert_eq!(store.services().services[0].spec(), services.services[0].spec());
    }
}

/// What is refused, and what is said of it.
#[test]
fn what_cannot_be_is_told_by_name() {
    type Change = fn(&mut Cluster, &mut ClusterLoadAssignment, &mut Listener);
    let cases: &[(Change, &str)] = &[
        (|_, _, l| l.address = None, "listener \"web\": it has no address"),
        (|_, _, l| l.name.clear(), "listener: a name has 1 to 1024 bytes"),
        (|_, _, l| l.name = "two words".into(), "a name has 1 to 63 letters"),
        (|_, _, l| l.filter_chains.clear(), "it has 0 filter chains; use one"),
        (|_, _, l| l.filter_chains[0].filters.clear(), "it has 0 filters; use one"),
        (
            |_, _, l| *l = with_filter("web", "10.0.0.100", 80, any(&Duration::default())),
            "the filter \"envoy.filters.network.tcp_proxy\" is none that is known here; use one of \
             type envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        ),
        (
            |_, _, l| {
                l.filter_chains[0].filter_chain_match = Some(FilterChainMatch {
                    server_names: vec!["a.example".into()],
                    ..Default::default()
                });
            },
            "filter_chain_match is not what a layer-4 balancer can do",
        ),
        (
            |_, _, l| {
                l.filter_chains[0].transport_socket =
                    Some(TransportSocket { name: "tls".into(), config_type: None });
            },
            "a transport_socket is not what a layer-4 balancer can do",
        ),
        (
            |_, _, l| l.metadata = Some(metadata([("slot", number(1.0))])),
            "unknown key \"slot\" in [[service]]; did you mean `slots`?",
        ),
        (
            |_, _, l| l.metadata = Some(metadata([("backends", string(""))])),
            "`backends` come from the cluster",
        ),
        (
            |_, _, l| l.metadata = Some(metadata([("forward", string("fullnat"))])),
            "\"fullnat\" needs a `pool`",
        ),
        (
            |_, _, l| *l = tcp_listener("web", "www.example.org", 80, "pool"),
            "\"www.example.org\" is not an IP address",
        ),
        (|_, _, l| *l = tcp_listener("web", "0.0.0.0", 80, "pool"), "0.0.0.0"),
        (|_, _, l| *l = tcp_listener("web", "10.0.0.100", 65_536, "pool"), "65536"),
        (
            |c, _, _| {
                c.cluster_discovery_type =
                    Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()));
            },
            "cluster \"pool\": its type is STRICT_DNS; use EDS",
        ),
        (
            |c, _, _| {
                let path = PathConfigSource { path: "/x".into(), ..Default::default() };
                c.eds_cluster_config.as_mut().unwrap().eds_config = Some(ConfigSource {
                    config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(path)),
                    ..Default::default()
                });
            },
            "write `eds_config: { ads: {} }`",
        ),
        (
            |_, e, _| *e = assignment("pool", &["a.example"], 80),
            "endpoints of \"pool\": \"a.example\" is not an IP address of an endpoint",
        ),
        (
            |_, e, _| *e = assignment("pool", &["10.0.0.11"], 8080),
            "endpoint 10.0.0.11: this forwarding mode keeps the port",
        ),
        (|_, e, _| *e = assignment("pool", &["10.0.0.2"], 80), "is this balancer's own address"),
        (|_, e, _| *e = assignment("pool", &["10.0.0.100"], 80), "has the service's own address"),
        (|_, e, _| *e = assignment("pool", &["10.0.0.11", "10.0.0.11"], 80), "is listed twice"),
        (|_, e, _| *e = assignment("pool", &["10.0.0.11"], 70_000), "70000 is not a port"),
        (
            |_, e, _| e.endpoints[0].lb_endpoints[0].host_identifier = None,
            "endpoints of \"pool\": it has no endpoint",
        ),
    ];
    for (change, says) in cases {
        let mut store = store();
        let (mut cluster, mut listener) = (eds_cluster("pool"), web());
        let mut endpoints = assignment("pool", &["10.0.0.11"], 80);
        change(&mut cluster, &mut endpoints, &mut listener);
        let told = take(&mut store, (&cluster, &endpoints, &listener));
        assert_eq!(told.len(), 1, "{says}: {told:?}");
        assert!(told[0].contains(says), "{says}: {told:?}");
        assert_eq!(shown(&store.services()), [""; 0], "{says}");
    }
}

/// What is wrong now does not take away what was right before.
#[test]
fn the_last_good_service_stays() {
    let mut store = store();
    let good = assignment("pool", &["10.0.0.11"], 80);
    take(&mut store, (&eds_cluster("pool"), &good, &web()));
    let before = store.services();
    let bad = assignment("pool", &["10.0.0.11"], 8080);
    assert_eq!(take_one(&mut store, Kind::Endpoints, &bad).len(), 1);
    let mut listener = web();
    listener.filter_chains.clear();
    assert_eq!(take_one(&mut store, Kind::Listener, &listener).len(), 1);
    // A cluster that is not there yet, too.
    assert_eq!(
        take_one(&mut store, Kind::Listener, &tcp_listener("web", "10.0.0.100", 80, "other")),
        [""; 0]
    );
    assert_eq!(store.waiting().collect::<Vec<_>>(), [("web", "cluster \"other\"".to_owned())]);
    let after = store.services();
    assert!(std::sync::Arc::ptr_eq(&before.services[0], &after.services[0]));
}

/// Who wants what another has waits until that is gone.
#[test]
fn services_that_cannot_be_together_wait_for_each_other() {
    let mut store = store();
    let endpoints = assignment("pool", &["10.0.0.11"], 80);
    take(&mut store, (&eds_cluster("pool"), &endpoints, &web()));
    let told = take_one(&mut store, Kind::Listener, &tcp_listener("a", "10.0.0.100", 80, "pool"));
    assert_eq!(
        told,
        [
            "listener \"a\": it and \"web\" want the same: service \"a\" already has tcp 10.0.0.100:80; give one of \
          them another address or port"
        ]
    );
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.11]"]);
    // It was told; what has nothing to do with it is none the worse.
    assert_eq!(
        take_one(&mut store, Kind::Endpoints, &assignment("pool", &["10.0.0.12"], 80)),
        [""; 0]
    );
    // Both were remade for it, and only one is there.
    assert_eq!(shown(&store.services()), ["web tcp 10.0.0.100:80 [10.0.0.12]"]);
    assert_eq!(
        take_one(&mut store, Kind::Listener, &tcp_listener("web", "10.0.0.101", 80, "pool")),
        [""; 0]
    );
    assert_eq!(
        shown(&store.services()),
        ["a tcp 10.0.0.100:80 [10.0.0.12]", "web tcp 10.0.0.101:80 [10.0.0.12]"]
    );
}

/// A message of the least parts with the most memory: what `MESSAGE_BYTES_MAX` says of it.
#[test]
fn small_parts_take_bounded_memory() {
    let part = size_of::<envoy_types::pb::envoy::config::endpoint::v3::LbEndpoint>();
    assert!(part / 2 * crate::RESOURCE_BYTES_MAX < 1 << 30, "{part} bytes for two");
    let any = size_of::<envoy_types::pb::google::protobuf::Any>();
    assert!(any / 2 * crate::MESSAGE_BYTES_MAX < 1 << 30, "{any} bytes for two");
    assert_eq!(size_of::<HashMap<String, String>>(), 48);
}
