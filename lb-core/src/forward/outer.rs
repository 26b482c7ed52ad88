//! The outer IP header of all tunnels: the packet travels untouched behind it.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::replace_l2;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{IPV4_IN_IP, IPV6_IN_IP, ethernet};

/// Hops that an outer packet may take (RFC 1700).
const HOPS: u8 = 64;

const IPV6_HEADER_BYTES: u16 = 40;
const _: () = assert!(IPV6_HEADER_BYTES as usize == ipv6::HEADER_BYTES);

/// What there is behind the outer header.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    /// From the shim on to the end of the frame.
    pub(super) bytes: &'a mut [u8],
    /// The outer addresses, for a checksum of the shim's; none over IPv4.
    pub(super) ipv6_addresses: Option<Sum>,
}

/// The protocol of a packet as it is told in front of it.
#[inline]
pub(super) fn inner_protocol(meta: &Meta) -> u8 {
    if meta.tuple.is_ipv6 { IPV6_IN_IP } else { IPV4_IN_IP }
}

/// The `EtherType` of a packet.
#[inline]
pub(super) fn inner_ether_type(meta: &Meta) -> u16 {
    if meta.tuple.is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 }
}

/// Puts the packet, without its padding, behind an outer header of `protocol` and room for
/// `shim_bytes` more, and addresses the frame to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub(super) fn put<'a, F: Frame>(
    frame: &'a mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: &Ends,
    (protocol, shim_bytes): (u8, usize),
) -> Result<Inside<'a>, DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let header_bytes = ends.header_bytes();
    let packet_len = usize::from(meta.packet_len);
    // Below: as an outer IPv4 header counts, itself included.
    let total_len =
        u16::try_from(packet_len + shim_bytes + header_bytes).map_err(|_| DropReason::TooBig)?;
    if total_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    let packet = frame.bytes().get(l3_offset..).ok_or(DropReason::Truncated)?;
    let traffic_class = traffic_class(packet, meta.tuple.is_ipv6)?;
    frame.truncate(l3_offset + packet_len);
    let (way, room) = ((hop, came_by), header_bytes + shim_bytes);
    match ends {
        Ends::Ipv4 { src, dst, vary_bits } => {
            let bytes = replace_l2(frame, meta, way, ethernet::IPV4, room)?;
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: traffic_class,
                total_len: U16::new(total_len),
                id: U16::ZERO, // RFC 6864 §4.1: of no meaning with DF set
                fragment: U16::new(ipv4::DONT_FRAGMENT),
                ttl: HOPS,
                protocol,
                checksum: Checksum::ZERO,
                src: vary_ipv4(*src, *vary_bits, meta.hash),
                dst: *dst,
            };
            header.checksum = Checksum::of(header.as_bytes());
            header.write_to_prefix(bytes).map_err(|_| DropReason::NoHeadroom)?;
            let bytes = bytes.get_mut(header_bytes..).ok_or(DropReason::NoHeadroom)?;
            Ok(Inside { bytes, ipv6_addresses: None })
        }
        Ends::Ipv6 { src, dst, vary_bits, sum } => {
            let bytes = replace_l2(frame, meta, way, ethernet::IPV6, room)?;
            let class_and_label = u32::from(traffic_class) << 20 | flow_label(meta.hash);
            let (src, varied) = vary_ipv6(*src, *vary_bits, meta.hash);
            let header = Ipv6 {
                version_class_flow: U32::new(6 << 28 | class_and_label),
                payload_len: U16::new(total_len - IPV6_HEADER_BYTES),
                next_header: protocol,
                hop_limit: HOPS,
                src,
                dst: *dst,
            };
            header.write_to_prefix(bytes).map_err(|_| DropReason::NoHeadroom)?;
            let bytes = bytes.get_mut(header_bytes..).ok_or(DropReason::NoHeadroom)?;
            let addresses = Sum::default().plus(sum.as_bytes()).plus(&varied);
            Ok(Inside { bytes, ipv6_addresses: Some(addresses) })
        }
    }
}

/// The source with its low bits from the flow hash.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
fn vary_ipv4(src: [u8; 4], bits: u8, hash: u64) -> [u8; 4] {
    let mask = ((1_u64 << bits) - 1) as u32;
    (u32::from_be_bytes(src) | hash as u32 & mask).to_be_bytes()
}

