//! Network address translation: the destination becomes the backend's, and in what comes back the
//! source becomes the VIP again. All checksums that cover what changes are repaired, so that they are
//! as true as they were (RFC 1624). The balancer is a hop: the TTL goes down by one.

use std::mem;
use std::ops::Range;

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, IntoBytes};

use super::{keeps_tags, readdress, write_macs};
use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Station};
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::{SCTP, TCP, UDP, icmp, ports, sctp};

/// What a hop takes away from the word of the IPv4 header that begins with the TTL.
const ONE_HOP: [u8; 2] = [1, 0];

/// What the ends of a packet become.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// Of what goes back to a client.
    pub src: Option<&'a Station>,
    /// Of what goes to a backend.
    pub dst: Option<&'a Station>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Destination,
    Source,
}

impl End {
    /// In a packet that is quoted, the ends have changed sides.
    fn other(self) -> Self {
        match self {
            Self::Destination => Self::Source,
            Self::Source => Self::Destination,
        }
    }
}

/// Sends a client's packet to the backend at `station`.
///
/// # Errors
/// As [`forward`]. Nothing has changed then.
#[inline(never)]
pub fn to_backend<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    station: &Station,
) -> Result<(), DropReason> {
    let changes = Changes { src: None, dst: Some(station) };
    forward(frame, meta, hop, came_by, changes)
}

/// Sends a backend's packet to the client, with `vip` as its source.
///
/// # Errors
/// As [`forward`]. Nothing has changed then.
#[inline(never)]
pub fn to_client<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    vip: &Station,
) -> Result<(), DropReason> {
    forward(frame, meta, hop, came_by, Changes { src: Some(vip), dst: None })
}

/// Gives ends of the packet other addresses and ports, and sends it to the hop. Compiled for each use, where it is known
/// which ends change.
///
/// # Errors
/// [`DropReason::TooBig`] for the port that it leaves by; [`DropReason::TtlExceeded`];
/// [`DropReason::Untranslatable`] for a first fragment of SCTP with another port;
/// [`DropReason::NoHeadroom`]; [`DropReason::Truncated`]. Nothing has changed then.
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    changes: Changes<'_>,
) -> Result<(), DropReason> {
    if meta.packet_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    let l3 = usize::from(meta.l3_offset);
    let packet_end = l3 + usize::from(meta.packet_len);
    let bytes = frame.bytes_mut();
    let packet = bytes.get_mut(l3..packet_end).ok_or(DropReason::Truncated)?;
    let l4 = usize::from(meta.l4_offset).saturating_sub(l3);
    if !(meta.rule.has_segment() && translate_plain(packet, l4, meta, changes)?) {
        // A copy for it alone: those that all others have need not lie in memory.
        translate(packet, l4, meta, [changes.src.copied(), changes.dst.copied()])?;
    }
    if keeps_tags(meta, hop, came_by) {
        write_macs(bytes, hop)
    } else {
        readdress(frame, meta, hop, came_by)
    }
}

