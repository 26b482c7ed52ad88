//! Bytes → what the other stages need to know.

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::{Checked, Frame};
use crate::quote;
use crate::tables::next_hop::Port;
use crate::tuple::{Tuple, mapped};
use crate::wire::checksum::Checksum;
use crate::wire::ethernet;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::ports::{self, Ports};
use crate::wire::{ICMP, ICMPV6, icmp};

mod plain;

/// Reads the headers of each frame. Writes `meta.tuple`, the offsets, `meta.packet_len`.
///
/// Punts what no service can be meant by: groups, other `EtherType`s, ICMP but for errors about
/// flows, whose tuple is that of the flow. A fragment has `meta.is_fragment`, and zero for its ports.
///
/// Drops: [`DropReason::MultiSegment`], [`DropReason::NotOurs`] (another station's MAC), and what is
/// not a good header.
#[inline(never)]
pub fn parse<F: Frame>(burst: &mut Burst<F>, port: &Port) {
    let mut any_fragment = false;
    let mac = plain::Mac::new(port.mac);
    burst.for_each_live(|frame, meta| {
        let is_plain =
            frame.is_contiguous() && plain::parse(frame.bytes(), frame.ipv4_checked(), mac, meta);
        if !is_plain {
            general(frame, port, meta)?;
            any_fragment |= meta.is_fragment;
        }
        Ok(())
    });
    burst.set_fragments(any_fragment);
}

/// Any frame, step by step.
#[inline(never)]
fn general<F: Frame>(frame: &F, port: &Port, meta: &mut Meta) -> Result<(), Exit> {
    meta.rule = Rule::None;
    if !frame.is_contiguous() {
        return Err(DropReason::MultiSegment.into());
    }
    let bytes = frame.bytes();
    let (ethernet, payload) = ethernet::parse(bytes)?;
    if ethernet.dst != port.mac {
        return Err(foreign(ethernet));
    }
    let packet = bytes.get(payload.offset..).ok_or(DropReason::Truncated)?;
    #[expect(clippy::cast_possible_truncation, reason = "14, 18 or 22")]
    {
        meta.l3_offset = payload.offset as u8;
    }
    match payload.ether_type {
        ethernet::IPV4 => ipv4(packet, frame.ipv4_checked(), meta),
        ethernet::IPV6 => ipv6(packet, meta),
        _ => Err(Exit::Punt),
    }
}

/// The kernel decides about groups; what is for another station should not be here.
#[cold]
fn foreign(ethernet: &ethernet::Ethernet) -> Exit {
    if ethernet.dst.is_group() { Exit::Punt } else { DropReason::NotOurs.into() }
}

fn ipv4(packet: &[u8], checked: Checked, meta: &mut Meta) -> Result<(), Exit> {
    let ip = Ipv4::parse(packet)?;
    let header = packet.get(..ip.header_len()).ok_or(DropReason::Truncated)?;
    let is_true = match checked {
        Checked::Unknown => Checksum::of(header) == Checksum::ZERO,
        Checked::Good => true,
        Checked::Bad => false,
    };
    if !is_true {
        return Err(DropReason::BadChecksum.into());
    }
    if !Ipv4::is_source(ip.src) {
        return Err(DropReason::BadSource.into());
    }
    if ip.src == ip.dst {
        return Err(DropReason::SameSource.into());
    }
    meta.packet_len = ip.total_len.get();
    let l4 = ip.header_len();
    let segment = packet.get(l4..usize::from(meta.packet_len)).ok_or(DropReason::Truncated)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 60")]
    {
        meta.l4_offset = u16::from(meta.l3_offset) + l4 as u16;
    }
    meta.tuple = Tuple {
        src: mapped(ip.src),
        dst: mapped(ip.dst),
        ports: [0; 4],
        protocol: ip.protocol,
        is_ipv6: false,
    };
    (meta.is_fragment, meta.rule) = (ip.is_fragment(), Rule::Flow);
    ports(segment, meta)
}

