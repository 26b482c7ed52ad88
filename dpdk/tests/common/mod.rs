//! One EAL for all tests of a process.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![expect(clippy::expect_used, clippy::panic, reason = "a failure here fails the test")]

use std::sync::OnceLock;

use arrayvec::ArrayVec;
use dpdk::{Eal, EalConfig, Mbuf, MbufPool, PoolConfig, PortConfig, StartedPort};

static EAL: OnceLock<Eal> = OnceLock::new();

/// Makes this the EAL of the process's tests.
pub(crate) fn adopt(eal: Eal) {
    EAL.set(eal).expect("the first");
}

pub(crate) fn eal() -> Eal {
    *EAL.get_or_init(|| {
        Eal::start(&EalConfig { memory_mb: 128, ..EalConfig::default() }).expect("EAL starts")
    })
}

/// A pool of 1023 buffers of the usual size.
pub(crate) fn pool(name: &str) -> MbufPool {
    let config =
        PoolConfig { name: name.to_owned(), count: 1023, cache: 32, ..PoolConfig::default() };
    MbufPool::create(eal(), &config).expect("there is memory for the pool")
}

pub(crate) fn start(device: &str, pool: &MbufPool, config: &PortConfig) -> StartedPort {
    let port = eal().attach(device).unwrap_or_else(|error| panic!("{error}"));
    let port = port.configure(config).unwrap_or_else(|error| panic!("{error}"));
    port.start(pool).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn frame(pool: &MbufPool, bytes: &[u8]) -> Mbuf {
    let mut frame = pool.alloc().expect("a buffer is free");
    let len = u16::try_from(bytes.len()).expect("a frame");
    frame.append(len).expect("it fits").copy_from_slice(bytes);
    frame
}

pub(crate) fn contents<const N: usize>(burst: &ArrayVec<Mbuf, N>) -> Vec<Vec<u8>> {
    burst.iter().map(|frame| frame.bytes().to_vec()).collect()
}