/// Translates a packet that has a whole header of TCP or UDP, at `l4`, as most have: what changes is summed up
/// once, for all checksums that cover it. `false`, and nothing has changed: there is none.
#[inline(always)]
fn translate_plain(
    packet: &mut [u8],
    l4: usize,
    meta: &Meta,
    changes: Changes<'_>,
) -> Result<bool, DropReason> {
    let (header, segment) = packet.split_at_mut_checked(l4).ok_or(DropReason::Truncated)?;
    let is_udp = meta.tuple.protocol == UDP;
    let (src_port, dst_port, checksum) = match meta.tuple.protocol {
        TCP if let Ok((tcp, _)) = Tcp::mut_from_prefix(segment) => {
            (&mut tcp.src, &mut tcp.dst, &mut tcp.checksum)
        }
        UDP if let Ok((udp, _)) = Udp::mut_from_prefix(segment) => {
            (&mut udp.src, &mut udp.dst, &mut udp.checksum)
        }
        _ => return Ok(false),
    };
    let Changes { src, dst } = changes;
    let mut difference = Sum::default();
    if meta.tuple.is_ipv6 {
        let (ip, _) = Ipv6::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
        if ip.hop_limit <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        ip.hop_limit -= 1;
        difference = change(&mut ip.src, src.map(|src| src.address), difference);
        difference = change(&mut ip.dst, dst.map(|dst| dst.address), difference);
    } else {
        let (ip, _) = Ipv4::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
        if ip.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        ip.ttl -= 1;
        let ipv4 = |&Station { address: [.., a, b, c, d], .. }: &_| [a, b, c, d];
        difference = change(&mut ip.src, src.map(ipv4), difference);
        difference = change(&mut ip.dst, dst.map(ipv4), difference);
        ip.checksum = ip.checksum.changed_by(difference.minus(Sum::default().plus(&ONE_HOP)));
    }
    let port = |station: &Station| station.port;
    difference = change(zerocopy::transmute_mut!(src_port), src.and_then(port), difference);
    difference = change(zerocopy::transmute_mut!(dst_port), dst.and_then(port), difference);
    if !(is_udp && !meta.tuple.is_ipv6 && *checksum == Checksum::ZERO) {
        let new = checksum.changed_by(difference);
        *checksum = if is_udp { new.never_zero() } else { new };
    } // else there is none, and it stays so (RFC 768)
    Ok(true)
}

/// Writes what is new. Returns by how much what there is differs then from what there was, and other
/// changes on top of that.
#[inline(always)]
fn change<const N: usize>(place: &mut [u8; N], new: Option<[u8; N]>, others: Sum) -> Sum {
    let Some(new) = new else { return others };
    let old = mem::replace(place, new);
    others.plus(&new).minus(Sum::default().plus(&old))
}

/// Translates all else: errors, fragments without transport header, other protocols.
#[inline(never)]
fn translate(
    packet: &mut [u8],
    l4: usize,
    meta: &Meta,
    changes: [Option<Station>; 2],
) -> Result<(), DropReason> {
    let is_ipv6 = meta.tuple.is_ipv6;
    let is_error = matches!(meta.rule, Rule::IcmpError | Rule::ReturnError);
    let protocol = meta.tuple.protocol;
    let is_sctp_port = meta.rule.has_segment()
        && protocol == SCTP
        && changes.iter().flatten().any(|station| station.port.is_some());
    if is_sctp_port && meta.is_fragment {
        return Err(DropReason::Untranslatable); // nobody has all that its checksum covers
    }
    let (header, segment) = packet.split_at_mut_checked(l4).ok_or(DropReason::Truncated)?;
    count_down(header, is_ipv6)?;
    let mut outer = Outer::new();
    let changes = [End::Source, End::Destination].into_iter().zip(&changes);
    let changes: ArrayVec<(End, &Station), 2> =
        changes.filter_map(|(end, change)| Some((end, change.as_ref()?))).collect();
    for &(end, station) in &changes {
        let place = address_place(is_ipv6, end);
        let new = address(station, is_ipv6);
        let old = address_at(header, place.clone())?;
        if is_error {
            // It may come from a router on the way, which keeps its own name.
            if end == End::Destination || quoted_is(segment, is_ipv6, &old) {
                set_address(header, is_ipv6, place, new)?;
                outer.push((old, new));
            }
        } else {
            set_address(header, is_ipv6, place, new)?;
            if meta.rule.has_segment() && !is_sctp_port {
                translate_segment(segment, protocol, is_ipv6, (&old, new), (end, station));
            }
        }
    }
    if is_sctp_port {
        sctp::change(segment, |segment| {
            for &(end, station) in &changes {
                translate_segment(segment, protocol, is_ipv6, (&[], &[]), (end, station));
            }
        });
    }
    if is_error { translate_error(segment, is_ipv6, &outer, &changes) } else { Ok(()) }
}

