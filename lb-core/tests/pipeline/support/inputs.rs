//! Bytes → frames and faults: the input of the fuzz target `pipeline`, made to be written by hand.
//!
//! ```text
//! send_max punt_max punts_per_second/10     3 bytes; 255: no limit
//! then frames:
//!   bits  headroom  length (little-endian)  4 bytes
//!   the frame
//! ```
//! A frame that is shorter than it says is taken as it is.

use std::sync::LazyLock;

use lb_core::frame::Checked;
use lb_core::tables::next_hop::PortId;

use super::run::{Arrival, Limits, Outcome, run};
use super::world::World;

/// The port, by number; there are three.
pub(crate) const PORT: u8 = 0b11;
/// The kernel wants it sent.
pub(crate) const FROM_KERNEL: u8 = 1 << 2;
/// It lies in more than one buffer.
pub(crate) const SPLIT: u8 = 1 << 3;
/// The NIC found its checksum good.
pub(crate) const GOOD: u8 = 1 << 4;
/// The NIC found its checksum bad.
pub(crate) const BAD: u8 = 1 << 5;
/// A new turn begins with it.
pub(crate) const NEW_TURN: u8 = 1 << 6;
/// It comes 65 times: one more than a burst takes.
pub(crate) const REPEATED: u8 = 1 << 7;

/// Frames in one input, at most.
const FRAMES_MAX: usize = 1024;

static WORLD: LazyLock<World> = LazyLock::new(World::fixed);

/// Runs an input through the fixed world, with all that [`run`] checks.
pub(crate) fn check(input: &[u8]) -> Option<Outcome> {
    let (limits, turns) = read(input)?;
    Some(run(&WORLD, &turns, limits))
}

fn read(input: &[u8]) -> Option<(Limits, Vec<Vec<Arrival>>)> {
    let (&[send_max, punt_max, punts], mut rest) = input.split_first_chunk()?;
    let limit = |byte: u8| if byte == 255 { usize::MAX } else { byte.into() };
    let limits = Limits {
        send_max: limit(send_max),
        punt_max: limit(punt_max),
        punts_per_second: if punts == 255 { u32::MAX } else { u32::from(punts) * 10 },
    };
    let (mut turns, mut total) = (vec![Vec::new()], 0);
    while let Some((&[bits, headroom, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (bytes, next) = after.split_at(length);
        rest = next;
        let arrival = Arrival {
            port: PortId((bits & PORT) % 3),
            from_kernel: bits & FROM_KERNEL != 0,
            bytes: bytes.to_vec(),
            headroom: headroom.into(),
            is_split: bits & SPLIT != 0,
            checked: match (bits & GOOD != 0, bits & BAD != 0) {
                (true, _) => Checked::Good,
                (_, true) => Checked::Bad,
                _ => Checked::Unknown,
            },
        };
        let copies = if bits & REPEATED != 0 { 65 } else { 1 };
        total += copies;
        if total > FRAMES_MAX {
            break;
        }
        if bits & NEW_TURN != 0 {
            turns.push(Vec::new());
        }
        turns.last_mut()?.extend(std::iter::repeat_n(arrival, copies));
    }
    Some((limits, turns))
}

/// Writes an input by hand.
#[derive(Clone, Debug)]
pub(crate) struct Input(Vec<u8>);

impl Input {
    /// An input without limits and frames.
    pub(crate) fn new() -> Self {
        Self(vec![255; 3])
    }

    /// With limits, as bytes.
    pub(crate) fn limited(send_max: u8, punt_max: u8, punts: u8) -> Self {
        Self(vec![send_max, punt_max, punts])
    }

    /// One frame more.
    pub(crate) fn frame(mut self, bits: u8, headroom: u8, bytes: &[u8]) -> Self {
        self.0.extend([bits, headroom]);
        self.0.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
        self.0.extend(bytes);
        self
    }

    /// As it is stored.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
