use std::net::{IpAddr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, TcpHeader, TcpOptionElement};

use super::*;
use crate::burst::Rule;
use crate::forward::fullnat;
use crate::forward::tests::{LAN, OURS, SERVER, hop};
use crate::pool::Pool;
use crate::rate::Tick;
use crate::sim::SimFrame;
use crate::sim::packet::{BALANCER, ROUTER, repair_ipv4_checksum};
use crate::stage::parse::tests::parsed;
use crate::tables::{Pooled, Station};
use crate::tuple::address_bytes;

const CLIENT: [&str; 2] = ["198.51.100.7:40000", "[2001:db8::7]:40000"];
const VIP: [&str; 2] = ["10.0.0.100:80", "[fd00::100]:80"];
const BACKEND: [&str; 2] = ["10.1.0.11:8080", "[fd01::11]:8080"];
const POOL: [&str; 2] = ["10.1.0.200/32", "fd01::200/128"];
/// The client's SYN, and what the backend has sent.
const ISN: u32 = u32::MAX - 10;
const SENT: u32 = 77;

/// A connection of the client's family to a backend of one.
struct Given {
    pooled: Pooled,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    /// Its address and port of the pool.
    from: SocketAddr,
    place: u32,
}

impl Given {
    fn new(client: usize, backend: usize, how: ClientAddress) -> Self {
        let pool = Pool::new(POOL[backend].parse().unwrap());
        let [client, vip, backend]: [SocketAddr; 3] =
            [CLIENT[client], VIP[client], BACKEND[backend]].map(|it| it.parse().unwrap());
        let connection = Connection {
            client: address_bytes(client.ip()),
            vip: address_bytes(vip.ip()),
            backend: address_bytes(backend.ip()),
            client_port: client.port().to_be_bytes(),
            vip_port: vip.port().to_be_bytes(),
            backend_port: backend.port().to_be_bytes(),
            protocol: TCP,
            idle_max: 200,
            place: 0,
            isn: ISN,
            ..Connection::default()
        };
        let place = pool.open(&connection, 7 << 30, Tick(0)).unwrap();
        let port = u16::from_be_bytes(pool.station(place).port.unwrap());
        let from = SocketAddr::new(pool.net().addr(), port);
        let pooled = Pooled { pool: pool.into(), client_address: how, idle_max: 200 };
        Self { pooled, client, vip, backend, from, place }
    }

    fn found(&self) -> Found {
        self.pooled.pool.get(self.place).unwrap()
    }

    fn to_backend(&self, frame: &[u8], mtu: u16) -> Result<Vec<u8>, DropReason> {
        let meta = Meta { slot: self.place, ..parsed(frame) };
        let mut sim = SimFrame::new(frame);
        let (address, port) = (address_bytes(self.backend.ip()), self.backend.port());
        let station = Station { address, port: Some(port.to_be_bytes()) };
        let (pooled, hop) = (&self.pooled, hop(0, None, mtu));
        fullnat::to_backend(&mut sim, &meta, &hop, LAN, pooled, &station, &self.found())?;
        Ok(sim.bytes().to_vec())
    }

    fn to_client(&self, frame: &[u8], rule: Rule) -> Vec<u8> {
        let meta = Meta { rule, ..parsed(frame) };
        let mut sim = SimFrame::new(frame);
        let connection = (&self.pooled, &self.found());
        fullnat::to_client(&mut sim, &meta, &hop(0, None, 1500), LAN, connection).unwrap();
        sim.bytes().to_vec()
    }

    /// What the PROXY protocol says, written down from its specification.
    fn header(&self) -> Vec<u8> {
        let mut bytes =
            vec![0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        bytes.push(0x21);
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        bytes.extend(if self.client.is_ipv4() { [0x11, 0, 12] } else { [0x21, 0, 36] });
        bytes.extend([octets(self.client.ip()), octets(self.vip.ip())].concat());
        bytes.extend(self.client.port().to_be_bytes());
        bytes.extend(self.vip.port().to_be_bytes());
        bytes
    }
}

/// A segment with true checksums; the ports are those of the ends.
fn frame(
    [dst_mac, src_mac]: [[u8; 6]; 2],
    [src, dst]: [SocketAddr; 2],
    ttl: u8,
    change: impl FnOnce(&mut TcpHeader),
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = TcpHeader::new(src.port(), dst.port(), 0, 1024);
    change(&mut tcp);
    let ethernet = PacketBuilder::ethernet2(src_mac, dst_mac);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = etherparse::Ipv4Header::new(
                0,
                ttl,
                etherparse::IpNumber::TCP,
                src.octets(),
                dst.octets(),
            );
            ip.as_mut().unwrap().dont_fragment = true;
            IpHeaders::Ipv4(ip.unwrap(), etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                source: src.octets(),
                destination: dst.octets(),
                hop_limit: ttl,
                ..Default::default()
            },
            etherparse::Ipv6Extensions::default(),
        ),
        mixed => panic!("{mixed:?}"),
    };
    let mut bytes = Vec::new();
    ethernet.ip(ip).tcp_header(tcp).write(&mut bytes, payload).unwrap();
    bytes
}

