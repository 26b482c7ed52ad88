//! The services: the model checks each; what they need of the ports is checked here.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_core::model::{
    AboveRate, Affinity, Backend, ClientAddress, Finding, Flows, Forward, FullNat, GUE_PORT,
    Invalid, Key, MssClamp, Service, ServiceSpec, StaticHop, SynBound, Tunnel, TunnelKind, Vip,
    ambiguous_returns, conflicts, is_name, pool_conflicts,
};

use super::ports::Ports;
use super::{health, value_or};
use crate::diagnostics::{Report, Span};
use crate::problem::Problem;
use crate::read::{At, Given, List};
use crate::scalar::{BackendState, ForwardMode, ServiceAddress};
use crate::spec;

/// A service that can be checked: nothing that it has to have is missing.
struct Draft<'a> {
    written: &'a At<spec::Service>,
    /// In the order of `spec.backends`: those that could be read.
    backends: Vec<&'a At<spec::Backend>>,
    spec: ServiceSpec,
}

/// The services that are valid by themselves.
pub(super) fn services(
    list: &List<spec::Service>,
    ports: &Ports,
    report: &mut Report,
) -> Vec<Service> {
    let mut drafts = Vec::new();
    for service in &list.items {
        let backends = service.value.backends.items.iter();
        // The others were reported, and half a backend would give misleading findings.
        let backends: Vec<_> = backends.filter(|backend| backend.sound).collect();
        for backend in &backends {
            check_backend(&backend.value, ports, report);
        }
        check_mode_keys(&service.value, report);
        if let Some(written) = &service.value.health {
            health::check_keys(written, report);
        }
        check_pool(&service.value, ports, report);
        if ports.sound {
            check_against_ports(&service.value, &backends, ports, report);
            health::check_ports(&service.value, ports, report);
        }
        drafts.extend(draft(service, backends));
    }
    check_conflicts(&drafts, report);
    drafts.into_iter().filter_map(|draft| check(draft, report)).collect()
}

fn draft<'a>(
    written: &'a At<spec::Service>,
    backends: Vec<&'a At<spec::Backend>>,
) -> Option<Draft<'a>> {
    let service = &written.value;
    let vip = Vip {
        address: service.address.0.as_ref()?.value.0,
        ports: service.port.0.as_ref()?.value.0,
        protocol: service.protocol.0.as_ref()?.value,
    };
    let spec = ServiceSpec {
        name: service.name.0.as_ref()?.value.clone(),
        vip,
        forward: forward(service)?,
        affinity: value_or(service.affinity, Affinity::default()),
        flows: value_or(service.flows, Flows::default()),
        idle_timeout: service.idle_timeout.map(|timeout| timeout.value),
        grace: service.grace.map(|grace| grace.value),
        slow_start: service.slow_start.map(|slow_start| slow_start.value),
        syn: service.syn.as_ref().and_then(|syn| syn_bound(&syn.value)),
        mss: service.mss.map_or(MssClamp::Keep, |mss| mss.value.0),
        slots: service.slots.map(|slots| slots.value.0),
        health: service.health.as_ref().and_then(|health| health::check(&health.value)),
        backends: backends.iter().filter_map(|backend| model_backend(&backend.value)).collect(),
    };
    Some(Draft { written, backends, spec })
}

/// `None`: its rate was not said well.
fn syn_bound(syn: &spec::Syn) -> Option<SynBound> {
    let rate = syn.rate.0.as_ref()?.value.0;
    Some(SynBound { rate, above: value_or(syn.above, AboveRate::default()) })
}

/// The mode with what other keys say of it.
fn forward(service: &spec::Service) -> Option<Forward> {
    let kind = match service.forward.0.as_ref()?.value {
        ForwardMode::L2dsr => return Some(Forward::L2dsr),
        ForwardMode::Nat => {
            let Some(prefix) = service.client_prefix else { return Some(Forward::Nat) };
            return prefix.value.0.map(Forward::Nat46);
        }
        ForwardMode::FullNat => {
            let client_address = value_or(service.client_address, ClientAddress::default());
            let pool = service.pool?.value.0?.0;
            return Some(Forward::FullNat(FullNat { pool, client_address }));
        }
        ForwardMode::Ipip => TunnelKind::Ipip,
        ForwardMode::Gue => {
            TunnelKind::Gue { port: service.gue_port.map_or(GUE_PORT, |port| port.value.0) }
        }
        ForwardMode::Gre => TunnelKind::Gre,
    };
    Some(Forward::Tunnel(Tunnel { kind, source: service.outer_source.map(|net| net.value) }))
}

