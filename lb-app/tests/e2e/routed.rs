//! Two ports: clients on one side, and on the other a gateway that leads to the backends.
//!
//! ```text
//!  client ── br0 ── lan0 ═ weir ═ lan1 ── br1 ── gateway ── b1
//!             └──────── the way back ─────────────┘   └──── b2
//! ```

use std::net::IpAddr;

use crate::backend::Backend;
use crate::client::{self, assert_fair, ping};
use crate::config::{Config, Service, Spec};
use crate::decap::{Family, Kind};
use crate::netns::Netns;
use crate::topology::{
    CLIENT, Segment, Setup, VIP_IPIP, WEIR, add_addresses, add_default, at, backend_netns, v4, v6,
    vips,
};
use crate::weir::Weir;

/// Networks: the client's, the gateway's, and those of the two backends.
const CLIENTS: u8 = 0;
const GATEWAYS: u8 = 1;
const BACKENDS: [u8; 2] = [2, 3];

/// The last part of the gateway's addresses.
const GATEWAY: u8 = 254;

struct Routed {
    backends: Vec<Backend>,
    _gateway: Netns,
    client: Netns,
    lb: Netns,
    segments: [Segment; 2],
}

impl Routed {
    fn new(setup: Setup) -> Self {
        let lb = Netns::new("lb");
        let segments = [0, 1].map(|index| Segment::new(setup, index, &lb));

        let client = Netns::new("client");
        segments[0].connect(&lb, &client, "client", "eth0");
        add_addresses(&client, "eth0", CLIENTS, CLIENT);
        // Room for the outer header.
        client.ip(&format!("route add {} dev eth0 mtu 1400", v4(0, VIP_IPIP)));
        client.ip(&format!("route add {} dev eth0 mtu 1400", v6(0, VIP_IPIP)));

        let gateway = Netns::new("gateway");
        gateway.sysctl("net/ipv4/ip_forward", "1");
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1");
        segments[0].connect(&lb, &gateway, "gateway0", "eth0");
        segments[1].connect(&lb, &gateway, "gateway1", "eth1");
        add_addresses(&gateway, "eth0", CLIENTS, GATEWAY);
        add_addresses(&gateway, "eth1", GATEWAYS, GATEWAY);

        let backends = BACKENDS.map(|net| backend(&gateway, net)).into();
        Self { backends, _gateway: gateway, client, lb, segments }
    }
}

/// A backend in a network of its own behind the gateway.
fn backend(gateway: &Netns, net: u8) -> Backend {
    let name = format!("b{}", net - 1);
    let netns = backend_netns(&name);
    gateway.ip(&format!("link add {name} type veth peer name eth0 netns {}", netns.name()));
    gateway.ip(&format!("link set {name} up"));
    netns.ip("link set eth0 up");
    add_addresses(gateway, &name, net, GATEWAY);
    add_addresses(&netns, "eth0", net, 11);
    add_default(&netns, net, GATEWAY);
    Backend::start(&name, v4(net, 11).into(), v6(net, 11).into(), netns, &vips())
}

/// The kernel's routes, added while the balancer runs, lead to the backends.
pub(crate) fn through_a_gateway(setup: Setup) {
    let routed = Routed::new(setup);
    let service = |name: &str, vip: IpAddr, backend: fn(&Backend) -> IpAddr| Service {
        name: name.to_owned(),
        address: vip,
        port: 80,
        protocol: "tcp",
        forward: "ipip",
        more: String::new(),
        backends: routed.backends.iter().map(|one| Spec::new(backend(one), 1)).collect(),
    };
    let config = Config {
        workers: setup.workers,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![
            routed.segments[0].port(v4(CLIENTS, WEIR), v6(CLIENTS, WEIR)),
            routed.segments[1].port(v4(GATEWAYS, WEIR), v6(GATEWAYS, WEIR)),
        ],
        services: vec![
            service("web4", v4(0, VIP_IPIP).into(), |backend| backend.v4),
            service("web6", v6(0, VIP_IPIP).into(), |backend| backend.v6),
        ],
    };
    let weir = Weir::start(&routed.lb, &config.to_string(), &routed.segments);
    for net in BACKENDS {
        routed.lb.ip(&format!("route add {}/24 via {}", v4(net, 0), v4(GATEWAYS, GATEWAY)));
        routed.lb.ip(&format!("route add {}/64 via {}", v6(net, 0), v6(GATEWAYS, GATEWAY)));
    }
    ping(&routed.client, v4(CLIENTS, WEIR).into());
    for vip in [IpAddr::from(v4(0, VIP_IPIP)), v6(0, VIP_IPIP).into()] {
        client::wait_for_backends(&routed.client, at(vip, 80), &["b1", "b2"]);
        let spread = routed.client.block_on(|| client::spread(at(vip, 80), 200));
        assert_fair(&spread.expect("all connect"), &[("b1", 1), ("b2", 1)]);
    }
    for family in [Family::V4, Family::V6] {
        let packets =
            routed.backends.iter().map(|one| one.decapsulated.packets(Kind::Ipip, family, family));
        assert!(packets.sum::<u64>() >= 200 * 3, "{family:?} came through tunnels");
    }
    weir.leave();
}
