//! Desired state, and what is true of the network → tables. Pure, and for the control thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rayon::prelude::*;

mod before;
mod ways;

pub(super) use before::{Basis, Outlook};
pub use ways::ways;

use before::Before;
use ways::untunnelled;

use super::next_hop::{NextHops, Port, Unresolved};
use super::{
    Answers, BackendEntry, HopEntry, Pooled, ServiceId, ServiceTable, SlotTable, Tables, VipIndex,
};
use crate::admission::{Admission, Gate};
use crate::continuity::tracker::Shape;
use crate::continuity::{
    Growth, Member, Roster, Standing, TOLD_TIMES, Touched, Tracker, Transitions,
};
use crate::drop_reason::DropReason;
use crate::estimate::Estimates;
use crate::flow_hash::FlowHasher;
use crate::model::{
    Affinity, Backend, DesiredState, Flows, Forward, FullNat, Health, PortRange, Protocol, Service,
    ServiceSpec, Vip,
};
use crate::pool::{self, Pool};
use crate::rate::Tick;
use crate::tuple::address_bytes;

/// What is true, besides what is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The balancer's own.
    pub ports: &'a Arc<[Port]>,
    /// The ways to backends.
    pub next_hops: &'a NextHops,
    /// Which backends may serve; absent: all.
    pub health: Option<&'a Health>,
    /// Pools that are there already; others are made.
    pub pools: &'a [Arc<Pool>],
    /// Places where no flow is remembered, of backends that are leaving.
    pub idle: &'a BTreeSet<(ServiceId, u16)>,
    /// The time.
    pub now: Tick,
}

impl<'a> Circumstances<'a> {
    /// At the beginning: all may serve.
    #[must_use]
    pub fn new(ports: &'a Arc<[Port]>, next_hops: &'a NextHops) -> Self {
        const NONE: &BTreeSet<(ServiceId, u16)> = &BTreeSet::new();
        Self { ports, next_hops, health: None, pools: &[], idle: NONE, now: Tick(0) }
    }
}

impl Circumstances<'_> {
    fn is_failed(&self, spec: &ServiceSpec, backend: &Backend) -> bool {
        self.health.is_some_and(|health| health.is_failed(&spec.name, backend))
    }
}

/// Makes the next version of the tables. What did not change since `previous` is shared with it, and not
/// looked at again: a change of one service of ten thousand costs little more than that service's table.
///
/// A backend without a way to it takes no slots until it has one, nor does one that has failed. Which
/// slots are whose does not depend on `previous`; but places and ids do, the transitions of slots,
/// the memory of flows, what is shared, and the ways to clients, which are the caller's to change.
#[must_use]
pub fn compile(
    desired: &DesiredState,
    circumstances: &Circumstances<'_>,
    previous: Option<&Tables>,
) -> Tables {
    let tracker = previous
        .map_or_else(|| Arc::new(Tracker::new(TRACKED_MAX)), |tables| Arc::clone(&tables.tracker));
    let before = Before::new(desired, circumstances, previous);
    let pools = pools(desired, circumstances.pools, &before);
    let mut ids = Ids::new(previous, &tracker);
    let mut services: Vec<Option<Arc<ServiceTable>>> = Vec::with_capacity(desired.services().len());
    let mut outlooks = Vec::with_capacity(desired.services().len());
    let mut to_make: Vec<ToMake<'_>> = Vec::new();
    for (place, service) in desired.services().iter().enumerate() {
        let (table, outlook) = before.unchanged(place, service).unzip();
        if table.is_none() {
            let old = before.named(place, service);
            let old = old.filter(|old| has_same_flows(old.source.spec(), service.spec()));
            let id = old.map_or_else(|| ids.next_free(), |old| old.id);
            to_make.push((place, service, id, old));
        }
        services.push(table);
        outlooks.push(outlook.unwrap_or_default());
    }
    let table_of = |&(_, service, id, old): &ToMake<'_>| {
        let old_table = old.map(Arc::as_ref);
        let mut table = service_table(service, id, (circumstances, &pools), old_table);
        table.touched = touched(&table, old_table, &tracker);
        let is_same =
            |old: &Arc<ServiceTable>| Arc::ptr_eq(&old.source, service) && old.decides_like(&table);
        if old.is_some_and(is_same) { None } else { Some(table) }
    };
    let made: Vec<Option<ServiceTable>> = to_make.par_iter().map(table_of).collect();
    for (&(place, .., old), table) in to_make.iter().zip(made) {
        // Only now, when their slots are there, so that they lie side by side: to find one in memory is to find
        // others.
        let table = table.map(Arc::new).or_else(|| old.map(Arc::clone));
        outlooks[place] = table.as_deref().map(Outlook::of).unwrap_or_default();
        services[place] = table;
    }
    let services: Vec<Arc<ServiceTable>> = services.into_iter().flatten().collect();
    let answers = before.answers(&services).unwrap_or_else(|| Answers::new(&services));
    let vips = || desired.services().iter().map(|service| service.spec().vip);
    Tables {
        tracker,
        admission: admission(desired, &before),
        in_transition: outlooks.iter().any(|outlook| outlook.is_in_transition),
        fib: previous.map(|tables| Arc::clone(&tables.fib)).unwrap_or_default(),
        answers,
        pool_index: VipIndex::new(pools.iter().map(|pool| whole(pool.net()))),
        pools,
        own: own_addresses(circumstances.ports),
        version: previous.map_or(1, |tables| tables.version + 1),
        hasher: FlowHasher::new(desired.hash_key()),
        ports: Arc::clone(circumstances.ports),
        vips: before.vips().unwrap_or_else(|| VipIndex::new(vips())),
        services,
        basis: Some(Basis::new(desired, circumstances, outlooks)),
    }
}

