//! The frames of a measurement, one after the other.
//!
//! Frames are copies of templates with another client in them, so that millions of flows take no memory and
//! a frame takes a few nanoseconds. Flow `n` is client `n`'s; it belongs to a service and a family by its
//! number.

use std::ops::Range;

use lb_config::profile::{AttackKind, Made, Size};
use lb_core::model::Protocol;
use lb_core::tuple::address_bytes;
use lb_core::wire::checksum::Sum;
use lb_core::wire::ethernet::MacAddr;
use lb_core::wire::{TCP, UDP, tcp, udp};
use zerocopy::IntoBytes;

use crate::Random;
use crate::network::vip;
use crate::stamp::STAMP_BYTES;
use crate::traffic::{ETHERNET, client, cut, datagram, headers, segment, to_vip};

/// Bytes of the frame check sequence, which is counted in a frame's length, and made by the NIC.
const FCS: usize = 4;
/// Frames after which kinds and lengths come in the same order again: a multiple of the 12 of "imix", and
/// of the 100 of percents.
const SCHEDULE: usize = 1200;
/// Clients that have no flows: from this number on.
const STRANGERS: u32 = 1 << 31;
/// "Discard": no service has it.
const STRAY_PORT: u16 = 9;
/// Of IPv4, the number that fragments of a datagram have in common.
const DATAGRAM: Range<usize> = ETHERNET + 4..ETHERNET + 6;
/// More fragments follow (RFC 791 §3.1).
const MORE: u16 = 0x2000;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of a flow that goes on.
    Goes,
    /// The first of a flow.
    Begins,
    /// The first half of a datagram, and the second, which comes next.
    First,
    Rest,
    Attack(AttackKind),
}

/// Makes frames.
#[derive(Debug)]
pub struct Mix {
    /// The order of frames, as places of `templates` before service and family.
    schedule: Vec<usize>,
    /// Of the schedule: which is next.
    next: usize,
    /// By kind and length, by service, by family.
    templates: Vec<Template>,
    services: u32,
    ipv6: u8,
    flows: u32,
    /// The flows are those from this number on.
    first_flow: u32,
    strangers: u32,
    datagrams: u16,
    /// The second half of this flow's datagram is due.
    half: Option<(usize, u32)>,
    /// From a kind's places to the next kind's.
    lengths: usize,
    random: Random,
}

impl Mix {
    /// What `made` says, in frames of this size, to the device's MAC and `services` services.
    #[must_use]
    pub fn new(made: &Made, size: Size, services: u32, device: MacAddr) -> Self {
        let lengths = size.lengths();
        let mut kinds = vec![Kind::Begins, Kind::Goes];
        if made.fragments > 0 {
            kinds.extend([Kind::First, Kind::Rest]);
        }
        kinds.extend(made.attacks.iter().map(|attack| Kind::Attack(attack.kind)));
        let mut templates = Vec::new();
        for &kind in &kinds {
            for &length in &lengths {
                for service in 0..services {
                    for is_ipv6 in [false, true] {
                        let of = (service, is_ipv6);
                        templates.push(Template::new(kind, made.protocol, of, length, device));
                    }
                }
            }
        }
        let mut mix = Self {
            schedule: Vec::new(),
            next: 0,
            templates,
            services,
            ipv6: made.ipv6,
            flows: made.flows,
            first_flow: 0,
            strangers: STRANGERS,
            datagrams: 0,
            half: None,
            lengths: lengths.len(),
            random: Random::default(),
        };
        let place = |kind: Kind, of: usize| {
            let kind = kinds.iter().position(|it| *it == kind).unwrap_or(0);
            kind * lengths.len() + of % lengths.len()
        };
        let mut add = |kind: Kind, percent: usize| {
            let count = SCHEDULE * percent / 100;
            mix.schedule.extend((0..count).map(|i| place(kind, i)));
        };
        for attack in &made.attacks {
            add(Kind::Attack(attack.kind), attack.percent.into());
        }
        // Of each datagram, the second half comes besides.
        add(Kind::First, usize::from(made.fragments) / 2);
        let left = SCHEDULE - mix.schedule.len() - SCHEDULE * usize::from(made.fragments) / 200;
        mix.schedule.extend((0..left).map(|i| place(Kind::Goes, i)));
        mix.shuffle();
        mix
    }

