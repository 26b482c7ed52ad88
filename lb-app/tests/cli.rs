//! The command as users type it: `weir check` and `weir replay`. No privileges needed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, iter};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, PacketBuilder};
use lb_core::fragments::WAITING_MAX;

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BALANCER: [u8; 6] = [2, 0, 0, 0, 0, 2];

const CONFIG: &str = r#"
[site]
hash_key = "00112233445566778899aabbccddeeff"
[[port]]
name = "lan0"
device = "net_null0"
addresses = ["10.0.0.2/24", "fd00::2/64"]
[[service]]
name = "web"
address = "10.0.0.100"
port = 80
protocol = "tcp"
forward = "l2dsr"
backends = [{ address = "10.0.0.11" }, { address = "10.0.0.12", mac = "02:00:00:00:00:0c" }]
[[service]]
name = "dns"
address = "fd00::100"
port = 53
protocol = "udp"
forward = "ipip"
backends = [{ address = "10.0.0.13" }]
"#;

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn weir(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A classic pcap, by its definition: microseconds, little-endian, Ethernet; a frame every second.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    pcap_at(1_700_000_000_u32.., frames)
}

fn pcap_at(seconds: impl IntoIterator<Item = u32>, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (second, frame) in seconds.into_iter().zip(frames) {
        let len = u32::try_from(frame.len()).unwrap();
        for word in [second, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

fn tcp(port: u16, dst_port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT, BALANCER)
        .ipv4([198, 51, 100, 7], [10, 0, 0, 100], 60)
        .tcp(port, dst_port, 1, 1024)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

fn udp6(port: u16) -> Vec<u8> {
    let (src, dst) = ("2001:db8::7", "fd00::100");
    let octets = |address: &str| address.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT, BALANCER)
        .ipv6(octets(src), octets(dst), 60)
        .udp(port, 53)
        .write(&mut frame, b"query")
        .unwrap();
    frame
}

/// The frames of a pcap that Weir wrote.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    frames
}

/// Where no balancer runs, commands say so in one line, by exit status 3.
#[test]
fn a_balancer_that_cannot_be_reached() {
    let folder = Folder::new("unreachable");
    let socket = format!("unix:{}", folder.0.join("weir.sock").display());
    for command in ["status", "services", "backends", "ports", "workers"] {
        let output = weir(&[command, "--api", &socket]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let errors = text(&output.stderr);
        let says = format!("no balancer can be reached at {socket}: No such file or directory");
        assert!(errors.contains(&says) && errors.lines().count() == 1, "{errors}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = weir(&["status", "--api", &nobody.to_string()]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("Connection refused"), "{output:?}");
    let output = weir(&["status", "--api", "weir.sock"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("write \"unix:\" and the absolute path"), "{output:?}");
}

/// What shells and `man` are told names every command.
#[test]
fn completions_and_manual_pages() {
    let help = text(&weir(&["help"]).stdout);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() >= 15, "{help}");
    let page = text(&weir(&["man"]).stdout);
    for shell in ["bash", "zsh", "fish"] {
        let output = weir(&["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        let script = text(&output.stdout);
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
            assert!(page.contains(&command.replace('-', "\\-")), "{command}");
        }
    }
    let page = text(&weir(&["man", "drain"]).stdout);
    assert!(page.contains("weir\\-drain") && page.contains("no new flows"), "{page}");
    assert_eq!(weir(&["man", "nothing"]).status.code(), Some(2));
    assert_eq!(weir(&["completions", "nothing"]).status.code(), Some(2));
}

#[test]
fn check_says_valid_or_what_to_change() {
    let folder = Folder::new("check");
    let good = folder.file("good.toml", CONFIG);
    let output = weir(&["check", good.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("valid; ports: 1, services: 2, backends: 3"));

    let bad = CONFIG.replace("port = 80", "prot = 80").replace("\"udp\"", "\"upd\"");
    let bad = folder.file("bad.toml", bad);
    let output = weir(&["check", bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    for part in ["prot = 80", "bad.toml:11:1", "\"upd\"", "2 errors"] {
        assert!(errors.contains(part), "{part:?} is not in\n{errors}");
    }

    assert_eq!(weir(&["check", "/nonexistent.toml"]).status.code(), Some(1));
    assert_eq!(weir(&["chekc"]).status.code(), Some(2));
}

#[test]
fn replay_shows_what_becomes_of_each_frame() {
    let folder = Folder::new("replay");
    let config = folder.file("weir.toml", CONFIG);
    let mut broken = tcp(40_001, 80);
    broken[24] ^= 1; // the checksum of the IP header
    let mut elsewhere = tcp(40_002, 80);
    elsewhere[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let input = [tcp(40_000, 80), broken, tcp(40_000, 81), elsewhere, udp6(5353), tcp(40_000, 80)];
    let input = folder.file("in.pcap", pcap(&input));
    let run = |out: &str| {
        let out = folder.0.join(out);
        let output = weir(&[
            "replay",
            "-c",
            config.to_str().unwrap(),
            "--in",
            input.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--verdicts",
            "-",
        ]);
        assert!(output.status.success(), "{output:?}");
        (text(&output.stdout), text(&output.stderr), frames(&out))
    };
    let (lines, summary, sent) = run("one.pcap");
    let decisions: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let column = |key: &str| -> Vec<String> {
        let value = |decision: &serde_json::Value| match &decision[key] {
            serde_json::Value::Null => "-".into(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        decisions.iter().map(value).collect()
    };
    assert_eq!(column("frame"), ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(column("time"), ["0.0", "1.0", "2.0", "3.0", "4.0", "5.0"]);
    assert_eq!(column("verdict"), ["send", "drop", "punt", "drop", "send", "send"]);
    assert_eq!(column("reason"), ["-", "bad_checksum", "-", "not_ours", "-", "-"]);
    assert_eq!(column("service"), ["web", "-", "-", "-", "dns", "web"]);
    assert_eq!(decisions[0]["backend"], decisions[5]["backend"], "one flow, one backend");
    assert!(summary.contains("frames 6: sent 3, for the kernel 1, dropped 2"), "{summary}");

    let [first, tunnelled, _] = &sent[..] else { panic!("{sent:?}") };
    let mac: [u8; 6] = if decisions[0]["backend"] == "10.0.0.12" {
        [2, 0, 0, 0, 0, 0x0c] // as configured
    } else {
        [2, 0, 10, 0, 0, 11] // as documented
    };
    assert_eq!(first[..6], mac);
    assert_eq!(first[6..12], BALANCER);
    assert_eq!(first[12..], tcp(40_000, 80)[12..]);
    assert_eq!(tunnelled[34..], udp6(5353)[14..], "byte for byte what came in");

    assert_eq!(run("two.pcap"), (lines, summary, sent), "the same files give the same result");
}

#[test]
fn replay_changes_the_configuration_in_mid_capture() {
    let folder = Folder::new("at");
    let config = folder.file("weir.toml", CONFIG);
    let drained = CONFIG.replace("{ address = \"10.0.0.11\" }, ", "");
    let later = folder.file("later.toml", drained);
    let input: Vec<Vec<u8>> = (0..100).map(|port| tcp(40_000 + port, 80)).collect();
    let input = folder.file("in.pcap", pcap(&input));
    let out = folder.0.join("out.pcap");
    let output = weir(&[
        "replay",
        "-c",
        config.to_str().unwrap(),
        "--in",
        input.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--verdicts",
        "-",
        "--at",
        "50",
        later.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stdout);
    let backends: Vec<&str> =
        lines.lines().map(|line| if line.contains("10.0.0.11") { "11" } else { "12" }).collect();
    assert_eq!(backends.len(), 100);
    assert!(backends[..50].contains(&"11"), "{backends:?}");
    assert!(!backends[50..].contains(&"11"), "{backends:?}");
}

#[test]
fn replay_refuses_what_is_no_capture() {
    let folder = Folder::new("refuse");
    let config = folder.file("weir.toml", CONFIG);
    for (content, part) in [
        (&b"not a capture at all, but long enough"[..], "is not a pcap"),
        (&pcap(&[tcp(1, 80)])[..50], "cut short"),
    ] {
        let input = folder.file("in.pcap", content);
        let out = folder.0.join("out.pcap");
        let output = weir(&[
            "replay",
            "-c",
            config.to_str().unwrap(),
            "--in",
            input.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(part), "{output:?}");
    }
}

/// What `weir replay` says of each frame: the columns of `keys`, in the order of the lines.
fn replay(name: &str, config: &str, input: &[u8], keys: &[&str]) -> Vec<Vec<String>> {
    let folder = Folder::new(name);
    let files = [folder.file("weir.toml", config), folder.file("in.pcap", input)];
    let out = folder.0.join("out.pcap");
    let [config, input, out] = [&files[0], &files[1], &out].map(|path| path.to_str().unwrap());
    let output = weir(&["replay", "-c", config, "--in", input, "--out", out, "--verdicts", "-"]);
    assert!(output.status.success(), "{output:?}");
    let one = |line| {
        let decision: serde_json::Value = serde_json::from_str(line).unwrap();
        keys.iter().map(|key| decision[key].to_string().replace('"', "")).collect()
    };
    text(&output.stdout).lines().map(one).collect()
}

/// A segment on its last hop, and one that is too big for every way.
fn unforwardable(src: [u8; 4], dst: [u8; 4], [src_port, dst_port]: [u16; 2]) -> [Vec<u8>; 2] {
    [(1, 0), (60, 1461)].map(|(ttl, len)| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(CLIENT, BALANCER)
            .ipv4(src, dst, ttl)
            .tcp(src_port, dst_port, 1, 1024)
            .write(&mut frame, &vec![0; len])
            .unwrap();
        frame
    })
}

#[test]
fn replay_says_why_a_frame_is_answered() {
    let config = CONFIG.replace("\"l2dsr\"", "\"nat\"");
    let (client, vip, backend) = ([198, 51, 100, 7], [10, 0, 0, 100], [10, 0, 0, 11]);
    let there = unforwardable(client, vip, [40_000, 80]);
    let back = unforwardable(backend, client, [80, 40_000]);
    let input = pcap(&[there, back].concat());
    let told = replay("answered", &config, &input, &["verdict", "reason", "rule", "service"]);
    let expect = [
        ["answer", "ttl_exceeded", "flow", "web"],
        ["answer", "too_big", "flow", "web"],
        ["answer", "ttl_exceeded", "return", "web"],
        ["answer", "too_big", "return", "web"],
    ];
    assert_eq!(told, expect);
}

/// A backend's answer is its service's; it took no slot.
#[test]
fn replay_says_whose_answer_it_is() {
    let config = CONFIG.replace("\"l2dsr\"", "\"nat\"");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT, BALANCER)
        .ipv4([10, 0, 0, 12], [198, 51, 100, 7], 60)
        .tcp(80, 40_000, 1, 1024)
        .write(&mut frame, &[])
        .unwrap();
    let keys = ["verdict", "rule", "service", "backend", "slot"];
    let told = replay("return", &config, &pcap(&[frame]), &keys);
    assert_eq!(told, [["send", "return", "web", "10.0.0.12", "null"]]);
}

/// A fragment of a datagram for the service, from `offset` eights on; the first one has three.
fn fragment(id: u16, offset: u16) -> Vec<u8> {
    let ports = [40_000_u16, 80].map(u16::to_be_bytes).concat();
    let payload = if offset == 0 { [ports, vec![0; 20]].concat() } else { vec![0; 8] };
    let mut ip = Ipv4Header::new(
        payload.len().try_into().unwrap(),
        60,
        IpNumber::TCP,
        [198, 51, 100, 7],
        [10, 0, 0, 100],
    )
    .unwrap();
    (ip.identification, ip.more_fragments, ip.dont_fragment) = (id, true, false);
    ip.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    let mut frame = [&BALANCER[..], &CLIENT, &[8, 0]].concat();
    ip.write(&mut frame).unwrap();
    [frame, payload].concat()
}

/// They follow their first one; or find no room; or wait in vain.
#[test]
fn replay_says_what_became_of_fragments_that_had_to_wait() {
    let mut early: Vec<Vec<u8>> = (0..).map(|id| fragment(id, 3)).take(WAITING_MAX + 1).collect();
    early.push(fragment(7, 0));
    let input = pcap_at(iter::repeat(0), &early);
    let told = replay("waiting", CONFIG, &input, &["verdict", "reason", "rule"]);
    let mut expect = vec![["drop", "fragment_timeout", "null"]; WAITING_MAX];
    expect[7] = ["send", "null", "fragment"];
    expect.push(["drop", "fragment_full", "null"]);
    expect.push(["send", "null", "flow"]);
    assert_eq!(told, expect);
}

/// An error about a tunnel's packet becomes one about the packet inside, for its client.
#[test]
fn replay_says_what_becomes_of_errors_about_tunnels() {
    let mut packet = Vec::new();
    let ([client, vip], payload) = ([[0x2001, 7], [0xfd00, 0x100]].map(ipv6), vec![0; 1400]);
    let inner = PacketBuilder::ipv6(client, vip, 60).udp(40_000, 53);
    inner.write(&mut packet, &payload).unwrap();
    let about = |to: [u8; 4], quoted: usize| {
        let len = packet.len().try_into().unwrap();
        let outer = Ipv4Header::new(len, 60, IpNumber::IPV6, [10, 0, 0, 2], to).unwrap();
        let quote = [&outer.to_bytes()[..], &packet[..quoted]].concat();
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(CLIENT, BALANCER)
            .ipv4([198, 51, 100, 9], [10, 0, 0, 2], 60)
            .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
            .write(&mut frame, &quote)
            .unwrap();
        frame
    };
    let frames = [about([10, 0, 0, 13], 48), about([10, 0, 0, 14], 48), about([10, 0, 0, 13], 47)];
    let keys = ["verdict", "rule", "service", "backend"];
    let told = replay("tunnel", CONFIG, &pcap(&frames), &keys);
    let punted = ["punt", "null", "null", "null"];
    assert_eq!(told, [["answer", "tunnel_error", "dns", "10.0.0.13"], punted, punted]);
}

fn ipv6([first, last]: [u16; 2]) -> [u8; 16] {
    std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last).octets()
}
