//! From what was written to what is valid.

mod api;
mod endpoints;
mod feeds;
mod health;
mod peers;
mod ports;
mod services;

use std::collections::HashMap;
use std::path::Path;

pub(crate) use endpoints::with_backends;

use lb_core::model::{DesiredState, Service, is_name};

use crate::diagnostics::{Report, Span};
use crate::problem::Problem;
use crate::read::{At, List, Optional};
use crate::spec;
use crate::{
    Config, DEMO_HASH_KEY, Dataplane, EAL_ARGS_MAX, PortConfig, SITE_NAME_DEFAULT, STATE_DIR, Site,
    WORKERS_MAX, Warning, Workers,
};

/// Checks all of `file`. `None`, or a report that is not empty: it is not valid.
pub(crate) fn config(file: spec::File, report: &mut Report) -> Option<Config> {
    let site_spec = file.site.map(|site| site.value).unwrap_or_default();
    let hash_key = site_spec.hash_key.map(|key| key.value);
    let site = site(site_spec, &file.peer, report);
    let dataplane =
        dataplane(file.dataplane.map(|plane| plane.value).unwrap_or_default(), &site, report);
    let api = file.api.map(|api| api::api(&api, report));
    let ports = ports::Ports::new(file.port, report);
    let feeds = feeds::feeds(&file.feed, report);
    let services = services::services(&file.service, &ports, report);
    if report.count() > 0 {
        return None;
    }
    let desired = DesiredState::new(hash_key.unwrap_or(DEMO_HASH_KEY), services)
        .map_err(|findings| {
            for (place, finding) in findings {
                let problem = Problem::Service(finding.invalid);
                match file.service.items.get(place) {
                    Some(service) => report.add(service.span, problem),
                    None => report.add_general(problem),
                }
            }
        })
        .ok()?;
    let warnings = if hash_key.is_none() { vec![Warning::DemoHashKey] } else { Vec::new() };
    Some(Config { site, dataplane, api, ports: ports.configs, feeds, desired, warnings })
}

/// Checks the services of a document, and what they need of ports that are valid.
pub(crate) fn document(
    document: &spec::Document,
    ports: &[PortConfig],
    report: &mut Report,
) -> Vec<Service> {
    services::services(&document.service, &ports::Ports::known(ports), report)
}

fn site(spec: spec::Site, peers: &List<spec::Peer>, report: &mut Report) -> Site {
    let peering = peers::peering(&spec, peers, report);
    if let Some(name) = spec.name.as_ref().filter(|name| !is_name(&name.value)) {
        report.add(name.span, Problem::BadName);
    }
    Site { name: spec.name.map_or_else(|| SITE_NAME_DEFAULT.into(), |name| name.value), peering }
}

fn dataplane(spec: spec::Dataplane, site: &Site, report: &mut Report) -> Dataplane {
    let first_above = spec.eal_args.items.get(EAL_ARGS_MAX).map(|arg| arg.span);
    bounded("arguments", spec.eal_args.items.len(), EAL_ARGS_MAX, first_above, report);
    Dataplane {
        workers: spec.workers.map_or(Workers::Auto, |workers| cpus(&workers, report)),
        hugepages: value_or(spec.hugepages, crate::Hugepages::default()),
        memory_mb: spec.memory_mb.map_or(spec::MEMORY_MB_DEFAULT, |size| size.value.0),
        flows_max: spec.flows_max.map_or(spec::FLOWS_MAX_DEFAULT, |flows| flows.value.0),
        state_dir: spec
            .state_dir
            .map_or_else(|| Path::new(STATE_DIR).join(&site.name), |dir| dir.value.0.into()),
        idle: value_or(spec.idle, crate::Idle::default()),
        eal_args: spec.eal_args.items.into_iter().map(|arg| arg.value.0).collect(),
        punts_per_second: spec
            .punts_per_second
            .map_or(spec::PUNTS_PER_SECOND_DEFAULT, |rate| rate.value.0),
    }
}

fn cpus(workers: &At<spec::Workers>, report: &mut Report) -> Workers {
    let cpus = match &workers.value {
        spec::Workers::Auto => return Workers::Auto,
        spec::Workers::Cpus(cpus) => cpus,
    };
    if cpus.is_empty() && workers.sound {
        report.add(workers.span, Problem::NoWorker);
    }
    bounded("workers", cpus.len(), WORKERS_MAX, Some(workers.span), report);
    let mut seen = Distinct::new("CPU", "a CPU has one worker: remove one of the two");
    for cpu in cpus {
        seen.check(cpu.value.0, cpu.span, report);
    }
    Workers::Cpus(cpus.iter().map(|cpu| cpu.value.0).collect())
}

fn value_or<T>(written: Optional<T>, default: T) -> T {
    written.map_or(default, |written| written.value)
}

/// Notes a list that is longer than it may be.
fn bounded(what: &'static str, given: usize, max: usize, at: Option<Span>, report: &mut Report) {
    if let Some(at) = at.filter(|_| given > max) {
        report.add(at, Problem::TooMany { what, given, max });
    }
}

/// Values that may be written once each, and where that was.
struct Distinct<T> {
    what: &'static str,
    fix: &'static str,
    seen: HashMap<T, Span>,
}

impl<T: std::hash::Hash + Eq + Clone + ToString> Distinct<T> {
    fn new(what: &'static str, fix: &'static str) -> Self {
        Self { what, fix, seen: HashMap::new() }
    }

    /// Notes `value`, if it was seen before.
    fn check(&mut self, value: T, span: Span, report: &mut Report) {
        if let Some(&first) = self.seen.get(&value) {
            let given = value.to_string();
            let problem = Problem::Duplicate { what: self.what, given, fix: self.fix };
            report.add_conflict(span, first, problem);
        } else {
            self.seen.insert(value, span);
        }
    }
}