    /// Fisher and Yates'.
    fn shuffle(&mut self) {
        for last in (1..self.schedule.len()).rev() {
            let below = u32::try_from(last + 1).unwrap_or(u32::MAX);
            self.schedule.swap(last, self.random.below(below) as usize);
        }
    }

    /// Writes the next frame into `room`, which is asked for its bytes. True: it has to come back.
    #[inline]
    pub fn write<'b>(
        &mut self,
        stamp: [u8; STAMP_BYTES],
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        if let Some((place, flow)) = self.half.take() {
            return self.fill(place, flow, stamp, room);
        }
        let place = self.schedule[self.next];
        self.next = if self.next + 1 == self.schedule.len() { 0 } else { self.next + 1 };
        let is_attack = !self.templates[self.template(place, 0)].is_stamped;
        let number = if is_attack {
            self.strangers = (self.strangers + 1) | STRANGERS;
            self.strangers
        } else {
            self.first_flow.wrapping_add(self.random.below(self.flows)) & !STRANGERS
        };
        self.fill(place, number, stamp, room)
    }

    /// Writes the first frame of flow `number`, counted from the first that there is.
    pub fn write_beginning<'b>(
        &self,
        number: u32,
        stamp: [u8; STAMP_BYTES],
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) {
        let flow = self.first_flow.wrapping_add(number) & !STRANGERS;
        if let Some(bytes) = room(self.templates[self.template(0, flow)].bytes.len()) {
            self.templates[self.template(0, flow)].write(flow, 0, stamp, bytes);
        }
    }

    /// A flow ends, and another begins, whose first frame this is.
    #[inline]
    pub fn write_new<'b>(
        &mut self,
        stamp: [u8; STAMP_BYTES],
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) {
        self.first_flow = self.first_flow.wrapping_add(1) & !STRANGERS;
        self.write_beginning(self.flows - 1, stamp, room);
    }

    /// Flows at a time.
    #[must_use]
    pub fn flows(&self) -> u32 {
        self.flows
    }

    #[inline]
    fn fill<'b>(
        &mut self,
        place: usize,
        number: u32,
        stamp: [u8; STAMP_BYTES],
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        let template = &self.templates[self.template(place, number)];
        if template.is_first {
            self.datagrams = self.datagrams.wrapping_add(1);
            self.half = Some((place + self.lengths, number));
        }
        if let Some(bytes) = room(template.bytes.len()) {
            template.write(number, self.datagrams, stamp, bytes);
        }
        template.is_stamped
    }

    /// The template of a flow.
    #[inline]
    fn template(&self, place: usize, flow: u32) -> usize {
        let (service, turn) = (flow % self.services, flow / self.services % 100);
        let is_ipv6 = turn < u32::from(self.ipv6);
        (place * self.services as usize + service as usize) * 2 + usize::from(is_ipv6)
    }
}

/// A frame of client 0.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    /// The last three bytes of the client's address.
    address_at: usize,
    /// Its port, if it is in this frame.
    port_at: Option<usize>,
    /// The checksums of IPv4's header, and of the transport's: where they are, and the sum of what is the
    /// same for every client.
    ip_checksum: Option<(usize, Sum)>,
    checksum: Option<(usize, Sum)>,
    /// The datagram's number is in the IP header.
    is_fragment: bool,
    /// The rest of its datagram follows.
    is_first: bool,
    /// It has to come back.
    is_stamped: bool,
}