/// A service whose table has to be made: its place, its id, and the table of the version before.
type ToMake<'a> = (usize, &'a Arc<Service>, ServiceId, Option<&'a Arc<ServiceTable>>);

/// The one of the version before, if there was one with the same key.
fn admission(desired: &DesiredState, before: &Before<'_>) -> Option<Arc<Admission>> {
    let known = before.tables().and_then(|tables| tables.admission.as_ref());
    if before.is_same(|spec| spec.syn.is_some()) {
        return known.map(Arc::clone);
    }
    if desired.services().iter().all(|service| service.spec().syn.is_none()) {
        return None;
    }
    let site = desired.hash_key();
    let known = known.filter(|it| it.is_of(site));
    Some(known.map_or_else(|| Arc::new(Admission::new(site)), Arc::clone))
}

/// The one that the service had before, if its bound is the same.
fn gate(spec: &ServiceSpec, old: Option<&ServiceTable>) -> Option<Arc<Gate>> {
    let bound = spec.syn?;
    let known = old.and_then(|old| old.gate.as_ref()).filter(|gate| gate.bound() == bound);
    Some(known.map_or_else(|| Arc::new(Gate::new(bound)), Arc::clone))
}

fn own_addresses(ports: &[Port]) -> Vec<[u8; 16]> {
    let nets = ports.iter().flat_map(|port| &port.addresses);
    nets.map(|net| address_bytes(net.addr())).collect()
}

/// Flows that are tracked if nobody has said how many.
const TRACKED_MAX: u32 = 4096;

/// Do packets mean the same flows to a service as to the one that had its name before?
fn has_same_flows(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    (old.vip, old.affinity) == (new.vip, new.affinity)
}

/// The pools of all services, once each; those that were there before with their connections.
fn pools(desired: &DesiredState, there: &[Arc<Pool>], before: &Before<'_>) -> Arc<[Arc<Pool>]> {
    let old = before.tables().map(|tables| &tables.pools);
    if let Some(old) = old.filter(|_| before.is_same(ServiceSpec::pool)) {
        return Arc::clone(old);
    }
    let old = old.into_iter().flat_map(|pools| &**pools);
    let old: BTreeMap<IpNet, &Arc<Pool>> =
        there.iter().chain(old).map(|pool| (pool.net(), pool)).collect();
    let wanted = desired.pools();
    wanted
        .into_iter()
        .map(|net| old.get(&net).map_or_else(|| Arc::new(Pool::new(net)), |pool| Arc::clone(pool)))
        .collect()
}

fn pooled(spec: &ServiceSpec, pools: &[Arc<Pool>]) -> Option<Pooled> {
    let Forward::FullNat(FullNat { pool, client_address }) = spec.forward else { return None };
    let pool = pools.iter().find(|known| known.net() == pool)?;
    Some(Pooled { pool: Arc::clone(pool), client_address, idle_max: idle_max(spec) })
}

/// How long a flow may be silent, in [`pool::units`], rounded up.
fn idle_max(spec: &ServiceSpec) -> u16 {
    (pool::units(spec.idle_timeout().into()) + 1).min(pool::IDLE_MAX)
}

/// How long a tracked flow is remembered, in [`pool::units`]: when a peer saw it last is known here a
/// little later.
fn remembered_max(spec: &ServiceSpec) -> u16 {
    let idle_max = idle_max(spec);
    (idle_max + idle_max / TOLD_TIMES + 1).min(pool::IDLE_MAX)
}

/// Every packet to a prefix.
fn whole(net: IpNet) -> Vip {
    Vip { address: net, ports: PortRange::ANY, protocol: Protocol::Any }
}

