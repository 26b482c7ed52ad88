//! The flow hash: which slot a packet falls on.
//!
//! Keyed, so that nobody outside can aim flows at one backend; and the same on every machine and in
//! every release, so that balancers of a site agree. It is rapidhash v3 (nano), over
//!
//! * IPv4: source, destination (4 bytes each), source port, destination port (2 each), protocol (1),
//!   three zero bytes;
//! * IPv6: the same with 16 bytes an address,
//!
//! all in the order of the wire. With client affinity both ports are zero. The key's first half
//! (little-endian) makes the secrets, as `RapidSecrets::seed` does; the second half is the seed. The
//! tests have vectors.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use crate::model::HashKey;
use crate::tuple::Tuple;

/// A hash key, expanded.
#[derive(Clone, Copy)]
pub struct FlowHasher(RapidSecrets);

impl std::fmt::Debug for FlowHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlowHasher(…)") // a secret
    }
}

impl FlowHasher {
    /// Expands a key.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        let half = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| key.0[from + i]));
        Self(RapidSecrets { seed: half(8), secrets: RapidSecrets::seed(half(0)).secrets })
    }

    /// The hash of a flow; without its ports, if clients are kept together.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, tuple: &Tuple, with_ports: bool) -> u64 {
        let ports = if with_ports { u32::from_le_bytes(tuple.ports) } else { 0 };
        let tail = (u64::from(tuple.protocol) << 32 | u64::from(ports)).to_le_bytes();
        if tuple.is_ipv6 {
            let mut bytes = [0; 40];
            bytes[..16].copy_from_slice(&tuple.src);
            bytes[16..32].copy_from_slice(&tuple.dst);
            bytes[32..].copy_from_slice(&tail);
            rapidhash_v3_nano_inline::<true, true>(&bytes, &self.0)
        } else {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&tuple.src[12..]);
            bytes[4..8].copy_from_slice(&tuple.dst[12..]);
            bytes[8..].copy_from_slice(&tail);
            rapidhash_v3_nano_inline::<true, true>(&bytes, &self.0)
        }
    }
}

/// Maps a hash onto `0..n` by its high bits (Lemire, *Fast Random Integer Generation in an
/// Interval*, 2019, §2).
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the result is below n")]
pub fn reduce(hash: u64, n: u32) -> u32 {
    ((u128::from(hash) * u128::from(n)) >> 64) as u32
}

/// As [`reduce`], by the low bits: independent of what [`reduce`] chose.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the low half, and a result below n")]
pub fn reduce_low(hash: u64, n: u32) -> u32 {
    ((u64::from(hash as u32) * u64::from(n)) >> 32) as u32
}

/// Two places below `n` for a hash, independent of what [`reduce`] chose.
#[inline]
#[must_use]
pub fn two_choices(hash: u64, n: u32) -> [u32; 2] {
    // Fibonacci hashing: other bits for the other place.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    [hash, hash.wrapping_mul(ODD) >> 32].map(|hash| reduce_low(hash, n))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On all machines, in all releases: if this fails, balancers of a site would disagree while
    /// one of them is upgraded.
    #[test]
    fn hashes_are_the_same_in_every_release() {
        let hasher = FlowHasher::new(HashKey(*b"weir test vector"));
        let tuple = |src: &str, dst: &str| {
            Tuple::new(src.parse().unwrap(), dst.parse().unwrap(), 40_000, 80, 6)
        };
        let v4 = tuple("198.51.100.7", "10.0.0.100");
        let v6 = tuple("2001:db8::7", "fd00::100");
        for (tuple, with_ports, expect) in [
            (&v4, true, 18_253_214_449_191_798_085),
            (&v4, false, 11_622_113_520_215_061_198),
            (&v6, true, 6_587_173_234_263_165_396),
            (&v6, false, 12_825_226_777_488_794_591),
        ] {
            assert_eq!(hasher.hash(tuple, with_ports), expect, "{tuple:?} {with_ports}");
        }
    }

    #[test]
    fn every_part_counts() {
        let hasher = FlowHasher::new(HashKey([7; 16]));
        let tuple = |src: &str, sport, dport, protocol| {
            Tuple::new(src.parse().unwrap(), "10.0.0.100".parse().unwrap(), sport, dport, protocol)
        };
        let changed = [
            tuple("198.51.100.7", 40_000, 80, 6),
            tuple("198.51.100.8", 40_000, 80, 6),
            tuple("198.51.100.7", 40_001, 80, 6),
            tuple("198.51.100.7", 40_000, 81, 6),
            tuple("198.51.100.7", 40_000, 80, 17),
        ]
        .map(|tuple| hasher.hash(&tuple, true));
        let distinct: std::collections::BTreeSet<u64> = changed.into_iter().collect();
        assert_eq!(distinct.len(), changed.len());
        let other = FlowHasher::new(HashKey([8; 16]));
        assert_ne!(other.hash(&tuple("198.51.100.7", 40_000, 80, 6), true), changed[0]);
    }

    #[test]
    fn reduction_stays_below() {
        assert_eq!((reduce(0, 7), reduce(u64::MAX, 7)), (0, 6));
        assert_eq!((reduce_low(0, 7), reduce_low(u64::MAX, 7)), (0, 6));
        assert_eq!(reduce_low(0xffff_ffff_0000_0000, 7), 0);
    }
}
