//! Backend → the frame that leaves.

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::forward::answer::{self, Refusal};
use crate::forward::too_big::{self, Cut, Narrow};
use crate::forward::{fullnat, l2dsr, mss, nat, nat46, tunnel, tunnel_error};
use crate::frame::Frame;
use crate::model::{ClientAddress, MssClamp};
use crate::pool::Found;
use crate::state::State;
use crate::tables::next_hop::{Port, PortId};
use crate::tables::{HopEntry, Path, Pooled, ServiceTable, Station, Tables};
use crate::wire::{ipv4, ipv6};

/// Rewrites each frame for its backend's next hop. Reads all of `meta`; writes `meta.out`; counts
/// the service's traffic. What is too big may become an answer to its sender, or leave in pieces.
///
/// Drops: [`DropReason::NoConnection`], [`DropReason::NextHopUnresolved`], [`DropReason::TooBig`],
/// [`DropReason::TtlExceeded`], [`DropReason::AnswerLimit`], [`DropReason::BadChecksum`],
/// [`DropReason::NoHeadroom`], [`DropReason::NoBuffer`]. Punts errors about tunnels that nobody can do
/// anything about.
#[inline(never)]
pub fn forward<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    port: &Port,
    counters: &Counters,
    state: &mut State<F>,
) {
    let came = (burst.port(), port);
    burst.for_each(burst.requests() & !burst.connected(), |place, frame, meta| {
        request(frame, meta, place, (tables, None), came, (&mut *state, counters))
    });
    if burst.connected() != 0 {
        connected(burst, tables, port, (&mut *state, counters));
    }
    if burst.returns() & !burst.connected() != 0 {
        back(burst, tables, port, (state, counters));
    }
}

/// What has a connection of a pool, in both directions.
#[inline(never)]
fn connected<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    port: &Port,
    (state, counters): (&mut State<F>, &Counters),
) {
    let came = (burst.port(), port);
    let requests = burst.connected() & burst.requests();
    burst.for_each_connected(requests, |place, frame, meta, connection| {
        let connection = Some(&*connection);
        request(frame, meta, place, (tables, connection), came, (&mut *state, counters))
    });
    let returns = burst.connected() & burst.returns();
    burst.for_each_connected(returns, |place, frame, meta, connection| {
        let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
        let pooled = service.pooled.as_ref().ok_or(DropReason::NoBackend)?;
        let of = (tables, service, By::Connection(pooled, connection));
        back_of((place, frame, meta), of, came, (&mut *state, counters))
    });
}

/// What comes from backends goes to clients, with the VIP as its source; and clients are told of what has
/// become of a tunnel's packet.
#[inline(never)]
fn back<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    port: &Port,
    (state, counters): (&mut State<F>, &Counters),
) {
    let came = (burst.port(), port);
    burst.for_each(burst.returns() & !burst.connected(), |place, frame, meta| {
        if meta.rule == Rule::TunnelError {
            return tunnel_error::relay(frame, meta, tables, came.0, (&mut *state, counters));
        }
        let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
        let found = tables.answers.get(meta.slot).ok_or(DropReason::NoBackend)?;
        if found.client_prefix.is_some() {
            let of = (tables, service, &found.vip);
            return back_of_46((place, frame, meta), of, came, (&mut *state, counters));
        }
        let of = (tables, service, By::Station(&found.vip));
        back_of((place, frame, meta), of, came, (&mut *state, counters))
    });
}

/// Sends a client's packet to its backend. Compiled for those of a connection, and for all others.
#[inline(always)]
fn request<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    place: usize,
    (tables, connection): (&Tables, Option<&Found>),
    came: (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
    let backend = service.backends.get(usize::from(meta.backend)).ok_or(DropReason::NoBackend)?;
    let hop = backend.hop(meta.hash).ok_or(DropReason::NextHopUnresolved)?;
    meta.out = hop.out;
    let to = (service, &backend.path, connection);
    if service.mss != MssClamp::Keep && is_sent(frame, meta, hop, (service, &backend.path)) {
        mss::clamp(frame, meta, service.mss, packet_max(hop, &backend.path).into());
    }
    if let Err(why) = deliver(frame, meta, hop, came.0, to) {
        not_as_it_is((place, frame, meta), why, (to, hop), came, (state, counters))?;
    }
    counters.forwarded(service.id, meta.packet_len.into());
    Ok(())
}

