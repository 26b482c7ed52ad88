//! One frame: its bounds, against a model; and that every buffer comes back.

mod common;

use std::thread;

use arrayvec::ArrayVec;
use common::{frame, pool};
use dpdk::{HEADROOM_BYTES, IpChecksum, Mbuf, MbufPool, RxQueue, TxQueue, free_bulk};
use proptest::prelude::*;
use static_assertions::{assert_impl_all, assert_not_impl_any};

assert_impl_all!(Mbuf: Send);
assert_impl_all!(MbufPool: Send, Sync, Copy);
assert_impl_all!(RxQueue: Send);
assert_impl_all!(TxQueue: Send);
assert_not_impl_any!(Mbuf: Clone);
assert_not_impl_any!(RxQueue: Clone, Sync);
assert_not_impl_any!(TxQueue: Clone, Sync);
assert_not_impl_any!(dpdk::ThreadRegistration: Send, Sync, Clone);

#[derive(Clone, Debug)]
enum Step {
    Prepend(u16),
    TrimFront(u16),
    Append(u16),
    Truncate(u16),
    Fill(u8),
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly small, sometimes anything.
    let count = || prop_oneof![0..200_u16, any::<u16>()];
    prop_oneof![
        count().prop_map(Step::Prepend),
        count().prop_map(Step::TrimFront),
        count().prop_map(Step::Append),
        count().prop_map(Step::Truncate),
        any::<u8>().prop_map(Step::Fill),
    ]
}

/// A buffer of bytes with a frame in it.
struct Model {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Model {
    /// Whether the step is possible; if so, it has happened.
    fn take(&mut self, step: &Step) -> bool {
        let (start, end) = match *step {
            Step::Prepend(n) => (self.start.checked_sub(n.into()), Some(self.end)),
            Step::TrimFront(n) => (Some(self.start + usize::from(n)), Some(self.end)),
            Step::Append(n) => (Some(self.start), Some(self.end + usize::from(n))),
            Step::Truncate(n) => {
                let end = self.start + usize::from(n);
                (Some(self.start), (end <= self.end).then_some(end))
            }
            Step::Fill(byte) => {
                self.buffer[self.start..self.end].fill(byte);
                return true;
            }
        };
        match (start, end) {
            (Some(start), Some(end)) if start <= end && end <= self.buffer.len() => {
                (self.start, self.end) = (start, end);
                true
            }
            _ => false,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

/// Takes the step with a frame; whether it was possible. What a frame grows by is zeroed.
fn take(frame: &mut Mbuf, step: &Step, model: &mut Model) -> bool {
    let grown = match *step {
        Step::Prepend(n) => frame.prepend(n).map(|new| (new.len(), new.fill(0))),
        Step::Append(n) => frame.append(n).map(|new| (new.len(), new.fill(0))),
        Step::TrimFront(n) => return frame.trim_front(n),
        Step::Truncate(n) => return frame.truncate(n),
        Step::Fill(byte) => {
            frame.bytes_mut().fill(byte);
            return true;
        }
    };
    let Some((len, ())) = grown else { return false };
    let new = match step {
        Step::Prepend(_) => model.start..model.start + len,
        _ => model.end - len..model.end,
    };
    model.buffer[new].fill(0);
    true
}

#[test]
fn a_frame_is_a_window_of_its_buffer() {
    let pool = pool("model");
    proptest!(|(steps in prop::collection::vec(step(), 1..50))| {
        let mut frame = pool.alloc().unwrap();
        let headroom = usize::from(HEADROOM_BYTES);
        let buffer = vec![0; usize::from(pool.data_room())];
        let mut model = Model { buffer, start: headroom, end: headroom };
        for step in steps {
            let possible = model.take(&step);
            prop_assert_eq!(take(&mut frame, &step, &mut model), possible, "{:?}", step);
            prop_assert_eq!(frame.bytes(), model.bytes());
            prop_assert_eq!(usize::from(frame.headroom()), model.start);
            prop_assert_eq!(usize::from(frame.tailroom()), model.buffer.len() - model.end);
            prop_assert_eq!(frame.segments(), 1);
        }
    });
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn a_new_frame_says_nothing_about_itself() {
    let pool = pool("new");
    let frame = pool.alloc().unwrap();
    assert_eq!(frame.bytes(), []);
    assert_eq!(frame.ip_checksum(), IpChecksum::Unknown);
    assert_eq!(frame.rss_hash(), None);
    assert_eq!(format!("{frame:?}"), "Mbuf { bytes: 0, headroom: 128, segments: 1 }");
    frame.prefetch_header();
    frame.prefetch_data();
}

#[test]
fn every_buffer_comes_back() {
    let pool = pool("empty");
    let mut all = Vec::new();
    while let Some(frame) = pool.alloc() {
        all.push(frame);
    }
    assert_eq!(all.len(), 1023);
    assert_eq!(pool.available(), 0);
    let mut burst: ArrayVec<Mbuf, 64> = ArrayVec::new();
    assert_eq!(pool.alloc_bulk(1, &mut burst), 0);

    // Half of them here one by one, half on another thread in bursts.
    let rest = all.split_off(512);
    drop(all);
    assert_eq!(pool.available(), 512);
    thread::spawn(move || {
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            let mut burst: ArrayVec<Mbuf, 64> = rest.by_ref().take(64).collect();
            free_bulk(&mut burst);
            assert!(burst.is_empty());
        }
    })
    .join()
    .unwrap();
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn bulk_allocation_is_all_or_nothing_and_bounded() {
    let pool = pool("bulk");
    let mut burst: ArrayVec<Mbuf, 64> = ArrayVec::new();
    burst.push(frame(&pool, b"first"));
    assert_eq!(pool.alloc_bulk(10, &mut burst), 10);
    assert_eq!(pool.alloc_bulk(usize::MAX, &mut burst), 53);
    assert_eq!(pool.alloc_bulk(1, &mut burst), 0);
    assert_eq!(burst.len(), 64);
    assert_eq!(burst[0].bytes(), b"first");
    assert!(burst[1..].iter().all(|frame| frame.bytes().is_empty()));

    let mut most: ArrayVec<Mbuf, 1024> = ArrayVec::new();
    assert_eq!(pool.alloc_bulk(960, &mut most), 0);
    assert_eq!(pool.alloc_bulk(959, &mut most), 959);
    drop((burst, most));
    assert_eq!(pool.available(), pool.capacity());
    free_bulk(&mut ArrayVec::<Mbuf, 4>::new());
}

#[test]
fn frames_outlive_every_handle() {
    let pool = pool("gone");
    let frame = frame(&pool, b"still here");
    #[expect(dropping_copy_types, reason = "that is the point")]
    drop(pool);
    assert_eq!(frame.bytes(), b"still here");
}
