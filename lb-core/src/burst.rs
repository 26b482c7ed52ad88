//! A burst: the frames that a worker takes through the pipeline together.

use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Frame, Frames};
use crate::tables::next_hop::PortId;
use crate::tuple::Tuple;

/// What the stages find out about a frame, and what they decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// The flow; by `parse`.
    pub tuple: Tuple,
    /// Is this a part of a packet, without ports? By `parse`.
    pub is_fragment: bool,
    /// Bytes before the IP header; by `parse`.
    pub l3_offset: u16,
    /// Bytes before the transport header; by `parse`.
    pub l4_offset: u16,
    /// Bytes of the IP packet, without padding; by `parse`.
    pub packet_len: u16,
    /// The flow hash, as the service's affinity wants it; by `classify`.
    pub hash: u64,
    /// Place of the service in the tables; by `classify`.
    pub service: u32,
    /// Slot of the service's table; by `classify`.
    pub slot: u32,
    /// Place of the backend in the service's list; by `select`.
    pub backend: u16,
    /// Where the frame leaves; by `forward`.
    pub out: PortId,
}

/// How a frame leaves the pipeline early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It goes no further.
    Drop(DropReason),
    /// It is the kernel's.
    Punt,
}

impl From<DropReason> for Exit {
    #[inline]
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// At most [`BURST_MAX`] frames that came in by one port, in the order of arrival.
///
/// A frame is *live* until a stage drops or punts it; what is live at the end is sent.
#[derive(Debug)]
pub struct Burst<F> {
    port: PortId,
    /// Does the kernel take what is punted?
    has_kernel: bool,
    frames: Frames<F>,
    meta: [Meta; BURST_MAX],
    /// Bit `i`: frame `i` is on its way through the pipeline.
    live: u64,
    /// Bit `i`: frame `i` goes to the kernel. No frame is in both masks.
    punted: u64,
    /// Why the others are in neither.
    drops: [u16; DropReason::COUNT],
}

impl<F> Default for Burst<F> {
    fn default() -> Self {
        Self {
            port: PortId::default(),
            has_kernel: true,
            frames: Frames::new(),
            meta: [Meta::default(); BURST_MAX],
            live: 0,
            punted: 0,
            drops: [0; DropReason::COUNT],
        }
    }
}

impl<F: Frame> Burst<F> {
    /// Starts anew with frames of `port`, which `fill` appends.
    #[inline]
    pub fn refill(&mut self, port: PortId, fill: impl FnOnce(&mut Frames<F>)) {
        debug_assert!(self.frames.is_empty(), "the last burst was not taken away");
        self.port = port;
        fill(&mut self.frames);
        let n = self.frames.len();
        self.live = if n == 0 { 0 } else { u64::MAX >> (BURST_MAX - n) };
        self.punted = 0;
        self.drops = [0; DropReason::COUNT];
    }

    /// Says whether the port has a kernel side; without, frames for the kernel are nobody's.
    pub fn set_kernel(&mut self, has_kernel: bool) {
        self.has_kernel = has_kernel;
    }

    /// The port that the frames came in by.
    #[inline]
    #[must_use]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// All frames, dropped ones included.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &[F] {
        &self.frames
    }

    /// Runs `step` on every live frame, in the order of arrival. An `Err` takes the frame out of the
    /// pipeline, and there is no other way out. Costs nothing for frames that are already out.
    #[inline(always)]
    pub fn for_each_live(&mut self, mut step: impl FnMut(&mut F, &mut Meta) -> Result<(), Exit>) {
        let mut todo = self.live;
        while todo != 0 {
            let i = todo.trailing_zeros() as usize;
            todo &= todo - 1;
            let Some(frame) = self.frames.get_mut(i) else { break };
            if let Err(exit) = step(frame, &mut self.meta[i]) {
                self.leave(i, exit);
            }
        }
    }

    #[cold]
    fn leave(&mut self, i: usize, exit: Exit) {
        self.live &= !(1 << i);
        match exit {
            Exit::Punt if self.has_kernel => self.punted |= 1 << i,
            Exit::Punt => self.drops[DropReason::NotOurs as usize] += 1,
            Exit::Drop(reason) => self.drops[reason as usize] += 1,
        }
    }

    /// How many frames are dropped so far, by reason.
    #[must_use]
    pub fn drops(&self) -> &[u16; DropReason::COUNT] {
        &self.drops
    }

    /// How many frames are live, and how many are the kernel's.
    #[must_use]
    pub fn live_and_punted(&self) -> (u32, u32) {
        (self.live.count_ones(), self.punted.count_ones())
    }

