//! TCP (RFC 9293).

use std::ops::Range;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Checksum;

/// Bytes of a header with as many options as there may be.
pub const HEADER_BYTES_MAX: usize = 60;
/// Where the sequence number lies in the header.
pub const SEQUENCE: Range<usize> = 4..8;
/// Where the acknowledgement number lies in the header.
pub const ACKNOWLEDGEMENT: Range<usize> = 8..12;
/// Where the flags lie in the header.
pub const FLAGS: usize = 13;
/// The flag that ends what a side has to say.
pub const FIN: u8 = 0x01;
/// The flag that opens a connection.
pub const SYN: u8 = 0x02;
/// The flag that ends a connection at once.
pub const RST: u8 = 0x04;
/// The flag that says that the acknowledgement number is one.
pub const ACK: u8 = 0x10;
/// Where the checksum lies in the header.
pub const CHECKSUM: Range<usize> = 16..18;

/// A TCP header without its options, as it lies on the wire.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub src: U16,
    /// Destination port.
    pub dst: U16,
    /// Of the first byte of the segment.
    pub sequence: U32,
    /// Of the next byte that is expected.
    pub acknowledgement: U32,
    /// The header's length in words, in the high half.
    pub data_offset: u8,
    /// [`SYN`] and the others.
    pub flags: u8,
    /// Bytes that may be sent.
    pub window: U16,
    /// Over pseudo-header, header and payload.
    pub checksum: Checksum,
    /// Where urgent data ends.
    pub urgent: U16,
}

/// Changes the bytes at `place` of a segment to `new`, and repairs its checksum. `None`, and nothing
/// has changed, if the segment has not as many.
pub fn replace<const LEN: usize>(
    segment: &mut [u8],
    place: Range<usize>,
    new: [u8; LEN],
) -> Option<()> {
    const { assert!(LEN.is_multiple_of(2)) };
    let old = <[u8; LEN]>::read_from_bytes(segment.get(place.clone())?).ok()?;
    let is_odd = !place.start.is_multiple_of(2);
    let (header, _) = Tcp::mut_from_prefix(segment).ok()?;
    // At an odd place, bytes count the other way round (RFC 1071 §2 B).
    let in_words = |mut bytes: [u8; LEN]| {
        if is_odd {
            bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|word| word.reverse());
        }
        bytes
    };
    header.checksum = header.checksum.replace(&in_words(old), &in_words(new));
    segment.get_mut(place)?.copy_from_slice(&new);
    Some(())
}

/// Kinds of options (RFC 9293 §3.2): these two have no length.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Maximum segment size: kind, length 4, and the size.
const MSS: u8 = 2;
/// Selective acknowledgements: kind, length, and pairs of edges.
const SACK: u8 = 5;

/// Bytes of the header with its options; `None`, if the segment has fewer, or the header claims
/// fewer than it has.
#[must_use]
pub fn header_bytes(segment: &[u8]) -> Option<usize> {
    let words = usize::from(segment.get(12)? >> 4);
    (words >= 5 && words * 4 <= segment.len()).then_some(words * 4)
}

/// Where the maximum segment size lies in the segment, if its options have one; `None` as well if
/// they cannot be read up to there.
#[must_use]
pub fn mss(segment: &[u8]) -> Option<Range<usize>> {
    option(segment, MSS, |len| len == 2)
}

/// Where the edges of selective acknowledgements lie in the segment (RFC 2018 §3), 4 bytes each.
pub fn sack_edges(segment: &[u8]) -> impl Iterator<Item = Range<usize>> + use<> {
    let edges = option(segment, SACK, |_| true).unwrap_or_default();
    edges.clone().step_by(4).map(|at| at..at + 4).take_while(move |edge| edge.end <= edges.end)
}

/// Where the content of the first option of a kind, and of a length that it may have, lies in the
/// segment: receivers pass over others of the kind.
fn option(segment: &[u8], wanted: u8, is_right: impl Fn(usize) -> bool) -> Option<Range<usize>> {
    let end = header_bytes(segment)?;
    let mut at = 20;
    while at < end {
        let kind = *segment.get(at)?;
        let len = match kind {
            END_OF_OPTIONS => return None,
            NO_OPERATION => 1,
            _ => usize::from(*segment.get(at + 1)?),
        };
        if at + len > end || (len < 2 && kind != NO_OPERATION) {
            return None;
        }
        if kind == wanted && is_right(len - 2) {
            return Some(at + 2..at + len);
        }
        at += len;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(options: &[u8]) -> Vec<u8> {
        let words = 5 + u8::try_from(options.len() / 4).unwrap();
        [&[0; 12][..], &[words << 4, SYN], &[0; 6], options].concat()
    }

    #[test]
    fn options_are_walked_up_to_the_segment_size() {
        for (options, expect) in [
            (&[][..], None),
            (&[2, 4, 5, 180][..], Some(22..24)),
            (&[1, 1, 1, 1, 2, 4, 5, 180][..], Some(26..28)),
            (&[4, 2, 1, 1, 2, 4, 5, 180][..], Some(26..28)),
            (&[3, 3, 7, 2, 4, 5, 180, 0][..], Some(25..27)),
            (&[0, 1, 1, 1, 2, 4, 5, 180][..], None), // behind the end
            (&[3, 0, 0, 0][..], None),
            (&[3, 1, 2, 4][..], None),
            (&[2, 3, 5, 1][..], None),
            (&[1, 1, 2, 4][..], None), // cut off
            (&[1, 1, 1, 2][..], None),
            (&[8, 255, 0, 0][..], None),
        ] {
            assert_eq!(mss(&segment(options)), expect, "{options:?}");
        }
        let mut cut = segment(&[2, 4, 5, 180]);
        cut.pop();
        assert_eq!(mss(&cut), None);
        cut[12] = 0x40;
        assert_eq!(header_bytes(&cut), None);
    }
}
