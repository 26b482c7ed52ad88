//! A random history, and the map that it is judged by.

use std::collections::BTreeMap;

use lb_core::pool::units;
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
    /// Flows of which another is there before, with the same ports.
    pub(crate) opened_again: u64,
    /// Flows that go on by way of another balancer.
    pub(crate) handed_over: u64,
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
        self.opened_again += other.opened_again;
        self.handed_over += other.handed_over;
    }
}

/// What a client knows of its flow.
#[derive(Clone, Copy, Debug)]
struct Live {
    backend: u8,
    last: Tick,
    balancer: usize,
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
    /// When there was a packet of a flow, live or not.
    last: BTreeMap<Name, Tick>,
    /// When balancers told each other of all their flows.
    told: Tick,
    /// How the network chooses the ways of flows; now and then otherwise than before.
    ways: u64,
    /// Has a backend failed since a balancer went?
    has_let_down: bool,
    pub(crate) totals: Totals,
}

impl History {
    pub(crate) fn new(seed: u64, balancers: usize) -> Self {
        let mut world = World::new(balancers);
        world.compile();
        let (live, last) = (BTreeMap::new(), BTreeMap::new());
        let (told, has_let_down) = (Tick(0), false);
        let (random, totals) = (seed ^ 0x5eed, Totals::default());
        Self { world, random, seed, live, last, told, ways: 0, has_let_down, totals }
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
            if self.world.balancers.len() > 1 {
                self.balancers();
            }
            self.burst();
        }
        for balancer in &self.world.balancers {
            self.totals.tracked += balancer.counters.tracked.get();
            self.totals.untracked += balancer.counters.untracked.get();
        }
    }

    /// One of two balancers goes, and comes back later, having missed changes; or flows take other ways.
    /// They tell each other what is new at once, and everything now and then.
    fn balancers(&mut self) {
        let down = self.world.balancers.iter().position(|balancer| !balancer.is_up);
        match down {
            None if self.below(100) == 0 => {
                let which = usize::try_from(self.below(2)).unwrap();
                self.world.balancers[which].is_up = false;
                self.has_let_down = self.world.lets_down();
            }
            Some(down) if self.below(30) == 0 => {
                // A flow that its backend lets down meanwhile moves, and may be on a slot that is not in
                // transition: who remembers where it was is wrong.
                let remembers = self.below(2) == 0 && !self.has_let_down;
                self.world.start(down, remembers);
            }
            None if self.below(50) == 0 => self.ways += 1,
            _ => {}
        }
        if self.told.0 + Tick::from(IDLE).0 / 4 < self.world.now.0 {
            self.told = self.world.now;
            self.world.tell_all();
        }
    }

    /// Control comes a little late; now and then much time passes in which nothing is sent.
    fn pass_time(&mut self) {
        let most = if self.below(2000) == 0 { 60_000 } else { 60 };
        self.world.now = Tick(self.world.now.0 + self.below(most));
        let late = self.below(3000);
        if self.world.next_change().is_some_and(|change| change.0 + late <= self.world.now.0) {
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
        self.has_let_down |= self.world.lets_down();
        for (name, flow) in &mut self.live {
            let up = self.world.balancers.iter().filter(|balancer| balancer.is_up);
            let mut may = up.map(|balancer| balancer.may_serve(KINDS[name.0], flow.backend));
            flow.was_let_down |= may.any(|may| !may);
        }
        let tracked = self.world.balancers.iter().map(|balancer| balancer.tables.tracker.len());
        self.totals.tracked_most = self.totals.tracked_most.max(tracked.max().unwrap_or(0));
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
        for balancer in 0..self.world.balancers.len() {
            let mine: Vec<usize> =
                (0..sent.len()).filter(|&it| self.balancer(sent[it].0) == balancer).collect();
            let frames: Vec<Vec<u8>> = mine.iter().map(|&it| frames[it].clone()).collect();
            let reached = self.world.send((balancer, worker), &frames);
            self.world.tell_news();
            for (it, backend) in mine.into_iter().zip(reached) {
                self.totals.packets += 1;
                let (name, kind) = sent[it];
                self.judge(name, kind, backend, balancer);
            }
        }
        // Now and then a client is done.
        let which = usize::try_from(self.below(1500)).unwrap();
        if self.below(8) == 0
            && let Some((&name, _)) = self.live.iter().nth(which)
        {
            self.live.remove(&name);
        }
    }

    /// The balancer that the network leads a flow to.
    fn balancer(&self, (service, client, port): Name) -> usize {
        let up = (0..self.world.balancers.len()).filter(|&it| self.world.balancers[it].is_up);
        let up: Vec<usize> = up.collect();
        let hash = (service as u64 ^ u64::from(client) << 20 ^ u64::from(port) ^ self.ways)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        up[usize::try_from(hash >> 33).unwrap() % up.len()]
    }

    fn judge(&mut self, name: Name, kind: Kind, backend: Option<u8>, balancer: usize) {
        let now = self.world.now;
        let before = self.live.get(&name).copied();
        let last = self.last.insert(name, now);
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
        let may_serve = self.world.balancers[balancer].may_serve(kind, backend);
        assert!(may_serve, "seed {}: {name:?} {backend}", self.seed);
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
        // Who was silent and says SYN has another connection in mind.
        let silence = last.map_or(u16::MAX, |last| units(now).wrapping_sub(units(last)));
        let balancers = &self.world.balancers;
        let known = balancers[balancer].silence(kind, balancers.len());
        if before.is_none() && silence >= known && kind.is_tcp() && kind != Kind::Client {
            let takes_flows = self.world.balancers[balancer].takes_flows(kind, backend);
            assert!(takes_flows, "seed {}: {name:?} opened on {backend} at {now:?}", self.seed);
            self.totals.opened_again += u64::from(last.is_some());
        }
        self.totals.flows += u64::from(before.is_none());
        self.totals.handed_over += u64::from(before.is_some_and(|it| it.balancer != balancer));
        self.live.insert(name, Live { backend, last: now, balancer, was_let_down: false });
    }
}
