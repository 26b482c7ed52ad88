//! The server over a socket, with a balancer's view but no balancer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lb_config::{ApiAddress, Config};
use lb_core::counters::Counters;
use lb_core::model::Health;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{NextHops, Port, Unresolved};
use prost::Message as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::connections::{CONNECTIONS_MAX, STRANGERS_MAX};
use super::proto::service_change::Change;
use super::proto::{
    ApplyRequest, BackendName, BackendState, Document, DrainRequest, GetStatusRequest,
    Health as ShownHealth, ListBackendsRequest, ListServicesRequest, UndrainRequest,
    WatchServicesRequest,
};
use super::{Api, Ask, View};
use crate::cli::remote::{Remote, all};
use crate::control::DrainError;
use crate::source::{State, Wanted};

mod explain;
mod tls;

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
        let config = lb_config::Api { grpc: address.clone(), tls: None };
        let api = Api::start(&config, view).unwrap();
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

/// Who says nothing keeps nobody out, and is sent away; so is at once who says something else.
#[tokio::test]
async fn strangers_take_nobodys_place() {
    let served = Served::showing(FILE);
    let mut silent = Vec::new();
    for _ in 0..STRANGERS_MAX {
        silent.push(served.connect().await);
    }
    let start = Instant::now();
    let mut client = served.remote.connect().await.unwrap();
    client.get_status(GetStatusRequest {}).await.unwrap();
    // Who has taken longest went for it.
    timeout(PATIENCE, until_closed(&mut silent[0])).await.unwrap();
    let mut wrong = served.connect().await;
    wrong.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    timeout(PATIENCE, until_closed(&mut wrong)).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(900), "not by the deadline of the others");
    for client in &mut silent {
        timeout(PATIENCE, until_closed(client)).await.unwrap();
    }
    client.get_status(GetStatusRequest {}).await.unwrap();
}

async fn until_closed(client: &mut UnixStream) {
    while matches!(client.read(&mut [0; 64]).await, Ok(1..)) {}
}

#[tokio::test]
async fn there_are_so_many_places_and_no_more() {
    let served = Served::showing(FILE);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(served.remote.connect().await.unwrap());
        clients.last_mut().unwrap().get_status(GetStatusRequest {}).await.unwrap();
    }
    let refused = match served.remote.connect().await {
        Ok(mut late) => late.get_status(GetStatusRequest {}).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    clients.pop();
    let end = Instant::now() + PATIENCE;
    while served.remote.connect().await.is_err() {
        assert!(Instant::now() < end, "the place is still taken");
        sleep(Duration::from_millis(10)).await;
    }
    clients[0].get_status(GetStatusRequest {}).await.unwrap();
}

/// Who wants answers and does not read them has a place for a while only.
#[tokio::test]
async fn who_reads_nothing_keeps_no_place() {
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]; // RFC 9113 §6.7
    let served = Served::showing(FILE);
    let words =
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], &PING.repeat(100_000)];
    let words: Arc<[u8]> = words.concat().into();
    let mut deaf = JoinSet::new();
    for _ in 0..CONNECTIONS_MAX {
        let (mut client, words) = (served.connect().await, Arc::clone(&words));
        deaf.spawn(async move { client.write_all(&words).await });
    }
    while let Some(ended) = timeout(PATIENCE, deaf.join_next()).await.unwrap() {
        ended.unwrap().expect_err("it cannot write for ever");
    }
    let mut client = served.remote.connect().await.unwrap();
    client.get_status(GetStatusRequest {}).await.unwrap();
}

/// Whatever of a request is missing, or too much: control is asked for nothing.
#[tokio::test]
async fn half_and_huge_requests_change_nothing() {
    let mut served = Served::showing(FILE);
    let text = "[[service]]\nname = 'b'\naddress = '10.0.0.9'\nport = 1\nprotocol = 'tcp'\n\
                forward = 'l2dsr'\n";
    let document = Document { name: "b".into(), text: text.into(), ..Document::default() };
    let request = ApplyRequest { documents: vec![document], expected_version: Some(7) };
    let message = request.encode_to_vec();
    // A flag, and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
    let length = u32::try_from(message.len()).unwrap();
    let whole = [&[0][..], &length.to_be_bytes(), &message].concat();

    let stream = served.connect().await;
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut send = async |body: Bytes| {
        client = client.clone().ready().await.unwrap();
        let request = http::Request::post("http://weir/weir.v1.Balancer/Apply")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (answer, mut sent) = client.send_request(request.body(()).unwrap(), false).unwrap();
        sent.send_data(body, true).unwrap();
        answer.await.map(|answer| answer.into_parts().0.headers.get("grpc-status").cloned())
    };
    for end in 0..whole.len() {
        let status = send(Bytes::copy_from_slice(&whole[..end])).await.unwrap();
        assert!(status.is_some_and(|status| status != "0"), "{end} of {} bytes", whole.len());
    }
    let mut client = served.remote.connect().await.unwrap();
    let mut huge = request.clone();
    huge.documents[0].text = " ".repeat(8 << 20);
    let refused = client.apply(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(timeout(Duration::from_millis(100), served.api.next()).await.is_err());

    let (answered, ()) = tokio::join!(send(Bytes::from(whole)), async {
        let ask = timeout(PATIENCE, served.api.next()).await.unwrap();
        assert!(matches!(ask, Ask::Apply(..)), "{ask:?}");
    });
    answered.unwrap();
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
