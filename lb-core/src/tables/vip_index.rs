//! Destination → service: an open-addressing hash table with exact keys.

use std::net::IpAddr;

use crate::tuple::{Tuple, address_bytes};

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    address: [u8; 16],
    port: u16,
    protocol: u8,
    is_ipv6: bool,
}

impl Key {
    /// Not keyed: the entries are the operator's, and a packet can only look them up.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "both halves of the product are used")]
    fn hash(&self) -> u64 {
        const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
        let (halves, _) = self.address.as_chunks::<8>();
        let [high, low] = [halves[0], halves[1]].map(u64::from_le_bytes);
        let rest = u64::from(self.port) << 8 | u64::from(self.protocol);
        let product = u128::from(low ^ rest.wrapping_mul(ODD[1])) * u128::from(high ^ ODD[0]);
        (product >> 64) as u64 ^ product as u64
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    service: u32,
}

/// The services' addresses. At most half full, so that a miss ends soon.
#[derive(Clone, Debug)]
pub struct VipIndex {
    /// A power of two.
    entries: Box<[Option<Entry>]>,
}

/// Stands for "some port" in the entries that [`VipIndex::has_address`] finds: no service has it.
const SOME_PORT: u16 = 0;

impl VipIndex {
    /// Builds the index of `(address, port, protocol)` → place in the list.
    #[must_use]
    pub fn new(vips: impl ExactSizeIterator<Item = (IpAddr, u16, u8)>) -> Self {
        let capacity = (vips.len() * 4).next_power_of_two().max(8);
        let mut index = Self { entries: vec![None; capacity].into_boxed_slice() };
        for ((address, port, protocol), service) in vips.zip(0..) {
            let key = |port| Key {
                address: address_bytes(address),
                port,
                protocol,
                is_ipv6: address.is_ipv6(),
            };
            index.insert(Entry { key: key(port), service });
            index.insert(Entry { key: key(SOME_PORT), service });
        }
        index
    }

    fn insert(&mut self, entry: Entry) {
        let mask = self.entries.len() - 1;
        let mut at = Self::home(entry.key.hash(), mask);
        while let Some(other) = self.entries[at] {
            if other.key == entry.key {
                return; // another service of this address was first: only SOME_PORT gets here
            }
            at = (at + 1) & mask;
        }
        self.entries[at] = Some(entry);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    fn home(hash: u64, mask: usize) -> usize {
        hash as usize & mask
    }

    /// The service that this packet is for.
    #[inline]
    #[must_use]
    pub fn lookup(&self, tuple: &Tuple) -> Option<u32> {
        let port = tuple.dst_port();
        if port == SOME_PORT {
            return None; // a fragment, or port 0: what is there is `has_address`'s
        }
        self.find(&Key {
            address: tuple.dst,
            port,
            protocol: tuple.protocol,
            is_ipv6: tuple.is_ipv6,
        })
    }

    /// Is there a service at this destination address, for this protocol, whatever the port?
    #[must_use]
    pub fn has_address(&self, tuple: &Tuple) -> bool {
        let key = Key {
            address: tuple.dst,
            port: SOME_PORT,
            protocol: tuple.protocol,
            is_ipv6: tuple.is_ipv6,
        };
        self.find(&key).is_some()
    }

    #[inline]
    fn find(&self, key: &Key) -> Option<u32> {
        let mask = self.entries.len() - 1;
        let mut at = Self::home(key.hash(), mask);
        while let Some(entry) = &self.entries[at] {
            if entry.key == *key {
                return Some(entry.service);
            }
            at = (at + 1) & mask;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The index finds what a map finds.
        #[test]
        fn agrees_with_a_map(
            vips in proptest::collection::btree_set((0_u8..20, 1_u16..5, prop::bool::ANY), 0..60),
            packets in proptest::collection::vec((0_u8..24, 0_u16..6, prop::bool::ANY), 200),
        ) {
            let address = |host: u8| -> IpAddr {
                if host.is_multiple_of(2) { [10, 0, 0, host].into() } else { [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into() }
            };
            let protocol = |tcp| if tcp { 6 } else { 17 };
            let list: Vec<_> = vips.iter().map(|&(h, p, t)| (address(h), p, protocol(t))).collect();
            let map: BTreeMap<_, u32> = list.iter().copied().zip(0..).collect();
            let index = VipIndex::new(list.iter().copied());
            for (host, port, tcp) in packets {
                let dst = address(host);
                let tuple = Tuple::new(dst, dst, 1, port, protocol(tcp));
                let expect = map.get(&(dst, port, protocol(tcp))).copied();
                prop_assert_eq!(index.lookup(&tuple), expect);
                let any = map.keys().any(|&(a, _, t)| (a, t) == (dst, protocol(tcp)));
                prop_assert_eq!(index.has_address(&tuple), any);
            }
        }
    }

    #[test]
    fn a_mapped_address_is_not_the_ipv4_one() {
        let v4: IpAddr = [10, 0, 0, 1].into();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let index = VipIndex::new([(v4, 80, 6)].into_iter());
        assert_eq!(index.lookup(&Tuple::new(v4, v4, 1, 80, 6)), Some(0));
        assert_eq!(index.lookup(&Tuple::new(mapped, mapped, 1, 80, 6)), None);
    }
}
