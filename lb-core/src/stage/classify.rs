//! Destination → service.

use std::sync::Arc;

use crate::burst::{Burst, Exit, Kinds, Meta, Rule};
use crate::flow_hash::reduce;
use crate::frame::{BURST_MAX, Frame};
use crate::model::{Affinity, Forward};
use crate::pool::Found;
use crate::prefetch::prefetch;
use crate::quote;
use crate::quote::tunnel::Tunnelled;
use crate::tables::Tables;
use crate::tuple::Tuple;
use crate::wire::icmp;

/// Names the service that each frame is for, and the slot of its flow. Reads `meta.tuple`; writes
/// `meta.service`, `meta.hash`, `meta.slot`; and says which frames are what: see [`Kinds`].
///
/// Punts what no service has; but answers of backends that services translate to are theirs, see
/// [`Rule::Return`], and so are errors about the packets of their tunnels, see [`Rule::TunnelError`].
#[inline(never)]
pub fn classify<F: Frame>(burst: &mut Burst<F>, tables: &Tables) {
    let has_memory = tables.may_track() || !tables.pools.is_empty();
    let mut kinds = Kinds::default();
    burst.for_each_meta(burst.live(), |i, meta| {
        let place = tables.vips.place(&meta.tuple);
        let Some(service) = tables.service(place) else {
            kinds.returns |= 1 << i;
            return Ok(());
        };
        meta.service = place;
        meta.hash = tables.hasher.hash(&meta.tuple, service.affinity == Affinity::Flow);
        meta.slot = reduce(meta.hash, service.slots.len());
        if let Some(slot) = service.slots.slots().get(meta.slot as usize) {
            prefetch(slot);
        }
        // What is remembered of the flow.
        if has_memory {
            if let Some(pooled) = &service.pooled {
                pooled.pool.prefetch(meta.hash);
                kinds.connected |= 1 << i;
            } else if service.may_track_of(meta.slot, &tables.tracker) {
                tables.tracker.prefetch(service.key_shape, meta.hash);
                kinds.tracked |= 1 << i;
            }
        }
        Ok(())
    });
    burst.set_kinds(kinds);
    // What is left is the answer of a backend, or about its way.
    if kinds.returns != 0 {
        answers(burst, kinds, tables);
    }
}

/// What no service is addressed by.
#[inline(never)]
fn answers<F: Frame>(burst: &mut Burst<F>, mut kinds: Kinds, tables: &Tables) {
    if tables.pools.is_empty() {
        return burst.for_each(burst.returns(), |_, frame, meta| {
            answer(frame.bytes(), meta, (None, None), tables)
        });
    }
    let mut pools = [None; BURST_MAX];
    burst.for_each_meta(burst.returns(), |i, meta| {
        pools[i] = tables.pool_index.lookup(&meta.tuple);
        if let Some(pool) = pools[i].and_then(|place| tables.pools.get(place as usize)) {
            pool.prefetch_at(&meta.tuple.dst, dst_port(&meta.tuple));
        }
        Ok(())
    });
    let mut found = 0_u64;
    burst.for_each_connected(burst.returns(), |i, _, meta, connection| {
        if let Some(pool) = pools[i].and_then(|place| tables.pools.get(place as usize)) {
            let is_there = pool.at(&meta.tuple.dst, dst_port(&meta.tuple), connection);
            found |= u64::from(is_there) << i;
        }
        Ok(())
    });
    burst.for_each_connected(burst.returns(), |i, frame, meta, connection| {
        let connection = (found >> i & 1 != 0).then_some(&*connection);
        answer(frame.bytes(), meta, (pools[i], connection), tables)?;
        let is_connected = pools[i].is_some() && meta.rule != Rule::TunnelError;
        kinds.connected |= u64::from(is_connected) << i;
        Ok(())
    });
    burst.set_kinds(kinds);
}

fn dst_port(tuple: &Tuple) -> [u8; 2] {
    let [.., high, low] = tuple.ports;
    [high, low]
}

