//! Named frames, and what has to become of them. The bytes of what is sent are compared with the
//! model's by [`run`]; a few of them once more here, by hand.

use etherparse::{Ipv4Header, Ipv6Header, TcpHeader};
use lb_core::admission::{Cookies, Epoch};
use lb_core::drop_reason::DropReason;
use lb_core::frame::Checked;
use lb_core::tables::next_hop::PortId;
use lb_core::tuple::Tuple;

use crate::support::inputs::{self, FROM_KERNEL, Input, REPEATED};
use crate::support::model::Verdict;
use crate::support::packet::{BALANCER, Packet, SERVICE_VLAN, VLAN, other, repair_ipv4_checksum};
use crate::support::run::{Arrival, Limits, run};
use crate::support::world::{HASH_KEY, World};

const CLIENT: &str = "198.51.100.7:40000";
const CLIENT6: &str = "[2001:db8::7]:40000";

/// What has to become of a frame, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Send(u8),
    Answer(u8),
    Hold,
    Punt,
    Drop(DropReason),
}

fn fates(arrivals: Vec<Arrival>) -> Vec<Fate> {
    let outcome = run(&World::fixed(), &[arrivals], Limits::NONE);
    let fate = |verdict| match verdict {
        Verdict::Send(port, _) => Fate::Send(port.0),
        Verdict::Answer(port, ..) => Fate::Answer(port.0),
        Verdict::Hold => Fate::Hold,
        Verdict::Punt => Fate::Punt,
        Verdict::Drop(reason) => Fate::Drop(reason),
    };
    outcome.fates.into_iter().map(fate).collect()
}

fn tcp(dst: &str) -> Packet {
    Packet::tcp(if dst.starts_with('[') { CLIENT6 } else { CLIENT }, dst)
}

fn udp(dst: &str) -> Packet {
    Packet::udp(if dst.starts_with('[') { CLIENT6 } else { CLIENT }, dst)
}

/// The bytes of a plain frame for the service `web`, changed.
fn broken(change: impl FnOnce(&mut Vec<u8>)) -> Arrival {
    let mut frame = tcp("10.0.0.100:80").frame();
    change(&mut frame);
    Arrival::new(frame)
}

#[test]
fn frames_for_services_are_sent() {
    let plain = |packet: Packet| Arrival::new(packet.frame());
    let tags = |tags: &[(u16, u16)]| tags.to_vec();
    let cases = [
        ("l2dsr over IPv6", plain(tcp("[fd00::100]:80")), 0),
        ("4 in 4, one way only", plain(tcp("10.0.0.101:80").with(|p| p.traffic_class = 0xb9)), 1),
        ("4 in 6", plain(tcp("10.0.0.101:81")), 0),
        ("IPv4 options", plain(tcp("10.0.0.101:81").with(|p| p.options = vec![1; 8])), 0),
        ("UDP", plain(udp("10.0.0.102:53")), 0),
        (
            "a VLAN of the next hop's",
            plain(udp("10.0.0.102:53").with(|p| p.tags = tags(&[(VLAN, 3)]))),
            0,
        ),
        (
            "a VLAN that is kept",
            plain(tcp("[fd00::100]:80").with(|p| p.tags = tags(&[(VLAN, 3)]))),
            0,
        ),
        (
            "QinQ in a tunnel",
            plain(tcp("10.0.0.101:81").with(|p| p.tags = tags(&[(SERVICE_VLAN, 2), (VLAN, 3)]))),
            0,
        ),
        ("padding", plain(tcp("10.0.0.101:81").with(|p| p.padding = 9)), 0),
        ("by a narrow port", plain(udp("[fd00::102]:53")), 2),
        (
            "extension headers",
            plain(tcp("[fd00::100]:80").with(|p| {
                p.extensions = vec![
                    (etherparse::IpNumber(0), vec![0; 6]),
                    (etherparse::IpNumber(60), vec![0; 14]),
                ];
            })),
            0,
        ),
        ("GUE over IPv4 or IPv6", plain(tcp("10.0.0.105:80").with(|p| p.traffic_class = 3)), 0),
        ("GUE, IPv6 inside", plain(tcp("[fd00::105]:80")), 0),
        ("GRE", plain(tcp("10.0.0.106:80")), 0),
        ("GRE, IPv6 inside", plain(udp("[fd00::106]:53")), 0),
        ("SCTP, a port of a range", plain(Packet::sctp(CLIENT, "10.0.0.107:8099")), 0),
        ("any port, any protocol", plain(udp("10.0.0.107:1")), 0),
        ("a protocol without ports", plain(tcp("10.0.0.107:1").with(|p| p.protocol.0 = 50)), 0),
        ("an address of a prefix", plain(tcp("10.9.0.255:80")), 1),
        ("a single port before any", plain(tcp("10.9.0.7:80")), 1),
        (
            "a fragment header without fragments",
            plain(tcp("[fd00::100]:80").with(|p| p.fragment = Some((0, false)))),
            0,
        ),
        (
            "a checksum that the NIC found good",
            broken(|bytes| bytes[24] ^= 1).with(|a| {
                a.checked = Checked::Good;
                a.bytes[33] = 101; // to the service 4in4, whose ways both leave by port 1
            }),
            1,
        ),
    ];
    let (names, arrivals): (Vec<_>, Vec<_>) =
        cases.into_iter().map(|(name, arrival, port)| ((name, port), arrival)).unzip();
    for ((name, port), fate) in names.into_iter().zip(fates(arrivals)) {
        // Two ways of equal cost, or backends on two links: by either.
        let by_hash = port == 1 && !name.contains("prefix") && !name.contains("single")
            || name.starts_with('G')
            || name.contains("any p");
        let other = Fate::Send(1 - port.min(1));
        assert!(fate == Fate::Send(port) || (by_hash && fate == other), "{name}: {fate:?}");
    }
}

