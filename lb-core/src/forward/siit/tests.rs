use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Type, Icmpv6Type, IpNumber, TcpHeader, UdpHeader};

use super::*;
use crate::forward::tests::{LAN, front, hop, tag_cases};
use crate::sim::SimFrame;
use crate::sim::packet::{Packet, repair_ipv4_checksum};
use crate::stage::parse::tests::parsed;
use crate::tuple::{Tuple, address_bytes, is_ipv6};
use crate::wire::sctp::tests::with_checksum;
use crate::wire::{ICMP, ICMPV6, TCP, UDP, ethernet};

mod any_bytes;
mod errors;

type Sockets = [&'static str; 2];

/// By family: who sends to whom. (Errors, too: then the other one has sent what is quoted.)
const FLOW: [Sockets; 2] = [
    ["198.51.100.7:40000", "10.0.0.100:80"],
    ["[64:ff9b::c633:6407]:50000", "[fd01:2:3:4:5:6:7:8]:8080"],
];
const HASH: u64 = 0x1234_5678_9abc_def0;
const MTU: u16 = 1500;
/// By family: an error that says this.
const PORT_UNREACHABLE: [[u8; 8]; 2] = [[3, 3, 0, 0, 0, 0, 0, 0], [1, 4, 0, 0, 0, 0, 0, 0]];
const PAYLOAD: &[u8] = b"odd payload";

fn station(socket: &str) -> Station {
    let socket: SocketAddr = socket.parse().unwrap();
    Station { address: address_bytes(socket.ip()), port: Some(socket.port().to_be_bytes()) }
}

fn ends(sockets: Sockets) -> Ends {
    ends_of(sockets.map(station))
}

fn ends_of([src, dst]: [Station; 2]) -> Ends {
    if is_ipv6(&dst.address) { Ends::ipv6(src, dst) } else { Ends::ipv4(src, dst) }
}

/// A transport header with a true checksum, and the payload.
fn segment(is_tcp: bool, [src, dst]: Sockets, payload: &[u8]) -> Vec<u8> {
    let [src, dst]: [SocketAddr; 2] = [src, dst].map(|it| it.parse().unwrap());
    let mut tcp = TcpHeader::new(src.port(), dst.port(), 7, 1024);
    let length = u16::try_from(8 + payload.len()).unwrap();
    let (source_port, destination_port) = (src.port(), dst.port());
    let mut udp = UdpHeader { source_port, destination_port, length, checksum: 0 };
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            tcp.checksum = tcp.calc_checksum_ipv4_raw(src, dst, payload).unwrap();
            udp.checksum = udp.calc_checksum_ipv4_raw(src, dst, payload).unwrap();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            tcp.checksum = tcp.calc_checksum_ipv6_raw(src, dst, payload).unwrap();
            udp.checksum = udp.calc_checksum_ipv6_raw(src, dst, payload).unwrap();
        }
        mixed => panic!("{mixed:?}"),
    }
    let mut bytes = Vec::new();
    if is_tcp {
        tcp.write(&mut bytes).unwrap();
    } else {
        udp.write(&mut bytes).unwrap();
    }
    [&bytes, payload].concat()
}

fn packet(is_tcp: bool, sockets: Sockets, payload: &[u8]) -> Packet {
    let [src, dst] = sockets;
    let packet = if is_tcp { Packet::tcp(src, dst) } else { Packet::udp(src, dst) };
    let payload = segment(is_tcp, sockets, payload);
    packet.with(|p| (p.payload, p.raw_segment, p.traffic_class) = (payload, true, 0xb9))
}

/// The packet as the balancer writes it: DF by length, this `id` without it, no flow label.
fn as_ours(packet: &Packet, id: u16) -> Vec<u8> {
    let mut ip = packet.ip();
    if packet.dst.is_ipv6() {
        ip[2..4].fill(0);
        ip[1] &= 0xf0;
    } else if packet.fragment.is_some() || ip.len() <= 1260 {
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[6] &= 0xbf;
    }
    if packet.dst.is_ipv4() {
        repair_ipv4_checksum(&mut ip, 0);
    }
    ip
}

