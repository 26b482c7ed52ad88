//! Network address translation: clients in one network and behind a router, backends in another, with
//! the balancer as their gateway.
//!
//! ```text
//!  far ←─1300── router ── br0 ── lan0 ═ weir ═ lan1 ── br1 ── b1
//!      ──1500─→            └─── near                    └─── b2
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::backend::{Backend, ECHO_PORT};
use crate::client::{self, Http, assert_fair, ping};
use crate::config::{Config, Service, Spec};
use crate::fragments;
use crate::netns::Netns;
use crate::pattern::Checksum;
use crate::topology::{
    CLIENT, Segment, Setup, WEIR, add_addresses, add_default, at, narrow, v4, v6,
};
use crate::weir::Weir;

/// Networks: the near client's, the backends', the far client's.
pub(crate) const NEAR: u8 = 0;
pub(crate) const BACKENDS: u8 = 1;
const FAR: u8 = 4;
/// Last parts of addresses.
const VIP: u8 = 100;
const VIP_46: u8 = 101;
const ROUTER: u8 = 254;
const NARROW_MTU: u16 = 1300;
const CHUNKS: u64 = 40;

pub(crate) struct Networks {
    pub(crate) backends: Vec<Backend>,
    pub(crate) near: Netns,
    pub(crate) far: Netns,
    _router: Netns,
    pub(crate) lb: Netns,
    pub(crate) segments: [Segment; 2],
}

impl Networks {
    pub(crate) fn new(setup: Setup) -> Self {
        let lb = Netns::new("lb");
        let segments = [0, 1].map(|index| Segment::new(setup, index, &lb));
        let near = Netns::new("near");
        segments[0].connect(&lb, &near, "near", "eth0");
        add_addresses(&near, "eth0", NEAR, CLIENT);

        let router = Netns::new("router");
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv6/conf/all/forwarding", "1");
        segments[0].connect(&lb, &router, "router", "eth0");
        add_addresses(&router, "eth0", NEAR, ROUTER);
        let far = Netns::new("far");
        router.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}\nlink set eth1 up",
            far.name()
        ));
        far.ip("link set eth0 up");
        add_addresses(&router, "eth1", FAR, ROUTER);
        add_addresses(&far, "eth0", FAR, CLIENT);
        add_default(&far, FAR, ROUTER);
        narrow(&router, "eth1", FAR, NARROW_MTU);

        let backends = (1..=2).map(|number| {
            let name = format!("b{number}");
            let netns = Netns::new(&name);
            segments[1].connect(&lb, &netns, &name, "eth0");
            add_addresses(&netns, "eth0", BACKENDS, 10 + number);
            add_default(&netns, BACKENDS, WEIR);
            let own: [IpAddr; 2] =
                [v4(BACKENDS, 10 + number).into(), v6(BACKENDS, 10 + number).into()];
            Backend::start(&name, own[0], own[1], netns, &own)
        });
        Self { backends: backends.collect(), near, far, _router: router, lb, segments }
    }

    /// Tells the balancer the way to far clients.
    pub(crate) fn add_way_to_far(&self) {
        for (net, gateway) in [
            (format!("{}/24", v4(FAR, 0)), v4(NEAR, ROUTER).to_string()),
            (format!("{}/64", v6(FAR, 0)), v6(NEAR, ROUTER).to_string()),
        ] {
            self.lb.ip(&format!("route add {net} via {gateway}"));
        }
    }

    pub(crate) fn config(&self, setup: Setup) -> Config {
        let service = |name: &str, vip: IpAddr, (protocol, port, backend_port)| Service {
            name: name.to_owned(),
            address: vip,
            port,
            protocol,
            forward: "nat",
            more: String::new(),
            backends: self
                .backends
                .iter()
                .map(|backend| Spec {
                    port: backend_port,
                    ..Spec::new(if vip.is_ipv4() { backend.v4 } else { backend.v6 }, 1)
                })
                .collect(),
        };
        let [vip4, vip6] = [IpAddr::from(v4(NEAR, VIP)), v6(NEAR, VIP).into()];
        let service46 = |name: &str, (protocol, port, backend_port)| Service {
            more: "client_prefix = \"64:ff9b::/96\"\n".to_owned(),
            backends: self
                .backends
                .iter()
                .map(|backend| Spec { port: backend_port, ..Spec::new(backend.v6, 1) })
                .collect(),
            ..service(name, v4(NEAR, VIP_46).into(), (protocol, port, None))
        };
        Config {
            workers: setup.workers,
            hugepages: "off",
            memory_mb: 256,
            ports: vec![
                self.segments[0].port(v4(NEAR, WEIR), v6(NEAR, WEIR)),
                self.segments[1].port(v4(BACKENDS, WEIR), v6(BACKENDS, WEIR)),
            ],
            services: vec![
                service("web4", vip4, ("tcp", 80, Some(8080))),
                service("web6", vip6, ("tcp", 80, Some(8080))),
                service("same4", vip4, ("tcp", 8081, None)),
                service("echo4", vip4, ("udp", ECHO_PORT, None)),
                service("echo6", vip6, ("udp", ECHO_PORT, None)),
                service46("web46", ("tcp", 80, Some(8080))),
                service46("echo46", ("udp", ECHO_PORT, None)),
            ],
        }
    }
}

