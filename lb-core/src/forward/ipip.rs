//! IP in IP: the packet travels untouched inside another one. RFC 2003 (4 in 4), RFC 2473 (any in 6),
//! RFC 4213 §3 (6 in 4).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::{L2Header, push_front};
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Outer};
use crate::wire::checksum::Checksum;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{IPV4_IN_IP, IPV6_IN_IP, ethernet};

/// Hops that an outer packet may take (RFC 1700).
const HOPS: u8 = 64;

/// Puts the packet, without its padding, into an outer header and sends it to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    outer: &Outer,
) -> Result<(), DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let header_bytes = match outer {
        Outer::None => return Ok(()),
        Outer::Ipv4 { .. } => ipv4::HEADER_BYTES,
        Outer::Ipv6 { .. } => ipv6::HEADER_BYTES,
    };
    let packet_len = usize::from(meta.packet_len);
    // Below: as an outer IPv4 header counts, itself included.
    let total_len = u16::try_from(packet_len + header_bytes).map_err(|_| DropReason::TooBig)?;
    if total_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    let (l2_bytes, packet) =
        frame.bytes().split_at_checked(l3_offset).ok_or(DropReason::Truncated)?;
    let traffic_class = traffic_class(packet, meta.tuple.is_ipv6)?;
    let l2 = L2Header::new(hop, came_by, l2_bytes);
    frame.truncate(l3_offset + packet_len);
    frame.trim_front(l3_offset);
    let inner = if meta.tuple.is_ipv6 { IPV6_IN_IP } else { IPV4_IN_IP };
    match outer {
        Outer::None => Ok(()),
        Outer::Ipv4 { src, dst } => {
            let room = push_front(frame, &l2, ethernet::IPV4, ipv4::HEADER_BYTES)?;
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: traffic_class,
                total_len: U16::new(total_len),
                id: U16::ZERO, // RFC 6864 §4.1: of no meaning with DF set
                fragment: U16::new(ipv4::DONT_FRAGMENT),
                ttl: HOPS,
                protocol: inner,
                checksum: Checksum::ZERO,
                src: src.octets(),
                dst: dst.octets(),
            };
            header.checksum = Checksum::of(header.as_bytes());
            header.write_to(room).map_err(|_| DropReason::NoHeadroom)
        }
        Outer::Ipv6 { src, dst } => {
            let room = push_front(frame, &l2, ethernet::IPV6, ipv6::HEADER_BYTES)?;
            let header = Ipv6 {
                version_class_flow: U32::new(
                    6 << 28 | u32::from(traffic_class) << 20 | flow_label(meta.hash),
                ),
                payload_len: U16::new(meta.packet_len),
                next_header: inner,
                hop_limit: HOPS,
                src: src.octets(),
                dst: dst.octets(),
            };
            header.write_to(room).map_err(|_| DropReason::NoHeadroom)
        }
    }
}

/// DSCP and ECN of the outer header: the inner ones, as RFC 2983 §3.1 (uniform model) and RFC 6040
/// §4.1 (normal mode) say.
#[inline]
fn traffic_class(packet: &[u8], is_ipv6: bool) -> Result<u8, DropReason> {
    if is_ipv6 {
        let (ip, _) = Ipv6::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        Ok(ip.traffic_class())
    } else {
        packet.get(1).copied().ok_or(DropReason::Truncated)
    }
}