/// What no service is addressed by may be the answer of a backend that services translate to. Writes
/// `meta.service`, `meta.rule`; and for `forward`, as `meta.slot`, the place of its `Return`, or that
/// of the `connection` of its pool, which is `pool`, if the packet is addressed to one.
#[inline(always)]
fn answer(
    frame: &[u8],
    meta: &mut Meta,
    (pool, connection): (Option<u32>, Option<&Found>),
    tables: &Tables,
) -> Result<(), Exit> {
    if meta.rule == Rule::IcmpError && about_tunnel(frame, meta, tables).is_some() {
        return Ok(());
    }
    // Health checks, above all: the balancer is a client of backends itself.
    if tables.own.contains(&meta.tuple.dst) {
        return Err(Exit::Punt);
    }
    // A pool first: one server may be behind services of both kinds, and no client has a pool's address.
    let found = match pool {
        Some(place) => connection.and_then(|connection| {
            Some((by_pool(&meta.tuple, place, tables, connection)?, connection.place))
        }),
        None => tables.answers.find(&meta.tuple),
    };
    (meta.service, meta.slot) = found.ok_or(Exit::Punt)?;
    // An IPv4 packet that was an IPv6 one is named by it.
    let is_hashed = pool.is_some() && meta.tuple.is_ipv6 || tables.fib.has_equal_ways();
    meta.hash = if is_hashed { tables.hasher.hash(&meta.tuple, true) } else { 0 };
    meta.rule = match meta.rule {
        Rule::Fragment => Rule::ReturnFragment,
        Rule::IcmpError => Rule::ReturnError,
        _ => Rule::Return,
    };
    Ok(())
}

/// An error about a tunnel's packet is the service's whose packet is inside. `meta` is then about
/// that one: its tuple, hash and slot. Whether the tunnel is the service's is left to `forward`.
#[cold]
fn about_tunnel(frame: &[u8], meta: &mut Meta, tables: &Tables) -> Option<()> {
    let end = usize::from(meta.l3_offset) + usize::from(meta.packet_len);
    let is_ipv6 = meta.tuple.is_ipv6;
    let quote = icmp::quote(frame.get(meta.l4_offset.into()..end)?, is_ipv6)?;
    let Tunnelled { flow, kind, .. } = quote::tunnel::inside(quote, is_ipv6)?;
    let place = tables.vips.lookup(&flow)?;
    let service = tables.service(place)?;
    let forward = service.source.spec().forward;
    if !matches!(forward, Forward::Tunnel(tunnel) if tunnel.kind == kind) {
        return None;
    }
    meta.hash = tables.hasher.hash(&flow, service.affinity == Affinity::Flow);
    meta.slot = reduce(meta.hash, service.slots.len());
    (meta.tuple, meta.service, meta.rule) = (flow, place, Rule::TunnelError);
    Some(())
}

