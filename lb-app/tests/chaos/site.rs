//! The networks of a run: clients behind a router, two balancers and ten backends behind a switch.
//!
//! ```text
//!  client ── router ──┐         lb0: br0, wire ═ weir ═ lan0
//!  b1..b10 ───────────┴─ br0 ── lb1: br1, wire ═ weir ═ lan1
//! ```
//! The second balancer runs only where a scenario wants it. The router has a route to the VIP by each
//! balancer that is to get traffic, and chooses among them by flow.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::config::{Port, Service, Spec};
use crate::flood;
use crate::journal::Moment;
use crate::load::{Flood, Server};
use crate::netns::Netns;
use crate::options::{Mode, Options};
use crate::plane::{Churn, Plane};
use crate::server;
use crate::topology::{Segment, Setup, VIP_L2DSR, WEIR, at, backend_netns, v4, v6};
use crate::weir::Weir;

/// How many backends there are.
pub(crate) const BACKENDS: usize = 10;

/// Networks: that of balancers and backends, and the clients'.
const LAN: u8 = 0;
const CLIENTS: u8 = 1;

/// Last parts of addresses.
const ROUTER: u8 = 254;
const CLIENT: u8 = 1;
const POOL: u8 = 200;

const PORT: u16 = 80;
/// Ports of the client's, for each connection. One is not used again for a minute after it was closed, so that
/// is about what it takes; and with no more than that, it soon is.
const PORTS_FOR_EACH: u64 = 3;
/// The service, as a control plane tells of it.
const ECHO: &str = "echo.toml";

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

/// A weight that can be halved and doubled.
pub(crate) const WEIGHT: u32 = 2;

/// A backend, and what the balancers are told of it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: String,
    address: Ipv4Addr,
    pub(crate) weight: u32,
    pub(crate) drain: bool,
    /// Whether it is in the file.
    pub(crate) listed: bool,
    /// While it runs.
    pub(crate) server: Option<Server>,
    netns: Netns,
}

impl Backend {
    /// Whether it gets new connections.
    pub(crate) fn is_active(&self) -> bool {
        self.listed && !self.drain
    }
}

/// A place for a balancer.
#[derive(Debug)]
struct Balancer {
    weir: Option<Weir>,
    segment: Segment,
    workers: Vec<usize>,
    netns: Netns,
}

#[derive(Debug)]
pub(crate) struct Site {
    mode: Mode,
    idle_timeout_s: u64,
    pub(crate) backends: Vec<Backend>,
    balancers: [Balancer; 2],
    pub(crate) client: Netns,
    /// New connections a second that are taken from anybody; 0: all.
    pub(crate) syn_rate: u32,
    /// Who tells of services, if the file does not.
    plane: Option<Plane>,
    router: Netns,
}

