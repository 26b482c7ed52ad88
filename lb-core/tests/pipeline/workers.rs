//! What a worker remembers, and what workers give each other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use lb_core::burst::WorkerId;
use lb_core::counters::{Counter, Counters};
use lb_core::drop_reason::DropReason;
use lb_core::fragments::{DATAGRAMS_MAX, LIFETIME_MS, STRETCHES_MAX, WAITING_MAX};
use lb_core::frame::Frame as _;
use lb_core::publish::{Publisher, publication};
use lb_core::rate::Tick;
use lb_core::sim::{SimFrame, SimIo};
use lb_core::state::Settings;
use lb_core::tables::Tables;
use lb_core::tables::next_hop::PortId;
use lb_core::tuple::Tuple;
use lb_core::worker::Worker;

use crate::support::packet::Packet;
use crate::support::world::World;

struct Site {
    workers: Vec<(Worker<SimIo>, Arc<Counters>)>,
    _publisher: Publisher<Tables>,
    now: Tick,
}

impl Site {
    fn new(n: u8) -> Self {
        let world = World::fixed();
        let (publisher, subscribers) = publication(&world.tables, n.into());
        let ports = world.ports.len();
        let worker = |(tables, worker)| {
            let settings =
                Settings { worker: WorkerId(worker), workers: n, punts_per_second: u32::MAX };
            let counters = Arc::new(Counters::new(world.tables.services.len()));
            let io = SimIo::new(ports);
            (Worker::new(io, ports, tables, Arc::clone(&counters), settings), counters)
        };
        let workers = subscribers.into_iter().zip(0..).map(worker).collect();
        Self { workers, _publisher: publisher, now: Tick(0) }
    }

    /// Gives each worker its frames, and turns until nobody has anything to do.
    fn turn(&mut self, arrivals: Vec<(usize, SimFrame)>) {
        for (worker, frame) in arrivals {
            self.workers[worker].0.io().arriving[0].push_back(frame);
        }
        for _ in 0..8 {
            for place in 0..self.workers.len() {
                let (worker, counters) = &mut self.workers[place];
                worker.turn(self.now);
                let (came, went) = counters.balance();
                assert_eq!(came, went);
                for (to, port, frame) in worker.io().handed_over.split_off(0) {
                    let io = self.workers[usize::from(to.0)].0.io();
                    io.taking_over[port.index()].push_back(frame);
                }
            }
        }
    }

    /// All frames that were sent, by their numbers.
    fn sent(&mut self) -> BTreeMap<usize, (PortId, Vec<u8>)> {
        let mut all = BTreeMap::new();
        for (worker, _) in &mut self.workers {
            for (frames, port) in worker.io().sent.iter_mut().zip((0..).map(PortId)) {
                for frame in frames.drain(..) {
                    let twice = all.insert(frame.number, (port, frame.bytes().to_vec()));
                    assert!(twice.is_none(), "frame {} was sent twice", frame.number);
                }
            }
        }
        all
    }

    fn sum(&self, pick: impl Fn(&Counters) -> &Counter) -> u64 {
        self.workers.iter().map(|(_, counters)| pick(counters).get()).sum()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.sum(|counters| &counters.drops[reason as usize])
    }
}

/// A fragment of 32 bytes of a datagram for a service with many backends.
fn piece(client: u8, offset: u16, has_more: bool, number: usize) -> SimFrame {
    piece_from([198, 51, 100, client].into(), offset, has_more, number)
}

fn piece_from(client: Ipv4Addr, offset: u16, has_more: bool, number: usize) -> SimFrame {
    let packet = Packet::tcp(&format!("{client}:40000"), "10.0.0.100:80").with(|p| {
        p.fragment = Some((offset, has_more));
        p.raw_segment = offset > 0;
        p.payload = vec![client.octets()[3]; if offset > 0 { 32 } else { 12 }];
    });
    let mut frame = SimFrame::new(&packet.frame());
    frame.number = number;
    frame
}

/// Whatever worker a fragment comes to, it leaves as if there were only one.
#[test]
fn fragments_go_one_way_through_several_workers() {
    let datagrams = |workers: usize| -> Vec<(usize, SimFrame)> {
        // In an order that has the first fragments in the middle.
        let order = [(3, false), (1, true), (0, true), (2, true)];
        (0..50_u8)
            .flat_map(|client| order.map(|(part, more)| (client, part, more)))
            .zip(0..)
            .map(|((client, part, more), number)| {
                (number % workers, piece(client, part * 4, more, number))
            })
            .collect()
    };
    let mut one = Site::new(1);
    one.turn(datagrams(1));
    let expect = one.sent();
    assert_eq!(expect.len(), 200);
    for n in [2, 3] {
        let mut several = Site::new(n);
        several.turn(datagrams(n.into()));
        assert!(several.sent() == expect, "{n} workers");
        assert!(several.sum(|counters| &counters.handed_over) > 50);
        let [handed, taken] = [
            several.sum(|counters| &counters.handed_over),
            several.sum(|counters| &counters.taken_over),
        ];
        assert_eq!(handed, taken);
    }
}

