//! About how much each backend gets.
//!
//! To count every frame for its backend would take a few percent of the data path's instructions, and a cache
//! line more. So one burst of [`EVERY`] stands for the others. Of `n` frames the number is then off by some
//! 8/√n: 8 % of ten thousand, 0.8 % of a million.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::burst::Burst;
use crate::frame::Frame;
use crate::stopwatch::EVERY;
use crate::tables::Tables;

/// Frames for one backend, and the bytes of their IP packets as they came: about as many. All workers add.
#[derive(Debug, Default)]
pub struct Estimate {
    frames: AtomicU64,
    bytes: AtomicU64,
}

/// Of the backends of one service, by place.
pub type Estimates = Arc<[Arc<Estimate>]>;

impl Estimate {
    /// A frame of a burst that stands for others.
    fn add(&self, packet_len: u16) {
        self.frames.fetch_add(EVERY.into(), Ordering::Relaxed);
        self.bytes.fetch_add(u64::from(EVERY) * u64::from(packet_len), Ordering::Relaxed);
    }

    /// Frames and bytes, since the backend is there.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Counts what of a burst is for backends, and has got its form.
#[cold]
#[inline(never)]
pub fn note<F: Frame>(burst: &mut Burst<F>, tables: &Tables) {
    burst.for_each_meta(burst.requests(), |_, meta| {
        if let Some(service) = tables.service(meta.service)
            && let Some(estimate) = service.estimates.get(usize::from(meta.backend))
        {
            estimate.add(meta.packet_len);
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::WorkerId;
    use crate::counters::Counters;
    use crate::frame::BURST_MAX;
    use crate::model::tests::spec;
    use crate::pipeline::process;
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::classify::tests::{tables, tables_after};
    use crate::state::{Settings, State};
    use crate::tables::next_hop::PortId;

    #[test]
    fn one_burst_of_many_stands_for_the_others() {
        let backends = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
        let tables = tables([spec("web", "10.0.0.100", &backends)]);
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1 };
        let (mut state, counters) = (State::new(settings), Counters::new(1));
        let mut burst = Burst::default();
        let (mut sent, mut bytes) = ([0_u64; 3], 0);
        for number in 0..20 * EVERY {
            let client = |way: usize| format!("198.51.100.7:{}", 1 + number as usize + way * 2000);
            let frames = (0..BURST_MAX / 2).map(|way| {
                let vip = if way == 0 { "10.0.0.99:80" } else { "10.0.0.100:80" };
                SimFrame::new(&Packet::tcp(&client(way), vip).frame())
            });
            burst.refill(PortId(0), |room| room.extend(frames));
            process(&mut burst, &tables, &counters, &mut state);
            burst.take(|_, _, meta, fate| {
                if matches!(fate, crate::burst::Fate::Send(_)) {
                    sent[usize::from(meta.backend)] += 1;
                    bytes += u64::from(meta.packet_len);
                }
            });
            state.stopwatch.stop(BURST_MAX / 2, &counters);
        }
        let estimates = tables.services[0].estimates.iter().map(|it| it.get());
        let estimates: Vec<(u64, u64)> = estimates.collect();
        let sum = estimates.iter().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert_eq!(sum, (sent.iter().sum(), bytes), "all bursts are alike");
        for (sent, (about, _)) in sent.into_iter().zip(estimates) {
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let off = about.abs_diff(sent) as f64 / (8.0 * (sent as f64).sqrt());
            assert!(off < 4.0, "{about} instead of {sent}: {off} times the standard error");
        }
    }

    #[test]
    fn who_stays_keeps_what_was_counted() {
        let service = |backends: &[&str]| spec("web", "10.0.0.100", backends);
        let first = tables([service(&["10.0.0.11", "10.0.0.12"])]);
        let of = |tables: &Tables, place: usize| tables.services[0].estimates[place].get();
        first.services[0].estimates[1].add(100);
        let counted = (u64::from(EVERY), 100 * u64::from(EVERY));
        let second = tables_after(Some(&first), [service(&["10.0.0.12", "10.0.0.13"])]);
        let members = second.services[0].roster.members().iter();
        let address = |place: usize| members.clone().nth(place).unwrap().as_ref().unwrap();
        assert_eq!(address(1).backend.address.to_string(), "10.0.0.12");
        assert_eq!(of(&second, 1), counted);
        assert_eq!(second.services[0].estimates.len(), members.len());
        // What a worker still adds by the version before is not lost.
        first.services[0].estimates[1].add(100);
        assert_eq!(of(&second, 1).0, 2 * u64::from(EVERY));
        let place = second.services[0].roster.members().iter().position(|member| {
            member.as_ref().is_some_and(|it| it.backend.address.to_string() == "10.0.0.13")
        });
        assert_eq!(of(&second, place.unwrap()), (0, 0));
    }
}
