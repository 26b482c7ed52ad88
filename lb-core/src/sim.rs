//! The world in memory: frames and queues for tests, fuzzers, benches and captures.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use crate::burst::WorkerId;
use crate::frame::{Checked, Frame, Frames, Io};
use crate::tables::next_hop::PortId;
use crate::wire::checksum::Checksum;
use crate::wire::udp;

/// Room in front of a simulated frame, in bytes: as much as DPDK leaves.
pub const HEADROOM_BYTES: usize = 128;

/// A frame in plain memory.
#[derive(Clone, Debug)]
pub struct SimFrame {
    buffer: Vec<u8>,
    start: usize,
    /// Who made the frame may number it, to know it again at the other end.
    pub number: usize,
    /// As a frame in several buffers: nothing looks inside.
    pub is_split: bool,
    /// What the NIC would say.
    pub ipv4_checked: Checked,
    /// As if there were no buffers left for others.
    pub out_of_memory: bool,
    /// Where the UDP header lies whose checksum is the NIC's, from the frame's end.
    udp_checksum_left: Option<usize>,
}

impl SimFrame {
    /// A copy of `bytes`, with headroom.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self::with_headroom(bytes, HEADROOM_BYTES)
    }

    /// A copy of `bytes`, with as much room in front as said.
    #[must_use]
    pub fn with_headroom(bytes: &[u8], headroom: usize) -> Self {
        let mut buffer = vec![0; headroom + bytes.len()];
        buffer[headroom..].copy_from_slice(bytes);
        Self {
            buffer,
            start: headroom,
            number: 0,
            is_split: false,
            ipv4_checked: Checked::Unknown,
            out_of_memory: false,
            udp_checksum_left: None,
        }
    }

    /// Is a checksum left to the NIC?
    #[must_use]
    pub fn is_udp_checksum_left(&self) -> bool {
        self.udp_checksum_left.is_some()
    }

    /// What a NIC does at last: adds what it was left with to the sum that is there.
    pub fn complete_checksum(&mut self) {
        if let Some(from_end) = self.udp_checksum_left.take() {
            let at = self.buffer.len() - from_end;
            let sum = Checksum::of(&self.buffer[at..]).never_zero();
            self.buffer[at..][udp::CHECKSUM].copy_from_slice(sum.as_bytes());
        }
    }
}

impl Frame for SimFrame {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(self.bytes_mut())
    }

    fn trim_front(&mut self, len: usize) {
        self.start = (self.start + len).min(self.buffer.len());
    }

    fn truncate(&mut self, len: usize) {
        self.buffer.truncate(self.start + len);
    }

    fn sibling(&self, front: &[u8], back: &[u8]) -> Option<Self> {
        (!self.out_of_memory)
            .then(|| Self { number: self.number, ..Self::new(&[front, back].concat()) })
    }

    fn is_contiguous(&self) -> bool {
        !self.is_split
    }

    fn ipv4_checked(&self) -> Checked {
        self.ipv4_checked
    }

    fn leave_udp_checksum(&mut self, l2_len: usize, l3_len: usize) -> bool {
        self.udp_checksum_left = self.bytes().len().checked_sub(l2_len + l3_len);
        self.udp_checksum_left.is_some()
    }

    fn prefetch(&self) {}
}

/// Queues in memory, by port, with limits that can be made small.
#[derive(Debug)]
pub struct SimIo {
    /// What waits to be received.
    pub arriving: Vec<VecDeque<SimFrame>>,
    /// What was sent.
    pub sent: Vec<Vec<SimFrame>>,
    /// What the kernel was given.
    pub punted: Vec<Vec<SimFrame>>,
    /// What the kernel wants sent.
    pub from_kernel: Vec<VecDeque<SimFrame>>,
    /// What was given to other workers, and by which port it had come.
    pub handed_over: Vec<(WorkerId, PortId, SimFrame)>,
    /// By port: what other workers gave.
    pub taking_over: Vec<VecDeque<SimFrame>>,
    /// Frames that `handed_over` takes before it is full.
    pub hand_over_max: usize,
    /// Frames that `sent` takes before it is full, for each port.
    pub send_max: usize,
    /// Frames that `punted` takes before it is full, for each port.
    pub punt_max: usize,
}

