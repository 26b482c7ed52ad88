//! Destination → service: hash tables with exact keys, one for each kind of VIP that there is.
//!
//! A *shape* is a kind of key: which ports (one, a range, any), which prefix length, with or without
//! the protocol. A packet is looked up in one shape after the other, the most specific first, until
//! it is found (tuple space search: Srinivasan, Suri, Varghese, SIGCOMM '99). Most configurations
//! have one shape a family: single ports of single addresses.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{PortRange, Vip};
use crate::tuple::{Tuple, address_bytes};

/// How many ports a shape's VIPs have; the most specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PortKind {
    One,
    Range,
    Any,
}

/// Orders by precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Specificity {
    ports: PortKind,
    prefix_len: Reverse<u8>,
    is_any_protocol: bool,
}

/// What of a packet is looked up for one kind of VIP. Masks, so that no branch is needed.
#[derive(Clone, Copy, Debug)]
struct Shape {
    mask: Key,
    /// Part of the key, above the packet's: two shapes have no key in common.
    number: u64,
    ports: PortKind,
}

impl Shape {
    /// Of no VIP.
    const NONE: Self = Self {
        mask: Key { address: [0; 2], rest: 0 },
        number: u64::MAX >> 1,
        ports: PortKind::Range,
    };

    /// The key of a packet with this address, port and protocol.
    #[inline(always)]
    fn key(&self, address: &[u8; 16], [high, low]: [u8; 2], protocol: u8) -> Key {
        let (halves, _) = address.as_chunks::<8>();
        let [first, second] = [halves[0], halves[1]].map(u64::from_ne_bytes);
        let rest = u64::from(u32::from_le_bytes([high, low, protocol, 0]));
        Key {
            address: [first & self.mask.address[0], second & self.mask.address[1]],
            rest: rest & self.mask.rest | self.number,
        }
    }
}

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    /// As it lies in memory.
    address: [u64; 2],
    /// From the lowest bit on: the port as it lies in memory, protocol, shape.
    rest: u64,
}

impl Key {
    /// No packet's, and no VIP's.
    const NONE: Self = Self { address: [0; 2], rest: u64::MAX };
    const PORT: u64 = 0xffff;
    const PROTOCOL: u64 = 0xff << 16;
    /// The lowest bit of the shape.
    const SHAPE: u64 = 1 << 24;

    fn without_port(self) -> Self {
        Self { rest: self.rest & !Self::PORT, ..self }
    }

    fn has_port(self) -> bool {
        self.rest & Self::PORT != 0
    }

    /// Not keyed: the entries are the operator's, and a packet can only look them up.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "both halves of the product are used")]
    fn hash(&self) -> u64 {
        const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let [first, second] = self.address;
        let rest = self.rest.wrapping_mul(ODD[1]);
        let product = u128::from(first ^ ODD[0]) * u128::from(second ^ rest);
        (product >> 64) as u64 ^ product as u64
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Entry {
    /// [`Key::NONE`]: there is no entry here.
    key: Key,
    /// Of a single port or any: the service. Of ranges: where they begin in `ranges`.
    value: u32,
}

/// The place of no service.
const NOWHERE: u32 = u32::MAX;

#[inline]
fn found(place: u32) -> Option<u32> {
    (place != NOWHERE).then_some(place)
}

/// A service's ports, where they are a range.
#[derive(Clone, Copy, Debug)]
struct Range {
    ports: PortRange,
    service: u32,
    /// Of the same address and protocol, there is one with higher ports behind this.
    has_next: bool,
}

/// The services' addresses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VipIndex {
    /// IPv4's, then IPv6's: the first of `shapes`, if it is none of ranges.
    first: [Shape; 2],
    /// Is that all there is?
    first_is_all: [bool; 2],
    /// IPv4's, then IPv6's, by precedence.
    shapes: [Box<[Shape]>; 2],
    /// A power of two, of which at most a 16th is taken: what is not at home is not foreseen, and among many
    /// services nothing would be asked for while that is waited for.
    entries: Arc<[Entry]>,
    /// Which addresses and protocols there are single ports of: their keys, without the port.
    some_port: Arc<[Entry]>,
    ranges: Arc<[Range]>,
}

/// What is known of a packet's service without its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByAddress {
    /// No service can be meant.
    None,
    /// This one, whatever the ports are.
    Service(u32),
    /// The ports decide.
    NeedsPorts,
}

