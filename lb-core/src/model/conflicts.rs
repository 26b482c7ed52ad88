//! What services must not want together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Finding, Forward, Invalid, Key, Protocol, ServiceSpec, Vip};

/// Two services that want the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Place of the later one in the list.
    pub place: usize,
    /// Place of the first one.
    pub first: usize,
    /// Which of its keys wants it.
    pub first_key: Key,
    /// What both want, as a finding about the later one.
    pub finding: Finding,
}

/// Finds services that share a name, a VIP, or ports of ranges.
/// [`DesiredState::new`](super::DesiredState::new) refuses them; a source may ask first, while some of
/// its services are not valid yet.
pub fn conflicts<'a>(services: impl IntoIterator<Item = (&'a str, Vip)>) -> Vec<Conflict> {
    /// By the first port: they do not overlap.
    type Ranges<'a> = BTreeMap<u16, (Vip, usize, &'a str)>;

    let mut conflicts = Vec::new();
    let mut names = BTreeMap::new();
    let mut vips = BTreeMap::new();
    let mut ranges: BTreeMap<_, Ranges> = BTreeMap::new(); // by address and protocol
    for (place, (name, vip)) in services.into_iter().enumerate() {
        let mut conflict = |first, key, invalid| {
            conflicts.push(Conflict {
                place,
                first,
                first_key: key,
                finding: Finding { key, invalid },
            });
        };
        let first = *names.entry(name).or_insert(place);
        if first != place {
            conflict(first, Key::Name, Invalid::DuplicateName(name.into()));
        }
        let (first, other) = *vips.entry(vip).or_insert((place, name));
        if first != place {
            conflict(first, Key::Address, Invalid::DuplicateVip { vip, other: other.into() });
        } else if vip.ports.is_range() {
            let ranges = ranges.entry((vip.address, vip.protocol)).or_default();
            let below = ranges.range(..=vip.ports.last()).next_back();
            match below.filter(|(_, (below, ..))| below.ports.last() >= vip.ports.first()) {
                Some((_, &(_, first, other))) => {
                    conflict(
                        first,
                        Key::Port,
                        Invalid::OverlappingPorts { vip, other: other.into() },
                    );
                }
                None => drop(ranges.insert(vip.ports.first(), (vip, place, name))),
            }
        }
    }
    conflicts
}

/// What a backend answers for a service.
struct Answers {
    from: Vip,
    /// To clients as they are, not behind a prefix.
    is_plain: bool,
    place: usize,
    key: Key,
}

impl Answers {
    /// Could an answer be of either? The same station may answer clients as they are and others behind a
    /// prefix: whom it answers tells.
    fn could_be(&self, other: &Self) -> bool {
        let is_told = self.is_plain != other.is_plain && self.from == other.from;
        self.place != other.place && overlap(&self.from, &other.from) && !is_told
    }
}

/// Finds backends of translating services whose answers could be of two services. As [`conflicts`],
/// for services that are valid by themselves.
pub fn ambiguous_returns<'a>(services: impl IntoIterator<Item = &'a ServiceSpec>) -> Vec<Conflict> {
    ambiguous_returns_of(services, |_| true)
}

/// As [`ambiguous_returns`], of the backends whose addresses are looked at.
pub(super) fn ambiguous_returns_of<'a>(
    services: impl IntoIterator<Item = &'a ServiceSpec>,
    is_looked_at: impl Fn(&IpAddr) -> bool,
) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut returns: BTreeMap<IpAddr, Vec<Answers>> = BTreeMap::new();
    let mut names = Vec::new();
    for (place, spec) in services.into_iter().enumerate() {
        names.push(&spec.name);
        if !spec.forward.has_stations() {
            continue;
        }
        let backends = spec.backends.iter().enumerate();
        for (i, backend) in backends.filter(|(_, backend)| is_looked_at(&backend.address)) {
            let (from, key) = (spec.answers_of(backend), Key::Backend(i));
            let is_plain = spec.forward == Forward::Nat;
            let answers = Answers { from, is_plain, place, key };
            let others = returns.entry(backend.address).or_default();
            match others.iter().find(|other| other.could_be(&answers)) {
                Some(&Answers { place: first, key: first_key, .. }) => {
                    let (backend, other) = (Box::new(from), names[first].clone());
                    let invalid = Invalid::AmbiguousReturn { backend, other };
                    let finding = Finding { key, invalid };
                    found.push(Conflict { place, first, first_key, finding });
                }
                None => others.push(answers),
            }
        }
    }
    found
}

/// Finds pools that overlap, and services and other services' backends with an address of a pool. As
/// [`ambiguous_returns`].
pub fn pool_conflicts<'a>(services: impl IntoIterator<Item = &'a ServiceSpec>) -> Vec<Conflict> {
    let services: Vec<&ServiceSpec> = services.into_iter().collect();
    // By the first address: the last one, and whose it is. Disjoint, so that the one that has an
    // address is the last that does not begin behind it.
    let mut pools: BTreeMap<IpAddr, (IpAddr, usize)> = BTreeMap::new();
    let mut found = Vec::new();
    let mut conflict = |place, first, (key, first_key), invalid| {
        let finding = Finding { key, invalid };
        found.push(Conflict { place, first, first_key, finding });
    };
    for (place, spec) in services.iter().enumerate() {
        let Some(net) = spec.pool() else { continue };
        let (first_address, last) = (net.network(), net.broadcast());
        match pools.range(..=last).next_back() {
            Some((&other, &(end, _))) if (other, end) == (first_address, last) => {}
            Some((_, &(end, first))) if end >= first_address => {
                let (pool, other) = (services[first].pool().unwrap_or(net), &services[first].name);
                let invalid = Invalid::OverlappingPools { pool, other: other.clone() };
                conflict(place, first, (Key::Pool, Key::Pool), invalid);
            }
            _ => drop(pools.insert(first_address, (last, place))),
        }
    }
    if pools.is_empty() {
        return found;
    }
    let taken = |net: IpNet| {
        let (_, &(end, first)) = pools.range(..=net.broadcast()).next_back()?;
        let pool = services[first].pool().filter(|_| end >= net.network())?;
        Some((first, pool))
    };
    for (place, spec) in services.iter().enumerate() {
        let backends = spec.backends.iter().enumerate();
        // Of a service's own pool the service itself says so.
        let others = backends.filter(|(_, b)| !spec.pool().is_some_and(|p| p.contains(&b.address)));
        let others = others.map(|(i, backend)| (Key::BackendAddress(i), backend.address.into()));
        for (key, net) in [(Key::Address, spec.vip.address)].into_iter().chain(others) {
            if let Some((first, pool)) = taken(net) {
                let invalid = Invalid::TakenByPool { address: net.addr(), pool };
                conflict(place, first, (key, Key::Pool), invalid);
            }
        }
    }
    found
}

/// Of one address: could a packet be of both?
fn overlap(a: &Vip, b: &Vip) -> bool {
    let protocols =
        a.protocol == b.protocol || a.protocol == Protocol::Any || b.protocol == Protocol::Any;
    protocols && a.ports.first() <= b.ports.last() && b.ports.first() <= a.ports.last()
}
