//! What another configuration would change, put into a message.

use std::collections::BTreeMap;

use lb_core::continuity::{Moves, moves};
use lb_core::model::{Backend, DesiredState, ServiceSpec};
use lb_core::rate::Tick;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::NextHops;
use lb_core::tables::{ServiceTable, Tables};

use super::View;
use super::proto::{Action, BackendPlan, PlanResponse, ServicePlan};
use crate::control::takes_no_restart;
use crate::offline;
use crate::source::State;

/// What would change if `text` were loaded. It costs as much as loading it.
pub(super) fn plan(view: &View, file_name: &str, text: &str, now: Tick) -> PlanResponse {
    let version = view.tables.version;
    let refused = |reason: String| PlanResponse { reason, version, ..Default::default() };
    let config = match lb_config::parse(file_name, text) {
        Ok(config) => config,
        Err(invalid) => return refused(invalid.to_string()),
    };
    if let Err(error) = takes_no_restart(&view.config, &config) {
        return refused(error.to_string());
    }
    // Of what other sources want nothing changes, and so nothing is shown.
    let wanted = match view.wanted.with(State::of_file(&config)) {
        Ok(wanted) => wanted,
        Err(overlaps) => return refused(overlaps.to_string()),
    };
    let new = tables(view, wanted.desired(), now);
    PlanResponse { valid: true, services: services(view, &new), version, ..Default::default() }
}

/// The tables that it would make.
fn tables(view: &View, wanted: &DesiredState, now: Tick) -> Tables {
    let desired = view.drains.retained(wanted).applied_to(wanted);
    // Those that are not known yet are taken to be on the link.
    let mut next_hops: NextHops = offline::next_hops(&desired, &view.tables.ports);
    next_hops.extend(view.next_hops.iter().map(|(address, way)| (*address, way.clone())));
    let circumstances = Circumstances {
        health: Some(&view.health),
        now,
        ..Circumstances::new(&view.tables.ports, &next_hops)
    };
    compile(&desired, &circumstances, Some(&view.tables))
}

/// The services that differ, in the order of the new file; then those that are gone.
fn services(view: &View, new: &Tables) -> Vec<ServicePlan> {
    let name = |table: &ServiceTable| table.source.spec().name.clone();
    let mut old: BTreeMap<String, &ServiceTable> =
        view.tables.services.iter().map(|table| (name(table), &**table)).collect();
    let mut plans: Vec<ServicePlan> = new
        .services
        .iter()
        .filter_map(|table| service(view, old.remove(&name(table)), table))
        .collect();
    let gone = view.tables.services.iter().filter(|table| old.contains_key(&name(table)));
    plans.extend(gone.map(|table| {
        let tracked = view.tables.tracker.count(table.id).into();
        ServicePlan {
            name: name(table),
            action: Action::Removed.into(),
            backends: backends(Some(table.source.spec()), None),
            tracked_flows: tracked,
            tracked_flows_moved: tracked,
            ..Default::default()
        }
    }));
    plans
}

/// `None`: it stays as it is.
fn service(view: &View, old: Option<&ServiceTable>, new: &ServiceTable) -> Option<ServicePlan> {
    let spec = new.source.spec();
    let Some(old) = old else {
        return Some(ServicePlan {
            name: spec.name.clone(),
            action: Action::Added.into(),
            backends: backends(None, Some(spec)),
            slots: new.slots.len().into(),
            ..Default::default()
        });
    };
    let Moves { moved, of } = moves(old, new);
    let keys = keys(old.source.spec(), spec);
    let backends = backends(Some(old.source.spec()), Some(spec));
    if keys.is_empty() && backends.is_empty() && moved == 0 {
        return None;
    }
    let (is_same, tracked) = (old.id == new.id, view.tables.tracker.count(old.id).into());
    let counts = view.flows.range((old.id, 0)..=(old.id, u16::MAX));
    let stranded = counts.filter(|((_, place), _)| !new.may_serve(*place));
    let stranded = stranded.map(|(_, flows)| flows).sum();
    Some(ServicePlan {
        name: spec.name.clone(),
        action: if is_same { Action::Changed } else { Action::Replaced }.into(),
        keys,
        backends,
        slots_moved: moved,
        slots: of,
        share_moved: Moves { moved, of }.share(),
        tracked_flows: tracked,
        tracked_flows_moved: if is_same { stranded } else { tracked },
    })
}

/// The keys of the file that differ, but for the backends.
fn keys(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    let differs = [
        ("address", old.vip.address != new.vip.address),
        ("port", old.vip.ports != new.vip.ports),
        ("protocol", old.vip.protocol != new.vip.protocol),
        ("forward", old.forward != new.forward),
        ("affinity", old.affinity != new.affinity),
        ("flows", old.flows != new.flows),
        ("mss", old.mss != new.mss),
        ("syn", old.syn != new.syn),
        ("idle_timeout", old.idle_timeout != new.idle_timeout),
        ("grace", old.grace != new.grace),
        ("slow_start", old.slow_start != new.slow_start),
        ("slots", old.slots != new.slots),
        ("health", old.health != new.health),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.into()).collect()
}

/// The backends that differ: first those that are wanted, then those that are no more.
fn backends(old: Option<&ServiceSpec>, new: Option<&ServiceSpec>) -> Vec<BackendPlan> {
    let key = |backend: &Backend| (backend.address, backend.port);
    let of = |spec: Option<&ServiceSpec>| spec.map(|it| it.backends.clone()).unwrap_or_default();
    let mut before: BTreeMap<_, Backend> = of(old).into_iter().map(|it| (key(&it), it)).collect();
    let plan = |before: Option<&Backend>, after: Option<&Backend>| {
        let backend = after.or(before)?;
        let action = match (before, after) {
            (None, _) => Action::Added,
            (_, None) => Action::Removed,
            (Some(before), Some(after)) if before == after => return None,
            _ => Action::Changed,
        };
        Some(BackendPlan {
            address: backend.address.to_string(),
            port: backend.port.map(u32::from),
            action: action.into(),
            weight_before: before.map_or(0, Backend::effective_weight),
            weight: after.map_or(0, Backend::effective_weight),
        })
    };
    let mut plans: Vec<_> = of(new)
        .iter()
        .filter_map(|after| plan(before.remove(&key(after)).as_ref(), Some(after)))
        .collect();
    plans.extend(before.values().filter_map(|before| plan(Some(before), None)));
    plans
}
