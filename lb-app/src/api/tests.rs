//! The server over a socket, with a balancer's view but no balancer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_config::{ApiAddress, Config};
use lb_core::counters::Counters;
use lb_core::model::Health;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{NextHops, Port, Unresolved};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::connections::CONNECTIONS_MAX;
use super::proto::service_change::Change;
use super::proto::{
    BackendName, BackendState, DrainRequest, GetStatusRequest, Health as ShownHealth,
    ListBackendsRequest, ListServicesRequest, UndrainRequest, WatchServicesRequest,
};
use super::{Api, Ask, View};
use crate::cli::remote::{Remote, all};
use crate::control::DrainError;
use crate::source::{State, Wanted};

const PATIENCE: Duration = Duration::from_secs(10);

const FILE: &str = r#"
    [site]
    name = "edge"
    [[port]]
    name = "lan0"
    device = "net_null0"
    addresses = ["10.0.0.2/24"]
    [[service]]
    name = "web"
    address = "10.0.0.100"
    port = 80
    protocol = "tcp"
    forward = "l2dsr"
    slots = 1009
    health = { check = "tcp" }
    backends = [
        { address = "10.0.0.11", mac = "02:00:00:00:00:0b" },
        { address = "10.0.0.12", mac = "02:00:00:00:00:0c", weight = 3 },
        { address = "10.0.0.13", mac = "02:00:00:00:00:0d", state = "drain" },
        { address = "10.0.0.14", mac = "02:00:00:00:00:0e" },
        { address = "10.0.0.15" },
    ]
    [[service]]
    name = "dns"
    address = "10.0.0.100"
    port = "53-54"
    protocol = "udp"
    forward = "nat"
    backends = []
"#;

pub(crate) fn config(text: &str) -> Config {
    lb_config::parse("test.toml", text).unwrap()
}

/// What control would show of `config`, if backends without a MAC had no neighbour.
pub(crate) fn view(config: &Config) -> View {
    let ports: Arc<[Port]> = crate::offline::ports(config, None).into();
    let silent = |address| Unresolved::NoNeighbour(address, "lan0".into());
    let backends = config.desired.services().iter().flat_map(|it| &it.spec().backends);
    let unknown = backends.filter(|backend| backend.static_hop.is_none());
    let next_hops: NextHops =
        unknown.map(|backend| (backend.address, Err(silent(backend.address)))).collect();
    let health = Health::new([("web".to_owned(), "10.0.0.14".parse().unwrap(), None)]);
    let circumstances =
        Circumstances { health: Some(&health), ..Circumstances::new(&ports, &next_hops) };
    let tables = Arc::new(compile(&config.desired, &circumstances, None));
    let counters = Arc::new(Counters::new(8));
    let web = tables.services[0].id;
    counters.forwarded(web, 1000);
    let wanted = Wanted::nothing(config.desired.hash_key()).with(State::of_file(config)).unwrap();
    View {
        config: Arc::new(config.clone()),
        wanted: Arc::new(wanted),
        feeds: Arc::default(),
        in_force: tables.version,
        tables,
        health,
        drains: Arc::default(),
        next_hops,
        flows: Arc::new(BTreeMap::from([((web, 1), 7)])),
        baselines: Arc::default(),
        workers: [(3, counters)].into(),
    }
}

/// A server at a socket of its own.
struct Served {
    api: Api,
    remote: Remote,
    shown: watch::Sender<Option<Arc<View>>>,
    folder: TempDir,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = ApiAddress::Unix(folder.path().join("weir.sock"));
        let (shown, view) = watch::channel(None);
        let api = Api::start(&address, view).unwrap();
        Self { api, remote: Remote::at(address), shown, folder }
    }

    fn showing(config: &str) -> Self {
        let served = Self::new();
        served.shown.send_replace(Some(Arc::new(view(&self::config(config)))));
        served
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("weir.sock")).await.unwrap()
    }
}

