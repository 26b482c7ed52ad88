use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep};
use etherparse::{IpHeaders, NetSlice, SlicedPacket, TransportSlice, icmpv6};
use ipnet::IpNet;

use super::*;
use crate::burst::tests::burst_of;
use crate::burst::{Burst, Fate, Rule, WorkerId};
use crate::model::tests::spec;
use crate::model::{Forward, ServiceSpec, Tunnel, TunnelKind};
use crate::pipeline::process;
use crate::sim::SimFrame;
use crate::sim::packet::{BALANCER, Packet, ROUTER};
use crate::stage::classify::tests::tables as tables_of;
use crate::state::Settings;
use crate::tables::fib::{Fib, RouteWays};
use crate::tables::next_hop::NextHop;
use crate::wire::ethernet::MacAddr;

const KINDS: [TunnelKind; 3] = [TunnelKind::Ipip, TunnelKind::Gue { port: 6080 }, TunnelKind::Gre];
const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8::7]:40000"];
const VIP: [&str; 2] = ["10.0.0.100:80", "[fd00::100]:80"];
/// Of services without tunnels.
const OTHER_VIP: [&str; 2] = ["10.0.0.101:80", "[fd00::101]:80"];
const BACKEND: [&str; 2] = ["10.2.0.1", "fd02::1"];
/// Who tells of tunnels, by their family.
const TELLER: [&str; 2] = ["192.0.2.9", "2001:db8:9::9"];
const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 7, 7]);
const OUT: PortId = PortId(1);

/// A service in a tunnel of that kind to a backend of that family, and the way to all clients.
fn tables(kind: TunnelKind, over: usize, source: Option<&str>) -> Tables {
    let source = source.map(|net| net.parse().unwrap());
    let forward = Forward::Tunnel(Tunnel { kind, source });
    let services = VIP.into_iter().zip(["four", "six"]).map(|(vip, name)| {
        let vip = vip.parse::<std::net::SocketAddr>().unwrap().ip().to_string();
        ServiceSpec { forward, ..spec(name, &vip, &[BACKEND[over]]) }
    });
    let other = OTHER_VIP.into_iter().zip(["near", "near6"]).map(|(vip, name)| {
        let vip = vip.parse::<std::net::SocketAddr>().unwrap().ip().to_string();
        spec(name, &vip, &[["10.0.0.11", "fd00::11"][usize::from(name == "near6")]])
    });
    let mut tables = tables_of(services.chain(other));
    let everything = ["0.0.0.0/0", "::/0"].map(|net| net.parse::<IpNet>().unwrap());
    let gateway = NextHop { port: OUT, mac: GATEWAY, vlan: None };
    let routes = everything.map(|net| (net, RouteWays::Gateways(vec![gateway])));
    tables.fib = Arc::new(Fib::new(&routes.into(), &BTreeMap::new(), &tables.ports));
    tables
}

fn state(answers_per_second: u32) -> State<SimFrame> {
    let settings =
        Settings { worker: WorkerId(0), workers: 1, punts_per_second: answers_per_second };
    State::new(settings)
}

fn run(tables: &Tables, frame: &[u8], state: &mut State<SimFrame>) -> (Burst<SimFrame>, u64) {
    let counters = Counters::new(4);
    let mut burst = burst_of([SimFrame::new(frame)]);
    process(&mut burst, tables, &counters, state);
    (burst, counters.answered.get())
}

/// A client's packet of 1,300 bytes, and what of it is in the tunnel, from the outer IP header on.
fn sent(tables: &Tables, inner: usize) -> (Vec<u8>, Vec<u8>) {
    let header = [40, 60][inner];
    let packet =
        Packet::tcp(CLIENT[inner], VIP[inner]).with(|p| p.payload = vec![7; 1300 - header]);
    let (burst, _) = run(tables, &packet.frame(), &mut state(1000));
    assert!(matches!(burst.fate(0), Fate::Send(_)));
    (packet.ip(), burst.frames()[0].bytes()[14..].to_vec())
}

/// What somebody on the way says of the tunnel.
#[derive(Clone, Copy, Debug)]
enum Says {
    Fits(u16),
    Unreachable,
    Expired,
    /// Something else: type and code.
    Other(u8, u8),
}