/// Are the frames the same, but for the name that a packet gets that was IPv6? It may be cut then, and
/// the tests of `siit` judge that.
#[track_caller]
fn assert_same(found: &[u8], mut expect: Vec<u8>, what: &str) {
    if found[14] >> 4 == 4 {
        expect[18..22].copy_from_slice(&found[18..22]);
        repair_ipv4_checksum(&mut expect, 14);
    }
    assert_eq!(found, expect, "{what}");
}

const CAME: [[u8; 6]; 2] = [BALANCER, ROUTER];
const LEFT: [[u8; 6]; 2] = [SERVER.0, OURS.0];

/// What a client sends, `after` so many bytes of its stream.
fn from_client(given: &Given, after: u32, payload: &[u8]) -> Vec<u8> {
    let ends = [given.client, given.vip];
    frame(CAME, ends, 64, |tcp| at(tcp, ISN.wrapping_add(1 + after), SENT), payload)
}

fn at(tcp: &mut TcpHeader, sequence: u32, acknowledged: u32) {
    (tcp.sequence_number, tcp.ack, tcp.acknowledgment_number) = (sequence, true, acknowledged);
}

/// A header before the first byte, and all behind it moves: as if the client had sent it, in every
/// combination of families, and whatever padding the frame came with.
#[test]
fn the_proxy_header_is_the_first_of_the_stream() {
    for (client, backend) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let given = Given::new(client, backend, ClientAddress::Proxy);
        let ends = [given.from, given.backend];
        let header = given.header();
        for (after, payload, padding) in
            [(0, &b""[..], 0), (0, b"GET", 0), (0, b"", 6), (0, b"odd", 3), (5, b"more", 2)]
        {
            let came = [from_client(&given, after, payload), vec![0xee; padding]].concat();
            let (before, moved) = match after {
                0 => (&header[..], 0),
                _ => (&[][..], u32::try_from(header.len()).unwrap()),
            };
            let sequence = ISN.wrapping_add(1 + after + moved);
            let sent = [before, payload].concat();
            let expect = frame(LEFT, ends, 63, |tcp| at(tcp, sequence, SENT), &sent);
            let found = given.to_backend(&came, 1500).unwrap();
            let what = format!("{client} to {backend}: {after} {payload:?} {padding}");
            assert_same(&found, expect, &what);
        }
    }
}

/// It has to be there: a packet that has no room for it is too big.
#[test]
fn a_proxy_header_without_room_is_too_big() {
    let given = Given::new(0, 0, ClientAddress::Proxy);
    let full = |len: usize| from_client(&given, 0, &vec![7; len]);
    assert!(given.to_backend(&full(1500 - 40 - 28), 1500).is_ok());
    assert_eq!(given.to_backend(&full(1500 - 40 - 27), 1500), Err(DropReason::TooBig));
    let later = from_client(&given, 1, &[7; 1500 - 40]);
    assert!(given.to_backend(&later, 1500).is_ok());
}

/// What the backend acknowledges, wholly or in parts, is told as if there were no header.
#[test]
fn acknowledgements_do_not_count_the_header() {
    for (client, backend) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let given = Given::new(client, backend, ClientAddress::Proxy);
        let more = u32::try_from(given.header().len()).unwrap();
        for nops in 0..3 {
            for (acknowledged, told) in [(0, 0), (1, 0), (more, 0), (more + 9, 9)] {
                let first = ISN.wrapping_add(1);
                let edges = |by: u32| {
                    let edge = |n: u32| first.wrapping_add(by + n);
                    let sack = TcpOptionElement::SelectiveAcknowledgement(
                        (edge(20), edge(30)),
                        [Some((edge(40), edge(50))), None, None],
                    );
                    [vec![TcpOptionElement::Noop; nops], vec![sack]].concat()
                };
                let came = frame(
                    CAME,
                    [given.backend, given.from],
                    64,
                    |tcp| {
                        at(tcp, SENT, first.wrapping_add(acknowledged));
                        tcp.set_options(&edges(more)).unwrap();
                    },
                    b"",
                );
                let expect = frame(
                    LEFT,
                    [given.vip, given.client],
                    63,
                    |tcp| {
                        at(tcp, SENT, first.wrapping_add(told));
                        tcp.set_options(&edges(0)).unwrap();
                    },
                    b"",
                );
                let what = format!("{backend} to {client}: {nops} {acknowledged}");
                assert_same(&given.to_client(&came, Rule::Return), expect, &what);
            }
        }
        assert!(given.found().state.has_header(), "the backend has said so");
        // Now the client's first segment only moves.
        let expect = frame(
            LEFT,
            [given.from, given.backend],
            63,
            |tcp| {
                at(tcp, ISN.wrapping_add(1 + more), SENT);
            },
            b"again",
        );
        let found = given.to_backend(&from_client(&given, 0, b"again"), 1500).unwrap();
        assert_same(&found, expect, "again");
    }
}

