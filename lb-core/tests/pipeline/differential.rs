//! Random packets, most of them almost right, through the pipeline and through the model.
//!
//! `DIFFERENTIAL_FRAMES` says how many, `DIFFERENTIAL_SEED` from which seed on; `scripts/differential` runs
//! millions.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::{IpNumber, TcpHeader, TcpOptionElement};

use crate::support::model::Known;
use crate::support::packet::{Packet, SERVICE_VLAN, VLAN, repair_ipv4_checksum};
use crate::support::run::{Arrival, Limits, run};
use crate::support::world::{HASH_KEY, World};
use crate::talk::{answer, chunk, talk};
use lb_core::admission::{Cookies, Epoch};
use lb_core::tables::next_hop::PortId;
use lb_core::tuple::Tuple;

/// A small generator (Knuth's MMIX constants): the same numbers for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// All VIPs of the fixed world, and some neighbours of theirs.
const VIPS: [&str; 55] = [
    "10.0.0.100:80",
    "[fd00::100]:80",
    "10.0.0.101:80",
    "10.0.0.101:81",
    "[fd00::101]:80",
    "[fd00::101]:81",
    "10.0.0.101:53",
    "10.0.0.105:80",
    "[fd00::105]:80",
    "10.0.0.106:80",
    "[fd00::106]:53",
    "10.0.0.107:8050",
    "10.0.0.107:9",
    "10.9.0.5:80",
    "10.9.0.7:80",
    "10.0.0.102:53",
    "[fd00::102]:53",
    "10.0.0.103:80",
    "10.0.0.104:80",
    "10.0.0.2:179",
    "10.0.0.110:80",
    "[fd00::110]:53",
    "[fd00::110]:80",
    "10.0.0.110:53",
    "10.0.0.111:7777",
    "10.0.0.111:80",
    "10.0.0.112:80",
    "10.0.0.112:53",
    "10.0.0.112:81",
    "10.0.0.112:82",
    "[fd00::112]:80",
    "[fd00::112]:53",
    "[fd00::112]:81",
    "[fd00::112]:82",
    "10.0.0.113:80",
    "10.0.0.113:53",
    "10.0.0.113:81",
    "10.0.0.113:82",
    "[fd00::113]:80",
    "[fd00::113]:53",
    "[fd00::113]:81",
    "[fd00::113]:82",
    "10.0.0.115:80",
    "10.0.0.115:81",
    "[fd00::115]:80",
    "10.0.0.115:53",
    "10.0.0.116:7777",
    "10.0.0.116:80",
    "10.0.0.114:80",
    "[fd00::114]:80",
    "10.0.0.114:81",
    "[fd00::114]:81",
    "10.0.0.114:82",
    "10.0.0.114:83",
    "10.9.1.5:8080",
];
/// Of those: where the services are that take few SYNs.
const BOUNDED: Range<usize> = 48..55;

fn packet(random: &mut Random) -> Packet {
    let vip = *random.pick(&VIPS);
    let client = random.below(200) + 1;
    let src = if vip.starts_with('[') {
        format!("[2001:db8::{client:x}]:{}", 40_000 + client)
    } else {
        format!("198.51.100.{client}:{}", 40_000 + client)
    };
    let mut packet = match random.below(5) {
        0 | 1 => Packet::tcp(&src, vip),
        2 | 3 => Packet::udp(&src, vip),
        _ => Packet::sctp(&src, vip),
    };
    let sizes =
        [0, 1, 8, 100, 1200, 1240, 1399, 1420, 1432, 1440, 1452, 1460, 1472, 1480, 1500, 3000];
    packet.payload = vec![7; usize::try_from(*random.pick(&sizes)).unwrap()];
    if packet.protocol == IpNumber::SCTP {
        chunk(random, &mut packet.payload);
    }
    packet.traffic_class = u8::try_from(random.below(256)).unwrap();
    if random.once_in(4) {
        packet.tags.clone_from(random.pick(&[vec![(VLAN, 3)], vec![(SERVICE_VLAN, 2), (VLAN, 4)]]));
    }
    if random.once_in(4) {
        packet.options = vec![1; usize::try_from(random.below(11) * 4).unwrap()];
        let extensions = [(IpNumber(0), vec![0; 6]), (IpNumber(60), vec![0; 14])];
        packet.extensions = extensions[..usize::try_from(random.below(3)).unwrap()].to_vec();
    }
    packet.has_true_checksum = random.once_in(2);
    packet.ttl = *random.pick(&[61, 61, 61, 61, 61, 255, 2, 1, 0]);
    if random.once_in(4) {
        packet.padding = usize::try_from(random.below(20)).unwrap();
    }
    packet
}

