//! `weir explain` and the data path say the same of a flow: of random ones, offline and of a balancer that
//! runs. `EXPLAIN_FLOWS=1000000` for more of them than every test run takes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use fastrand::Rng;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_weir");

/// All forwarding modes, and all kinds of addresses. Backends have a `mac`, so that nobody has to answer.
fn config(folder: &Path) -> String {
    let mut text = format!(
        "[site]\nname = \"explain\"\nhash_key = \"000102030405060708090a0b0c0d0e0f\"\n\
         [dataplane]\nworkers = [0]\nhugepages = \"off\"\nmemory_mb = 64\nflows_max = 4096\n\
         state_dir = \"{0}/state\"\n\
         [api]\ngrpc = \"unix:{0}/weir.sock\"\n\
         [[port]]\nname = \"lan0\"\ndevice = \"net_null0,no-rx=1\"\nmac = \"02:00:00:00:00:02\"\n\
         addresses = [\"10.0.0.2/24\", \"fd00::2/64\"]\n",
        folder.display()
    );
    for (name, address, port, protocol, mode, backends) in [
        ("one", "10.0.0.100", "80", "tcp", "forward = \"l2dsr\"", "10.0.0"),
        ("range", "10.0.0.101", "\"1000-1999\"", "tcp", "forward = \"ipip\"", "10.0.0"),
        ("any", "10.0.0.101", "\"any\"", "any", "forward = \"gre\"", "10.0.0"),
        ("udp", "10.0.0.100", "53", "udp", "forward = \"gue\"", "10.0.0"),
        (
            "prefix",
            "10.9.0.0/29",
            "80",
            "tcp",
            "forward = \"l2dsr\"\naffinity = \"client\"",
            "10.0.0",
        ),
        ("nat", "10.0.0.102", "80", "tcp", "forward = \"nat\"", "10.0.0"),
        (
            "46",
            "10.0.0.103",
            "80",
            "tcp",
            "forward = \"nat\"\nclient_prefix = \"64:ff9b::/96\"",
            "fd00:",
        ),
        (
            "pool",
            "10.0.0.104",
            "80",
            "tcp",
            "forward = \"fullnat\"\npool = \"10.0.0.192/27\"",
            "10.0.0",
        ),
        ("six", "fd00::100", "80", "tcp", "forward = \"l2dsr\"", "fd00:"),
        ("nobody", "10.0.0.105", "80", "tcp", "forward = \"l2dsr\"", ""),
    ] {
        write!(
            text,
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\n\
             protocol = \"{protocol}\"\n{mode}\nslots = 1009\nbackends = ["
        )
        .unwrap();
        let joint = if backends.contains(':') { ":" } else { "." };
        for host in (11..18).filter(|_| !backends.is_empty()) {
            write!(
                text,
                "{{ address = \"{backends}{joint}{host}\", mac = \"02:00:00:00:00:{host}\", weight = {} }}, ",
                host % 3
            )
            .unwrap();
        }
        text.push_str("]\n");
    }
    text
}

/// A flow, and whether the packet opens it.
struct Flow {
    protocol: &'static str,
    src: SocketAddr,
    dst: SocketAddr,
    opens: bool,
}

impl Flow {
    fn random(random: &mut Rng) -> Self {
        let src = |random: &mut Rng, is_ipv6| {
            let n: [u8; 4] = random.u32(..).to_be_bytes();
            let address = if is_ipv6 {
                format!("2001:db8::{:x}{:02x}:{:x}{:02x}", n[0], n[1], n[2], n[3]).parse().unwrap()
            } else {
                [198, 18 + n[0] % 2, n[1], n[2]].into()
            };
            SocketAddr::new(address, random.u16(1024..))
        };
        let is_ipv6 = random.u8(..10) == 0;
        let dst = if is_ipv6 {
            format!("fd00::{}", random.u8(99..102)).parse().unwrap()
        } else if random.u8(..5) == 0 {
            [10, 9, 0, random.u8(..10)].into()
        } else {
            [10, 0, 0, random.u8(99..107)].into()
        };
        let port = match random.u8(..4) {
            0 => random.u16(900..2100),
            1 => random.u16(1..),
            2 => 53,
            _ => 80,
        };
        Self {
            protocol: if random.u8(..4) == 0 { "udp" } else { "tcp" },
            src: src(random, is_ipv6),
            dst: SocketAddr::new(dst, port),
            opens: random.bool(),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 2]);
        let network = match (self.src, self.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                link.ipv4(src.ip().octets(), dst.ip().octets(), 64)
            }
            (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
                link.ipv6(src.ip().octets(), dst.ip().octets(), 64)
            }
            _ => unreachable!("both are of one family"),
        };
        let (src, dst) = (self.src.port(), self.dst.port());
        let mut frame = Vec::new();
        if self.protocol == "udp" {
            network.udp(src, dst).write(&mut frame, b"explain").unwrap();
        } else if self.opens {
            network.tcp(src, dst, 7, 1024).syn().write(&mut frame, b"").unwrap();
        } else {
            network.tcp(src, dst, 7, 1024).ack(9).write(&mut frame, b"").unwrap();
        }
        frame
    }
}

