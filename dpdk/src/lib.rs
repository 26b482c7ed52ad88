//! A safe wrapper of the part of DPDK that a packet processor on known threads needs.
//!
//! In the order of a program's life:
//!
//! 1. [`Eal::start`]: memory, buses, drivers. Once in a process.
//! 2. [`MbufPool::create`]: buffers for frames.
//! 3. [`Eal::attach`]: a device, as a [`Port`]; then [`Port::configure`] and [`Port::start`].
//! 4. Queues: [`RxQueue::receive`] and [`TxQueue::send`] move bursts of [`Mbuf`]s, on a thread of
//!    the application's, which [`Eal::register_thread`] makes known to EAL.
//! 5. [`keep_capabilities`]: what rights all that took, and nothing takes any more, is given up.
//! 6. Dropping a port and its queues closes the device.
//!
//! ```
//! use arrayvec::ArrayVec;
//! use dpdk::{Eal, EalConfig, Mbuf, MbufPool, PoolConfig, PortConfig, StartedPort};
//!
//! let eal = Eal::start(&EalConfig::default())?;
//! let pool = MbufPool::create(eal, &PoolConfig::default())?;
//! let port = eal.attach("net_null0")?.configure(&PortConfig::default())?;
//! let StartedPort { port, mut queues } = port.start(&pool)?;
//! let (rx, tx) = &mut queues[0];
//!
//! let mut burst: ArrayVec<Mbuf, 64> = ArrayVec::new();
//! rx.receive(&mut burst);
//! for frame in &mut burst {
//!     if let Some(macs) = frame.bytes_mut().first_chunk_mut::<12>() {
//!         macs.rotate_left(6);
//!     }
//! }
//! tx.send(&mut burst); // what is left in `burst` was not sent
//! assert_eq!(port.stats()?.ipackets, 64);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! No use of this crate in safe code is undefined behaviour. EAL and the pools are never torn
//! down, so that no frame can outlive its memory; a device is closed when nobody is left who could
//! poll it; a queue has one owner. Nothing is left behind in the file system, however the process
//! ends. An interface of the kernel's gets its MAC address and MTU back when its port is closed, but
//! not when the process is killed; `net_af_xdp` then leaves its XDP program there, too.
//!
//! Two things are believed without proof: that drivers keep DPDK's rules, and that
//! [`EalConfig::extra_args`] does not make them break these.

mod device;
mod eal;
mod error;
mod heap;
mod log;
mod mbuf;
mod memory_file;
mod pool;
mod port;
mod privileges;
mod queue;
mod thread;

pub use eal::{Eal, EalConfig, EalError, Memory, huge_pages_free_mb};
pub use error::CallError;
pub use heap::ask_for_huge_pages;
pub use log::{LogLevel, LogLine};
pub use mbuf::{IpChecksum, Mbuf, free_bulk};
pub use memory_file::map_words;
pub use pool::{HEADROOM_BYTES, MbufPool, PoolConfig, PoolError};
pub use port::{
    AttachError, Configured, Port, PortConfig, PortError, PortStats, Started, StartedPort,
    Unconfigured, Unsupported,
};
pub use privileges::{
    CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, PrivilegesError, keep_capabilities,
};
pub use queue::{RxQueue, TxQueue};
pub use thread::{ThreadError, ThreadRegistration};
