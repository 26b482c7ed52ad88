//! What leaves: frames, as they are or within others.

use std::net::IpAddr;

use etherparse::{
    EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice, UdpHeader,
};
use lb_core::drop_reason::DropReason::{NoHeadroom, TooBig};
use lb_core::model::{MssClamp, TunnelKind};
use lb_core::tables::next_hop::{NextHop, PortId};

use super::Verdict;
use super::headers::{Ip, L2, internet_sum};
use super::services::Choice;
use crate::support::run::Arrival;
use crate::support::world::World;

/// MACs and tags of what leaves: the hop's VLAN; else, out of the port that it came by, the tags
/// that the frame had; else none.
pub(super) fn l2_front(world: &World, came_by: PortId, old: &L2, way: &NextHop) -> Vec<u8> {
    let macs = [way.mac.0, world.ports[way.port.index()].mac.0].concat();
    let tags = match way.vlan {
        Some(vlan) => vec![0x81, 0x00, vlan.to_be_bytes()[0], vlan.to_be_bytes()[1]],
        None if way.port == came_by => old.tags.to_vec(),
        None => Vec::new(),
    };
    [macs, tags].concat()
}

pub(super) fn l2dsr(
    world: &World,
    arrival: &Arrival,
    l2: &L2,
    ip: &Ip,
    (choice, clamp): (&Choice, MssClamp),
) -> Result<Vec<u8>, Verdict> {
    let mtu = world.ports[choice.way.port.index()].mtu;
    if ip.packet.len() > mtu.into() {
        return Err(TooBig.into());
    }
    let front = l2_front(world, arrival.port, l2, &choice.way);
    let front = [&front[..], &l2.ether_type.0.to_be_bytes()].concat();
    let mut payload = clamped(ip, clamp, mtu.into());
    payload.extend(&l2.payload[ip.packet.len()..]); // padding and all
    fit(arrival, l2, &front, &payload)
}

/// A packet behind its outer headers.
pub(super) struct Tunnelled {
    ether_type: EtherType,
    outer: Vec<u8>,
    shim: Vec<u8>,
    packet: Vec<u8>,
}

impl Tunnelled {
    pub(super) fn new(
        world: &World,
        ip: &Ip,
        choice: &Choice,
        (kind, clamp): (TunnelKind, MssClamp),
    ) -> Result<Self, Verdict> {
        let inner = if ip.dst.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let (protocol, mut shim) = match kind {
            TunnelKind::Ipip if ip.dst.is_ipv4() => (IpNumber::IPV4, Vec::new()),
            TunnelKind::Ipip => (IpNumber::IPV6, Vec::new()),
            TunnelKind::Gre => (IpNumber::GRE, [[0; 2], inner.0.to_be_bytes()].concat()),
            TunnelKind::Gue { port } => {
                let source = u16::try_from(choice.hash % (1 << 14)).unwrap() + 49_152;
                let len = u16::try_from(8 + ip.packet.len()).map_err(|_| TooBig)?;
                let words = [source, port, len, 0].map(u16::to_be_bytes);
                (IpNumber::UDP, words.concat())
            }
        };
        let payload_len = shim.len() + ip.packet.len();
        let (ether_type, outer) = outer_header(ip.traffic_class, protocol, payload_len, choice)?;
        let overhead = outer.len() + shim.len();
        let mtu = usize::from(world.ports[choice.way.port.index()].mtu);
        let packet = clamped(ip, clamp, mtu - overhead);
        if protocol == IpNumber::UDP
            && let (Some(IpAddr::V6(src)), IpAddr::V6(dst)) =
                (choice.source, choice.backend.address)
        {
            let (udp, _) = UdpHeader::from_slice(&shim).unwrap();
            // Of a packet that believes its own checksums: the outer one is wrong where they are.
            let truthful = with_true_checksums(&packet);
            let sum = udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &truthful).unwrap();
            shim[6..].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(Self { ether_type, outer, shim, packet })
    }