/// As pcap, with a microsecond between two frames.
fn pcap(frames: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>();
    let mut bytes = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    for (time, frame) in (0_u32..).zip(frames) {
        let length = u32::try_from(frame.len()).unwrap();
        bytes.extend(words(&[time / 1_000_000, time % 1_000_000, length, length]));
        bytes.extend(frame);
    }
    bytes
}

/// The lines that a command prints, as it prints them: a million of them need not fit into memory.
struct Lines {
    command: Child,
    printed: std::io::Lines<BufReader<ChildStdout>>,
}

impl Lines {
    fn of(arguments: &[&str]) -> Self {
        let mut command =
            Command::new(BINARY).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(command.stdout.take().unwrap()).lines();
        Self { command, printed }
    }

    /// There are no more of them.
    fn end(mut self) {
        assert!(self.printed.next().is_none());
        assert!(self.command.wait().unwrap().success());
    }
}

impl Iterator for Lines {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let line = self.printed.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    }
}

/// Dropping it ends it.
struct Running(Child);

impl Running {
    /// In a network of its own. Returns when it can be asked.
    fn start(config: &Path, socket: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(BINARY).arg("run").arg("--config").arg(config);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut this = Self(child);
        let end = Instant::now() + Duration::from_mins(1);
        let api = format!("unix:{}", socket.display());
        let is_there = || {
            let status = Command::new(BINARY).args(["status", "--api", &api]).output().unwrap();
            status.status.success()
        };
        while !is_there() {
            let ended = this.0.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "it does not run: {ended:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        this
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn explain_says_what_the_data_path_does() {
    let count = std::env::var("EXPLAIN_FLOWS").map_or(2000, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let [config_file, capture, list] = ["weir.toml", "flows.pcap", "flows"].map(path);
    fs::write(&config_file, config(folder.path())).unwrap();
    let mut random = Rng::with_seed(7);
    let flows: Vec<Flow> = (0..count).map(|_| Flow::random(&mut random)).collect();
    fs::write(&capture, pcap(flows.iter().map(Flow::frame))).unwrap();
    let text = flows.iter().fold(String::new(), |mut text, Flow { protocol, src, dst, .. }| {
        writeln!(text, "{protocol} {src} > {dst}").unwrap();
        text
    });
    fs::write(&list, text).unwrap();
    let [config_name, capture, list] =
        [&config_file, &capture, &list].map(|path| path.to_str().unwrap());

    let mut decided = Lines::of(&[
        "replay",
        "--config",
        config_name,
        "--in",
        capture,
        "--out",
        "/dev/null",
        "--verdicts",
        "-",
    ]);
    let mut offline = Lines::of(&["explain", "--config", config_name, "--flows", list, "--json"]);
    let socket = path("weir.sock");
    let api = format!("unix:{}", socket.display());
    let running = Running::start(&config_file, &socket);
    let mut live = Lines::of(&["explain", "--api", &api, "--flows", list, "--json"]);

    let mut seen = std::collections::BTreeMap::new();
    for flow in &flows {
        let decided = decided.next().unwrap();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let verdict = ["verdict", "reason", "service", "backend", "port", "rule"]
            .map(|key| word(&decided[key]));
        for (how, explained) in
            [("offline", offline.next().unwrap()), ("live", live.next().unwrap())]
        {
            let packet =
                if flow.opens && !explained["opens"].is_null() { "opens" } else { "goes_on" };
            let explained = &explained[packet];
            let said = ["verdict", "reason", "service", "backend", "port", "rule"]
                .map(|key| word(&explained[key]));
            assert_eq!(said, verdict, "{how}: {decided} {explained}");
            if verdict[0] == "send" {
                assert_eq!(explained["slot"], decided["slot"], "{how}: {decided} {explained}");
            }
        }
        *seen.entry([verdict[0].clone(), verdict[2].clone()]).or_insert(0) += 1;
    }
    [decided, offline, live].into_iter().for_each(Lines::end);
    drop(running);
    // Each service has sent some; others were dropped, or are the kernel's.
    println!("{seen:#?}");
    let sent = seen.keys().filter(|[verdict, _]| verdict == "send").count();
    assert_eq!(sent, 9, "{seen:#?}");
}
