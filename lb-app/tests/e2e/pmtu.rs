//! Path MTU discovery through the balancer: a client behind a router whose link is narrow on the way
//! back, and tunnels that are narrow on the way there.
//!
//! ```text
//!  client ←─1300── router ── br0 ── lan0 ═ weir
//!         ──1500─→  │         └─── b1
//!                   └──1400─→ b2
//! ```
//! Neither end knows: the client offers full segments, and so does the backend.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use crate::backend::Backend;
use crate::client::{self, Http, Outcome};
use crate::config::{Config, Service, Spec};
use crate::netns::{Netns, expect_success};
use crate::pattern::Checksum;
use crate::topology::{
    Segment, Setup, VIP_IPIP, VIP_L2DSR, WEIR, add_addresses, add_default, at, backend_netns,
    narrow, v4, v6, vips,
};
use crate::weir::Weir;

/// Networks: the switch's, and the client's.
const SWITCH: u8 = 0;
const CLIENTS: u8 = 4;
const ROUTER: u8 = 254;
const NARROW_MTU: u16 = 1300;
/// How much is transferred each way.
const CHUNKS: u64 = 40;

/// The network of a backend behind the router, and of the link there, which is narrow on the way.
const FAR: u8 = 5;
const FAR_MTU: u16 = 1400;

struct Narrow {
    backend: Backend,
    far: Backend,
    router: Netns,
    client: Netns,
    lb: Netns,
    segment: Segment,
}

impl Narrow {
    fn new(setup: Setup) -> Self {
        let lb = Netns::new("lb");
        let segment = Segment::new(setup, 0, &lb);
        let router = Netns::new("router");
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv6/conf/all/forwarding", "1");
        segment.connect(&lb, &router, "router", "eth0");
        let client = Netns::new("client");
        router.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}\nlink set eth1 up",
            client.name()
        ));
        client.ip("link set eth0 up");
        let net = backend_netns("b1");
        segment.connect(&lb, &net, "b1", "eth0");
        let far = backend_netns("b2");
        router.ip(&format!(
            "link add eth2 type veth peer name eth0 netns {}\nlink set eth2 up",
            far.name()
        ));
        far.ip("link set eth0 up");
        for (host, interface, network, number) in [
            (&router, "eth0", SWITCH, ROUTER),
            (&router, "eth1", CLIENTS, ROUTER),
            (&client, "eth0", CLIENTS, 1),
            (&net, "eth0", SWITCH, 11),
            (&router, "eth2", FAR, ROUTER),
            (&far, "eth0", FAR, 11),
        ] {
            add_addresses(host, interface, network, number);
        }
        narrow(&router, "eth1", CLIENTS, NARROW_MTU);
        narrow(&router, "eth2", FAR, FAR_MTU);
        for (host, network) in [(&client, CLIENTS), (&net, SWITCH), (&far, FAR)] {
            add_default(host, network, ROUTER);
        }
        let (address4, address6) = (v4(SWITCH, 11).into(), v6(SWITCH, 11).into());
        let backend = Backend::start("b1", address4, address6, net, &vips());
        let (address4, address6) = (v4(FAR, 11).into(), v6(FAR, 11).into());
        let far = Backend::start("b2", address4, address6, far, &vips());
        Self { backend, far, router, client, lb, segment }
    }

    fn config(&self, setup: Setup, backend: &Backend) -> Config {
        let is_on_link = backend.v4 == self.backend.v4;
        let modes = MODES.iter().filter(|(forward, ..)| is_on_link || *forward != "l2dsr");
        let services = modes.flat_map(|&(forward, host, port)| {
            [IpAddr::from(v4(SWITCH, host)), v6(SWITCH, host).into()].map(|address| Service {
                name: format!("{forward}-{}", if address.is_ipv4() { 4 } else { 6 }),
                address,
                port,
                protocol: "tcp",
                forward,
                more: String::new(),
                // l2dsr takes any backend of the link; a tunnel's may be of the other family: here it
                // is of the VIP's.
                backends: vec![Spec::new(
                    if address.is_ipv6() { backend.v6 } else { backend.v4 },
                    1,
                )],
            })
        });
        Config {
            workers: setup.workers,
            hugepages: "off",
            memory_mb: 256,
            ports: vec![self.segment.port(v4(SWITCH, WEIR), v6(SWITCH, WEIR))],
            services: services.collect(),
        }
    }

    /// Have the errors of the router no way out?
    fn block_errors(&self, block: bool) {
        let rules = if block {
            "add table inet quiet; add chain inet quiet out { type filter hook output priority 0; }; \
             add rule inet quiet out icmp type destination-unreachable drop; \
             add rule inet quiet out icmpv6 type packet-too-big drop"
        } else {
            "delete table inet quiet"
        };
        expect_success(self.router.command("nft").arg(rules));
    }

    /// Forgets what either end has found out about the path.
    fn forget(&self) {
        for netns in [&self.client, &self.backend.netns] {
            for family in ["-4", "-6"] {
                expect_success(netns.command("ip").args([family, "route", "flush", "cache"]));
            }
        }
    }
}

