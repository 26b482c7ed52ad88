//! What becomes of a flow, put into a message.

use lb_core::burst::Fate;
use lb_core::continuity::Standing;
use lb_core::continuity::transition::Moved;
use lb_core::explain::{Explainer, Trace, packet};
use lb_core::rate::Tick;
use lb_core::tables::next_hop::PortId;
use lb_core::tables::{ServiceTable, Station};
use lb_core::tuple::is_ipv6;
use lb_core::wire::ethernet::MacAddr;

use super::flow::Flow;
use super::proto::{Decision, ExplainResponse};
use crate::verdict::Verdict;

/// Seconds of a unit in which is counted how long flows are silent.
const UNIT_SECONDS: u32 = 4;

/// What becomes of packets of `flow` that come in by the first port, now.
pub(crate) fn explain(
    explainer: &mut Explainer,
    flow: &Flow,
    workers: usize,
    now: Tick,
) -> ExplainResponse {
    let mut decide = |opens| decision(explainer, flow, opens, now).unwrap_or_default();
    ExplainResponse {
        flow: flow.to_string(),
        opens: flow.has_openings().then(|| decide(true)),
        goes_on: Some(decide(false)),
        version: explainer.tables().version,
        worker: match workers {
            1 => "the only one".into(),
            workers => {
                format!(
                    "the one of {workers} whose queue the device puts it into; all decide alike"
                )
            }
        },
    }
}

/// The path of one of its packets. `None`: there is no port.
pub(crate) fn trace(
    explainer: &mut Explainer,
    flow: &Flow,
    opens: bool,
    now: Tick,
) -> Option<Trace> {
    let station = explainer.tables().ports.first()?.mac;
    explainer.explain(PortId(0), &packet(&flow.tuple(), station, opens), now)
}

fn decision(explainer: &mut Explainer, flow: &Flow, opens: bool, now: Tick) -> Option<Decision> {
    let trace = trace(explainer, flow, opens, now)?;
    let tables = explainer.tables();
    let verdict = Verdict::new(tables, &trace.meta, trace.fate)?;
    // Also of what is dropped there is a slot.
    let service = tables.vips.lookup(&trace.meta.tuple);
    let service = service.and_then(|place| tables.service(place));
    let by_slot = |table: &ServiceTable| {
        let slot = lb_core::flow_hash::reduce(trace.meta.hash, table.slots.len());
        Some((slot, *table.slots.slots().get(slot as usize)?))
    };
    let slot = service.and_then(by_slot);
    let named = |place: Option<u16>| {
        let member = service.zip(place).and_then(|(table, place)| table.roster.get(place));
        member.map(|member| member.backend.address.to_string()).unwrap_or_default()
    };
    let before = match trace.moved {
        Moved::From(place) => Some(place),
        Moved::No | Moved::FromNobody => None,
    };
    let is_sent = matches!(trace.fate, Fate::Send(_));
    Some(Decision {
        verdict: verdict.word.into(),
        reason: verdict.reason.unwrap_or_default(),
        service: verdict.service.unwrap_or_default(),
        rule: verdict.rule.unwrap_or_default().into(),
        slot: slot.map(|(slot, _)| slot),
        slots: service.map_or(0, |table| table.slots.len()),
        slot_backend: named(slot.map(|(_, place)| place)),
        slot_backend_before: named(before),
        tracked: trace.tracked.is_some(),
        silent_seconds: trace.tracked.map_or(0, |it| u32::from(it.age(now)) * UNIT_SECONDS),
        backend: verdict.backend.map(|address| address.to_string()).unwrap_or_default(),
        source: trace.behind.map(source).unwrap_or_default(),
        next_hop: is_sent.then(|| next_hop(&trace.frame)).flatten().unwrap_or_default(),
        port: verdict.port.unwrap_or_default(),
        why: why(&trace, service, opens),
    })
}

/// Why the packet is where it is: what the rules of [`lb_core::continuity`] say of what is known.
fn why(trace: &Trace, service: Option<&ServiceTable>, opens: bool) -> String {
    let Some(service) = service else {
        return match trace.fate {
            Fate::Send(_) => "it is a backend's answer".into(),
            Fate::Exit(_) => "no service has its destination".into(),
        };
    };
    let Fate::Send(_) = trace.fate else { return String::new() };
    if trace.behind.is_some() {
        return "its connection has a port of the pool, and stays on its backend".into();
    }
    let is_on = |place: u16| trace.meta.backend == place;
    match (&trace.tracked, trace.moved) {
        (Some(tracked), _) if is_on(tracked.backend()) => "the flow is remembered".into(),
        (_, Moved::No) if trace.tracked.is_some() => {
            "the backend that is remembered may not serve: its slot's backend has it".into()
        }
        (_, Moved::No) => "its slot is this backend's".into(),
        (_, Moved::From(_) | Moved::FromNobody) if opens => {
            "it opens a flow, and its slot, which is in transition, is this backend's now".into()
        }
        (_, Moved::From(place)) if is_on(place) => {
            let standing = service.roster.get(place).map(|member| member.standing);
            let leaves = matches!(standing, Some(Standing::Leaving(_)));
            let leaves = if leaves { ", which is leaving" } else { "" };
            format!("its slot is in transition, and was this backend's{leaves}")
        }
        (_, Moved::From(_)) => {
            "its slot is in transition, and the backend that had it may not serve".into()
        }
        (_, Moved::FromNobody) => "its slot is this backend's, and was nobody's before".into(),
    }
}

fn source(Station { address, port }: Station) -> String {
    let v6 = std::net::Ipv6Addr::from(address);
    let address = v6.to_ipv4_mapped().filter(|_| !is_ipv6(&address));
    let address = address.map_or(v6.into(), std::net::IpAddr::from);
    std::net::SocketAddr::new(address, port.map_or(0, u16::from_be_bytes)).to_string()
}

/// The station that a frame is sent to.
fn next_hop(frame: &[u8]) -> Option<String> {
    frame.first_chunk().map(|mac| MacAddr(*mac).to_string())
}