/// A SYN with options, among which there may be a segment size.
fn syn(random: &mut Random) -> Packet {
    let mut packet = packet(random);
    packet.protocol = IpNumber::TCP;
    let mut header = TcpHeader::new(packet.src.port(), packet.dst.port(), 1, 1024);
    (header.syn, header.ack) = (!random.once_in(4), random.once_in(2));
    let size = TcpOptionElement::MaximumSegmentSize(u16::try_from(random.below(9000)).unwrap());
    let noop = vec![TcpOptionElement::Noop; usize::try_from(random.below(4)).unwrap()];
    let scale = TcpOptionElement::WindowScale(7);
    header.set_options(&[noop, vec![scale, size]].concat()).unwrap();
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    if random.once_in(4) {
        let place = 20 + usize::try_from(random.below(bytes.len() as u64 - 20)).unwrap();
        bytes[place] = u8::try_from(random.below(256)).unwrap();
    }
    if random.once_in(6) {
        // The first piece of one, which may end among the options.
        packet.fragment = Some((0, true));
        bytes.resize(*random.pick(&[16, 24, 32, 40]), 0);
    }
    (packet.payload, packet.raw_segment) = (bytes, true);
    packet
}

/// A SYN of one of a few clients to a service that takes few; or a reset, most of them what a client
/// answers a challenge with.
fn knock(random: &mut Random) -> Packet {
    let vip = *random.pick(&VIPS[BOUNDED]);
    let client = random.below(4) + 1;
    let src = if vip.starts_with('[') {
        format!("[2001:db8:0:{}::{client}]:40000", client / 2)
    } else {
        format!("198.51.100.{client}:40000")
    };
    let mut packet = Packet::tcp(&src, vip);
    let (src, dst) = (packet.src, packet.dst);
    let mut header = TcpHeader::new(src.port(), dst.port(), 7, 1024);
    header.rst = random.once_in(3);
    header.syn = !header.rst;
    if header.rst && !random.once_in(6) {
        let tuple = Tuple::new(src.ip(), dst.ip(), src.port(), dst.port(), 6);
        // A run is shorter than an epoch.
        header.sequence_number = Cookies::new(HASH_KEY).of(&tuple, Epoch(0));
    }
    (packet.payload, packet.raw_segment) = (header.to_bytes().to_vec(), true);
    packet.has_true_checksum = true;
    if random.once_in(4) {
        packet.tags.clone_from(random.pick(&[vec![(VLAN, 3)], vec![(SERVICE_VLAN, 2), (VLAN, 4)]]));
    }
    if random.once_in(8) {
        packet.options = vec![1; 8];
        packet.extensions = vec![(IpNumber(60), vec![0; 14])];
    }
    if random.once_in(8) {
        packet.fragment = Some((0, true));
        packet.payload.extend([0; 4]);
    }
    packet.padding = usize::try_from(random.below(2)).unwrap() * 6;
    packet
}

/// Some fragments of one datagram, in any order; some overlap, some are missing.
fn fragments(random: &mut Random) -> Vec<Packet> {
    let mut base = packet(random);
    base.padding = 0;
    if random.once_in(8) {
        base.protocol = IpNumber(50);
    }
    let eights = 1 + u16::try_from(random.below(6)).unwrap();
    let step = usize::from(eights) * 8;
    let count = 1 + u16::try_from(random.below(5)).unwrap();
    let mut all: Vec<Packet> = (0..count)
        .map(|number| {
            let shift = u16::from(random.once_in(12));
            let (offset, has_more) = (number * eights + shift, number + 1 < count);
            base.clone().with(|p| {
                p.fragment = Some((offset, has_more || count == 1));
                p.raw_segment = true;
                let cut = if has_more { 0 } else { usize::try_from(random.below(8)).unwrap() };
                p.payload = vec![1; step - cut.min(step - 1)];
                p.payload[..4.min(step - cut)].copy_from_slice(
                    &[base.src.port(), base.dst.port()].map(u16::to_be_bytes).concat()
                        [..4.min(step - cut)],
                );
            })
        })
        .collect();
    for i in (1..all.len()).rev() {
        all.swap(i, usize::try_from(random.below(i as u64 + 1)).unwrap());
    }
    if random.once_in(6) {
        all.pop();
    }
    if !all.is_empty() && random.once_in(6) {
        let again = random.pick(&all).clone();
        all.push(again);
    }
    all
}

