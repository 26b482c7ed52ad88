//! A burst: the frames that a worker takes through the pipeline together.

use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Frame, Frames};
use crate::pool::Found;
use crate::tables::next_hop::PortId;
use crate::tuple::Tuple;

/// What the stages find out about a frame, and what they decide. A cache line each: stages walk over
/// them again and again.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Meta {
    /// The flow; by `parse`.
    pub tuple: Tuple,
    /// Is this a part of a packet, without ports? By `parse`.
    pub is_fragment: bool,
    /// Bytes before the IP header: 14, 18 or 22; by `parse`.
    pub l3_offset: u8,
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
    /// Why it is the service's; by `parse` and those who know better.
    pub rule: Rule,
}

const _: () = assert!(size_of::<Meta>() == 64);

/// By which rule a frame is a service's, or what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// None: it is no packet that a service could have.
    #[default]
    None,
    /// The first fragment of its datagram said so.
    Fragment,
    /// It is an ICMP error about a packet of a flow.
    IcmpError,
    /// Its addresses, ports and protocol say so.
    Flow,
    /// It is the answer of a backend, to be translated back.
    Return,
    /// It is a fragment of such an answer, but not the first.
    ReturnFragment,
    /// It is an ICMP error about a packet that was translated, on its way to the client.
    ReturnError,
    /// It is an ICMP error about a tunnel's packet, which the client of the packet inside is told of.
    TunnelError,
}

impl Rule {
    /// Does it come from a backend, or from the way to it?
    #[inline]
    #[must_use]
    pub fn is_return(self) -> bool {
        matches!(self, Self::Return | Self::ReturnFragment | Self::ReturnError | Self::TunnelError)
    }

    /// Does the packet itself have a transport header of the flow's protocol? An error and later
    /// fragments have none.
    #[inline]
    #[must_use]
    pub fn has_segment(self) -> bool {
        matches!(self, Self::Flow | Self::Return)
    }
}

/// How a frame leaves the pipeline early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It goes no further.
    Drop(DropReason),
    /// It is the kernel's.
    Punt,
    /// It waits for the first fragment of its datagram.
    Hold,
    /// It is another worker's.
    HandOver(WorkerId),
    /// It has become an answer that tells its sender why it went no further, and leaves by this port.
    Answer(PortId, DropReason),
}

impl Exit {
    /// Where it leads to, if there is a kernel or is not.
    #[cold]
    fn at(self, has_kernel: bool) -> Self {
        match self {
            Self::Punt if !has_kernel => DropReason::NotOurs.into(),
            exit => exit,
        }
    }
}

impl Default for Exit {
    fn default() -> Self {
        Self::Drop(DropReason::NotOurs)
    }
}

/// The place of a worker among all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(pub u8);

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
    /// Is a frame among them a part of a packet?
    has_fragments: bool,
    frames: Frames<F>,
    meta: [Meta; BURST_MAX],
    /// The connections of frames whose service has a pool, as they were read: of answers; and of requests whose
    /// backend is told who the client is.
    connections: [Found; BURST_MAX],
    /// How the frames that are not live any more left the pipeline.
    exits: [Exit; BURST_MAX],
    /// What is on its way through the pipeline.
    live: Mask,
    kinds: Kinds,
}

/// Frames of a burst: bit `i` stands for frame `i`.
pub type Mask = u64;

/// Which frames are what; by `classify`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kinds {
    /// They come from a backend, or from the way to it: see [`Rule::is_return`].
    pub returns: Mask,
    /// Their flows may be tracked, or become so.
    pub tracked: Mask,
    /// Their service has a pool.
    pub connected: Mask,
}

impl<F> Default for Burst<F> {
    fn default() -> Self {
        Self {
            port: PortId::default(),
            has_kernel: true,
            has_fragments: false,
            frames: Frames::new(),
            meta: [Meta::default(); BURST_MAX],
            connections: [Found::default(); BURST_MAX],
            exits: [Exit::default(); BURST_MAX],
            live: 0,
            kinds: Kinds::default(),
        }
    }
}

impl<F: Frame> Burst<F> {
    /// Starts anew with frames of `port`, which `fill` appends.
    #[inline]
    pub fn refill(&mut self, port: PortId, fill: impl FnOnce(&mut Frames<F>)) {
        debug_assert!(self.frames.is_empty(), "the last burst was not taken away");
        self.port = port;
        self.kinds = Kinds::default();
        fill(&mut self.frames);
        let n = self.frames.len();
        self.live = if n == 0 { 0 } else { u64::MAX >> (BURST_MAX - n) };
    }

    /// Says whether the port has a kernel side; without, frames for the kernel are nobody's.
    pub fn set_kernel(&mut self, has_kernel: bool) {
        self.has_kernel = has_kernel;
    }

    /// Says which frames are what.
    #[inline]
    pub fn set_kinds(&mut self, kinds: Kinds) {
        self.kinds = kinds;
    }

    /// All that are live.
    #[inline]
    #[must_use]
    pub fn live(&self) -> Mask {
        self.live
    }

    /// What clients send.
    #[inline]
    #[must_use]
    pub fn requests(&self) -> Mask {
        self.live & !self.kinds.returns
    }

    /// What comes from backends, and from the way to them.
    #[inline]
    #[must_use]
    pub fn returns(&self) -> Mask {
        self.live & self.kinds.returns
    }