fn ipv6(packet: &[u8], meta: &mut Meta) -> Result<(), Exit> {
    let ip = Ipv6::parse(packet)?;
    if !Ipv6::is_source(ip.src) {
        return Err(DropReason::BadSource.into());
    }
    if ip.src == ip.dst {
        return Err(DropReason::SameSource.into());
    }
    let packet = packet.get(..ip.total_len()).ok_or(DropReason::Truncated)?;
    meta.packet_len = u16::try_from(packet.len()).map_err(|_| DropReason::TooBig)?;
    let upper = ip.upper_layer(packet)?;
    meta.tuple =
        Tuple { src: ip.src, dst: ip.dst, ports: [0; 4], protocol: upper.protocol, is_ipv6: true };
    let segment = packet.get(upper.offset..).ok_or(DropReason::Truncated)?;
    #[expect(clippy::cast_possible_truncation, reason = "within a packet of at most 65,535 bytes")]
    {
        meta.l4_offset = u16::from(meta.l3_offset).saturating_add(upper.offset as u16);
    }
    (meta.is_fragment, meta.rule) = (upper.is_fragment, Rule::Flow);
    ports(segment, meta)
}

/// Fills the ports in, where there are any.
fn ports(segment: &[u8], meta: &mut Meta) -> Result<(), Exit> {
    let tuple = &mut meta.tuple;
    let Some(header_bytes) = ports::header_bytes(tuple.protocol) else {
        return portless(segment, meta);
    };
    if !meta.is_fragment {
        let ports = Ports::parse(header_bytes, segment)?;
        let ([a, b], [c, d]) = (ports.src.to_bytes(), ports.dst.to_bytes());
        tuple.ports = [a, b, c, d];
    }
    Ok(())
}

