//! Who computes checksums, the device or the balancer, is not to be seen in what is sent.
//!
//! ```text
//!  probe ── br0 ── lan0 ═ weir
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::config::{Config, Port, Service, Spec};
use crate::netns::Netns;
use crate::topology::{Driver, Segment, Setup, WEIR, v4, v6};
use crate::weir::Weir;

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
const BACKEND_MAC_TEXT: &str = "02:00:00:00:00:0b";
const MTU: usize = 1500;
/// How long nothing has to come for all to have come.
const QUIET: Duration = Duration::from_millis(500);

/// Modes, whether the VIP and the backend are IPv4, and more keys.
const WAYS: &[(&str, bool, bool, &str)] = &[
    ("l2dsr", true, true, ""),
    ("l2dsr", false, false, ""),
    ("ipip", true, true, ""),
    ("ipip", true, false, ""),
    ("ipip", false, true, ""),
    ("ipip", false, false, ""),
    ("gue", true, true, ""),
    ("gue", true, false, ""),
    ("gue", false, true, ""),
    ("gue", false, false, ""),
    ("gre", true, true, ""),
    ("gre", true, false, ""),
    ("gre", false, true, ""),
    ("gre", false, false, ""),
    ("nat", true, true, ""),
    ("nat", false, false, ""),
    ("fullnat", true, true, "pool = \"10.0.0.200\"\n"),
    ("fullnat", true, false, "pool = \"fd00::200\"\n"),
    ("fullnat", false, true, "pool = \"10.0.0.200\"\n"),
    ("fullnat", false, false, "pool = \"fd00::200\"\n"),
];
/// Bytes in a datagram; the most that fits every tunnel is the last.
const PAYLOADS: [usize; 5] = [0, 1, 18, 777, 1404];

fn vip(way: usize, is_ipv4: bool) -> IpAddr {
    let host = u8::try_from(100 + way).expect("few ways");
    if is_ipv4 { v4(0, host).into() } else { v6(0, host).into() }
}

fn config(segment: Segment, offload: &str) -> Config {
    let services = WAYS.iter().enumerate().map(|(way, &(forward, vip_is_ipv4, to_ipv4, more))| {
        // A backend of nat has one service.
        let host = u8::try_from(11 + way).expect("few ways");
        let address: IpAddr = if to_ipv4 { v4(0, host).into() } else { v6(0, host).into() };
        Service {
            name: format!("{forward}-{way}"),
            address: vip(way, vip_is_ipv4),
            port: 80,
            protocol: "udp",
            forward,
            more: more.to_owned(),
            backends: vec![Spec { mac: Some(BACKEND_MAC_TEXT), ..Spec::new(address, 1) }],
        }
    });
    let port = Port {
        more: format!("mtu = {MTU}\nchecksum_offload = \"{offload}\"\n"),
        ..segment.port(v4(0, WEIR), v6(0, WEIR))
    };
    Config {
        workers: 1,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![port],
        services: services.collect(),
    }
}

/// A datagram for the service of `way`.
fn datagram(way: usize, payload_bytes: usize) -> Vec<u8> {
    let (_, is_ipv4, ..) = WAYS[way];
    let src: SocketAddr = if is_ipv4 { "198.51.100.7:4000" } else { "[2001:db8::7]:4000" }
        .parse()
        .expect("an address");
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, [2, 0, 0, 0, 0, 0]);
    let ip = match (src.ip(), vip(way, is_ipv4)) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let payload: Vec<u8> = (0..=250).cycle().take(payload_bytes).collect();
    let mut frame = Vec::new();
    ip.udp(4000, 80).write(&mut frame, &payload).expect("fits");
    frame
}

/// What is sent. (A false checksum of an IPv4 header does not get over the bridge.)
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for way in 0..WAYS.len() {
        frames.extend(PAYLOADS.map(|bytes| datagram(way, bytes)));
        // Nobody repairs what the client got wrong.
        let mut wrong = datagram(way, 100);
        wrong[60] ^= 0xff;
        frames.push(wrong);
    }
    frames
}

/// The port of the switch that is client and backends.
fn probe(segment: Segment, lb: &Netns) -> SyncDevice {
    let tap = lb.run(|| DeviceBuilder::new().name("probe").layer(Layer::L2).build_sync());
    let tap = tap.expect("root may make a TAP");
    tap.set_nonblocking(true).expect("a TAP can");
    let bridge = segment.bridge();
    lb.ip(&format!("link set probe mtu {MTU} master {bridge} up\nlink set {bridge} mtu {MTU}"));
    tap
}

/// What comes to the backends until nothing does.
fn received(probe: &SyncDevice) -> Vec<Vec<u8>> {
    let (mut frames, mut buffer, mut last) = (Vec::new(), [0; MTU + 22], Instant::now());
    while last.elapsed() < QUIET {
        match probe.recv(&mut buffer) {
            Ok(len) if buffer[..6] == BACKEND_MAC => {
                frames.push(buffer[..len].to_vec());
                last = Instant::now();
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("the probe: {error}"),
        }
    }
    frames
}

/// What a balancer makes of the frames, and what it says of its port.
fn sent(offload: &str) -> (Vec<Vec<u8>>, String) {
    let setup = Setup { driver: Driver::Tap, workers: 1 };
    let lb = Netns::new("lb");
    let segment = Segment::new(setup, 0, &lb);
    let probe = probe(segment, &lb);
    let mut weir = Weir::start(&lb, &config(segment, offload).to_string(), &[segment]);
    let frames = frames();
    let mut all = Vec::new();
    for frame in &frames {
        probe.send(frame).expect("the interface is up");
        thread::sleep(Duration::from_millis(1));
    }
    all.extend(received(&probe));
    let log = weir.log_tail();
    let counters = weir.counters();
    assert_eq!(counters.get("dropped.bad_checksum"), 0);
    assert_eq!(counters.get("dropped.multi_segment"), 0);
    assert!(all.len() >= frames.len(), "{} came", all.len());
    weir.leave();
    (all, log)
}

pub(crate) fn device_and_balancer_agree() {
    let (by_device, log) = sent("auto");
    assert!(log.contains("checksums by the device: IPv4 in, UDP out"), "{log}");
    let (by_balancer, log) = sent("off");
    assert!(log.contains("checksums by the device: none"), "{log}");
    assert_eq!(by_device.len(), by_balancer.len());
    for (number, (one, other)) in by_device.iter().zip(&by_balancer).enumerate() {
        assert_eq!(one, other, "frame {number}");
    }
    // What was put into a tunnel, or only sent on, is there as it came.
    for (way, (forward, ..)) in WAYS.iter().enumerate().filter(|(_, way)| !way.0.contains("nat")) {
        for bytes in PAYLOADS {
            let packet = &datagram(way, bytes)[14..];
            let is_there = by_device.iter().any(|frame| frame.ends_with(packet));
            assert!(is_there, "{forward}, {bytes} bytes");
        }
    }
}
