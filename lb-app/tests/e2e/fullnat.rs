//! Full address translation: the networks of `nat`, but the backends know no way out of theirs.

use std::net::IpAddr;

use crate::backend::{Backend, ECHO_PORT, PROXY_PORT};
use crate::client;
use crate::config::{Config, Service, Spec};
use crate::nat::{BACKENDS, NEAR, Networks, connect_within, echo_in_pieces, transfers};
use crate::nginx::{self, Nginx};
use crate::topology::{Setup, WEIR, at, v4, v6};
use crate::weir::Weir;

/// Last part of the service addresses whose backends are of the same family, and of the other.
const SAME: u8 = 100;
const OTHER: u8 = 101;
/// Where the backends' HTTP is, for clients that the backends are told of.
const TOA_PORT: u16 = 82;

fn vip(host: u8, is_ipv4: bool) -> IpAddr {
    if is_ipv4 { v4(NEAR, host).into() } else { v6(NEAR, host).into() }
}

fn pools() -> [String; 2] {
    [format!("{}/31", v4(BACKENDS, 200)), format!("{}/127", v6(BACKENDS, 200))]
}

fn services(networks: &Networks) -> Vec<Service> {
    let mut services = Vec::new();
    for (host, is_ipv4) in [(SAME, true), (SAME, false), (OTHER, true), (OTHER, false)] {
        let to_ipv4 = is_ipv4 == (host == SAME);
        let pool = &pools()[usize::from(!to_ipv4)];
        let backend = |backend: &Backend, port| Spec {
            port,
            ..Spec::new(if to_ipv4 { backend.v4 } else { backend.v6 }, 1)
        };
        for (protocol, port, backend_port, how) in [
            ("tcp", 80, Some(8080), "hidden"),
            ("tcp", TOA_PORT, Some(80), "toa"),
            ("tcp", PROXY_PORT, None, "proxy"),
            ("tcp", nginx::PORT, None, "proxy"),
            ("udp", ECHO_PORT, None, "hidden"),
        ] {
            let name = format!("{protocol}{port}-{host}-{}", if is_ipv4 { "v4" } else { "v6" });
            let backends = networks.backends.iter().map(|it| backend(it, backend_port)).collect();
            services.push(Service {
                name,
                address: vip(host, is_ipv4),
                port,
                protocol,
                forward: "fullnat",
                more: format!("pool = \"{pool}\"\nclient_address = \"{how}\"\n"),
                backends,
            });
        }
    }
    services
}

pub(crate) fn without_a_way_back(setup: Setup) {
    let networks = Networks::new(setup);
    for backend in &networks.backends {
        for gateway in [IpAddr::from(v4(BACKENDS, WEIR)), v6(BACKENDS, WEIR).into()] {
            backend.netns.ip(&format!("route del default via {gateway}"));
        }
    }
    let _servers: Vec<_> =
        networks.backends.iter().map(|it| Nginx::start(&it.netns, &pools())).collect();
    let config = Config { services: services(&networks), ..networks.config(setup) };
    let mut weir = Weir::start(&networks.lb, &config.to_string(), &networks.segments);
    networks.add_way_to_far();
    let Networks { near, far, .. } = &networks;
    for (host, is_ipv4) in [(SAME, true), (SAME, false), (OTHER, true), (OTHER, false)] {
        let vip = vip(host, is_ipv4);
        for client in [near, far] {
            for port in [80, TOA_PORT] {
                transfers(client, at(vip, port));
            }
            let echoed = client.block_on(|| client::echo(at(vip, ECHO_PORT), "short"));
            assert!(echoed.expect("an echo").ends_with(" short"), "{vip}");
            for bytes in [0, 1, 100_000] {
                let to = at(vip, PROXY_PORT);
                let sent = vec![7; bytes];
                let (answer, own) = client
                    .block_on(|| client::ask(to, &sent))
                    .unwrap_or_else(|error| panic!("{to} with {bytes} bytes: {error}"));
                assert_eq!(answer, format!("{own} {to} {bytes}"));
            }
            // And as others read it.
            for _ in 0..10 {
                let ends = client.block_on(|| nginx::ends(at(vip, nginx::PORT)));
                let [told, own] = ends.unwrap_or_else(|error| panic!("nginx at {vip}: {error}"));
                assert_eq!(told, own);
            }
        }
        let fragments = setup.driver.shows_ipv4_fragments();
        let to_ipv4 = is_ipv4 == (host == SAME);
        if fragments || !(is_ipv4 || to_ipv4) {
            echo_in_pieces(near, at(vip, ECHO_PORT));
        }
        let [exceeded, reached] = far.run(|| [2, 3].map(|hops| connect_within(hops, at(vip, 80))));
        exceeded.expect_err("the balancer is the second hop");
        reached.expect("the backend is the third");
    }
    let frames = weir.counters();
    for service in &config.services {
        assert!(frames.service_frames(&service.name) > 0, "{}", service.name);
    }
    weir.leave();
}
