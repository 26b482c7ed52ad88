//! What becomes of answers that come through the balancer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::continuity::Standing;
use crate::model::Vip;
use crate::tables::{Return, ServiceTable, Station};
use crate::tuple::address_bytes;

/// Where answers come from that the balancer translates back, and what they become.
pub(super) fn returns(services: &[Arc<ServiceTable>]) -> (Vec<Vip>, Vec<Return>) {
    // To clients of its family, and to those behind a prefix.
    let mut found: BTreeMap<Vip, [Option<Return>; 2]> = BTreeMap::new();
    // A backend that is leaving may be another service's already.
    for is_wanted in [true, false] {
        for (place, table) in (0..).zip(services) {
            let spec = table.source.spec();
            if !spec.forward.has_stations() {
                continue;
            }
            let members = table.roster.serving();
            for member in members.filter(|it| (it.standing == Standing::Wanted) == is_wanted) {
                let backend = &member.backend;
                let port = backend.port.and(spec.vip.ports.single());
                let vip = station(spec.vip.address.addr(), port);
                let client_prefix = spec.forward.client_prefix();
                let returned = Return { service: place, vip, client_prefix, others: None };
                let known = found.entry(spec.answers_of(backend)).or_default();
                known[usize::from(client_prefix.is_some())].get_or_insert(returned);
            }
        }
    }
    let (stations, found): (Vec<Vip>, Vec<_>) = found.into_iter().unzip();
    // A station has one place; what else its packets may be is behind them all.
    let mut others = Vec::new();
    let mut returns: Vec<Return> = Vec::new();
    for [plain, prefixed] in found.iter().copied() {
        let also = plain.filter(|_| prefixed.is_some());
        let place = u32::try_from(found.len() + others.len()).ok().filter(|_| also.is_some());
        others.extend(also);
        returns.extend(prefixed.or(plain).map(|it| Return { others: place, ..it }));
    }
    returns.append(&mut others);
    (stations, returns)
}

pub(super) fn station(address: IpAddr, port: Option<u16>) -> Station {
    Station { address: address_bytes(address), port: port.map(u16::to_be_bytes) }
}