/// The frame in which [`TELLER`] says something of `quote` to whoever sent that.
fn told(says: Says, quote: &[u8]) -> Vec<u8> {
    let is_ipv6 = quote[0] >> 4 == 6;
    let teller: IpAddr = TELLER[usize::from(is_ipv6)].parse().unwrap();
    let to: IpAddr = if is_ipv6 {
        <[u8; 16]>::try_from(&quote[8..24]).unwrap().into()
    } else {
        <[u8; 4]>::try_from(&quote[12..16]).unwrap().into()
    };
    let ethernet = PacketBuilder::ethernet2(ROUTER, BALANCER);
    let ip = match (teller, to) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 60),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 60),
        mixed => panic!("{mixed:?}"),
    };
    if is_ipv6 { icmpv6(ip, says, quote) } else { icmpv4(ip, says, quote) }
}

fn icmpv4(ip: PacketBuilderStep<IpHeaders>, says: Says, quote: &[u8]) -> Vec<u8> {
    let says = match says {
        Says::Fits(next_hop_mtu) => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            })
        }
        Says::Unreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        Says::Expired => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Says::Other(type_u8, code_u8) => {
            Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8: [0; 4] }
        }
    };
    let mut bytes = Vec::new();
    ip.icmpv4(says).write(&mut bytes, quote).unwrap();
    bytes
}

fn icmpv6(ip: PacketBuilderStep<IpHeaders>, says: Says, quote: &[u8]) -> Vec<u8> {
    let says = match says {
        Says::Fits(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
        Says::Unreachable => {
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute)
        }
        Says::Expired => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Says::Other(type_u8, code_u8) => {
            Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8: [0; 4] }
        }
    };
    let mut bytes = Vec::new();
    ip.icmpv6(says).write(&mut bytes, quote).unwrap();
    bytes
}

/// What the client reads: type, code, MTU, and the quote; the rest is checked here.
fn read(frame: &[u8], inner: usize) -> (u8, u8, u16, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let [client, vip] = [CLIENT, VIP].map(|it| it[inner].parse::<std::net::SocketAddr>().unwrap());
    assert_eq!(frame[..6], GATEWAY.0);
    let (message, is_true) = match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header();
            let ends = (header.source_addr().into(), header.destination_addr().into());
            assert_eq!(ends, (vip.ip(), client.ip()));
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!(14 + usize::from(header.total_len()), frame.len());
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            (icmp.slice().to_vec(), sum == icmp.checksum())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            let ends = (header.source_addr().into(), header.destination_addr().into());
            assert_eq!(ends, (vip.ip(), client.ip()));
            assert_eq!(54 + usize::from(header.payload_length()), frame.len());
            (icmp.slice().to_vec(), icmp.is_checksum_valid(header.source(), header.destination()))
        }
        mixed => panic!("{mixed:?}"),
    };
    assert!(is_true);
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    (message[0], message[1], mtu, message[8..].to_vec())
}

/// The tunnels, the family that each is over, and that of the packet inside.
fn tunnels() -> impl Iterator<Item = (TunnelKind, usize, usize)> {
    let families = [(0, 0), (0, 1), (1, 0), (1, 1)];
    KINDS.into_iter().flat_map(move |kind| families.map(|(over, inner)| (kind, over, inner)))
}