fn frame_of(packet: &Packet, id: u16) -> Vec<u8> {
    let ether_type = if packet.dst.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
    [front(&[], ether_type), as_ours(packet, id)].concat()
}

fn run(
    frame: &[u8],
    change: impl FnOnce(&mut Meta),
    hop: &HopEntry,
    to: Sockets,
) -> Result<Vec<u8>, DropReason> {
    let mut meta = parsed(frame);
    meta.hash = HASH;
    change(&mut meta);
    let mut sim = SimFrame::new(frame);
    let result = forward(&mut sim, &meta, hop, LAN, ends(to));
    if result.is_err() {
        assert_eq!(sim.bytes(), frame, "nothing has changed");
    }
    result.map(|()| sim.bytes().to_vec())
}

fn translated(packet: &Packet, to: Sockets) -> Result<Vec<u8>, DropReason> {
    run(&packet.frame(), |_| (), &hop(0, None, MTU), to)
}

/// A packet translated is one built anew.
fn assert_becomes(given: &Packet, to: Sockets, expect: &Packet) {
    let found = translated(given, to).unwrap();
    let id = if expect.dst.is_ipv4() { u16::from_be_bytes([found[18], found[19]]) } else { 0 };
    assert_eq!(found, frame_of(&expect.clone().with(|p| p.ttl -= 1), id), "{given:?}");
}

#[test]
fn both_ways_are_as_if_built_anew() {
    for (from, to) in [(0, 1), (1, 0)] {
        for is_tcp in [true, false] {
            for len in [0, 1, 2, 1000, 1212, 1213, 1240, 1241, 1400] {
                let payload = vec![7; len];
                let [given, expect] =
                    [from, to].map(|family| packet(is_tcp, FLOW[family], &payload));
                assert_becomes(&given, FLOW[to], &expect);
                let padded = given.with(|p| p.padding = 9);
                assert_becomes(&padded, FLOW[to], &expect);
            }
        }
    }
}

/// No checksum of UDP's is zero, and all that TCP's may be are met.
#[test]
fn checksums_are_those_of_new_ones_at_their_ends() {
    for (from, to) in [(0, 1), (1, 0)] {
        for is_tcp in [true, false] {
            for word in 0..=u16::MAX {
                let [given, expect] =
                    [from, to].map(|family| segment(is_tcp, FLOW[family], &word.to_be_bytes()));
                let protocol = if is_tcp { TCP } else { UDP };
                let bytes = Packet::tcp(FLOW[from][0], FLOW[from][1]).ip();
                let head =
                    Head { protocol, ..[Head::of_ipv4, Head::of_ipv6][from](&bytes).unwrap() };
                let mut found = given.clone();
                Change::new(&head, &bytes, &given, &ends(FLOW[to])).apply(&mut found);
                assert_eq!(found, expect, "{word}");
            }
        }
    }
}

