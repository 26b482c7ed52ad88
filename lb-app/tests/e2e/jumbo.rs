//! Jumbo frames: large segments and datagrams in every kind of mode; and frames that are longer than a
//! buffer, which no port asks for but any wire may bring.
//!
//! ```text
//!  client ──┐          lb: br0, wire ═ weir ═ lan0
//!  b1, b2 ──┴─ br0 ─ wire
//! ```
//! `net_tap` and `net_af_packet` have ports of 1504 and 1500 bytes at most: jumbo frames are
//! `net_pcap`'s.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::backend::{Backend, ECHO_PORT};
use crate::client::{self, Http, Outcome};
use crate::config::{Config, Port, Service, Spec};
use crate::netns::{Netns, expect_success};
use crate::pattern::Checksum;
use crate::topology::{
    CLIENT, Driver, Segment, Setup, VIP_IPIP, VIP_L2DSR, WEIR, add_addresses, at, backend_netns,
    v4, v6, vips,
};
use crate::weir::{Counters, Weir};

const MTU: u16 = 9000;
/// What the client's link takes: more than the port's, and more than a buffer.
const WIDE_MTU: u16 = 9500;
/// Bytes of datagrams: one that just fits tunnels, one that fits buffers only, one that does not.
const LARGE: usize = 8900;
const TOO_LARGE: usize = 9100;
const LONGER_THAN_A_BUFFER: usize = 9400;
/// What a port of 1500 bytes gets more than its buffers have room for.
const LONG: usize = 3000;
const CHUNKS: u64 = 160;

/// The last parts of the translated services' addresses, and of the pool's.
const VIP_NAT: u8 = 102;
const VIP_FULLNAT: u8 = 103;
const POOL: u8 = 200;
/// The client's other network, to which backends go through the balancer: what `nat` wants.
const BEHIND: u8 = 8;
const PATIENCE: Duration = Duration::from_secs(10);

struct Jumbo {
    backends: Vec<Backend>,
    client: Netns,
    lb: Netns,
    segment: Segment,
}

fn both(host: u8) -> [IpAddr; 2] {
    [v4(0, host).into(), v6(0, host).into()]
}

impl Jumbo {
    fn new(driver: Driver, mtu: u16, client_mtu: u16) -> Self {
        let lb = Netns::new("lb");
        let segment = Segment::new(Setup { driver, workers: 1 }, 0, &lb);
        let connect = |host: &Netns, role: &str, number, mtu| {
            segment.connect(&lb, host, role, "eth0");
            lb.ip(&format!("link set {role} mtu {client_mtu}"));
            host.ip(&format!("link set eth0 mtu {mtu}"));
            add_addresses(host, "eth0", 0, number);
        };
        let client = Netns::new("client");
        connect(&client, "client", CLIENT, client_mtu);
        add_addresses(&client, "eth0", BEHIND, CLIENT);
        let [vip4, vip6] = both(VIP_NAT);
        let (from4, from6) = (v4(BEHIND, CLIENT), v6(BEHIND, CLIENT));
        client.ip(&format!(
            "route add {vip4} dev eth0 src {from4}\nroute add {vip6} dev eth0 src {from6}"
        ));
        let backends = (1..=2).map(|number| {
            let name = format!("b{number}");
            let netns = backend_netns(&name);
            connect(&netns, &name, 10 + number, mtu);
            netns.ip(&format!(
                "route add {}/24 via {}\nroute add {}/64 via {}",
                v4(BEHIND, 0),
                v4(0, WEIR),
                v6(BEHIND, 0),
                v6(0, WEIR)
            ));
            let [v4, v6] = both(10 + number);
            Backend::start(&name, v4, v6, netns, &[&vips()[..], &[v4, v6]].concat())
        });
        Self { backends: backends.collect(), client, lb, segment }
    }

    fn start(&self, config: &Config, wire_mtu: u16) -> Weir {
        let weir = Weir::start(&self.lb, &config.to_string(), &[self.segment]);
        self.segment.widen(&self.lb, wire_mtu);
        for net in [format!("{}/24", v4(BEHIND, 0)), format!("{}/64", v6(BEHIND, 0))] {
            self.lb.ip(&format!("route add {net} dev {}", self.segment.kernel_side()));
        }
        weir
    }

