//! What a worker remembers from one burst to the next.

use std::collections::VecDeque;

use crate::burst::WorkerId;
use crate::drop_reason::DropReason;
use crate::fragments::Fragments;
use crate::rate::{RateLimit, Tick};
use crate::stopwatch::Stopwatch;
use crate::tables::next_hop::PortId;

/// Frames that the packets of one burst may be split into beyond themselves, at most.
pub const CREATED_MAX: usize = 256;

/// What a worker is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its place, below `workers`.
    pub worker: WorkerId,
    /// How many there are.
    pub workers: u8,
    /// What it gives to the kernel in a second, at most, for each port; and as many answers it sends,
    /// for all ports.
    pub punts_per_second: u32,
}

/// The state of one worker, besides its queues and tables.
#[derive(Debug)]
pub struct State<F> {
    /// The time of this turn.
    pub now: Tick,
    /// Which worker it is, of how many.
    pub worker: WorkerId,
    /// See `worker`.
    pub workers: u8,
    /// The datagrams that come in pieces.
    pub fragments: Fragments<F>,
    /// The frames of this burst have been here before: fragments that had to wait.
    pub is_releasing: bool,
    /// ICMP errors that are sent.
    pub answers: RateLimit,
    /// Where the cycles go.
    pub stopwatch: Stopwatch,
    /// What packets were split into, with the place in the burst of the first piece.
    created: VecDeque<(usize, PortId, F)>,
    /// The last identification that an outer packet in pieces got.
    last_id: u32,
}

impl<F> State<F> {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            now: Tick(0),
            worker: settings.worker,
            workers: settings.workers.max(1),
            fragments: Fragments::new(),
            is_releasing: false,
            answers: RateLimit::new(settings.punts_per_second),
            stopwatch: Stopwatch::default(),
            created: VecDeque::with_capacity(CREATED_MAX),
            // Balancers and workers begin apart.
            last_id: u32::from(settings.worker.0) << 24,
        }
    }

    /// Adds a piece of the packet at `place` of the burst, to leave by `port` behind it.
    ///
    /// # Errors
    /// [`DropReason::NoBuffer`], above [`CREATED_MAX`].
    pub fn create(&mut self, place: usize, port: PortId, frame: F) -> Result<(), DropReason> {
        if self.created.len() >= CREATED_MAX {
            return Err(DropReason::NoBuffer);
        }
        // By place, and answers are forwarded after requests.
        let behind = self.created.partition_point(|(of, ..)| *of <= place);
        self.created.insert(behind, (place, port, frame));
        Ok(())
    }

    /// Takes a piece of the packet at `place` back; `None`, if there is none (any more).
    pub fn take_created(&mut self, place: usize) -> Option<(PortId, F)> {
        let (_, port, frame) = self.created.pop_front_if(|(of, ..)| *of == place)?;
        Some((port, frame))
    }

    /// Takes the pieces of the packet at `place` away again.
    pub fn forget_created(&mut self, place: usize) {
        self.created.retain(|(of, ..)| *of != place);
    }

    /// An identification that was not used for long (RFC 6864 §4.3).
    pub fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}