    /// Requests whose flows may be tracked.
    #[inline]
    #[must_use]
    pub fn tracked(&self) -> Mask {
        self.requests() & self.kinds.tracked
    }

    /// Those, in both directions, whose service has a pool.
    #[inline]
    #[must_use]
    pub fn connected(&self) -> Mask {
        self.live & self.kinds.connected
    }

    /// Says whether there may be fragments among the frames.
    pub fn set_fragments(&mut self, has_fragments: bool) {
        self.has_fragments = has_fragments;
    }

    /// May there be fragments among the frames?
    #[inline]
    #[must_use]
    pub fn has_fragments(&self) -> bool {
        self.has_fragments
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
        self.for_each(self.live, |_, frame, meta| step(frame, meta));
    }

    /// As [`Burst::for_each_live`], of some frames, which have to be live, with each one's place in the burst.
    #[inline(always)]
    pub fn for_each(
        &mut self,
        these: Mask,
        mut step: impl FnMut(usize, &mut F, &mut Meta) -> Result<(), Exit>,
    ) {
        self.for_each_connected(these, |i, frame, meta, _| step(i, frame, meta));
    }

    /// As [`Burst::for_each`], with the connection of each, if its service has a pool.
    #[inline(always)]
    pub fn for_each_connected(
        &mut self,
        these: Mask,
        mut step: impl FnMut(usize, &mut F, &mut Meta, &mut Found) -> Result<(), Exit>,
    ) {
        debug_assert_eq!(these & !self.live, 0, "frames that are out stay out");
        let Self { frames, meta, connections, exits, live, has_kernel, .. } = self;
        let frames = frames.as_mut_slice();
        let mut todo = these;
        while todo != 0 {
            let i = todo.trailing_zeros() as usize;
            todo &= todo - 1;
            let Some(frame) = frames.get_mut(i) else { break };
            if let Err(exit) = step(i, frame, &mut meta[i], &mut connections[i]) {
                *live &= !(1 << i);
                exits[i] = exit.at(*has_kernel);
            }
        }
    }

    /// As [`Burst::for_each`], of what is known of the frames, without them.
    #[inline(always)]
    pub fn for_each_meta(
        &mut self,
        these: Mask,
        mut step: impl FnMut(usize, &mut Meta) -> Result<(), Exit>,
    ) {
        debug_assert_eq!(these & !self.live, 0, "frames that are out stay out");
        let mut todo = these;
        while todo != 0 {
            let i = todo.trailing_zeros() as usize;
            todo &= todo - 1;
            if let Err(exit) = step(i, &mut self.meta[i]) {
                self.live &= !(1 << i);
                self.exits[i] = exit.at(self.has_kernel);
            }
        }
    }

    /// How many frames are dropped so far, by reason.
    #[must_use]
    pub fn drops(&self) -> [u16; DropReason::COUNT] {
        let mut drops = [0; DropReason::COUNT];
        for i in 0..self.frames.len() {
            if let Fate::Exit(Exit::Drop(reason)) = self.fate(i) {
                drops[reason as usize] += 1;
            }
        }
        drops
    }

    /// How many frames are live, and how many are the kernel's.
    #[must_use]
    pub fn live_and_punted(&self) -> (u32, u32) {
        let is_punted = |i: &usize| self.fate(*i) == Fate::Exit(Exit::Punt);
        let punted = (0..self.frames.len()).filter(is_punted).count();
        (self.live.count_ones(), u32::try_from(punted).unwrap_or(u32::MAX))
    }

    /// What became of frame `i`.
    #[inline]
    #[must_use]
    pub fn fate(&self, i: usize) -> Fate {
        if self.live >> i & 1 != 0 {
            Fate::Send(self.meta[i].out)
        } else {
            Fate::Exit(self.exits[i])
        }
    }

    /// What the stages wrote down about frame `i`.
    #[must_use]
    pub fn meta(&self, i: usize) -> &Meta {
        &self.meta[i]
    }

    /// Takes all frames away, each with what is known of it and its fate, in the order of arrival.
    #[inline]
    pub fn take(&mut self, mut taker: impl FnMut(usize, F, &Meta, Fate)) {
        let live = self.live;
        for (i, frame) in self.frames.drain(..).enumerate() {
            let meta = &self.meta[i];
            let is_live = live >> i & 1 != 0;
            let fate = if is_live { Fate::Send(meta.out) } else { Fate::Exit(self.exits[i]) };
            taker(i, frame, meta, fate);
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves by this port.
    Send(PortId),
    /// It left the pipeline early.
    Exit(Exit),
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
        let drop = |reason| Fate::Exit(Exit::Drop(reason));
        let send = Fate::Send(PortId(3));
        let expect = [drop(DropReason::Truncated), Fate::Exit(Exit::Punt), send, send];
        assert_eq!(fates[..4], expect);
        assert_eq!(fates[63], drop(DropReason::TooBig));
        let mut taken = Vec::new();
        burst.take(|i, frame, _, fate| {
            assert_eq!(i, frame.number);
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
        burst.take(|_, _, _, _| ());
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
        assert_eq!(burst.fate(0), Fate::Exit(DropReason::NotOurs.into()));
        assert_eq!(burst.drops()[DropReason::NotOurs as usize], 1);
    }
}
