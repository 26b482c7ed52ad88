//! Feeds that speak xDS, against Envoy's own control plane (go-control-plane), which
//! `scripts/xds-control-plane` builds: `cargo test -p lb-app --bin weir -- --ignored xds`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc as std_mpsc;

use serde_json::{Value, json};

use super::*;

/// The process. Dropping it ends it.
struct Envoys {
    process: Child,
    orders: ChildStdin,
    events: std_mpsc::Receiver<Value>,
    port: u16,
}

impl Envoys {
    /// On `port`, or if that is 0, on any.
    fn start(port: u16) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let program = root.join("target/xds-control-plane");
        assert!(program.exists(), "build it first: scripts/xds-control-plane");
        let mut command = Command::new(program);
        command.arg(format!("127.0.0.1:{port}")).args(std::env::var_os("WEIR_XDS_RECORD"));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (event, events) = std_mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = event.send(serde_json::from_str(&line).unwrap());
            }
        });
        let orders = process.stdin.take().unwrap();
        let mut this = Self { process, orders, events, port };
        let listening = this.event(|it| it.get("listening").is_some());
        let address = listening["listening"].as_str().unwrap();
        this.port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        this
    }

    fn show(&mut self, snapshot: &Value) {
        writeln!(self.orders, "{snapshot}").unwrap();
    }

    /// The next event that `is` said to be.
    fn event(&self, is: impl Fn(&Value) -> bool) -> Value {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let event = self.events.recv_timeout(left).unwrap();
            if is(&event) {
                return event;
            }
        }
    }
}

impl Drop for Envoys {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn socket(address: &str, port: u16, protocol: &str) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port, "protocol": protocol } })
}

fn cluster(name: &str) -> Value {
    json!({
        "name": name, "type": "EDS", "lb_policy": "MAGLEV",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    })
}

/// Endpoints, each with its health status.
fn assignment(cluster: &str, port: u16, all: &[(&str, &str)]) -> Value {
    let endpoint = |(address, status): &(&str, &str)| {
        json!({
            "health_status": status,
            "endpoint": { "address": socket(address, port, "TCP") },
        })
    };
    let all: Vec<_> = all.iter().map(endpoint).collect();
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": all }] })
}

fn web(address: &str) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "web", "cluster": "pool",
    });
    json!({
        "name": "web", "address": socket(address, 80, "TCP"),
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": proxy }] }],
        "metadata": { "filter_metadata": { "weir": { "slots": 1009 } } },
    })
}

fn dns() -> Value {
    let route = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route",
        "cluster": "resolvers",
    });
    let action = json!({ "action": { "name": "route", "typed_config": route } });
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        "stat_prefix": "dns", "matcher": { "on_no_match": action },
    });
    json!({
        "name": "dns", "address": socket("10.0.0.100", 53, "UDP"), "udp_listener_config": {},
        "listener_filters": [{ "name": "udp", "typed_config": proxy }],
    })
}

fn snapshot(version: &str, pool: &[(&str, &str)], listeners: &[Value]) -> Value {
    json!({
        "version": version,
        "clusters": [cluster("pool"), cluster("resolvers")],
        "endpoints": [
            assignment("pool", 80, pool),
            assignment("resolvers", 53, &[("10.0.0.53", "UNKNOWN")]),
        ],
        "listeners": listeners,
    })
}

/// What is wanted, once that is `expected`.
async fn wants(balancer: &mut Balancer, expected: &[(&str, usize)]) {
    let mut services = balancer.services();
    while services != named(expected) {
        services = balancer.next().await.unwrap().1;
    }
}

async fn follows(incremental: bool) {
    const BOTH: [(&str, usize); 2] = [("dns", 1), ("web", 2)];
    let mut plane = Envoys::start(0);
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[dataplane]\nstate_dir = '{}'\n[feed]\nkind = 'xds'\naddress = 'http://127.0.0.1:{}'\n\
         pace = '10ms'\nnode = 'edge-1'\nforward = 'l2dsr'\nincremental = {incremental}\n\
         [[port]]\nname = 'lan0'\ndevice = 'net_null0'\naddresses = ['10.0.0.2/24']\n",
        folder.path().display(),
        plane.port,
    );
    let mut balancer = Balancer::start(&text);
    let well = [("10.0.0.11", "HEALTHY"), ("10.0.0.12", "HEALTHY")];
    plane.show(&snapshot("1", &well, &[web("10.0.0.100"), dns()]));
    wants(&mut balancer, &BOTH).await;
    let variant = if incremental { "delta" } else { "sotw" };
    let first = plane.event(|it| it["type"].as_str().is_some());
    assert_eq!(
        (first["variant"].as_str(), first["node"].as_str()),
        (Some(variant), Some("edge-1"))
    );
    let first = balancer.wanted.desired().services().to_vec();
    assert_eq!(first[1].slots(), 1009);

    // One drains, one is out. The other service is not touched.
    let ill = [("10.0.0.11", "DRAINING"), ("10.0.0.12", "UNHEALTHY")];
    plane.show(&snapshot("2", &ill, &[web("10.0.0.100"), dns()]));
    balancer.next().await.unwrap();
    let services = balancer.wanted.desired().services().to_vec();
    assert!(Arc::ptr_eq(&first[0], &services[0]));
    let backends = &services[1].spec().backends;
    assert!(backends[0].drain && !backends[1].drain);
    let failed = balancer.wanted.failed();
    assert!(failed.is_failed("web", &backends[1]) && !failed.is_failed("web", &backends[0]));

    // What is wrong is refused by name, over and over at a bearable rate, and stays as it was.
    plane.show(&snapshot("3", &well, &[web("www.example.org"), dns()]));
    let refused = plane.event(|it| it["refusal"].as_str().is_some_and(|it| !it.is_empty()));
    let why = refused["refusal"].as_str().unwrap();
    assert!(why.contains("listener \"web\"") && why.contains("not an IP address"), "{why}");
    sleep(Duration::from_secs(2)).await;
    let again: Vec<_> = plane.events.try_iter().filter(|it| it["refusal"] != "").collect();
    assert!(again.len() <= 8, "{again:?}");
    wants(&mut balancer, &BOTH).await;
    let now = balancer.until(|now| now.reason.contains("listener \"web\"")).await;
    assert!(now.away.is_none(), "{now:?}");

    // It is away: nothing changes. It is back, and one listener is gone.
    let port = plane.port;
    drop(plane);
    balancer.until(|now| now.away.is_some()).await;
    wants(&mut balancer, &BOTH).await;
    let mut plane = Envoys::start(port);
    plane.show(&snapshot("4", &well, &[web("10.0.0.100")]));
    wants(&mut balancer, &[("web", 2)]).await;
    balancer.until(|now| now.away.is_none() && now.reason.is_empty()).await;
    let services = balancer.wanted.desired().services();
    assert!(services[0].spec().backends.iter().all(|backend| !backend.drain));
    assert_eq!(balancer.wanted.failed().failed_len(), 0);
}

#[tokio::test]
#[ignore = "needs Envoy's control plane: scripts/xds-control-plane builds it"]
async fn the_state_of_the_world_of_envoys_control_plane() {
    follows(false).await;
}

#[tokio::test]
#[ignore = "needs Envoy's control plane: scripts/xds-control-plane builds it"]
async fn the_changes_of_envoys_control_plane() {
    follows(true).await;
}
