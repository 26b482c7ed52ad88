//! A view, put into messages.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dpdk::Started;
use lb_core::continuity::{Member, Standing};
use lb_core::counters::{Counter, Counters};
use lb_core::drop_reason::DropReason;
use lb_core::model::{Forward, PortRange, TunnelKind};
use lb_core::stopwatch::Step;
use lb_core::tables::ServiceTable;
use lb_core::tables::compile::ways;
use lb_core::tables::next_hop::{Hops, NextHop, Port};

use super::proto::{self, BackendState, Health};
use super::view::View;
use crate::source::Source;

pub(super) fn status(view: &View) -> proto::Status {
    let tables = &view.tables;
    let states = tables.services.iter().flat_map(|table| {
        let members = table.roster.serving();
        members.map(|member| condition(view, table, member).state)
    });
    let is_out =
        |state: &BackendState| matches!(state, BackendState::Failed | BackendState::Unresolved);
    let in_transition = tables.services.iter().filter(|table| table.transitions.is_some()).count();
    proto::Status {
        site: view.config.site.name.clone(),
        release: env!("CARGO_PKG_VERSION").into(),
        version: tables.version,
        in_force: view.in_force,
        services: number(tables.services.len()),
        backends: number(tables.services.iter().map(|it| it.source.spec().backends.len()).sum()),
        backends_out: number(states.filter(is_out).count()),
        tracked_flows: tables.tracker.len(),
        services_in_transition: number(in_transition),
        traffic: Some(traffic(view.workers.iter().map(|(_, counters)| &**counters))),
        sources: sources(view),
    }
}

/// Those that want something, and the feeds that have wanted nothing yet.
fn sources(view: &View) -> Vec<proto::SourceStatus> {
    let states = view.wanted.states().map(|state| proto::SourceStatus {
        kind: kind(&state.source).into(),
        version: state.version.clone(),
        services: number(state.services.len()),
        taken_unix_ms: unix_ms(state.since),
        feed: feed_name(&state.source).and_then(|name| feed(view, name)),
    });
    let is_silent =
        |name: &str| !view.wanted.states().any(|state| feed_name(&state.source) == Some(name));
    let silent = view.feeds.iter().filter(|feed| is_silent(&feed.name));
    let silent = silent.map(|it| proto::SourceStatus {
        kind: proto::Source::Feed.into(),
        feed: feed(view, &it.name),
        ..proto::SourceStatus::default()
    });
    states.chain(silent).collect()
}

fn feed(view: &View, name: &str) -> Option<proto::FeedStatus> {
    let standing = view.feeds.iter().find(|standing| standing.name == name)?;
    let now = standing.now();
    let counters =
        standing.counters().map(|(name, value)| proto::FeedCounter { name: name.into(), value });
    Some(proto::FeedStatus {
        name: name.into(),
        away_since_unix_ms: now.away.map(unix_ms),
        told_version: now.told,
        reason: now.reason,
        counters: counters.into(),
    })
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn feed_name(source: &Source) -> Option<&str> {
    match source {
        Source::Feed(name) => Some(name),
        Source::File | Source::Api => None,
    }
}

/// The version of what was applied, as that source calls it; 0: nothing was.
pub(super) fn applied(view: &View) -> u64 {
    let mut states = view.wanted.states();
    let applied = states.find(|state| state.source == Source::Api);
    applied.and_then(|state| state.version.parse().ok()).unwrap_or(0)
}

fn kind(source: &Source) -> proto::Source {
    match source {
        Source::File => proto::Source::File,
        Source::Api => proto::Source::Api,
        Source::Feed(_) => proto::Source::Feed,
    }
}

pub(super) fn workers(view: &View) -> Vec<proto::Worker> {
    let worker = |(number_of, (cpu, counters)): (usize, &(usize, Arc<Counters>))| proto::Worker {
        number: number(number_of),
        cpu: number(*cpu),
        turns: counters.turns.get(),
        traffic: Some(traffic([&**counters])),
        taken_over: counters.taken_over.get(),
        handed_over: counters.handed_over.get(),
        timed_frames: counters.timed_frames.get(),
        steps: steps(counters),
    };
    view.workers.iter().enumerate().map(worker).collect()
}

fn steps(counters: &Counters) -> Vec<proto::Step> {
    let step = |step: Step| proto::Step {
        name: step.name().to_owned(),
        cycles: counters.step_cycles[step as usize].get(),
    };
    Step::ALL.map(step).into()
}

/// What `workers` have counted together.
fn traffic<'a>(workers: impl IntoIterator<Item = &'a Counters>) -> proto::Traffic {
    let workers: Vec<&Counters> = workers.into_iter().collect();
    let sum = |pick: fn(&Counters) -> &Counter| workers.iter().map(|it| pick(it).get()).sum();
    let dropped = DropReason::ALL.into_iter().map(|reason| proto::Dropped {
        reason: reason.to_string(),
        frames: workers.iter().map(|it| it.drops[reason as usize].get()).sum(),
    });
    proto::Traffic {
        received: sum(|it| &it.received),
        sent: sum(|it| &it.sent),
        injected: sum(|it| &it.injected),
        punted: sum(|it| &it.punted),
        answered: sum(|it| &it.answered),
        dropped: dropped.filter(|dropped| dropped.frames > 0).collect(),
    }
}

/// A port, and what its device has counted.
pub(crate) fn port(port: &Port, device: &dpdk::Port<Started>) -> proto::Port {
    // Without them, zeros: a device that cannot count is a port all the same.
    let stats = device.stats().unwrap_or_default();
    proto::Port {
        name: port.name.clone(),
        mac: port.mac.to_string(),
        mtu: port.mtu.into(),
        addresses: port.addresses.iter().map(ToString::to_string).collect(),
        link_up: device.link_up(),
        kernel: port.kernel,
        received: stats.ipackets,
        sent: stats.opackets,
        missed: stats.imissed,
        receive_errors: stats.ierrors,
        send_errors: stats.oerrors,
        no_buffer: stats.rx_nombuf,
    }
}

