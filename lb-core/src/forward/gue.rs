//! Generic UDP Encapsulation, variant 1: the packet follows the UDP header at once
//! (draft-ietf-intarea-gue §4). The source port spreads flows (RFC 7510 §3).

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::U16;

use super::outer;
use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::TunnelKind;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};
use crate::tuple::Tuple;
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::udp::Udp;
use crate::wire::{TCP, UDP, ipv4, ipv6, tcp, udp};

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
    // Over IPv6 there has to be a checksum (RFC 8200 §8.1).
    let Some(addresses) = inside.ipv6_addresses else { return Ok(()) };
    let pseudo_header = addresses.plus(&len.to_be_bytes()).plus(&[0, UDP]);
    let (shim, packet) =
        inside.bytes.split_at_mut_checked(shim_bytes).ok_or(DropReason::NoHeadroom)?;
    // Summed up from here, not from memory where it was just written.
    let sum = pseudo_header.plus(header.as_bytes());
    let sum = match known_sum(meta, packet) {
        Some((more, less)) => sum.join(more).minus(less),
        None => return sum_up(frame, hop, len, pseudo_header),
    };
    let place = shim.get_mut(udp::CHECKSUM).ok_or(DropReason::NoHeadroom)?;
    place.copy_from_slice(sum.checksum().never_zero().as_bytes());
    Ok(())
}

/// What has to be read whole is left to the NIC where it can be, which reads all of the packet anyway.
/// `len` bytes from the UDP header on are the frame's last.
#[inline(never)]
fn sum_up<F: Frame>(
    frame: &mut F,
    hop: &HopEntry,
    len: u16,
    pseudo_header: Sum,
) -> Result<(), DropReason> {
    let udp_at = frame.bytes().len().saturating_sub(len.into());
    let l2_len = udp_at.saturating_sub(ipv6::HEADER_BYTES);
    let is_left = hop.udp_checksums && frame.leave_udp_checksum(l2_len, ipv6::HEADER_BYTES);
    let datagram = frame.bytes_mut().get_mut(udp_at..).ok_or(DropReason::NoHeadroom)?;
    let checksum = if is_left {
        pseudo_header.partial()
    } else {
        pseudo_header.plus(datagram).checksum().never_zero()
    };
    let place = datagram.get_mut(udp::CHECKSUM).ok_or(DropReason::NoHeadroom)?;
    place.copy_from_slice(checksum.as_bytes());
    Ok(())
}

/// What to add and what to subtract for the sum over a packet, without reading all of it: a segment
/// that holds its own checksum sums up to the complement of its pseudo-header, and an IPv4 header to
/// nothing ("local checksum offload", Linux's Documentation/networking/checksum-offloads). If that
/// checksum is wrong, so is what is made of it, by as much: it is the receiver's to drop, as before.
///
/// `None`, if the packet has no checksum over all that is behind its IP header; and where the
/// destination might not be the one of the pseudo-header, with options or extension headers.
#[inline(always)]
fn known_sum(meta: &Meta, packet: &[u8]) -> Option<(Sum, Sum)> {
    let Tuple { src, dst, protocol, is_ipv6, .. } = &meta.tuple;
    let plain = if *is_ipv6 { ipv6::HEADER_BYTES } else { ipv4::HEADER_BYTES };
    if meta.rule != Rule::Flow
        || meta.is_fragment
        || usize::from(meta.l4_offset) != usize::from(meta.l3_offset) + plain
    {
        return None;
    }
    let (header, segment) = packet.split_at_checked(plain)?;
    let len = u16::try_from(segment.len()).ok()?.to_be_bytes();
    let checksum = match *protocol {
        TCP => segment.get(tcp::CHECKSUM)?,
        UDP if segment.get(udp::LEN)? == len => segment.get(udp::CHECKSUM)?,
        _ => return None,
    };
    if checksum == [0; 2] {
        return None; // UDP: there is none. TCP: as good as nobody has filled it in.
    }
    let protocol = [0, *protocol];
    Some(if *is_ipv6 {
        // Addresses and length are in both.
        let rest = Sum::default().plus(header.get(..4)?).plus(header.get(6..8)?);
        (rest, Sum::default().plus(&protocol))
    } else {
        let addresses = Sum::default().plus(&src[12..]).plus(&dst[12..]);
        (Sum::default(), addresses.plus(&len).plus(&protocol))
    })
}

#[cfg(test)]
mod tests {
    use etherparse::IpNumber;

