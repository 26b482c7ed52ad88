//! Measures what a device costs: receives bursts of 32 frames, sends each frame back.
//!
//! `cargo run --release -p dpdk --example rxtx -- net_null0 [rounds]`

use std::{env, error::Error, time::Instant};

use arrayvec::ArrayVec;
use dpdk::{Eal, EalConfig, Mbuf, MbufPool, PoolConfig, PortConfig, StartedPort, free_bulk};

fn main() -> Result<(), Box<dyn Error>> {
    let device = env::args().nth(1).unwrap_or_else(|| "net_null0".to_owned());
    let rounds: u32 = env::args().nth(2).map_or(Ok(10_000_000), |rounds| rounds.parse())?;
    let eal = Eal::start(&EalConfig::default())?;
    let pool = MbufPool::create(eal, &PoolConfig::default())?;
    let port = eal.attach(&device)?.configure(&PortConfig::default())?;
    let StartedPort { mut queues, port } = port.start(&pool)?;
    let (rx, tx) = &mut queues[0];

    // A ring gives back what it was sent: something has to be in it.
    let mut burst: ArrayVec<Mbuf, 32> = ArrayVec::new();
    pool.alloc_bulk(32, &mut burst);
    for frame in &mut burst {
        frame.append(60);
    }
    tx.send(&mut burst);
    free_bulk(&mut burst);

    let begin = Instant::now();
    let (mut frames, mut sum) = (0, 0_u64);
    for _ in 0..rounds {
        frames += rx.receive(&mut burst);
        for frame in &mut burst {
            if let Some(byte) = frame.bytes_mut().first_mut() {
                *byte = byte.wrapping_add(1);
                sum += u64::from(*byte);
            }
        }
        tx.send(&mut burst);
        free_bulk(&mut burst);
    }
    let picoseconds = begin.elapsed().as_nanos() * 1000 / frames.max(1) as u128;
    println!("{frames} frames, {picoseconds} ps each; {:?} (sum {sum})", port.stats()?);
    Ok(())
}