/// Hands out the lowest ids that the previous version did not use: counters of a service that is
/// gone are not another's as long as a worker may still add to them.
struct Ids<'a> {
    previous: Option<&'a Tables>,
    /// Looked for when the first is asked for.
    used: Option<Vec<bool>>,
    next: u32,
    /// Flows of a service that is gone are not another's either.
    tracker: &'a Tracker,
}

impl<'a> Ids<'a> {
    fn new(previous: Option<&'a Tables>, tracker: &'a Tracker) -> Self {
        Self { previous, used: None, next: 0, tracker }
    }

    fn next_free(&mut self) -> ServiceId {
        let used = self.used.get_or_insert_with(|| {
            let mut used = Vec::new();
            for table in self.previous.iter().flat_map(|tables| &tables.services) {
                let id = table.id.0 as usize;
                used.resize(used.len().max(id + 1), false);
                used[id] = true;
            }
            used
        });
        let is_used = |id: u32| used.get(id as usize).copied().unwrap_or(false);
        while is_used(self.next) || self.tracker.tracks(ServiceId(self.next)) {
            self.next += 1;
        }
        self.next += 1;
        ServiceId(self.next - 1)
    }
}

fn service_table(
    service: &Arc<Service>,
    id: ServiceId,
    (circumstances, pools): (&Circumstances<'_>, &[Arc<Pool>]),
    old: Option<&ServiceTable>,
) -> ServiceTable {
    let spec = service.spec();
    let roster = roster(spec, id, circumstances, old);
    let members = || roster.members().iter().map(Option::as_ref);
    let backends: Vec<BackendEntry> =
        members().map(|member| entry(member, spec, circumstances)).collect();
    let backends = match old {
        Some(old) if *old.backends == *backends => Arc::clone(&old.backends),
        _ => backends.into(),
    };
    let weight = |member: Option<&Member>| {
        let wanted = member.filter(|member| member.standing == Standing::Wanted);
        wanted.map_or(0, |member| member.backend.effective_weight())
    };
    let mut weights: Box<[u32]> = members()
        .zip(&*backends)
        .map(|(member, entry)| if entry.hops().is_empty() { 0 } else { weight(member) })
        .collect();
    let before = old.map(|old| (&old.growth, old.slots.weights()));
    let growth = Growth::next(spec.slow_start, &mut weights, before, circumstances.now);
    reduce(&mut weights);
    let identities = roster.identities(spec);
    let someone_wanted = spec
        .backends
        .iter()
        .any(|backend| backend.effective_weight() > 0 && !circumstances.is_failed(spec, backend));
    // By address alone means that ports do not count.
    let affinity =
        if spec.vip.protocol == Protocol::Any { Affinity::Client } else { spec.affinity };
    let slots = slot_table(identities, weights, service.slots(), old);
    let mut table = ServiceTable {
        id,
        affinity,
        mss: spec.mss,
        pooled: pooled(spec, pools),
        gate: gate(spec, old),
        key_shape: key_shape(&spec.vip),
        // A client's packet may belong to any of its flows.
        has_openings: affinity == Affinity::Flow
            && matches!(spec.vip.protocol, Protocol::Tcp | Protocol::Sctp),
        idle_max: remembered_max(spec),
        transitions: None,
        touched: None,
        estimates: estimates(spec, &roster, old),
        roster,
        growth,
        slots,
        without_slots: if someone_wanted {
            DropReason::NextHopUnresolved
        } else {
            DropReason::NoBackend
        },
        has_equal_ways: backends.iter().any(|entry| entry.hops().len() > 1),
        backends,
        source: Arc::clone(service),
    };
    table.transitions = transitions(&table, old, circumstances.now);
    table
}

/// The backends of a service by place, and those that are leaving.
fn roster(
    spec: &ServiceSpec,
    id: ServiceId,
    circumstances: &Circumstances<'_>,
    old: Option<&ServiceTable>,
) -> Arc<Roster> {
    let before = old.map(|old| Arc::clone(&old.roster)).unwrap_or_default();
    let remembers = |place| {
        let transitions = old.and_then(|old| old.transitions.as_deref());
        transitions.is_some_and(|it| it.sources().any(|from| from == place))
    };
    let is_idle = |place| circumstances.idle.contains(&(id, place)) && !remembers(place);
    let next = before.next(spec, is_idle, circumstances.now);
    if next == *before { before } else { Arc::new(next) }
}

/// What the backends had got at their places before; of those that are new, nothing.
fn estimates(spec: &ServiceSpec, roster: &Arc<Roster>, old: Option<&ServiceTable>) -> Estimates {
    let known = old.filter(|old| Arc::ptr_eq(&old.roster, roster));
    if let Some(old) = known.filter(|old| old.estimates.len() == roster.members().len()) {
        return Arc::clone(&old.estimates);
    }
    let name_at = |(roster, spec): (&Roster, &ServiceSpec), place: u16| {
        let backend = &roster.get(place)?.backend;
        Some((backend.address, spec.port_of(backend)))
    };
    let places = 0..u16::try_from(roster.members().len()).unwrap_or(u16::MAX);
    let estimate = |place: u16| {
        let is_same = |old: &&ServiceTable| {
            name_at((&old.roster, old.source.spec()), place) == name_at((roster, spec), place)
        };
        let known = old.filter(is_same).and_then(|old| old.estimates.get(usize::from(place)));
        known.cloned().unwrap_or_default()
    };
    places.map(estimate).collect()
}

/// The slots that have moved since the version before. Not of services that remember nothing from
/// packet to packet, nor of those whose pools remember every connection.
fn transitions(
    new: &ServiceTable,
    old: Option<&ServiceTable>,
    now: Tick,
) -> Option<Arc<Transitions>> {
    let spec = new.source.spec();
    if spec.flows == Flows::Datagram || new.pooled.is_some() {
        return None;
    }
    let old = old?;
    let in_progress = old.transitions.as_ref();
    let next = Transitions::next(
        in_progress.map(Arc::as_ref),
        &old.slots,
        &new.slots,
        |place| new.may_serve(place),
        (now, spec.idle_timeout().into()),
    )?;
    Some(in_progress.filter(|old| ***old == next).map_or_else(|| Arc::new(next), Arc::clone))
}

/// The slots that flows may be tracked of: those of the version before, as long as there is such a flow, and those
/// in transition. All, if it is not known which they were.
fn touched(
    new: &ServiceTable,
    old: Option<&ServiceTable>,
    tracker: &Tracker,
) -> Option<Arc<Touched>> {
    if !new.may_track(tracker) {
        return None;
    }
    let len = new.slots.len();
    let transitions = new.transitions.as_deref();
    let has_memory = tracker.tracks(new.id) || old.is_some_and(|old| old.transitions.is_some());
    let known = old.and_then(|old| old.touched.as_ref()).filter(|known| known.slots() == len);
    let touched = match known.filter(|_| has_memory) {
        Some(known) => Arc::clone(known),
        None if has_memory || transitions.is_some_and(Transitions::is_resized) => {
            Arc::new(Touched::all(len))
        }
        None => Arc::new(Touched::none(len)),
    };
    transitions.into_iter().flat_map(Transitions::slots).for_each(|slot| touched.add(slot));
    Some(touched)
}

fn key_shape(vip: &Vip) -> Shape {
    match (vip.address.addr(), vip.is_one_address()) {
        (IpAddr::V4(_), true) => Shape::Short,
        (IpAddr::V4(_), false) | (IpAddr::V6(_), true) => Shape::Long,
        (IpAddr::V6(_), false) => Shape::Longest,
    }
}

/// Divides weights by what they have in common: only shares count.
fn reduce(weights: &mut [u32]) {
    let gcd = |a: u32, b: &u32| {
        let (mut a, mut b) = (a, *b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let common = weights.iter().fold(0, gcd);
    if common > 1 {
        for weight in weights {
            *weight /= common;
        }
    }
}

fn slot_table(
    identities: Box<[u64]>,
    weights: Box<[u32]>,
    slots: u32,
    old: Option<&ServiceTable>,
) -> SlotTable {
    match old.map(|old| &old.slots) {
        Some(old) if old.is_of(&identities, &weights, slots) => old.clone(),
        _ => SlotTable::new(identities, weights, slots),
    }
}

/// How the backend at a place is reached; by no way, if there is none or it may not serve. As long as
/// the kernel is still finding out, it serves the flows that it has: they are lost if they move.
fn entry(
    member: Option<&Member>,
    spec: &ServiceSpec,
    circumstances: &Circumstances<'_>,
) -> BackendEntry {
    let Circumstances { ports, next_hops, .. } = *circumstances;
    let Some(Member { backend, standing }) = member else { return BackendEntry::NONE };
    let serves = !matches!(standing, Standing::Gone(_)) && !circumstances.is_failed(spec, backend);
    match ways(backend, spec.forward, ports, next_hops) {
        Ok((hops, path)) if serves => {
            BackendEntry::new(path, hops.iter().filter_map(|hop| HopEntry::new(hop, ports)))
        }
        // Connections know it by its path, while it has no way as well.
        way => {
            let path = untunnelled(backend, spec.forward);
            let is_looked_for = matches!(way, Err(Unresolved::Unknown));
            BackendEntry::without_ways(path, serves && is_looked_for)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
