//! The two ends of the data path: a call a burst, no locks, no waiting.

use std::{cell::Cell, marker::PhantomData, sync::Arc};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::{
    device::Device,
    mbuf::{CHECKED_IP, Mbuf},
};

/// A started receive queue. `Send`, but neither `Clone` nor `Sync`: `&mut RxQueue` is the right to
/// poll it. Keeps its device running.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    /// Flags that received frames lose.
    forget: u64,
    _device: Arc<Device>,
    _not_sync: PhantomData<Cell<()>>,
}

impl RxQueue {
    /// Called by `Port::start` alone, once for each queue of a started device. `checks_ip`: the device
    /// was asked to check IPv4 headers, so that what it says counts. A driver may hand over flags of
    /// somebody else's (`net_ring` does), and requests of those who sent the frame to it.
    pub(crate) fn new(device: Arc<Device>, queue: u16, checks_ip: bool) -> Self {
        let forget = sys::SHIM_MBUF_TX_ANY | if checks_ip { 0 } else { CHECKED_IP };
        Self { port: device.id(), queue, forget, _device: device, _not_sync: PhantomData }
    }

    /// Appends the frames that are waiting to `burst`, at most as many as fit, and returns how
    /// many. A frame lies in one buffer, if it fits: what a driver has spread over several is moved
    /// together. Never blocks.
    #[inline]
    pub fn receive<const N: usize>(&mut self, burst: &mut ArrayVec<Mbuf, N>) -> usize {
        let had = burst.len();
        let room = u16::try_from(burst.remaining_capacity()).unwrap_or(u16::MAX);
        // SAFETY: `had` is within the buffer's capacity.
        let spare = unsafe { burst.as_mut_ptr().add(had) };
        // SAFETY:
        // - Started: an `RxQueue` is only made by `Port::start`, and the device stops when the last
        //   one is gone.
        // - One poller: `&mut self`, the type is `!Sync`, and there is one for each queue
        //   (rte_ethdev.h: a queue is not thread-safe).
        // - `spare` has `room` slots, each the size of `*mut rte_mbuf`: `Mbuf` is transparent.
        let got =
            unsafe { sys::shim_rx_burst(self.port, self.queue, spare.cast(), room, self.forget) };
        // SAFETY: the driver wrote the first `got <= room` slots with non-null buffers, and their
        // references are now ours.
        unsafe { burst.set_len(had + usize::from(got)) };
        usize::from(got)
    }
}

/// A started transmit queue. `Send`, but neither `Clone` nor `Sync`: `&mut TxQueue` is the right to
/// fill it. Keeps its device running.
#[derive(Debug)]
pub struct TxQueue {
    port: u16,
    queue: u16,
    /// Frames may leave checksums to the device.
    prepare: bool,
    _device: Arc<Device>,
    _not_sync: PhantomData<Cell<()>>,
}

impl TxQueue {
    /// Called by `Port::start` alone, once for each queue of a started device.
    pub(crate) fn new(device: Arc<Device>, queue: u16, prepare: bool) -> Self {
        Self { port: device.id(), queue, prepare, _device: device, _not_sync: PhantomData }
    }

    /// Sends frames from the front of `burst`, as many as the device takes now, and returns how
    /// many. The others stay, in order. Never blocks, never tries twice.
    #[inline]
    pub fn send<const N: usize>(&mut self, burst: &mut ArrayVec<Mbuf, N>) -> usize {
        let had = burst.len();
        let first = burst.as_mut_ptr();
        let count = u16::try_from(had).unwrap_or(u16::MAX);
        // SAFETY:
        // - Started, and one user: as in `RxQueue::receive`.
        // - The first `count` slots hold references that are ours; those of the first `sent` become
        //   the driver's.
        let sent =
            unsafe { sys::shim_tx_burst(self.port, self.queue, first.cast(), count, self.prepare) };
        let sent = usize::from(sent);
        let left = had - sent;
        if left != 0 {
            // SAFETY: `sent` is at most `had`.
            let unsent = unsafe { first.add(sent) };
            // SAFETY: both ranges are within the first `had` slots; what is overwritten is the
            // driver's, or moves itself.
            unsafe { first.copy_from(unsent, left) };
        }
        // SAFETY: the first `left` slots hold the references that are still ours, each once.
        unsafe { burst.set_len(left) };
        sent
    }
}
