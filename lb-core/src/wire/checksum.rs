//! The Internet checksum (RFC 1071).
//!
//! The sum does not depend on byte order (RFC 1071 §2 B), so words are added as they lie in memory
//! and the checksum is stored as it comes out: no byte is ever swapped.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A checksum field, in the order of the wire.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Checksum([u8; 2]);

impl From<[u8; 2]> for Checksum {
    /// As it lies on the wire.
    fn from(bytes: [u8; 2]) -> Self {
        Self(bytes)
    }
}

impl Checksum {
    /// Not computed yet.
    pub const ZERO: Self = Self([0; 2]);

    /// The checksum over `bytes`; a last odd byte is padded with zero.
    ///
    /// Over bytes that hold their own true checksum it is [`Checksum::ZERO`].
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Sum::default().plus(bytes).checksum()
    }

    /// The checksum after `old` was replaced by `new` in what it covers; both begin at even offsets
    /// there, and are of even length.
    ///
    /// # Source
    /// RFC 1624 §3, equation 3.
    #[inline]
    #[must_use]
    pub fn replace(self, old: &[u8], new: &[u8]) -> Self {
        self.changed_by(Sum::default().plus(new).minus(Sum::default().plus(old)))
    }

    /// As [`Checksum::replace`]: `difference` is the sum of what is new, without that of what is old.
    #[inline]
    #[must_use]
    pub fn changed_by(self, difference: Sum) -> Self {
        let Self([a, b]) = self;
        difference.plus(&[!a, !b]).checksum()
    }

    /// As UDP writes it: zero means that there is none (RFC 768), so a sum of zero is written as its
    /// other form.
    #[inline]
    #[must_use]
    pub fn never_zero(self) -> Self {
        if self == Self::ZERO { Self([0xff; 2]) } else { self }
    }
}

/// A sum on its way to a [`Checksum`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`; all but the last that are added have to be of even length.
    #[inline]
    #[must_use]
    pub fn plus(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|&word| u64::from(u32::from_ne_bytes(word))).sum();
        let (pairs, odd) = rest.as_chunks::<2>();
        sum += pairs.iter().map(|&pair| u64::from(u16::from_ne_bytes(pair))).sum::<u64>();
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(self.0 + sum)
    }

    /// Adds what was summed up apart.
    #[inline]
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds what an IPv4 or IPv6 pseudo-header has: addresses, upper-layer length, protocol (RFC 768,
    /// RFC 8200 §8.1).
    #[inline]
    #[must_use]
    pub fn pseudo_header(self, src: &[u8], dst: &[u8], len: u16, protocol: u8) -> Self {
        self.plus(src).plus(dst).plus(&len.to_be_bytes()).plus(&[0, protocol])
    }

    /// Adds the complement of `other`; of its 48 bits, which is that of 16 when all is folded, because
    /// it is as many times all ones. No sum over a packet has more.
    #[inline]
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        const ALL_ONES: u64 = (1 << 48) - 1;
        Self(self.0 + (ALL_ONES - other.0))
    }

    /// Folded, but not complemented: what a NIC wants to find that adds the rest and complements.
    #[inline]
    #[must_use]
    pub fn partial(self) -> Checksum {
        let Checksum([a, b]) = self.checksum();
        Checksum([!a, !b])
    }

    /// Is it of bytes that hold their own true checksum? Then it is a multiple of all ones (of which folding
    /// leaves the remainder), but not nothing.
    ///
    /// # Source
    /// Granlund and Montgomery, *Division by Invariant Integers using Multiplication*, PLDI '94, §9: a
    /// multiple of an odd number is one times its inverse, and no other product is as small.
    #[inline]
    #[must_use]
    pub fn is_true(self) -> bool {
        const QUOTIENT_MAX: u64 = u64::MAX / 0xffff;
        const INVERSE: u64 = QUOTIENT_MAX.wrapping_neg();
        const { assert!(INVERSE.wrapping_mul(0xffff) == 1) };
        self.0 != 0 && self.0.wrapping_mul(INVERSE) <= QUOTIENT_MAX
    }

    /// Folds the carries in and complements (RFC 1071 §4.1).
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves are taken")]
    pub fn checksum(self) -> Checksum {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 32) as u32 + sum as u32;
        // Both halves are added in the upper one, with the carry of the lower.
        let sum = sum.wrapping_add(sum.rotate_left(16)) >> 16;
        Checksum((!(sum as u16)).to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // §3: the sum is ddf2, its complement 220d.
        assert_eq!(
            Checksum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            Checksum([0x22, 0x0d])
        );
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // §4: 0xdd2f after 0x5555 became 0x3285 is 0x0000.
        let old = Checksum([0xdd, 0x2f]);
        assert_eq!(old.replace(&[0x55, 0x55], &[0x32, 0x85]), Checksum([0x00, 0x00]));
    }

    proptest! {
        /// The definition, word by word in the order of the wire.
        #[test]
        fn agrees_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sum = 0_u64;
            for pair in bytes.chunks(2) {
                sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
            }
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            let folded = u16::try_from(sum).unwrap();
            prop_assert_eq!(Checksum::of(&bytes), Checksum((!folded).to_be_bytes()));
        }

        /// What is added in parts is what is added at once.
        #[test]
        fn sums_join(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..100) {
            let (front, back) = bytes.split_at((at * 2).min(bytes.len() & !1));
            prop_assert_eq!(Sum::default().plus(front).plus(back).checksum(), Checksum::of(&bytes));
        }

        /// A packet that is changed and whose checksum is repaired is as true as it was: sums over
        /// it, checksum included, are zero again.
        #[test]
        fn replacing_keeps_it_true(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..60),
            new: [u8; 4],
            at in 1_usize..10,
        ) {
            bytes[..2].fill(0);
            let sum = Checksum::of(&bytes);
            bytes[..2].copy_from_slice(sum.as_bytes());
            let at = (at * 2).min((bytes.len() - 4) & !1);
            let repaired = sum.replace(&bytes[at..at + 4], &new);
            bytes[at..at + 4].copy_from_slice(&new);
            bytes[..2].copy_from_slice(repaired.as_bytes());
            for flipped in [0, 1] {
                bytes[7] ^= flipped;
                let is_true = Sum::default().plus(&bytes).is_true();
                prop_assert_eq!(is_true, Checksum::of(&bytes) == Checksum::ZERO);
                bytes[7] ^= flipped;
            }
            // All bytes zero is the one case where the two forms of zero differ (RFC 1624 §3).
            prop_assert!(Checksum::of(&bytes) == Checksum::ZERO || bytes[2..].iter().all(|b| *b == 0));
        }
    }
}
