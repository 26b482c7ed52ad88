//! What memory alone takes of a packet to one of very many services: the line of its slot and that of
//! the backend that the slot names, neither of which any cache has. They are asked for as the pipeline
//! does it, burst by burst; nothing else is done.

use std::hint::black_box;

use lb_bench::Random;
use lb_core::prefetch::prefetch;
use quanta::Clock;

use crate::median;

const BURST: usize = 32;
/// Of each of so many services.
const SERVICES: u32 = 1_000;
const BACKENDS: u16 = 1_000;
/// As many as Weir chooses for so many backends.
const SLOTS: u32 = 131_101;
/// Bursts of a round.
const BURSTS: usize = 30_000;

/// As large as what a packet's backend takes; the first line is what is read.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(128))]
struct Backend(u64);

/// Services, all in one.
#[derive(Debug)]
struct Lines {
    services: u32,
    slots: Vec<u16>,
    backends: Vec<Backend>,
}

impl Lines {
    fn new(services: u32) -> Self {
        let mut random = Random::default();
        let slots = (0..services * SLOTS)
            .map(|_| u16::try_from(random.below(BACKENDS.into())).unwrap_or_default());
        let backends = (0..u64::from(services) * u64::from(BACKENDS)).map(Backend);
        Self { services, slots: slots.collect(), backends: backends.collect() }
    }

    /// Cycles a packet, to slots that are drawn at random: of the middle burst.
    fn cycles(&self, clock: &Clock, random: &mut Random) -> f64 {
        let mut cycles = Vec::with_capacity(BURSTS);
        for _ in 0..BURSTS {
            let packets: [(usize, usize); BURST] = std::array::from_fn(|_| {
                let service = random.below(self.services);
                let slot = service * SLOTS + random.below(SLOTS);
                (service as usize, slot as usize)
            });
            let start = clock.raw();
            black_box(self.visit(&packets));
            cycles.push(clock.raw() - start);
        }
        median(&mut cycles) as f64 / BURST as f64
    }

    #[inline(never)]
    fn visit(&self, packets: &[(usize, usize); BURST]) -> u64 {
        for (_, slot) in packets {
            prefetch(&self.slots[*slot]);
        }
        let backends = packets.map(|(service, slot)| {
            let backend =
                &self.backends[service * usize::from(BACKENDS) + usize::from(self.slots[slot])];
            prefetch(backend);
            backend
        });
        backends.iter().map(|backend| backend.0).sum()
    }
}

/// Prints what it takes, of one service, whose lines are near, and of many.
pub(crate) fn report(rounds: usize, clock: &Clock) {
    println!("memory alone: services  cycles a packet, median of the rounds (min to max)");
    let mut random = Random::default();
    let all = [1, SERVICES].map(Lines::new);
    let mut figures = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for (lines, figures) in all.iter().zip(&mut figures) {
            figures.push(lines.cycles(clock, &mut random));
        }
    }
    for (lines, mut figures) in all.iter().zip(figures) {
        figures.sort_unstable_by(f64::total_cmp);
        let (first, last) = (figures[0], figures[figures.len() - 1]);
        let median = figures[figures.len() / 2];
        println!("{:>22}  {median:.1} ({first:.1} to {last:.1})", lines.services);
    }
}