/// How the addresses of an error have changed.
type Outer<'a> = ArrayVec<(Address, &'a [u8]), 2>;
type Address = ArrayVec<u8, 16>;

fn address(station: &Station, is_ipv6: bool) -> &[u8] {
    if is_ipv6 { &station.address } else { &station.address[12..] }
}

/// Where the address of an end lies in an IP header.
fn address_place(is_ipv6: bool, end: End) -> Range<usize> {
    match (is_ipv6, end) {
        (false, End::Source) => 12..16,
        (false, End::Destination) => 16..20,
        (true, End::Source) => 8..24,
        (true, End::Destination) => 24..40,
    }
}

/// May the packet be sent on?
#[must_use]
pub fn has_hop_left<F: Frame>(frame: &F, meta: &Meta) -> bool {
    let place = usize::from(meta.l3_offset) + if meta.tuple.is_ipv6 { 7 } else { 8 };
    frame.bytes().get(place).is_some_and(|hops| *hops > 1)
}

/// One hop less (RFC 1812 §5.3.1, RFC 8200 §3).
fn count_down(header: &mut [u8], is_ipv6: bool) -> Result<(), DropReason> {
    if is_ipv6 {
        let (ip, _) = Ipv6::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
        ip.hop_limit = match ip.hop_limit {
            0 | 1 => return Err(DropReason::TtlExceeded),
            hops => hops - 1,
        };
    } else {
        let (ip, _) = Ipv4::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
        let ttl = match ip.ttl {
            0 | 1 => return Err(DropReason::TtlExceeded),
            ttl => ttl - 1,
        };
        ip.checksum = ip.checksum.replace(&[ip.ttl, ip.protocol], &[ttl, ip.protocol]);
        ip.ttl = ttl;
    }
    Ok(())
}

fn address_at(header: &[u8], place: Range<usize>) -> Result<Address, DropReason> {
    Ok(header.get(place).ok_or(DropReason::Truncated)?.iter().copied().collect())
}

fn set_address(
    header: &mut [u8],
    is_ipv6: bool,
    place: Range<usize>,
    new: &[u8],
) -> Result<(), DropReason> {
    let before = address_at(header, place.clone())?;
    header.get_mut(place).ok_or(DropReason::Truncated)?.copy_from_slice(new);
    if !is_ipv6 {
        let (ip, _) = Ipv4::mut_from_prefix(header).map_err(|_| DropReason::Truncated)?;
        ip.checksum = ip.checksum.replace(&before, new);
    }
    Ok(())
}

/// Changes the port, and repairs the checksum for port and address; as far as they are there: a quote
/// may end anywhere.
fn translate_segment(
    segment: &mut [u8],
    protocol: u8,
    is_ipv6: bool,
    (old_address, new_address): (&[u8], &[u8]),
    (end, station): (End, &Station),
) {
    let mut change = None;
    if ports::header_bytes(protocol).is_some()
        && let Some(new) = station.port
        && let Some(place) = segment.get_mut(if end == End::Source { 0..2 } else { 2..4 })
    {
        let old = [place[0], place[1]];
        place.copy_from_slice(&new);
        change = Some((old, new));
    }
    let (mut old, mut new) = (Sum::default().plus(old_address), Sum::default().plus(new_address));
    if let Some((old_port, new_port)) = change {
        (old, new) = (old.plus(&old_port), new.plus(&new_port));
    }
    repair(segment, protocol, is_ipv6, (old, new));
}

/// Repairs the checksum of a segment, if it is there: `old` has become `new`.
#[inline(always)]
fn repair(segment: &mut [u8], protocol: u8, is_ipv6: bool, (old, new): (Sum, Sum)) {
    let place = match protocol {
        TCP => tcp::CHECKSUM,
        UDP => udp::CHECKSUM,
        _ => return, // of SCTP, see `sctp::change`; a quote of it is not all there
    };
    let Some(bytes) = segment.get_mut(place) else { return };
    let sum = Checksum::from([bytes[0], bytes[1]]);
    if protocol == UDP && !is_ipv6 && sum == Checksum::ZERO {
        return; // none, and it stays so (RFC 768)
    }
    let sum = sum.changed_by(new.minus(old));
    bytes.copy_from_slice(if protocol == UDP { sum.never_zero() } else { sum }.as_bytes());
}

