//! Connection → the address and port of the pool that its packets leave by.

use zerocopy::FromBytes;

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Frame};
use crate::model::{Affinity, ClientAddress};
use crate::pool::{Connection, Found, Glance, units};
use crate::rate::Tick;
use crate::sign::Sign;
use crate::tables::{BackendEntry, Path, Pooled, ServiceTable, Station, Tables};
use crate::wire::TCP;
use crate::wire::tcp::Tcp;

/// Finds the connection of each packet of a service that has a pool, or opens one; and follows how
/// far it is. Reads `meta`; writes its place in the pool, `meta.slot`, and `meta.backend`: a connection
/// stays on the backend that it was opened to, as long as that may serve. And the frame's connection, where
/// `forward` needs it.
///
/// Drops: [`DropReason::PoolFull`], [`DropReason::NoConnection`].
#[inline(always)]
pub fn connect<F: Frame>(burst: &mut Burst<F>, tables: &Tables, now: Tick) {
    if burst.connected() != 0 {
        connect_all(burst, tables, now);
    }
}

#[inline(never)]
fn connect_all<F: Frame>(burst: &mut Burst<F>, tables: &Tables, now: Tick) {
    let mut glances = [Glance::default(); BURST_MAX];
    burst.for_each_meta(burst.connected() & burst.requests(), |i, meta| {
        if let Some((service, pooled)) = pooled(meta, tables) {
            glances[i] = pooled.pool.glance(hash(meta, service, tables));
        }
        Ok(())
    });
    burst.for_each_connected(burst.connected(), |i, frame, meta, connection| {
        let Some((service, pooled)) = pooled(meta, tables) else { return Ok(()) };
        let sign = Sign::of(frame.bytes(), meta);
        if meta.rule.is_return() {
            return answered(meta, sign, pooled, connection, now);
        }
        let found = glances[i].find(&meta.tuple, |state| state.knows(sign, units(now)));
        if let Some(found) = found
            && is_to_its_backend(&found, service)
        {
            (meta.slot, meta.backend) = (found.place, found.backend_place());
            if pooled.client_address != ClientAddress::Hidden {
                *connection = found;
            }
            return Ok(());
        }
        *connection = by_news((frame.bytes(), meta), sign, (service, pooled), tables, now)?;
        Ok(())
    });
}

/// Follows the connection of a backend's answer, which was found by its place.
#[inline(always)]
fn answered(
    meta: &Meta,
    sign: Sign,
    pooled: &Pooled,
    connection: &mut Found,
    now: Tick,
) -> Result<(), Exit> {
    // A packet before it in the burst may have changed it since.
    if let Some(state) = pooled.pool.state_of(connection) {
        connection.state = state;
    } else {
        *connection = pooled.pool.get(connection.place).ok_or(DropReason::NoConnection)?;
    }
    if meta.rule != Rule::ReturnError && !connection.state.knows(sign, units(now)) {
        pooled.pool.update(connection, connection.state.backend_sent(sign, units(now)));
    }
    Ok(())
}

#[inline(always)]
fn pooled<'a>(meta: &Meta, tables: &'a Tables) -> Option<(&'a ServiceTable, &'a Pooled)> {
    let service = tables.service(meta.service)?;
    Some((service, service.pooled.as_ref()?))
}

/// The hash that a connection is found by: with ports.
#[inline(always)]
fn hash(meta: &Meta, service: &ServiceTable, tables: &Tables) -> u64 {
    match service.affinity {
        Affinity::Flow => meta.hash,
        Affinity::Client => tables.hasher.hash(&meta.tuple, true),
    }
}

/// The sequence number of a TCP segment; `None`, if the packet has none.
fn sequence(frame: &[u8], meta: &Meta) -> Option<u32> {
    let is_tcp = meta.tuple.protocol == TCP && meta.rule.has_segment();
    let segment = frame.get(meta.l4_offset.into()..).filter(|_| is_tcp)?;
    Some(Tcp::ref_from_prefix(segment).ok()?.0.sequence.get())
}

