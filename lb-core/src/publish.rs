//! New versions for workers, without a lock, a wait or a free on their side.
//!
//! ```text
//! publisher                                   subscriber (one a worker)
//! publish(v2): inbox <- v2; newest = 2   ->   newest() sees 2 ≠ 1: takes v2 out of the inbox,
//! reclaim():   frees v1 here             <-   puts v1 into the outbox, says "held = 2"
//! in_force() = 2: acknowledged
//! ```
//!
//! Ownership travels with the pointers, so a version that somebody reads cannot be freed. What the
//! order of the steps adds: a version is freed on the publisher's thread only, and `held` is said
//! after the old version was let go. Loom checks both (`RUSTFLAGS="--cfg loom"`).

use std::mem;
use std::sync::Arc;

use crossbeam_utils::CachePadded;
#[cfg(loom)]
use {
    self::model::ArrayQueue,
    loom::sync::atomic::{AtomicU64, Ordering},
};
#[cfg(not(loom))]
use {
    crossbeam_queue::ArrayQueue,
    std::sync::atomic::{AtomicU64, Ordering},
};

/// Versions that a worker may let go of between two calls of the publisher: the one before an
/// unseen one, that one, and at its end the last.
const OUTBOX: usize = 4;

struct Shared<T> {
    /// The number of the newest version: what workers look at once a turn.
    newest: CachePadded<AtomicU64>,
    workers: Box<[CachePadded<Mailbox<T>>]>,
}

struct Mailbox<T> {
    /// The newest version that the worker has not seen.
    inbox: ArrayQueue<(u64, Arc<T>)>,
    /// What the worker no longer reads.
    outbox: ArrayQueue<Arc<T>>,
    /// The version that the worker reads.
    held: AtomicU64,
}

/// The control thread's end.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    newest: u64,
}

/// A worker's end.
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    worker: usize,
    held: u64,
    current: Arc<T>,
}

impl<T> std::fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber").field("held", &self.held).finish_non_exhaustive()
    }
}

/// Makes both ends, for a fixed number of workers, with version 1 in force.
#[must_use]
pub fn publication<T>(first: &Arc<T>, workers: usize) -> (Publisher<T>, Vec<Subscriber<T>>) {
    let mailbox = || Mailbox {
        inbox: ArrayQueue::new(1),
        outbox: ArrayQueue::new(OUTBOX),
        held: AtomicU64::new(1),
    };
    let shared = Arc::new(Shared {
        newest: CachePadded::new(AtomicU64::new(1)),
        workers: (0..workers).map(|_| CachePadded::new(mailbox())).collect(),
    });
    let subscriber = |worker| Subscriber {
        shared: Arc::clone(&shared),
        worker,
        held: 1,
        current: Arc::clone(first),
    };
    let subscribers = (0..workers).map(subscriber).collect();
    (Publisher { shared, newest: 1 }, subscribers)
}

impl<T> Publisher<T> {
    /// Offers `value` to all workers as the next version, and returns its number. Who has not seen
    /// the version before will not see it any more.
    pub fn publish(&mut self, value: &Arc<T>) -> u64 {
        self.reclaim();
        self.newest += 1;
        for mailbox in &self.shared.workers {
            drop(mailbox.inbox.force_push((self.newest, Arc::clone(value))));
        }
        // A hint: the inbox orders the memory. A worker that sees it early finds the inbox full.
        self.shared.newest.store(self.newest, Ordering::Release);
        self.newest
    }

    /// The newest version that every worker reads, or a newer one.
    #[must_use]
    pub fn in_force(&self) -> u64 {
        let held = |mailbox: &CachePadded<Mailbox<T>>| mailbox.held.load(Ordering::Acquire);
        self.shared.workers.iter().map(held).min().unwrap_or(self.newest)
    }

    /// Frees, here, what the workers no longer read.
    pub fn reclaim(&mut self) {
        for mailbox in &self.shared.workers {
            while let Some(old) = mailbox.outbox.pop() {
                drop(old);
            }
        }
    }
}

impl<T> Subscriber<T> {
    /// The newest version. One relaxed load when nothing changed; never waits, never frees.
    #[inline]
    pub fn newest(&mut self) -> &T {
        if self.shared.newest.load(Ordering::Relaxed) != self.held {
            self.take_newest();
        }
        &self.current
    }

    /// Ends the subscription: the last version goes back too. Whoever drops a subscriber instead may
    /// be the one that frees it.
    pub fn leave(self) {
        leave(&self.shared.workers[self.worker], self.current);
    }

