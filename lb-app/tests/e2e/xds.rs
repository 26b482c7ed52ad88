//! A balancer that follows an xDS control plane, with connections that see nothing of it.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::HealthStatus;

use crate::ads::{Ads, World};
use crate::client::{self, Spread, assert_fair};
use crate::config::Config;
use crate::lan::Lan;
use crate::netns::Netns;
use crate::topology::{Driver, Setup, VIP_L2DSR, WEIR, at, v4, v6};
use crate::weir::Weir;

const PATIENCE: Duration = Duration::from_secs(15);
const CONNECTIONS: u32 = 40;

/// A connection that is open all the time, and who is at its other end.
struct Open {
    stream: TcpStream,
    name: String,
}

impl Open {
    fn new(to: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&to, client::SHORT).expect("it is served");
        stream.set_read_timeout(Some(client::SHORT)).expect("a time");
        let mut open = Self { stream, name: String::new() };
        open.name = open.ask();
        open
    }

    /// Asks for the name of the other end.
    fn ask(&mut self) -> String {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n").expect("it is open");
        let (mut answer, mut bytes) = (Vec::new(), [0; 1024]);
        loop {
            let read = self.stream.read(&mut bytes).expect("it is answered");
            assert!(read > 0, "closed after {answer:?}");
            answer.extend_from_slice(&bytes[..read]);
            let text = String::from_utf8_lossy(&answer);
            // A name is `b` and a digit.
            if let Some((_, name)) = text.split_once("\r\n\r\n").filter(|(_, it)| it.len() == 2) {
                return name.to_owned();
            }
        }
    }

    fn assert_unchanged(&mut self) {
        assert_eq!(self.ask(), self.name);
    }
}

/// Waits until new connections go to these, and to no other.
fn wait_for(client: &Netns, vip: SocketAddr, names: &[&str]) -> Spread {
    let end = Instant::now() + PATIENCE;
    let names: BTreeSet<&str> = names.iter().copied().collect();
    loop {
        let spread = client.block_on(|| client::spread(vip, CONNECTIONS));
        match spread {
            Ok(spread) if spread.keys().map(String::as_str).eq(names.iter().copied()) => {
                return spread;
            }
            _ => assert!(Instant::now() < end, "not {names:?} serve {vip}: {spread:?}"),
        }
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the feed is at that version, and the control plane away or not.
fn wait_for_feed(weir: &Weir, version: &str, is_away: bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = weir.ask(&["status"]);
        let sources = status["sources"].as_array().expect("is a list");
        let feed = sources.iter().find(|it| it["kind"] == "feed").cloned().unwrap_or_default();
        if feed["version"] == version && feed["feed"]["away_since_unix_ms"].is_u64() == is_away {
            return;
        }
        assert!(Instant::now() < end, "not at version {version}: {status}");
        sleep(Duration::from_millis(20));
    }
}

pub(crate) fn endpoints_come_and_go_under_connections() {
    let setup = Setup { driver: Driver::Tap, workers: 1 };
    let lan = Lan::new(setup);
    let socket = std::env::temp_dir().join(lan.lb.name()).with_extension("ads");
    let config = Config {
        workers: setup.workers,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![lan.segment.port(v4(0, WEIR), v6(0, WEIR))],
        services: Vec::new(),
    };
    let text = format!(
        "{config}\n[feed]\nkind = \"xds\"\naddress = \"unix:{}\"\nforward = \"l2dsr\"\n",
        socket.display()
    );
    let vip = at(v4(0, VIP_L2DSR), 80);
    let world = |version: &str, endpoints: &[(usize, HealthStatus)]| {
        let endpoints: Vec<(IpAddr, HealthStatus)> =
            endpoints.iter().map(|(number, is)| (lan.backends[number - 1].v4, *is)).collect();
        World::new(version).with("web", (vip.ip(), vip.port()), &endpoints)
    };
    let well = HealthStatus::Healthy;

    let plane = Ads::start(&socket, world("1", &[(1, well), (2, well)]));
    let weir = Weir::start(&lan.lb, &text, &[lan.segment]);
    let spread = wait_for(&lan.client, vip, &["b1", "b2"]);
    assert_fair(&spread, &[("b1", 1), ("b2", 1)]);
    let mut open: Vec<Open> = lan.client.run(|| (0..CONNECTIONS).map(|_| Open::new(vip)).collect());
    let on_b1 = open.iter().filter(|it| it.name == "b1").count();
    assert!((1..open.len()).contains(&on_b1), "{on_b1} on b1");

    // One drains, then it is told of no more, and another one comes. Who has a connection keeps it.
    plane.tell(world("2", &[(1, HealthStatus::Draining), (2, well)]));
    wait_for(&lan.client, vip, &["b2"]);
    open.iter_mut().for_each(Open::assert_unchanged);
    plane.tell(world("3", &[(2, well), (3, well)]));
    wait_for(&lan.client, vip, &["b2", "b3"]);
    open.iter_mut().for_each(Open::assert_unchanged);
    wait_for_feed(&weir, "3", false);
    assert_eq!(plane.refusals(), [""; 0]);

    // Without a control plane the next process goes on, with the connections, too.
    drop(plane);
    wait_for_feed(&weir, "3", true);
    weir.kill();
    let weir = Weir::start(&lan.lb, &text, &[lan.segment]);
    wait_for_feed(&weir, "3", true);
    let spread = wait_for(&lan.client, vip, &["b2", "b3"]);
    assert_fair(&spread, &[("b2", 1), ("b3", 1)]);
    open.iter_mut().for_each(Open::assert_unchanged);

    // And follows it when it is back.
    let plane = Ads::start(&socket, world("4", &[(1, well), (3, well)]));
    wait_for(&lan.client, vip, &["b1", "b3"]);
    open.iter_mut().for_each(Open::assert_unchanged);
    wait_for_feed(&weir, "4", false);
    assert_eq!(plane.refusals(), [""; 0]);
    drop(open);
    weir.leave();
}
