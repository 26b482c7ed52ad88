//! SCTP (RFC 9260): its checksum, and how an association begins.

use std::ops::Range;

use super::ports::SCTP_HEADER_BYTES;

/// Where the type of the first chunk lies in a packet (§3.1, §3.2).
pub const CHUNK_TYPE: usize = 12;
/// The chunk that opens an association, alone in its packet (§3.3.2).
pub const INIT: u8 = 1;
/// The chunk that ends an association at once (§3.3.7).
pub const ABORT: u8 = 6;
/// A chunk at the end of an association (§3.3.9).
pub const SHUTDOWN_ACK: u8 = 8;
/// The last chunk of an association (§3.3.13).
pub const SHUTDOWN_COMPLETE: u8 = 14;
/// Where the checksum lies in the common header: a `CRC32c` over all of the packet (RFC 9260 §6.8).
const CHECKSUM: Range<usize> = 8..12;
/// Where the first half of it lies.
pub const CHECKSUM_START: usize = CHECKSUM.start;

/// Lets `change` write into a packet, which has to be whole and keeps its length, and repairs its
/// checksum: it is as true or false afterwards as it was before. What the header is not all there of
/// is left as `change` makes it.
///
/// A CRC is linear: by how much it differs depends on what has been changed, and how far that is from
/// the end, alone; so the checksum need not be known to be true, nor be left out of the sum.
pub fn change(packet: &mut [u8], change: impl FnOnce(&mut [u8])) {
    let before = crc32c::crc32c(packet);
    change(packet);
    if packet.len() >= SCTP_HEADER_BYTES
        && let Some(checksum) = packet.get(CHECKSUM)
        && let Ok(checksum) = <[u8; 4]>::try_from(checksum)
    {
        // As it is sent: the lowest byte first (RFC 9260, Appendix A).
        let checksum = u32::from_le_bytes(checksum) ^ before ^ crc32c::crc32c(packet);
        if let Some(place) = packet.get_mut(CHECKSUM) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the polynomial, bit by bit (RFC 9260, Appendix A; reflected), of a packet without checksum.
    fn crc(packet: &[u8]) -> [u8; 4] {
        let mut crc = u32::MAX;
        for byte in packet {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
            }
        }
        (!crc).to_le_bytes()
    }

    /// The packet with a true checksum.
    pub(crate) fn with_checksum(mut packet: Vec<u8>) -> Vec<u8> {
        packet[CHECKSUM].fill(0);
        let sum = crc(&packet);
        packet[CHECKSUM].copy_from_slice(&sum);
        packet
    }

    /// RFC 3720, Appendix B.4, which RFC 3309 took the polynomial from.
    #[test]
    fn the_polynomial_is_the_right_one() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        for (bytes, expect) in [
            (vec![0; 32], [0xaa, 0x36, 0x91, 0x8a]),
            (vec![0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (rising, [0x4e, 0x79, 0xdd, 0x46]),
            (falling, [0x5c, 0xdb, 0x3f, 0x11]),
            (b"123456789".to_vec(), 0xe306_9283_u32.to_le_bytes()),
        ] {
            assert_eq!(crc(&bytes), expect);
            assert_eq!(crc32c::crc32c(&bytes).to_le_bytes(), expect);
        }
    }

    proptest! {
        #[test]
        fn a_changed_packet_is_as_true_as_it_was(
            packet in proptest::collection::vec(any::<u8>(), 12..300),
            ports: [u8; 4],
            error: [u8; 4],
        ) {
            let mut packet = with_checksum(packet);
            let flip = |packet: &mut Vec<u8>| {
                packet[CHECKSUM].iter_mut().zip(error).for_each(|(byte, bits)| *byte ^= bits);
            };
            flip(&mut packet);
            change(&mut packet, |packet| packet[..4].copy_from_slice(&ports));
            flip(&mut packet);
            prop_assert_eq!(&packet[..4], &ports);
            prop_assert_eq!(&packet, &with_checksum(packet.clone()));
        }
    }

    #[test]
    fn of_half_a_header_nothing_else_changes() {
        for len in 0..12 {
            let mut packet = vec![7; len];
            change(&mut packet, |packet| packet.iter_mut().take(4).for_each(|byte| *byte = 9));
            let expect: Vec<u8> = (0..len).map(|i| if i < 4 { 9 } else { 7 }).collect();
            assert_eq!(packet, expect);
        }
    }
}