/// An ICMP error about a packet that the VIP of `quoted` sent.
fn error(random: &mut Random) -> Packet {
    let mut quoted = packet(random);
    std::mem::swap(&mut quoted.src, &mut quoted.dst);
    if random.once_in(8) {
        quoted.fragment = Some((u16::try_from(random.below(2)).unwrap(), true));
    }
    let is_v4 = quoted.src.is_ipv4();
    let router: SocketAddr = if is_v4 { "192.0.2.9:0" } else { "[2001:db8::9]:0" }.parse().unwrap();
    let message = *random.pick(if is_v4 { &[3, 11, 12, 5, 0] } else { &[1, 2, 3, 4, 129] });
    let mut quote = quoted.ip();
    quote.truncate(usize::try_from(*random.pick(&[8, 20, 24, 28, 40, 48, 64, 548])).unwrap());
    let mut packet = quoted.clone();
    (packet.src, packet.dst, packet.fragment) = (router, quoted.src, None);
    packet.protocol = if is_v4 { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
    packet.payload = [&[message, 0, 0, 0, 0, 0, 5, 0], &quote[..]].concat();
    packet.raw_segment = true;
    packet
}

fn arrival(random: &mut Random, packet: &Packet) -> Arrival {
    let mut bytes = packet.frame();
    let l3 = 14 + 4 * packet.tags.len();
    if let IpAddr::V4(_) = packet.dst.ip()
        && packet.fragment.is_none()
        && random.once_in(2)
    {
        bytes[l3 + 6] &= !0x40; // may be cut
        repair_ipv4_checksum(&mut bytes, l3);
    }
    if random.once_in(50) {
        let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        bytes[place] ^= 1 << random.below(8);
    }
    if random.once_in(100) {
        bytes.truncate(usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap());
    }
    let port = PortId(u8::from(random.once_in(8)));
    if port.0 > 0 {
        bytes.iter_mut().skip(5).take(1).for_each(|last| *last += 1); // that port's MAC
    }
    let headroom =
        if random.once_in(40) { usize::try_from(random.below(60)).unwrap() } else { 128 };
    Arrival::new(bytes).with(|a| (a.port, a.headroom) = (port, headroom))
}

fn shuffle(random: &mut Random, turn: &mut [Arrival]) {
    for i in (1..turn.len()).rev() {
        turn.swap(i, usize::try_from(random.below(i as u64 + 1)).unwrap());
    }
}

/// Packets of anybody.
fn turn_of_strangers(random: &mut Random) -> Vec<Arrival> {
    let mut turn = Vec::new();
    for _ in 0..10 {
        let packets = match random.below(11) {
            0 => fragments(random),
            1 => vec![error(random)],
            2 => vec![syn(random)],
            3 => vec![answer(random)],
            4 | 5 => vec![knock(random)],
            _ => vec![packet(random)],
        };
        turn.extend(packets.iter().map(|packet| arrival(random, packet)));
    }
    if random.once_in(3) {
        shuffle(random, &mut turn);
    }
    turn
}

/// Packets of a few connections.
fn turn_of_known(random: &mut Random, known: &[Known]) -> Vec<Arrival> {
    let few = &known[..known.len().min(4)];
    let mut turn = Vec::new();
    for _ in 0..12 {
        let of = if random.once_in(3) { known } else { few };
        let known = *random.pick(of);
        let packet = talk(random, &known);
        turn.push(arrival(random, &packet));
    }
    turn
}

#[test]
fn the_pipeline_does_what_the_model_says() {
    let wanted: u64 =
        std::env::var("DIFFERENTIAL_FRAMES").map_or(20_000, |text| text.parse().unwrap());
    let first: u64 = std::env::var("DIFFERENTIAL_SEED").map_or(1, |text| text.parse().unwrap());
    let world = World::fixed();
    let mut done = 0;
    for seed in first.. {
        if done >= wanted {
            break;
        }
        let mut random = Random(seed);
        random.below(1);
        let mut turns: Vec<Vec<Arrival>> = (0..6).map(|_| turn_of_strangers(&mut random)).collect();
        println!("seed {seed} after {done} frames"); // shown if it fails
        let opened = run(&world, &turns, Limits::NONE).known;
        // The same once more, and then both ends of what was opened: at the same ports again.
        if !opened.is_empty() {
            turns.extend((0..6).map(|_| turn_of_known(&mut random, &opened)));
            run(&world, &turns, Limits::NONE);
        }
        done += turns.iter().map(|turn| turn.len() as u64).sum::<u64>();
    }
}
