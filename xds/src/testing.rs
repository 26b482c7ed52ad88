//! Resources for tests, as a control plane would make them.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ConfigSource, HealthStatus, Metadata, Node, SocketAddress,
    address,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{
    Route, UdpProxyConfig, udp_proxy_config,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, UInt32Value, Value};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::{Matcher, matcher};
use prost::{Message, Name};

pub(crate) fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

pub(crate) fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

pub(crate) fn table<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value { kind: Some(Kind::StructValue(fields_of(fields))) }
}

fn fields_of<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.map(|(key, value)| (key.to_owned(), value)).into() }
}

pub(crate) fn metadata<const N: usize>(fields: [(&str, Value); N]) -> Metadata {
    let filter_metadata = [("weir".to_owned(), fields_of(fields))].into();
    Metadata { filter_metadata, ..Default::default() }
}

pub(crate) fn node() -> Node {
    Node { id: "edge-1".into(), ..Default::default() }
}

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn socket(address: &str, port: u32, protocol: Protocol) -> Address {
    let socket = SocketAddress {
        protocol: protocol.into(),
        address: address.into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

pub(crate) fn tcp_listener(name: &str, address: &str, port: u32, cluster: &str) -> Listener {
    let proxy = TcpProxy {
        stat_prefix: name.into(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    with_filter(name, address, port, any(&proxy))
}

/// With a network filter of that configuration.
pub(crate) fn with_filter(name: &str, address: &str, port: u32, config: Any) -> Listener {
    let filter = Filter {
        name: "envoy.filters.network.tcp_proxy".into(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    };
    Listener {
        name: name.into(),
        address: Some(socket(address, port, Protocol::Tcp)),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

pub(crate) fn udp_listener(name: &str, address: &str, port: u32, cluster: &str) -> Listener {
    let route = Route { cluster: cluster.into() };
    let action = TypedExtensionConfig { name: "route".into(), typed_config: Some(any(&route)) };
    let otherwise = matcher::OnMatch {
        on_match: Some(matcher::on_match::OnMatch::Action(action)),
        ..Default::default()
    };
    let matcher = Matcher { on_no_match: Some(Box::new(otherwise)), matcher_type: None };
    let proxy = UdpProxyConfig {
        route_specifier: Some(udp_proxy_config::RouteSpecifier::Matcher(matcher)),
        ..Default::default()
    };
    let filter = ListenerFilter {
        name: "envoy.filters.udp_listener.udp_proxy".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(&proxy))),
        ..Default::default()
    };
    Listener {
        name: name.into(),
        address: Some(socket(address, port, Protocol::Udp)),
        listener_filters: vec![filter],
        ..Default::default()
    }
}

pub(crate) fn eds_cluster(name: &str) -> Cluster {
    let ads = ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    };
    Cluster {
        name: name.into(),
        lb_policy: LbPolicy::Maglev.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads),
            service_name: String::new(),
        }),
        ..Default::default()
    }
}

/// An endpoint: its address, with its port, weight and condition.
pub(crate) fn endpoint(address: &str, port: u32, weight: u32, health: HealthStatus) -> LbEndpoint {
    let endpoint =
        Endpoint { address: Some(socket(address, port, Protocol::Tcp)), ..Default::default() };
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    }
}

pub(crate) fn locality(
    priority: u32,
    weight: Option<u32>,
    endpoints: Vec<LbEndpoint>,
) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        lb_endpoints: endpoints,
        load_balancing_weight: weight.map(|value| UInt32Value { value }),
        priority,
        ..Default::default()
    }
}

/// A cluster's endpoints, all alike and well.
pub(crate) fn assignment(cluster: &str, addresses: &[&str], port: u32) -> ClusterLoadAssignment {
    let well = |address: &&str| endpoint(address, port, 1, HealthStatus::Healthy);
    assigned(cluster, vec![locality(0, None, addresses.iter().map(well).collect())])
}

pub(crate) fn assigned(
    cluster: &str,
    endpoints: Vec<LocalityLbEndpoints>,
) -> ClusterLoadAssignment {
    ClusterLoadAssignment { cluster_name: cluster.into(), endpoints, ..Default::default() }
}
