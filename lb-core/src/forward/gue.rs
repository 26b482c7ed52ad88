//! Generic UDP Encapsulation, variant 1: the packet follows the UDP header at once
//! (draft-ietf-intarea-gue §4). The source port spreads flows (RFC 7510 §3).

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::U16;

use super::outer;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::TunnelKind;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};
use crate::wire::checksum::Checksum;
use crate::wire::udp::Udp;
use crate::wire::{UDP, udp};

/// Source ports are 49152 to 65535: two bits are set, 14 are the flow hash's (RFC 6335 §6).
const SOURCE_PORTS: u16 = 0xc000;

/// Puts the packet behind a UDP header into an outer one and sends it to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: &Ends,
    port: u16,
) -> Result<(), DropReason> {
    let shim_bytes = (TunnelKind::Gue { port }).shim_bytes();
    let inside = outer::put(frame, meta, hop, came_by, ends, (UDP, shim_bytes))?;
    let len = u16::try_from(inside.bytes.len()).map_err(|_| DropReason::TooBig)?;
    #[expect(clippy::cast_possible_truncation, reason = "14 bits are what is wanted")]
    let src = SOURCE_PORTS | meta.hash as u16;
    let header = Udp {
        src: U16::new(src),
        dst: U16::new(port),
        len: U16::new(len),
        checksum: Checksum::ZERO, // over IPv4: none (RFC 768)
    };
    header.write_to_prefix(inside.bytes).map_err(|_| DropReason::NoHeadroom)?;
    if let Some(addresses) = inside.ipv6_addresses {
        // Over IPv6 there has to be one (RFC 8200 §8.1).
        let sum = addresses.plus(&len.to_be_bytes()).plus(&[0, UDP]).plus(inside.bytes);
        let place = inside.bytes.get_mut(udp::CHECKSUM).ok_or(DropReason::NoHeadroom)?;
        place.copy_from_slice(sum.checksum().never_zero().as_bytes());
    }
    Ok(())
}