    #[cold]
    fn take_newest(&mut self) {
        let mailbox = &self.shared.workers[self.worker];
        let Some((version, value)) = mailbox.inbox.pop() else {
            return; // seen before it came: next turn
        };
        let old = mem::replace(&mut self.current, value);
        self.held = version;
        leave(mailbox, old);
        // Only now: the publisher frees what was left when it sees this.
        mailbox.held.store(version, Ordering::Release);
    }
}

/// Gives a version back. The outbox has room (see [`OUTBOX`]); if it had not, memory would rather be
/// lost than freed on a worker.
fn leave<T>(mailbox: &Mailbox<T>, old: Arc<T>) {
    if let Err(old) = mailbox.outbox.push(old) {
        debug_assert!(false, "outbox overflow");
        mem::forget(old);
    }
}

/// The queues as loom knows them: crossbeam's have model checks of their own.
#[cfg(loom)]
mod model {
    use std::collections::VecDeque;

    use loom::sync::Mutex;

    pub(super) struct ArrayQueue<T>(Mutex<VecDeque<T>>, usize);

    impl<T> ArrayQueue<T> {
        pub(super) fn new(capacity: usize) -> Self {
            Self(Mutex::new(VecDeque::new()), capacity)
        }

        pub(super) fn push(&self, value: T) -> Result<(), T> {
            let mut queue = self.0.lock().unwrap();
            if queue.len() == self.1 {
                return Err(value);
            }
            queue.push_back(value);
            Ok(())
        }

        pub(super) fn force_push(&self, value: T) -> Option<T> {
            let mut queue = self.0.lock().unwrap();
            let displaced = if queue.len() == self.1 { queue.pop_front() } else { None };
            queue.push_back(value);
            displaced
        }

        pub(super) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap().pop_front()
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests are the worker threads")]
mod tests {
    use super::*;

    /// Remembers which thread freed it.
    struct Tables {
        number: u64,
        publisher: ThreadId,
    }

    #[cfg(loom)]
    use loom::thread::{self, ThreadId};
    #[cfg(not(loom))]
    use std::thread::{self, ThreadId};

    impl Drop for Tables {
        fn drop(&mut self) {
            assert_eq!(
                thread::current().id(),
                self.publisher,
                "version {} freed by a worker",
                self.number
            );
        }
    }

    fn tables(number: u64) -> Arc<Tables> {
        Arc::new(Tables { number, publisher: thread::current().id() })
    }

    /// One worker reads while `versions` come: what it reads never goes back, the acknowledgement is
    /// never ahead of it, and all is freed on the publisher's thread.
    fn scenario(versions: u64, turns: usize) {
        let (mut publisher, mut subscribers) = publication(&tables(1), 1);
        let mut subscriber = subscribers.pop().unwrap();
        let worker = thread::spawn(move || {
            let mut last = 0;
            for _ in 0..turns {
                let number = subscriber.newest().number;
                assert!(number >= last);
                last = number;
                #[cfg(loom)]
                thread::yield_now();
            }
            subscriber.leave();
        });
        for number in 2..=versions {
            assert_eq!(publisher.publish(&tables(number)), number);
            assert!(publisher.in_force() <= number);
        }
        worker.join().unwrap();
        publisher.reclaim();
    }

    #[cfg(loom)]
    #[test]
    fn every_interleaving() {
        loom::model(|| scenario(3, 3));
    }

    #[cfg(not(loom))]
    #[test]
    fn versions_come_in_order_and_are_freed_by_the_publisher() {
        scenario(10_000, 100_000);
    }

    #[cfg(not(loom))]
    #[test]
    fn a_version_is_in_force_when_all_workers_have_it() {
        let (mut publisher, mut workers) = publication(&tables(1), 2);
        assert_eq!(publisher.in_force(), 1);
        publisher.publish(&tables(2));
        publisher.publish(&tables(3));
        assert_eq!(workers[0].newest().number, 3, "the version in between is skipped");
        assert_eq!(publisher.in_force(), 1);
        assert_eq!(workers[1].newest().number, 3);
        assert_eq!(publisher.in_force(), 3);
    }

    #[cfg(not(loom))]
    #[test]
    fn old_versions_are_freed() {
        let first = tables(1);
        let (mut publisher, mut workers) = publication(&first, 1);
        let weak = Arc::downgrade(&first);
        drop(first);
        publisher.publish(&tables(2));
        workers[0].newest();
        assert!(weak.upgrade().is_some(), "in the outbox");
        publisher.reclaim();
        assert!(weak.upgrade().is_none());
    }
}