/// Notes keys that belong to other modes.
fn check_mode_keys(service: &spec::Service, report: &mut Report) {
    let Some(mode) = &service.forward.0 else { return };
    if mode.value == ForwardMode::FullNat {
        if service.pool.is_none() {
            report.add(mode.span, Problem::NoPool);
        }
    } else {
        let spans = [
            ("pool", service.pool.map(|pool| pool.span)),
            ("client_address", service.client_address.map(|how| how.span)),
        ];
        for (key, span) in spans {
            if let Some(span) = span {
                report.add(span, Problem::KeyOfOtherMode { key, modes: "\"fullnat\"" });
            }
        }
    }
    if let Some(prefix) = service.client_prefix.filter(|_| mode.value != ForwardMode::Nat) {
        let modes = "\"nat\"";
        report.add(prefix.span, Problem::KeyOfOtherMode { key: "client_prefix", modes });
    }
    if let Some(source) = service.outer_source.filter(|_| !mode.value.is_tunnel()) {
        let modes = "\"ipip\"`, `\"gue\"` or `\"gre\"";
        report.add(source.span, Problem::KeyOfOtherMode { key: "outer_source", modes });
    }
    if let Some(port) = service.gue_port.filter(|_| mode.value != ForwardMode::Gue) {
        report.add(port.span, Problem::KeyOfOtherMode { key: "gue_port", modes: "\"gue\"" });
    }
}

/// `Some` for every sound backend: its address is there.
fn model_backend(backend: &spec::Backend) -> Option<Backend> {
    Some(Backend {
        address: backend.address.0.as_ref()?.value,
        port: backend.port.map(|port| port.value.0),
        weight: backend.weight.map_or(1, |weight| weight.value.0),
        drain: backend.state.is_some_and(|state| state.value == BackendState::Drain),
        static_hop: backend.mac.map(|mac| StaticHop {
            mac: mac.value,
            interface: backend.interface.as_ref().map(|interface| interface.value.clone()),
        }),
    })
}

/// Checks what a backend says of the balancer's ports.
fn check_backend(backend: &spec::Backend, ports: &Ports, report: &mut Report) {
    if let Some(interface) = &backend.interface {
        let known = ports.configs.iter().any(|port| port.name == interface.value);
        if backend.mac.is_none() {
            report.add(interface.span, Problem::InterfaceWithoutMac);
        } else if ports.sound && !known {
            let ports = ports.configs.iter().map(|port| port.name.clone()).collect();
            let given = interface.value.clone();
            report.add(interface.span, Problem::NoSuchPort { given, ports });
        }
    }
    if let Some(address) = &backend.address.0
        && let Some(&own) = ports.addresses.get(&address.value)
    {
        report.add_conflict(address.span, own, Problem::BackendIsOurs(address.value));
    }
}

/// Checks that a pool has none of the ports' addresses, and none that no host may have.
fn check_pool(service: &spec::Service, ports: &Ports, report: &mut Report) {
    let Some(At { value: Given(Some(ServiceAddress(pool))), span, .. }) = service.pool else {
        return;
    };
    let own = ports.addresses.iter().filter(|(address, _)| pool.contains(*address));
    // One stands for all; the same one, however often it is asked.
    if let Some((&address, &own)) = own.min_by_key(|(address, _)| **address) {
        let problem = Problem::PoolIsOurs { pool, address };
        report.add_conflict(span, own, problem);
        return;
    }
    let mut nets = ports.configs.iter().flat_map(|port| &port.addresses);
    let edge = |net: &IpNet| {
        let in_pool = |address: &IpAddr| pool.contains(address);
        Some((no_hosts(*net).find(in_pool)?, *ports.addresses.get(&net.addr())?, *net))
    };
    if let Some((address, own, net)) = nets.find_map(edge) {
        let problem = Problem::PoolHasNoHost { pool, address, net: net.trunc() };
        report.add_conflict(span, own, problem);
    }
}

/// The addresses of a subnet that are no host's: the subnet's own (RFC 1122 §3.2.1.3; of IPv6 any
/// router's, RFC 4291 §2.6.1), and of IPv4 the one for all hosts. Links between two have none (RFC 3021,
/// RFC 6164).
fn no_hosts(net: IpNet) -> impl Iterator<Item = IpAddr> {
    let is_link = net.max_prefix_len() - net.prefix_len() < 2;
    let edges = [Some(net.network()), net.addr().is_ipv4().then(|| net.broadcast())];
    edges.into_iter().flatten().filter(move |_| !is_link)
}

/// Checks that the ports can reach the backends of a service. One problem stands for all backends
/// that have it: it is the port that is missing something, or the service.
fn check_against_ports(
    service: &spec::Service,
    backends: &[&At<spec::Backend>],
    ports: &Ports,
    report: &mut Report,
) {
    let addresses = || backends.iter().filter_map(|backend| backend.value.address.0.as_ref());
    if service.forward.0.is_some_and(|forward| forward.value.is_tunnel()) {
        type OfFamily = fn(&IpAddr) -> bool;
        let families: [(OfFamily, &str, &str); 2] =
            [(IpAddr::is_ipv4, "IPv4", "10.0.0.2/24"), (IpAddr::is_ipv6, "IPv6", "fd00::2/64")];
        for (is_family, family, example) in families {
            let has_prefix = service.outer_source.is_some_and(|net| is_family(&net.value.addr()));
            let first = addresses().find(|address| is_family(&address.value) && !has_prefix);
            if let Some(first) = first.filter(|_| !ports.addresses.keys().any(is_family)) {
                report.add(first.span, Problem::NoTunnelSource { family, example });
            }
        }
    }
    if !ports.configs.iter().any(|port| port.kernel) {
        let mut unresolved = backends.iter().filter(|backend| backend.value.mac.is_none());
        if let Some(first) = unresolved.next() {
            report.add(first.span, Problem::NeverResolves { others: unresolved.count() });
        }
    }
}