#[test]
fn a_full_queue_to_another_worker_is_counted() {
    let mut site = Site::new(2);
    for (worker, _) in &mut site.workers {
        worker.io().hand_over_max = 0;
    }
    site.turn((0..40).map(|client| (0, piece(client, 0, true, client.into()))).collect());
    let full = site.drops(DropReason::HandOverFull);
    assert!((5..35).contains(&full), "about half of the datagrams are the other's: {full}");
    assert_eq!(site.sent().len() as u64 + full, 40);
}

#[test]
fn who_waits_in_vain_is_dropped_and_counted() {
    let mut site = Site::new(1);
    site.turn(vec![(0, piece(1, 4, true, 0))]);
    assert_eq!(site.sum(|counters| &counters.held), 1);
    site.now = Tick(LIFETIME_MS - 1);
    site.turn(Vec::new());
    assert_eq!(site.drops(DropReason::FragmentTimeout), 0);
    site.now = Tick(LIFETIME_MS);
    site.turn(Vec::new());
    assert_eq!(site.drops(DropReason::FragmentTimeout), 1);
    // The first one comes too late.
    site.turn(vec![(0, piece(1, 0, true, 1))]);
    assert_eq!(site.sent().len(), 1);
}

/// What waits outlives what is remembered of its datagram, and its bytes count all the same.
#[test]
fn bytes_of_who_waits_count_when_its_datagram_was_forgotten() {
    let mut site = Site::new(1);
    site.turn(vec![(0, piece(1, 4, true, 0))]);
    site.now = Tick(LIFETIME_MS - 1);
    site.turn(vec![(0, piece(1, 12, true, 1))]);
    site.now = Tick(LIFETIME_MS + 1);
    site.turn(vec![(0, piece(1, 0, true, 2))]);
    assert_eq!(site.sent().into_keys().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(site.drops(DropReason::FragmentTimeout), 1);
    site.turn(vec![(0, piece(1, 10, true, 3))]);
    assert_eq!(site.drops(DropReason::FragmentOverlap), 1);
}

/// A fragment whose first one came, and was forgotten in the same burst, would wait in vain again.
#[test]
fn who_has_waited_does_not_wait_again() {
    let tables = World::fixed().tables;
    let bucket = |client: Ipv4Addr| {
        let name = Tuple::new(client.into(), Ipv4Addr::new(10, 0, 0, 100).into(), 0, 0, 6);
        tables.hasher.hash(&name, true) % (DATAGRAMS_MAX as u64 / 4)
    };
    let client = Ipv4Addr::new(198, 51, 100, 1);
    let others = (1_u32..).map(|n| Ipv4Addr::from(client.to_bits() + n));
    let others = others.filter(|other| bucket(*other) == bucket(client)).take(4);
    let mut site = Site::new(1);
    site.turn(vec![(0, piece_from(client, 4, false, 0))]);
    site.now = Tick(1);
    let all = [client].into_iter().chain(others).zip(1..);
    site.turn(all.map(|(client, number)| (0, piece_from(client, 0, true, number))).collect());
    assert_eq!(site.drops(DropReason::FragmentFull), 1);
    assert_eq!(site.sent().into_keys().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn waiting_fragments_and_gaps_are_bounded() {
    let mut site = Site::new(1);
    let n = WAITING_MAX + 10;
    let early = |i: usize| {
        piece(u8::try_from(i % 200).unwrap(), 4 + 4 * u16::try_from(i / 200).unwrap(), true, i)
    };
    for chunk in (0..n).collect::<Vec<_>>().chunks(64) {
        site.turn(chunk.iter().map(|i| (0, early(*i))).collect());
    }
    assert_eq!(site.drops(DropReason::FragmentFull), 10);

    let mut site = Site::new(1);
    site.turn(vec![(0, piece(1, 0, true, 0))]);
    // Every second part: each is a stretch of its own.
    let parts = (1..=STRETCHES_MAX).map(|i| (0, piece(1, 8 * u16::try_from(i).unwrap(), true, i)));
    site.turn(parts.collect());
    assert_eq!(site.drops(DropReason::FragmentFull), 1);
    assert_eq!(site.sent().len(), STRETCHES_MAX);
}

/// A packet that has to be cut, and no buffer for the pieces: nothing of it leaves.
#[test]
fn without_buffers_nothing_is_cut() {
    let mut site = Site::new(1);
    let packet = Packet::udp("198.51.100.7:40000", "10.0.0.101:53").with(|p| {
        (p.payload, p.fragment) = (vec![7; 1470], Some((0, false)));
    });
    let mut frame = SimFrame::new(&packet.frame());
    frame.out_of_memory = true;
    site.turn(vec![(0, frame)]);
    assert_eq!(site.drops(DropReason::NoBuffer), 1);
    assert!(site.sent().is_empty());
}
