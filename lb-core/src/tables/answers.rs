//! Source of a packet from a backend → whose answer it is, where services translate (`nat`).
//!
//! In shards, by the backend's address: where a backend comes or goes, its shard is made again, not all
//! that is known of a hundred thousand others.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;

use rayon::prelude::*;

use super::{ByAddress, ServiceTable, Station, VipIndex};
use crate::continuity::Standing;
use crate::model::Vip;
use crate::tuple::{Tuple, address_bytes};

/// Claims of a shard, about: to make one again takes less than a millisecond, and few cache lines are only
/// shards' own.
const SHARD_CLAIMS: usize = if cfg!(test) { 2 } else { 1024 };

/// The bits of a place in a shard: of 4 billion claims there would be as many in each.
const PLACE_BITS: u32 = 20;

/// The stations that answer for services. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Mostly all that there is: so it is looked into without a search for it.
    first: Shard,
    more: Arc<[Shard]>,
    /// There are two to the power of this.
    bits: u32,
}

#[derive(Clone, Debug)]
struct Shard {
    /// In order.
    claims: Arc<[Claim]>,
    /// Source of a packet → place in `returns`.
    stations: VipIndex,
    returns: Arc<[Return]>,
}

/// A backend's answers are said to be a service's. Orders by station; the first claim counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    station: Vip,
    /// A backend that is leaving may be another service's already.
    is_leaving: bool,
    /// Place of the service in the tables.
    service: u32,
    /// The backend has a port of its own.
    has_port: bool,
}

/// Whose answers a station's packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// Place of the service in the tables.
    pub service: u32,
    /// What clients know instead of the station.
    pub vip: Station,
    /// What its clients' addresses begin with, if they are IPv4's.
    pub client_prefix: Option<[u8; 12]>,
    /// The place, in the shard, of what the station's other packets are.
    others: Option<u32>,
}

impl Answers {
    /// Of all services.
    pub(super) fn new(services: &[Arc<ServiceTable>]) -> Self {
        let claims: Vec<Claim> =
            (0..).zip(services).flat_map(|(place, table)| claims(place, table)).collect();
        let bits = shards_for(claims.len());
        let mut shards = vec![Vec::new(); 1 << bits];
        for claim in claims {
            shards[claim.shard(bits)].push(claim);
        }
        let shards = shards.into_par_iter().map(|claims| Shard::new(claims, services));
        Self::of(shards.collect(), bits)
    }

    fn of(mut shards: Vec<Shard>, bits: u32) -> Self {
        let more = shards.split_off(1);
        Self { first: shards.remove(0), more: more.into(), bits }
    }

    fn shards(&self) -> impl Iterator<Item = &Shard> {
        iter::once(&self.first).chain(&*self.more)
    }

    /// After services were `replaced`: their places, what they were, and what they are. If that is the same for
    /// answers, it is what it was.
    pub(super) fn followed_by(
        &self,
        services: &[Arc<ServiceTable>],
        replaced: &[(u32, &ServiceTable, &ServiceTable)],
    ) -> Self {
        let differing = replaced.iter().flat_map(|(place, old, new)| differing(*place, old, new));
        let mut changed: BTreeMap<usize, Vec<Claim>> =
            differing.map(|claim| (claim.shard(self.bits), Vec::new())).collect();
        if changed.is_empty() {
            return self.clone();
        }
        for claim in replaced.iter().flat_map(|(place, _, new)| claims(*place, new)) {
            if let Some(claims) = changed.get_mut(&claim.shard(self.bits)) {
                claims.push(claim);
            }
        }
        let places: BTreeSet<u32> = replaced.iter().map(|(place, ..)| *place).collect();
        let mut shards: Vec<Shard> = self.shards().cloned().collect();
        for (number, mut claims) in changed {
            let old = shards[number].claims.iter();
            claims.extend(old.filter(|claim| !places.contains(&claim.service)));
            shards[number] = Shard::new(claims, services);
        }
        let wanted = shards_for(shards.iter().map(|shard| shard.claims.len()).sum());
        if wanted.abs_diff(self.bits) > 1 {
            return Self::new(services);
        }
        Self::of(shards, self.bits)
    }

    /// The service that a packet answers for, by where it comes from, and the place of its [`Return`].
    #[inline(always)]
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Option<(u32, u32)> {
        let number = shard_of(&tuple.src, self.bits);
        let shard = self.shard(number)?;
        let mut place = shard.stations.lookup_source(tuple)?;
        let mut found = shard.returns.get(place as usize)?;
        if let Some(prefix) = found.client_prefix
            && !tuple.dst.starts_with(&prefix)
        {
            place = found.others?;
            found = shard.returns.get(place as usize)?;
        }
        #[expect(clippy::cast_possible_truncation, reason = "there are not so many shards")]
        Some((found.service, (number as u32) << PLACE_BITS | place))
    }