impl Template {
    fn new(
        kind: Kind,
        protocol: Protocol,
        (service, is_ipv6): (u32, bool),
        length: u16,
        device: MacAddr,
    ) -> Self {
        let mut flow = to_vip(address_bytes(vip(service, is_ipv6)), 0);
        let protocol = match kind {
            Kind::Attack(AttackKind::Syn) => TCP,
            Kind::Attack(AttackKind::Stray) => {
                flow.ports[1] = STRAY_PORT;
                UDP
            }
            _ if protocol == Protocol::Udp => UDP,
            _ => TCP,
        };
        let (header, checksum) =
            if protocol == TCP { (20, tcp::CHECKSUM.start) } else { (8, udp::CHECKSUM.start) };
        let ip = ETHERNET + if is_ipv6 { 40 } else { 20 };
        let least = ip + header + STAMP_BYTES;
        let whole = usize::from(length).saturating_sub(FCS).max(least) - ip;
        let l4 = |len: usize| {
            let mut l4 = vec![0; len];
            match (protocol, kind) {
                (TCP, Kind::Begins | Kind::Attack(AttackKind::Syn)) => {
                    segment(&mut l4, &flow, tcp::SYN);
                }
                (TCP, _) => segment(&mut l4, &flow, tcp::ACK),
                _ => datagram(&mut l4, &flow),
            }
            l4
        };
        // Only IPv4's datagrams are cut.
        let half = whole.next_multiple_of(8);
        let (l4, place) = match kind {
            Kind::First if !is_ipv6 => (l4(2 * half)[..half].to_vec(), MORE),
            Kind::Rest | Kind::Attack(AttackKind::Fragments) if !is_ipv6 => {
                (l4(2 * half)[half..].to_vec(), u16::try_from(half / 8).unwrap_or(u16::MAX))
            }
            _ => (l4(whole), 0),
        };
        let has_ports = place == 0 || place == MORE;
        let mut bytes = vec![0; ip + l4.len()];
        let len = u16::try_from(l4.len()).unwrap_or(u16::MAX);
        headers(&mut bytes, device, &flow, (protocol, len));
        if place != 0 {
            cut(&mut bytes[ETHERNET..], 0, place);
        }
        bytes[ip..].copy_from_slice(&l4);
        // Without the client, whose bytes are put in later.
        let (address, port) = client(0);
        let address = Sum::default().plus(&in_words(address));
        let sum = |bytes: &[u8], at: usize, client: Sum| {
            let rest = Sum::default().plus(&[!bytes[at], !bytes[at + 1]]).minus(client);
            (at, Sum::default().plus(rest.partial().as_bytes()))
        };
        let with_port = address.plus(&port);
        Self {
            address_at: ETHERNET + if is_ipv6 { 21 } else { 13 },
            port_at: has_ports.then_some(ip),
            ip_checksum: (!is_ipv6).then(|| sum(&bytes, ETHERNET + 10, address)),
            checksum: has_ports.then(|| sum(&bytes, ip + checksum, with_port)),
            is_fragment: place != 0,
            is_first: place == MORE,
            is_stamped: !matches!(kind, Kind::Attack(_)),
            bytes,
        }
    }

    #[inline]
    fn write(&self, number: u32, datagram: u16, stamp: [u8; STAMP_BYTES], bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes);
        let (address, port) = client(number);
        bytes[self.address_at..self.address_at + 3].copy_from_slice(&address);
        let address = Sum::default().plus(&in_words(address));
        if let Some((at, sum)) = self.ip_checksum {
            let mut sum = sum.join(address);
            if self.is_fragment {
                let datagram = datagram.to_be_bytes();
                bytes[DATAGRAM].copy_from_slice(&datagram);
                sum = sum.plus(&datagram);
            }
            bytes[at..at + 2].copy_from_slice(sum.checksum().as_bytes());
        }
        if let Some(at) = self.port_at {
            bytes[at..at + 2].copy_from_slice(&port);
        }
        if let Some((at, sum)) = self.checksum {
            // Of UDP, zero would be none; of TCP, both are zero.
            let checksum = sum.join(address).plus(&port).checksum().never_zero();
            bytes[at..at + 2].copy_from_slice(checksum.as_bytes());
        }
        if self.is_stamped
            && let Some(end) = bytes.last_chunk_mut()
        {
            *end = stamp;
        }
    }
}