    fn config(&self, mtu: u16) -> Config {
        let port =
            Port { more: format!("mtu = {mtu}\n"), ..self.segment.port(v4(0, WEIR), v6(0, WEIR)) };
        let services =
            WAYS.iter().flat_map(|way| [self.service(way, true), self.service(way, false)]);
        Config {
            workers: 1,
            hugepages: "off",
            memory_mb: 256,
            ports: vec![port],
            services: services.collect(),
        }
    }

    /// Backends of tunnels are of the other family where the way says so.
    fn service(&self, way: &Way, is_ipv4: bool) -> Service {
        let backend = |backend: &Backend| Spec {
            port: way.backend_port,
            ..Spec::new(if is_ipv4 == way.is_same_family { backend.v4 } else { backend.v6 }, 1)
        };
        let pool = format!("pool = \"{}\"\n", both(POOL)[usize::from(!is_ipv4)]);
        Service {
            name: way.name(is_ipv4),
            address: way.vip(is_ipv4).ip(),
            port: way.port,
            protocol: way.protocol,
            forward: way.forward,
            more: if way.forward == "fullnat" { pool } else { String::new() },
            backends: self.backends.iter().map(backend).collect(),
        }
    }
}

struct Way {
    forward: &'static str,
    protocol: &'static str,
    host: u8,
    port: u16,
    backend_port: Option<u16>,
    is_same_family: bool,
}

impl Way {
    const fn new(forward: &'static str, protocol: &'static str, host: u8, port: u16) -> Self {
        Self { forward, protocol, host, port, backend_port: None, is_same_family: true }
    }

    fn name(&self, is_ipv4: bool) -> String {
        let Self { forward, protocol, .. } = self;
        format!("{forward}-{protocol}-{}", if is_ipv4 { "v4" } else { "v6" })
    }

    fn vip(&self, is_ipv4: bool) -> SocketAddr {
        at(both(self.host)[usize::from(!is_ipv4)], self.port)
    }
}

const WAYS: &[Way] = &[
    Way::new("l2dsr", "tcp", VIP_L2DSR, 80),
    Way::new("l2dsr", "udp", VIP_L2DSR, ECHO_PORT),
    Way::new("ipip", "tcp", VIP_IPIP, 8080),
    Way::new("ipip", "udp", VIP_IPIP, ECHO_PORT),
    Way { is_same_family: false, ..Way::new("gue", "tcp", VIP_IPIP, 8081) },
    Way { is_same_family: false, ..Way::new("gre", "tcp", VIP_IPIP, 8083) },
    Way { backend_port: Some(8080), ..Way::new("nat", "tcp", VIP_NAT, 80) },
    Way::new("nat", "udp", VIP_NAT, ECHO_PORT),
    Way { backend_port: Some(8081), ..Way::new("fullnat", "tcp", VIP_FULLNAT, 80) },
    Way::new("fullnat", "udp", VIP_FULLNAT, ECHO_PORT),
];

/// Sends a datagram and expects nothing.
fn send(from: &Netns, to: SocketAddr, bytes: usize) {
    from.run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a port is free");
        socket.send_to(&vec![b'x'; bytes], to).expect("the link is up");
    });
}

/// Waits until a counter has grown by as much, and no more.
fn wait_for_growth(weir: &mut Weir, before: &Counters, name: &str, by: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let grown = weir.counters().get(name) - before.get(name);
        if grown == by {
            return;
        }
        assert!(grown < by && Instant::now() < end, "{name} has grown by {grown}, not {by}");
        thread::sleep(Duration::from_millis(20));
    }
}

async fn transfers(vip: SocketAddr) -> Outcome<[String; 2]> {
    let up = Http::connect(vip).await?.upload(CHUNKS, Duration::ZERO).await?;
    Ok([up, Http::connect(vip).await?.download(CHUNKS, Duration::ZERO).await?])
}