/// For each way that a tunnel has, its own bytes are what the client has less.
#[test]
fn the_client_learns_what_fits_inside() {
    for (kind, over, inner) in tunnels() {
        let tables = tables(kind, over, None);
        let (packet, outer) = sent(&tables, inner);
        let overhead = u16::try_from(outer.len() - packet.len()).unwrap();
        // IPv6's least is 1280 inside.
        let mtu = overhead + 1290;
        let quote_max = [548, 1232][inner];
        // Routers quote as much as they like, from what is needed.
        let least = usize::from(overhead) + [28, 48][inner];
        for quoted in [least, 548.max(least), 1232, outer.len()] {
            let frame = told(Says::Fits(mtu), &outer[..quoted]);
            let (burst, answered) = run(&tables, &frame, &mut state(1000));
            assert_eq!(burst.fate(0), Fate::Send(OUT), "{kind:?} {over} {inner} {quoted}");
            assert_eq!((answered, burst.meta(0).rule), (1, Rule::TunnelError));
            let (says, code, told, quote) = read(burst.frames()[0].bytes(), inner);
            assert_eq!((says, code, told), ([3, 2][inner], [4, 0][inner], 1290));
            let expect = quoted - usize::from(overhead);
            assert_eq!(quote, packet[..expect.min(quote_max)]);
        }
        let frame = told(Says::Fits(mtu), &outer[..least - 1]);
        assert_eq!(run(&tables, &frame, &mut state(1000)).0.fate(0), PUNT, "too little is quoted");
    }
}

const PUNT: Fate = Fate::Exit(Exit::Punt);

#[test]
fn a_lost_packet_is_a_host_out_of_reach() {
    for (kind, over, inner) in tunnels() {
        let tables = tables(kind, over, None);
        let (_, outer) = sent(&tables, inner);
        for says in [Says::Unreachable, Says::Expired] {
            let (burst, _) = run(&tables, &told(says, &outer[..200]), &mut state(1000));
            let (says, code, parameter, _) = read(burst.frames()[0].bytes(), inner);
            assert_eq!((says, code, parameter), ([3, 1][inner], [1, 3][inner], 0));
        }
    }
}

/// What a client could not act on.
#[test]
fn what_is_of_no_use_is_the_kernels() {
    for (over, inner) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let tables = tables(TunnelKind::Ipip, over, None);
        let (packet, outer) = sent(&tables, inner);
        let overhead = u16::try_from(outer.len() - packet.len()).unwrap();
        let reassembly = [Says::Other(11, 1), Says::Other(3, 1)][over];
        let parameter = [Says::Other(12, 0), Says::Other(4, 0)][over];
        let ping = [Says::Other(8, 0), Says::Other(128, 0)][over];
        for says in [
            Says::Fits(0),
            Says::Fits(overhead - 1),
            Says::Fits(overhead + 1300), // it has not been larger
            Says::Fits(u16::MAX),
            parameter,
            ping,
        ] {
            let (burst, answered) = run(&tables, &told(says, &outer), &mut state(1000));
            assert_eq!((burst.fate(0), answered), (PUNT, 0), "{over} {inner} {says:?}");
        }
        if over == 0 {
            for says in [reassembly, Says::Other(3, 5)] {
                assert_eq!(run(&tables, &told(says, &outer), &mut state(1000)).0.fate(0), PUNT);
            }
        }
        // Less than IPv4 has to carry; IPv6 is asked for 1280 at least.
        let (burst, _) = run(&tables, &told(Says::Fits(overhead + 67), &outer), &mut state(1000));
        match inner {
            0 => assert_eq!(burst.fate(0), PUNT),
            _ => assert_eq!(read(burst.frames()[0].bytes(), inner).2, 1280),
        }
    }
}

