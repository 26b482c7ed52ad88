//! Connection → the address and port of the pool that its packets leave by.

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::Affinity;
use crate::pool::{Connection, Found, units};
use crate::rate::Tick;
use crate::tables::{BackendEntry, Path, Pooled, ServiceTable, Station, Tables};
use crate::wire::{TCP, tcp};

/// Finds the connection of each packet of a service that has a pool, or opens one; and follows how
/// far it is. Reads `meta`; writes `meta.slot`: the connection's place in the pool, and
/// `meta.backend`: a connection stays on the backend that it was opened to, as long as there is one.
///
/// Drops: [`DropReason::PoolFull`], [`DropReason::NoConnection`].
#[inline(always)]
pub fn connect<F: Frame>(burst: &mut Burst<F>, tables: &Tables, now: Tick) {
    if !tables.pools.is_empty() {
        connect_all(burst, tables, now);
    }
}

#[inline(never)]
fn connect_all<F: Frame>(burst: &mut Burst<F>, tables: &Tables, now: Tick) {
    burst.for_each_live(|frame, meta| {
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        let Some(pooled) = &service.pooled else { return Ok(()) };
        let segment = Segment::read(frame.bytes(), meta);
        if meta.rule.is_return() {
            let found = pooled.pool.get(meta.slot).ok_or(DropReason::NoConnection)?;
            let flags = segment.map(|segment| segment.flags);
            if meta.rule != Rule::ReturnError {
                pooled.pool.update(&found, found.state.backend_sent(flags, units(now)));
            }
            return Ok(());
        }
        let hash = match service.affinity {
            Affinity::Flow => meta.hash,
            Affinity::Client => tables.hasher.hash(&meta.tuple, true),
        };
        from_client(meta, segment, (service, pooled), hash, now)
    });
}

/// What of a TCP segment says how far its connection is.
#[derive(Clone, Copy)]
struct Segment {
    flags: u8,
    sequence: u32,
}

impl Segment {
    /// `None`, if the packet has none, or not its header.
    fn read(frame: &[u8], meta: &Meta) -> Option<Self> {
        let is_whole = matches!(meta.rule, Rule::Flow | Rule::Return);
        if meta.tuple.protocol != TCP || !is_whole {
            return None;
        }
        let (header, _) = frame.get(meta.l4_offset.into()..)?.split_first_chunk::<14>()?;
        let [.., a, b, c, d, _, _, _, _, _, flags] = *header;
        Some(Self { flags, sequence: u32::from_be_bytes([a, b, c, d]) })
    }

    fn opens(self) -> bool {
        self.flags & (tcp::SYN | tcp::RST) == tcp::SYN
    }
}

fn from_client(
    meta: &mut Meta,
    segment: Option<Segment>,
    (service, pooled): (&ServiceTable, &Pooled),
    hash: u64,
    now: Tick,
) -> Result<(), Exit> {
    let Pooled { pool, idle_max, .. } = pooled;
    let found = pool.find(&meta.tuple, hash);
    let opens = segment.is_some_and(Segment::opens);
    if let Some(found) = &found
        && !(opens && found.state.may_reopen())
        && let Some(place) = backend_of(found, service)
    {
        let Found { state, connection, .. } = *found;
        (meta.slot, meta.backend) = (found.place, place);
        let next = state.client_sent(segment.map(|segment| segment.flags), units(now));
        if place == connection.place {
            if meta.rule != Rule::IcmpError {
                pool.update(found, next);
            }
        } else {
            // The list has changed; it is searched once for each connection.
            let _ = pool.rewrite(found, &Connection { place, ..connection }, next);
        }
        return Ok(());
    }
    let is_reset = segment.is_some_and(|segment| segment.flags & tcp::RST != 0);
    if is_reset || meta.rule == Rule::IcmpError {
        return Err(DropReason::NoConnection.into());
    }
    let entry = service.backends.get(usize::from(meta.backend)).ok_or(DropReason::NoBackend)?;
    let [a, b, c, d] = meta.tuple.ports;
    let (backend, backend_port) = end(entry, [c, d]).ok_or(DropReason::NoBackend)?;
    let connection = Connection {
        client: meta.tuple.src,
        vip: meta.tuple.dst,
        backend,
        client_port: [a, b],
        vip_port: [c, d],
        backend_port,
        is_tcp: meta.tuple.protocol == TCP,
        idle_max: *idle_max,
        place: meta.backend,
        isn: segment.map_or(0, |segment| segment.sequence),
    };
    meta.slot = match found {
        Some(found) if pool.rewrite(&found, &connection, found.state.reopened(units(now))) => {
            found.place
        }
        _ => pool.open(&connection, hash, now).ok_or(DropReason::PoolFull)?,
    };
    Ok(())
}

/// Place of a connection's backend in the service's list; `None`, if it is no longer there.
fn backend_of(found: &Found, service: &ServiceTable) -> Option<u16> {
    let Connection { place, backend, backend_port, vip_port, .. } = found.connection;
    let is_it = |entry: &BackendEntry| end(entry, vip_port) == Some((backend, backend_port));
    if service.backends.get(usize::from(place)).is_some_and(is_it) {
        return Some(place);
    }
    service.backends.iter().position(is_it).and_then(|place| u16::try_from(place).ok())
}

/// Address and port of a backend, for packets to a port of the service.
fn end(entry: &BackendEntry, vip_port: [u8; 2]) -> Option<([u8; 16], [u8; 2])> {
    match entry.path {
        Path::Nat(Station { address, port }) => Some((address, port.unwrap_or(vip_port))),
        Path::Plain | Path::Tunnel(..) => None,
    }
}
