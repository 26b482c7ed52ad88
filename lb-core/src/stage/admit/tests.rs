use etherparse::{Ethernet2Slice, NetSlice, SlicedPacket, TcpHeader, TransportSlice};

use super::*;
use crate::admission::{CLIENTS_MAX, GENERATION_MS_MIN};
use crate::burst::Fate;
use crate::burst::tests::burst_of;
use crate::model::tests::{backend, spec};
use crate::model::{
    AboveRate, Affinity, Forward, FullNat, PortRange, Protocol, ServiceSpec, SynBound,
};
use crate::sim::SimFrame;
use crate::sim::packet::{BALANCER, Packet, SERVICE_VLAN, VLAN};
use crate::stage::classify::classify;
use crate::stage::classify::tests::tables as tables_of;
use crate::stage::fragment::fragment;
use crate::stage::parse::parse;
use crate::state::{Settings, State};
use crate::tuple::{Tuple, mapped};
use crate::wire::tcp::FIN;

const CLIENT: &str = "198.51.100.7:40000";
const VIP: &str = "10.0.0.100:80";
const CLIENT_6: &str = "[2001:db8::7]:40000";
const VIP_6: &str = "[fd00::100]:80";

/// One SYN a second.
const BOUND: SynBound = SynBound { rate: 1, above: AboveRate::Challenge };

fn bounded(above: AboveRate) -> [ServiceSpec; 2] {
    [spec("web", "10.0.0.100", &["10.0.0.11"]), spec("web6", "fd00::100", &["fd00::11"])]
        .map(|spec| ServiceSpec { syn: Some(SynBound { above, ..BOUND }), ..spec })
}

fn tables() -> Tables {
    tables_of(bounded(AboveRate::Challenge))
}

fn segment(src: &str, dst: &str, flags: u8, sequence: u32) -> Packet {
    Packet::tcp(src, dst).with(|p| {
        let mut header = TcpHeader::new(p.src.port(), p.dst.port(), sequence, 1024);
        (header.syn, header.ack) = (flags & SYN != 0, flags & ACK != 0);
        (header.rst, header.fin) = (flags & RST != 0, flags & FIN != 0);
        (p.raw_segment, p.payload) = (true, header.to_bytes().to_vec());
        p.has_true_checksum = true;
    })
}

/// What became of a packet, and the frame.
fn admitted(tables: &Tables, packet: &Packet, now: Tick) -> (Fate, SimFrame) {
    admitted_frame(tables, SimFrame::new(&packet.frame()), now, &Counters::new(4))
}

fn admitted_frame(
    tables: &Tables,
    frame: SimFrame,
    now: Tick,
    counters: &Counters,
) -> (Fate, SimFrame) {
    let mut burst = burst_of([frame]);
    let settings = Settings { worker: crate::burst::WorkerId(0), workers: 1, punts_per_second: 1 };
    let mut state = State::new(settings);
    parse(&mut burst, &tables.ports[0]);
    fragment(&mut burst, tables, &mut state);
    classify(&mut burst, tables);
    admit(&mut burst, tables, &tables.ports[0], counters, now);
    let fate = burst.fate(0);
    let mut left = None;
    burst.take(|_, frame, _, _| left = Some(frame));
    (fate, left.unwrap())
}

fn passes(tables: &Tables, packet: &Packet, now: u64) -> bool {
    matches!(admitted(tables, packet, Tick(now)).0, Fate::Send(_))
}

fn drops(tables: &Tables, packet: &Packet, now: u64) -> Option<DropReason> {
    match admitted(tables, packet, Tick(now)).0 {
        Fate::Exit(Exit::Drop(reason)) => Some(reason),
        _ => None,
    }
}

/// The number that a SYN is challenged with.
fn challenge_of(tables: &Tables, syn: &Packet, now: u64) -> u32 {
    let (fate, frame) = admitted(tables, syn, Tick(now));
    assert_eq!(fate, Fate::Exit(Exit::Answer(PortId(0), DropReason::SynLimit)));
    let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no segment") };
    tcp.acknowledgment_number()
}

#[test]
fn a_client_that_answers_is_let_in() {
    for (client, vip, neighbour) in
        [(CLIENT, VIP, "198.51.100.8:1"), (CLIENT_6, VIP_6, "[2001:db8:0:1::7]:1")]
    {
        let tables = tables();
        let syn = segment(client, vip, SYN, 7);
        let stranger = segment(neighbour, vip, SYN, 7);
        assert!(passes(&tables, &syn, 0), "the first of this second");
        let number = challenge_of(&tables, &syn, 0);
        assert_eq!(challenge_of(&tables, &syn, 1), number, "again");
        for wrong in [number.wrapping_add(1), number.wrapping_sub(1), 8] {
            assert!(passes(&tables, &segment(client, vip, RST, wrong), 2), "{wrong}: another's");
        }
        assert!(passes(&tables, &segment(neighbour, vip, RST, number), 2));
        // RFC 9293 has no ACK there; some have it all the same.
        for flags in [RST, RST | ACK] {
            let answer = segment(client, vip, flags, number);
            assert_eq!(drops(&tables, &answer, 2), Some(DropReason::ChallengeMet));
        }
        assert!(passes(&tables, &syn, 3));
        let other_port = client.replace("40000", "40001");
        assert!(passes(&tables, &segment(&other_port, vip, SYN, 7), 4), "by its address");
        challenge_of(&tables, &stranger, 5);
    }
}

