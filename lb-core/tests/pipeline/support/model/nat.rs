//! Packets that get other ends: `nat` and `fullnat`.

use std::net::IpAddr;

use etherparse::IpNumber;
use lb_core::drop_reason::DropReason::{
    NextHopUnresolved, NoHeadroom, TooBig, Truncated, TtlExceeded, Untranslatable,
};
use lb_core::model::{ClientAddress, Forward, FullNat, MssClamp};
use lb_core::tables::next_hop::NextHop;

use super::headers::{Ip, internet_sum};
use super::leaving::{clamped, l2_front, packet_pieces};
use super::services::{client_of, shown_as, way_back};
use super::stream::{self, Told};
use super::{Model, Packet, Part, To, Verdict, between};
use crate::support::run::Arrival;

/// An address, and a port unless it stays.
pub(super) type End = (IpAddr, Option<u16>);

/// What a packet is given.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) src: Option<End>,
    pub(super) dst: Option<End>,
}

/// A translated packet.
pub(super) struct Made {
    pub(super) packet: Vec<u8>,
    /// Where its transport header is.
    pub(super) l4: usize,
    /// Bytes in front of what is kept: before, and now.
    pub(super) fronts: (usize, usize),
}

/// The way that a packet goes.
struct Road {
    ends: Ends,
    way: NextHop,
    mtu: u16,
    is_v6: bool,
    /// For identifications.
    hash: u64,
}

