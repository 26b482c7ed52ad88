//! What the ends of known connections say, and what routers say about it; almost right.

use std::net::SocketAddr;

use etherparse::{IpNumber, TcpHeader, TcpOptionElement};

use crate::differential::Random;
use crate::support::model::Known;
use crate::support::packet::Packet;

/// The sequence number of most clients' first segments.
const ISN: u32 = 1;

/// Backends that remember nothing answer clients at their own addresses.
const NAT_BACKENDS: [(&str, IpNumber); 15] = [
    ("10.0.0.31:8080", IpNumber::TCP),
    ("10.1.0.31:8080", IpNumber::TCP),
    ("[fd00::31]:5300", IpNumber::UDP),
    ("[fd01::31]:53", IpNumber::UDP),
    ("[fd00::32]:80", IpNumber::TCP),
    ("10.0.0.32:80", IpNumber::SCTP),
    ("10.9.0.2:53", IpNumber::UDP),
    ("10.0.0.33:7777", IpNumber::TCP),
    ("[fd00::51]:8080", IpNumber::TCP),
    ("[fd01::51]:8080", IpNumber::TCP),
    ("[fd00::52]:53", IpNumber::UDP),
    ("[fd09::5]:53", IpNumber::UDP),
    ("[fd00::53]:80", IpNumber::SCTP),
    ("[fd00::54]:81", IpNumber::TCP),
    ("[fd00::55]:7777", IpNumber::TCP),
];

/// Says of what kind the first chunk of an SCTP packet is (RFC 9260 §3.2): those that count, and some
/// others.
pub(crate) fn chunk(random: &mut Random, payload: &mut [u8]) {
    let kinds = [0, 0, 0, 1, 1, 1, 2, 3, 6, 7, 8, 8, 10, 11, 14, 255];
    payload.iter_mut().take(1).for_each(|first| *first = *random.pick(&kinds));
}

/// The answer of a backend of `nat`.
pub(crate) fn answer(random: &mut Random) -> Packet {
    let (backend, protocol) = *random.pick(&NAT_BACKENDS);
    let client = random.below(240) + 1;
    let is_46 = backend.contains("::5") && !random.once_in(4);
    let client = match backend.starts_with('[') {
        true if is_46 => format!("[64:ff9b::198.51.100.{client}]:{}", 40_000 + client),
        true => format!("[2001:db8::{client:x}]:{}", 40_000 + client),
        false => format!("198.51.100.{client}:{}", 40_000 + client),
    };
    let (backend, client) = (backend.parse().unwrap(), client.parse().unwrap());
    if random.once_in(8) {
        return error(random, backend, client, protocol);
    }
    between(random, backend, client, protocol)
}

/// A packet of a connection: from the client, from the backend, or an error about one.
pub(crate) fn talk(random: &mut Random, known: &Known) -> Packet {
    let protocol = IpNumber(known.protocol);
    let mut ends = [(known.client, known.vip), (known.backend, known.stand)];
    if random.once_in(30) {
        ends[1].1.set_port(ends[1].1.port() ^ 1);
    }
    let (src, dst) = ends[usize::try_from(random.below(2)).unwrap()];
    if random.once_in(5) {
        return error(random, src, dst, protocol);
    }
    between(random, src, dst, protocol)
}

fn between(random: &mut Random, src: SocketAddr, dst: SocketAddr, protocol: IpNumber) -> Packet {
    let mut packet = Packet::tcp("192.0.2.1:1", "192.0.2.2:1");
    (packet.src, packet.dst, packet.protocol) = (src, dst, protocol);
    let sizes = [0, 0, 1, 9, 100, 1199, 1210, 1220, 1240, 1400, 1420, 1440, 1460, 1473, 2900];
    packet.payload = vec![7; usize::try_from(*random.pick(&sizes)).unwrap()];
    packet.ttl = *random.pick(&[0, 1, 2, 61, 61, 61, 61, 255]);
    packet.traffic_class = u8::try_from(random.below(256)).unwrap();
    if random.once_in(8) {
        packet.options = vec![1; usize::try_from(random.below(11) * 4).unwrap()];
        packet.extensions =
            vec![(IpNumber(60), vec![0; 14]); usize::try_from(random.below(3)).unwrap()];
    }
    if random.once_in(40) {
        // An unexpired route.
        packet.options = vec![131, 7, 4, 10, 0, 0, 1, 0];
        packet.extensions = vec![(IpNumber(43), vec![0, 1, 0, 0, 0, 0])];
    }
    if random.once_in(8) {
        packet.padding = usize::try_from(random.below(20)).unwrap();
    }
    if random.once_in(10) {
        packet.fragment = Some((0, random.once_in(2)));
        packet.payload.truncate(packet.payload.len() & !7);
    }
    if protocol == IpNumber::TCP {
        let payload = std::mem::take(&mut packet.payload);
        packet.payload = [tcp_header(random, src, dst), payload].concat();
        packet.raw_segment = true;
        if packet.fragment.is_some() {
            packet.payload.truncate(packet.payload.len() & !7);
        }
    }
    if protocol == IpNumber::SCTP {
        chunk(random, &mut packet.payload);
    }
    packet.has_true_checksum = random.below(4) > 0;
    packet
}