#[tokio::test]
async fn a_balancer_says_how_it_is() {
    let served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.site.as_str(), status.version, status.in_force), ("edge", 1, 1));
    assert_eq!((status.services, status.backends, status.backends_out), (2, 5, 2));

    let request = ListServicesRequest { service: None };
    let services = client.list_services(request).await.unwrap().into_inner();
    let services = all(services).await.unwrap();
    let names: Vec<_> = services.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["web", "dns"]);
    assert_eq!((services[0].frames, services[0].bytes), (1, 1000));
    assert_eq!((services[0].backends, services[0].backends_active), (5, 2));
    assert_eq!((services[1].port.as_str(), services[1].slots), ("53-54", 0));

    let request = ListBackendsRequest { service: Some("web".into()) };
    let backends = all(client.list_backends(request).await.unwrap().into_inner()).await.unwrap();
    let seen: Vec<_> =
        backends.iter().map(|it| (it.state(), it.health(), it.reason.as_str())).collect();
    assert_eq!(
        seen,
        [
            (BackendState::Active, ShownHealth::Passing, ""),
            (BackendState::Active, ShownHealth::Passing, ""),
            (BackendState::Drained, ShownHealth::Passing, "the file drains it"),
            (BackendState::Failed, ShownHealth::Failed, "it has failed its health checks"),
            (BackendState::Unresolved, ShownHealth::Passing, "10.0.0.15 does not answer on lan0"),
        ]
    );
    assert_eq!(backends.iter().map(|it| it.slots).sum::<u32>(), 1009);
    assert!((backends[1].share - 0.75).abs() < 0.01, "{backends:?}");
    assert_eq!(backends[1].next_hops, ["02:00:00:00:00:0c via lan0"]);
    assert_eq!(backends[1].tracked_flows, 7);

    let request = ListBackendsRequest { service: Some("mail".into()) };
    let refused = client.list_backends(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "there is no service \"mail\"")
    );
}

#[tokio::test]
async fn what_control_is_asked_it_answers() {
    let mut served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    let asked =
        tokio::spawn(async move { client.list_ports(super::proto::ListPortsRequest {}).await });
    let ask = timeout(PATIENCE, served.api.next()).await.unwrap();
    let Ask::Ports(answer) = ask else { panic!("{ask:?}") };
    answer.send(vec![super::proto::Port { name: "lan0".into(), ..Default::default() }]).unwrap();
    let ports = asked.await.unwrap().unwrap().into_inner().ports;
    assert_eq!(ports[0].name, "lan0");
}

#[tokio::test]
async fn a_balancer_that_starts_says_so_and_health_follows() {
    let served = Served::new();
    let mut client = served.remote.connect().await.unwrap();
    let refused = client.get_status(GetStatusRequest {}).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "the balancer is starting")
    );
    let mut health = HealthClient::new(served.remote.channel().await.unwrap());
    for (service, is_shown) in [("", false), ("weir.v1.Balancer", true)] {
        let request = HealthCheckRequest { service: service.into() };
        if is_shown {
            served.shown.send_replace(Some(Arc::new(view(&config(FILE)))));
            let mut watched = health.watch(request).await.unwrap().into_inner();
            let until_well =
                async { while watched.message().await.unwrap().unwrap().status != 1 {} };
            timeout(PATIENCE, until_well).await.unwrap();
        } else {
            let status = health.check(request).await.unwrap().into_inner().status;
            assert_eq!(status, 2, "NOT_SERVING");
        }
    }
    client.get_status(GetStatusRequest {}).await.unwrap();
}

