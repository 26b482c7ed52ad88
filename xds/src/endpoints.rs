//! The endpoints of a cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Metadata, socket_address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use lb_core::model::{BACKENDS_MAX, Invalid, StaticHop};

use crate::keys::ours;
use crate::resource::socket;
use crate::unfit::{Unfit, short};

/// The endpoints of a cluster, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoints(pub(crate) Vec<Endpoint>);

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    /// `None`: the service's.
    pub(crate) port: Option<u16>,
    /// 0 is first.
    pub(crate) priority: u32,
    /// Its own weight times its locality's.
    pub(crate) weight: u64,
    pub(crate) condition: Condition,
    pub(crate) static_hop: Option<StaticHop>,
}

/// What the control plane says of an endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It serves: it is well, or nothing is known.
    Good,
    /// It serves only where nobody else does.
    Degraded,
    /// It keeps the flows that it has.
    Draining,
    /// It does not serve.
    Out,
}

impl Condition {
    /// A status that is not known yet says nothing.
    fn of(status: HealthStatus) -> Self {
        match status {
            HealthStatus::Unknown | HealthStatus::Healthy => Self::Good,
            HealthStatus::Degraded => Self::Degraded,
            HealthStatus::Draining => Self::Draining,
            HealthStatus::Unhealthy | HealthStatus::Timeout => Self::Out,
        }
    }
}

impl Endpoints {
    pub(crate) fn read(
        proto: &ClusterLoadAssignment,
        notes: &mut Vec<String>,
    ) -> Result<Self, Unfit> {
        let policy = proto.policy.as_ref();
        if policy.is_some_and(|policy| !policy.drop_overloads.is_empty()) {
            notes.push("its drop_overloads are not looked at".into());
        }
        let weighted = weighted_priorities(&proto.endpoints);
        let mut all = Vec::new();
        for locality in &proto.endpoints {
            let weight = match &locality.load_balancing_weight {
                Some(weight) => weight.value,
                // Where others of the priority have one, the protocol gives it nothing.
                None => u32::from(!weighted.contains(&locality.priority)),
            };
            let listed = listed(locality)?;
            if all.len() + listed.len() > BACKENDS_MAX {
                let count = all.len() + listed.len();
                return Err(Unfit::Service(Invalid::TooManyBackends(count)));
            }
            for endpoint in listed {
                all.push(Endpoint::read(endpoint, locality.priority, weight)?);
            }
        }
        Ok(Self(all))
    }
}

/// The priorities where some locality has a weight.
fn weighted_priorities(localities: &[LocalityLbEndpoints]) -> BTreeSet<u32> {
    let weighted = localities.iter().filter(|it| it.load_balancing_weight.is_some());
    weighted.map(|it| it.priority).collect()
}

fn listed(locality: &LocalityLbEndpoints) -> Result<&[LbEndpoint], Unfit> {
    match &locality.lb_config {
        None => Ok(&locality.lb_endpoints),
        Some(_) => Err(Unfit::Unsupported("a locality's lb_config (write `lb_endpoints`)")),
    }
}

impl Endpoint {
    fn read(proto: &LbEndpoint, priority: u32, locality_weight: u32) -> Result<Self, Unfit> {
        let endpoint = match &proto.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => {
                return Err(Unfit::Unsupported("endpoint_name (write the endpoint here)"));
            }
            None => return Err(Unfit::Missing("endpoint")),
        };
        let socket = socket(endpoint.address.as_ref())?;
        let address: IpAddr = socket.address.parse().map_err(|_| Unfit::NotAnAddress {
            given: short(&socket.address),
            wanted: " of an endpoint",
        })?;
        let port = match &socket.port_specifier {
            None => 0,
            Some(socket_address::PortSpecifier::PortValue(port)) => *port,
            Some(socket_address::PortSpecifier::NamedPort(_)) => {
                return Err(Unfit::Unsupported("a port's name"));
            }
        };
        let port = u16::try_from(port).map_err(|_| Unfit::NotAPort(port))?;
        let weight = proto.load_balancing_weight.as_ref().map_or(1, |weight| weight.value);
        Ok(Self {
            address,
            port: Some(port).filter(|port| *port > 0),
            priority,
            weight: u64::from(weight) * u64::from(locality_weight),
            condition: Condition::of(proto.health_status()),
            static_hop: static_hop(address, proto.metadata.as_ref())?,
        })
    }
}

/// Where its frames go, if the metadata says so.
fn static_hop(address: IpAddr, metadata: Option<&Metadata>) -> Result<Option<StaticHop>, Unfit> {
    let Some(given) = ours(metadata) else { return Ok(None) };
    let unfit = || Unfit::EndpointMetadata(address.to_string());
    let (mut mac, mut interface) = (None, None);
    for (key, value) in &given.fields {
        let place = match key.as_str() {
            "mac" => &mut mac,
            "interface" => &mut interface,
            _ => return Err(unfit()),
        };
        match &value.kind {
            Some(ValueKind::StringValue(text)) => *place = Some(text.clone()),
            _ => return Err(unfit()),
        }
    }
    let mac = mac.ok_or_else(unfit)?.parse().map_err(|_| unfit())?;
    Ok(Some(StaticHop { mac, interface }))
}
