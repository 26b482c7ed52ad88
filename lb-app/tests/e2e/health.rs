//! Health checks: the balancer asks its backends through its own port.

use std::net::IpAddr;

use crate::backend::Backend;
use crate::client;
use crate::config::{Config, Service, Spec};
use crate::lan::Lan;
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
