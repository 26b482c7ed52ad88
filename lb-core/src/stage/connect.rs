//! Connection → the address and port of the pool that its packets leave by.

use zerocopy::FromBytes;

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::Affinity;
use crate::pool::{Connection, Found, units};
use crate::rate::Tick;
use crate::sign::Sign;
use crate::tables::{BackendEntry, Path, Pooled, ServiceTable, Station, Tables};
use crate::wire::TCP;
use crate::wire::tcp::Tcp;

/// Finds the connection of each packet of a service that has a pool, or opens one; and follows how
/// far it is. Reads `meta`; writes `meta.slot`: the connection's place in the pool, and
/// `meta.backend`: a connection stays on the backend that it was opened to, as long as that may serve.
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
        let sign = Sign::of(frame.bytes(), meta);
        if meta.rule.is_return() {
            let found = pooled.pool.get(meta.slot).ok_or(DropReason::NoConnection)?;
            if meta.rule != Rule::ReturnError {
                pooled.pool.update(&found, found.state.backend_sent(sign, units(now)));
            }
            return Ok(());
        }
        let hash = match service.affinity {
            Affinity::Flow => meta.hash,
            Affinity::Client => tables.hasher.hash(&meta.tuple, true),
        };
        from_client((frame.bytes(), meta), sign, (service, pooled), hash, now)
    });
}

/// The sequence number of a TCP segment; `None`, if the packet has none.
fn sequence(frame: &[u8], meta: &Meta) -> Option<u32> {
    let is_tcp = meta.tuple.protocol == TCP && meta.rule.has_segment();
    let segment = frame.get(meta.l4_offset.into()..).filter(|_| is_tcp)?;
    Some(Tcp::ref_from_prefix(segment).ok()?.0.sequence.get())
}

fn from_client(
    (frame, meta): (&[u8], &mut Meta),
    sign: Sign,
    (service, pooled): (&ServiceTable, &Pooled),
    hash: u64,
    now: Tick,
) -> Result<(), Exit> {
    let Pooled { pool, idle_max, .. } = pooled;
    let found = pool.find(&meta.tuple, hash);
    if let Some(found) = &found
        && !(sign == Sign::Opens && found.state.may_reopen())
        && let Some(place) = backend_of(found, service).filter(|place| service.may_serve(*place))
    {
        let Found { state, connection, .. } = *found;
        (meta.slot, meta.backend) = (found.place, place);
        let next = state.client_sent(sign, units(now));
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
    if sign == Sign::Ends || meta.rule == Rule::IcmpError {
        return Err(DropReason::NoConnection.into());
    }
    let entry = service.backends.get(usize::from(meta.backend)).ok_or(service.without_slots)?;
    let [a, b, c, d] = meta.tuple.ports;
    let (backend, backend_port) = end(entry, [c, d]).ok_or(DropReason::NoBackend)?;
    let connection = Connection {
        client: meta.tuple.src,
        vip: meta.tuple.dst,
        backend,
        client_port: [a, b],
        vip_port: [c, d],
        backend_port,
        protocol: meta.tuple.protocol,
        idle_max: *idle_max,
        place: meta.backend,
        isn: sequence(frame, meta).unwrap_or(0),
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

#[cfg(test)]
mod tests;