    pub(super) fn overhead(&self) -> usize {
        self.outer.len() + self.shim.len()
    }

    pub(super) fn frame(
        &self,
        world: &World,
        arrival: &Arrival,
        l2: &L2,
        way: &NextHop,
    ) -> Result<Vec<u8>, Verdict> {
        let front = l2_front(world, arrival.port, l2, way);
        let ether_type = self.ether_type.0.to_be_bytes();
        let front = [&front[..], &ether_type, &self.outer, &self.shim].concat();
        fit(arrival, l2, &front, &self.packet)
    }
}

/// The pieces of a frame's outer packet that fit `mtu`.
pub(super) fn pieces(frame: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let l2 = L2::read(frame).unwrap();
    let front = &frame[..l2.len()];
    let pieces = packet_pieces(l2.payload, mtu, id);
    pieces.into_iter().map(|piece| [front, &piece].concat()).collect()
}

/// The pieces of a packet that fit `mtu`. It may be a piece itself, which has an identification.
pub(super) fn packet_pieces(packet: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let is_v4 = packet[0] >> 4 == 4;
    let is_piece = !is_v4 && packet[6] == 44;
    let (header_len, more_len) = if is_v4 { (20, 0) } else { (40, 8) };
    let payload = &packet[header_len + if is_piece { more_len } else { 0 }..];
    let step = (mtu - header_len - more_len) / 8 * 8;
    let count = payload.chunks(step).len();
    let piece = |(number, bytes): (usize, &[u8])| {
        let (offset, has_more) = (number * step / 8, number + 1 < count);
        let offset =
            |first: u16| IpFragOffset::try_new(first + u16::try_from(offset).unwrap()).unwrap();
        let mut piece = Vec::new();
        if is_v4 {
            let mut header = Ipv4HeaderSlice::from_slice(packet).unwrap().to_header();
            if !header.is_fragmenting_payload() {
                header.identification = u16::try_from(id % (1 << 16)).unwrap();
            }
            header.dont_fragment = false;
            header.fragment_offset = offset(header.fragment_offset.value());
            header.more_fragments |= has_more;
            header.set_payload_len(bytes.len()).unwrap();
            header.write(&mut piece).unwrap();
        } else {
            let mut header = Ipv6HeaderSlice::from_slice(packet).unwrap().to_header();
            let mut part = Ipv6FragmentHeader::new(header.next_header, offset(0), has_more, id);
            if is_piece {
                let old = Ipv6FragmentHeaderSlice::from_slice(&packet[40..]).unwrap().to_header();
                part = Ipv6FragmentHeader {
                    fragment_offset: offset(old.fragment_offset.value()),
                    more_fragments: old.more_fragments || has_more,
                    ..old
                };
            }
            header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
            header.payload_length = u16::try_from(8 + bytes.len()).unwrap();
            header.write(&mut piece).unwrap();
            part.write(&mut piece).unwrap();
        }
        piece.extend(bytes);
        piece
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

/// The packet; if it is a SYN that announces larger segments than wanted, with smaller ones.
pub(super) fn clamped(ip: &Ip, clamp: MssClamp, packet_max: usize) -> Vec<u8> {
    let mut packet = ip.packet.to_vec();
    let headers = if ip.dst.is_ipv4() { 40 } else { 60 };
    let max = match clamp {
        MssClamp::Keep => return packet,
        MssClamp::AtMost(max) => max,
        MssClamp::Auto => u16::try_from(packet_max - headers).unwrap(),
    };
    let start = packet.len() - ip.segment.len();
    let is_later = ip.piece.is_some_and(|piece| piece.offset > 0);
    if ip.protocol != IpNumber::TCP || is_later || ip.segment.len() < 20 || ip.segment[13] & 2 == 0
    {
        return packet;
    }
    let header_len = usize::from(ip.segment[12] / 16) * 4;
    if header_len < 20 || header_len > ip.segment.len() {
        return packet;
    }
    let (mut options, mut at) = (&ip.segment[20..header_len], 20);
    loop {
        let len = match *options {
            [1, ..] => 1,
            [2, 4, high, low, ..] => {
                let old = u16::from_be_bytes([high, low]);
                if old > max {
                    let place = start + at + 2;
                    packet[place..place + 2].copy_from_slice(&max.to_be_bytes());
                    let shift = |mss: u16| if at % 2 == 0 { mss } else { mss.swap_bytes() };
                    let sum = u16::from_be_bytes([packet[start + 16], packet[start + 17]]);
                    let sum = [!sum, !shift(old), shift(max)].map(u16::to_be_bytes).concat();
                    let sum = !u16::try_from(internet_sum(&sum)).unwrap();
                    packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
                }
                return packet;
            }
            [kind, len, ..] if kind > 1 && len >= 2 && usize::from(len) <= options.len() => len,
            _ => return packet,
        };
        options = &options[len.into()..];
        at += usize::from(len);
    }
}

pub(super) fn outer_header(
    traffic_class: u8,
    protocol: IpNumber,
    payload_len: usize,
    choice: &Choice,
) -> Result<(EtherType, Vec<u8>), Verdict> {
    let mut bytes = Vec::new();
    match (choice.source.unwrap(), choice.backend.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                dscp: (traffic_class >> 2).try_into().unwrap(),
                ecn: (traffic_class & 3).try_into().unwrap(),
                identification: 0,
                dont_fragment: true,
                time_to_live: 64,
                protocol,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            header.set_payload_len(payload_len).map_err(|_| TooBig)?;
            header.write(&mut bytes).unwrap();
            Ok((EtherType::IPV4, bytes))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let flow_label = u32::try_from(choice.hash % (1 << 20)).unwrap();
            let header = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(flow_label).unwrap(),
                payload_length: payload_len.try_into().map_err(|_| TooBig)?,
                next_header: protocol,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            header.write(&mut bytes).unwrap();
            Ok((EtherType::IPV6, bytes))
        }
        mixed => panic!("two families in one header: {mixed:?}"),
    }
}

/// The frame, if there is room for its front where the old one and the headroom were.
pub(super) fn fit(
    arrival: &Arrival,
    l2: &L2,
    front: &[u8],
    payload: &[u8],
) -> Result<Vec<u8>, Verdict> {
    let old_front = arrival.bytes.len() - l2.payload.len();
    if front.len() > old_front + arrival.headroom {
        return Err(NoHeadroom.into());
    }
    Ok([front, payload].concat())
}

/// The packet with the checksums that it should have, if it is nothing but an IP header and all of a
/// TCP or UDP segment that has one.
fn with_true_checksums(packet: &[u8]) -> Vec<u8> {
    let mut truthful = packet.to_vec();
    let is_v4 = packet[0] >> 4 == 4;
    let (plain, protocol) = if is_v4 { (20, packet[9]) } else { (40, packet[6]) };
    let is_fragment = is_v4 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    if (is_v4 && packet[0] != 0x45) || is_fragment {
        return truthful;
    }
    let segment = &packet[plain..];
    let at = match protocol {
        6 => 16,
        17 if usize::from(u16::from_be_bytes([segment[4], segment[5]])) == segment.len() => 6,
        _ => return truthful,
    };
    if segment[at..at + 2] == [0; 2] {
        return truthful;
    }
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
    let len = u32::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [addresses, &len, &[0, 0, 0, protocol]].concat();
    truthful[plain + at..][..2].fill(0);
    let sum = checksum_of(&[&pseudo, &truthful[plain..]].concat());
    truthful[plain + at..][..2].copy_from_slice(&sum);
    if is_v4 {
        truthful[10..12].fill(0);
        let sum = checksum_of(&truthful[..20]);
        truthful[10..12].copy_from_slice(&sum);
    }
    truthful
}

/// RFC 1071, word by word.
fn checksum_of(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