#[test]
fn what_is_the_kernels_goes_there() {
    let cases = [
        ("ARP", Arrival::new(other([0xff; 6], 0x0806, &[0; 28]))),
        ("unicast ARP", Arrival::new(other(BALANCER, 0x0806, &[0; 28]))),
        ("LLDP", Arrival::new(other([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0; 40]))),
        ("a ping of a VIP", Arrival::new(Packet::ping(CLIENT, "10.0.0.100:0").frame())),
        ("a ping of a VIP, IPv6", Arrival::new(Packet::ping(CLIENT6, "[fd00::100]:0").frame())),
        ("a port that no service has", Arrival::new(tcp("10.0.0.100:22").frame())),
        ("another protocol", Arrival::new(udp("10.0.0.100:80").frame())),
        ("the port's own address", Arrival::new(tcp("10.0.0.2:179").frame())),
        (
            "a fragment for the port's own address",
            Arrival::new(udp("10.0.0.2:179").with(|p| p.fragment = Some((10, true))).frame()),
        ),
        (
            "a service's packet to a group MAC",
            Arrival::new(tcp("10.0.0.100:80").with(|p| p.dst_mac = [0xff; 6]).frame()),
        ),
        (
            "three tags",
            Arrival::new(tcp("10.0.0.100:80").with(|p| p.tags = vec![(VLAN, 1); 3]).frame()),
        ),
    ];
    let (names, arrivals): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    for (name, fate) in names.into_iter().zip(fates(arrivals)) {
        assert_eq!(fate, Fate::Punt, "{name}");
    }
}

/// What hides behind other headers in a first fragment.
#[test]
fn first_fragments_are_read_to_the_end() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |next: u8, offset_and_more: u8| [next, 0, 0, offset_and_more, 0, 0, 0, 9];
    let [tcp_number, icmp, option, again] = [6, 58, 60, 44];
    for (name, dst, next, behind, expect) in [
        ("options", "[fd00::100]:80", option, options(tcp_number), Fate::Send(0)),
        ("ICMPv6", "[fd00::107]:80", option, options(icmp), Fate::Punt),
        (
            "a fragment's fragment",
            "[fd00::100]:80",
            again,
            fragment(tcp_number, 1),
            Fate::Drop(DropReason::FragmentTiny),
        ),
    ] {
        let packet = tcp(dst).with(|p| p.payload = vec![0; 28]); // 48 with a header
        let segment = packet.ip()[40..].to_vec();
        let packet = packet.with(|p| {
            (p.protocol.0, p.fragment, p.raw_segment) = (next, Some((0, true)), true);
            p.payload = [&behind[..], &segment].concat();
        });
        assert_eq!(fates(vec![Arrival::new(packet.frame())]), [expect], "{name}");
    }
    // A fragment header that says "whole" stands before the one of a later fragment.
    let packet = tcp("[fd00::100]:80").with(|p| {
        p.extensions = vec![(etherparse::IpNumber(again), vec![0; 6])];
        (p.fragment, p.raw_segment, p.payload) = (Some((5, true)), true, vec![0; 24]);
    });
    let outcome = run(&World::fixed(), &[vec![Arrival::new(packet.frame())]], Limits::NONE);
    assert_eq!(outcome.fates, [Verdict::Hold]);
}

