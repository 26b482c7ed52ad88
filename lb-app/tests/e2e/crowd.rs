//! Thousands at the API's socket who want no good.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Netns;
use crate::weir::Weir;

/// Those who come all at once: a third of them each say nothing, half a word, and nonsense.
const STRANGERS: usize = 3000;
/// Those who speak HTTP/2, want answers, and do not read them.
const DEAF: usize = 100;
/// How long these may keep others out: until they have not said for long enough that they are there.
const PATIENCE: Duration = Duration::from_mins(1);
/// What all of them together may take of the balancer.
const FILES_MAX: usize = 200;
const MEMORY_KB_MAX: u64 = 32 << 10;
const COMPLAINTS_MAX: usize = 8;

const CONFIG: &str = "\
[site]
name = \"e2e\"
hash_key = \"000102030405060708090a0b0c0d0e0f\"
[dataplane]
workers = [0]
hugepages = \"off\"
memory_mb = 64
flows_max = 4096
[[port]]
name = \"lan0\"
device = \"net_null0,no-rx=1\"
addresses = [\"10.0.0.2/24\"]
[[service]]
name = \"web\"
address = \"10.0.0.100\"
port = 80
protocol = \"tcp\"
forward = \"l2dsr\"
backends = [{ address = \"10.0.0.11\", mac = \"02:00:00:00:00:0b\" }]
";

/// What must not change, and what may change little.
struct Seen {
    version: Value,
    services: Value,
    files: usize,
    memory_kb: u64,
}

fn see(weir: &Weir) -> Seen {
    let proc = format!("/proc/{}", weir.pid());
    let status = fs::read_to_string(format!("{proc}/status")).expect("it runs");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("is there");
    let rss = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    Seen {
        version: weir.ask(&["status"])["version"].clone(),
        services: weir.ask(&["services"]),
        files: fs::read_dir(format!("{proc}/fd")).expect("it runs").count(),
        memory_kb: rss,
    }
}

fn assert_bounded(weir: &Weir, before: &Seen) {
    let now = see(weir);
    assert_eq!((&now.version, &now.services), (&before.version, &before.services));
    assert!(now.files <= before.files + FILES_MAX, "{} files, then {}", before.files, now.files);
    let more_kb = now.memory_kb.saturating_sub(before.memory_kb);
    assert!(more_kb <= MEMORY_KB_MAX, "{more_kb} kB more");
    let complaints = weir.count_logged(" is turned away: ");
    assert!((1..=COMPLAINTS_MAX).contains(&complaints), "{}", weir.log_tail());
}

pub(crate) fn thousands_of_clients() {
    let netns = Netns::new("crowd");
    let weir = Weir::start(&netns, CONFIG, &[]);
    weir.wait_for_line(0, "ready: clients may come");
    let before = see(&weir);
    let socket = weir.socket();

    let crowd = thread::scope(|scope| {
        let crowd = scope.spawn(|| strangers(&socket));
        let mut asked = 0;
        while !crowd.is_finished() || asked < 10 {
            weir.command(&["status"]).done();
            asked += 1;
        }
        crowd.join().expect("it does not panic")
    });
    assert_bounded(&weir, &before);
    drop(crowd);

    let deaf: Vec<_> = (0..DEAF).map(|_| deaf(&socket)).collect();
    let end = Instant::now() + PATIENCE;
    while weir.command(&["status"]).status != Some(0) {
        assert!(Instant::now() < end, "nobody else is heard any more");
        thread::sleep(Duration::from_millis(100));
    }
    assert_bounded(&weir, &before);
    drop(deaf);
}

fn strangers(socket: &Path) -> Vec<UnixStream> {
    let words: [&[u8]; 3] = [b"", b"PRI * HTTP/2.0\r\n", &[0xa5; 4096]];
    let stranger = |words: &&[u8]| {
        let mut stream = UnixStream::connect(socket).expect("it is there");
        let _ = stream.write_all(words); // it may be turned away already
        stream
    };
    words.iter().cycle().take(STRANGERS).map(stranger).collect()
}

/// Wants pings to be answered, more than there is room for.
fn deaf(socket: &Path) -> UnixStream {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0]; // RFC 9113 §6.5
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]; // §6.7
    let mut stream = UnixStream::connect(socket).expect("it is there");
    stream.set_nonblocking(true).expect("may be");
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &SETTINGS].concat();
    let pings = PING.repeat(100_000);
    // The socket has room for some of it; or it is turned away already.
    let _ = stream.write_all(&begin).and_then(|()| stream.write_all(&pings));
    stream
}