    /// What became of frame `i`: the port that it leaves by, or how it left the pipeline (why it was
    /// dropped is not kept for each frame, but counted).
    #[must_use]
    pub fn fate(&self, i: usize) -> Fate {
        if self.live >> i & 1 != 0 {
            Fate::Send(self.meta[i].out)
        } else if self.punted >> i & 1 != 0 {
            Fate::Punt
        } else {
            Fate::Drop
        }
    }

    /// What the stages wrote down about frame `i`.
    #[must_use]
    pub fn meta(&self, i: usize) -> &Meta {
        &self.meta[i]
    }

    /// Takes all frames away, each with its fate, in the order of arrival.
    #[inline]
    pub fn take(&mut self, mut taker: impl FnMut(F, Fate)) {
        let (live, punted) = (self.live, self.punted);
        for (i, frame) in self.frames.drain(..).enumerate() {
            let fate = if live >> i & 1 != 0 {
                Fate::Send(self.meta[i].out)
            } else if punted >> i & 1 != 0 {
                Fate::Punt
            } else {
                Fate::Drop
            };
            taker(frame, fate);
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves by this port.
    Send(PortId),
    /// It goes to the kernel.
    Punt,
    /// It is dropped, and counted.
    Drop,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sim::SimFrame;

    /// Frames that came in by the first port.
    pub(crate) fn burst_of(frames: impl IntoIterator<Item = SimFrame>) -> Burst<SimFrame> {
        let mut burst = Burst::default();
        burst.refill(PortId(0), |room| room.extend(frames));
        burst
    }

    fn numbered(n: usize) -> impl Iterator<Item = SimFrame> {
        (0..n).map(|number| {
            let mut frame = SimFrame::new(&[]);
            frame.number = number;
            frame
        })
    }

    fn live(burst: &mut Burst<SimFrame>) -> Vec<usize> {
        let mut numbers = Vec::new();
        burst.for_each_live(|frame, _| {
            numbers.push(frame.number);
            Ok(())
        });
        numbers
    }

    #[test]
    fn every_frame_is_live_at_first() {
        for n in [0, 1, 63, 64] {
            let mut burst = burst_of(numbered(n));
            assert_eq!(live(&mut burst), (0..n).collect::<Vec<_>>());
            assert_eq!(burst.live_and_punted(), (n.try_into().unwrap(), 0));
        }
    }

    #[test]
    fn frames_leave_for_one_reason_and_keep_their_order() {
        let mut burst = burst_of(numbered(BURST_MAX));
        burst.for_each_live(|frame, meta| {
            meta.out = PortId(3);
            match frame.number % 4 {
                0 => Err(DropReason::Truncated.into()),
                1 => Err(Exit::Punt),
                _ => Ok(()),
            }
        });
        burst.for_each_live(|frame, _| match frame.number {
            63 => Err(DropReason::TooBig.into()),
            number if number % 4 < 2 => panic!("{number} is out already"),
            _ => Ok(()),
        });
        assert_eq!(burst.live_and_punted(), (31, 16));
        let drops = burst.drops();
        assert_eq!(drops.iter().sum::<u16>(), 17);
        assert_eq!(drops[DropReason::Truncated as usize], 16);
        assert_eq!(drops[DropReason::TooBig as usize], 1);
        let fates: Vec<Fate> = (0..BURST_MAX).map(|i| burst.fate(i)).collect();
        let expect = [Fate::Drop, Fate::Punt, Fate::Send(PortId(3)), Fate::Send(PortId(3))];
        assert_eq!(fates[..4], expect);
        assert_eq!(fates[63], Fate::Drop);
        let mut taken = Vec::new();
        burst.take(|frame, fate| {
            assert_eq!(fate, fates[frame.number]);
            taken.push(frame.number);
        });
        assert_eq!(taken, (0..BURST_MAX).collect::<Vec<_>>());
        assert!(burst.frames().is_empty());
    }

    #[test]
    fn a_refilled_burst_remembers_nothing() {
        let mut burst = burst_of(numbered(2));
        burst.for_each_live(|frame, _| {
            Err(if frame.number == 0 { Exit::Punt } else { DropReason::NotOurs.into() })
        });
        burst.take(|_, _| ());
        burst.refill(PortId(1), |frames| frames.extend(numbered(3)));
        assert_eq!(burst.port(), PortId(1));
        assert_eq!(live(&mut burst), [0, 1, 2]);
        assert_eq!(burst.live_and_punted(), (3, 0));
        assert_eq!(burst.drops().iter().sum::<u16>(), 0);
    }

    #[test]
    fn without_a_kernel_what_is_punted_is_nobodys() {
        let mut burst = burst_of(numbered(1));
        burst.set_kernel(false);
        burst.for_each_live(|_, _| Err(Exit::Punt));
        assert_eq!(burst.fate(0), Fate::Drop);
        assert_eq!(burst.drops()[DropReason::NotOurs as usize], 1);
    }
}
