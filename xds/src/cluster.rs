//! A cluster: where the endpoints of a service come from, and its policy.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster as Proto, cluster::EdsClusterConfig};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;

use crate::endpoints::Endpoints;
use crate::keys::Keys;
use crate::listener::check_transport;
use crate::resource::Told;
use crate::unfit::{Unfit, short};

/// What a cluster says of a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) endpoints: Source,
    /// What its metadata says.
    pub(crate) metadata: Keys,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A resource of that name.
    Eds(String),
    /// The cluster itself.
    Here(Arc<Told<Endpoints>>),
}

impl Cluster {
    pub(crate) fn read(proto: &Proto, notes: &mut Vec<String>) -> Result<Self, Unfit> {
        let metadata = Keys::of(proto.metadata.as_ref())?;
        check_transport(proto.transport_socket.as_ref())?;
        if !proto.transport_socket_matches.is_empty() {
            return Err(Unfit::Unsupported("transport_socket_matches"));
        }
        note_policy(proto, notes);
        for (is_there, what) in [
            (
                !proto.health_checks.is_empty(),
                "health_checks (write `health` in metadata \"weir\")",
            ),
            (proto.outlier_detection.is_some(), "outlier_detection"),
            (proto.circuit_breakers.is_some(), "circuit_breakers"),
            (proto.lb_subset_config.is_some(), "lb_subset_config"),
        ] {
            if is_there {
                notes.push(format!("its {what} are not looked at"));
            }
        }
        Ok(Self { endpoints: source(proto, notes)?, metadata })
    }
}

/// Whatever the policy is, slots choose: this is Maglev, and so consistent as a ring hash is.
fn note_policy(proto: &Proto, notes: &mut Vec<String>) {
    let policy = proto.lb_policy();
    if proto.load_balancing_policy.is_some() {
        notes.push("its load_balancing_policy is taken as MAGLEV".into());
    } else if !matches!(policy, LbPolicy::Maglev | LbPolicy::RingHash) {
        notes.push(format!("its lb_policy {} is taken as MAGLEV", policy.as_str_name()));
    }
}

fn source(proto: &Proto, notes: &mut Vec<String>) -> Result<Source, Unfit> {
    let given = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(given)) => *given,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(Unfit::ClusterType(short(&custom.name)));
        }
        None => i32::from(DiscoveryType::Static),
    };
    match DiscoveryType::try_from(given) {
        Ok(DiscoveryType::Eds) => eds(&proto.name, proto.eds_cluster_config.as_ref()),
        Ok(DiscoveryType::Static) => {
            let endpoints = proto.load_assignment.as_ref();
            let endpoints = endpoints.ok_or(Unfit::Missing("load_assignment"))?;
            // They have no bytes of their own: the cluster has them.
            Ok(Source::Here(Arc::new(Told::new(Endpoints::read(endpoints, notes)?, &[]))))
        }
        Ok(other) => Err(Unfit::ClusterType(other.as_str_name().into())),
        Err(_) => Err(Unfit::ClusterType(given.to_string())),
    }
}

fn eds(name: &str, config: Option<&EdsClusterConfig>) -> Result<Source, Unfit> {
    let name = match config.map_or("", |config| config.service_name.as_str()) {
        "" => name,
        service_name => service_name,
    };
    if !(1..=crate::NAME_BYTES_MAX).contains(&name.len()) {
        return Err(Unfit::Name);
    }
    let source = config.and_then(|config| config.eds_config.as_ref());
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
            Ok(Source::Eds(name.into()))
        }
        Some(_) => Err(Unfit::OtherSource),
    }
}