impl ByAddress {
    /// What is known of the source of a packet: that it is one of a service's stations, and never
    /// more, because its own service says nothing of the ports that have to be put back.
    #[must_use]
    pub fn of_a_station(self) -> Self {
        if self == Self::None { Self::None } else { Self::NeedsPorts }
    }
}

impl VipIndex {
    /// Are both one?
    #[cfg(test)]
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries)
    }

    /// Builds the index of VIP → place in the list. VIPs are distinct, and ranges of the same
    /// address and protocol do not overlap.
    #[must_use]
    pub fn new(vips: impl Iterator<Item = Vip>) -> Self {
        let mut kinds: BTreeMap<(bool, Specificity), Vec<(Vip, u32)>> = BTreeMap::new();
        for (vip, service) in vips.zip(0..) {
            let is_ipv6 = matches!(vip.address, IpNet::V6(_));
            kinds.entry((is_ipv6, specificity(&vip))).or_default().push((vip, service));
        }
        let mut shapes = [Vec::new(), Vec::new()];
        let mut entries = Vec::new();
        let mut ranges = Vec::new();
        for (((is_ipv6, specificity), mut vips), number) in kinds.into_iter().zip(0..) {
            let ports = specificity.ports;
            let port = if ports == PortKind::One { Key::PORT } else { 0 };
            let protocol = if specificity.is_any_protocol { 0 } else { Key::PROTOCOL };
            let address = mask(is_ipv6, specificity.prefix_len.0);
            let mask = Key { address, rest: port | protocol };
            let shape = Shape { mask, number: number * Key::SHAPE, ports };
            shapes[usize::from(is_ipv6)].push(shape);
            if ports == PortKind::Range {
                vips.sort_unstable_by_key(|(vip, _)| (vip.address, vip.protocol, vip.ports));
                add_ranges(&shape, &vips, &mut entries, &mut ranges);
            } else {
                let entry = |&(vip, value): &(Vip, u32)| Entry { key: key(&shape, &vip), value };
                entries.extend(vips.iter().map(entry));
            }
        }
        let first = shapes.each_ref().map(|shapes| match shapes[..] {
            [first, ..] if first.ports != PortKind::Range => first,
            _ => Shape::NONE,
        });
        let is_all = |shapes: &Vec<Shape>| {
            shapes.is_empty() || shapes.len() == 1 && shapes[0].ports != PortKind::Range
        };
        let of_one_port = entries.iter().filter(|entry| entry.key.has_port());
        let some_port = of_one_port.map(|entry| Entry { key: entry.key.without_port(), ..*entry });
        Self {
            first,
            first_is_all: shapes.each_ref().map(is_all),
            shapes: shapes.map(Into::into),
            some_port: hash_table(&some_port.collect::<Vec<_>>(), 4),
            entries: hash_table(&entries, 16),
            ranges: ranges.into(),
        }
    }

    /// The service that this packet is for.
    #[inline]
    #[must_use]
    pub fn lookup(&self, tuple: &Tuple) -> Option<u32> {
        found(self.place(tuple))
    }

    /// As [`VipIndex::lookup`], by where the packet comes from.
    #[inline]
    #[must_use]
    pub fn lookup_source(&self, tuple: &Tuple) -> Option<u32> {
        let [high, low, ..] = tuple.ports;
        found(self.place_of_end(tuple, &tuple.src, [high, low]))
    }

    /// As [`VipIndex::lookup`]; if there is none, a place that no list has. Who looks there next asks one question,
    /// not two.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, tuple: &Tuple) -> u32 {
        let [.., high, low] = tuple.ports;
        self.place_of_end(tuple, &tuple.dst, [high, low])
    }

    #[inline(always)]
    fn place_of_end(&self, tuple: &Tuple, address: &[u8; 16], port: [u8; 2]) -> u32 {
        // Most VIPs are of the most specific kind that there is, and most entries are at home.
        let family = usize::from(tuple.is_ipv6);
        let shape = &self.first[family];
        let key = shape.key(address, port, tuple.protocol);
        let entry = &self.entries[home(&key, self.entries.len() - 1)];
        if entry.key == key {
            return entry.value;
        }
        if entry.key == Key::NONE && self.first_is_all[family] {
            return NOWHERE;
        }
        self.search(tuple, address, port).unwrap_or(NOWHERE)
    }

    #[cold]
    fn search(&self, tuple: &Tuple, address: &[u8; 16], port: [u8; 2]) -> Option<u32> {
        for shape in &self.shapes[usize::from(tuple.is_ipv6)] {
            if let Some(value) = find(&self.entries, &shape.key(address, port, tuple.protocol)) {
                if shape.ports != PortKind::Range {
                    return Some(value);
                }
                if let Some(service) = self.in_ranges(value, u16::from_be_bytes(port)) {
                    return Some(service);
                }
            }
        }
        None
    }

    /// As [`VipIndex::lookup`], of a packet whose ports are not known.
    #[must_use]
    pub fn by_address(&self, tuple: &Tuple) -> ByAddress {
        let mut found = ByAddress::None;
        let key = |shape: &Shape| shape.key(&tuple.dst, [0; 2], tuple.protocol);
        for shape in &self.shapes[usize::from(tuple.is_ipv6)] {
            match shape.ports {
                PortKind::One if find(&self.some_port, &key(shape)).is_some() => {
                    return ByAddress::NeedsPorts;
                }
                PortKind::Range if find(&self.entries, &key(shape)).is_some() => {
                    return ByAddress::NeedsPorts;
                }
                PortKind::Any if found == ByAddress::None => {
                    let service = find(&self.entries, &key(shape));
                    found = service.map_or(ByAddress::None, ByAddress::Service);
                }
                _ => {}
            }
        }
        found
    }

    fn in_ranges(&self, first: u32, port: u16) -> Option<u32> {
        for range in self.ranges.get(first as usize..)? {
            if (range.ports.first()..=range.ports.last()).contains(&port) {
                return Some(range.service);
            }
            if !range.has_next {
                break;
            }
        }
        None
    }
}

