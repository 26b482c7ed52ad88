//! How long a lookup table takes to build.

use std::time::{Duration, Instant};

use lb_core::maglev;

/// Prints the median of some builds.
pub(crate) fn report() {
    println!("table of   backends  slots      build: median (least)");
    for (backends, slots) in [(3, 65_537), (100, 65_537), (655, 65_537), (5_000, 524_309)] {
        let identities: Vec<u64> =
            (1..=backends).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let weights = vec![1; identities.len()];
        let mut times: Vec<Duration> = (0..11)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box(maglev::build(&identities, &weights, slots));
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        let (median, least) = (times[times.len() / 2], times[0]);
        println!("{backends:>19}  {slots:<9}  {median:.2?} ({least:.2?})");
    }
}
