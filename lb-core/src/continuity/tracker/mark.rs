//! The state of an entry of the flow table: one word, changed as a whole.

use super::Seen;
use crate::continuity::SILENT;
use crate::sign::Sign;
use crate::tables::ServiceId;

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Free,
    /// It is being written.
    Busy,
    /// The packet that opens it has come.
    Opening,
    /// One packet has come that does not open it.
    Seen,
    /// It goes on.
    Established,
    /// Its client has said that it is done. What opens a flow with the same key now is another one.
    Closing,
    /// A peer has told of it; no packet has come here.
    Told,
}

impl Phase {
    /// Is there a flow?
    #[inline]
    #[must_use]
    pub fn is_flow(self) -> bool {
        !matches!(self, Self::Free | Self::Busy)
    }
}

/// The state of an entry.
///
/// | bits | |
/// | --- | --- |
/// | 0..16 | when the flow was last seen, in [`crate::pool::units`] |
/// | 16..32 | place of its backend |
/// | 32..49 | [`ServiceId`] |
/// | 49..52 | [`Phase`] |
/// | 52..64 | counts writings |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(pub(super) u64);

/// How much longer than another a told flow has to be silent to give way to it, in
/// [`crate::pool::units`]: two minutes, which is twice as long as peers take to tell again of one that goes
/// on.
const TOLD_FOR: u16 = 30;
const BACKEND: u32 = 16;
const SERVICE: u32 = 32;
const SERVICE_MASK: u64 = (1 << 17) - 1;
const PHASE: u32 = 49;
const PHASE_MASK: u64 = 7;
const SEEN_MASK: u64 = 0xffff;
const WRITING: u32 = 52;

#[expect(clippy::cast_possible_truncation, reason = "the parts of a word")]
impl Mark {
    pub(super) fn new(service: ServiceId, backend: u16, phase: Phase, now: u16) -> Self {
        let service = u64::from(service.0) & SERVICE_MASK;
        let backend = u64::from(backend);
        Self(u64::from(now) | backend << BACKEND | service << SERVICE).with_phase(phase)
    }

    #[inline]
    pub(super) fn phase(self) -> Phase {
        match self.0 >> PHASE & PHASE_MASK {
            0 => Phase::Free,
            2 => Phase::Opening,
            3 => Phase::Seen,
            4 => Phase::Established,
            5 => Phase::Closing,
            6 => Phase::Told,
            _ => Phase::Busy,
        }
    }

    fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !(PHASE_MASK << PHASE) | (phase as u64) << PHASE)
    }

    #[inline]
    pub(super) fn service(self) -> ServiceId {
        ServiceId((self.0 >> SERVICE & SERVICE_MASK) as u32)
    }

    /// Is it a flow of this service?
    #[inline]
    pub(super) fn is_of(self, service: ServiceId) -> bool {
        self.phase().is_flow() && self.service() == service
    }

    #[inline]
    pub(super) fn backend(self) -> u16 {
        (self.0 >> BACKEND) as u16
    }

    pub(super) fn seen(self) -> u16 {
        self.0 as u16
    }

    /// May it, which is new, take the place of another? SYNs push out SYNs; flows that peers tell of, those
    /// that nobody has told of again for long; others, whatever was seen once or is at its end.
    pub(super) fn may_push_out(self, other: Self, now: u16) -> bool {
        match (self.phase(), other.phase()) {
            (Phase::Opening, phase) => phase == Phase::Opening,
            (Phase::Told, Phase::Told) => other.age(now) > self.age(now).saturating_add(TOLD_FOR),
            (Phase::Told, _) => false,
            (_, phase) => matches!(phase, Phase::Opening | Phase::Seen | Phase::Closing),
        }
    }

    /// Units since it was seen. The clock of another worker may be a little ahead.
    #[inline]
    pub(super) fn age(self, now: u16) -> u16 {
        let age = now.wrapping_sub(self.seen());
        if age > u16::MAX - 8 { 0 } else { age }
    }

    /// Is there nothing new in another packet of the flow? So it is with most.
    #[inline]
    pub(super) fn knows(self, sign: Sign, now: u16) -> bool {
        let established = Self(now.into()).with_phase(Phase::Established);
        sign == Sign::GoesOn && self.0 & (PHASE_MASK << PHASE | SEEN_MASK) == established.0
    }

    /// After another packet of the flow. What was seen now is not seen again for a while, so that a
    /// busy flow's entry is written once a unit, not once a packet.
    #[inline]
    pub(super) fn refreshed(self, sign: Sign, now: u16) -> Self {
        let phase = match (sign, self.phase()) {
            // It is the first that comes here.
            (Sign::Opens, Phase::Told) => Phase::Opening,
            (Sign::Opens, as_before) => as_before,
            // The other side may go on for long.
            (Sign::IsDone | Sign::Ends, _) | (_, Phase::Closing) => Phase::Closing,
            (Sign::GoesOn, _) => Phase::Established,
        };
        self.seen_last(now).with_phase(phase)
    }

    /// Had the flow been [`SILENT`] as `earlier`, before this? Then this is another, with the same ports.
    pub(super) fn is_after(self, earlier: Self, now: u16) -> bool {
        earlier.age(now) >= self.age(now).saturating_add(SILENT)
    }

    /// After a peer's word. A flow that goes on there counts for more than half of a handshake or a
    /// single packet here, and for less than one that goes on here; but if they are on two backends, and
    /// the one is clearly later, that counts: the other was another flow, with the same ports.
    pub(super) fn told(self, told: Self, now: u16) -> Self {
        let is_same = self.backend() == told.backend();
        let is_earlier = told.age(now) >= self.age(now);
        let is_another = !is_same && told.is_after(self, now);
        let opens = told.phase() == Phase::Opening;
        let stays = match self.phase() {
            Phase::Established => !is_another,
            Phase::Closing | Phase::Told => is_same,
            Phase::Opening if opens => is_same,
            _ if opens => !is_another,
            _ => self.is_after(told, now),
        };
        match (stays, is_same) {
            (true, false) => self,
            (true, true) if is_earlier => self,
            (true, true) => self.seen_last(told.seen()),
            (false, true) if is_earlier => self.replaced(told.seen_last(self.seen())),
            (false, _) => self.replaced(told),
        }
    }

    fn seen_last(self, seen: u16) -> Self {
        Self(self.0 & !SEEN_MASK | u64::from(seen))
    }

    /// The same flow as somebody else has it.
    pub(super) fn replaced(self, told: Self) -> Self {
        Self(self.0 & !0xffff_ffff | told.0 & 0xffff_ffff).with_phase(told.phase())
    }

    /// What it says at a time, in units.
    pub(super) fn seen_at(self, now: u16) -> Seen {
        Seen {
            service: self.service(),
            backend: self.backend(),
            age: self.age(now),
            phase: self.phase(),
        }
    }

    pub(super) fn freed(self) -> Self {
        self.with_phase(Phase::Free)
    }

    pub(super) fn busy(self) -> Self {
        Self(self.0.wrapping_add(1 << WRITING)).with_phase(Phase::Busy)
    }

    /// What a writer leaves behind that has made the entry `busy`.
    pub(super) fn written_after(self, busy: Self) -> Self {
        Self(self.0 & !(u64::MAX << WRITING) | busy.0 & u64::MAX << WRITING)
    }

    /// Has nobody written, or begun to, since it was `earlier`, which was not busy?
    #[inline]
    pub(super) fn is_same_writing(self, earlier: Self) -> bool {
        self.0 >> WRITING == earlier.0 >> WRITING
    }
}