/// Notes names and VIPs that two services have.
fn check_conflicts(drafts: &[Draft<'_>], report: &mut Report) {
    // A name that is wrong by itself is not worth comparing.
    let drafts: Vec<_> = drafts.iter().filter(|draft| is_name(&draft.spec.name)).collect();
    let specs = drafts.iter().map(|draft| (draft.spec.name.as_str(), draft.spec.vip));
    let returns = ambiguous_returns(drafts.iter().map(|draft| &draft.spec));
    let pools = pool_conflicts(drafts.iter().map(|draft| &draft.spec));
    for conflict in conflicts(specs).into_iter().chain(returns).chain(pools) {
        let Finding { key, invalid } = conflict.finding;
        let (at, first) = (drafts[conflict.place], drafts[conflict.first]);
        let first = first.span(conflict.first_key);
        report.add_conflict(at.span(key), first, Problem::Service(invalid));
    }
}

/// Lets the model check a service by itself.
fn check(draft: Draft<'_>, report: &mut Report) -> Option<Service> {
    let Draft { written, backends, spec } = draft;
    let service_port = spec.vip.ports.single();
    let server = |backend: &At<spec::Backend>| {
        let port = backend.value.port.map_or(service_port, |port| Some(port.value.0));
        (backend.value.address.0.map(|address| address.value), port)
    };
    // Backwards, so that the first of several alike stays.
    let first: HashMap<_, _> = backends.iter().rev().map(|b| (server(b), b.span)).collect();
    let service = Service::new(spec);
    for Finding { key, invalid } in service.as_ref().err().into_iter().flatten() {
        let (at, problem) = (span(written, &backends, *key), Problem::Service(invalid.clone()));
        match (key, invalid) {
            (Key::Backend(place), Invalid::DuplicateBackend(_)) => {
                let first = first.get(&server(backends[*place]));
                report.add_conflict(at, first.copied().unwrap_or(at), problem);
            }
            _ => report.add(at, problem),
        }
    }
    service.ok()
}

impl Draft<'_> {
    fn span(&self, key: Key) -> Span {
        span(self.written, &self.backends, key)
    }
}

/// Where a key of a service stands; of one that is absent, the table that could have it.
fn span(service: &At<spec::Service>, backends: &[&At<spec::Backend>], key: Key) -> Span {
    let spec = &service.value;
    let of_backend = |i: usize, key: fn(&spec::Backend) -> Option<Span>| {
        backends.get(i).map(|backend| key(&backend.value).unwrap_or(backend.span))
    };
    let written = match key {
        Key::Name => spec.name.0.as_ref().map(|name| name.span),
        Key::Address => spec.address.0.as_ref().map(|address| address.span),
        Key::Port => spec.port.0.as_ref().map(|port| port.span),
        Key::OuterSource => spec.outer_source.as_ref().map(|net| net.span),
        Key::GuePort => spec.gue_port.as_ref().map(|port| port.span),
        Key::Pool => spec.pool.as_ref().map(|pool| pool.span),
        Key::ClientPrefix => spec.client_prefix.as_ref().map(|prefix| prefix.span),
        Key::ClientAddress => spec.client_address.as_ref().map(|how| how.span),
        Key::IdleTimeout => spec.idle_timeout.as_ref().map(|timeout| timeout.span),
        Key::Grace => spec.grace.as_ref().map(|grace| grace.span),
        Key::Flows => spec.flows.as_ref().map(|flows| flows.span),
        Key::Mss => spec.mss.as_ref().map(|mss| mss.span),
        Key::Syn => spec.syn.as_ref().map(|syn| syn.span),
        Key::SynRate => spec
            .syn
            .as_ref()
            .map(|syn| syn.value.rate.0.as_ref().map_or(syn.span, |rate| rate.span)),
        Key::Slots => spec.slots.as_ref().map(|slots| slots.span),
        Key::Check(key) => spec.health.as_ref().map(|health| health::span(health, key)),
        Key::Backends => None,
        Key::Backend(i) => of_backend(i, |_| None),
        Key::BackendAddress(i) => of_backend(i, |b| b.address.0.as_ref().map(|a| a.span)),
        Key::BackendPort(i) => of_backend(i, |b| b.port.as_ref().map(|port| port.span)),
        Key::BackendWeight(i) => of_backend(i, |b| b.weight.as_ref().map(|weight| weight.span)),
        Key::BackendMac(i) => of_backend(i, |b| b.mac.as_ref().map(|mac| mac.span)),
    };
    written.unwrap_or(service.span)
}
