//! How fast is it? The packet generator of `weir bench`, and what it shares with the benchmarks in memory.
//!
//! In reading order:
//! * [`traffic`] makes frames; [`mix`] those of a profile, one after the other; [`stamp`] tells in a frame
//!   when it was sent.
//! * [`network`]: the services that they are for, as a configuration.
//! * [`generator`] sends them at a rate, and counts and times what comes back.
//! * [`search`]: the highest rate without loss.
//! * [`measure`] runs [`device`]s under test, round after round, and [`floor`] says how fast the machine was.
//! * [`results`] are saved, [`compare`]d, and shown by [`report`].

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "times, rates and figures for people"
)]

pub mod compare;
pub mod device;
pub mod floor;
pub mod generator;
pub mod measure;
pub mod mix;
pub mod network;
mod plot;
pub mod report;
pub mod results;
pub mod search;
pub mod stamp;
pub mod traffic;

use lb_core::flow_hash::reduce;

/// A linear congruential generator (Knuth, MMIX): the same numbers in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// A number below `n`.
    #[inline]
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        reduce(self.0, n)
    }
}