fn tcp_header(random: &mut Random, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let mut header = TcpHeader::new(src.port(), dst.port(), 0, 1024);
    let near = [0, 1, 1, 1, 2, 10, 28, 29, 52, 53, 54, 100, 1_000, 1 << 31, u32::MAX];
    header.sequence_number = ISN.wrapping_add(*random.pick(&near));
    header.acknowledgment_number = ISN.wrapping_add(*random.pick(&near));
    let kind = random.below(12);
    (header.syn, header.rst) = (kind < 2, kind == 2);
    (header.fin, header.ack) = (kind == 3 || kind == 4, random.below(6) > 0);
    let edges = [28, 30, 60, 80].map(|more| ISN.wrapping_add(more));
    let options = [
        TcpOptionElement::Noop,
        TcpOptionElement::Timestamp(1, 2),
        TcpOptionElement::MaximumSegmentSize(u16::try_from(random.below(9000)).unwrap()),
        TcpOptionElement::SelectiveAcknowledgement(
            (edges[0], edges[1]),
            [Some((edges[2], edges[3])), None, None],
        ),
        TcpOptionElement::WindowScale(7),
    ];
    let mut chosen = Vec::new();
    for _ in 0..random.below(4) {
        chosen.push(random.pick(&options).clone());
    }
    let _ = header.set_options(&chosen); // if they fit
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    if random.once_in(30) {
        let place = 12 + usize::try_from(random.below(bytes.len() as u64 - 12)).unwrap();
        bytes[place] = u8::try_from(random.below(256)).unwrap();
    }
    bytes
}

/// An error about a packet that went from `dst` to `src`: of a router, or of `src` itself.
fn error(random: &mut Random, src: SocketAddr, dst: SocketAddr, protocol: IpNumber) -> Packet {
    let quoted = between(random, dst, src, protocol);
    let is_v4 = src.is_ipv4();
    let router = if is_v4 { "192.0.2.9:0" } else { "[2001:db8::9]:0" };
    let mut quote = Packet { padding: 0, ..quoted.clone() }.ip();
    let lengths = [28, 40, 48, 64, 68, 72, 128, 548, 1232];
    quote.truncate(usize::try_from(*random.pick(&lengths)).unwrap());
    let kind = *random.pick(if is_v4 { &[3, 3, 3, 11, 12] } else { &[1, 2, 2, 3, 4] });
    let code = match kind {
        3 if is_v4 => random.pick(&[0, 1, 2, 3, 4, 4, 4, 9, 13, 14]),
        _ => random.pick(&[0, 0, 1, 2, 3, 4]),
    };
    let mut message = [&[kind, *code, 0, 0, 0, 0, 0, 0], &quote[..]].concat();
    let parameter: u32 = match (is_v4, kind) {
        (true, 3) => *random.pick(&[0, 0, 68, 1006, 1400, 1480, 9000]),
        (true, 12) => u32::try_from(random.below(22)).unwrap() << 24,
        (false, 2) => *random.pick(&[0, 1279, 1280, 1400, 1500, 9000, 70_000]),
        (false, 4) => u32::try_from(random.below(42)).unwrap(),
        _ => 0,
    };
    message[4..8].copy_from_slice(&parameter.to_be_bytes());
    if random.once_in(10) {
        message[4 + usize::from(is_v4)] = 16; // RFC 4884: as if there were extensions behind
    }
    let mut packet = Packet { extensions: Vec::new(), fragment: None, ..quoted };
    (packet.src, packet.dst) = (router.parse().unwrap(), dst);
    if random.once_in(3) {
        packet.src = src;
    }
    packet.ttl = *random.pick(&[1, 2, 61, 61, 61]);
    packet.options.clear();
    packet.protocol = if is_v4 { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
    (packet.payload, packet.raw_segment) = (message, true);
    packet.has_true_checksum = random.below(8) > 0;
    packet
}
