//! Backends that were not written in a file.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_core::model::{Backend, Forward, Key, Service, ServiceSpec, Tunnel};

use crate::PortConfig;
use crate::problem::Problem;

/// See [`crate::with_backends`].
pub(crate) fn with_backends(
    service: &Service,
    backends: Vec<Backend>,
    ports: &[PortConfig],
) -> Result<Service, Vec<(Option<usize>, Problem)>> {
    let mut problems = against_ports(service.spec(), &backends, ports);
    let spec = ServiceSpec { backends, ..service.spec().clone() };
    match Service::new(spec) {
        Ok(service) if problems.is_empty() => Ok(service),
        Ok(_) => Err(problems),
        Err(findings) => {
            let found = findings.into_iter();
            problems.extend(found.map(|it| (place(it.key), Problem::Service(it.invalid))));
            Err(problems)
        }
    }
}

/// What backends need of the ports; as of those in a file, one stands for all that lack the same.
fn against_ports(
    spec: &ServiceSpec,
    backends: &[Backend],
    ports: &[PortConfig],
) -> Vec<(Option<usize>, Problem)> {
    let own = || ports.iter().flat_map(|port| port.addresses.iter().map(IpNet::addr));
    let is_own = |(_, backend): &(usize, &Backend)| own().any(|own| own == backend.address);
    let ours = backends.iter().enumerate().filter(is_own);
    let mut problems: Vec<_> =
        ours.map(|(i, it)| (Some(i), Problem::BackendIsOurs(it.address))).collect();
    if let Forward::Tunnel(Tunnel { source, .. }) = spec.forward {
        for (is_ipv4, family, example) in
            [(true, "IPv4", "10.0.0.2/24"), (false, "IPv6", "fd00::2/64")]
        {
            let is_family = |address: &IpAddr| address.is_ipv4() == is_ipv4;
            let has_source = source.is_some_and(|net| is_family(&net.addr()));
            let first = backends.iter().position(|backend| is_family(&backend.address));
            if first.is_some() && !has_source && !own().any(|own| is_family(&own)) {
                problems.push((first, Problem::NoTunnelSource { family, example }));
            }
        }
    }
    let mut unresolved = backends.iter().enumerate().filter(|(_, it)| it.static_hop.is_none());
    if !ports.iter().any(|port| port.kernel)
        && let Some((first, _)) = unresolved.next()
    {
        problems.push((Some(first), Problem::NeverResolves { others: unresolved.count() }));
    }
    problems
}

/// The backend that a key is of.
fn place(key: Key) -> Option<usize> {
    match key {
        Key::Backend(i)
        | Key::BackendAddress(i)
        | Key::BackendPort(i)
        | Key::BackendWeight(i)
        | Key::BackendMac(i) => Some(i),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n";
    const DOCUMENT: &str = "[[service]]\nname = 'web'\naddress = '10.0.0.100'\nport = 80\n\
                            protocol = 'tcp'\nforward = 'ipip'\n";

    fn backend(address: &str) -> Backend {
        let address = address.parse().unwrap();
        Backend { address, port: None, weight: 1, drain: false, static_hop: None }
    }

    #[test]
    fn what_a_file_is_told_of_its_backends_endpoints_are_told() {
        let ports = crate::parse("weir.toml", FILE).unwrap().ports;
        let service = crate::services("web.toml", DOCUMENT, &ports).unwrap().remove(0);
        let told = |addresses: &[&str]| {
            let backends = addresses.iter().map(|it| backend(it)).collect();
            let problems = with_backends(&service, backends, &ports).err().unwrap_or_default();
            problems.into_iter().map(|(i, it)| (i, it.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(told(&["10.0.0.11", "10.0.0.12"]), []);
        for (addresses, place, says) in [
            (&["10.0.0.11", "10.0.0.2"][..], 1, "this balancer's own address"),
            (&["10.0.0.11", "10.0.0.11"], 1, "is listed twice"),
            (&["224.0.0.1"], 0, "cannot be a server's address"),
            (&["10.0.0.11", "fd00::11"], 1, "no port has an IPv6 address"),
        ] {
            let told = told(addresses);
            assert!(told[0].0 == Some(place) && told[0].1.contains(says), "{told:?}");
            let list = addresses.iter().map(|it| format!("{{ address = '{it}' }}"));
            let list = list.collect::<Vec<_>>().join(", ");
            let text = format!("{DOCUMENT}backends = [{list}]\n");
            let in_file = crate::services("web.toml", &text, &ports).unwrap_err();
            let told: Vec<_> = told.into_iter().map(|(_, says)| says).collect();
            assert_eq!(in_file.problems().map(ToString::to_string).collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn a_document_has_services_only_and_errors_have_places() {
        let ports = crate::parse("weir.toml", FILE).unwrap().ports;
        let text = format!("{DOCUMENT}slots = 10\n[site]\n");
        let wrong = crate::services("web.toml", &text, &ports).unwrap_err();
        let places: Vec<_> = wrong
            .places()
            .map(|(at, it)| (at.map(|at| (at.line, at.column)), it.to_string()))
            .collect();
        assert_eq!(places.len(), 2, "{wrong}");
        assert_eq!(places[0].0, Some((7, 9)));
        assert_eq!(places[1].0, Some((8, 2)));
        assert!(places[1].1.contains("unknown key \"site\" in the document"), "{wrong}");
    }
}
