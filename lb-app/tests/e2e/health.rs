//! Health checks: the balancer asks its backends through its own port.

use std::net::IpAddr;

use crate::backend::Backend;
use crate::client;
use crate::config::{Config, Service, Spec};
use crate::lan::Lan;
use crate::stage::{Stage, WEIGHTS};
use crate::topology::{Setup, VIP_IPIP, VIP_L2DSR, WEIR, at, v4, v6};
use crate::weir::Weir;

/// Times, and so quick that the test is.
const TIMES: &str = "interval = \"500ms\", timeout = \"500ms\", rise = 2, fall = 3";

fn service(name: &str, vip: IpAddr, port: u16, check: &str, backends: &[Backend]) -> Service {
    let own = |backend: &Backend| if vip.is_ipv4() { backend.v4 } else { backend.v6 };
    Service {
        name: name.to_owned(),
        address: vip,
        port,
        protocol: "tcp",
        forward: "l2dsr",
        more: format!("health = {{ {check}, {TIMES} }}\n"),
        backends: backends.iter().map(|backend| Spec::new(own(backend), 1)).collect(),
    }
}

pub(crate) fn through_the_port(setup: Setup) {
    let lan = Lan::new(setup);
    let backends = &lan.backends[..2];
    let [vip4, vip6] = [IpAddr::from(v4(0, VIP_L2DSR)), v6(0, VIP_IPIP).into()];
    let config = Config {
        workers: setup.workers,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![lan.segment.port(v4(0, WEIR), v6(0, WEIR))],
        services: vec![
            service("tcp", vip4, 80, "check = \"tcp\"", backends),
            service("http", vip6, 80, "check = \"http\", path = \"/\"", backends),
            service("ping", vip4, 8080, "check = \"icmp\"", backends),
            service("ping6", vip6, 8080, "check = \"icmp\"", backends),
            service("wrong-page", vip4, 8081, "check = \"http\", path = \"/no\"", backends),
            service("wrong-port", vip4, 8082, "check = \"tcp\", port = 9", backends),
        ],
    };
    // Begins without, so that the network is there when the first answer decides.
    let mut without = config.clone();
    without.services.iter_mut().for_each(|service| service.more.clear());
    let mut weir = Weir::start(&lan.lb, &without.to_string(), &[lan.segment]);
    client::wait_for_backends(&lan.client, at(vip4, 80), &["b1", "b2"]);
    client::wait_for_backends(&lan.client, at(vip6, 80), &["b1", "b2"]);
    let begin = weir.logged();
    weir.reload(&config.to_string());
    for Backend { v4, .. } in backends {
        let wrong = format!("backend {v4}:8081 of service wrong-page has failed: status 404");
        weir.wait_for_line(begin, &wrong);
        let refused =
            format!("backend {v4}:9 of service wrong-port has failed: connection refused");
        weir.wait_for_line(begin, &refused);
    }
    let [dies, lives] = backends else { panic!("there are two") };
    let shown = |backend: &Backend| {
        [
            format!("backend {}:80 of service tcp", backend.v4),
            format!("backend [{}]:80 of service http", backend.v6),
            format!("backend {} of service ping", backend.v4),
            format!("backend {} of service ping6", backend.v6),
        ]
    };
    let before = weir.logged();
    // The switch's end, so that the backend keeps its addresses.
    lan.lb.ip(&format!("link set {} down", dies.name));
    for backend in shown(dies) {
        weir.wait_for_line(before, &format!("{backend} has failed: no "));
    }
    let before = weir.logged();
    lan.lb.ip(&format!("link set {} up", dies.name));
    for backend in shown(dies) {
        weir.wait_for_line(before, &format!("{backend} is healthy again"));
    }
    for backend in shown(lives) {
        assert!(!weir.has_logged(begin, &backend), "{backend}");
    }
    weir.leave();
}

/// Checks that go the way of clients' packets find out what others cannot: the backend is there, but has
/// not the service's address any more.
pub(crate) fn through_the_services(stage: &mut Stage) {
    let mut config = stage.base.clone();
    for service in &mut config.services {
        let is_udp = service.protocol == "udp";
        let check = if is_udp { "check = \"udp\", send = \"?\"" } else { "check = \"http\"" };
        service.more = through(check);
    }
    for (name, protocol, check) in [
        ("tcp-refused", "tcp", "check = \"tcp\""),
        ("udp-refused", "udp", "check = \"udp\", send = \"?\""),
    ] {
        let (name, more) = (name.to_owned(), through(check));
        config.services.push(Service {
            name,
            protocol,
            port: 9,
            more,
            ..config.services[0].clone()
        });
    }
    let begin = stage.weir().logged();
    stage.reload(&config);
    let (lan, weir, base) = stage.parts();
    for Backend { v4: own, .. } in &lan.backends[..WEIGHTS.len()] {
        let backend = format!("backend {own} at {}", at(v4(0, VIP_L2DSR), 9));
        for (service, why) in
            [("tcp-refused", "connection refused"), ("udp-refused", "port unreachable")]
        {
            weir.wait_for_line(begin, &format!("{backend} of service {service} has failed: {why}"));
        }
    }
    let shown = |place: usize| {
        base.services.iter().map(move |Service { name, address, port, backends, .. }| {
            let (own, at) = (backends[place].address, at(*address, *port));
            format!("backend {own} at {at} of service {name}")
        })
    };
    let loses = &lan.backends[0].netns;
    let vips = [VIP_L2DSR, VIP_IPIP].map(|host| [IpAddr::from(v4(0, host)), v6(0, host).into()]);
    for (verb, says) in [("del", "has failed: no answer"), ("add", "is healthy again")] {
        let before = weir.logged();
        let lines = vips.iter().flatten().map(|vip| format!("addr {verb} {vip} dev lo\n"));
        loses.ip(&lines.collect::<String>());
        for backend in shown(0) {
            weir.wait_for_line(before, &format!("{backend} {says}"));
        }
    }
    for backend in shown(1).chain(shown(2)) {
        assert!(!weir.has_logged(begin, &backend), "{backend}");
    }
}

fn through(check: &str) -> String {
    format!("health = {{ {check}, via = \"service\", {TIMES} }}\n")
}