/// Place and payload of a fragment of 32 bytes, with a UDP header in the first.
fn whole_eights(offset: u16) -> (Option<(u16, bool)>, Vec<u8>) {
    (Some((offset, true)), vec![7; if offset == 0 { 24 } else { 32 }])
}

#[test]
fn fragments_follow_their_first() {
    let piece = |offset: u16| {
        udp("10.0.0.102:53").with(|p| {
            (p.fragment, p.payload) = whole_eights(offset);
            p.raw_segment = offset > 0;
        })
    };
    let arrival = |packet: Packet| Arrival::new(packet.frame());
    // In one burst: two come early, one twice.
    let burst = [4, 8, 0, 12, 8].map(|offset| arrival(piece(offset)));
    let sent = Fate::Send(0);
    let overlap = Fate::Drop(DropReason::FragmentOverlap);
    assert_eq!(fates(burst.to_vec()), [sent, sent, sent, sent, overlap]);
    let early = [4, 8].map(|offset| arrival(piece(offset)));
    assert_eq!(fates(early.to_vec()), [Fate::Hold; 2]);
    // Of IPv6, behind options; of a service that needs no ports; of nobody.
    let v6 = |offset: u16| {
        udp("[fd00::106]:53").with(|p| {
            (p.fragment, p.payload) = whole_eights(offset);
            p.raw_segment = offset > 0;
            p.extensions = vec![(etherparse::IpNumber(60), vec![0; 6])];
        })
    };
    let nobody = udp("10.0.0.7:53").with(|p| p.fragment = Some((4, false)));
    let found = fates(vec![arrival(v6(4)), arrival(v6(0)), arrival(nobody)]);
    assert!(matches!(found[..], [Fate::Send(_), Fate::Send(_), Fate::Punt]), "{found:?}");
}

/// An error from a router about a packet that a VIP sent.
fn error(quoted: &Packet, message: u8, len: usize) -> Arrival {
    let is_v4 = quoted.src.is_ipv4();
    let mut packet = quoted.clone();
    let router = if is_v4 { "192.0.2.9:0" } else { "[2001:db8::9]:0" };
    (packet.src, packet.dst) = (router.parse().unwrap(), quoted.src);
    let protocol = if is_v4 { 1 } else { 58 };
    let quote = quoted.ip();
    (packet.protocol.0, packet.raw_segment) = (protocol, true);
    packet.payload = [&[message, 0, 0, 0, 0, 0, 5, 0], &quote[..len.min(quote.len())]].concat();
    Arrival::new(packet.frame())
}

#[test]
fn errors_go_the_way_of_the_flow_they_quote() {
    let answer = |vip: &str| Packet::tcp(vip, if vip.starts_with('[') { CLIENT6 } else { CLIENT });
    let cases = [
        ("unreachable", error(&answer("[fd00::100]:80"), 1, 999), Fate::Send(0)),
        ("too big", error(&answer("[fd00::100]:80"), 2, 999), Fate::Send(0)),
        ("in a tunnel", error(&answer("10.0.0.101:81"), 3, 999), Fate::Send(0)),
        ("time exceeded", error(&answer("10.0.0.101:81"), 11, 28), Fate::Send(0)),
        ("too short a quote", error(&answer("10.0.0.101:81"), 3, 23), Fate::Punt),
        ("a redirect", error(&answer("10.0.0.101:81"), 5, 999), Fate::Punt),
        ("of no service", error(&answer("10.0.0.101:99"), 3, 999), Fate::Punt),
        (
            "about a later fragment",
            error(&answer("10.0.0.101:81").with(|p| p.fragment = Some((3, true))), 3, 999),
            Fate::Punt,
        ),
        (
            "to somebody else",
            error(&answer("10.0.0.101:81"), 3, 999).with(|a| {
                a.bytes[33] = 100;
                repair_ipv4_checksum(&mut a.bytes, 14);
            }),
            Fate::Punt,
        ),
    ];
    let (names, arrivals): (Vec<_>, Vec<_>) =
        cases.into_iter().map(|(name, arrival, fate)| ((name, fate), arrival)).unzip();
    for ((name, expect), fate) in names.into_iter().zip(fates(arrivals)) {
        assert_eq!(fate, expect, "{name}");
    }
}