/// A change to what is quoted, and what becomes of the frame then.
type Forgery = (&'static str, fn(&mut Vec<u8>), Fate);

/// Only what the balancer could have sent is believed.
#[test]
fn nobody_is_told_of_what_was_not_sent() {
    let cases: [Forgery; 9] = [
        ("what was sent", |_| (), Fate::Send(OUT)),
        ("to no backend", |quote| quote[19] = 9, PUNT),
        ("from another address", |quote| quote[15] = 3, PUNT),
        ("another tunnel", |quote| drop(quote.splice(20..20, [0, 0, 8, 0])), PUNT),
        ("another tunnel, by its number", |quote| quote[9] = 47, PUNT),
        ("to no service", |quote| quote[39] = 99, PUNT),
        ("to a service without tunnels", |quote| quote[39] = 101, PUNT),
        ("a part of a packet", |quote| quote[27] = 1, PUNT),
        ("from a group", |quote| quote[32] = 224, PUNT),
    ];
    let tables = tables(TunnelKind::Ipip, 0, None);
    let (_, outer) = sent(&tables, 0);
    for (name, change, expect) in cases {
        let mut quote = outer.clone();
        change(&mut quote);
        let (burst, _) = run(&tables, &told(Says::Fits(1200), &quote), &mut state(1000));
        assert_eq!(burst.fate(0), expect, "{name}");
    }
    let mut frame = told(Says::Fits(1200), &outer);
    frame[40] ^= 1;
    let (burst, _) = run(&tables, &frame, &mut state(1000));
    assert_eq!(burst.fate(0), Fate::Exit(DropReason::BadChecksum.into()));
}

/// The port that a tunnel's packets go to belongs to it.
#[test]
fn gue_s_port_is_the_service_s() {
    let tables = tables(TunnelKind::Gue { port: 6080 }, 0, None);
    let (_, mut outer) = sent(&tables, 0);
    outer[23] ^= 1;
    let (burst, _) = run(&tables, &told(Says::Fits(1200), &outer), &mut state(1000));
    assert_eq!(burst.fate(0), PUNT);
}

#[test]
fn errors_come_to_where_packets_come_from() {
    for (over, source) in [(0, "172.16.0.0/16"), (1, "fd07::/64")] {
        let tables = tables(TunnelKind::Gre, over, Some(source));
        let (_, mut outer) = sent(&tables, 0);
        let (burst, _) = run(&tables, &told(Says::Fits(1200), &outer), &mut state(1000));
        assert_eq!(burst.fate(0), Fate::Send(OUT));
        outer[[13, 9][over]] ^= 1; // of the prefix
        let (burst, _) = run(&tables, &told(Says::Fits(1200), &outer), &mut state(1000));
        assert_eq!(burst.fate(0), PUNT);
    }
}

#[test]
fn answers_are_bounded_and_need_a_way() {
    let mut tables = tables(TunnelKind::Ipip, 0, None);
    let (_, outer) = sent(&tables, 0);
    let frame = told(Says::Fits(1200), &outer);
    let mut state = state(10);
    let fates = [(); 3].map(|()| run(&tables, &frame, &mut state).0.fate(0));
    let limit = Fate::Exit(DropReason::AnswerLimit.into());
    assert_eq!(fates, [Fate::Send(OUT), limit, limit]);
    tables.fib = Arc::default();
    state.now.0 += 1000;
    let fate = run(&tables, &frame, &mut state).0.fate(0);
    assert_eq!(fate, Fate::Exit(DropReason::NextHopUnresolved.into()));
}

/// RFC 4884: what is behind the quote is none of it.
#[test]
fn extensions_are_not_quoted_on() {
    let tables = tables(TunnelKind::Ipip, 0, None);
    let (packet, outer) = sent(&tables, 0);
    let quote = [&outer[..128], &[0x20, 0, 0, 0]].concat();
    let mut frame = told(Says::Fits(1200), &quote);
    frame[34 + 5] = 32; // words
    frame[36..38].fill(0);
    let sum = Checksum::of(&frame[34..]);
    frame[36..38].copy_from_slice(zerocopy::IntoBytes::as_bytes(&sum));
    let (burst, _) = run(&tables, &frame, &mut state(1000));
    let (.., quote) = read(burst.frames()[0].bytes(), 0);
    assert_eq!(quote, packet[..108]);
}

#[test]
fn tags_are_kept_by_the_port_that_the_error_came_by() {
    let mut tables = tables(TunnelKind::Ipip, 0, None);
    let (_, outer) = sent(&tables, 0);
    let mut frame = told(Says::Fits(1200), &outer);
    frame.splice(12..12, [0x81, 0, 0, 7]);
    for (port, expect) in [(PortId(0), [0x81, 0]), (PortId(1), [8, 0])] {
        let gateway = NextHop { port, mac: GATEWAY, vlan: None };
        let routes = [("0.0.0.0/0".parse().unwrap(), RouteWays::Gateways(vec![gateway]))];
        tables.fib = Arc::new(Fib::new(&routes.into(), &BTreeMap::new(), &tables.ports));
        let (burst, _) = run(&tables, &frame, &mut state(1000));
        assert_eq!(burst.frames()[0].bytes()[12..14], expect);
    }
}