#[test]
fn answers_are_awaited_only_after_challenges_and_for_a_while() {
    let tables = tables();
    let syn = segment(CLIENT, VIP, SYN, 7);
    let cookies = tables.admission.as_ref().unwrap().cookies;
    let flow = Tuple::new([198, 51, 100, 7].into(), [10, 0, 0, 100].into(), 40_000, 80, TCP);
    let number = |now| cookies.of(&flow, Epoch::from(Tick(now)));
    let answer = |now| segment(CLIENT, VIP, RST, number(now));
    assert!(passes(&tables, &answer(0), 0), "nobody was challenged");
    assert!(passes(&tables, &syn, 0));
    assert_eq!(challenge_of(&tables, &syn, 0), number(0));
    assert_eq!(drops(&tables, &answer(0), 16_383), Some(DropReason::ChallengeMet));
    assert!(passes(&tables, &answer(0), 16_384));
}

#[test]
fn what_belongs_to_connections_goes_past() {
    let tables = tables();
    assert!(passes(&tables, &segment(CLIENT, VIP, SYN, 7), 0));
    for flags in [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, SYN | RST, 0] {
        let packet = segment(CLIENT, VIP, flags, 7);
        let frame = packet.frame();
        let (fate, left) = admitted(&tables, &packet, Tick(0));
        assert!(matches!(fate, Fate::Send(_)), "{flags:#x}");
        assert_eq!(left.bytes(), frame);
    }
    for flags in [SYN, SYN | FIN] {
        challenge_of(&tables, &segment(CLIENT, VIP, flags, 7), 0);
    }
}

#[test]
fn the_rate_is_the_services_own() {
    let [web, web6] = bounded(AboveRate::Challenge);
    let web6 = ServiceSpec { syn: None, ..web6 };
    let tables = tables_of([web, web6]);
    for _ in 0..3 {
        assert!(passes(&tables, &segment(CLIENT_6, VIP_6, SYN, 7), 0));
    }
    let syn = segment(CLIENT, VIP, SYN, 7);
    let passed = |now| (0..3).filter(|_| passes(&tables, &syn, now)).count();
    assert_eq!([0, 500, 1000, 9000].map(passed), [1, 0, 1, 1]);
}

#[test]
fn what_is_not_to_be_challenged_is_dropped() {
    let tables = tables_of(bounded(AboveRate::Drop));
    let syn = segment(CLIENT, VIP, SYN, 7);
    assert!(passes(&tables, &syn, 0));
    assert_eq!(drops(&tables, &syn, 0), Some(DropReason::SynLimit));
}

