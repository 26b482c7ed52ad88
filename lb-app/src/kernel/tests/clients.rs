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

/// More notices than any buffer takes.
fn flood() {
    ip_batch((0..20_000).map(|i| {
        let verb = if i % 2 == 0 { "add" } else { "del" };
        format!("route {verb} 198.51.100.0/24 dev lan0")
    }));
}

/// The kernel says only once that its queue is full, until it has been emptied.
#[test]
fn notices_that_are_lost_while_we_read_anew_are_not_missed() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        let backend = addresses(["10.0.0.12"]);
        assert!(all_resolved(&lan.kernel.resolve(&backend).await.unwrap()));
        flood();
        let hops = lan.kernel.resolve(&backend).await.unwrap();
        assert!(all_resolved(&hops), "what was known holds: {hops:?}");
        ip("neigh replace 10.0.0.12 lladdr 02:00:00:00:00:13 dev lan0");
        let moved = hop("02:00:00:00:00:13");
        lan.resolve_until(&backend, |hops| {
            hops.values().all(|it| (**it).as_ref().is_ok_and(|it| it.hops.as_slice() == [moved]))
        })
        .await;
    });
}

#[test]
fn gateways_of_new_routes_are_asked_about_at_once() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        let quiet = Duration::from_millis(500);
        while tokio::time::timeout(quiet, lan.kernel.changed()).await.is_ok() {
            assert_eq!(lan.way("192.0.2.1").await, None);
        }
        // The one change that there is to go by.
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        lan.way_until("192.0.2.1", Some(FAR)).await;
    });
}

#[test]
fn gateways_are_awaited_until_they_are_found_or_silent() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        ip("route add 192.0.3.0/24 via 10.0.0.77"); // nobody
        assert_eq!(lan.way("192.0.2.1").await, None);
        assert!(lan.kernel.awaits_gateways());
        while lan.kernel.awaits_gateways() {
            lan.kernel.changed().await.unwrap();
            lan.way("192.0.2.1").await;
        }
        lan.way_until("192.0.2.1", Some(FAR)).await;
        assert_eq!(lan.way("192.0.3.1").await, None);
    });
}

#[test]
fn gateways_are_kept_when_notices_are_lost() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        lan.way_until("192.0.2.1", Some(FAR)).await;
        flood();
        ip("route add 192.0.3.0/24 via 10.0.0.11");
        for _ in 0..5 {
            assert_eq!(lan.way("192.0.2.1").await, FAR.parse().ok());
            let neighbours = ip("neigh show dev lan0");
            assert!(neighbours.contains("10.0.0.11"), "released: {neighbours}");
        }
        lan.way_until("192.0.3.1", Some(FAR)).await;
    });
}

#[test]
fn the_table_is_the_same_while_nothing_has_changed() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        lan.way_until("10.0.0.12", Some("02:00:00:00:00:12")).await;
        let fib = lan.kernel.fib(&[lan0()]);
        ip("route add 198.51.100.0/24 dev lan0");
        ip("route del 198.51.100.0/24 dev lan0");
        tokio::time::sleep(Duration::from_millis(300)).await;
        lan.way("10.0.0.12").await;
        assert!(Arc::ptr_eq(&fib, &lan.kernel.fib(&[lan0()])));
    });
}

#[test]
fn changes_of_backends_do_not_wait_for_those_of_clients() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        let backend = addresses(["10.0.0.12"]);
        lan.kernel.want_fib(true);
        let follow = async |kernel: &mut Kernel| {
            let hops = kernel.resolve(&backend).await.unwrap();
            (hops, kernel.fib(&[lan0()]))
        };
        follow(&mut lan.kernel).await;
        let mut n = 0_u16;
        let churn = Meanwhile::again_and_again(move || {
            n += 1;
            let [high, low] = n.to_be_bytes();
            let address = format!("10.0.0.{}", 30 + n % 200);
            ip(&format!("neigh replace {address} lladdr 02:00:00:01:{high:x}:{low:x} dev lan0"));
        });
        let start = Instant::now();
        let mut looks = [0; 2];
        while start.elapsed() < Duration::from_secs(2) {
            lan.kernel.changed().await.unwrap();
            follow(&mut lan.kernel).await;
            looks[usize::from(start.elapsed() > Duration::from_secs(1))] += 1;
        }
        // The first ones at once.
        let [first, then] = looks;
        assert!(first <= 10 && (2..=5).contains(&then), "clients alone: {looks:?} a second");
        for last in 0x20..0x28 {
            let mac = format!("02:00:00:00:00:{last:x}");
            ip(&format!("neigh replace 10.0.0.12 lladdr {mac} dev lan0"));
            let start = Instant::now();
            lan.resolve_until(&backend, |hops| {
                hops.values().flat_map(|it| &**it).all(|it| it.hops.as_slice() == [hop(&mac)])
            })
            .await;
            assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
        }
        drop(churn);
    });
}

#[test]
fn flushed_clients_are_found_again() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        lan.way("10.0.0.11").await;
        lan.far.run(|| run("ping", "-c 1 -W 5 10.0.0.2"));
        lan.way_until("10.0.0.11", Some(FAR)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ip("neigh flush dev lan0");
        assert_eq!(lan.way("10.0.0.11").await, FAR.parse().ok(), "as good as before");

        // It has another MAC, and says nothing by itself.
        let other = "02:00:00:00:00:99";
        lan.far.ip(&format!("link set far0 address {other}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        ip("neigh flush dev lan0");
        lan.way_until("10.0.0.11", Some(other)).await;

        // It is gone.
        lan.far.ip("link set far0 down");
        tokio::time::sleep(Duration::from_millis(300)).await;
        ip("neigh flush dev lan0");
        lan.way_until("10.0.0.11", None).await;
    });
}
