//! A listener, its cluster and the cluster's endpoints: a service.

use std::net::IpAddr;
use std::sync::Arc;

use lb_config::{PortConfig, Problem};
use lb_core::model::{Backend, Service, ServiceSpec, WEIGHT_MAX};

use crate::cluster::Cluster;
use crate::endpoints::{Condition, Endpoint, Endpoints};
use crate::keys::Keys;
use crate::listener::Listener;
use crate::unfit::{Unfit, short};

/// The backends of a service that the control plane says do not serve.
pub(crate) type Failed = Vec<(IpAddr, Option<u16>)>;

/// The service without its backends. What is more exact wins: the balancer's defaults, the cluster's
/// metadata, the listener's fields, the listener's metadata.
pub(crate) fn template(
    defaults: &Keys,
    ports: &[PortConfig],
    listener: &Listener,
    cluster: &Cluster,
) -> Result<Service, Vec<Unfit>> {
    let keys = defaults.and(&cluster.metadata).and(&listener.fields).and(&listener.metadata);
    let document = format!("[[service]]\n{}", keys.to_toml());
    let services = lb_config::services("the service", &document, ports);
    let services = services.map_err(|diagnostics| {
        diagnostics.problems().map(|problem| Unfit::Keys(told(problem))).collect::<Vec<_>>()
    })?;
    // The document has one table.
    services.into_iter().next().ok_or_else(|| vec![Unfit::Missing("name")])
}

/// `template` with `endpoints` behind it.
pub(crate) fn service(
    template: &Service,
    ports: &[PortConfig],
    endpoints: &Endpoints,
) -> Result<(Arc<Service>, Failed), Vec<Unfit>> {
    let spec = template.spec();
    let scale = Scale::of(&endpoints.0);
    let serving = serving(&endpoints.0);
    let mut backends = Vec::with_capacity(endpoints.0.len());
    let mut failed = Vec::new();
    for endpoint in &endpoints.0 {
        let interface = endpoint.static_hop.as_ref().and_then(|hop| hop.interface.as_ref());
        if let Some(name) = interface.filter(|name| ports.iter().all(|port| port.name != **name)) {
            return Err(vec![Unfit::NoSuchPort(endpoint.address, short(name))]);
        }
        let backend = Backend {
            address: endpoint.address,
            port: own_port(spec, endpoint),
            weight: scale.weight(endpoint.weight),
            drain: match endpoint.condition {
                // It has failed; its flows are not kept.
                Condition::Out => false,
                condition => serving != Some((condition, endpoint.priority)),
            },
            static_hop: endpoint.static_hop.clone(),
        };
        if endpoint.condition == Condition::Out {
            failed.push((backend.address, backend.port));
        }
        backends.push(backend);
    }
    let unfit = |(place, problem): (Option<usize>, Problem)| match place
        .and_then(|place| endpoints.0.get(place))
    {
        Some(endpoint) => Unfit::Endpoint(endpoint.address, told(&problem)),
        None => Unfit::Keys(told(&problem)),
    };
    match lb_config::with_backends(template, backends, ports) {
        Ok(service) => Ok((Arc::new(service), failed)),
        Err(problems) => Err(problems.into_iter().map(unfit).collect()),
    }
}

/// A problem, and what to write instead.
fn told(problem: &Problem) -> String {
    match problem.advice() {
        Some(advice) => format!("{problem}; {advice}"),
        None => problem.to_string(),
    }
}

/// The endpoint's port, where it is not the service's anyway. Whether the mode can set another one is
/// the model's to say.
fn own_port(spec: &ServiceSpec, endpoint: &Endpoint) -> Option<u16> {
    endpoint.port.filter(|port| spec.vip.ports.single() != Some(*port))
}

/// Who takes new flows: the first priority that has a good endpoint; else the first that has one which
/// is degraded. `None`: nobody.
fn serving(endpoints: &[Endpoint]) -> Option<(Condition, u32)> {
    [Condition::Good, Condition::Degraded].into_iter().find_map(|condition| {
        let those = endpoints.iter().filter(|it| it.condition == condition && it.weight > 0);
        Some((condition, those.map(|it| it.priority).min()?))
    })
}

/// From weights of xDS, which are 64 bits wide as products, to ours.
struct Scale {
    divisor: u64,
    largest: u64,
}

impl Scale {
    fn of(endpoints: &[Endpoint]) -> Self {
        let divisor = endpoints.iter().fold(0, |divisor, it| gcd(divisor, it.weight)).max(1);
        let largest = endpoints.iter().map(|it| it.weight / divisor).max().unwrap_or(0);
        Self { divisor, largest }
    }

    /// In proportion to the others; not 0, if it was not.
    fn weight(&self, weight: u64) -> u32 {
        let weight = weight / self.divisor;
        let max = u64::from(WEIGHT_MAX);
        if self.largest <= max {
            return u32::try_from(weight).unwrap_or(WEIGHT_MAX);
        }
        let scaled = u128::from(weight) * u128::from(max) / u128::from(self.largest);
        u32::try_from(scaled).unwrap_or(WEIGHT_MAX).max(u32::from(weight > 0))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