#[test]
fn parts_of_packets_and_groups_are_not_answered() {
    let tables = tables();
    let syn = segment(CLIENT, VIP, SYN, 7);
    assert!(passes(&tables, &syn, 0));
    let part = syn.clone().with(|p| {
        p.fragment = Some((0, true));
        p.payload.extend([0; 4]);
    });
    assert_eq!(drops(&tables, &part, 0), Some(DropReason::SynLimit));
    for sender in [[1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        let mut frame = syn.frame();
        frame[6..12].copy_from_slice(&sender);
        let (fate, _) = admitted_frame(&tables, SimFrame::new(&frame), Tick(0), &Counters::new(4));
        assert_eq!(fate, Fate::Exit(DropReason::SynLimit.into()));
    }
    // Nor is a part of one an answer.
    let number = challenge_of(&tables, &syn, 0);
    let part = segment(CLIENT, VIP, RST, number).with(|p| {
        p.fragment = Some((0, true));
        p.payload.extend([0; 4]);
    });
    assert!(passes(&tables, &part, 0));
}

/// Whatever a SYN looks like, its answer is a plain segment: no longer, and with true checksums.
#[test]
fn an_answer_is_a_plain_segment_to_its_sender() {
    let tags = [vec![], vec![(VLAN, 7)], vec![(SERVICE_VLAN, 7), (VLAN, 8)]];
    let options: [&[u8]; 3] = [&[], &[2, 4, 5, 180], &[2, 4, 5, 180, 1, 3, 3, 7]];
    for (client, vip) in [(CLIENT, VIP), (CLIENT_6, VIP_6)] {
        for ((tags, tcp_options), ip_words) in tags.iter().zip(options).zip([0, 1, 10]) {
            let tables = tables();
            let syn = segment(client, vip, SYN, 7).with(|p| {
                p.tags.clone_from(tags);
                p.options = vec![1; ip_words * 4];
                if ip_words > 0 {
                    p.extensions = vec![(etherparse::IpNumber(60), vec![0; 14])];
                }
                p.payload[12] = u8::try_from(5 + tcp_options.len() / 4).unwrap() << 4;
                p.payload.extend(tcp_options);
                p.payload.extend(b"data of a fast open");
                p.padding = 9;
                p.traffic_class = 0xb8;
            });
            assert!(passes(&tables, &syn, 0));
            let counters = Counters::new(4);
            let frame = SimFrame::with_headroom(&syn.frame(), 0);
            let (fate, left) = admitted_frame(&tables, frame, Tick(0), &counters);
            assert_eq!(fate, Fate::Exit(Exit::Answer(PortId(0), DropReason::SynLimit)));
            assert_eq!((counters.challenged.get(), counters.answered.get()), (1, 1));
            check_answer(&syn, left.bytes());
        }
    }
}

fn check_answer(syn: &Packet, frame: &[u8]) {
    let was = syn.frame();
    assert!(frame.len() < was.len());
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    assert_eq!(
        (ethernet.destination(), ethernet.source()),
        (was[6..12].try_into().unwrap(), BALANCER)
    );
    let l3 = 14 + 4 * syn.tags.len();
    assert_eq!(frame[12..l3], was[12..l3], "tags");
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no segment") };
    let header = tcp.to_header();
    match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            assert_eq!((ip.ihl(), ip.ttl(), ip.dont_fragment()), (5, 64, true));
            assert_eq!(usize::from(ip.total_len()), frame.len() - l3);
            let ends = (ip.source_addr().into(), ip.destination_addr().into());
            assert_eq!(ends, (syn.dst.ip(), syn.src.ip()));
            let checksum = header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), &[]);
            assert_eq!(header.checksum, checksum.unwrap());
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            assert_eq!((ip.hop_limit(), ip.payload_length()), (64, 20));
            let ends = (ip.source_addr().into(), ip.destination_addr().into());
            assert_eq!(ends, (syn.dst.ip(), syn.src.ip()));
            let checksum = header.calc_checksum_ipv6_raw(ip.source(), ip.destination(), &[]);
            assert_eq!(header.checksum, checksum.unwrap());
        }
        NetSlice::Arp(_) => panic!("no packet"),
    }
    let expect = TcpHeader {
        source_port: syn.dst.port(),
        destination_port: syn.src.port(),
        acknowledgment_number: header.acknowledgment_number,
        ack: true,
        checksum: header.checksum,
        ..TcpHeader::default()
    };
    assert_eq!(header, expect);
    assert_eq!(tcp.payload(), []);
}

#[test]
fn a_full_memory_lets_nobody_in_for_a_while() {
    let tables = tables();
    let clients = &tables.admission.as_ref().unwrap().clients;
    let full = (0..=2 * CLIENTS_MAX)
        .any(|n| clients.add(tables.services[0].id, &mapped(n.to_be_bytes()), Tick(0)).is_err());
    assert!(full);
    let syn = segment(CLIENT, VIP, SYN, 7);
    assert!(passes(&tables, &syn, 0));
    let answer = segment(CLIENT, VIP, RST, challenge_of(&tables, &syn, 0));
    assert_eq!(drops(&tables, &answer, 1), Some(DropReason::AdmitFull));
    assert_eq!(drops(&tables, &answer, GENERATION_MS_MIN), Some(DropReason::ChallengeMet));
}

/// A challenge comes before a connection is opened, and after which service it is for is known.
#[test]
fn all_kinds_of_services_can_have_a_bound() {
    let pool = "10.0.0.64/32".parse().unwrap();
    let full_nat = FullNat { pool, client_address: crate::model::ClientAddress::Hidden };
    for forward in [Forward::L2dsr, Forward::IPIP, Forward::Nat, Forward::FullNat(full_nat)] {
        let spec = ServiceSpec {
            forward,
            syn: Some(BOUND),
            affinity: Affinity::Client,
            backends: vec![backend("10.0.0.11")],
            ..spec("web", "10.0.0.100", &[])
        };
        let tables = tables_of([spec]);
        let syn = segment(CLIENT, VIP, SYN, 7);
        assert!(passes(&tables, &syn, 0), "{forward:?}");
        challenge_of(&tables, &syn, 0);
    }
    let mut any = ServiceSpec { syn: Some(BOUND), ..spec("all", "10.0.0.100", &["10.0.0.11"]) };
    any.vip.ports = PortRange::ANY;
    any.vip.protocol = Protocol::Any;
    any.vip.address = "10.9.0.0/24".parse().unwrap();
    let tables = tables_of([any]);
    let syn = segment(CLIENT, "10.9.0.5:8080", SYN, 7);
    assert!(passes(&tables, &syn, 0));
    challenge_of(&tables, &syn, 0);
    challenge_of(&tables, &segment(CLIENT, "10.9.0.6:443", SYN, 7), 0);
    for _ in 0..3 {
        assert!(passes(&tables, &Packet::udp(CLIENT, "10.9.0.5:53"), 0));
    }
}
