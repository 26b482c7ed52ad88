//! A port in memory: what it sends is used again.

use lb_core::burst::WorkerId;
use lb_core::frame::{Frames, Io};
use lb_core::tables::next_hop::PortId;

use lb_bench::traffic::BenchFrame;

/// Sees what leaves by a wire.
pub(crate) trait Watch {
    /// A frame is sent.
    fn sent(&mut self, frame: &BenchFrame);
}

/// Nobody looks.
impl Watch for () {
    #[inline]
    fn sent(&mut self, _: &BenchFrame) {}
}

/// The port of a worker.
#[derive(Debug)]
pub(crate) struct Wire<W> {
    /// What waits to be received.
    pub(crate) arriving: Frames<BenchFrame>,
    /// Frames that nobody uses.
    pub(crate) idle: Vec<BenchFrame>,
    pub(crate) watch: W,
}

impl<W> Wire<W> {
    pub(crate) fn new(idle: Vec<BenchFrame>, watch: W) -> Self {
        Self { arriving: Frames::new(), idle, watch }
    }
}

impl<W: Watch> Io for Wire<W> {
    type Frame = BenchFrame;

    fn receive(&mut self, _: PortId, frames: &mut Frames<BenchFrame>) {
        frames.extend(self.arriving.drain(..));
    }

    fn send(&mut self, _: PortId, frames: &mut Frames<BenchFrame>) {
        frames.iter().for_each(|frame| self.watch.sent(frame));
        self.idle.extend(frames.drain(..));
    }

    fn punt(&mut self, _: PortId, frame: BenchFrame) -> Result<(), BenchFrame> {
        self.idle.push(frame);
        Ok(())
    }

    fn receive_from_kernel(&mut self, _: PortId, _: &mut Frames<BenchFrame>) {}

    fn hand_over(&mut self, _: WorkerId, _: PortId, frame: BenchFrame) -> Result<(), BenchFrame> {
        Err(frame)
    }

    fn take_over(&mut self, _: PortId, _: &mut Frames<BenchFrame>) {}

    fn discard(&mut self, frames: &mut Frames<BenchFrame>) {
        self.idle.extend(frames.drain(..));
    }
}