/// The connection of a client's packet that says something new of it, or opens it.
#[inline(never)]
fn by_news(
    (frame, meta): (&[u8], &mut Meta),
    sign: Sign,
    (service, pooled): (&ServiceTable, &Pooled),
    tables: &Tables,
    now: Tick,
) -> Result<Found, Exit> {
    let hash = hash(meta, service, tables);
    let found = pooled.pool.find(&meta.tuple, hash);
    if let Some(found) = &found
        && !(sign == Sign::Opens && found.state.may_reopen())
        && let Some(place) = backend_of(found, service).filter(|place| service.may_serve(*place))
    {
        (meta.slot, meta.backend) = (found.place, place);
        follow(meta, (pooled, found), (sign, now));
        return Ok(*found);
    }
    opened((frame, meta), sign, (service, pooled), (found.as_ref(), hash), now)
}

/// Writes down what is new of a connection after a client's packet.
fn follow(meta: &Meta, (pooled, found): (&Pooled, &Found), (sign, now): (Sign, Tick)) {
    let next = found.state.client_sent(sign, units(now));
    if meta.backend != found.connection().place {
        // The list has changed; it is searched once for each connection.
        let connection = Connection { place: meta.backend, ..*found.connection() };
        let _ = pooled.pool.rewrite(found, &connection, next);
    } else if meta.rule != Rule::IcmpError {
        pooled.pool.update(found, next);
    }
}

/// A client's new connection, in the place of `found` if there was one of the same client and port.
fn opened(
    (frame, meta): (&[u8], &mut Meta),
    sign: Sign,
    (service, pooled): (&ServiceTable, &Pooled),
    (found, hash): (Option<&Found>, u64),
    now: Tick,
) -> Result<Found, Exit> {
    if sign == Sign::Ends || meta.rule == Rule::IcmpError {
        return Err(DropReason::NoConnection.into());
    }
    let Pooled { pool, idle_max, .. } = pooled;
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
        idle_max: *idle_max,
        protocol: meta.tuple.protocol,
        unused: 0,
        place: meta.backend,
        isn: sequence(frame, meta).unwrap_or(0),
    };
    meta.slot = match found {
        Some(found) if pool.rewrite(found, &connection, found.state.reopened(units(now))) => {
            found.place
        }
        _ => pool.open(&connection, hash, now).ok_or(DropReason::PoolFull)?,
    };
    Ok(pool.get(meta.slot).ok_or(DropReason::NoConnection)?)
}

/// Is a connection's backend still at its place in the service's list, and may serve?
#[inline(always)]
fn is_to_its_backend(found: &Found, service: &ServiceTable) -> bool {
    let entry = service.backends.get(usize::from(found.backend_place()));
    entry.is_some_and(|entry| entry.may_serve && is_to(found, entry))
}

/// Place of a connection's backend in the service's list; `None`, if it is no longer there.
fn backend_of(found: &Found, service: &ServiceTable) -> Option<u16> {
    if is_to_its_backend(found, service) {
        return Some(found.backend_place());
    }
    let place = service.backends.iter().position(|entry| is_to(found, entry))?;
    u16::try_from(place).ok()
}

/// Is the connection to this backend?
#[inline(always)]
fn is_to(found: &Found, entry: &BackendEntry) -> bool {
    end(entry, found.connection().vip_port)
        .is_some_and(|(address, port)| found.is_to(address, port))
}

/// Address and port of a backend, for packets to a port of the service.
#[inline(always)]
fn end(entry: &BackendEntry, vip_port: [u8; 2]) -> Option<([u8; 16], [u8; 2])> {
    match entry.path {
        Path::Nat(Station { address, port }, _) => Some((address, port.unwrap_or(vip_port))),
        Path::Plain | Path::Tunnel(..) => None,
    }
}

#[cfg(test)]
mod tests;
