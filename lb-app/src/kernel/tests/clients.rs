//! The ways to clients, and what they must not do to backends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

/// Something that goes on beside the test, in its namespace.
struct Meanwhile {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Meanwhile {
    fn again_and_again(mut job: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                job();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The kernel says only once that its queue is full, until it has been emptied.
#[test]
fn notices_that_are_lost_while_we_read_anew_are_not_missed() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        let backend = addresses(["10.0.0.12"]);
        assert!(all_resolved(&lan.kernel.resolve(&backend).await.unwrap()));
        ip("link add a0 type veth peer name b0");
        let renames = Meanwhile::again_and_again(|| {
            let names = ["a0", "c0"];
            let rename =
                |n: usize| format!("link set {} name {}", names[n % 2], names[(n + 1) % 2]);
            ip_batch((0..2_000).map(rename));
        });
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let hops = lan.kernel.resolve(&backend).await.unwrap();
            assert!(all_resolved(&hops), "what was known holds: {hops:?}");
        }
        drop(renames);
        ip("neigh replace 10.0.0.12 lladdr 02:00:00:00:00:13 dev lan0");
        let moved = hop("02:00:00:00:00:13");
        lan.resolve_until(&backend, |hops| {
            hops.values().all(|it| it.as_ref().is_ok_and(|it| it.hops.as_slice() == [moved]))
        })
        .await;
    });
}
