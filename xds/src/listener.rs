//! A listener: the address of a service, and the cluster behind it.

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, socket_address};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener as Proto, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{
    Route, UdpProxyConfig, udp_proxy_config,
};
use envoy_types::pb::envoy::r#type::v3::hash_policy;
use envoy_types::pb::google::protobuf::{Any, Duration};
use envoy_types::pb::xds::r#type::matcher::v3::{Matcher, matcher};

use crate::keys::Keys;
use crate::resource::{socket, unpack};
use crate::unfit::{Unfit, short};

/// The transport socket that does nothing.
const RAW: &str = "envoy.transport_sockets.raw_buffer";

/// What a listener says of a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listener {
    /// The cluster that packets are for.
    pub(crate) cluster: String,
    /// What its own fields say.
    pub(crate) fields: Keys,
    /// What its metadata says, which is more exact.
    pub(crate) metadata: Keys,
}

impl Listener {
    pub(crate) fn read(proto: &Proto, notes: &mut Vec<String>) -> Result<Self, Unfit> {
        let metadata = Keys::of(proto.metadata.as_ref())?;
        let socket = socket(proto.address.as_ref())?;
        if !proto.additional_addresses.is_empty() {
            return Err(Unfit::Unsupported("a second address (write a listener for each)"));
        }
        if proto.fcds_config.is_some() || proto.filter_chain_matcher.is_some() {
            return Err(Unfit::Unsupported("a choice of filter chains"));
        }
        let is_udp = socket.protocol == i32::from(socket_address::Protocol::Udp);
        let proxy = if is_udp { udp_proxy(proto, notes)? } else { tcp_proxy(proto, notes)? };
        let mut fields = proxy
            .keys
            .with("name", &proto.name)
            .with("address", &socket.address)
            .with("protocol", if is_udp { "udp" } else { "tcp" });
        // Without, the metadata has to say which.
        match &socket.port_specifier {
            Some(socket_address::PortSpecifier::PortValue(port)) if *port > 0 => {
                fields = fields.with_number("port", *port);
            }
            Some(socket_address::PortSpecifier::NamedPort(_)) => {
                return Err(Unfit::Unsupported("a port's name"));
            }
            _ => {}
        }
        Ok(Self { cluster: proxy.cluster, fields, metadata })
    }
}

/// What a proxy filter says.
struct Proxy {
    cluster: String,
    keys: Keys,
}

fn tcp_proxy(proto: &Proto, notes: &mut Vec<String>) -> Result<Proxy, Unfit> {
    const KNOWN: &str = "of type envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    if let Some(filter) = proto.listener_filters.first() {
        return Err(Unfit::UnknownFilter(short(&filter.name), KNOWN));
    }
    let chains = || proto.filter_chains.iter().chain(&proto.default_filter_chain);
    let mut all = chains();
    let (Some(chain), None) = (all.next(), all.next()) else {
        return Err(Unfit::FilterChains(chains().count()));
    };
    check_chain(chain)?;
    let [filter] = chain.filters.as_slice() else {
        return Err(Unfit::Filters(chain.filters.len()));
    };
    let unknown = || Unfit::UnknownFilter(short(&filter.name), KNOWN);
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(unknown());
    };
    let proxy = unpack::<TcpProxy>(config).ok_or_else(unknown)??;
    if proxy.tunneling_config.is_some() {
        return Err(Unfit::Unsupported("tunneling_config"));
    }
    let cluster = match proxy.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(cluster)) => cluster,
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(_)) => {
            return Err(Unfit::Unsupported(
                "weighted_clusters (write one cluster, with weights of its endpoints)",
            ));
        }
        None => return Err(Unfit::Missing("cluster")),
    };
    let mut keys = Keys::default();
    match proxy.hash_policy.first().and_then(|policy| policy.policy_specifier.as_ref()) {
        Some(hash_policy::PolicySpecifier::SourceIp(_)) => keys = keys.with("affinity", "client"),
        Some(_) => notes.push("its hash_policy is not source_ip: flows go by their tuple".into()),
        None => {}
    }
    Ok(Proxy { cluster, keys: with_timeout(keys, proxy.idle_timeout) })
}