pub(super) fn word(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

/// A checksum after a change of what it covers: RFC 1624, equation 3.
pub(super) fn repaired(sum: [u8; 2], (old, new): (&[u8], &[u8])) -> [u8; 2] {
    let complement = |bytes: &[u8]| -> Vec<u8> {
        let padded = bytes.iter().copied().chain((bytes.len() % 2 == 1).then_some(0));
        padded.map(|byte| !byte).collect()
    };
    let even = |bytes: &[u8]| [bytes, &vec![0; bytes.len() % 2]].concat();
    let all = [complement(&sum), complement(old), even(new)].concat();
    (!u16::try_from(internet_sum(&all)).unwrap()).to_be_bytes()
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl<'w> Model<'w> {
    /// A client's packet goes to its backend, or a backend's to its client, with other ends.
    pub(super) fn translate(
        &mut self,
        arrival: &Arrival,
        packet: &Packet<'w>,
    ) -> Result<Verdict, Verdict> {
        let road = self.road(packet)?;
        let Packet { ip, part, service, to, .. } = packet;
        let is_back = matches!(to, To::Client(..) | To::ClientOf(_));
        let len = u16::try_from(ip.packet.len()).unwrap();
        let told = self.told(packet)?;
        let mss = service.spec().mss;
        let how = match service.spec().forward {
            Forward::FullNat(FullNat { client_address, .. }) => client_address,
            _ => ClientAddress::Hidden,
        };
        let mut fits = between::mtu_before(road.mtu, ip.src.is_ipv6(), road.is_v6);
        let mut given = ip.packet.to_vec();
        if is_back {
            if len <= fits {
                given = clamped(ip, mss, fits.into());
                if let (To::ClientOf(number), Part::Segment) = (to, part) {
                    let client = self.connections[*number].flow.src;
                    let more = match how {
                        ClientAddress::Hidden => None,
                        ClientAddress::Toa => Some(stream::toa_len(client)),
                        ClientAddress::Proxy => {
                            Some(u16::try_from(stream::proxy_len(client)).unwrap())
                        }
                    };
                    if let Some(more) = more {
                        let came_by = self.world.ports[arrival.port.index()].mtu;
                        let l4 = ip.packet.len() - ip.segment.len();
                        let given_ip = Ip { packet: &given, segment: &given[l4..], ..*ip };
                        given = clamped(&given_ip, MssClamp::Auto, (came_by - more).into());
                    }
                }
            }
        } else {
            let is_46 = matches!(service.spec().forward, Forward::Nat46(_));
            given = clamped(ip, mss, if is_46 { fits } else { road.mtu }.into());
            if how == ClientAddress::Proxy {
                let more = u16::try_from(stream::proxy_len(packet.flow.src)).unwrap();
                fits = between::mtu_before(road.mtu - more, ip.src.is_ipv6(), road.is_v6);
            }
        }
        match self.deliver(arrival, packet, &road, (&given, &told, road.mtu)) {
            Err(Verdict::Drop(TtlExceeded)) => self.answer(arrival, packet, None),
            Err(Verdict::Drop(TooBig)) => {
                let may_be_cut = if ip.src.is_ipv6() { len <= 1280 } else { !ip.dont_fragment };
                if !may_be_cut {
                    return self.answer(arrival, packet, Some(fits));
                }
                // Options and extension headers would have to be copied by their kind.
                let l4 = ip.packet.len() - ip.segment.len();
                if l4 != if ip.src.is_ipv6() { 40 } else { 20 } {
                    return Err(TooBig.into());
                }
                self.deliver(arrival, packet, &road, (&given, &told, u16::MAX))
            }
            other => other,
        }
    }

    fn road(&self, packet: &Packet) -> Result<Road, Verdict> {
        let world = self.world;
        let Packet { flow, service, to, .. } = packet;
        let back = |client: IpAddr, ends| {
            let way = way_back(world, client, flow).ok_or(NextHopUnresolved)?;
            let mtu = world.ports[way.port.index()].mtu;
            let hash = world.tables.hasher.hash(&flow.tuple(), true);
            Ok(Road { ends, way, mtu, is_v6: client.is_ipv6(), hash })
        };
        let (choice, ends) = match to {
            To::Backend(choice) => {
                let dst = (choice.backend.address, choice.backend.port);
                let src = shown_as(service, flow.src).map(|client| (client, None));
                (choice, Ends { src, dst: Some(dst) })
            }
            To::BackendOf(choice, number) => {
                let connection = &self.connections[*number];
                let [src, dst] =
                    [connection.stand, connection.backend].map(|(ip, port)| Some((ip, Some(port))));
                (choice, Ends { src, dst })
            }
            To::Client(vip, port) => {
                let client = client_of(service, flow.dst).unwrap();
                let dst = (client != flow.dst).then_some((client, None));
                return back(client, Ends { src: Some((*vip, *port)), dst });
            }
            To::ClientOf(number) => {
                let forth = &self.connections[*number].flow;
                let src = Some((forth.dst, Some(forth.ports[1])));
                let dst = Some((forth.src, Some(forth.ports[0])));
                return back(forth.src, Ends { src, dst });
            }
        };
        let mtu = world.ports[choice.way.port.index()].mtu;
        let is_v6 = choice.backend.address.is_ipv6();
        Ok(Road { ends, way: choice.way, mtu, is_v6, hash: choice.hash })
    }

    fn told(&self, packet: &Packet) -> Result<Told, Verdict> {
        let Forward::FullNat(FullNat { client_address, .. }) = packet.service.spec().forward else {
            return Ok(Told::Nothing);
        };
        let To::BackendOf(_, number) = packet.to else { return Ok(Told::Nothing) };
        let part = (packet.ip.segment, packet.part, packet.ip.piece.is_some());
        Told::of(&self.connections[number], client_address, part)
    }

    /// The frames that leave, if the packet may have `mtu` bytes; in pieces, if it has more than the
    /// way takes.
    fn deliver(
        &mut self,
        arrival: &Arrival,
        packet: &Packet,
        road: &Road,
        (given, told, mtu): (&[u8], &Told, u16),
    ) -> Result<Verdict, Verdict> {
        let Packet { l2, ip, flow, part, to, .. } = packet;
        let limit = match told {
            Told::Header(header) => mtu - u16::try_from(header.len()).unwrap(),
            _ => mtu,
        };
        let l4 = ip.packet.len() - ip.segment.len();
        let given = Ip { packet: given, segment: &given[l4..], ..*ip };
        let is_same = ip.src.is_ipv6() == road.is_v6;
        let mut made = if is_same {
            if ip.packet.len() > limit.into() {
                return Err(TooBig.into());
            }
            same_family(&given, *part, flow.protocol, &road.ends)?
        } else {
            between::translated(&given, *part, &road.ends, (limit, road.hash))?
        };
        let front = l2_front(self.world, arrival.port, l2, &road.way);
        let ether_type = if road.is_v6 { [0x86, 0xdd] } else { [8, 0] };
        let front = [&front[..], &ether_type].concat();
        let has_room = |made: &Made, more: usize| {
            if front.len() + made.fronts.1 + more > l2.len() + made.fronts.0 + arrival.headroom {
                return Err(Verdict::from(NoHeadroom));
            }
            Ok(())
        };
        has_room(&made, 0)?;
        self.tell(&mut made, packet, (told, mtu))?;
        has_room(&made, 0)?;
        let padding = match to {
            To::BackendOf(..) | To::ClientOf(_) => &[],
            _ if !is_same => &[],
            _ => &l2.payload[ip.packet.len()..],
        };
        let whole = [&front[..], &made.packet, padding].concat();
        if made.packet.len() <= road.mtu.into() {
            return Ok(Verdict::Send(road.way.port, vec![whole]));
        }
        let is_piece = ip.piece.is_some();
        if !is_piece {
            self.last_id += 1;
        }
        has_room(&made, if road.is_v6 && !is_piece { 8 } else { 0 })?;
        let pieces = packet_pieces(&made.packet, road.mtu.into(), self.last_id);
        let frames = pieces.into_iter().map(|piece| [&front[..], &piece].concat());
        Ok(Verdict::Send(road.way.port, frames.collect()))
    }

    /// Tells the backend who the client is, or hides from the client that it was told.
    fn tell(
        &mut self,
        made: &mut Made,
        packet: &Packet,
        (told, mtu): (&Told, u16),
    ) -> Result<(), Verdict> {
        let Forward::FullNat(full_nat) = packet.service.spec().forward else { return Ok(()) };
        let l4 = made.l4;
        match (&packet.to, told) {
            (To::ClientOf(number), _) => {
                let is_tcp = packet.flow.protocol == 6 && packet.part == Part::Segment;
                if full_nat.client_address == ClientAddress::Proxy && is_tcp {
                    let connection = &self.connections[*number];
                    if stream::hide_header(connection, &mut made.packet[l4..]) {
                        self.acknowledged(*number);
                    }
                }
                let is_error = packet.flow.protocol == 6 && packet.part == Part::Error;
                if full_nat.client_address == ClientAddress::Proxy && is_error {
                    stream::hide_header_in_error(
                        &self.connections[*number],
                        &mut made.packet[l4..],
                    );
                }
            }
            (To::BackendOf(..), Told::Shifted(more)) => {
                let segment = &mut made.packet[l4..];
                let sequence = stream::number(segment, 4).wrapping_add(*more);
                stream::renumbered(segment, 4, sequence);
            }
            (To::BackendOf(..), Told::Option(added) | Told::Header(added)) => {
                let is_option = matches!(told, Told::Option(_));
                let header_len = usize::from(made.packet[l4 + 12] / 16) * 4;
                if header_len < 20 || header_len > made.packet.len() - l4 {
                    return Err(Truncated.into());
                }
                let has_room =
                    header_len + added.len() <= 60 && made.packet.len() + added.len() <= mtu.into();
                if is_option && !has_room {
                    return Ok(());
                }
                let at = if is_option { 20 } else { header_len };
                let segment = stream::with_added(&made.packet[l4..], at, added, is_option);
                made.packet.splice(l4.., segment);
                made.fronts.1 += added.len();
                set_len(&mut made.packet);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The length of a packet as it is now.
fn set_len(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        let len = u16::try_from(packet.len() - 40).unwrap();
        packet[4..6].copy_from_slice(&len.to_be_bytes());
    } else {
        let len = u16::try_from(packet.len()).unwrap().to_be_bytes();
        let sum = repaired(word(packet, 10), (&word(packet, 2), &len));
        packet[2..4].copy_from_slice(&len);
        packet[10..12].copy_from_slice(&sum);
    }
}

/// Where source and destination lie in a header.
fn places(is_v6: bool) -> [std::ops::Range<usize>; 2] {
    if is_v6 { [8..24, 24..40] } else { [12..16, 16..20] }
}

/// Gives the header other addresses; returns those before and after, one after the other.
fn readdress(packet: &mut [u8], is_v6: bool, ends: [Option<End>; 2]) -> (Vec<u8>, Vec<u8>) {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (place, end) in places(is_v6).into_iter().zip(ends) {
        let Some((address, _)) = end else { continue };
        old.extend(&packet[place.clone()]);
        new.extend(octets(address));
        packet[place].copy_from_slice(&octets(address));
    }
    if !is_v6 {
        let sum = repaired(word(packet, 10), (&old, &new));
        packet[10..12].copy_from_slice(&sum);
    }
    (old, new)
}

/// The checksum of SCTP (RFC 9260 §6.8 and Appendix A): of all of a packet, with zero in its place.
fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= if (8..12).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = if crc % 2 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

/// As [`resegment`], of a whole packet of SCTP: what was wrong with its checksum still is.
pub(super) fn resegment_sctp(packet: &mut [u8], ports: [Option<u16>; 2]) {
    let before = sctp_checksum(packet);
    resegment(packet, (132, false), ports, (Vec::new(), Vec::new()));
    let after = sctp_checksum(packet);
    for (at, (before, after)) in before.into_iter().zip(after).enumerate() {
        packet[8 + at] ^= before ^ after;
    }
}

/// Gives a segment, or the beginning of one, other ports, and repairs its checksum for them and the
/// addresses.
pub(super) fn resegment(
    segment: &mut [u8],
    (protocol, is_v6): (u8, bool),
    ports: [Option<u16>; 2],
    (mut old, mut new): (Vec<u8>, Vec<u8>),
) {
    let has_ports = matches!(protocol, 6 | 17 | 132);
    for (at, port) in [0, 2].into_iter().zip(ports) {
        let (Some(port), true) = (port, has_ports && segment.len() >= at + 2) else { continue };
        old.extend(word(segment, at));
        new.extend(port.to_be_bytes());
        segment[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }
    let place = match protocol {
        6 => 16,
        17 => 6,
        _ => return,
    };
    if segment.len() < place + 2 || protocol == 17 && !is_v6 && word(segment, 6) == [0, 0] {
        return;
    }
    let mut sum = repaired(word(segment, place), (&old, &new));
    if protocol == 17 && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    segment[place..place + 2].copy_from_slice(&sum);
}

/// A packet with other ends of its own family, and one hop less.
fn same_family(ip: &Ip, part: Part, protocol: u8, ends: &Ends) -> Result<Made, Verdict> {
    let is_v6 = ip.src.is_ipv6();
    let mut packet = ip.packet.to_vec();
    let l4 = packet.len() - ip.segment.len();
    let ports = [ends.src, ends.dst].map(|end| end.and_then(|(_, port)| port));
    let is_sctp = protocol == 132 && part == Part::Segment && ports.iter().any(Option::is_some);
    if is_sctp && ip.piece.is_some() {
        return Err(Untranslatable.into()); // of a part nobody can tell its checksum
    }
    let hops = if is_v6 { 7 } else { 8 };
    if packet[hops] <= 1 {
        return Err(TtlExceeded.into());
    }
    let before = word(&packet, 8);
    packet[hops] -= 1;
    if !is_v6 {
        let sum = repaired(word(&packet, 10), (&before, &word(&packet, 8)));
        packet[10..12].copy_from_slice(&sum);
    }
    match part {
        Part::Later => drop(readdress(&mut packet, is_v6, [ends.src, ends.dst])),
        Part::Segment => {
            let change = readdress(&mut packet, is_v6, [ends.src, ends.dst]);
            if is_sctp {
                resegment_sctp(&mut packet[l4..], ports);
            } else {
                resegment(&mut packet[l4..], (protocol, is_v6), ports, change);
            }
        }
        Part::Error => {
            // Who speaks keeps its name, unless it is the end that the quoted packet was for.
            let [_, quoted_dst] = places(is_v6);
            let is_end = packet[places(is_v6)[0].clone()] == packet[l4 + 8..][quoted_dst];
            let src = ends.src.filter(|_| is_end);
            let (old_ends, new_ends) = readdress(&mut packet, is_v6, [src, ends.dst]);
            let message = &mut packet[l4..];
            let old = message.to_vec();
            let quote = quote_of(&message[8..], is_v6);
            let change = readdress(&mut message[8..], is_v6, [ends.dst, ends.src]);
            let ports = [ports[1], ports[0]];
            resegment(&mut message[8 + quote.0..], (quote.1, is_v6), ports, change);
            let pseudo = |ends: Vec<u8>| if is_v6 { ends } else { Vec::new() };
            let covered = (
                &[pseudo(old_ends), old].concat()[..],
                &[pseudo(new_ends), message.to_vec()].concat()[..],
            );
            let sum = repaired(word(message, 2), covered);
            message[2..4].copy_from_slice(&sum);
        }
    }
    Ok(Made { packet, l4, fronts: (0, 0) })
}

/// Where the segment begins in a packet that may be cut short behind its headers, and its protocol.
fn quote_of(packet: &[u8], is_v6: bool) -> (usize, u8) {
    let quoted = Ip::of_quote(packet, is_v6).unwrap();
    let IpNumber(protocol) = quoted.protocol;
    (packet.len() - quoted.segment.len(), protocol)
}