/// The service of the connection `found`, which a packet to a pool seems to belong to.
#[inline(always)]
fn by_pool(tuple: &Tuple, pool: u32, tables: &Tables, found: &Found) -> Option<u32> {
    let pool = tables.pools.get(pool as usize)?;
    let [a, b, ..] = tuple.ports;
    let connection = found.connection();
    let is_backends = found.is_to(tuple.src, [a, b]) && connection.protocol == tuple.protocol;
    let service = tables.vips.lookup(&connection.flow()).filter(|_| is_backends)?;
    let pooled = tables.service(service)?.pooled.as_ref()?;
    Arc::ptr_eq(&pooled.pool, pool).then_some(service)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::burst::tests::burst_of;
    use crate::burst::{Burst, Fate};
    use crate::model::tests::spec;
    use crate::model::{DesiredState, HashKey, PortRange, Protocol, Service, ServiceSpec};
    use crate::sim::SimFrame;
    use crate::sim::packet::{BALANCER, Packet};
    use crate::stage::parse::parse;
    use crate::tables::compile::tests::{next_hops, ports};
    use crate::tables::compile::{Circumstances, compile};

    /// Tables with the ports and next hops of the tests of `compile`.
    pub(crate) fn tables(services: impl IntoIterator<Item = ServiceSpec>) -> Tables {
        tables_after(None, services)
    }

    /// The version of them after `previous`.
    pub(crate) fn tables_after(
        previous: Option<&Tables>,
        services: impl IntoIterator<Item = ServiceSpec>,
    ) -> Tables {
        let services = services.into_iter().map(|spec| Service::new(spec).unwrap()).collect();
        let desired = DesiredState::new(HashKey([7; 16]), services).unwrap();
        compile(&desired, &Circumstances::new(&ports(), &next_hops()), previous)
    }

    /// Frames that came by the first port, parsed and classified.
    pub(crate) fn classified(
        tables: &Tables,
        packets: impl IntoIterator<Item = Packet>,
    ) -> Burst<SimFrame> {
        assert_eq!(tables.ports[0].mac.0, BALANCER);
        let mut burst = burst_of(packets.into_iter().map(|p| SimFrame::new(&p.frame())));
        parse(&mut burst, &tables.ports[0]);
        classify(&mut burst, tables);
        burst
    }

    #[test]
    fn address_port_and_protocol_name_the_service() {
        let other = ServiceSpec { slots: Some(251), ..spec("other", "10.0.0.101", &["10.0.0.12"]) };
        let mut same_port = spec("dns", "10.0.0.100", &["10.0.0.11"]);
        same_port.vip.protocol = Protocol::Udp;
        let mut same_address = spec("tls", "10.0.0.100", &["10.0.0.11"]);
        same_address.vip.ports = PortRange::one(443);
        let specs = [
            spec("web", "10.0.0.100", &["10.0.0.11"]),
            spec("empty", "10.0.0.102", &[]),
            spec("web6", "fd00::100", &["fd00::11"]),
            other,
            same_port,
            same_address,
        ];
        let tables = tables(specs);
        let src = "198.51.100.7:40000";
        let src6 = "[2001:db8::7]:40000";
        let tcp = |dst| Packet::tcp(src, dst);
        for (name, packet, expect) in [
            ("web", tcp("10.0.0.100:80"), Ok(0)),
            ("IPv6", Packet::tcp(src6, "[fd00::100]:80"), Ok(2)),
            ("another address", tcp("10.0.0.101:80"), Ok(3)),
            ("another protocol", Packet::udp(src, "10.0.0.100:80"), Ok(4)),
            ("another port", tcp("10.0.0.100:443"), Ok(5)),
            ("no service's port", tcp("10.0.0.100:81"), Err(Exit::Punt)),
            ("port 0", tcp("10.0.0.100:0"), Err(Exit::Punt)),
            ("no service's address", tcp("10.0.0.1:80"), Err(Exit::Punt)),
            ("no service's protocol", Packet::udp(src, "10.0.0.101:80"), Err(Exit::Punt)),
            ("no backend: not for this stage to say", tcp("10.0.0.102:80"), Ok(1)),
        ] {
            let burst = classified(&tables, [packet]);
            let found = match burst.fate(0) {
                Fate::Send(_) => Ok(burst.meta(0).service),
                Fate::Exit(exit) => Err(exit),
            };
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn affinity_says_whether_ports_count() {
        for affinity in [Affinity::Flow, Affinity::Client] {
            let backends = ["10.0.0.11", "10.0.0.12"];
            let tables = tables([ServiceSpec { affinity, ..spec("web", "10.0.0.100", &backends) }]);
            let client = |host: u16, port: u16| {
                Packet::tcp(&format!("198.51.100.{host}:{port}"), "10.0.0.100:80")
            };
            let slots = |packets: Vec<Packet>| -> BTreeSet<u32> {
                let burst = classified(&tables, packets);
                let n = burst.frames().len();
                assert_eq!(usize::try_from(burst.live_and_punted().0).unwrap(), n);
                (0..n).map(|i| burst.meta(i).slot).collect()
            };
            let by_port = slots((0..60).map(|i| client(7, 40_000 + i)).collect()).len();
            let by_host = slots((0..60).map(|i| client(i, 40_000)).collect()).len();
            match affinity {
                Affinity::Flow => assert!(by_port > 55),
                Affinity::Client => assert_eq!(by_port, 1),
            }
            assert!(by_host > 55, "of 4,099 slots: {by_host}");
        }
    }
}