/// The last three bytes of an address, as words of it.
#[inline]
fn in_words([a, b, c]: [u8; 3]) -> [u8; 4] {
    [0, a, b, c]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use lb_config::profile::{Attack, Profile, Traffic};
    use lb_core::burst::{Burst, Fate};
    use lb_core::sim::SimFrame;
    use lb_core::stage::parse::parse;
    use lb_core::tables::next_hop::{Port, PortId};
    use lb_core::tuple::mapped;

    use super::*;
    use crate::stamp::{stamp, stamped};

    const DEVICE: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const TIME: u32 = 0x1234_5678;

    fn made(text: &str) -> Made {
        match Profile::parse("test", text).unwrap().traffic {
            Traffic::Made(made) => made,
            Traffic::Captured(_) => panic!("{text}"),
        }
    }

    /// The next frame, and whether it has to come back.
    fn frame(mix: &mut Mix) -> (Vec<u8>, bool) {
        let mut bytes = vec![0xaa; 2048];
        let mut len = 0;
        let counts = mix.write(stamp(TIME), |wanted| {
            len = wanted;
            Some(&mut bytes[..wanted])
        });
        bytes.truncate(len);
        (bytes, counts)
    }

    /// Every frame is what lb-core and etherparse take for whole and sound.
    #[test]
    fn frames_are_sound() {
        for text in [
            "",
            "protocol = 'udp'\nipv6 = '50%'\nsizes = ['imix']",
            "ipv6 = '100%'\nsizes = [1518]\nservices = 3",
        ] {
            let made = made(text);
            let services = if text.contains("services") { 3 } else { 1 };
            let mut mix = Mix::new(&made, made.sizes[0], services, DEVICE);
            let mut to = BTreeSet::new();
            for number in 0..3000 {
                let (bytes, counts) = frame(&mut mix);
                assert!(counts && stamped(&bytes) == Some(TIME));
                to.insert(sound(&bytes, &format!("{text}: {number}")));
            }
            let families = if made.ipv6 == 50 { 2 } else { 1 };
            assert_eq!(to.len(), services as usize * families, "{text}: {to:?}");
        }
    }

    /// Returns the destination.
    fn sound(bytes: &[u8], what: &str) -> Vec<u8> {
        let packet = etherparse::PacketHeaders::from_ethernet_slice(bytes).expect(what);
        let (ip, l4) = (packet.net.expect(what), packet.transport.expect(what));
        let payload = packet.payload.slice();
        let destination = match &ip {
            etherparse::NetHeaders::Ipv4(ip, _) => {
                assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "{what}");
                let (given, right) = match &l4 {
                    etherparse::TransportHeader::Tcp(tcp) => {
                        (tcp.checksum, tcp.calc_checksum_ipv4(ip, payload))
                    }
                    etherparse::TransportHeader::Udp(udp) => {
                        (udp.checksum, udp.calc_checksum_ipv4(ip, payload))
                    }
                    other => panic!("{what}: {other:?}"),
                };
                assert_eq!(given % u16::MAX, right.expect(what) % u16::MAX, "{what}");
                ip.destination.to_vec()
            }
            etherparse::NetHeaders::Ipv6(ip, _) => {
                let (given, right) = match &l4 {
                    etherparse::TransportHeader::Tcp(tcp) => {
                        (tcp.checksum, tcp.calc_checksum_ipv6(ip, payload))
                    }
                    etherparse::TransportHeader::Udp(udp) => {
                        (udp.checksum, udp.calc_checksum_ipv6(ip, payload))
                    }
                    other => panic!("{what}: {other:?}"),
                };
                assert_eq!(given % u16::MAX, right.expect(what) % u16::MAX, "{what}");
                ip.destination.to_vec()
            }
            arp @ etherparse::NetHeaders::Arp(_) => panic!("{what}: {arp:?}"),
        };
        let port = Port {
            name: "bench0".into(),
            mac: DEVICE,
            mtu: 1600,
            addresses: Vec::new(),
            kernel: false,
            udp_checksums: false,
        };
        let mut burst = Burst::default();
        burst.refill(PortId(0), |into| into.push(SimFrame::new(bytes)));
        parse(&mut burst, &port);
        burst.take(|_, _, meta, fate| {
            assert!(!matches!(fate, Fate::Exit(_)), "{what}: {fate:?}");
            let expect = <[u8; 4]>::try_from(&destination[..]).map(mapped);
            let expect = expect.unwrap_or_else(|_| destination[..].try_into().unwrap());
            assert_eq!(meta.tuple.dst, expect, "{what}");
        });
        destination
    }

    #[test]
    fn lengths_are_as_asked_for() {
        for (text, expect) in [
            ("sizes = [64]", vec![60]),
            ("sizes = [512]", vec![508]),
            ("sizes = [64]\nipv6 = '100%'", vec![80]), // 14 + 40 + 20, and a stamp
            ("sizes = ['imix']", vec![60, 590, 1514]),
        ] {
            let made = made(text);
            let mut mix = Mix::new(&made, made.sizes[0], 1, DEVICE);
            let mut counts = BTreeMap::new();
            for _ in 0..SCHEDULE {
                *counts.entry(frame(&mut mix).0.len()).or_insert(0) += 1;
            }
            assert_eq!(counts.keys().copied().collect::<Vec<_>>(), expect, "{text}");
            if expect.len() == 3 {
                assert_eq!(counts.into_values().collect::<Vec<_>>(), [700, 400, 100]);
            }
        }
    }

    #[test]
    fn flows_are_as_many_as_asked_for_and_others_follow() {
        let made = made("flows = 50");
        let mut mix = Mix::new(&made, Size::Bytes(64), 1, DEVICE);
        let clients = |mix: &mut Mix| -> BTreeSet<Vec<u8>> {
            (0..5000).map(|_| frame(mix).0[26..36].to_vec()).collect()
        };
        let before = clients(&mut mix);
        assert_eq!(before.len(), 50);
        let mut begun = vec![0; 60];
        for _ in 0..10 {
            mix.write_new(stamp(TIME), |_| Some(&mut begun));
            assert_eq!(begun[47], tcp::SYN);
            assert_eq!(stamped(&begun), Some(TIME));
        }
        let after = clients(&mut mix);
        assert_eq!((after.len(), after.intersection(&before).count()), (50, 40));
        assert!(after.contains(&begun[26..36]));
    }

    /// Halves of a datagram follow each other, and put together they are sound.
    #[test]
    fn fragments_are_halves() {
        let made = made("fragments = '20%'\nprotocol = 'udp'\nsizes = [512]");
        let mut mix = Mix::new(&made, made.sizes[0], 1, DEVICE);
        let mut halves = 0;
        let mut first: Option<Vec<u8>> = None;
        for number in 0..SCHEDULE {
            let (bytes, counts) = frame(&mut mix);
            assert!(counts && stamped(&bytes) == Some(TIME));
            let place = u16::from_be_bytes([bytes[20], bytes[21]]);
            match (first.take(), place) {
                (None, 0) => drop(sound(&bytes, "whole")),
                (None, MORE) => first = Some(bytes),
                (Some(first), offset) if usize::from(offset) * 8 == first.len() - 34 => {
                    assert_eq!(bytes[18..20], first[18..20], "one datagram");
                    assert_eq!(bytes[26..34], first[26..34], "one client");
                    let mut whole = [&first[..], &bytes[34..]].concat();
                    let len = u16::try_from(whole.len() - 14).unwrap();
                    whole[16..18].copy_from_slice(&len.to_be_bytes());
                    cut(&mut whole[14..], 0, 0);
                    sound(&whole, &format!("{number}"));
                    halves += 2;
                }
                other => panic!("{number}: {other:?}"),
            }
        }
        assert!((220..=260).contains(&halves), "{halves}");
    }

    #[test]
    fn attacks_have_their_share_and_no_stamp() {
        let attack = |kind, percent| Attack { kind, percent };
        let attacks = vec![
            attack(AttackKind::Syn, 30),
            attack(AttackKind::Fragments, 10),
            attack(AttackKind::Stray, 10),
        ];
        let made = Made { attacks, ..made("protocol = 'udp'") };
        let mut mix = Mix::new(&made, Size::Bytes(64), 1, DEVICE);
        let (mut kinds, mut clients) = (BTreeMap::new(), BTreeSet::new());
        for _ in 0..SCHEDULE {
            let (bytes, counts) = frame(&mut mix);
            let place = u16::from_be_bytes([bytes[20], bytes[21]]);
            let kind = match (bytes[23], place) {
                (TCP, 0) if bytes[47] == tcp::SYN => "syn",
                (UDP, 0) if bytes[36..38] == [0, 9] => "stray",
                (UDP, 0) => "flow",
                (UDP, 1..MORE) => "fragment",
                other => panic!("{other:?}"),
            };
            assert_eq!(counts, kind == "flow");
            assert_eq!(stamped(&bytes).is_some(), counts);
            if kind == "syn" {
                assert!(clients.insert(bytes[26..36].to_vec()), "each of another client");
            }
            *kinds.entry(kind).or_insert(0) += 1;
        }
        let expect = [("flow", 600), ("fragment", 120), ("stray", 120), ("syn", 360)];
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expect);
    }
}