/// Tries to connect with so many hops to go.
pub(crate) fn connect_within(hops: u32, to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if to.is_ipv4() {
        socket.set_ttl_v4(hops)?;
    } else {
        socket.set_unicast_hops_v6(hops)?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(5))
}

pub(crate) fn between_two_networks(setup: Setup) {
    let networks = Networks::new(setup);
    let config = networks.config(setup);
    let mut weir = Weir::start(&networks.lb, &config.to_string(), &networks.segments);
    networks.add_way_to_far(); // learned while the balancer runs
    let Networks { near, far, .. } = &networks;
    for vip in [IpAddr::from(v4(NEAR, VIP)), v6(NEAR, VIP).into(), v4(NEAR, VIP_46).into()] {
        ping(near, vip);
        let web = at(vip, 80);
        for client in [near, far] {
            transfers(client, web);
            let echoed = client.block_on(|| client::echo(at(vip, ECHO_PORT), "short"));
            assert!(echoed.expect("an echo").ends_with(" short"), "{vip}");
        }
        if vip.is_ipv6() || setup.driver.shows_ipv4_fragments() {
            echo_in_pieces(near, at(vip, ECHO_PORT));
        }
        let before = weir.counters().get("answered");
        let tried = far.run(|| [2, 3].map(|hops| connect_within(hops, web)));
        let [exceeded, reached] = tried;
        let why = exceeded.expect_err("the balancer is the second hop");
        assert_eq!(why.kind(), io::ErrorKind::HostUnreachable, "{why}");
        reached.expect("the backend is the third");
        assert!(weir.counters().get("answered") > before, "the balancer told the client");
    }
    client::wait_for_backends(near, at(v4(NEAR, VIP), 8081), &["b1", "b2"]);
    let frames = weir.counters();
    for service in ["web4", "web6", "same4", "echo4", "echo6", "web46", "echo46"] {
        assert!(frames.service_frames(service) > 0, "{service}");
    }
    weir.leave();
}

/// Connections reach both backends, and what is sent arrives, both ways.
pub(crate) fn transfers(client: &Netns, web: SocketAddr) {
    client::wait_for_backends(client, web, &["b1", "b2"]);
    let spread = client.block_on(|| client::spread(web, 200)).expect("all connect");
    assert_fair(&spread, &[("b1", 1), ("b2", 1)]);
    let up = client
        .block_on(|| async { Http::connect(web).await?.upload(CHUNKS, Duration::ZERO).await });
    assert_eq!(up.expect("uploads"), Checksum::of_chunks(CHUNKS), "{web}");
    // From afar: the router tells the backend, whose packet it finds in the VIP's name.
    let down = client
        .block_on(|| async { Http::connect(web).await?.download(CHUNKS, Duration::ZERO).await });
    assert_eq!(down.expect("downloads"), Checksum::of_chunks(CHUNKS), "{web}");
}

/// Datagrams that come and go in fragments. (From afar the first would be lost: a backend has to be
/// told about the narrow link once, and nobody sends a datagram again.)
pub(crate) fn echo_in_pieces(client: &Netns, to: SocketAddr) {
    let long = "0123456789abcdef".repeat(30_000 / 16);
    let answers = client.block_on(|| async {
        let mut answers = Vec::new();
        for seed in 0..5 {
            answers.push(client::echo(to, &long).await);
            answers.push(fragments::echo_shuffled(to, &long, seed).await);
        }
        answers
    });
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap_or_else(|error| panic!("{to}, datagram {number}: {error}"));
        assert!(answer.ends_with(&format!(" {long}")), "{to}, datagram {number}: {answer:.40}");
    }
}
