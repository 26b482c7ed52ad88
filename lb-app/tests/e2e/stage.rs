//! A running balancer on a switch with a client and backends, which scenarios share.

use std::net::{IpAddr, SocketAddr};

use crate::client::{self, Spread};
use crate::config::{Config, Service, Spec};
use crate::decap::{Family, Kind};
use crate::lan::Lan;
use crate::topology::{Setup, VIP_IPIP, VIP_L2DSR, WEIR, at, v4, v6};
use crate::traces::Traces;
use crate::weir::{Counters, Weir};

/// Weights of the backends b1, b2 and b3 in every service; b4 waits to be added.
pub(crate) const WEIGHTS: [(&str, u32); 3] = [("b1", 1), ("b2", 2), ("b3", 1)];

/// The balancer, its surroundings, and the configuration that every scenario finds and leaves.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) setup: Setup,
    pub(crate) base: Config,
    /// What is in the balancer's namespace without the balancer.
    pub(crate) bare: Traces,
    weir: Option<Weir>,
    /// Whether another configuration than the base is loaded.
    changed: bool,
    /// Whether the last start failed: the next would too, and take as long to find out.
    broken: bool,
    pub(crate) lan: Lan,
}

impl Stage {
    pub(crate) fn new(setup: Setup) -> Self {
        let lan = Lan::new(setup);
        let base = base_config(&lan);
        Self {
            setup,
            base,
            bare: Traces::now(&lan.lb),
            weir: None,
            changed: false,
            broken: false,
            lan,
        }
    }

    /// Starts the balancer with the base configuration, and waits until it knows its backends.
    pub(crate) fn start(&mut self) {
        assert!(!self.broken, "the balancer did not start before");
        self.broken = true;
        let Lan { lb, segment, .. } = &self.lan;
        self.weir = Some(Weir::start(lb, &self.base.to_string(), &[*segment]));
        for service in self.base.services.iter().filter(|service| service.protocol == "tcp") {
            self.wait_for_backends(at(service.address, service.port), &["b1", "b2", "b3"]);
        }
        self.broken = false;
    }

    /// As [`start`](Self::start), where not every backend takes connections.
    pub(crate) fn start_without_waiting(&mut self) {
        let Lan { lb, segment, .. } = &self.lan;
        self.weir = Some(Weir::start(lb, &self.base.to_string(), &[*segment]));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.weir.as_mut().is_some_and(Weir::is_running)
    }

    pub(crate) fn weir(&mut self) -> &mut Weir {
        self.weir.as_mut().expect("runs")
    }

    /// The parts, for a scenario that uses them from several threads.
    pub(crate) fn parts(&mut self) -> (&Lan, &mut Weir, &Config) {
        (&self.lan, self.weir.as_mut().expect("runs"), &self.base)
    }

    /// Lets the balancer leave properly.
    pub(crate) fn leave(&mut self) -> Counters {
        self.changed = false;
        self.weir.take().expect("runs").leave()
    }

    /// Ends the balancer without warning.
    pub(crate) fn kill(&mut self) {
        self.changed = false;
        self.weir.take().expect("runs").kill();
    }

    /// Checks that the balancer has not died unnoticed, and loads the base configuration again if
    /// a scenario left another one.
    pub(crate) fn restore(&mut self) {
        if let Some(weir) = &mut self.weir {
            assert!(weir.is_running(), "weir has ended by itself");
        }
        if self.changed {
            let base = self.base.clone();
            self.reload(&base);
        }
    }

    /// Kills the balancer after a failure, and returns the end of its log.
    pub(crate) fn give_up(&mut self) -> String {
        self.changed = false;
        self.weir.take().map(|weir| weir.log_tail()).unwrap_or_default()
    }

    /// Loads another configuration.
    pub(crate) fn reload(&mut self, config: &Config) {
        self.weir().reload(&config.to_string());
        self.changed = *config != self.base;
    }