#[inline]
fn find(entries: &[Entry], key: &Key) -> Option<u32> {
    let entry = &entries[position(entries, key)];
    (entry.key == *key).then_some(entry.value)
}

/// Where the entry of a key is, or would be.
#[inline]
fn position(entries: &[Entry], key: &Key) -> usize {
    let mask = entries.len() - 1;
    let mut at = home(key, mask);
    while entries[at].key != *key && entries[at].key != Key::NONE {
        at = (at + 1) & mask;
    }
    at
}

fn specificity(vip: &Vip) -> Specificity {
    let ports = match vip.ports {
        PortRange::ANY => PortKind::Any,
        ports if ports.is_range() => PortKind::Range,
        _ => PortKind::One,
    };
    Specificity {
        ports,
        prefix_len: Reverse(vip.address.prefix_len()),
        is_any_protocol: vip.protocol.number().is_none(),
    }
}

/// The bits of an address that count, as they lie in memory.
fn mask(is_ipv6: bool, prefix_len: u8) -> [u64; 2] {
    let prefix_len = u32::from(prefix_len) + if is_ipv6 { 0 } else { 96 };
    let bytes = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0).to_be_bytes();
    let (halves, _) = bytes.as_chunks::<8>();
    [halves[0], halves[1]].map(u64::from_ne_bytes)
}

/// The key of the packets of a VIP.
fn key(shape: &Shape, vip: &Vip) -> Key {
    let port = vip.ports.single().unwrap_or(0).to_be_bytes();
    let protocol = vip.protocol.number().unwrap_or(0);
    shape.key(&address_bytes(vip.address.network()), port, protocol)
}

/// Adds the ranges of `vips`, which are sorted; one entry for each address and protocol.
fn add_ranges(
    shape: &Shape,
    vips: &[(Vip, u32)],
    entries: &mut Vec<Entry>,
    ranges: &mut Vec<Range>,
) {
    for same in vips.chunk_by(|(a, _), (b, _)| key(shape, a) == key(shape, b)) {
        let value = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        entries.extend(same.first().map(|(vip, _)| Entry { key: key(shape, vip), value }));
        ranges.extend(same.iter().enumerate().map(|(i, (vip, service))| Range {
            ports: vip.ports,
            service: *service,
            has_next: i + 1 < same.len(),
        }));
    }
}

