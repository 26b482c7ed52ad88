//! How far a connection is: one word, changed as a whole.

use crate::sign::Sign;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Free,
    /// It is being written.
    Busy,
    /// The client has sent something.
    Opening,
    /// The backend has answered.
    Answered,
    /// The client has answered that.
    Established,
    /// One side has ended it at once, or both have said that they are done.
    Closed,
}

/// The state of an entry.
///
/// | bits | |
/// | --- | --- |
/// | 0..8 | counts writings |
/// | 8..12 | [`Phase`] |
/// | 12..15 | the client is done; the backend is done; the backend has the PROXY header |
/// | 16..32 | when it was last seen, in [`super::units`] |
/// | 32..64 | a part of the flow's hash |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(pub(super) u64);

const PHASES: [Phase; 6] =
    [Phase::Free, Phase::Busy, Phase::Opening, Phase::Answered, Phase::Established, Phase::Closed];
const WRITINGS: u64 = 0xff;
const PHASE: u32 = 8;
const PHASE_MASK: u64 = 0xf;
const SEEN: u32 = 16;
const SEEN_MASK: u64 = 0xffff;
const CLIENT_DONE: u64 = 1 << 12;
const BACKEND_DONE: u64 = 1 << 13;
const HAS_HEADER: u64 = 1 << 14;
/// How long half-open connections are kept, in units: about half a minute.
const OPENING_UNITS: u16 = 8;
/// As long as the other end may be in TIME-WAIT (a minute with Linux), so that it knows the port no
/// more when it is used again.
const CLOSED_UNITS: u16 = 16;

impl State {
    /// Of a connection whose first packet has come, in the place of one that was `before`.
    pub(super) fn opening(before: Self, tag: u32, now: u16) -> Self {
        Self(before.0 & WRITINGS | u64::from(tag) << 32).with_phase(Phase::Opening).seen(now)
    }

    /// A part of the flow's hash.
    #[must_use]
    pub fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// How far it is.
    #[must_use]
    pub fn phase(self) -> Phase {
        PHASES.get((self.0 >> PHASE & PHASE_MASK) as usize).copied().unwrap_or(Phase::Free)
    }

    /// Is there a connection?
    #[inline]
    pub(super) fn is_connection(self) -> bool {
        (Phase::Opening as u64..=Phase::Closed as u64).contains(&(self.0 >> PHASE & PHASE_MASK))
    }

    fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !(PHASE_MASK << PHASE) | (phase as u64) << PHASE)
    }

    fn seen(self, now: u16) -> Self {
        Self(self.0 & !(SEEN_MASK << SEEN) | u64::from(now) << SEEN)
    }

    /// Does the backend have the PROXY header, by its own word?
    #[must_use]
    pub fn has_header(self) -> bool {
        self.0 & HAS_HEADER != 0
    }

    /// The backend says that it has the PROXY header.
    #[must_use]
    pub fn with_header(self) -> Self {
        Self(self.0 | HAS_HEADER)
    }

    /// Units since it was last seen.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
    pub(super) fn age(self, now: u16) -> u16 {
        now.wrapping_sub((self.0 >> SEEN) as u16)
    }

    /// How long it may be silent, in units.
    pub(super) fn idle_max(self, established: impl FnOnce() -> u16) -> u16 {
        match self.phase() {
            Phase::Closed => CLOSED_UNITS,
            Phase::Established => established(),
            _ => OPENING_UNITS,
        }
    }

    /// After a writing that never came to its end.
    pub(super) fn freed(self) -> Self {
        self.with_phase(Phase::Free)
    }

    /// While an entry is written.
    pub(super) fn busy(self) -> Self {
        Self(self.0 & !WRITINGS | self.0.wrapping_add(1) & WRITINGS).with_phase(Phase::Busy)
    }

    /// This state, as the outcome of the writing that began with `busy`.
    pub(super) fn written_after(self, busy: Self) -> Self {
        Self(self.0 & !WRITINGS | busy.0 & WRITINGS)
    }

    /// Is the content that was written when this was read, of a connection, also that of `other`?
    #[inline]
    pub(super) fn is_same_writing(self, other: Self) -> bool {
        self.0 & WRITINGS == other.0 & WRITINGS
    }

    /// Is there nothing new in another packet of the connection, from either side? So it is with most.
    #[inline]
    #[must_use]
    pub fn knows(self, sign: Sign, now: u16) -> bool {
        let established = Self(0).with_phase(Phase::Established).seen(now);
        let what = PHASE_MASK << PHASE | SEEN_MASK << SEEN;
        sign == Sign::GoesOn && self.0 & what == established.0
    }

    /// After a packet of the client.
    #[must_use]
    pub fn client_sent(self, sign: Sign, now: u16) -> Self {
        let next = if self.phase() == Phase::Answered && sign != Sign::Opens {
            self.with_phase(Phase::Established)
        } else {
            self
        };
        next.seen(now).after(sign, CLIENT_DONE)
    }

    /// After a packet of the backend.
    #[must_use]
    pub fn backend_sent(self, sign: Sign, now: u16) -> Self {
        let next =
            if self.phase() == Phase::Opening { self.with_phase(Phase::Answered) } else { self };
        next.seen(now).after(sign, BACKEND_DONE)
    }

    /// RFC 9293 §3.6, RFC 9260 §9: it is over when both sides are done, or one ends it.
    fn after(self, sign: Sign, done: u64) -> Self {
        let state = if sign == Sign::IsDone { Self(self.0 | done) } else { self };
        let both = state.0 & CLIENT_DONE != 0 && state.0 & BACKEND_DONE != 0;
        if both || sign == Sign::Ends { state.with_phase(Phase::Closed) } else { state }
    }

    /// Of the same entry, for a new connection of the same client and port.
    #[must_use]
    pub fn reopened(self, now: u16) -> Self {
        Self::opening(self, self.tag(), now)
    }

    /// Is what opens a connection a new one, not a part of this one? Within one, the backend decides what
    /// it means (RFC 5961 §4, RFC 9260 §5.2.2).
    #[must_use]
    pub fn may_reopen(self) -> bool {
        matches!(self.phase(), Phase::Closed | Phase::Opening)
    }
}