/// As [`vary_ipv4`]; and the bits that were put into its lower half, which were zero there.
#[inline]
fn vary_ipv6(src: [u8; 16], bits: u8, hash: u64) -> ([u8; 16], [u8; 8]) {
    let mask = u64::MAX.checked_shl(bits.into()).map_or(u64::MAX, |prefix| !prefix);
    let varied = (hash & mask).to_be_bytes();
    let [upper, lower]: [[u8; 8]; 2] = zerocopy::transmute!(src);
    let lower = (u64::from_ne_bytes(lower) | u64::from_ne_bytes(varied)).to_ne_bytes();
    (zerocopy::transmute!([upper, lower]), varied)
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
    use std::ops::Range;

    use etherparse::{EtherType, IpNumber, NetSlice, SlicedPacket, UdpHeader};

    use super::*;
    use crate::forward::tests::{LAN, front, hop, tag_cases};
    use crate::forward::{gre, gue, ipip};
    use crate::model::TunnelKind;
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;
    use crate::tables::Path;

    const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const DST: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
    const SRC_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    const DST_6: Ipv6Addr = Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1);
    fn ends() -> [Ends; 2] {
        [
            Ends::Ipv4 { src: SRC.octets(), dst: DST.octets(), vary_bits: 0 },
            Ends::ipv6(SRC_6.octets(), DST_6.octets(), 0),
        ]
    }

    const PORT: u16 = 6080;
    const KINDS: [TunnelKind; 3] =
        [TunnelKind::Ipip, TunnelKind::Gue { port: PORT }, TunnelKind::Gre];

    fn forward(
        frame: &mut SimFrame,
        meta: &Meta,
        hop: &HopEntry,
        kind: TunnelKind,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        match kind {
            TunnelKind::Ipip => ipip::forward(frame, meta, hop, LAN, ends),
            TunnelKind::Gue { port } => gue::forward(frame, meta, hop, LAN, ends, port),
            TunnelKind::Gre => gre::forward(frame, meta, hop, LAN, ends),
        }
    }

    /// Each kind of tunnel, over each family.
    fn tunnels() -> impl Iterator<Item = (TunnelKind, Ends)> {
        KINDS.into_iter().flat_map(|kind| ends().map(|ends| (kind, ends)))
    }

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

    fn encapsulated(
        packet: &Packet,
        (kind, ends): (TunnelKind, Ends),
        hop: &HopEntry,
        hash: u64,
    ) -> Vec<u8> {
        let frame = packet.frame();
        let mut meta = parsed(&frame);
        meta.hash = hash;
        let mut sim = SimFrame::new(&frame);
        forward(&mut sim, &meta, hop, kind, &ends).unwrap();
        sim.bytes().to_vec()
    }

    /// The outer header as `etherparse` finds it, checked field by field; its protocol and what is
    /// behind it.
    fn outer(sent: &[u8], ends: &Ends, packet: &Packet) -> (IpNumber, Vec<u8>) {
        let sliced = SlicedPacket::from_ethernet(sent).unwrap();
        match (sliced.net.unwrap(), ends) {
            (NetSlice::Ipv4(ip), Ends::Ipv4 { .. }) => {
                let header = ip.header();
                assert_eq!((header.source_addr(), header.destination_addr()), (SRC, DST));
                assert_eq!((header.ttl(), header.identification(), header.ihl()), (64, 0, 5));
                assert!(header.dont_fragment() && !header.is_fragmenting_payload());
                let class = header.dcp().value() << 2 | header.ecn().value();
                assert_eq!(class, packet.traffic_class);
                let checksum = header.to_header().calc_header_checksum();
                assert_eq!(header.header_checksum(), checksum);
                assert_eq!(sent.len(), 14 + usize::from(header.total_len()), "no padding");
                (header.protocol(), sent[34..].to_vec())
            }
            (NetSlice::Ipv6(ip), Ends::Ipv6 { .. }) => {
                let header = ip.header();
                assert_eq!((header.source_addr(), header.destination_addr()), (SRC_6, DST_6));
                assert_eq!(header.hop_limit(), 64);
                assert_eq!(header.traffic_class(), packet.traffic_class);
                assert_eq!(header.flow_label().value(), 0x4_5678);
                assert_eq!(sent.len(), 54 + usize::from(header.payload_length()), "no padding");
                (header.next_header(), sent[54..].to_vec())
            }
            mixed => panic!("{mixed:?}"),
        }
    }

    #[test]
    fn the_packet_is_inside_unchanged_and_the_headers_are_true() {
        for packet in packets() {
            for (kind, ends) in tunnels() {
                let sent = encapsulated(&packet, (kind, ends), &hop(0, None, 1500), 0x1234_5678);
                let (protocol, behind) = outer(&sent, &ends, &packet);
                let is_ipv4 = packet.dst.is_ipv4();
                match kind {
                    TunnelKind::Ipip => {
                        let inner = if is_ipv4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
                        assert_eq!((protocol, behind), (inner, packet.ip()));
                    }
                    TunnelKind::Gre => {
                        let ether_type = if is_ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] };
                        assert_eq!(protocol, IpNumber::GRE);
                        assert_eq!(behind, [&[0, 0], &ether_type[..], &packet.ip()].concat());
                    }
                    TunnelKind::Gue { .. } => {
                        assert_eq!(protocol, IpNumber::UDP);
                        let (udp, inner) = UdpHeader::from_slice(&behind).unwrap();
                        assert_eq!(inner, packet.ip());
                        assert_eq!(usize::from(udp.length), behind.len());
                        assert_eq!((udp.source_port, udp.destination_port), (0xd678, PORT));
                        let expect = match ends {
                            Ends::Ipv4 { .. } => 0,
                            Ends::Ipv6 { src, dst, .. } => {
                                udp.calc_checksum_ipv6_raw(src, dst, inner).unwrap()
                            }
                        };
                        assert_eq!(udp.checksum, expect);
                    }
                }
            }
        }
    }

    #[test]
    fn sources_vary_by_flow_within_their_prefix() {
        let [packet, ..] = packets();
        let sources = |ends: Ends, at: Range<usize>| {
            let source = |hash| {
                let tunnel = (TunnelKind::Gre, ends);
                encapsulated(&packet, tunnel, &hop(0, None, 1500), hash)[at.clone()].to_vec()
            };
            [0, 0xabcd_1234_5678_9abc, u64::MAX].map(source)
        };
        let ends = Ends::Ipv4 { src: [172, 16, 0, 0], dst: DST.octets(), vary_bits: 16 };
        let expect = [[172, 16, 0, 0], [172, 16, 0x9a, 0xbc], [172, 16, 0xff, 0xff]];
        assert_eq!(sources(ends, 26..30), expect);
        let src = Ipv6Addr::new(0xfd07, 1, 2, 3, 0, 0, 0, 0).octets();
        let ends = Ends::ipv6(src, DST_6.octets(), 64);
        let expect = [0, 0xabcd_1234_5678_9abc, u64::MAX]
            .map(|low: u64| [&src[..8], &low.to_be_bytes()].concat());
        assert_eq!(sources(ends, 22..38), expect);
    }

    #[test]
    fn tags_are_the_hops_or_the_frames_own() {
        for packet in packets() {
            for (kind, ends) in tunnels() {
                let ether_type = match ends {
                    Ends::Ipv4 { .. } => EtherType::IPV4,
                    Ends::Ipv6 { .. } => EtherType::IPV6,
                };
                for (tags, hop, expect) in tag_cases() {
                    let packet = packet.clone().with(|p| p.tags = tags.to_vec());
                    let sent = encapsulated(&packet, (kind, ends), &hop, 7);
                    let front = front(expect, ether_type.0);
                    assert_eq!(sent[..front.len()], front, "{tags:?} {hop:?}");
                    let overhead = Path::Tunnel(kind, ends).overhead();
                    assert_eq!(sent[front.len() + overhead..], packet.ip());
                }
            }
        }
    }

    #[test]
    fn the_flow_label_is_of_the_flow() {
        let [packet, ..] = packets();
        let label = |hash| {
            let tunnel = (TunnelKind::Ipip, ends()[1]);
            encapsulated(&packet, tunnel, &hop(0, None, 1500), hash)[15..18].to_vec()
        };
        assert_eq!(label(7), label(7));
        assert_ne!(label(7), label(8));
        assert_eq!(label(u64::MAX), [0x0f, 0xff, 0xff]);
    }

    #[test]
    fn all_headers_have_to_fit_the_way_and_the_headroom() {
        let [packet, ..] = packets();
        let packet = packet.with(|p| p.padding = 9);
        let frame = packet.frame();
        let len = packet.ip().len();
        for (kind, ends) in tunnels() {
            let overhead = Path::Tunnel(kind, ends).overhead();
            let fits = u16::try_from(len + overhead).unwrap();
            for (mtu, headroom, expect) in [
                (fits, overhead, Ok(())),
                (fits - 1, overhead, Err(DropReason::TooBig)),
                (fits, overhead - 1, Err(DropReason::NoHeadroom)),
            ] {
                let mut sim = SimFrame::with_headroom(&frame, headroom);
                let hop = hop(0, None, mtu);
                assert_eq!(forward(&mut sim, &parsed(&frame), &hop, kind, &ends), expect);
            }
        }
    }

    /// Whatever the MTU says: an outer header cannot count further.
    #[test]
    fn sixteen_bits_of_length_are_the_end() {
        let packet = Packet::udp("198.51.100.7:1", "10.0.0.100:80");
        let packet = |len: usize| packet.clone().with(|p| p.payload = vec![0; len - 28]);
        for (kind, ends) in tunnels() {
            let most = 65_535 - Path::Tunnel(kind, ends).overhead();
            for (len, expect) in [(most, Ok(())), (most + 1, Err(DropReason::TooBig))] {
                let frame = packet(len).frame();
                let mut sim = SimFrame::new(&frame);
                let hop = hop(0, None, u16::MAX);
                let found = forward(&mut sim, &parsed(&frame), &hop, kind, &ends);
                assert_eq!(found, expect, "{len}");
            }
        }
    }
}