/// Who says nothing is sent away, and who comes when all places are taken at once.
#[tokio::test]
async fn silent_clients_take_no_place_for_long() {
    let served = Served::showing(FILE);
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(served.connect().await);
    }
    let start = Instant::now();
    let read = async |client: &mut UnixStream| match client.read(&mut [0; 64]).await {
        Ok(read) => Ok(read),
        Err(error) => Err(error.kind()),
    };
    let mut late = served.connect().await;
    let closed = timeout(PATIENCE, read(&mut late)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(ErrorKind::ConnectionReset)), "{closed:?}");
    assert!(start.elapsed() < Duration::from_millis(900), "not by the deadline of the others");
    for client in &mut silent {
        let until_closed = async { while matches!(read(client).await, Ok(1..)) {} };
        timeout(PATIENCE, until_closed).await.unwrap();
    }
    let mut client = served.remote.connect().await.unwrap();
    client.get_status(GetStatusRequest {}).await.unwrap();
}

/// A client that does not read keeps no version of the tables, and does not take half an answer for all.
#[tokio::test]
async fn who_does_not_read_is_given_up() {
    // More than client and server keep for each other.
    let backends = (0..60_000).fold(String::new(), |mut text, i| {
        write!(text, "{{ address = '10.1.{}.{}' }},", i / 250, 1 + i % 250).unwrap();
        text
    });
    let served =
        Served::showing(&FILE.replace("backends = []", &format!("backends = [{backends}]")));
    let shown = served.shown.borrow().clone().unwrap();
    let mut client = served.remote.connect().await.unwrap();
    let request = ListBackendsRequest { service: None };
    let mut unread = client.list_backends(request).await.unwrap().into_inner();
    let end = Instant::now() + PATIENCE;
    // Ours, and the watch's.
    while Arc::strong_count(&shown) > 2 {
        assert!(Instant::now() < end, "the view is still held");
        sleep(Duration::from_millis(50)).await;
    }
    let refused = loop {
        match unread.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it looks like all there is"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn backends_are_named_well_or_not_at_all() {
    let mut served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    for (name, says) in [
        (
            BackendName { address: "web".into(), ..Default::default() },
            "\"web\" is not an IP address",
        ),
        (
            BackendName { address: "::1".into(), port: Some(1 << 16), ..Default::default() },
            "65536 is not a port (1 to 65535)",
        ),
    ] {
        let refused = client.drain(DrainRequest { backend: Some(name) }).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, says));
    }
    let backend = Some(BackendName { address: "::1".into(), ..Default::default() });
    let asked = tokio::spawn(async move { client.undrain(UndrainRequest { backend }).await });
    let ask = timeout(PATIENCE, served.api.next()).await.unwrap();
    let Ask::Drain(which, false, answer) = ask else { panic!("{ask:?}") };
    let nobody = DrainError::NoBackend(which.to_string());
    answer.send(Err(nobody.into())).unwrap();
    let refused = asked.await.unwrap().unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "no service has a backend ::1")
    );
}

/// All there is at first; then what has changed, and nothing else.
#[tokio::test]
async fn whoever_watches_is_told_of_changes() {
    let served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    let mut changes = client.watch_services(WatchServicesRequest {}).await.unwrap().into_inner();
    let mut next = async || {
        let mut told = Vec::new();
        loop {
            let message = timeout(PATIENCE, changes.message()).await.unwrap().unwrap().unwrap();
            match message.change.unwrap() {
                Change::Service(it) => told.push(format!("{} {}", it.name, it.backends_active)),
                Change::Removed(name) => told.push(format!("{name} -")),
                Change::Version(_) => return told,
            }
        }
    };
    assert_eq!(next().await, ["web 2", "dns 0"]);
    let drained = FILE.replace("weight = 3", "state = \"drain\"");
    let without = FILE.split("[[service]]\n    name = \"dns\"").next().unwrap();
    for (file, told) in [
        (FILE, &[][..]),
        (&drained, &["web 1"]),
        (without, &["web 2", "dns -"]),
        (FILE, &["dns 0"]),
    ] {
        served.shown.send_replace(Some(Arc::new(view(&config(file)))));
        assert_eq!(next().await, told);
    }
}