#[test]
fn what_is_too_big_is_told_or_cut() {
    let sized = |dst: &str, len: usize, may_be_cut: bool| {
        tcp(dst).with(|p| {
            p.payload = vec![7; len];
            p.fragment = may_be_cut.then_some((0, false));
        })
    };
    let arrival = |packet: Packet| Arrival::new(packet.frame());
    let v6_tags = sized("[fd00::101]:81", 1440, false).with(|p| p.tags = vec![(VLAN, 3)]);
    let found = fates(vec![
        arrival(sized("10.0.0.101:81", 1440, false)),
        arrival(v6_tags),
        arrival(sized("10.0.0.101:81", 1440, true)),
        arrival(sized("10.0.0.105:80", 1460, true)),
        arrival(udp("[fd00::102]:53").with(|p| p.payload = vec![0; 1300])),
    ]);
    assert_eq!(found[..3], [Fate::Answer(0), Fate::Answer(0), Fate::Send(0)]);
    assert!(matches!(found[3], Fate::Send(_)), "{found:?}");
    assert_eq!(found[4], Fate::Answer(0));
}

#[test]
fn every_reason_to_drop() {
    use DropReason::*;
    let plain = |packet: Packet| Arrival::new(packet.frame());
    let source = |src: &str| Arrival::new(Packet::tcp(src, "10.0.0.100:80").frame());
    let cases = [
        ("cut short", broken(|bytes| bytes.truncate(50)), Truncated),
        ("a runt", broken(|bytes| bytes.truncate(9)), Truncated),
        ("nothing", broken(Vec::clear), Truncated),
        ("an IP length beyond the frame", broken(|bytes| bytes[16] = 5), Truncated),
        (
            "no room for TCP",
            broken(|bytes| {
                bytes[17] = 39;
                repair_ipv4_checksum(bytes, 14);
            }),
            Truncated,
        ),
        ("in two buffers", broken(|_| ()).with(|a| a.is_split = true), MultiSegment),
        ("version 6 as IPv4", broken(|bytes| bytes[14] = 0x65), BadVersion),
        ("four words of header", broken(|bytes| bytes[14] = 0x44), BadHeaderLength),
        ("a wrong checksum", broken(|bytes| bytes[24] ^= 1), BadChecksum),
        (
            "a checksum that the NIC found bad",
            broken(|_| ()).with(|a| a.checked = Checked::Bad),
            BadChecksum,
        ),
        ("from loopback", source("127.0.0.1:1"), BadSource),
        ("from a group", source("224.0.0.1:1"), BadSource),
        ("from everybody", source("255.255.255.255:1"), BadSource),
        ("from nobody", plain(Packet::tcp("[::]:1", "[fd00::100]:80")), BadSource),
        ("from itself", source("10.0.0.100:1"), SameSource),
        (
            "nine extension headers",
            plain(tcp("[fd00::100]:80").with(|p| {
                p.extensions = vec![(etherparse::IpNumber(60), vec![0; 6]); 9];
            })),
            TooManyExtensions,
        ),
        (
            "a first fragment without all of its header",
            plain(tcp("10.0.0.100:80").with(|p| {
                (p.fragment, p.raw_segment, p.payload) = (Some((0, true)), true, vec![0; 16]);
            })),
            FragmentTiny,
        ),
        (
            "a fragment once more",
            plain(udp("10.0.0.102:53").with(|p| (p.fragment, p.payload) = whole_eights(0))),
            FragmentOverlap,
        ),
        (
            "not of whole eights",
            plain(udp("10.0.0.102:53").with(|p| p.fragment = Some((9, true)))),
            Truncated,
        ),
        (
            "beyond 64 kB",
            plain(udp("10.0.0.102:53").with(|p| p.fragment = Some((8191, false)))),
            TooBig,
        ),
        ("another station's", plain(tcp("10.0.0.100:80").with(|p| p.dst_mac[5] ^= 0x80)), NotOurs),
        (
            "for a kernel that is not there",
            Arrival::new(other([0xff; 6], 0x0806, &[0; 28])).with(|a| a.port = PortId(2)),
            NotOurs,
        ),
        ("no backends", plain(tcp("10.0.0.103:80")), NoBackend),
        ("backends without next hops", plain(tcp("10.0.0.104:80")), NextHopUnresolved),
        (
            "too large for a tunnel",
            broken(|_| ()).with(|a| {
                // A sender that is not one station is not told.
                a.bytes = tcp("10.0.0.101:81").with(|p| p.payload = vec![0; 1440]).frame();
                a.bytes[6] = 1;
            }),
            TooBig,
        ),
        (
            "too large for a narrow port",
            plain(udp("10.0.0.102:53").with(|p| {
                // May be cut, but nobody does without a tunnel.
                (p.payload, p.fragment) = (vec![0; 1480], Some((0, true)));
                p.src = "198.51.100.8:1".parse().unwrap();
            })),
            TooBig,
        ),
        ("no room in front", plain(tcp("10.0.0.101:81")).with(|a| a.headroom = 39), NoHeadroom),
    ];
    let first = plain(udp("10.0.0.102:53").with(|p| (p.fragment, p.payload) = whole_eights(0)));
    let mut reasons: Vec<_> = cases.iter().map(|(.., reason)| *reason).collect();
    let (names, arrivals): (Vec<_>, Vec<_>) =
        cases.into_iter().map(|(name, arrival, reason)| ((name, reason), arrival)).unzip();
    let arrivals = [vec![first], arrivals].concat();
    for ((name, reason), fate) in names.into_iter().zip(fates(arrivals).into_iter().skip(1)) {
        assert_eq!(fate, Fate::Drop(reason), "{name}");
    }
    // The others come from queues, see below, from what a worker remembers, see `workers`, or only
    // where packets are translated.
    reasons.extend([PuntLimit, TxFull, FragmentTimeout, FragmentFull, HandOverFull, NoBuffer]);
    reasons.extend([TtlExceeded, Untranslatable, NoConnection, PoolFull]);
    reasons.push(AnswerLimit); // see `forward::tunnel_error`
    reasons.extend([SynLimit, ChallengeMet, AdmitFull]); // see below, and `stage::admit`
    for reason in DropReason::ALL {
        assert!(reasons.contains(&reason), "{reason} has no case");
    }
}

