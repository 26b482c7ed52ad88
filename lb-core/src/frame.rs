//! What the load balancer asks of the world: frames, and where they come from and go to.
//!
//! The world behind these traits is DPDK in the appliance, plain memory in tests, fuzzers and
//! benches (`sim`), and a capture file in `weir replay`.

use arrayvec::ArrayVec;

use crate::burst::{Fate, Meta, WorkerId};
use crate::drop_reason::DropReason;
use crate::tables::next_hop::PortId;

/// Frames of a burst, at most: one bit each in a `u64`.
pub const BURST_MAX: usize = 64;

/// Frames on their way somewhere.
pub type Frames<F> = ArrayVec<F, BURST_MAX>;

/// What the NIC says about a checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checked {
    /// Nothing.
    #[default]
    Unknown,
    /// It is true.
    Good,
    /// It is wrong.
    Bad,
}

/// L2 bytes that we own, with room in front.
pub trait Frame {
    /// From the Ethernet header to the end, in one piece if [`Frame::is_contiguous`].
    fn bytes(&self) -> &[u8];

    /// As [`Frame::bytes`], to write.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Adds `len` bytes in front and returns the whole frame, the new bytes first, with
    /// indeterminate content. `None` (and nothing changed) without that much headroom.
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Takes `len` bytes off the front; all of them, if there are not as many.
    fn trim_front(&mut self, len: usize);

    /// Cuts the end off behind `len` bytes; nothing, if there are not as many.
    fn truncate(&mut self, len: usize);

    /// Another frame from the same memory: `front`, then `back`. `None` if there is no buffer left,
    /// or none that is as large.
    fn sibling(&self, front: &[u8], back: &[u8]) -> Option<Self>
    where
        Self: Sized;

    /// Does the frame lie in one piece?
    fn is_contiguous(&self) -> bool {
        true
    }

    /// What the NIC says about the IPv4 header checksum.
    fn ipv4_checked(&self) -> Checked {
        Checked::Unknown
    }

    /// Leaves the checksum of a UDP header to the NIC that the frame leaves by: it is behind `l2_len`
    /// bytes of L2 header and `l3_len` of IPv6, and its checksum is [`Sum::partial`] of the
    /// pseudo-header. False, and nothing has changed: the frame cannot say so.
    ///
    /// [`Sum::partial`]: crate::wire::checksum::Sum::partial
    #[inline]
    fn leave_udp_checksum(&mut self, _l2_len: usize, _l3_len: usize) -> bool {
        false
    }

    /// Asks for the first bytes, to be read soon.
    fn prefetch(&self);
}

/// A worker's own queues.
pub trait Io {
    /// What travels.
    type Frame: Frame;

    /// Appends the frames that wait at `port`, as many as fit. Never blocks.
    fn receive(&mut self, port: PortId, frames: &mut Frames<Self::Frame>);

    /// Sends from the front of `frames` out of `port`; what the queue refuses stays.
    fn send(&mut self, port: PortId, frames: &mut Frames<Self::Frame>);

    /// Gives a frame that came in by `port` to the kernel, or back if its queue is full.
    ///
    /// # Errors
    /// The frame, if the kernel's side does not take it.
    fn punt(&mut self, port: PortId, frame: Self::Frame) -> Result<(), Self::Frame>;

    /// Appends the frames that the kernel wants sent out of `port`, as many as fit.
    fn receive_from_kernel(&mut self, port: PortId, frames: &mut Frames<Self::Frame>);

    /// Gives a frame that came in by `port` to another worker.
    ///
    /// # Errors
    /// The frame, if the worker's queue is full.
    fn hand_over(
        &mut self,
        worker: WorkerId,
        port: PortId,
        frame: Self::Frame,
    ) -> Result<(), Self::Frame>;

    /// Appends the frames that came in by `port` and that other workers gave to this one, as many as
    /// fit.
    fn take_over(&mut self, port: PortId, frames: &mut Frames<Self::Frame>);

    /// Is told what the pipeline decided about each frame that a burst brought in. For those who
    /// explain.
    #[inline]
    fn decided(&mut self, _frame: &Self::Frame, _meta: &Meta, _fate: Fate) {}

    /// Is told of each frame that is dropped, by whatever decision or for want of room: it is gone.
    #[inline]
    fn dropped(&mut self, _frame: &Self::Frame, _reason: DropReason) {}

    /// Lets frames go, all at once.
    fn discard(&mut self, frames: &mut Frames<Self::Frame>) {
        frames.clear();
    }
}
