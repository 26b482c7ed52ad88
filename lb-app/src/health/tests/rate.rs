//! What checks cost: `cargo test -p lb-app --bin weir -- --ignored --nocapture health::tests::rate`

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use lb_core::model::{HealthCheck, Probe};
use socket2::{Domain, Type};
use tokio::time::sleep;

use super::servers::refusing;
use super::{Checkers, check, http, is_failed, target};

const BACKENDS: u32 = 10_000;
const SECONDS: u64 = 10;

/// Seconds that the threads of this name have run, in user and kernel mode; and that they could have,
/// but had to wait for a CPU (`Documentation/scheduler/sched-stats.rst`).
fn cpu_seconds(name: &str) -> (f64, f64) {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mine = threads
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let mut sum = (0.0, 0.0);
    for thread in mine {
        let stat = fs::read_to_string(thread.join("schedstat")).unwrap();
        let ns: Vec<f64> = stat.split_whitespace().map(|ns| ns.parse().unwrap()).collect();
        sum = (sum.0 + ns[0] / 1e9, sum.1 + ns[1] / 1e9);
    }
    sum
}

/// Answers every connection with `page`, if there is one, and ends it; on threads of its own, which
/// live as long as the test. Returns where, and how many there were.
fn serve(page: Option<&'static [u8]>) -> (SocketAddr, Arc<AtomicUsize>) {
    let any = SocketAddr::from(([0, 0, 0, 0], 0)).into();
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&any).unwrap();
    socket.listen(4096).unwrap();
    let listener = std::net::TcpListener::from(socket);
    let at = listener.local_addr().unwrap();
    let made = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&made);
    let answer = move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::Relaxed);
            if let Some(page) = page {
                // A check that has ended meanwhile is none of the server's business.
                let _ = stream.read(&mut [0; 1024]).and_then(|_| stream.write(page));
            }
        }
    };
    thread::Builder::new().name("server".into()).spawn(answer).unwrap();
    (at, made)
}

/// 10,000 addresses of loopback, every tenth of which refuses.
async fn measure(what: &str, check: HealthCheck, page: Option<&'static [u8]>) -> f64 {
    let (any, made) = serve(page);
    let (_socket, dead) = refusing();
    let hosts: Vec<SocketAddr> = (0..BACKENDS)
        .map(|n| {
            let [_, b, c, d] = (0x7f10_0000 + n).to_be_bytes();
            let port = if n % 10 == 0 { dead.port() } else { any.port() };
            (IpAddr::from([127, b, c, d]), port).into()
        })
        .collect();
    let mut checkers = Checkers::start().unwrap();
    checkers.order(vec![hosts.iter().map(|at| target(*at, &check)).collect()]);
    checkers.first_answers(Duration::from_secs(30)).await;
    let health = checkers.health();
    let failed = hosts.iter().filter(|at| is_failed(&health, **at)).count();
    assert_eq!(failed, BACKENDS as usize / 10);
    let begin = Instant::now();
    let before = (cpu_seconds("health"), made.load(Ordering::Relaxed));
    sleep(Duration::from_secs(SECONDS)).await;
    let seconds = begin.elapsed().as_secs_f64();
    let after = (cpu_seconds("health"), made.load(Ordering::Relaxed));
    let (ran, waited) = (after.0.0 - before.0.0, after.0.1 - before.0.1);
    // Nine of ten connect.
    let checks = f64::from(u32::try_from(after.1 - before.1).unwrap()) * 10.0 / 9.0;
    let per_second = f64::from(BACKENDS) / check.interval.as_secs_f64();
    let share = ran / checks * per_second;
    println!(
        "{what}: {checks:.0} checks in {seconds:.1} s took {:.1} us each: {share:.3} of a core for \
         {per_second} a second; waited for a CPU {:.0} % of the time",
        ran / checks * 1e6,
        waited / seconds * 100.0
    );
    // On a busy machine they may be late; else every backend has its turn.
    if waited < 0.3 * seconds {
        assert!(checks / seconds > 0.9 * per_second, "{checks} in {seconds} s: checks are late");
        assert_eq!(checkers.health(), health, "nobody flaps");
    }
    share
}

#[tokio::test]
#[ignore = "takes half a minute and a core; run it alone"]
async fn ten_thousand_backends() {
    let every_two_seconds = |probe| HealthCheck {
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        ..check(probe)
    };
    let tcp = measure("tcp", every_two_seconds(Probe::Tcp), None).await;
    let page = Some(&b"HTTP/1.1 204 No Content\r\n\r\n"[..]);
    measure("http", every_two_seconds(Probe::Http(http("/healthz"))), page).await;
    assert!(tcp < 0.5, "{tcp}");
}