/// A client of a service that takes one SYN a second.
fn knocks(client: &str, vip: &str) -> [Arrival; 3] {
    let [syn, rst, ack] = [0, 1, 2].map(|kind| {
        Packet::tcp(client, vip).with(|p| {
            let (src, dst) = (p.src, p.dst);
            let mut header = TcpHeader::new(src.port(), dst.port(), 7, 1024);
            (header.syn, header.rst, header.ack) = (kind == 0, kind == 1, kind == 2);
            if kind == 1 {
                let flow = Tuple::new(src.ip(), dst.ip(), src.port(), dst.port(), 6);
                header.sequence_number = Cookies::new(HASH_KEY).of(&flow, Epoch(0));
            }
            (p.payload, p.raw_segment) = (header.to_bytes().to_vec(), true);
        })
    });
    [syn, rst, ack].map(|packet| Arrival::new(packet.frame()))
}

/// In every mode: who answers is let in, by its address, and its reset is nobody else's to see.
#[test]
fn above_the_rate_syns_are_challenged() {
    use DropReason::{ChallengeMet, NoConnection, SynLimit};
    let [v4, other_port, other] =
        ["198.51.100.1:40000", "198.51.100.1:40001", "198.51.100.2:40000"];
    let [v6, same_64, other_64] =
        ["[2001:db8::1]:40000", "[2001:db8::2]:40000", "[2001:db8:0:1::1]:40000"];
    for (vip, clients, is_pooled) in [
        ("10.0.0.114:80", [v4, other_port, other], false),
        ("[fd00::114]:80", [v6, same_64, other_64], false),
        ("10.0.0.114:81", [v4, other_port, other], true),
        ("[fd00::114]:81", [v6, same_64, other_64], true),
        ("10.0.0.114:83", [v4, other_port, other], false),
        ("10.9.1.5:8080", [v4, other_port, other], false),
    ] {
        let [[syn, rst, ack], [same, ..], [stranger, others_rst, _]] =
            clients.map(|client| knocks(client, vip));
        let first = knocks(if vip.starts_with('[') { CLIENT6 } else { CLIENT }, vip)[0].clone();
        let found = fates(vec![
            rst.clone(),
            first,
            syn.clone(),
            syn.clone(),
            rst.clone(),
            syn,
            same,
            ack,
            stranger,
            others_rst,
            rst,
        ]);
        let passed = |fate: Fate| matches!(fate, Fate::Send(_));
        let answered = Fate::Answer(0);
        // Before anybody is challenged, a reset is what it seems to be.
        assert!(passed(found[0]) || is_pooled && found[0] == Fate::Drop(NoConnection), "{vip}");
        assert!(passed(found[1]), "{vip}: there is room for one");
        assert_eq!(found[2..5], [answered, answered, Fate::Drop(ChallengeMet)], "{vip}");
        assert!(found[5..8].iter().all(|fate| passed(*fate)), "{vip}: {found:?}");
        let met = Fate::Drop(ChallengeMet);
        assert_eq!(found[8..], [answered, met, met], "{vip}");
    }
    let [syn, rst, _] = knocks(v4, "10.0.0.114:82");
    let found = fates(vec![syn.clone(), syn, rst]);
    assert_eq!(found[1], Fate::Drop(SynLimit), "not to be challenged");
    assert!(matches!(found[2], Fate::Send(_)));
}