    use super::*;
    use crate::forward::tests::{LAN, hop};
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;

    const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8::7]:40000"];
    const VIP: [&str; 2] = ["10.0.0.100:80", "[fd00::100]:80"];
    fn ends() -> Ends {
        Ends::ipv6([0xfd; 16], [0xfe; 16], 0)
    }
    const OUTER: usize = 14 + ipv6::HEADER_BYTES;

    /// Is the outer checksum true, of a packet whose own one is `checksum`?
    fn is_outer_true(packet: &Packet, checksum: [u8; 2], rule: Rule) -> bool {
        let mut frame = packet.frame();
        let mut meta = parsed(&frame);
        meta.rule = rule;
        let place = if packet.protocol == IpNumber::UDP { udp::CHECKSUM } else { tcp::CHECKSUM };
        let l4 = usize::from(meta.l4_offset);
        frame[l4 + place.start..l4 + place.end].copy_from_slice(&checksum);
        let mut sim = SimFrame::new(&frame);
        forward(&mut sim, &meta, &hop(0, None, 1500), LAN, &ends(), 6080).unwrap();
        let (header, datagram) = sim.bytes().split_at(OUTER);
        assert_eq!(datagram[8..], frame[14..14 + packet.ip().len()], "the packet is untouched");
        let (src, dst) = header[14 + 8..].split_at(16);
        let len = datagram.len().try_into().unwrap();
        let pseudo = Sum::default().pseudo_header(src, dst, len, UDP);
        pseudo.plus(datagram).checksum() == Checksum::ZERO
    }

    /// Only what holds a checksum over all of itself is believed: whatever else it has in that place
    /// is summed up.
    #[test]
    fn a_wrong_checksum_is_believed_only_where_it_is_one() {
        const WRONG: [u8; 2] = [0xbe, 0xef];
        let tcp = |family: usize| Packet::tcp(CLIENT[family], VIP[family]);
        let udp = |family: usize| Packet::udp(CLIENT[family], VIP[family]);
        let routing = (IpNumber::IPV6_ROUTE_HEADER, vec![0; 14]);
        let fragment = |packet: Packet| packet.with(|p| p.fragment = Some((0, true)));
        for (name, packet, checksum, rule, expect) in [
            ("TCP", tcp(0), WRONG, Rule::Flow, false),
            ("UDP", udp(0), WRONG, Rule::Flow, false),
            ("TCP over IPv6", tcp(1), WRONG, Rule::Flow, false),
            ("UDP over IPv6", udp(1), WRONG, Rule::Flow, false),
            ("TCP, zero", tcp(0), [0; 2], Rule::Flow, true),
            ("UDP, none", udp(0), [0; 2], Rule::Flow, true),
            ("options", tcp(0).with(|p| p.options = vec![1; 4]), WRONG, Rule::Flow, true),
            ("extensions", tcp(1).with(|p| p.extensions = vec![routing]), WRONG, Rule::Flow, true),
            ("SCTP", Packet::sctp(CLIENT[0], VIP[0]), WRONG, Rule::Flow, true),
            ("a first fragment", fragment(udp(0)), WRONG, Rule::Flow, true),
            ("a later fragment", udp(0), WRONG, Rule::Fragment, true),
            ("an error", tcp(0), WRONG, Rule::IcmpError, true),
        ] {
            assert_eq!(is_outer_true(&packet, checksum, rule), expect, "{name}");
        }
    }

    #[test]
    fn a_datagram_that_ends_before_its_packet_is_summed_up() {
        let mut frame = Packet::udp(CLIENT[0], VIP[0]).frame();
        let meta = parsed(&frame);
        frame[14 + 20 + udp::LEN.start + 1] -= 1;
        assert!(known_sum(&meta, &frame[14..]).is_none());
    }

    fn sent(packet: &Packet, ends: &Ends, udp_checksums: bool) -> SimFrame {
        let frame = packet.frame();
        let mut sim = SimFrame::new(&frame);
        let hop = HopEntry { udp_checksums, ..hop(0, None, 1600) };
        let meta = Meta { rule: Rule::Flow, ..parsed(&frame) };
        forward(&mut sim, &meta, &hop, LAN, ends, 6080).unwrap();
        sim
    }

    #[test]
    fn what_the_nic_completes_is_what_we_would_have_written() {
        let over_ipv6 = Ends::ipv6([7; 16], [8; 16], 0);
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