/// 20 bits of the flow hash (RFC 6438 §3): routers on the way spread flows by them. Not the highest,
/// which chose the slot, and are much the same for all that goes to one backend.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn flow_label(hash: u64) -> u32 {
    hash as u32 & 0xf_ffff
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use etherparse::{EtherType, IpNumber, NetSlice, SlicedPacket};

    use super::*;
    use crate::forward::tests::{LAN, front, hop, tag_cases};
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;

    const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const DST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
    const SRC_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    const DST_6: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1);
    const OUTERS: [Outer; 2] =
        [Outer::Ipv4 { src: SRC, dst: DST }, Outer::Ipv6 { src: SRC_6, dst: DST_6 }];

    /// Of both families: options and extensions, TCP and UDP, padding, all values of ECN.
    fn packets() -> [Packet; 6] {
        let (client, client6) = ("198.51.100.7:40000", "[2001:db8::7]:40000");
        let (vip, vip6) = ("10.0.0.100:80", "[fd00::100]:80");
        let routing = (IpNumber::IPV6_ROUTE_HEADER, vec![0; 14]);
        [
            Packet::tcp(client, vip),
            Packet::tcp(client, vip).with(|p| (p.options, p.traffic_class) = (vec![1; 40], 0xb9)),
            Packet::udp(client, vip).with(|p| (p.payload, p.padding) = (vec![], 18)),
            Packet::tcp(client6, vip6).with(|p| (p.padding, p.traffic_class) = (5, 0x02)),
            Packet::udp(client6, vip6).with(|p| p.extensions = vec![routing]),
            Packet::udp(client6, vip6).with(|p| p.traffic_class = 0xff),
        ]
    }

    fn encapsulated(packet: &Packet, outer: &Outer, hop: &HopEntry, hash: u64) -> Vec<u8> {
        let frame = packet.frame();
        let meta = Meta { hash, ..parsed(&frame) };
        let mut sim = SimFrame::new(&frame);
        forward(&mut sim, &meta, hop, LAN, outer).unwrap();
        sim.bytes().to_vec()
    }

    /// The frame's outer header and what is inside, as `etherparse` finds them: no byte is left over,
    /// and lengths are true.
    #[test]
    fn the_packet_is_inside_unchanged_and_the_outer_header_is_true() {
        for packet in packets() {
            for outer in OUTERS {
                let sent = encapsulated(&packet, &outer, &hop(0, None, 1500), 0x1234_5678);
                let sliced = SlicedPacket::from_ethernet(&sent).unwrap();
                let payload = sliced.ip_payload().unwrap();
                assert_eq!(payload.payload, packet.ip(), "{packet:?}");
                let inner = if packet.dst.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
                assert_eq!(payload.ip_number, inner);
                match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header();
                        assert_eq!((header.source_addr(), header.destination_addr()), (SRC, DST));
                        assert_eq!((header.ttl(), header.identification()), (64, 0));
                        assert!(header.dont_fragment() && !header.is_fragmenting_payload());
                        let class = header.dcp().value() << 2 | header.ecn().value();
                        assert_eq!(class, packet.traffic_class);
                        let checksum = header.to_header().calc_header_checksum();
                        assert_eq!(header.header_checksum(), checksum);
                        assert_eq!((header.ihl(), outer), (5, OUTERS[0]));
                        assert_eq!(sent.len(), 14 + 20 + packet.ip().len(), "no padding");
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.header();
                        assert_eq!(
                            (header.source_addr(), header.destination_addr()),
                            (SRC_6, DST_6)
                        );
                        assert_eq!(header.hop_limit(), 64);
                        assert_eq!(header.traffic_class(), packet.traffic_class);
                        assert_eq!(header.flow_label().value(), 0x4_5678);
                        assert_eq!(outer, OUTERS[1]);
                        assert_eq!(sent.len(), 14 + 40 + packet.ip().len(), "no padding");
                    }
                    NetSlice::Arp(_) => panic!("{sent:?}"),
                }
            }
        }
    }

    #[test]
    fn tags_are_the_hops_or_the_frames_own() {
        for packet in packets() {
            for (outer, ether_type, outer_len) in
                [(OUTERS[0], EtherType::IPV4, 20), (OUTERS[1], EtherType::IPV6, 40)]
            {
                for (tags, hop, expect) in tag_cases() {
                    let packet = packet.clone().with(|p| p.tags = tags.to_vec());
                    let sent = encapsulated(&packet, &outer, &hop, 7);
                    let front = front(expect, ether_type.0);
                    assert_eq!(sent[..front.len()], front, "{tags:?} {hop:?}");
                    assert_eq!(sent[front.len() + outer_len..], packet.ip());
                }
            }
        }
    }

    #[test]
    fn the_flow_label_is_of_the_flow() {
        let [packet, ..] = packets();
        let label =
            |hash| encapsulated(&packet, &OUTERS[1], &hop(0, None, 1500), hash)[15..18].to_vec();
        assert_eq!(label(7), label(7));
        assert_ne!(label(7), label(8));
        assert_eq!(label(u64::MAX), [0x0f, 0xff, 0xff]);
    }

    #[test]
    fn both_headers_have_to_fit_the_way() {
        let [packet, ..] = packets();
        let packet = packet.with(|p| p.padding = 9);
        let frame = packet.frame();
        let len = u16::try_from(packet.ip().len()).unwrap();
        for (outer, header_len) in [(OUTERS[0], 20), (OUTERS[1], 40)] {
            let fits = len + header_len;
            for (mtu, expect) in [(fits, Ok(())), (fits - 1, Err(DropReason::TooBig))] {
                let mut sim = SimFrame::new(&frame);
                let hop = hop(0, None, mtu);
                assert_eq!(forward(&mut sim, &parsed(&frame), &hop, LAN, &outer), expect);
            }
        }
    }

    /// Whatever the MTU says: an outer header cannot count further.
    #[test]
    fn sixteen_bits_of_length_are_the_end() {
        let packet = Packet::udp("198.51.100.7:1", "10.0.0.100:80");
        let packet = |len: usize| packet.clone().with(|p| p.payload = vec![0; len - 28]);
        for (len, outer, expect) in [
            (65_515, OUTERS[0], Ok(())),
            (65_516, OUTERS[0], Err(DropReason::TooBig)),
            (65_495, OUTERS[1], Ok(())),
            (65_496, OUTERS[1], Err(DropReason::TooBig)),
        ] {
            let frame = packet(len).frame();
            let mut sim = SimFrame::new(&frame);
            let found = forward(&mut sim, &parsed(&frame), &hop(0, None, u16::MAX), LAN, &outer);
            assert_eq!(found, expect, "{len}");
        }
    }

    #[test]
    fn the_outer_header_needs_headroom() {
        let [packet, ..] = packets();
        let frame = packet.frame();
        for (outer, need) in [(OUTERS[0], 20), (OUTERS[1], 40)] {
            for (headroom, expect) in [(need, Ok(())), (need - 1, Err(DropReason::NoHeadroom))] {
                let mut sim = SimFrame::with_headroom(&frame, headroom);
                let found = forward(&mut sim, &parsed(&frame), &hop(0, None, 1500), LAN, &outer);
                assert_eq!(found, expect, "{outer:?} {headroom}");
            }
        }
    }
}
