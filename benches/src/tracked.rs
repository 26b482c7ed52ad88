//! Flows that are tracked, because all slots of their service are in transition.

use std::fs;
use std::sync::atomic::AtomicU64;

use lb_core::burst::Burst;
use lb_core::continuity::Tracker;
use lb_core::counters::Counters;
use lb_core::frame::{BURST_MAX, Frames};
use lb_core::model::Protocol;
use lb_core::pipeline::process;
use lb_core::state::State;
use lb_core::tables::Tables;
use lb_core::tables::next_hop::PortId;
use lb_core::tuple::address_bytes;
use lb_core::wire::tcp;
use memmap2::{Advice, MmapMut};
use zerocopy::FromBytes;

use crate::Failure;
use crate::world::{MAC, SETTINGS, Served, moving_tables};
use lb_bench::traffic::{BenchFrame, to_vip};

/// Tables of a service whose clients, from number 0 on, are tracked. Says how much memory they take.
pub(crate) fn tracked(served: &Served, flows: u32, in_huge: bool) -> Result<Tables, Failure> {
    let before = Memory::now()?;
    let tracker = tracker(flows, memory(Tracker::words(flows), in_huge)?)?;
    let tables = moving_tables(served, &[Protocol::Tcp], tracker)?;
    go_on(&tables, served, flows);
    let there = tables.tracker.len();
    let after = Memory::now()?;
    let taken = (after.all_kib - before.all_kib) * 1024;
    let in_huge = after.huge_kib - before.huge_kib;
    println!(
        "tracked IPv{}: {there} of {flows} flows, {:.1} bytes each, {in_huge} KiB in huge pages",
        if served.vip.is_ipv6() { 6 } else { 4 },
        taken as f64 / f64::from(there),
    );
    Ok(tables)
}

/// So many words, in huge pages if there are any.
pub(crate) fn memory(words: usize, in_huge: bool) -> Result<&'static mut [u8], Failure> {
    let memory = MmapMut::map_anon(words * size_of::<AtomicU64>())?;
    memory.advise(if in_huge { Advice::HugePage } else { Advice::NoHugePage })?;
    let memory = Box::leak(Box::new(memory));
    Ok(&mut memory[..])
}

/// A tracker for so many flows over its [`memory`].
pub(crate) fn tracker(flows: u32, memory: &'static mut [u8]) -> Result<Tracker, Failure> {
    let words = <[AtomicU64]>::mut_from_bytes(memory).map_err(|error| error.to_string())?;
    Ok(Tracker::over(words, flows).ok_or("too few words")?)
}

/// Two packets of each flow that do not open it.
fn go_on(tables: &Tables, served: &Served, flows: u32) {
    let vip = address_bytes(served.vip);
    let counters = Counters::new(16);
    let mut state = State::new(SETTINGS);
    let mut burst = Burst::default();
    let mut frames: Frames<BenchFrame> = (0..BURST_MAX).map(|_| BenchFrame::default()).collect();
    for first in (0..flows).step_by(BURST_MAX) {
        for _ in 0..2 {
            for (frame, number) in frames.iter_mut().zip(first..) {
                frame.reset(MAC, &to_vip(vip, number.min(flows - 1)), tcp::ACK);
            }
            burst.refill(PortId(0), |into| into.extend(frames.drain(..)));
            process(&mut burst, tables, &counters, &mut state);
            burst.take(|_, frame, _, _| frames.push(frame));
        }
    }
}

/// Of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) all_kib: u64,
    pub(crate) huge_kib: u64,
}

impl Memory {
    pub(crate) fn now() -> Result<Self, Failure> {
        let text = fs::read_to_string("/proc/self/smaps_rollup")?;
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let figure = line.and_then(|line| line.split_whitespace().next());
            figure.and_then(|figure| figure.parse().ok()).ok_or("/proc/self/smaps_rollup")
        };
        Ok(Self { all_kib: kib("Rss:")?, huge_kib: kib("AnonHugePages:")? })
    }
}