/// What says whose an answer is.
#[derive(Clone, Copy)]
enum By<'a> {
    /// Where it comes from, which has this instead.
    Station(&'a Station),
    /// That, and the prefix that it is sent to.
    Prefix(&'a Station),
    Connection(&'a Pooled, &'a Found),
}

/// As [`back_of`], out of the way of others.
#[inline(never)]
fn back_of_46<F: Frame>(
    frame: (usize, &mut F, &mut Meta),
    (tables, service, vip): (&Tables, &ServiceTable, &Station),
    came: (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    back_of(frame, (tables, service, By::Prefix(vip)), came, (state, counters))
}

/// What becomes of a client's packet that did not fit the way to its backend, or has come too far.
#[cold]
#[inline(never)]
fn not_as_it_is<F: Frame>(
    (place, frame, meta): (usize, &mut F, &Meta),
    why: DropReason,
    (to, hop): ((&ServiceTable, &Path, Option<&Found>), &HopEntry),
    came: (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    let (service, path, _) = to;
    let way = Narrow {
        hop,
        mtu: match &service.pooled {
            Some(pooled) => fullnat::mtu_of_client(hop.mtu, pooled, meta.tuple.is_ipv6),
            None => packet_max(hop, path),
        },
        cut: match path {
            Path::Plain => Cut::Nothing,
            Path::Tunnel(..) => Cut::Outer,
            Path::Nat(..) => Cut::Translated,
        },
    };
    let whole = |frame: &mut F, hop: &HopEntry| {
        mss::clamp(frame, meta, service.mss, packet_max(way.hop, path).into());
        deliver(frame, meta, hop, came.0, to)
    };
    refused((place, frame, meta), (why, way), came, (state, counters), whole)
}

/// Will it leave as one packet, not be answered or cut? An answer quotes what came.
#[cold]
fn is_sent<F: Frame>(
    frame: &F,
    meta: &Meta,
    hop: &HopEntry,
    (service, path): (&ServiceTable, &Path),
) -> bool {
    let packet_len = match &service.pooled {
        Some(pooled) if pooled.pool.is_ipv6() != meta.tuple.is_ipv6 => {
            let header_bytes = meta.l4_offset.saturating_sub(meta.l3_offset.into());
            let new_bytes =
                if meta.tuple.is_ipv6 { ipv4::HEADER_BYTES } else { ipv6::HEADER_BYTES };
            usize::from(meta.packet_len.saturating_sub(header_bytes)) + new_bytes
        }
        _ => meta.packet_len.into(),
    };
    packet_len <= packet_max(hop, path).into()
        && (!matches!(path, Path::Nat(..)) || nat::has_hop_left(frame, meta))
}

/// The largest packet that fits the way.
fn packet_max(hop: &HopEntry, path: &Path) -> u16 {
    hop.mtu.saturating_sub(u16::try_from(path.overhead()).unwrap_or(u16::MAX))
}

/// Gives the frame the form that it leaves in.
#[inline(always)]
fn deliver<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    (service, path, connection): (&ServiceTable, &Path, Option<&Found>),
) -> Result<(), DropReason> {
    if let Some(found) = connection {
        let (Some(pooled), Path::Nat(station, _)) = (&service.pooled, path) else {
            return Err(DropReason::NoBackend);
        };
        return fullnat::to_backend(frame, meta, hop, came_by, pooled, station, found);
    }
    match path {
        Path::Plain => l2dsr::forward(frame, meta, hop, came_by),
        Path::Tunnel(kind, ends) => tunnel(frame, meta, hop, came_by, (*kind, ends)),
        Path::Nat(station, None) => nat::to_backend(frame, meta, hop, came_by, station),
        Path::Nat(station, Some(embedding)) => {
            nat46::to_backend(frame, meta, hop, came_by, (embedding, station))
        }
    }
}

/// What becomes of a packet that cannot leave as it should: it leaves in pieces, or becomes an answer
/// to its sender, or is dropped.
#[cold]
fn refused<F: Frame>(
    (place, frame, meta): (usize, &mut F, &Meta),
    (why, way): (DropReason, Narrow<'_>),
    (came_by, port): (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
    whole: impl FnOnce(&mut F, &HopEntry) -> Result<(), DropReason>,
) -> Result<(), Exit> {
    match why {
        DropReason::TooBig => {
            too_big::handle(frame, meta, way, (place, came_by, port), (state, counters), whole)
        }
        DropReason::TtlExceeded => {
            let refusal = Refusal::TtlExceeded;
            Err(answer::tell(frame, meta, refusal, (came_by, port), (state, counters)))
        }
        other => Err(other.into()),
    }
}

/// Sends the answer of a backend to the client, with the VIP as its source.
///
/// Compiled for services with a pool, and for those without.
#[inline(always)]
fn back_of<F: Frame>(
    (place, frame, meta): (usize, &mut F, &mut Meta),
    (tables, service, by): (&Tables, &ServiceTable, By<'_>),
    came: (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    let (came_by, port) = came;
    let (client, is_ipv6) = match by {
        By::Connection(_, found) => (found.connection().client, found.connection().is_ipv6()),
        By::Prefix(_) => (nat46::client(&meta.tuple.dst), false),
        By::Station(_) => (meta.tuple.dst, meta.tuple.is_ipv6),
    };
    let hop =
        tables.fib.lookup(&client, is_ipv6, meta.hash).ok_or(DropReason::NextHopUnresolved)?;
    meta.out = hop.out;
    let mtu = fullnat::mtu_before(hop.mtu, meta.tuple.is_ipv6, is_ipv6);
    let is_changed = match by {
        By::Connection(pooled, _) if pooled.client_address != ClientAddress::Hidden => true,
        _ => service.mss != MssClamp::Keep,
    };
    if is_changed && meta.packet_len <= mtu && nat::has_hop_left(frame, meta) {
        if service.mss != MssClamp::Keep {
            mss::clamp(frame, meta, service.mss, mtu.into());
        }
        if let By::Connection(pooled, found) = by {
            fullnat::make_room(frame, meta, (pooled, found), port.mtu);
        }
    }
    let deliver = |frame: &mut F, meta: &Meta, hop: &HopEntry| match by {
        By::Connection(pooled, found) => {
            fullnat::to_client(frame, meta, hop, came_by, (pooled, found))
        }
        By::Prefix(vip) => nat46::to_client(frame, meta, hop, came_by, vip),
        By::Station(vip) => nat::to_client(frame, meta, hop, came_by, vip),
    };
    if let Err(why) = deliver(frame, meta, hop) {
        let whole = |frame: &mut F, hop: &HopEntry| deliver(frame, meta, hop);
        let way = Narrow { hop, mtu, cut: Cut::Translated };
        refused((place, frame, meta), (why, way), came, (state, counters), whole)?;
    }
    counters.forwarded(service.id, meta.packet_len.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::burst::{Burst, Fate, WorkerId};
    use crate::model::tests::spec;
    use crate::model::{Forward, ServiceSpec};
    use crate::rate::Tick;
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::classify::tests::{classified, tables};
    use crate::stage::select::select;
    use crate::state::Settings;
    use crate::tables::next_hop::PortId;
    use crate::tables::{BackendEntry, ServiceId};

    fn tunnel() -> ServiceSpec {
        // Behind two gateways, one a port.
        ServiceSpec { forward: Forward::IPIP, ..spec("far", "10.0.0.101", &["10.2.0.1"]) }
    }

    fn run(burst: &mut Burst<SimFrame>, tables: &Tables, counters: &Counters) {
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1000 };
        let mut state = State::new(settings);
        forward(burst, tables, &tables.ports[0], counters, &mut state);
    }

    fn selected(tables: &Tables, packets: impl IntoIterator<Item = Packet>) -> Burst<SimFrame> {
        let mut burst = classified(tables, packets);
        select(&mut burst, tables, &Counters::new(1), Tick(0));
        burst
    }

    #[test]
    fn each_service_forwards_in_its_own_mode_and_counts_its_traffic() {
        let tables = tables([spec("near", "10.0.0.100", &["10.0.0.11"]), tunnel()]);
        let client = "198.51.100.7:40000";
        let near = Packet::tcp(client, "10.0.0.100:80");
        let far = Packet::tcp(client, "10.0.0.101:80").with(|p| p.padding = 3);
        let big =
            near.clone().with(|p| (p.payload, p.fragment) = (vec![0; 1461], Some((0, false))));
        let counters = Counters::new(2);
        let given = [near.clone(), far.clone(), near.clone(), big];
        let mut burst = selected(&tables, given);
        run(&mut burst, &tables, &counters);

        assert_eq!(burst.drops()[DropReason::TooBig as usize], 1);
        let lengths: Vec<_> = burst.frames().iter().map(|frame| frame.bytes().len()).collect();
        let (near_len, far_len) = (near.ip().len(), far.ip().len());
        assert_eq!(lengths[..3], [14 + near_len, 14 + 20 + far_len, 14 + near_len]);
        let traffic = |id| {
            let traffic = counters.service(ServiceId(id)).unwrap();
            (traffic.frames.get(), traffic.bytes.get())
        };
        assert_eq!(traffic(0), (2, 2 * near_len as u64), "what was sent, as it came in");
        assert_eq!(traffic(1), (1, far_len as u64));
    }

    #[test]
    fn equal_ways_share_the_flows_and_keep_each() {
        let tables = tables([tunnel()]);
        let counters = Counters::new(1);
        let mut ways = BTreeMap::new();
        for round in 0..8 {
            for _ in 0..2 {
                let packet = |i| {
                    let client = format!("198.51.100.{i}:{}", 40_000 + round);
                    Packet::tcp(&client, "10.0.0.101:80")
                };
                let mut burst = selected(&tables, (0..64).map(packet));
                run(&mut burst, &tables, &counters);
                for i in 0..64 {
                    let Fate::Send(out) = burst.fate(i) else { panic!("{i}") };
                    let before = ways.insert((round, i), out);
                    assert!(before.is_none_or(|before| before == out), "{i} took another way");
                }
            }
        }
        let first = ways.values().filter(|&&out| out == PortId(0)).count();
        assert!((200..=312).contains(&first), "{first} of 512 took the first of two ways");
    }

    #[test]
    fn without_a_way_or_a_backend_nothing_leaves() {
        let mut tables = tables([spec("near", "10.0.0.100", &["10.0.0.11"])]);
        let service = Arc::make_mut(&mut tables.services[0]);
        service.backends = service
            .backends
            .iter()
            .map(|entry| BackendEntry::without_ways(entry.path, entry.may_serve))
            .collect();
        let counters = Counters::new(1);
        for (service, backend, expect) in [
            (0, 0, DropReason::NextHopUnresolved),
            (0, 1, DropReason::NoBackend),
            (1, 0, DropReason::NoBackend),
        ] {
            let packet = Packet::tcp("198.51.100.7:40000", "10.0.0.100:80");
            let mut burst = selected(&tables, [packet]);
            burst.for_each_live(|_, meta| {
                (meta.service, meta.backend) = (service, backend);
                Ok(())
            });
            run(&mut burst, &tables, &counters);
            assert_eq!(burst.drops()[expect as usize], 1, "{service} {backend}");
        }
        assert_eq!(counters.service(ServiceId(0)).unwrap().frames.get(), 0);
    }
}