    /// What becomes of an answer, by the place that was found.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, place: u32) -> Option<&Return> {
        let shard = self.shard((place >> PLACE_BITS) as usize)?;
        shard.returns.get((place & ((1 << PLACE_BITS) - 1)) as usize)
    }

    #[inline(always)]
    fn shard(&self, number: usize) -> Option<&Shard> {
        if number == 0 { Some(&self.first) } else { self.more.get(number - 1) }
    }

    /// All that is claimed, in order, whatever the shards are.
    #[cfg(test)]
    pub(super) fn claimed(&self) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
        let mut claims: Vec<Claim> =
            self.shards().flat_map(|shard| &*shard.claims).copied().collect();
        claims.sort_unstable();
        claims
    }

    /// As [`Answers::find`], of a packet whose ports are not known.
    #[must_use]
    pub fn by_address(&self, tuple: &Tuple) -> ByAddress {
        let shard = self.shard(shard_of(&tuple.src, self.bits));
        let found = shard.map(|shard| shard.stations.by_address(&tuple.reversed()));
        found.map_or(ByAddress::None, ByAddress::of_a_station)
    }
}

impl Shard {
    fn new(mut claims: Vec<Claim>, services: &[Arc<ServiceTable>]) -> Self {
        claims.sort_unstable();
        let mut stations = Vec::new();
        let mut returns: Vec<Return> = Vec::new();
        // A station has one place; what else its packets may be is behind them all.
        let mut others = Vec::new();
        for of_station in claims.chunk_by(|one, other| one.station == other.station) {
            // To clients of its family, and to those behind a prefix.
            let mut found = [None; 2];
            for claim in of_station {
                let returned = claim.returned(&services[claim.service as usize]);
                found[usize::from(returned.client_prefix.is_some())].get_or_insert(returned);
            }
            let [plain, prefixed] = found;
            others.extend(plain.filter(|_| prefixed.is_some()).map(|plain| (returns.len(), plain)));
            returns.extend(prefixed.or(plain));
            stations.push(of_station[0].station);
        }
        for (place, plain) in others {
            returns[place].others = u32::try_from(returns.len()).ok();
            returns.push(plain);
        }
        Self {
            claims: claims.into(),
            stations: VipIndex::new(stations.into_iter()),
            returns: returns.into(),
        }
    }
}

impl Claim {
    fn shard(&self, bits: u32) -> usize {
        shard_of(&address_bytes(self.station.address.addr()), bits)
    }

    fn returned(&self, table: &ServiceTable) -> Return {
        let spec = table.source.spec();
        let port = spec.vip.ports.single().filter(|_| self.has_port);
        Return {
            service: self.service,
            vip: Station::new(spec.vip.address.addr(), port),
            client_prefix: spec.forward.client_prefix(),
            others: None,
        }
    }
}

/// Those of a service, if the balancer translates its backends' answers back.
fn claims(service: u32, table: &ServiceTable) -> impl Iterator<Item = Claim> {
    let spec = table.source.spec();
    let members = spec.forward.has_stations().then(|| table.roster.serving());
    members.into_iter().flatten().map(move |member| Claim {
        station: spec.answers_of(&member.backend),
        is_leaving: member.standing != Standing::Wanted,
        service,
        has_port: member.backend.port.is_some(),
    })
}

/// Those of either that say something else than the other's.
fn differing(service: u32, old: &ServiceTable, new: &ServiceTable) -> Vec<Claim> {
    let [old_claims, new_claims] =
        [old, new].map(|table| claims(service, table).collect::<BTreeSet<_>>());
    let [spec, new_spec] = [old, new].map(|table| table.source.spec());
    if (spec.vip, spec.forward) == (new_spec.vip, new_spec.forward) {
        old_claims.symmetric_difference(&new_claims).copied().collect()
    } else {
        old_claims.union(&new_claims).copied().collect()
    }
}

/// The bits of the number of a shard, of so many claims in all.
fn shards_for(claims: usize) -> u32 {
    (claims / SHARD_CLAIMS).next_power_of_two().ilog2().min(u32::BITS - PLACE_BITS)
}

/// Not keyed: the stations are the operator's, and a packet can only look them up.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "so many bits")]
fn shard_of(address: &[u8; 16], bits: u32) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    if bits == 0 {
        return 0;
    }
    let (halves, _) = address.as_chunks::<8>();
    let [first, second] = [halves[0], halves[1]].map(u64::from_ne_bytes);
    ((first ^ second).wrapping_mul(ODD) >> (u64::BITS - bits)) as usize
}
