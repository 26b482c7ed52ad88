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
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::udp::Udp;
use crate::wire::{UDP, ipv6, udp};

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
    match inside.ipv6_addresses {
        Some(addresses) => put_checksum(frame, hop, addresses, len),
        None => Ok(()),
    }
}

/// Over IPv6 there has to be a checksum (RFC 8200 §8.1): the NIC's, where it has that, since it reads
/// all of the packet anyway. `len` bytes from the UDP header on are the frame's last.
#[inline]
fn put_checksum<F: Frame>(
    frame: &mut F,
    hop: &HopEntry,
    addresses: Sum,
    len: u16,
) -> Result<(), DropReason> {
    let pseudo_header = addresses.plus(&len.to_be_bytes()).plus(&[0, UDP]);
    let udp_at = frame.bytes().len().saturating_sub(len.into());
    let l2_len = udp_at.saturating_sub(ipv6::HEADER_BYTES);
    let is_left = hop.udp_checksums && frame.leave_udp_checksum(l2_len, ipv6::HEADER_BYTES);
    let bytes = frame.bytes_mut().get_mut(udp_at..).ok_or(DropReason::NoHeadroom)?;
    let checksum = if is_left {
        pseudo_header.partial()
    } else {
        pseudo_header.plus(bytes).checksum().never_zero()
    };
    let place = bytes.get_mut(udp::CHECKSUM).ok_or(DropReason::NoHeadroom)?;
    place.copy_from_slice(checksum.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::{LAN, hop};
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;

    fn sent(packet: &Packet, ends: &Ends, udp_checksums: bool) -> SimFrame {
        let frame = packet.frame();
        let mut sim = SimFrame::new(&frame);
        let hop = HopEntry { udp_checksums, ..hop(0, None, 1600) };
        forward(&mut sim, &parsed(&frame), &hop, LAN, ends, 6080).unwrap();
        sim
    }

    #[test]
    fn what_the_nic_completes_is_what_we_would_have_written() {
        let over_ipv6 = Ends::Ipv6 { src: [7; 16], dst: [8; 16], vary_bits: 0 };
        let over_ipv4 = Ends::Ipv4 { src: [10, 0, 0, 2], dst: [10, 2, 0, 1], vary_bits: 0 };
        for len in [0, 1, 2, 777, 1400] {
            for tags in [&[][..], &[(0x8100, 7)]] {
                let packet = Packet::udp("198.51.100.7:40000", "10.0.0.100:80")
                    .with(|p| (p.payload, p.tags) = (vec![0xa5; len], tags.to_vec()));
                let mut left = sent(&packet, &over_ipv6, true);
                let whole = sent(&packet, &over_ipv6, false);
                assert!(left.is_udp_checksum_left() && !whole.is_udp_checksum_left());
                assert_ne!(left.bytes(), whole.bytes());
                left.complete_checksum();
                assert_eq!(left.bytes(), whole.bytes(), "{len} {tags:?}");
                assert!(!sent(&packet, &over_ipv4, true).is_udp_checksum_left(), "there is none");
            }
        }
    }
}