#[test]
fn options_and_extension_headers_go() {
    let [v4, v6] = [0, 1].map(|family| packet(true, FLOW[family], PAYLOAD));
    for options in [
        vec![1; 40],
        vec![0, 131, 3, 4],             // behind the end
        vec![131, 7, 8, 9, 9, 9, 9, 0], // a source route that is at its end
        vec![7, 3, 4, 1],
        vec![1, 1, 1, 131],
        vec![148, 1, 131, 3],
    ] {
        let given = v4.clone().with(|p| p.options = options);
        assert_becomes(&given, FLOW[1], &v6);
    }
    let options =
        (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 12, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
    let hops = (IpNumber::IPV6_HEADER_HOP_BY_HOP, vec![1, 4, 0, 0, 0, 0]);
    let routing = (IpNumber::IPV6_ROUTE_HEADER, vec![4, 0, 0, 0, 0, 0]);
    for extensions in [vec![hops.clone(), routing, options.clone()], vec![options; 8], vec![hops]] {
        let given = v6.clone().with(|p| p.extensions = extensions);
        assert_becomes(&given, FLOW[0], &v4);
    }
}

#[test]
fn who_routes_itself_is_not_translated() {
    let [v4, v6] = [0, 1].map(|family| packet(false, FLOW[family], PAYLOAD));
    for options in [vec![131, 7, 4, 9, 9, 9, 9, 0], vec![1, 137, 7, 7, 9, 9, 9, 9]] {
        let given = v4.clone().with(|p| p.options = options);
        assert_eq!(translated(&given, FLOW[1]), Err(DropReason::Untranslatable));
    }
    let routing = (IpNumber::IPV6_ROUTE_HEADER, vec![4, 1, 0, 0, 0, 0]);
    let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
    for extensions in [vec![routing.clone()], vec![options, routing]] {
        let given = v6.clone().with(|p| p.extensions = extensions);
        assert_eq!(translated(&given, FLOW[0]), Err(DropReason::Untranslatable));
    }
}

#[test]
fn a_datagram_without_checksum_gets_one_over_ipv6() {
    let [v4, v6] = [0, 1].map(|family| packet(false, FLOW[family], PAYLOAD));
    let without = |packet: &Packet| packet.clone().with(|p| p.payload[6..8].fill(0));
    assert_becomes(&without(&v4), FLOW[1], &v6);
    assert_becomes(&without(&v6), FLOW[0], &without(&v4)); // it may do without
    // The checksum covers what the datagram says that it has.
    let [short, longer] = [&v4, &v6].map(|it| it.clone().with(|p| p.payload.extend([1, 2, 3])));
    assert_becomes(&without(&short), FLOW[1], &longer);
    for len in [0, 7, 20] {
        let given = without(&v4).with(|p| p.payload[4..6].copy_from_slice(&[0, len]));
        assert_eq!(translated(&given, FLOW[1]), Err(DropReason::Truncated), "{len}");
    }
    let part = without(&v4).with(|p| p.fragment = Some((0, true)));
    assert_eq!(translated(&part, FLOW[1]), Err(DropReason::Untranslatable));
    let later = without(&v4).with(|p| p.fragment = Some((2, true)));
    assert!(translated(&later, FLOW[1]).is_ok(), "that is payload");
}

/// Put together again, the pieces are the datagram that the other end would have cut.
#[test]
fn fragments_stay_fragments() {
    for (from, to) in [(0, 1), (1, 0)] {
        for is_tcp in [true, false] {
            let [given, expect] = [from, to].map(|family| packet(is_tcp, FLOW[family], &[7; 99]));
            for (range, offset, has_more) in
                [(0..40, 0, true), (40..88, 5, true), (88..107, 11, false)]
            {
                let [given, expect] = [&given, &expect].map(|it| {
                    it.clone().with(|p| {
                        p.payload = p.payload[range.clone()].to_vec();
                        p.fragment = Some((offset, has_more));
                    })
                });
                let mut frame = given.frame();
                if from == 0 {
                    frame[18..20].copy_from_slice(&[0, 9]); // as `Packet` has it for IPv6
                    repair_ipv4_checksum(&mut frame, 14);
                }
                let later = |meta: &mut Meta| {
                    if offset != 0 {
                        meta.rule = Rule::Fragment;
                    }
                };
                let found = run(&frame, later, &hop(0, None, MTU), FLOW[to]).unwrap();
                assert_eq!(found, frame_of(&expect.with(|p| p.ttl -= 1), 9), "{offset}");
            }
        }
    }
}

#[test]
fn names_of_fragments_are_cut_to_16_bits() {
    let later = packet(false, FLOW[1], PAYLOAD).with(|p| p.fragment = Some((5, false)));
    let mut frame = later.frame();
    frame[58..62].copy_from_slice(&[0xab, 0xcd, 0x12, 0x34]);
    let found = run(&frame, |_| (), &hop(0, None, MTU), FLOW[0]).unwrap();
    assert_eq!(found[18..20], [0x12, 0x34]);
}

#[test]
fn an_atomic_fragment_becomes_a_packet_with_its_name() {
    let [v4, v6] = [0, 1].map(|family| packet(false, FLOW[family], &[7; 1300]));
    let given = v6.with(|p| p.fragment = Some((0, false)));
    let found = translated(&given, FLOW[0]).unwrap();
    let expect = v4.with(|p| (p.fragment, p.ttl) = (Some((0, false)), p.ttl - 1));
    assert_eq!(found, frame_of(&expect, 9));
}

#[test]
fn a_first_fragment_has_to_have_its_header_alone() {
    for (from, to) in [(0, 1), (1, 0)] {
        for is_tcp in [true, false] {
            let given = packet(is_tcp, FLOW[from], &[7; 99]).with(|p| {
                p.payload.truncate(if is_tcp { 16 } else { 7 });
                p.fragment = Some((0, true));
            });
            assert_eq!(translated(&given, FLOW[to]), Err(DropReason::FragmentTiny));
        }
    }
    // Extension headers are in pieces, too: offsets would be wrong (RFC 7915 §5.1.1).
    let first = packet(true, FLOW[1], PAYLOAD).with(|p| {
        let options = [6, 0, 1, 4, 0, 0, 0, 0];
        p.payload.splice(0..0, options);
        (p.protocol, p.fragment) = (IpNumber(60), Some((0, true)));
    });
    assert_eq!(translated(&first, FLOW[0]), Err(DropReason::Untranslatable));
}

#[test]
fn packets_that_may_be_cut_have_names() {
    let id = |payload: &[u8]| {
        let found = translated(&packet(false, FLOW[1], payload), FLOW[0]).unwrap();
        [found[18], found[19]]
    };
    assert_ne!(id(b"one"), id(b"two"));
    assert_eq!(id(b"one"), id(b"one"));
    let sctp_id = |data: &[u8]| {
        let found = translated(&sctp(FLOW[1], data), FLOW[0]).unwrap();
        [found[18], found[19]]
    };
    assert_ne!(sctp_id(b"one"), sctp_id(b"two"), "by its checksum, as well");
}

#[test]
fn ports_stay_if_nobody_says_otherwise() {
    let mut meta = parsed(&packet(true, FLOW[0], PAYLOAD).frame());
    meta.hash = HASH;
    let ends = ends_of(FLOW[1].map(|it| Station { port: None, ..station(it) }));
    let mut sim = SimFrame::new(&packet(true, FLOW[0], PAYLOAD).frame());
    forward(&mut sim, &meta, &hop(0, None, MTU), LAN, ends).unwrap();
    let kept = ["[64:ff9b::c633:6407]:40000", "[fd01:2:3:4:5:6:7:8]:80"];
    let expect = packet(true, kept, PAYLOAD).with(|p| p.ttl -= 1);
    assert_eq!(sim.bytes(), frame_of(&expect, 0));
}

#[test]
fn other_protocols_are_carried_as_they_are() {
    for (from, to) in [(0, 1), (1, 0)] {
        for protocol in [IpNumber(50), IpNumber::GRE] {
            let [given, expect] = [from, to].map(|family| {
                let payload = segment(false, FLOW[0], PAYLOAD);
                packet(true, FLOW[family], b"")
                    .with(|p| (p.protocol, p.payload) = (protocol, payload))
            });
            assert_becomes(&given, FLOW[to], &expect);
        }
    }
}

/// A packet of SCTP with a chunk of data, and a true checksum.
fn sctp([src, dst]: Sockets, data: &[u8]) -> Packet {
    Packet::sctp(src, dst).with(|p| {
        let ports = [p.src, p.dst].map(|end| end.port().to_be_bytes()).concat();
        let rest = [&[1, 2, 3, 4, 0, 0, 0, 0, 0, 3, 0, 17], data].concat();
        (p.payload, p.raw_segment) = (with_checksum([ports, rest].concat()), true);
    })
}

#[test]
fn sctp_is_as_if_built_anew() {
    for (from, to) in [(0, 1), (1, 0)] {
        for len in [0, 1, 1000, 1440] {
            let [given, expect] = [from, to].map(|family| sctp(FLOW[family], &vec![7; len]));
            assert_becomes(&given, FLOW[to], &expect);
            assert_becomes(&given.clone().with(|p| p.padding = 9), FLOW[to], &expect);
            // What was wrong is not made right.
            let spoil = |packet: &Packet| packet.clone().with(|p| p.payload[9] ^= 1);
            assert_becomes(&spoil(&given), FLOW[to], &spoil(&expect));
        }
    }
    let atomic = sctp(FLOW[1], &[7; 1300]).with(|p| p.fragment = Some((0, false)));
    let found = translated(&atomic, FLOW[0]).unwrap();
    assert_eq!(found[34..], sctp(FLOW[0], &[7; 1300]).payload);
}

/// Its checksum covers all of the datagram; what is behind the first piece is payload.
#[test]
fn a_first_fragment_of_sctp_stays_where_it_is() {
    for (from, to) in [(0, 1), (1, 0)] {
        let part = |offset| sctp(FLOW[from], &[7; 40]).with(|p| p.fragment = Some((offset, true)));
        assert_eq!(translated(&part(0), FLOW[to]), Err(DropReason::Untranslatable));
        assert!(translated(&part(3), FLOW[to]).is_ok());
    }
}

/// A quote is not all there, so its checksum is left as it is.
#[test]
fn quotes_of_sctp_get_their_ports() {
    for (from, to) in [(0, 1), (1, 0)] {
        for len in [4, 8, 12, 28] {
            let [given, expect] = [from, to].map(|family| {
                let mut packet = sctp(reversed(FLOW[family]), &[7; 40]).with(|p| p.ttl = 33);
                packet.payload[4..].copy_from_slice(&sctp(FLOW[from], &[7; 40]).payload[4..]);
                let mut quote = as_ours(&packet, 0);
                quote.truncate([20, 40][family] + len);
                error(family, PORT_UNREACHABLE[family], &quote)
            });
            assert_becomes(&given, FLOW[to], &expect);
        }
    }
}

/// ICMP has another number, and some of IPv4's protocols would be extension headers.
#[test]
fn protocols_of_one_family_are_not_carried() {
    for protocol in [0, 43, 44, 60] {
        let given = packet(true, FLOW[0], PAYLOAD).with(|p| p.protocol.0 = protocol);
        assert_eq!(translated(&given, FLOW[1]), Err(DropReason::Untranslatable), "{protocol}");
    }
    for (from, to) in [(0, 1), (1, 0)] {
        for protocol in [ICMP, ICMPV6] {
            let given = packet(true, FLOW[from], PAYLOAD).with(|p| p.protocol.0 = 50);
            let mut frame = given.frame();
            frame[if from == 0 { 23 } else { 20 }] = protocol;
            let meta = parsed(&given.frame());
            let (mut sim, hop) = (SimFrame::new(&frame), hop(0, None, MTU));
            let result = forward(&mut sim, &meta, &hop, LAN, ends(FLOW[to]));
            assert_eq!(result, Err(DropReason::Untranslatable), "{protocol}");
        }
    }
}

#[test]
fn the_last_hop_is_the_last() {
    for (from, to) in [(0, 1), (1, 0)] {
        let router = error(from, PORT_UNREACHABLE[from], &as_ours(&quoted(from, true), 0));
        for packet in [packet(true, FLOW[from], PAYLOAD), router] {
            let with_ttl = |ttl| packet.clone().with(|p| p.ttl = ttl);
            for ttl in [0, 1] {
                let found = translated(&with_ttl(ttl), FLOW[to]);
                assert_eq!(found, Err(DropReason::TtlExceeded), "{ttl}");
            }
            assert!(translated(&with_ttl(2), FLOW[to]).is_ok());
        }
    }
}

#[test]
fn what_has_become_of_it_has_to_fit() {
    for (from, to) in [(0, 1), (1, 0)] {
        let given = packet(true, FLOW[from], &[7; 1300]);
        let after: u16 = if from == 0 { 1360 } else { 1340 };
        for (mtu, expect) in [(after, Ok(())), (after - 1, Err(DropReason::TooBig))] {
            let found = run(&given.frame(), |_| (), &hop(0, None, mtu), FLOW[to]);
            assert_eq!(found.map(|_| ()), expect);
        }
        assert_eq!(mtu_before(after, from == 1), if from == 0 { 1340 } else { 1360 });
    }
    assert_eq!([mtu_before(1000, true), mtu_before(u16::MAX, true)], [1280, u16::MAX]);
    assert_eq!(mtu_before(7, false), 0);
    let huge = packet(false, FLOW[0], &vec![7; 65_507]);
    let found = run(&huge.frame(), |_| (), &hop(0, None, u16::MAX), FLOW[1]);
    assert_eq!(found, Err(DropReason::TooBig));
}

#[test]
fn longer_headers_need_headroom() {
    for (is_fragment, needed) in [(false, 20), (true, 28)] {
        let given = packet(true, FLOW[0], PAYLOAD)
            .with(|p| p.fragment = is_fragment.then_some((0, true)))
            .frame();
        for (headroom, expect) in [(needed, Ok(())), (needed - 1, Err(DropReason::NoHeadroom))] {
            let mut sim = SimFrame::with_headroom(&given, headroom);
            let hop = hop(0, None, MTU);
            let result = forward(&mut sim, &parsed(&given), &hop, LAN, ends(FLOW[1]));
            assert_eq!(result, expect);
            if result.is_err() {
                assert_eq!(sim.bytes(), given);
            }
        }
    }
}

#[test]
fn tags_are_the_hops_or_the_frames_own() {
    for (from, to) in [(0, 1), (1, 0)] {
        for (tags, hop, expect) in tag_cases() {
            let given = packet(true, FLOW[from], PAYLOAD).with(|p| p.tags = tags.to_vec());
            let found = run(&given.frame(), |_| (), &hop, FLOW[to]).unwrap();
            let front = front(expect, [ethernet::IPV4, ethernet::IPV6][to]);
            assert_eq!(found[..front.len()], front, "{tags:?} {hop:?}");
            let untagged = translated(&given.with(|p| p.tags.clear()), FLOW[to]).unwrap();
            assert_eq!(found[front.len()..], untagged[14..]);
        }
    }
}

/// What the receiver of an error has sent, as it came to where the error comes from.
fn quoted(family: usize, is_tcp: bool) -> Packet {
    packet(is_tcp, reversed(FLOW[family]), PAYLOAD).with(|p| p.ttl = 33)
}

fn reversed([a, b]: Sockets) -> Sockets {
    [b, a]
}

/// An error with a true checksum.
fn error(family: usize, says: [u8; 8], quote: &[u8]) -> Packet {
    let [src, dst] = FLOW[family];
    let packet = Packet::tcp(src, dst);
    let [type_u8, code_u8, _, _, a, b, c, d] = says;
    let bytes5to8 = [a, b, c, d];
    let ends = (packet.src.ip(), packet.dst.ip());
    let (protocol, sum) = if let (IpAddr::V6(src), IpAddr::V6(dst)) = ends {
        let says = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
        let sum = says.calc_checksum(src.octets(), dst.octets(), quote).unwrap();
        (IpNumber::IPV6_ICMP, sum)
    } else {
        let says = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
        (IpNumber::ICMP, says.calc_checksum(quote))
    };
    let says = [&says[..2], &sum.to_be_bytes(), &bytes5to8].concat();
    packet.with(|p| {
        (p.protocol, p.raw_segment, p.traffic_class) = (protocol, true, 0xc0);
        p.payload = [&says, quote].concat();
    })
}
