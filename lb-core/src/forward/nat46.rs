//! Stateless translation of IPv4 clients for IPv6 backends (RFC 7755): a backend sees the client's address
//! behind a prefix (RFC 6052), and what it sends there becomes IPv4 again, from the VIP.

use super::siit::{self, Ends};
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{Embedding, HopEntry, Station};
use crate::tuple::mapped;

/// Sends a client's packet to its backend.
///
/// # Errors
/// As [`siit::forward`]. Nothing has changed then.
#[inline(never)]
pub fn to_backend<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    (embedding, backend): (&Embedding, &Station),
) -> Result<(), DropReason> {
    let [.., a, b, c, d] = meta.tuple.src;
    let (address, addresses) = embedding.embed([a, b, c, d]);
    let ends = Ends::of_sum(Station { address, port: None }, *backend, addresses);
    siit::to_ipv6(frame, meta, hop, came_by, ends)
}

/// Sends an answer to the client, with the VIP as its source.
///
/// # Errors
/// As [`siit::forward`]. Nothing has changed then.
#[inline(never)]
pub fn to_client<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    vip: &Station,
) -> Result<(), DropReason> {
    let client = Station { address: client(&meta.tuple.dst), port: None };
    siit::to_ipv4(frame, meta, hop, came_by, Ends::ipv4(*vip, client))
}

/// The client that stands behind an address, as IPv4-mapped.
#[inline]
#[must_use]
pub fn client(address: &[u8; 16]) -> [u8; 16] {
    let [.., a, b, c, d] = *address;
    mapped([a, b, c, d])
}