impl Site {
    /// With the servers running, and no balancer yet.
    pub(crate) fn new(options: &Options) -> Self {
        let setup = Setup { driver: options.driver.into(), workers: options.workers };
        let balancers = [0, 1].map(|index: u8| {
            let netns = Netns::new(&format!("lb{index}"));
            let segment = Segment::new(setup, index, &netns);
            let workers = if index == 0 { (0..options.workers).collect() } else { vec![1] };
            Balancer { weir: None, segment, workers, netns }
        });
        let [Balancer { netns: lb, segment: switch, .. }, second] = &balancers;
        // The second balancer's switch is the first's, continued.
        switch.connect(lb, &second.netns, "second", "uplink");
        second.netns.ip("link set uplink master br1");

        let router = Netns::new("router");
        router.sysctl("net/ipv4/ip_forward", "1");
        // By addresses and ports: RFC 2992 asks for one way for each flow.
        router.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        for scope in ["all", "default"] {
            router.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
            router.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0");
        }
        switch.connect(lb, &router, "router", "eth0");
        let client = Netns::new("client");
        router.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}\n\
             link set eth1 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/24 dev eth1",
            client.name(),
            v4(LAN, ROUTER),
            v4(CLIENTS, ROUTER)
        ));
        client.ip(&format!(
            "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via {}",
            v4(CLIENTS, CLIENT),
            v4(CLIENTS, ROUTER)
        ));
        let first = 65_536 - PORTS_FOR_EACH * options.connections;
        client.sysctl("net/ipv4/ip_local_port_range", &format!("{first} 65535"));
        let backends = (1..=BACKENDS).map(|number| {
            let host = 10 + u8::try_from(number).expect("there are not many");
            backend(options.mode, lb, *switch, &format!("b{number}"), v4(LAN, host))
        });
        let backends = backends.collect();
        let Options { mode, idle_timeout: idle_timeout_s, .. } = *options;
        Self { mode, idle_timeout_s, backends, balancers, client, syn_rate: 0, plane: None, router }
    }

    /// What clients connect to.
    pub(crate) fn vip() -> SocketAddr {
        at(v4(LAN, VIP_L2DSR), PORT)
    }

    pub(crate) fn backend(&mut self, name: &str) -> &mut Backend {
        self.backends.iter_mut().find(|backend| backend.name == name).expect("is in the site")
    }

    /// Names of the backends of which something is true.
    pub(crate) fn names(&self, is_meant: impl Fn(&Backend) -> bool) -> Vec<&str> {
        let backends = self.backends.iter().filter(|backend| is_meant(backend));
        backends.map(|backend| &*backend.name).collect()
    }

    /// Starts the server of a backend, if it does not run.
    pub(crate) fn revive(&mut self, name: &str) {
        let mode = self.mode;
        let backend = self.backend(name);
        backend.server.get_or_insert_with(|| serve(mode, name, &backend.netns));
    }

    /// All backends in the file with the same weight, and running. Returns whether that is a change.
    pub(crate) fn restore(&mut self) -> bool {
        let mut is_change = false;
        for name in self.backends.iter().map(|backend| backend.name.clone()).collect::<Vec<_>>() {
            self.revive(&name);
            let backend = self.backend(&name);
            is_change |= !backend.is_active() || backend.weight != WEIGHT;
            (backend.weight, backend.drain, backend.listed) = (WEIGHT, false, true);
        }
        is_change
    }

    /// The balancers that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..2).filter(|balancer| self.balancers[*balancer].weir.is_some()).collect()
    }

    pub(crate) fn workers(&self, balancer: usize) -> usize {
        self.balancers[balancer].workers.len()
    }

    /// How many workers a balancer has from its next start on.
    pub(crate) fn set_workers(&mut self, balancer: usize, workers: usize) {
        let balancer = &mut self.balancers[balancer];
        balancer.segment.setup.workers = workers;
        balancer.workers = (0..workers).collect();
    }

    /// Starts a balancer, and returns when its tables are in force.
    pub(crate) fn start(&mut self, balancer: usize) {
        let config = self.config(balancer);
        let Balancer { weir, segment, netns, .. } = &mut self.balancers[balancer];
        *weir = Some(Weir::start(netns, &config, &[*segment]));
        netns.ip(&format!("route replace {}/24 via {}", v4(CLIENTS, 0), v4(LAN, ROUTER)));
    }

    /// Lets a balancer leave properly.
    pub(crate) fn leave(&mut self, balancer: usize) {
        if let Some(weir) = self.balancers[balancer].weir.take() {
            weir.leave();
        }
    }

    /// Ends a balancer without warning. Returns when that was.
    pub(crate) fn kill(&mut self, balancer: usize) -> Moment {
        let now = Moment::now();
        if let Some(weir) = self.balancers[balancer].weir.take() {
            weir.kill();
        }
        now
    }

    /// From their next start on, balancers are told by a control plane what is wanted.
    pub(crate) fn use_plane(&mut self) {
        let plane = Plane::start(v4(LAN, VIP_L2DSR), &self.addresses());
        plane.tell(ECHO, &self.service().to_string());
        self.plane = Some(plane);
    }

    /// Or by their files again.
    pub(crate) fn end_plane(&mut self) {
        self.plane = None;
    }

    /// What the control plane tells of other services changes, as long as what this returns is there.
    pub(crate) fn churn(&self) -> Option<Churn> {
        Some(self.plane.as_ref()?.churn(&self.addresses()))
    }

    fn addresses(&self) -> Vec<Ipv4Addr> {
        self.backends.iter().map(|backend| backend.address).collect()
    }

    /// Tells all running balancers what is wanted now, one after the other.
    pub(crate) fn reload(&mut self) {
        if let Some(plane) = &self.plane {
            return plane.tell(ECHO, &self.service().to_string());
        }
        for balancer in self.running() {
            let config = self.config(balancer);
            if let Some(weir) = &mut self.balancers[balancer].weir {
                weir.reload(&config);
            }
        }
    }

    /// Leads clients through these balancers, as a routing protocol would: when they are ready.
    pub(crate) fn lead_through(&self, balancers: &[usize]) {
        for weir in balancers.iter().filter_map(|it| self.balancers[*it].weir.as_ref()) {
            weir.wait_for_line(0, "ready: clients may come");
        }
        let mut route = format!("route replace {}/32", v4(LAN, VIP_L2DSR));
        for balancer in balancers {
            write!(route, " nexthop via {}", address(*balancer)).expect("memory suffices");
        }
        self.router.ip(&route);
    }

    /// Floods the service from the router, which nobody answers to.
    pub(crate) fn flood(&self, seed: u64) -> Flood {
        self.router.ip(&format!("route replace blackhole {}", flood::SOURCES));
        let vip = SocketAddrV4::new(v4(LAN, VIP_L2DSR), PORT);
        Flood::start(&self.router, &flood::Args { vip, seed })
    }

    /// Memory of the first balancer's process, in MiB.
    pub(crate) fn memory_mib(&self) -> u64 {
        let pid = self.balancers[0].weir.as_ref().expect("runs").pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux has it");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("is a number");
        kib >> 10
    }

    /// What a balancer is to do, as the text that it reads.
    fn config(&self, balancer: usize) -> String {
        let Balancer { segment, workers, .. } = &self.balancers[balancer];
        let Port { name, device, mac, .. } = segment.port(address(balancer), v6(LAN, WEIR));
        let wanted = match &self.plane {
            Some(plane) => plane.feed(),
            None => self.service().to_string(),
        };
        format!(
            "[site]\nname = \"chaos\"\nhash_key = \"{KEY}\"\npeer_key = \"{KEY}{KEY}\"\n\
             peer_listen = \"{}\"\n\n[[peer]]\naddress = \"{}\"\n\n\
             [dataplane]\nworkers = {workers:?}\nhugepages = \"off\"\nmemory_mb = 256\n\n\
             [[port]]\nname = \"{name}\"\ndevice = \"{device}\"\nmac = \"{mac}\"\n\
             addresses = [\"{}/24\"]\n\n{wanted}",
            address(balancer),
            address(1 - balancer),
            address(balancer),
        )
    }

    fn service(&self) -> Service {
        let mut more = String::new();
        if self.mode == Mode::Fullnat {
            writeln!(more, "pool = \"{}\"", v4(LAN, POOL)).expect("memory suffices");
        }
        if self.idle_timeout_s > 0 {
            writeln!(more, "idle_timeout = \"{}s\"", self.idle_timeout_s).expect("memory suffices");
        }
        if self.syn_rate > 0 {
            writeln!(more, "syn = {{ rate = {} }}", self.syn_rate).expect("memory suffices");
        }
        let listed = self.backends.iter().filter(|backend| backend.listed);
        let spec = |backend: &Backend| Spec {
            drain: backend.drain,
            ..Spec::new(backend.address.into(), backend.weight)
        };
        Service {
            name: "echo".to_owned(),
            address: Self::vip().ip(),
            port: PORT,
            protocol: "tcp",
            forward: self.mode.name(),
            more,
            backends: listed.map(spec).collect(),
        }
    }
}

/// The address of a balancer.
fn address(balancer: usize) -> Ipv4Addr {
    v4(LAN, WEIR + u8::from(balancer > 0))
}

fn backend(mode: Mode, lb: &Netns, switch: Segment, name: &str, address: Ipv4Addr) -> Backend {
    let netns = backend_netns(name);
    switch.connect(lb, &netns, name, "eth0");
    let gateway = if mode == Mode::Nat { WEIR } else { ROUTER };
    netns
        .ip(&format!("addr add {address}/24 dev eth0\nroute add default via {}", v4(LAN, gateway)));
    let server = Some(serve(mode, name, &netns));
    let name = name.to_owned();
    Backend { name, address, weight: WEIGHT, drain: false, listed: true, server, netns }
}

fn serve(mode: Mode, name: &str, netns: &Netns) -> Server {
    let tunnel = mode == Mode::Ipip;
    Server::start(netns, &server::Args { name: name.to_owned(), port: PORT, tunnel })
}