/// A service may have other protocols, by address alone; but ICMP is the kernel's, unless it is an
/// error about a flow, addressed to who sent the packet: then it goes the way of that flow.
#[cold]
fn portless(segment: &[u8], meta: &mut Meta) -> Result<(), Exit> {
    let Tuple { protocol, is_ipv6, .. } = meta.tuple;
    if protocol != ICMP && protocol != ICMPV6 {
        return Ok(());
    }
    if meta.is_fragment || protocol != if is_ipv6 { ICMPV6 } else { ICMP } {
        return Err(Exit::Punt);
    }
    let flow = icmp::quote(segment, is_ipv6).and_then(|quote| quote::flow(quote, is_ipv6));
    match flow.filter(|flow| flow.dst == meta.tuple.dst) {
        Some(flow) => {
            (meta.tuple, meta.rule) = (flow, Rule::IcmpError);
            Ok(())
        }
        None => Err(Exit::Punt),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::IpNumber;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::burst::Fate;
    use crate::burst::tests::burst_of;
    use crate::sim::SimFrame;
    use crate::sim::packet::{self, BALANCER, Packet, SERVICE_VLAN, VLAN};
    use crate::wire::ethernet::MacAddr;

    const CLIENT: &str = "198.51.100.7:40000";
    const VIP: &str = "10.0.0.100:80";
    const CLIENT_6: &str = "[2001:db8::7]:40000";
    const VIP_6: &str = "[fd00::100]:80";

    fn parse_one(frame: SimFrame) -> Result<Meta, Exit> {
        let mut burst = burst_of([frame]);
        parse(&mut burst, &lan());
        match burst.fate(0) {
            Fate::Send(_) => Ok(*burst.meta(0)),
            Fate::Exit(exit) => Err(exit),
        }
    }

    /// What is known of a frame that goes on through the pipeline.
    pub(crate) fn parsed(frame: &[u8]) -> Meta {
        parse_one(SimFrame::new(frame)).unwrap()
    }

    #[test]
    fn headers_are_found_behind_tags_options_and_extensions() {
        let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
        let long = (IpNumber::IPV6_ROUTE_HEADER, vec![0; 14]);
        let hops = (IpNumber::IPV6_HEADER_HOP_BY_HOP, vec![1, 4, 0, 0, 0, 0]);
        let tcp = || Packet::tcp(CLIENT, VIP);
        let tcp6 = || Packet::tcp(CLIENT_6, VIP_6);
        for (name, packet, l3_offset, packet_len) in [
            ("TCP", tcp(), 14, 67),
            ("UDP", Packet::udp(CLIENT, VIP), 14, 55),
            ("SCTP", Packet::sctp(CLIENT, VIP), 14, 59),
            ("a tag", tcp().with(|p| p.tags = vec![(VLAN, 7)]), 18, 67),
            ("QinQ", tcp().with(|p| p.tags = vec![(SERVICE_VLAN, 7), (VLAN, 8)]), 22, 67),
            ("options", tcp().with(|p| p.options = vec![1; 40]), 14, 107),
            ("padding", tcp().with(|p| p.padding = 9), 14, 67),
            ("no payload", tcp().with(|p| p.payload.clear()), 14, 40),
            ("TCP over IPv6", tcp6(), 14, 87),
            ("UDP over IPv6", Packet::udp(CLIENT_6, VIP_6), 14, 75),
            ("padding over IPv6", tcp6().with(|p| p.padding = 9), 14, 87),
            ("IPv6 with a tag", tcp6().with(|p| p.tags = vec![(VLAN, 7)]), 18, 87),
            (
                "extensions",
                tcp6().with(|p| p.extensions = vec![hops, long, options.clone()]),
                14,
                119,
            ),
            ("an atomic fragment", tcp6().with(|p| p.fragment = Some((0, false))), 14, 95),
            ("8 extensions", tcp6().with(|p| p.extensions = vec![options; 8]), 14, 151),
        ] {
            let meta = parsed(&packet.frame());
            assert_eq!((meta.l3_offset, meta.packet_len), (l3_offset, packet_len), "{name}");
            let [src, dst] = [packet.src, packet.dst];
            let protocol = packet.protocol.0;
            let tuple = Tuple::new(src.ip(), dst.ip(), src.port(), dst.port(), protocol);
            assert_eq!((meta.tuple, meta.is_fragment), (tuple, false), "{name}");
        }
    }

    #[test]
    fn other_protocols_have_no_ports() {
        for (packet, protocol) in [
            (Packet::tcp(CLIENT, VIP).with(|p| p.protocol = IpNumber(50)), 50),
            (Packet::tcp(CLIENT_6, VIP_6).with(|p| p.protocol = IpNumber(47)), 47),
        ] {
            let meta = parsed(&packet.frame());
            assert_eq!((meta.tuple.protocol, meta.tuple.ports), (protocol, [0; 4]));
        }
    }

    #[test]
    fn fragments_have_no_ports() {
        for (given, offset_and_more) in [
            (Packet::tcp(CLIENT, VIP), (0, true)),
            (Packet::udp(CLIENT, VIP), (100, false)),
            (Packet::udp(CLIENT_6, VIP_6), (0, true)),
            (Packet::tcp(CLIENT_6, VIP_6), (100, false)),
        ] {
            let meta = parsed(&given.with(|p| p.fragment = Some(offset_and_more)).frame());
            assert!(meta.is_fragment);
            assert_eq!(meta.tuple.ports, [0; 4]);
        }
    }

    #[test]
    fn the_kernel_gets_what_no_service_can_be_meant_by() {
        let tcp = Packet::tcp(CLIENT, VIP);
        for (name, frame) in [
            ("ARP", packet::other([0xff; 6], 0x0806, &[0; 28])),
            ("ARP for us alone", packet::other(BALANCER, 0x0806, &[0; 28])),
            ("an unknown EtherType", packet::other(BALANCER, 0x88cc, &[0; 46])),
            ("a length (802.3)", packet::other(BALANCER, 46, &[0; 46])),
            ("broadcast", tcp.clone().with(|p| p.dst_mac = [0xff; 6]).frame()),
            ("multicast", tcp.clone().with(|p| p.dst_mac = [1, 0, 0x5e, 0, 0, 1]).frame()),
            ("a third tag", tcp.with(|p| p.tags = vec![(VLAN, 1); 3]).frame()),
            ("ping", Packet::ping(CLIENT, VIP).frame()),
            ("ping over IPv6", Packet::ping(CLIENT_6, VIP_6).frame()),
            (
                "a part of a ping",
                Packet::ping(CLIENT, VIP).with(|p| p.fragment = Some((3, false))).frame(),
            ),
        ] {
            assert_eq!(parse_one(SimFrame::new(&frame)).unwrap_err(), Exit::Punt, "{name}");
        }
    }

    /// A frame that says so many bytes of IPv4 packet.
    fn with_total_len(packet: &Packet, len: u8) -> Vec<u8> {
        let mut frame = packet.frame();
        frame[16..18].copy_from_slice(&[0, len]);
        packet::repair_ipv4_checksum(&mut frame, 14);
        frame
    }

    /// A frame that ends behind so many bytes of IPv6 payload, and says so.
    fn cut_ipv6_payload(packet: &Packet, len: u8) -> Vec<u8> {
        let mut frame = packet.frame();
        frame.truncate(14 + 40 + usize::from(len));
        frame[18..20].copy_from_slice(&[0, len]);
        frame
    }

    #[test]
    fn bad_headers_are_dropped_and_say_why() {
        use DropReason as R;
        let (tcp, udp) = (Packet::tcp(CLIENT, VIP), Packet::udp(CLIENT, VIP));
        let tcp6 = Packet::tcp(CLIENT_6, VIP_6);
        let cut = |frame: Vec<u8>, len: usize| frame[..len].to_vec();
        let set = |mut frame: Vec<u8>, at: usize, byte| {
            frame[at] = byte;
            frame
        };
        let tagged = tcp.clone().with(|p| p.tags = vec![(VLAN, 7)]);
        let stranger = tcp.clone().with(|p| p.dst_mac = [2, 0, 0, 0, 0, 9]);
        let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
        let extended = |n| tcp6.clone().with(|p| p.extensions = vec![options.clone(); n]);
        for (name, frame, expect) in [
            ("nothing", vec![], R::Truncated),
            ("13 bytes", cut(tcp.frame(), 13), R::Truncated),
            ("half a tag", cut(tagged.frame(), 17), R::Truncated),
            ("19 bytes of IPv4", cut(tcp.frame(), 33), R::Truncated),
            ("39 bytes of IPv6", cut(tcp6.frame(), 53), R::Truncated),
            ("less than it says", cut(tcp.frame(), 80), R::Truncated),
            ("less than it says, IPv6", cut(tcp6.frame(), 100), R::Truncated),
            ("shorter than its header", with_total_len(&tcp, 19), R::Truncated),
            ("most of a TCP header", with_total_len(&tcp, 39), R::Truncated),
            ("most of a UDP header", with_total_len(&udp, 27), R::Truncated),
            ("most of a TCP header, IPv6", cut_ipv6_payload(&tcp6, 19), R::Truncated),
            ("extensions to the end", cut_ipv6_payload(&extended(1), 8), R::Truncated),
            ("IPv6 in IPv4's place", set(tcp.frame(), 14, 0x65), R::BadVersion),
            ("IPv4 in IPv6's place", set(tcp6.frame(), 14, 0x45), R::BadVersion),
            ("4 words of header", set(tcp.frame(), 14, 0x44), R::BadHeaderLength),
            ("a changed byte", set(tcp.frame(), 22, 99), R::BadChecksum),
            ("9 extensions", extended(9).frame(), R::TooManyExtensions),
            ("another station's", stranger.frame(), R::NotOurs),
        ] {
            let exit = parse_one(SimFrame::new(&frame)).unwrap_err();
            assert_eq!(exit, Exit::Drop(expect), "{name}");
        }
    }

    #[test]
    fn some_addresses_cannot_be_sources() {
        let bad = DropReason::BadSource.into();
        for (src, dst, expect) in [
            ("0.0.0.0:1", VIP, bad),
            ("0.1.2.3:1", VIP, bad),
            ("127.0.0.1:1", VIP, bad),
            ("224.0.0.1:1", VIP, bad),
            ("240.0.0.1:1", VIP, bad),
            ("255.255.255.255:1", VIP, bad),
            ("[::]:1", VIP_6, bad),
            ("[::1]:1", VIP_6, bad),
            ("[ff02::1]:1", VIP_6, bad),
            (VIP, VIP, DropReason::SameSource.into()),
            (VIP_6, VIP_6, DropReason::SameSource.into()),
        ] {
            let frame = SimFrame::new(&Packet::tcp(src, dst).frame());
            assert_eq!(parse_one(frame).unwrap_err(), expect, "{src}");
        }
        for (src, dst) in [("1.0.0.1:1", VIP), ("223.0.0.1:1", VIP), ("[::2]:1", VIP_6)] {
            parsed(&Packet::tcp(src, dst).frame());
        }
    }

    #[test]
    fn an_ipv6_packet_beyond_16_bits_of_length_is_too_big() {
        let mut frame = Packet::tcp(CLIENT_6, VIP_6).with(|p| p.payload = vec![0; 65_476]).frame();
        assert_eq!(parse_one(SimFrame::new(&frame)).unwrap_err(), DropReason::TooBig.into());
        frame[18..20].copy_from_slice(&65_495_u16.to_be_bytes()); // the last byte is padding
        assert_eq!(parsed(&frame).packet_len, 65_535);
    }

    #[test]
    fn the_nics_word_on_the_checksum_counts() {
        let good = Packet::tcp(CLIENT, VIP).frame();
        let mut bad = good.clone();
        bad[22] ^= 1; // TTL
        let wrong = Err(Exit::Drop(DropReason::BadChecksum));
        for (frame, checked, expect) in [
            (&good, Checked::Unknown, Ok(())),
            (&good, Checked::Good, Ok(())),
            (&good, Checked::Bad, wrong),
            (&bad, Checked::Unknown, wrong),
            (&bad, Checked::Good, Ok(())),
            (&bad, Checked::Bad, wrong),
        ] {
            let mut frame = SimFrame::new(frame);
            frame.ipv4_checked = checked;
            assert_eq!(parse_one(frame).map(|_| ()), expect, "{checked:?}");
        }
    }

    #[test]
    fn nobody_looks_inside_a_split_frame() {
        let mut frame = SimFrame::new(&Packet::tcp(CLIENT, VIP).frame());
        frame.is_split = true;
        assert_eq!(parse_one(frame).unwrap_err(), DropReason::MultiSegment.into());
    }

    fn lan() -> Port {
        Port {
            name: "lan0".into(),
            mac: MacAddr(BALANCER),
            mtu: 1500,
            addresses: Vec::new(),
            kernel: true,
            udp_checksums: false,
        }
    }

    fn at_one_look(frame: &[u8], checked: Checked) -> Option<Meta> {
        let mut meta = Meta::default();
        plain::parse(frame, checked, plain::Mac::new(lan().mac), &mut meta).then_some(meta)
    }

    fn kinds() -> [Packet; 5] {
        [
            Packet::tcp(CLIENT, VIP),
            Packet::udp(CLIENT, VIP),
            Packet::sctp(CLIENT, VIP),
            Packet::tcp(CLIENT_6, VIP_6),
            Packet::udp(CLIENT_6, VIP_6),
        ]
    }

    #[test]
    fn most_frames_are_taken_in_at_one_look() {
        for packet in kinds() {
            assert!(at_one_look(&packet.frame(), Checked::Unknown).is_some(), "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn one_look_tells_what_step_by_step_does(
            kind in 0_usize..5,
            changes in vec((0_usize..74, any::<u8>()), 0..3),
            cut in 0_usize..40,
            checked in prop::sample::select(vec![Checked::Unknown, Checked::Good, Checked::Bad]),
            is_repaired: bool,
        ) {
            let mut frame = SimFrame::new(&kinds()[kind].frame());
            frame.ipv4_checked = checked;
            frame.truncate(frame.bytes().len() - cut);
            let bytes = frame.bytes_mut();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if is_repaired && bytes.get(14) == Some(&0x45) && bytes.len() >= 34 {
                packet::repair_ipv4_checksum(bytes, 14);
            }
            if let Some(meta) = at_one_look(frame.bytes(), checked) {
                let mut expect = Meta::default();
                prop_assert_eq!(general(&frame, &lan(), &mut expect), Ok(()));
                prop_assert_eq!(format!("{meta:?}"), format!("{expect:?}"));
            }
        }
    }
}
