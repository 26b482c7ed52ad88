//! Full network address translation: both ends change. Towards a backend the source becomes an
//! address and port of the pool, so that the answer comes back here whatever the backend's routes are.
//! The two sides may be of different families.

use super::client_address::{self, Stream};
use super::nat::{self, Changes};
use super::siit::{self, Ends};
use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::{ClientAddress, MssClamp};
use crate::pool::Found;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Pooled, Station};

/// Sends a packet to the backend at `station`, from its connection's place in the pool. The connection is `found`,
/// which is looked at only if the backend is told who the client is.
///
/// # Errors
/// As [`nat::forward`] and [`siit::forward`]. Nothing has changed then.
#[inline(always)]
pub fn to_backend<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    pooled: &Pooled,
    station: &Station,
    found: &Found,
) -> Result<(), DropReason> {
    without_padding(frame, meta);
    if pooled.client_address != ClientAddress::Hidden {
        return telling(frame, meta, hop, came_by, pooled, station, found);
    }
    let src = pooled.pool.station(meta.slot);
    translate(frame, meta, hop, came_by, (&src, station), pooled.pool.is_ipv6())
}

/// As [`to_backend`], with what tells who the client is.
#[inline(never)]
fn telling<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    pooled: &Pooled,
    station: &Station,
    found: &Found,
) -> Result<(), DropReason> {
    let newer = newer(found, pooled);
    let stream = Stream::of(newer.as_ref().unwrap_or(found), pooled.client_address);
    // It has to fit as well, if it has to be there.
    let more = stream.header_bytes_of(frame.bytes(), meta)?;
    let narrow = &HopEntry { mtu: hop.mtu.saturating_sub(more), ..*hop };
    let src = pooled.pool.station(meta.slot);
    translate(frame, meta, narrow, came_by, (&src, station), pooled.pool.is_ipv6())?;
    stream.to_backend(frame, meta, hop.mtu)
}

/// Sends an answer of the connection `found` to its client.
///
/// # Errors
/// As [`to_backend`].
#[inline(never)]
pub fn to_client<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    (pooled, found): (&Pooled, &Found),
) -> Result<(), DropReason> {
    let connection = found.connection();
    let src = Station { address: connection.vip, port: Some(connection.vip_port) };
    let dst = Station { address: connection.client, port: Some(connection.client_port) };
    without_padding(frame, meta);
    translate(frame, meta, hop, came_by, (&src, &dst), connection.is_ipv6())?;
    if pooled.client_address == ClientAddress::Hidden {
        Ok(())
    } else {
        told(frame, meta, (pooled, found))
    }
}

/// What else changes in an answer whose backend was told who the client is.
#[inline(never)]
fn told<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    (pooled, found): (&Pooled, &Found),
) -> Result<(), DropReason> {
    let newer = newer(found, pooled);
    let found = newer.as_ref().unwrap_or(found);
    let stream = Stream::of(found, pooled.client_address);
    if meta.rule == Rule::ReturnError {
        return stream.error_to_client(frame, meta);
    }
    if stream.to_client(frame, meta)? {
        pooled.pool.update(found, found.state.with_header());
    }
    Ok(())
}

/// Padding is no part of a stream that something may be put into.
#[inline(always)]
fn without_padding<F: Frame>(frame: &mut F, meta: &Meta) {
    frame.truncate(usize::from(meta.l3_offset) + usize::from(meta.packet_len));
}

/// The connection after the packets before it in the burst, if they make a difference: does the backend
/// have the PROXY header?
#[inline(always)]
fn newer(found: &Found, pooled: &Pooled) -> Option<Found> {
    match pooled.client_address {
        ClientAddress::Proxy => pooled.pool.state_of(found).map(|state| found.with_state(state)),
        ClientAddress::Hidden | ClientAddress::Toa => None,
    }
}

#[inline(always)]
fn translate<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    (src, dst): (&Station, &Station),
    to_ipv6: bool,
) -> Result<(), DropReason> {
    if meta.tuple.is_ipv6 == to_ipv6 {
        let changes = Changes { src: Some(src), dst: Some(dst) };
        nat::forward(frame, meta, hop, came_by, changes)
    } else {
        let ends = if to_ipv6 { Ends::ipv6(*src, *dst) } else { Ends::ipv4(*src, *dst) };
        siit::forward(frame, meta, hop, came_by, ends)
    }
}

/// The largest packet of a client, in bytes, that fits a way to the backend of `hop_mtu` bytes.
#[must_use]
pub fn mtu_of_client(hop_mtu: u16, pooled: &Pooled, is_ipv6: bool) -> u16 {
    let more = match pooled.client_address {
        ClientAddress::Proxy => client_address::proxy_bytes(is_ipv6),
        ClientAddress::Hidden | ClientAddress::Toa => 0,
    };
    mtu_before(hop_mtu.saturating_sub(more), is_ipv6, pooled.pool.is_ipv6())
}

/// The largest packet before translation that fits `hop_mtu` bytes after it.
#[must_use]
pub fn mtu_before(hop_mtu: u16, is_ipv6: bool, to_ipv6: bool) -> u16 {
    if is_ipv6 == to_ipv6 { hop_mtu } else { siit::mtu_before(hop_mtu, is_ipv6) }
}

/// Keeps the client's segments so small that there is room to tell who it is: lowers the size that
/// the backend announces, in a packet that came by a port of `mtu` bytes.
pub fn make_room<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    (pooled, found): (&Pooled, &Found),
    mtu: u16,
) {
    let is_ipv6 = found.connection().is_ipv6();
    let more = match pooled.client_address {
        ClientAddress::Hidden => return,
        ClientAddress::Toa => client_address::toa_bytes(is_ipv6),
        ClientAddress::Proxy => client_address::proxy_bytes(is_ipv6),
    };
    if meta.rule == Rule::Return {
        super::mss::clamp(frame, meta, MssClamp::Auto, mtu.saturating_sub(more).into());
    }
}