/// Entries of a table, at least: so that few packets that are no service's find an entry of another key.
const CAPACITY_MIN: usize = 64;

/// The entries by their hashes, each key once, in a table with so many places for each.
fn hash_table(entries: &[Entry], places: usize) -> Arc<[Entry]> {
    let capacity = (entries.len() * places).next_power_of_two().max(CAPACITY_MIN);
    let mut table = vec![Entry { key: Key::NONE, value: 0 }; capacity];
    for entry in entries {
        let at = position(&table, &entry.key);
        if table[at].key == Key::NONE {
            table[at] = *entry;
        }
    }
    table.into()
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn home(key: &Key, mask: usize) -> usize {
    key.hash() as usize & mask
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;

    /// The rule, word by word.
    fn naive(vips: &[Vip], dst: IpAddr, port: Option<u16>, protocol: u8) -> Vec<u32> {
        let matches = |vip: &Vip| {
            vip.address.contains(&dst)
                && vip.protocol.number().is_none_or(|number| number == protocol)
                && port.is_none_or(|p| (vip.ports.first()..=vip.ports.last()).contains(&p))
        };
        let mut found: Vec<_> = (0..).zip(vips).filter(|(_, vip)| matches(vip)).collect();
        found.sort_by_key(|(_, vip)| specificity(vip));
        found.into_iter().map(|(place, _)| place).collect()
    }

    fn vip() -> impl Strategy<Value = Vip> {
        let protocol =
            prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Any]);
        let ports = prop::sample::select(vec![(1, 1), (2, 2), (3, 3), (1, 2), (3, 5), (0, 65_535)]);
        (0_u8..8, prop::sample::select(vec![32_u8, 31, 30, 24]), prop::bool::ANY, ports, protocol)
            .prop_map(|(host, len, is_ipv6, (first, last), protocol)| {
                let net: IpNet = if is_ipv6 {
                    format!("fd00::{host}/{}", len + 96).parse().unwrap()
                } else {
                    format!("10.0.0.{host}/{len}").parse().unwrap()
                };
                let is_any = protocol == Protocol::Any;
                let ports = PortRange::new(first, last).unwrap();
                let ports = if is_any { PortRange::ANY } else { ports };
                Vip { address: net.trunc(), ports, protocol }
            })
    }

    proptest! {
        /// The index finds what the rule finds.
        #[test]
        fn agrees_with_the_rule(
            vips in proptest::collection::btree_set(vip(), 0..40),
            packets in proptest::collection::vec((0_u8..10, 0_u16..7, 0_usize..4, prop::bool::ANY), 100),
        ) {
            let vips: Vec<Vip> = vips.into_iter().collect();
            let index = VipIndex::new(vips.iter().copied());
            for (host, port, protocol, is_ipv6) in packets {
                let protocol = [6, 17, 132, 50][protocol];
                let dst: IpAddr = if is_ipv6 { [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into() } else { [10, 0, 0, host].into() };
                let port = if protocol == 50 { 0 } else { port };
                let tuple = Tuple::new(dst, dst, 1, port, protocol);
                let expect = naive(&vips, dst, Some(port), protocol).first().copied();
                prop_assert_eq!(index.lookup(&tuple), expect);
                prop_assert_eq!(index.lookup_source(&tuple.reversed()), expect);
                let all = naive(&vips, dst, None, protocol);
                let expect = match all.first() {
                    None => ByAddress::None,
                    Some(&first) if vips[first as usize].ports == PortRange::ANY => ByAddress::Service(first),
                    Some(_) => ByAddress::NeedsPorts,
                };
                prop_assert_eq!(index.by_address(&tuple), expect);
            }
        }
    }

    #[test]
    fn a_mapped_address_is_not_the_ipv4_one() {
        let v4: IpAddr = [10, 0, 0, 1].into();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let vip = Vip { address: v4.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
        let index = VipIndex::new([vip].into_iter());
        assert_eq!(index.lookup(&Tuple::new(v4, v4, 1, 80, 6)), Some(0));
        assert_eq!(index.lookup(&Tuple::new(mapped, mapped, 1, 80, 6)), None);
    }
}