    /// Waits until every one of these backends gets connections to `vip`.
    pub(crate) fn wait_for_backends(&self, vip: SocketAddr, names: &[&str]) {
        client::wait_for_backends(&self.lan.client, vip, names);
    }

    /// Opens connections to `vip`, all at the same time, and counts which backends have them.
    pub(crate) fn spread(&self, vip: SocketAddr, connections: u32) -> Spread {
        let spread = self.lan.client.block_on(|| client::spread(vip, connections));
        spread.unwrap_or_else(|error| panic!("{connections} connections to {vip}: {error}"))
    }

    /// Packets that the backends took out of tunnels of this kind.
    pub(crate) fn decapsulated(&self, kind: Kind, inner: Family, outer: Family) -> u64 {
        let backends = self.lan.backends.iter();
        backends.map(|backend| backend.decapsulated.packets(kind, inner, outer)).sum()
    }

    /// A backend as it is written in a configuration.
    pub(crate) fn spec(&self, name: &str, family: Family, weight: u32) -> Spec {
        spec(&self.lan, name, family, weight)
    }
}

fn spec(lan: &Lan, name: &str, family: Family, weight: u32) -> Spec {
    let backend = lan.backends.iter().find(|backend| backend.name == name).expect("is in the LAN");
    let address = match family {
        Family::V4 => backend.v4,
        Family::V6 => backend.v6,
    };
    Spec::new(address, weight)
}

/// HTTP and echo in every forwarding mode.
fn base_config(lan: &Lan) -> Config {
    let backends = |family| -> Vec<_> {
        WEIGHTS.iter().map(|(name, weight)| spec(lan, name, family, *weight)).collect()
    };
    let service = |name: &str, address: IpAddr, port, protocol, forward, family| Service {
        name: name.to_owned(),
        address,
        port,
        protocol,
        forward,
        more: String::new(),
        backends: backends(family),
    };
    let [dsr4, dsr6] = [IpAddr::from(v4(0, VIP_L2DSR)), v6(0, VIP_L2DSR).into()];
    let [ipip4, ipip6] = [IpAddr::from(v4(0, VIP_IPIP)), v6(0, VIP_IPIP).into()];
    Config {
        workers: lan.segment.setup.workers,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![lan.segment.port(v4(0, WEIR), v6(0, WEIR))],
        services: vec![
            service("web4", dsr4, 80, "tcp", "l2dsr", Family::V4),
            service("web6", dsr6, 80, "tcp", "l2dsr", Family::V6),
            service("echo4", dsr4, 7, "udp", "l2dsr", Family::V4),
            service("echo6", dsr6, 7, "udp", "l2dsr", Family::V6),
            service("4in4", ipip4, 80, "tcp", "ipip", Family::V4),
            service("4in6", ipip4, 8080, "tcp", "ipip", Family::V6),
            service("6in4", ipip6, 8080, "tcp", "ipip", Family::V4),
            service("6in6", ipip6, 80, "tcp", "ipip", Family::V6),
            service("gue-4in4", ipip4, 8081, "tcp", "gue", Family::V4),
            service("gue-4in6", ipip4, 8082, "tcp", "gue", Family::V6),
            service("gue-6in4", ipip6, 8081, "tcp", "gue", Family::V4),
            service("gue-6in6", ipip6, 8082, "tcp", "gue", Family::V6),
            service("gre-4in4", ipip4, 8083, "tcp", "gre", Family::V4),
            service("gre-4in6", ipip4, 8084, "tcp", "gre", Family::V6),
            service("gre-6in4", ipip6, 8083, "tcp", "gre", Family::V4),
            service("gre-6in6", ipip6, 8084, "tcp", "gre", Family::V6),
            service("echo4-gue", ipip4, 7, "udp", "gue", Family::V4),
            service("echo6-gre", ipip6, 7, "udp", "gre", Family::V4),
        ],
    }
}