#[test]
fn queues_that_refuse_are_counted() {
    let frame = tcp("[fd00::100]:80").frame();
    let arp = other([0xff; 6], 0x0806, &[0; 28]);
    for (name, input, reason, count) in [
        (
            "sending",
            Input::limited(3, 255, 255).frame(REPEATED, 128, &frame),
            DropReason::TxFull,
            62,
        ),
        (
            "punting",
            Input::limited(255, 2, 255).frame(REPEATED, 128, &arp),
            DropReason::PuntLimit,
            63,
        ),
        (
            "the rate of punts",
            Input::limited(255, 255, 10).frame(REPEATED, 128, &arp),
            DropReason::PuntLimit,
            55,
        ),
        (
            "nothing refuses",
            Input::new().frame(FROM_KERNEL | REPEATED, 128, &arp),
            DropReason::TxFull,
            0,
        ),
    ] {
        let outcome = inputs::check(&input.into_bytes()).unwrap();
        assert_eq!(outcome.drops[reason as usize], count, "{name}");
    }
}

/// By hand, byte for byte: what the model says is not all there is.
#[test]
fn the_outer_headers() {
    let sent = |packet: &Packet| {
        let outcome = run(&World::fixed(), &[vec![Arrival::new(packet.frame())]], Limits::NONE);
        match &outcome.fates[..] {
            [Verdict::Send(_, frames)] => frames.concat(),
            other => panic!("{other:?}"),
        }
    };
    let inner = tcp("[fd00::101]:80").with(|p| p.traffic_class = 0xb9);
    let frame = sent(&inner);
    let (outer, payload) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    assert_eq!(frame[12..14], [0x08, 0x00]);
    assert_eq!((outer.dscp.value(), outer.ecn.value()), (0x2e, 1), "copied");
    assert_eq!((outer.identification, outer.dont_fragment, outer.time_to_live), (0, true, 64));
    assert_eq!((outer.protocol.0, outer.destination), (41, [10, 2, 0, 1]));
    assert_eq!(outer.header_checksum, outer.calc_header_checksum());
    assert_eq!(payload, inner.ip(), "byte for byte");

    let inner = tcp("10.0.0.101:81").with(|p| p.traffic_class = 0xb9);
    let frame = sent(&inner);
    let (outer, payload) = Ipv6Header::from_slice(&frame[14..]).unwrap();
    assert_eq!(frame[12..14], [0x86, 0xdd]);
    assert_eq!((outer.traffic_class, outer.hop_limit, outer.next_header.0), (0xb9, 64, 4));
    assert_eq!(outer.destination, "fd02::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!(payload, inner.ip(), "byte for byte");
}
