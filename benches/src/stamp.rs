//! When a frame was sent, in the frame itself.
//!
//! A stamp is the last six bytes of a frame: a time, and what makes the sum of its three words zero. So
//! it changes no checksum over them, wherever they lie and whatever is put in front, and noise is taken for
//! one once in 65,535 frames.

/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 6;

/// The stamp of a time, of which only these bits are told.
#[must_use]
pub fn stamp(time: u32) -> [u8; STAMP_BYTES] {
    let [high, low] = [(time >> 16) as u16, time as u16];
    let words = [high, low, !sum(high, low)].map(u16::to_be_bytes);
    let mut stamp = [0; STAMP_BYTES];
    stamp.copy_from_slice(words.as_flattened());
    stamp
}

/// The time in a frame; `None`, if it has no stamp.
#[must_use]
pub fn stamped(frame: &[u8]) -> Option<u32> {
    let stamp: &[u8; STAMP_BYTES] = frame.last_chunk()?;
    let word = |place: usize| u16::from_be_bytes([stamp[place], stamp[place + 1]]);
    let (high, low) = (word(0), word(2));
    let is_stamp = sum(sum(high, low), word(4)) == u16::MAX;
    is_stamp.then(|| u32::from(high) << 16 | u32::from(low))
}

/// In ones' complement (RFC 1071); all ones are zero, and the only zero that a sum of others has.
fn sum(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use lb_core::wire::checksum::Checksum;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is read again, and no checksum over it changes: at even and at odd places.
        #[test]
        fn a_stamp_adds_nothing(time: u32, before in proptest::collection::vec(any::<u8>(), 1..100)) {
            let frame = |end: [u8; STAMP_BYTES]| [&before[..], &end].concat();
            let stamped_frame = frame(stamp(time));
            prop_assert_eq!(stamped(&stamped_frame), Some(time));
            let is_zero = before.iter().all(|&byte| byte == 0);
            if !is_zero { // which has two forms in ones' complement
                let sums = [stamped_frame, frame([0; STAMP_BYTES])].map(|it| Checksum::of(&it).never_zero());
                prop_assert_eq!(sums[0], sums[1]);
            }
        }
    }

    #[test]
    fn what_has_none_is_not_ours() {
        assert_eq!(stamped(&[0; 60]), None, "zeros are no stamp");
        assert_eq!(stamped(&[1; 5]), None, "too short");
        let mut frame = [7; 60];
        frame[54..].copy_from_slice(&stamp(123_456));
        frame[56] ^= 1;
        assert_eq!(stamped(&frame), None);
    }
}