/// Modes, and where they are tried.
const MODES: [(&str, u8, u16); 4] = [
    ("l2dsr", VIP_L2DSR, 80),
    ("ipip", VIP_IPIP, 8080),
    ("gue", VIP_IPIP, 8081),
    ("gre", VIP_IPIP, 8083),
];

async fn download(vip: SocketAddr) -> Outcome<String> {
    Http::connect(vip).await?.download(CHUNKS, Duration::ZERO).await
}

async fn upload(vip: SocketAddr) -> Outcome<String> {
    Http::connect(vip).await?.upload(CHUNKS, Duration::ZERO).await
}

/// Downloads need errors from the router to reach the backend; uploads through tunnels need errors
/// from the balancer to reach the client.
pub(crate) fn both_ways(setup: Setup) {
    let narrow = Narrow::new(setup);
    let config = narrow.config(setup, &narrow.backend);
    let mut weir = Weir::start(&narrow.lb, &config.to_string(), &[narrow.segment]);
    for &(forward, host, port) in &MODES {
        for vip in [IpAddr::from(v4(SWITCH, host)), v6(SWITCH, host).into()] {
            let vip = at(vip, port);
            client::wait_for_backends(&narrow.client, vip, &["b1"]);
            // Up first: what a backend knows of its way to the client, it tells in the next SYN.
            for (way, sum) in [
                ("up", narrow.client.block_on(|| upload(vip))),
                ("down", narrow.client.block_on(|| download(vip))),
            ] {
                let sum = sum.unwrap_or_else(|error| panic!("{forward} {vip} {way}: {error}"));
                assert_eq!(sum, Checksum::of_chunks(CHUNKS), "{forward} {vip} {way}");
            }
            narrow.forget();
        }
    }
    assert!(weir.counters().get("answered") > 0, "the balancer told the client");
    // Were it not for the errors, nothing would arrive.
    narrow.block_errors(true);
    let vip = at(v4(SWITCH, VIP_L2DSR), 80);
    let stuck = narrow.client.block_on(|| timeout(Duration::from_secs(2), download(vip)));
    assert!(stuck.is_err(), "the link is not narrow: {stuck:?}");
    narrow.block_errors(false);
    weir.leave();
}

/// A tunnel that is narrow behind the balancer: the router tells the balancer, and that the client.
pub(crate) fn in_tunnels(setup: Setup) {
    let narrow = Narrow::new(setup);
    let config = narrow.config(setup, &narrow.far);
    let weir = Weir::start(&narrow.lb, &config.to_string(), &[narrow.segment]);
    add_default(&narrow.lb, SWITCH, ROUTER);
    let tunnels = || MODES.iter().filter(|(forward, ..)| *forward != "l2dsr");
    for &(forward, host, port) in tunnels() {
        for (vip, outer) in [(IpAddr::from(v4(SWITCH, host)), 20), (v6(SWITCH, host).into(), 40)] {
            let to = at(vip, port);
            client::wait_for_backends(&narrow.client, to, &["b2"]);
            narrow.forget();
            let sum = narrow.client.block_on(|| upload(to));
            let sum = sum.unwrap_or_else(|error| panic!("{forward} {to}: {error}"));
            assert_eq!(sum, Checksum::of_chunks(CHUNKS), "{forward} {to}");
            let shim = match forward {
                "gue" => 8,
                "gre" => 4,
                _ => 0,
            };
            let mut get = narrow.client.command("ip");
            let route = expect_success(get.args(["route", "get", &vip.to_string()]));
            let mtu = format!("mtu {} ", FAR_MTU - outer - shim);
            assert!(route.contains(&mtu), "{forward}: {mtu} in {route}");
        }
    }
    // Were it not for the router's errors, nothing would arrive.
    narrow.block_errors(true);
    narrow.forget();
    let to = at(v4(SWITCH, VIP_IPIP), 8080);
    let stuck = narrow.client.block_on(|| timeout(Duration::from_secs(2), upload(to)));
    assert!(stuck.is_err(), "the link is not narrow: {stuck:?}");
    narrow.block_errors(false);
    weir.leave();
}
