//! How fast the machine itself is just now: always the same work, on all CPUs that are used, at once.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;

use crate::Random;

/// For how long, and how often: the best counts, which nobody has interrupted.
const TIME: Duration = Duration::from_millis(10);
const TIMES: usize = 10;
/// Words of memory: more than fits the first cache, less than the second.
const WORDS: u32 = 1 << 16;

/// Pieces of work a second on the slowest of these CPUs.
#[must_use]
pub fn floor(cpus: &[usize]) -> f64 {
    let threads: Vec<_> = cpus
        .iter()
        .map(|&id| {
            thread::spawn(move || {
                core_affinity::set_for_current(CoreId { id });
                pace()
            })
        })
        .collect();
    let paces = threads.into_iter().filter_map(|thread| thread.join().ok());
    paces.fold(f64::INFINITY, f64::min)
}

fn pace() -> f64 {
    let mut memory = vec![0_u64; WORDS as usize];
    let mut random = Random::default();
    let mut best = 0.0_f64;
    for _ in 0..TIMES {
        let (start, mut pieces) = (Instant::now(), 0_u32);
        while start.elapsed() < TIME {
            for _ in 0..1000 {
                memory[random.below(WORDS) as usize] += 1;
            }
            pieces += 1;
        }
        best = best.max(f64::from(pieces) / start.elapsed().as_secs_f64());
    }
    black_box(&memory);
    best
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_machine_does_something() {
        let floor = super::floor(&[0]);
        assert!(floor > 100.0 && floor.is_finite(), "{floor}");
    }
}
