//! Raw bindings of the part of DPDK that the crate `dpdk` wraps.
//!
//! Two sources: bindgen, from an explicit list of names (`build.rs`), and a hand-written C shim for
//! what exists only as inline functions and macros (`shim.h`). Layouts are asserted at compile
//! time. Linking is dynamic, so that EAL finds its drivers by itself.
//!
//! Names are DPDK's, and so is their documentation: <https://doc.dpdk.org/api/>.

#![expect(
    missing_docs,
    non_camel_case_types,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    reason = "generated: names and shapes are DPDK's"
)]

/// Declares types that are known by pointer only.
macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        }
    )*};
}

opaque! {
    /// A frame buffer. Its fields are read at the offsets `SHIM_MBUF_*`.
    rte_mbuf;
    /// A pool of frame buffers.
    rte_mempool;
    /// A device on a bus.
    rte_device;
    /// How a receive queue is set up; null is the driver's default.
    rte_eth_rxconf;
    /// How a transmit queue is set up; null is the driver's default.
    rte_eth_txconf;
}

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
