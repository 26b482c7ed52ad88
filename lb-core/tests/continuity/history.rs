//! A random history, and the map that it is judged by.

use std::collections::BTreeMap;

use lb_core::rate::Tick;

use crate::world::{BACKENDS, IDLE, KINDS, Kind, WORKERS, Wanted, World, frame};

const SYN: u8 = 2;
const ACK: u8 = 0x10;
/// Flows that are alive at once, at most.
const FLOWS: u64 = 3000;

#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) packets: u64,
    pub(crate) changes: u64,
    pub(crate) flows: u64,
    pub(crate) tracked: u64,
    pub(crate) untracked: u64,
    pub(crate) tracked_most: u32,
    pub(crate) moved_off_failed: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.changes += other.changes;
        self.flows += other.flows;
        self.tracked += other.tracked;
        self.untracked += other.untracked;
        self.tracked_most = self.tracked_most.max(other.tracked_most);
        self.moved_off_failed += other.moved_off_failed;
    }
}

/// What a client knows of its flow.
#[derive(Clone, Copy, Debug)]
struct Live {
    backend: u8,
    last: Tick,
    /// Its backend could not serve for a while.
    was_let_down: bool,
}

/// (service, client, port); for a service that keeps clients together, the port is 0.
type Name = (usize, u16, u16);

pub(crate) struct History {
    world: World,
    random: u64,
    seed: u64,
    live: BTreeMap<Name, Live>,
    pub(crate) totals: Totals,
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = World::new();
        world.compile();
        let live = BTreeMap::new();
        Self { world, random: seed ^ 0x5eed, seed, live, totals: Totals::default() }
    }

    /// Below `n`, by Knuth's MMIX generator.
    fn below(&mut self, n: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn backend(&mut self) -> u8 {
        u8::try_from(1 + self.below(BACKENDS.into())).unwrap()
    }

    pub(crate) fn run(&mut self, packets: u64) {
        while self.totals.packets < packets {
            self.pass_time();
            if self.below(20) == 0 {
                self.change();
            }
            self.burst();
        }
        let counters = &self.world.counters;
        (self.totals.tracked, self.totals.untracked) =
            (counters.tracked.get(), counters.untracked.get());
    }

    /// Control comes a little late; now and then much time passes in which nothing is sent.
    fn pass_time(&mut self) {
        let most = if self.below(2000) == 0 { 60_000 } else { 60 };
        self.world.now = Tick(self.world.now.0 + self.below(most));
        let late = self.below(3000);
        if self.world.tables.next_change().is_some_and(|change| change.0 + late <= self.world.now.0)
        {
            self.world.compile();
        }
        let now = self.world.now.0;
        self.live.retain(|_, flow| now - flow.last.0 < Tick::from(IDLE).0);
    }

    fn change(&mut self) {
        self.totals.changes += 1;
        let n = self.backend();
        match self.below(26) {
            0..4 => drop(self.world.wanted.remove(&n)),
            4..8 => {
                let weight = u32::try_from(self.below(4)).unwrap();
                self.world.wanted.insert(n, Wanted { weight, drain: false });
            }
            8..12 => {
                if let Some(wanted) = self.world.wanted.get_mut(&n) {
                    wanted.drain ^= true;
                }
            }
            12 => drop(self.world.failed.insert(n)),
            13..18 => {
                self.world.failed.clear();
                self.world.unreachable.clear();
                self.world.unknown.clear();
            }
            24 => drop(self.world.unknown.insert(n)),
            25 => self.world.unknown.clear(),
            18 => drop(self.world.unreachable.insert(n)),
            19 => {
                let sizes = [1009, 1013, 2003, 509];
                self.world.slots = sizes[usize::try_from(self.below(4)).unwrap()];
            }
            _ => {
                // All of them leave, or most of them come.
                if self.below(2) == 0 {
                    self.world.wanted.values_mut().for_each(|wanted| wanted.drain = true);
                } else {
                    for n in 1..=BACKENDS {
                        self.world.wanted.insert(n, Wanted { weight: 1, drain: false });
                    }
                }
            }
        }
        self.world.compile();
        for (name, flow) in &mut self.live {
            flow.was_let_down |= !self.world.may_serve(KINDS[name.0], flow.backend);
        }
        self.totals.tracked_most = self.totals.tracked_most.max(self.world.tables.tracker.len());
    }

    fn burst(&mut self) {
        let worker = usize::try_from(self.below(WORKERS as u64)).unwrap();
        let n = 1 + self.below(64);
        let mut sent: Vec<(Name, Kind)> = Vec::new();
        let mut frames = Vec::new();
        for _ in 0..n {
            let which = self.below(FLOWS);
            let place = usize::try_from(which % KINDS.len() as u64).unwrap();
            let kind = KINDS[place];
            let (client, port) =
                (u16::try_from(which / 6).unwrap(), 40_000 + u16::try_from(which % 6).unwrap());
            let name = (place, client, if kind == Kind::Client { 0 } else { port });
            let is_live =
                self.live.contains_key(&name) || sent.iter().any(|(other, _)| *other == name);
            // A client says SYN again if it hears nothing; in a live flow it never does.
            let flags = if is_live && kind != Kind::Client { ACK } else { SYN };
            frames.push(frame(kind, client, port, flags));
            sent.push((name, kind));
        }
        let reached = self.world.send(worker, &frames);
        for ((name, kind), backend) in sent.into_iter().zip(reached) {
            self.totals.packets += 1;
            self.judge(name, kind, backend);
        }
        // Now and then a client is done.
        let which = usize::try_from(self.below(1500)).unwrap();
        if self.below(8) == 0
            && let Some((&name, _)) = self.live.iter().nth(which)
        {
            self.live.remove(&name);
        }
    }

    fn judge(&mut self, name: Name, kind: Kind, backend: Option<u8>) {
        let now = self.world.now;
        let before = self.live.get(&name).copied();
        let Some(backend) = backend else {
            // Nobody can take it: then its own backend may not serve either, or is being looked for.
            if let Some(before) = before
                && !self.world.unknown.contains(&before.backend)
            {
                let may = !before.was_let_down;
                assert!(!may, "seed {}: {name:?} lost at {now:?}, was on {before:?}", self.seed);
                self.live.remove(&name);
            }
            return;
        };
        assert!(self.world.may_serve(kind, backend), "seed {}: {name:?} {backend}", self.seed);
        if let Some(before) = before
            && before.backend != backend
        {
            assert!(
                before.was_let_down,
                "seed {}, packet {}: {name:?} moved to {backend} at {now:?}, was on {before:?}",
                self.seed, self.totals.packets
            );
            self.totals.moved_off_failed += 1;
        }
        self.totals.flows += u64::from(before.is_none());
        self.live.insert(name, Live { backend, last: now, was_let_down: false });
    }
}
