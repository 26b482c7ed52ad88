//! Joins DPDK's types to the load balancer's: the only file that knows both worlds.

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use dpdk::{IpChecksum, Mbuf, RxQueue, TxQueue};
use lb_core::burst::WorkerId;
use lb_core::frame::{BURST_MAX, Checked, Frame, Frames, Io};
use lb_core::tables::next_hop::PortId;

/// A frame in DPDK's memory.
#[derive(Debug)]
pub(crate) struct DpdkFrame(Mbuf);

/// As DPDK counts: a frame is never longer than its buffer, which is less than 64 KiB.
fn length(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

impl Frame for DpdkFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    #[inline]
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.0.prepend(length(len))?;
        Some(self.0.bytes_mut())
    }

    #[inline]
    fn trim_front(&mut self, len: usize) {
        let trimmed = self.0.trim_front(length(len.min(self.0.bytes().len())));
        debug_assert!(trimmed, "no longer than the frame");
    }

    #[inline]
    fn truncate(&mut self, len: usize) {
        let truncated = self.0.truncate(length(len.min(self.0.bytes().len())));
        debug_assert!(truncated, "no longer than the frame");
    }

    fn sibling(&self, front: &[u8], back: &[u8]) -> Option<Self> {
        let mut frame = self.0.sibling()?;
        frame.append(length(front.len()))?.copy_from_slice(front);
        frame.append(length(back.len()))?.copy_from_slice(back);
        Some(Self(frame))
    }

    #[inline]
    fn is_contiguous(&self) -> bool {
        self.0.segments() == 1
    }

    #[inline]
    fn ipv4_checked(&self) -> Checked {
        match self.0.ip_checksum() {
            IpChecksum::Unknown => Checked::Unknown,
            IpChecksum::Good => Checked::Good,
            IpChecksum::Bad => Checked::Bad,
        }
    }

    #[inline]
    fn leave_udp_checksum(&mut self, l2_len: usize, l3_len: usize) -> bool {
        self.0.leave_udp_checksum(length(l2_len), length(l3_len))
    }

    #[inline]
    fn prefetch(&self) {
        self.0.prefetch_data();
    }
}

/// Frames on their way between a worker and the kernel, for one port. Bounded; never waits.
pub(crate) type KernelQueue = Arc<ArrayQueue<Mbuf>>;

/// Frames that came in by one port on their way from one worker to another. Bounded; never waits.
pub(crate) type HandOverQueue = Arc<ArrayQueue<Mbuf>>;

/// A worker's queues at one port.
#[derive(Debug)]
pub(crate) struct PortQueues {
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    /// Absent: the port has no kernel side.
    pub(crate) to_kernel: Option<KernelQueue>,
    /// Absent: another worker sends what the kernel wants sent.
    pub(crate) from_kernel: Option<KernelQueue>,
    /// By worker: what is given to it; this worker's own is where it takes from.
    pub(crate) hand_over: Arc<[HandOverQueue]>,
}

/// A worker's queues, by port.
#[derive(Debug)]
pub(crate) struct DpdkIo {
    worker: WorkerId,
    ports: Box<[PortQueues]>,
    /// Frames as DPDK's queues take them; empty between calls.
    staging: ArrayVec<Mbuf, BURST_MAX>,
}

impl DpdkIo {
    pub(crate) fn new(worker: WorkerId, ports: Vec<PortQueues>) -> Self {
        Self { worker, ports: ports.into(), staging: ArrayVec::new() }
    }

    fn hand_over_queue(&self, port: PortId, worker: WorkerId) -> Option<&HandOverQueue> {
        self.ports.get(port.index())?.hand_over.get(usize::from(worker.0))
    }
}

/// Appends frames of `queue`, as many as fit.
#[inline]
fn pop(queue: &ArrayQueue<Mbuf>, frames: &mut Frames<DpdkFrame>) {
    while !frames.is_full()
        && let Some(frame) = queue.pop()
    {
        frames.push(DpdkFrame(frame));
    }
}

impl Io for DpdkIo {
    type Frame = DpdkFrame;

    #[inline]
    fn receive(&mut self, port: PortId, frames: &mut Frames<DpdkFrame>) {
        if let Some(queues) = self.ports.get_mut(port.index()) {
            queues.rx.receive(&mut self.staging);
            frames.extend(self.staging.drain(..).map(DpdkFrame));
        }
    }

    #[inline]
    fn send(&mut self, port: PortId, frames: &mut Frames<DpdkFrame>) {
        if let Some(queues) = self.ports.get_mut(port.index()) {
            self.staging.extend(frames.drain(..).map(|frame| frame.0));
            queues.tx.send(&mut self.staging);
            frames.extend(self.staging.drain(..).map(DpdkFrame));
        }
    }

    fn punt(&mut self, port: PortId, frame: DpdkFrame) -> Result<(), DpdkFrame> {
        match self.ports.get(port.index()).and_then(|queues| queues.to_kernel.as_ref()) {
            Some(queue) => queue.push(frame.0).map_err(DpdkFrame),
            None => Err(frame),
        }
    }

    #[inline]
    fn receive_from_kernel(&mut self, port: PortId, frames: &mut Frames<DpdkFrame>) {
        if let Some(queue) = self.ports.get(port.index()).and_then(|q| q.from_kernel.as_ref()) {
            pop(queue, frames);
        }
    }

    fn hand_over(
        &mut self,
        worker: WorkerId,
        port: PortId,
        frame: DpdkFrame,
    ) -> Result<(), DpdkFrame> {
        match self.hand_over_queue(port, worker) {
            Some(queue) => queue.push(frame.0).map_err(DpdkFrame),
            None => Err(frame),
        }
    }

    #[inline]
    fn take_over(&mut self, port: PortId, frames: &mut Frames<DpdkFrame>) {
        if let Some(queue) = self.hand_over_queue(port, self.worker) {
            pop(queue, frames);
        }
    }

    fn discard(&mut self, frames: &mut Frames<DpdkFrame>) {
        if !frames.is_empty() {
            self.staging.extend(frames.drain(..).map(|frame| frame.0));
            dpdk::free_bulk(&mut self.staging);
        }
    }
}