impl SimIo {
    /// Empty queues without limits.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self {
            arriving: vec![VecDeque::new(); ports],
            sent: vec![Vec::new(); ports],
            punted: vec![Vec::new(); ports],
            from_kernel: vec![VecDeque::new(); ports],
            handed_over: Vec::new(),
            taking_over: vec![VecDeque::new(); ports],
            hand_over_max: usize::MAX,
            send_max: usize::MAX,
            punt_max: usize::MAX,
        }
    }
}

impl Io for SimIo {
    type Frame = SimFrame;

    fn receive(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        let queue = &mut self.arriving[port.index()];
        let n = queue.len().min(frames.remaining_capacity());
        frames.extend(queue.drain(..n));
    }

    fn send(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        let sent = &mut self.sent[port.index()];
        let n = frames.len().min(self.send_max.saturating_sub(sent.len()));
        sent.extend(frames.drain(..n).map(|mut frame| {
            frame.complete_checksum();
            frame
        }));
    }

    fn punt(&mut self, port: PortId, frame: SimFrame) -> Result<(), SimFrame> {
        let punted = &mut self.punted[port.index()];
        if punted.len() >= self.punt_max {
            return Err(frame);
        }
        punted.push(frame);
        Ok(())
    }

    fn hand_over(
        &mut self,
        worker: WorkerId,
        port: PortId,
        frame: SimFrame,
    ) -> Result<(), SimFrame> {
        if self.handed_over.len() >= self.hand_over_max {
            return Err(frame);
        }
        self.handed_over.push((worker, port, frame));
        Ok(())
    }

    fn take_over(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        let queue = &mut self.taking_over[port.index()];
        let n = queue.len().min(frames.remaining_capacity());
        frames.extend(queue.drain(..n));
    }

    fn receive_from_kernel(&mut self, port: PortId, frames: &mut Frames<SimFrame>) {
        let queue = &mut self.from_kernel[port.index()];
        let n = queue.len().min(frames.remaining_capacity());
        frames.extend(queue.drain(..n));
    }
}

#[cfg(test)]
#[path = "../tests/pipeline/support/packet.rs"]
pub(crate) mod packet;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_grows_and_shrinks_at_both_ends() {
        let mut frame = SimFrame::with_headroom(&[1, 2, 3, 4], 2);
        frame.trim_front(1);
        frame.truncate(2);
        assert_eq!(frame.bytes(), [2, 3]);
        frame.prepend(3).unwrap()[..3].copy_from_slice(&[7, 8, 9]);
        assert_eq!(frame.bytes(), [7, 8, 9, 2, 3]);
        assert!(frame.prepend(1).is_none());
        assert_eq!(frame.bytes(), [7, 8, 9, 2, 3], "nothing changed");
        frame.truncate(6);
        assert_eq!(frame.bytes(), [7, 8, 9, 2, 3], "not as many");
        frame.trim_front(6);
        assert!(frame.bytes().is_empty());
    }

    #[test]
    fn queues_take_as_many_as_they_say() {
        let port = PortId(1);
        let frames = |n: usize| (0..n).map(|_| SimFrame::new(&[0; 60])).collect::<Frames<_>>();
        let mut io = SimIo::new(2);
        io.arriving[1].extend((0..65).flat_map(|_| frames(1)));
        (io.send_max, io.punt_max) = (3, 1);

        let mut burst = frames(2);
        io.receive(port, &mut burst);
        assert_eq!((burst.len(), io.arriving[1].len()), (64, 3), "what fits");
        let mut burst = frames(2);
        io.send(port, &mut burst);
        assert_eq!((burst.len(), io.sent[1].len()), (0, 2));
        let mut burst = frames(2);
        io.send(port, &mut burst);
        assert_eq!((burst.len(), io.sent[1].len()), (1, 3), "the rest stays");
        assert!(io.punt(port, SimFrame::new(&[0; 60])).is_ok());
        assert!(io.punt(port, SimFrame::new(&[0; 60])).is_err());
        io.from_kernel[1].extend(frames(5));
        let mut burst = frames(62);
        io.receive_from_kernel(port, &mut burst);
        assert_eq!((burst.len(), io.from_kernel[1].len()), (64, 3));
    }
}