pub(super) fn service(view: &View, table: &ServiceTable) -> proto::Service {
    let spec = table.source.spec();
    let counters = view.workers.iter().map(|(_, counters)| &**counters);
    let (frames, bytes) = view.baselines.since(table.id, counters);
    let source = view.wanted.source_of(&spec.name);
    let active = table.slots.weights().iter().filter(|weight| **weight > 0).count();
    proto::Service {
        name: spec.name.clone(),
        source: source.map_or(proto::Source::Unspecified, kind).into(),
        feed: source.and_then(feed_name).unwrap_or_default().into(),
        address: if spec.vip.is_one_address() {
            spec.vip.address.addr().to_string()
        } else {
            spec.vip.address.to_string()
        },
        port: ports(spec.vip.ports),
        protocol: spec.vip.protocol.to_string(),
        forward: mode(spec.forward).into(),
        slots: table.slots.len(),
        slots_in_transition: number(table.transitions.as_ref().map_or(0, |it| it.count())),
        backends: number(spec.backends.len()),
        backends_active: number(active),
        tracked_flows: view.tables.tracker.count(table.id),
        frames,
        bytes,
    }
}

fn ports(range: PortRange) -> String {
    match range.single() {
        Some(port) => port.to_string(),
        None if range == PortRange::ANY => "any".into(),
        None => format!("{}-{}", range.first(), range.last()),
    }
}

/// As the file has it.
fn mode(forward: Forward) -> &'static str {
    match forward {
        Forward::L2dsr => "l2dsr",
        Forward::Nat | Forward::Nat46(_) => "nat",
        Forward::FullNat(_) => "fullnat",
        Forward::Tunnel(tunnel) => match tunnel.kind {
            TunnelKind::Ipip => "ipip",
            TunnelKind::Gue { .. } => "gue",
            TunnelKind::Gre => "gre",
        },
    }
}

/// The backends of a service that may have flows.
pub(super) fn backends(view: &View, table: &ServiceTable) -> Vec<proto::Backend> {
    let mut slots = vec![0_u32; table.roster.members().len()];
    for place in table.slots.slots() {
        if let Some(slots) = slots.get_mut(usize::from(*place)) {
            *slots += 1;
        }
    }
    let seats = (0..).zip(table.roster.members()).zip(slots);
    seats
        .filter_map(|((place, member), slots)| {
            let member = member.as_ref().filter(|it| !matches!(it.standing, Standing::Gone(_)))?;
            Some(backend(view, table, (place, member), slots))
        })
        .collect()
}

fn backend(
    view: &View,
    table: &ServiceTable,
    (place, member): (u16, &Member),
    slots: u32,
) -> proto::Backend {
    let spec = table.source.spec();
    let Member { backend: asked, .. } = member;
    let Condition { state, reason, hops } = condition(view, table, member);
    let health = match &spec.health {
        None => Health::Unchecked,
        Some(_) if view.health.is_failed(&spec.name, asked) => Health::Failed,
        Some(_) => Health::Passing,
    };
    let estimate = table.estimates.get(usize::from(place));
    let (frames, bytes) = estimate.map(|estimate| estimate.get()).unwrap_or_default();
    proto::Backend {
        service: spec.name.clone(),
        address: asked.address.to_string(),
        port: asked.port.map(u32::from),
        state: state.into(),
        reason,
        health: health.into(),
        weight: asked.weight,
        slots,
        share: f64::from(slots) / f64::from(table.slots.len().max(1)),
        next_hops: hops.iter().map(|hop| next_hop(hop, &view.tables.ports)).collect(),
        tracked_flows: view.flows.get(&(table.id, place)).copied().unwrap_or_default(),
        frames,
        bytes,
    }
}

/// How a backend is.
struct Condition {
    state: BackendState,
    /// Why it takes no new flows.
    reason: String,
    hops: Hops,
}

fn condition(view: &View, table: &ServiceTable, member: &Member) -> Condition {
    let Member { backend, standing } = member;
    let spec = table.source.spec();
    let ways = ways(backend, spec.forward, &view.tables.ports, &view.next_hops);
    let (state, reason) = match (standing, &ways) {
        (Standing::Leaving(_) | Standing::Gone(_), _) => {
            (BackendState::Leaving, "it is wanted no more, and keeps its flows".into())
        }
        _ if view.health.is_failed(&spec.name, backend) => {
            (BackendState::Failed, "it has failed its health checks".into())
        }
        (_, Err(unresolved)) => (BackendState::Unresolved, unresolved.to_string()),
        _ if view.drains.has(spec, backend) => {
            (BackendState::Drained, "it is drained by command".into())
        }
        _ if backend.drain => {
            let source = view.wanted.source_of(&spec.name);
            let source = source.map_or_else(|| "its source".into(), ToString::to_string);
            (BackendState::Drained, format!("{source} drains it"))
        }
        _ if backend.weight == 0 => (BackendState::Drained, "its weight is 0".into()),
        _ => (BackendState::Active, String::new()),
    };
    Condition { state, reason, hops: ways.map(|(hops, _)| hops).unwrap_or_default() }
}

fn next_hop(hop: &NextHop, ports: &[Port]) -> String {
    let port = ports.get(hop.port.index()).map_or("?", |port| &port.name);
    match hop.vlan {
        Some(vlan) => format!("{} via {port} vlan {vlan}", hop.mac),
        None => format!("{} via {port}", hop.mac),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
