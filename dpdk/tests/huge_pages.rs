//! Huge pages, where the machine lets us reserve some. Gives them back.

mod common;

use std::fs;

use arrayvec::ArrayVec;
use common::{pool, start};
use dpdk::{Eal, EalConfig, Mbuf, Memory, PortConfig, StartedPort, huge_pages_free_mb};

const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const WANTED_MB: u32 = 64;

/// Reserves huge pages, and gives them back when dropped.
struct Reservation(u32);

impl Reservation {
    fn make() -> Option<Self> {
        let before: u32 = fs::read_to_string(RESERVED).ok()?.trim().parse().ok()?;
        fs::write(RESERVED, (before + WANTED_MB / 2).to_string()).ok()?;
        let reservation = Self(before);
        (huge_pages_free_mb() >= WANTED_MB.into()).then_some(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Pages that EAL still uses go back when the process ends.
        let _ = fs::write(RESERVED, self.0.to_string());
    }
}

#[test]
fn frames_live_in_huge_pages() {
    let Some(_reservation) = Reservation::make() else {
        eprintln!("skipped: no huge pages can be reserved");
        return;
    };
    let free_mb = huge_pages_free_mb();
    let config =
        EalConfig { memory: Memory::HugePages, memory_mb: WANTED_MB, ..EalConfig::default() };
    common::adopt(Eal::start(&config).unwrap());
    assert!(huge_pages_free_mb() <= free_mb - u64::from(WANTED_MB));

    let pool = pool("huge");
    let StartedPort { mut queues, .. } = start("net_null0", &pool, &PortConfig::default());
    let (rx, tx) = &mut queues[0];
    let mut burst: ArrayVec<Mbuf, 32> = ArrayVec::new();
    assert_eq!(rx.receive(&mut burst), 32);
    assert_eq!(tx.send(&mut burst), 32);
    assert_eq!(pool.available(), pool.capacity());
}
