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

impl Checksum {
    /// Not computed yet.
    pub const ZERO: Self = Self([0; 2]);

    /// The checksum over `bytes`; a last odd byte is padded with zero.
    ///
    /// Over bytes that hold their own true checksum it is [`Checksum::ZERO`].
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|&word| u64::from(u32::from_ne_bytes(word))).sum();
        let (pairs, odd) = rest.as_chunks::<2>();
        sum += pairs.iter().map(|&pair| u64::from(u16::from_ne_bytes(pair))).sum::<u64>();
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self::fold(sum)
    }

    /// Folds the carries in and complements (RFC 1071 §4.1).
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "after three folds 16 bits are left")]
    fn fold(sum: u64) -> Self {
        let sum = (sum >> 32) + (sum & 0xffff_ffff);
        let sum = (sum >> 32) + (sum & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        Self((!(sum as u16)).to_ne_bytes())
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
    }
}
