//! ICMP errors about the packets that the balancer itself sends: a tunnel's. Whoever sent the packet
//! inside is told, in the VIP's name (RFC 2003 §4, RFC 2473 §8).
//!
//! Nobody can prove that an error is true. It is believed if it quotes what the balancer could have
//! sent: the packet of a client to a service, in that service's kind of tunnel, from an address of the
//! balancer to one of the service's backends. The client checks the rest, as of any error.

use super::L2Header;
use super::answer::{too_big, write};
use crate::burst::{Exit, Meta};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::quote::tunnel::{self, Tunnelled};
use crate::state::State;
use crate::tables::next_hop::PortId;
use crate::tables::{BackendEntry, Path, ServiceTable, Tables};
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::icmp::{self, Says};
use crate::wire::{ipv4, ipv6};

/// Bytes of a packet that every IPv4 link carries (RFC 791 §3.2).
const IPV4_MTU_MIN: usize = 68;
/// ICMP, unreachable: the host.
const HOST: u8 = 1;
/// `ICMPv6`, unreachable: the address.
const ADDRESS: u8 = 3;

/// Turns the error into one for the client of the packet inside the tunnel, and counts it.
///
/// # Errors
/// Punts what the client could do nothing about, and what quotes no packet of a tunnel of the
/// service. Drops: [`DropReason::AnswerLimit`]; [`DropReason::BadChecksum`], which a new one would
/// hide; [`DropReason::NextHopUnresolved`], if there is no way to the client;
/// [`DropReason::NoHeadroom`].
#[cold]
pub fn relay<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    tables: &Tables,
    came_by: PortId,
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    let service = tables.service(meta.service).ok_or(Exit::Punt)?;
    let (l3, l4) = (usize::from(meta.l3_offset), usize::from(meta.l4_offset));
    let bytes = frame.bytes();
    let (header, message) = bytes
        .get(l3..l3 + usize::from(meta.packet_len))
        .and_then(|packet| packet.split_at_checked(l4.saturating_sub(l3)))
        .ok_or(DropReason::Truncated)?;
    // The tunnel's family; `meta` is about the packet inside.
    let addresses = match header.split_first_chunk::<{ ipv6::HEADER_BYTES }>() {
        Some((ip, _)) if ip[0] >> 4 == 6 => Some(Sum::default().plus(&ip[8..])),
        _ => None,
    };
    let is_ipv6 = addresses.is_some();
    let (&says, quote) = message.split_first_chunk().ok_or(DropReason::Truncated)?;
    let quote = icmp::without_extensions(says, quote, is_ipv6);
    let tunnelled = tunnel::inside(quote, is_ipv6).ok_or(Exit::Punt)?;
    if icmp::checksum(message, addresses)? != Checksum::ZERO {
        return Err(DropReason::BadChecksum.into());
    }
    let head = for_client(says, is_ipv6, &tunnelled).ok_or(Exit::Punt)?;
    // Also for those that turn out to be nobody's: the search is not free.
    if !state.answers.allow(state.now) {
        return Err(DropReason::AnswerLimit.into());
    }
    meta.backend = backend_of(service, meta.slot, &tunnelled).ok_or(Exit::Punt)?;
    let Tunnelled { flow, offset, packet, .. } = tunnelled;
    let hop = tables.fib.lookup(&flow.src, flow.is_ipv6, meta.hash);
    let hop = hop.ok_or(DropReason::NextHopUnresolved)?;
    let l2 = L2Header::new(hop, came_by, bytes.get(..l3).ok_or(DropReason::Truncated)?);
    let start = l4 + icmp::HEADER_BYTES + offset;
    let quote = start..start + packet.len();
    write(frame, quote, &l2, (flow.is_ipv6, [flow.dst, flow.src]), head)?;
    meta.out = hop.out;
    counters.answered.add(1);
    Ok(())
}

/// What the client is told; `None`, if there is nothing that it could do.
fn for_client(says: Says, is_ipv6: bool, tunnelled: &Tunnelled<'_>) -> Option<Says> {
    let [kind, code, _, _, mtu @ ..] = says;
    match (kind, code) {
        (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED) if !is_ipv6 => {
            fitting(u32::from_be_bytes(mtu) & 0xffff, is_ipv6, tunnelled)
        }
        (icmp::V6_TOO_BIG, _) if is_ipv6 => fitting(u32::from_be_bytes(mtu), is_ipv6, tunnelled),
        // Not the client's fault (RFC 2003 §4.1), and only pieces of ours are put together.
        (icmp::UNREACHABLE, icmp::SOURCE_ROUTE_FAILED) if !is_ipv6 => None,
        (icmp::UNREACHABLE, _) | (icmp::TIME_EXCEEDED, 0) if !is_ipv6 => Some(lost(tunnelled)),
        (icmp::V6_UNREACHABLE, _) | (icmp::V6_TIME_EXCEEDED, 0) if is_ipv6 => Some(lost(tunnelled)),
        _ => None,
    }
}

/// The backend cannot be reached: where in the tunnel the packet was lost, and that there is one, is
/// not the client's affair (RFC 2003 §4.3, RFC 2473 §8.1).
fn lost(Tunnelled { flow, .. }: &Tunnelled<'_>) -> Says {
    let (kind, code) =
        if flow.is_ipv6 { (icmp::V6_UNREACHABLE, ADDRESS) } else { (icmp::UNREACHABLE, HOST) };
    [kind, code, 0, 0, 0, 0, 0, 0]
}

/// A tunnel's packet of `mtu` bytes would fit. `None`, if the client is asked for what it does
/// already, or for less than it can be.
fn fitting(mtu: u32, is_ipv6: bool, tunnelled: &Tunnelled<'_>) -> Option<Says> {
    let Tunnelled { kind, flow, packet_len, .. } = tunnelled;
    let header_bytes = if is_ipv6 { ipv6::HEADER_BYTES } else { ipv4::HEADER_BYTES };
    // Of more than 16 bits: as much as there can be.
    let mtu = usize::from(u16::try_from(mtu).unwrap_or(u16::MAX));
    let mtu = mtu.checked_sub(header_bytes + kind.shim_bytes())?;
    let mtu = if flow.is_ipv6 { mtu.max(ipv6::MTU_MIN.into()) } else { mtu };
    let is_of_use = mtu >= IPV4_MTU_MIN && mtu < *packet_len;
    is_of_use.then(|| too_big(u16::try_from(mtu).unwrap_or(u16::MAX), flow.is_ipv6))
}

/// Place of the backend that the tunnel's packet went to: most likely the slot's; `None`, if the
/// service has none such.
fn backend_of(service: &ServiceTable, slot: u32, tunnelled: &Tunnelled<'_>) -> Option<u16> {
    let is_it = |backend: &BackendEntry| match &backend.path {
        Path::Tunnel(_, ends) => ends.are_of(&tunnelled.outer),
        Path::Plain | Path::Nat(..) => false,
    };
    let slots = service.slots.slots().get(slot as usize);
    slots
        .copied()
        .filter(|place| service.backends.get(usize::from(*place)).is_some_and(is_it))
        .or_else(|| u16::try_from(service.backends.iter().position(is_it)?).ok())
}

#[cfg(test)]
mod tests;