pub(crate) fn in_every_mode() {
    let jumbo = Jumbo::new(Driver::Pcap, MTU, WIDE_MTU);
    let mut weir = jumbo.start(&jumbo.config(MTU), WIDE_MTU);
    let client = &jumbo.client;
    for address in both(VIP_L2DSR) {
        let size = LARGE.to_string();
        let address = address.to_string();
        let ping = ["-c", "2", "-i", "0.2", "-W", "5", "-M", "do", "-s", &size, &address];
        expect_success(client.command("ping").args(ping));
    }
    for way in WAYS {
        for is_ipv4 in [true, false] {
            let (name, vip) = (way.name(is_ipv4), way.vip(is_ipv4));
            forget(client);
            if way.protocol == "tcp" {
                client::wait_for_backends(client, vip, &["b1", "b2"]);
                let before = weir.counters();
                let sums = client.block_on(|| transfers(vip));
                let sums = sums.unwrap_or_else(|error| panic!("{name} {vip}: {error}"));
                assert_eq!(sums, [0, 1].map(|_| Checksum::of_chunks(CHUNKS)), "{name}");
                let after = weir.counters();
                let [frames, bytes] = grown(&before, &after, &name);
                // Acknowledgements and all.
                assert!(bytes / frames > 3000, "{name}: {frames} frames have {bytes} bytes");
                // The client did not know of the tunnel.
                let is_told = after.get("answered") > before.get("answered");
                assert_eq!(is_told, ["ipip", "gue", "gre"].contains(&way.forward), "{name}");
            } else {
                datagrams(client, &mut weir, (&name, vip), way.forward.contains("nat"));
            }
        }
    }
    let counters = weir.leave();
    assert_eq!(counters.get("created"), 0, "nothing was cut");
}

fn grown(before: &Counters, after: &Counters, service: &str) -> [u64; 2] {
    let (frames, bytes) = after.service_frames_and_bytes(service);
    let (frames_before, bytes_before) = before.service_frames_and_bytes(service);
    [frames - frames_before, bytes - bytes_before]
}

fn datagrams(client: &Netns, weir: &mut Weir, (name, vip): (&str, SocketAddr), is_back: bool) {
    let echo = |bytes: usize| {
        let text = "0123456789".repeat(bytes / 10);
        client.block_on(|| client::echo(vip, &text)).map(|answer| {
            assert!(answer.ends_with(&format!(" {text}")), "{name}, {bytes} bytes: {answer:.40}");
        })
    };
    let echoed = |bytes: usize| {
        echo(bytes).unwrap_or_else(|error| panic!("{name}, {bytes} bytes: {error}"));
    };
    let before = weir.counters();
    for _ in 0..10 {
        echoed(LARGE);
    }
    // Each in one piece, there, and back where it comes back this way.
    let [frames, bytes] = grown(&before, &weir.counters(), name);
    assert_eq!(frames, if is_back { 20 } else { 10 }, "{name}");
    assert!(bytes > frames * u64::try_from(LARGE).expect("is small"), "{name}");

    forget(client);
    let before = weir.counters();
    for _ in 0..3 {
        send(client, vip, LONGER_THAN_A_BUFFER);
    }
    wait_for_growth(weir, &before, "dropped.multi_segment", 3);

    // The client is told what fits the way; and sends that.
    let error = echo(TOO_LARGE).expect_err("it does not fit");
    assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32), "{name}: {error}");
    echoed(TOO_LARGE);
}

/// Forgets what the client has found out about paths.
fn forget(client: &Netns) {
    for family in ["-4", "-6"] {
        expect_success(client.command("ip").args([family, "route", "flush", "cache"]));
    }
}

/// Each driver has its own way with a frame that no buffer has room for; all of them count it, and go on.
pub(crate) fn longer_than_a_buffer() {
    for (driver, counter) in [
        (Driver::Tap, "port.lan0.receive_errors"),
        (Driver::AfPacket, "dropped.truncated"),
        (Driver::Pcap, "dropped.multi_segment"),
    ] {
        let jumbo = Jumbo::new(driver, 1500, MTU);
        let mut weir = jumbo.start(&jumbo.config(1500), MTU);
        let [web, echo] = [80, ECHO_PORT].map(|port| at(v4(0, VIP_L2DSR), port));
        client::wait_for_backends(&jumbo.client, web, &["b1", "b2"]);
        let before = weir.counters();
        for _ in 0..5 {
            send(&jumbo.client, echo, LONG);
        }
        wait_for_growth(&mut weir, &before, counter, 5);
        client::wait_for_backends(&jumbo.client, web, &["b1", "b2"]);
        weir.leave();
    }
}