/// Translates what an error quotes: there the ends have changed sides. `outer` is how its own
/// addresses have changed, which `ICMPv6`'s checksum covers.
fn translate_error(
    message: &mut [u8],
    is_ipv6: bool,
    outer: &Outer<'_>,
    changes: &[(End, &Station)],
) -> Result<(), DropReason> {
    let mut before = Sum::default().plus(message);
    let quote = message.get_mut(icmp::HEADER_BYTES..).ok_or(DropReason::Truncated)?;
    let (protocol, l4) = if is_ipv6 {
        let upper = ipv6::upper_layer_of_first(quote)?;
        (upper.protocol, upper.offset)
    } else {
        let (ip, _) = Ipv4::ref_from_prefix(quote).map_err(|_| DropReason::Truncated)?;
        (ip.protocol, ip.header_len())
    };
    let (header, segment) = quote.split_at_mut_checked(l4).ok_or(DropReason::Truncated)?;
    for &(end, station) in changes {
        let end = end.other();
        let place = address_place(is_ipv6, end);
        let old = address_at(header, place.clone())?;
        let new = address(station, is_ipv6);
        set_address(header, is_ipv6, place, new)?;
        translate_segment(segment, protocol, is_ipv6, (&old, new), (end, station));
    }
    let mut after = Sum::default().plus(message);
    for (old, new) in outer.iter().filter(|_| is_ipv6) {
        (before, after) = (before.plus(old), after.plus(new));
    }
    icmp::repair(message, before, after)
}

