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
const SECONDS: usize = 10;

/// Seconds that the threads of this name have run, in user and kernel mode.
fn cpu_seconds(name: &str) -> f64 {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mine = threads
        .filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let ticks = mine.map(|task| {
        let stat = fs::read_to_string(task.join("stat")).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // `man 5 proc_pid_stat`: utime and stime, fields 14 and 15 of all.
        fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
    });
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
    let per_second = per_second as f64;
    ticks.sum::<f64>() / per_second
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
    checkers.order(hosts.iter().map(|at| target(*at, &check)).collect());
    checkers.first_answers(Duration::from_secs(30)).await;
    let health = checkers.health();
    let failed = hosts.iter().filter(|at| is_failed(&health, **at)).count();
    assert_eq!(failed, BACKENDS as usize / 10);
    let begin = Instant::now();
    let before = (cpu_seconds("health"), cpu_seconds("server"), made.load(Ordering::Relaxed));
    sleep(Duration::from_secs(SECONDS as u64)).await;
    let seconds = begin.elapsed().as_secs_f64();
    let share = (cpu_seconds("health") - before.0) / seconds;
    let servers = (cpu_seconds("server") - before.1) / seconds;
    let made = made.load(Ordering::Relaxed) - before.2;
    println!(
        "{what}: {BACKENDS} backends, {made} connections in {seconds:.1} s: {share:.3} of a core, \
         and {servers:.3} for the server"
    );
    // Nine of ten connect, each every two seconds.
    let expected = BACKENDS as usize * 9 / 10 * SECONDS / 2;
    assert!(made * 100 >= expected * 85, "{made} of {expected}: checks are late");
    assert_eq!(checkers.health(), health, "nobody flaps");
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