fn check_chain(chain: &FilterChain) -> Result<(), Unfit> {
    if chain.filter_chain_match.as_ref().is_some_and(|it| *it != FilterChainMatch::default()) {
        return Err(Unfit::Unsupported("filter_chain_match"));
    }
    check_transport(chain.transport_socket.as_ref())
}

/// Nothing is encrypted or decrypted here.
pub(crate) fn check_transport(socket: Option<&TransportSocket>) -> Result<(), Unfit> {
    match socket {
        Some(socket) if socket.name != RAW => Err(Unfit::Unsupported("a transport_socket")),
        _ => Ok(()),
    }
}

fn udp_proxy(proto: &Proto, notes: &mut Vec<String>) -> Result<Proxy, Unfit> {
    const KNOWN: &str = "of type envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
    if !proto.filter_chains.is_empty() || proto.default_filter_chain.is_some() {
        return Err(Unfit::Unsupported("a filter chain for UDP"));
    }
    let [filter] = proto.listener_filters.as_slice() else {
        return Err(Unfit::Filters(proto.listener_filters.len()));
    };
    let unknown = || Unfit::UnknownFilter(short(&filter.name), KNOWN);
    let Some(listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(unknown());
    };
    let proxy = unpack::<UdpProxyConfig>(config).ok_or_else(unknown)??;
    if proxy.tunneling_config.is_some() || !proxy.session_filters.is_empty() {
        return Err(Unfit::Unsupported("a filter of UDP sessions"));
    }
    let mut keys = Keys::default();
    match proxy.hash_policies.first().and_then(|policy| policy.policy_specifier.as_ref()) {
        Some(udp_proxy_config::hash_policy::PolicySpecifier::SourceIp(true)) => {
            keys = keys.with("affinity", "client");
        }
        Some(_) => {
            notes.push("its hash_policies are not source_ip: flows go by their tuple".into());
        }
        None => {}
    }
    if proxy.use_per_packet_load_balancing {
        keys = keys.with("flows", "datagram");
    }
    let cluster = udp_cluster(proxy.route_specifier)?;
    Ok(Proxy { cluster, keys: with_timeout(keys, proxy.idle_timeout) })
}

fn udp_cluster(route: Option<udp_proxy_config::RouteSpecifier>) -> Result<String, Unfit> {
    let matcher = match route {
        // Servers write it still; it is the older way to say the same.
        #[expect(deprecated, reason = "it is read, not written")]
        Some(udp_proxy_config::RouteSpecifier::Cluster(cluster)) => return Ok(cluster),
        Some(udp_proxy_config::RouteSpecifier::Matcher(matcher)) => matcher,
        None => return Err(Unfit::Missing("cluster")),
    };
    let route = only_action(&matcher).and_then(unpack::<Route>);
    let conditions = Unfit::Unsupported("a matcher with conditions (write `on_no_match` only)");
    Ok(route.ok_or(conditions)??.cluster)
}

/// What a matcher without conditions does.
fn only_action(matcher: &Matcher) -> Option<&Any> {
    let otherwise = matcher.on_no_match.as_ref().filter(|_| matcher.matcher_type.is_none())?;
    match otherwise.on_match.as_ref()? {
        matcher::on_match::OnMatch::Action(action) => action.typed_config.as_ref(),
        matcher::on_match::OnMatch::Matcher(_) => None,
    }
}

/// A timeout of zero is none in xDS, and says nothing here.
fn with_timeout(keys: Keys, timeout: Option<Duration>) -> Keys {
    let milliseconds = timeout.map_or(0, |timeout| {
        timeout.seconds.saturating_mul(1000).saturating_add(i64::from(timeout.nanos) / 1_000_000)
    });
    if milliseconds > 0 { keys.with("idle_timeout", &format!("{milliseconds}ms")) } else { keys }
}