/// Is `address` the destination of the packet that an error quotes?
fn quoted_is(message: &[u8], is_ipv6: bool, address: &[u8]) -> bool {
    let quote = message.get(icmp::HEADER_BYTES..);
    let destination = quote.and_then(|quote| quote.get(address_place(is_ipv6, End::Destination)));
    destination == Some(address)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use etherparse::icmpv4::DestUnreachableHeader;
    use etherparse::{Icmpv4Type, Icmpv6Type, IpNumber, PacketBuilder};

    use super::*;
    use crate::forward::tests::{LAN, OURS, SERVER, hop};
    use crate::sim::SimFrame;
    use crate::sim::packet::{BALANCER, ROUTER, repair_ipv4_checksum};
    use crate::stage::parse::tests::parsed;
    use crate::tuple::address_bytes;
    use crate::wire::sctp::tests::with_checksum;

    const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8::7]:40000"];
    const VIP: [&str; 2] = ["10.0.0.100:80", "[fd00::100]:80"];
    const BACKEND: [&str; 2] = ["10.1.0.11:8080", "[fd01::11]:8080"];
    const SENT: [[u8; 6]; 2] = [SERVER.0, OURS.0];
    const CAME: [[u8; 6]; 2] = [BALANCER, ROUTER];

    /// A frame with true checksums.
    fn built(
        [dst_mac, src_mac]: [[u8; 6]; 2],
        src: &str,
        dst: &str,
        ttl: u8,
        finish: impl FnOnce(etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8>,
    ) -> Vec<u8> {
        let [src, dst]: [SocketAddr; 2] = [src, dst].map(|it| it.parse().unwrap());
        let ethernet = PacketBuilder::ethernet2(src_mac, dst_mac);
        finish(match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), ttl),
            mixed => panic!("{mixed:?}"),
        })
    }

    fn segment(
        src: &str,
        dst: &str,
        is_tcp: bool,
    ) -> impl FnOnce(etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8> {
        let [src, dst]: [SocketAddr; 2] = [src, dst].map(|it| it.parse().unwrap());
        move |builder| {
            let (mut bytes, payload) = (Vec::new(), b"odd payload");
            if is_tcp {
                builder.tcp(src.port(), dst.port(), 7, 1024).write(&mut bytes, payload).unwrap();
            } else {
                builder.udp(src.port(), dst.port()).write(&mut bytes, payload).unwrap();
            }
            bytes
        }
    }

    fn station(socket: &str) -> Station {
        let socket: SocketAddr = socket.parse().unwrap();
        Station { address: address_bytes(socket.ip()), port: Some(socket.port().to_be_bytes()) }
    }

    fn translated(
        frame: &[u8],
        rule: Option<Rule>,
        end: End,
        to: &str,
    ) -> Result<Vec<u8>, DropReason> {
        let mut meta = parsed(frame);
        meta.rule = rule.unwrap_or(meta.rule);
        let mut sim = SimFrame::new(frame);
        let station = station(to);
        let send = if end == End::Source { to_client } else { to_backend };
        send(&mut sim, &meta, &hop(0, None, 1500), LAN, &station)?;
        Ok(sim.bytes().to_vec())
    }

    /// Translating a packet is the same as building it anew with the other address and port.
    #[test]
    fn both_ways_are_as_if_built_anew() {
        for family in [0, 1] {
            let (client, vip, backend) = (CLIENT[family], VIP[family], BACKEND[family]);
            for is_tcp in [true, false] {
                let given = built(CAME, client, vip, 64, segment(client, vip, is_tcp));
                let expect = built(SENT, client, backend, 63, segment(client, backend, is_tcp));
                let found = translated(&given, None, End::Destination, backend).unwrap();
                assert_eq!(found, expect, "{family} {is_tcp}");

                let given = built(CAME, backend, client, 64, segment(backend, client, is_tcp));
                let expect = built(SENT, vip, client, 63, segment(vip, client, is_tcp));
                let rule = Some(Rule::Return);
                assert_eq!(translated(&given, rule, End::Source, vip).unwrap(), expect);
            }
        }
    }

    /// An SCTP packet with a chunk of data, and a true checksum.
    fn sctp(macs: [[u8; 6]; 2], src: &str, dst: &str, ttl: u8) -> Vec<u8> {
        built(macs, src, dst, ttl, |builder| {
            let [src, dst]: [SocketAddr; 2] = [src, dst].map(|it| it.parse().unwrap());
            let ports = [src, dst].map(|end| end.port().to_be_bytes()).concat();
            let rest = [&[1, 2, 3, 4, 0, 0, 0, 0, 0, 3, 0, 17], &[5; 16][..]].concat();
            let packet = with_checksum([ports, rest].concat());
            let mut bytes = Vec::new();
            builder.write(&mut bytes, IpNumber::SCTP, &packet).unwrap();
            bytes
        })
    }

    #[test]
    fn sctp_is_as_if_built_anew() {
        for family in [0, 1] {
            let (client, vip, backend) = (CLIENT[family], VIP[family], BACKEND[family]);
            let given = sctp(CAME, client, vip, 64);
            let found = translated(&given, None, End::Destination, backend).unwrap();
            assert_eq!(found, sctp(SENT, client, backend, 63), "{family}");

            let given = sctp(CAME, backend, client, 64);
            let found = translated(&given, Some(Rule::Return), End::Source, vip).unwrap();
            assert_eq!(found, sctp(SENT, vip, client, 63), "{family}");
        }
    }

    /// Its checksum covers all of the packet; that of a datagram's first fragment is left, if the
    /// port is.
    #[test]
    fn a_part_of_an_sctp_packet_keeps_its_port() {
        let mut given = sctp(CAME, CLIENT[0], VIP[0], 64);
        (given[20], given[21]) = (0x20, 0); // more fragments
        repair_ipv4_checksum(&mut given, 14);
        let given = SimFrame::new(&given);
        let to = |port: Option<u16>| {
            let mut frame = given.clone();
            let meta = Meta { rule: Rule::Flow, ..parsed(frame.bytes()) };
            let station = Station { port: port.map(u16::to_be_bytes), ..station(BACKEND[0]) };
            let done = to_backend(&mut frame, &meta, &hop(0, None, 1500), LAN, &station);
            (done, frame)
        };
        let (done, frame) = to(Some(8080));
        assert_eq!((done, frame.bytes()), (Err(DropReason::Untranslatable), given.bytes()));
        let (done, frame) = to(None);
        assert_eq!((done, &frame.bytes()[34..]), (Ok(()), &given.bytes()[34..]));
    }

    #[test]
    fn a_datagram_without_checksum_stays_without() {
        let (client, vip, backend) = (CLIENT[0], VIP[0], BACKEND[0]);
        let mut given = built(CAME, client, vip, 64, segment(client, vip, false));
        given[40..42].fill(0);
        let found = translated(&given, None, End::Destination, backend).unwrap();
        assert_eq!(found[40..42], [0, 0]);
    }

    #[test]
    fn the_last_hop_is_the_last() {
        for family in [0, 1] {
            let (client, vip, backend) = (CLIENT[family], VIP[family], BACKEND[family]);
            for (ttl, expect) in
                [(0, Err(DropReason::TtlExceeded)), (1, Err(DropReason::TtlExceeded)), (2, Ok(()))]
            {
                let given = built(CAME, client, vip, ttl, segment(client, vip, true));
                let found = translated(&given, None, End::Destination, backend).map(|_| ());
                assert_eq!(found, expect, "{ttl}");
            }
        }
    }

    /// An error from `from` to `to` about the packet `quote`.
    fn error(macs: [[u8; 6]; 2], from: &str, to: &str, ttl: u8, quote: &[u8]) -> Vec<u8> {
        let is_ipv6 = from.starts_with('[');
        built(macs, from, to, ttl, |builder| {
            let mut bytes = Vec::new();
            if is_ipv6 {
                let too_big = Icmpv6Type::PacketTooBig { mtu: 1300 };
                builder.icmpv6(too_big).write(&mut bytes, quote).unwrap();
            } else {
                let next_hop_mtu = 1300;
                let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                let needed = Icmpv4Type::DestinationUnreachable(needed);
                builder.icmpv4(needed).write(&mut bytes, quote).unwrap();
            }
            bytes
        })
    }

    /// Errors about what a backend sent go to it, and quote what it sent; errors about what a client
    /// sent go to the client, and quote what it sent. A quote may be short.
    #[test]
    fn errors_quote_what_their_receiver_sent() {
        for family in [0, 1] {
            let (client, vip, backend) = (CLIENT[family], VIP[family], BACKEND[family]);
            let router = ["192.0.2.9:0", "[2001:db8::9]:0"][family];
            let header = if family == 0 { 20 } else { 40 };
            for is_tcp in [true, false] {
                for len in [header + 8, header + 18, header + 28] {
                    let quote = |src: &str, dst: &str| {
                        let frame = built(CAME, src, dst, 60, segment(src, dst, is_tcp));
                        frame[14..].iter().copied().take(len).collect::<Vec<_>>()
                    };
                    let given = error(CAME, router, vip, 64, &quote(vip, client));
                    let expect = error(SENT, router, backend, 63, &quote(backend, client));
                    let found = translated(&given, None, End::Destination, backend).unwrap();
                    assert_eq!(found, expect, "to the backend: {family} {is_tcp} {len}");

                    for (from, seen_from) in [(router, router), (backend, vip)] {
                        let given = error(CAME, from, client, 64, &quote(client, backend));
                        let expect = error(SENT, seen_from, client, 63, &quote(client, vip));
                        let rule = Some(Rule::ReturnError);
                        let found = translated(&given, rule, End::Source, vip).unwrap();
                        assert_eq!(found, expect, "to the client: {from} {is_tcp} {len}");
                    }
                }
            }
        }
    }
}