/// The option is in the segments before the first byte and in the first, where there is room.
#[test]
fn toa_is_an_option_of_the_first_segments() {
    for (client, backend) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let given = Given::new(client, backend, ClientAddress::Toa);
        let header = given.header();
        let addresses = &header[16..];
        let address = &addresses[..(addresses.len() - 4) / 2];
        let option = [&given.client.port().to_be_bytes()[..], address].concat();
        let option = [vec![254, u8::try_from(option.len() + 2).unwrap()], option].concat();
        let headers = if backend == 0 { 40 } else { 60 };
        for (after, len, padding, is_told) in [
            (0, 0, 6, true),
            (0, 9, 0, true),
            (0, 1500 - headers - option.len(), 0, true),
            (0, 1500 - headers - option.len() + 1, 0, false),
            (3, 9, 0, false),
        ] {
            if len > 1500 - [40, 60][client] {
                continue; // no such packet comes
            }
            let payload = vec![7; len];
            let came = [from_client(&given, after, &payload), vec![0xee; padding]].concat();
            let expect = frame(
                LEFT,
                [given.from, given.backend],
                63,
                |tcp| {
                    at(tcp, ISN.wrapping_add(1 + after), SENT);
                    if is_told {
                        tcp.set_options_raw(&option).unwrap();
                    }
                },
                &payload,
            );
            let found = given.to_backend(&came, 1500).unwrap();
            assert_same(&found, expect, &format!("{client} to {backend}: {after} {len}"));
        }
    }
}

/// A router's error about the packet of `frame`, up to `len` bytes of the segment: it takes 1400 bytes.
fn too_big(frame: &[u8], len: usize) -> Vec<u8> {
    let packet = &frame[14..];
    let ethernet = PacketBuilder::ethernet2(CAME[1], CAME[0]);
    let mut bytes = Vec::new();
    if packet[0] >> 4 == 4 {
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let needed = Icmpv4Type::DestinationUnreachable(needed);
        let to = packet[12..16].try_into().unwrap();
        let builder = ethernet.ipv4([192, 0, 2, 9], to, 64).icmpv4(needed);
        builder.write(&mut bytes, &packet[..20 + len]).unwrap();
    } else {
        let from = "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let to = packet[8..24].try_into().unwrap();
        let builder = ethernet.ipv6(from, to, 64).icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 });
        builder.write(&mut bytes, &packet[..40 + len]).unwrap();
    }
    bytes
}

/// Errors about what a backend was sent say what the client has to know: how much of its own fits, of a
/// segment that it has sent.
#[test]
fn errors_do_not_count_the_header() {
    for (client, backend) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let given = Given::new(client, backend, ClientAddress::Proxy);
        let more = u16::try_from(given.header().len()).unwrap();
        let fits = match (client, backend) {
            (0, 1) => 1380,
            (1, 0) => 1420,
            _ => 1400,
        };
        // As routers quote, and as the first ones did (RFC 792): then no checksum is there.
        for (after, len) in [(0, 400), (0, 20), (0, 8), (9, 400), (9, 20), (9, 8)] {
            let sent = given.to_backend(&from_client(&given, after, &[7; 1300]), 1500).unwrap();
            let told = given.to_client(&too_big(&sent, len), Rule::ReturnError);
            let what = format!("{backend} to {client}: {after} {len}");

            let (header, is_ipv6) = if client == 0 { (20, false) } else { (40, true) };
            let message = &told[14 + header..];
            let addresses = is_ipv6.then(|| Sum::default().plus(&told[22..54]));
            assert_eq!(icmp::checksum(message, addresses), Ok(Checksum::ZERO), "{what}");
            let mtu = if is_ipv6 { &message[4..8] } else { &message[6..8] };
            let mtu = mtu.iter().fold(0, |all, byte| all << 8 | u16::from(*byte));
            assert_eq!(mtu, if after == 0 { fits - more } else { fits }, "{what}");
            let quoted = &message[8 + header..];
            let sequence = ISN.wrapping_add(1 + after).to_be_bytes();
            assert_eq!(quoted[4..8], sequence, "{what}");
            if after > 0 && len >= 20 {
                // Nothing was put into it: so it is as it was, checksum and all.
                let original = from_client(&given, after, &[7; 1300]);
                assert_eq!(quoted[..20], original[14 + header..][..20], "{what}");
            }
        }
    }
}
