//! Feeds against a control plane over a socket, with somebody in control's place.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use lb_config::ApiAddress;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::api::proto::control_plane_server::{ControlPlane, ControlPlaneServer};
use crate::api::proto::{Document, Endpoint, Endpoints, FeedAnswer, FeedUpdate};
use crate::api::tests::config;
use crate::api::{Listener, incoming};
use crate::plane::{self, Contents};
use crate::source::{Refused, State};
use crate::tls::testing::certificate;
use crate::tls::{Acceptor, ServerFiles};

#[path = "../../../tests/e2e/ads.rs"]
mod ads;
mod outlives;
mod scale;
mod xds;

const PATIENCE: Duration = Duration::from_mins(1);

fn file(folder: &TempDir) -> String {
    let folder = folder.path().display();
    format!(
        "[dataplane]\nstate_dir = '{folder}'\n[feed]\nkind = 'grpc'\naddress = 'unix:{folder}/plane'\n\
         pace = '10ms'\n[[port]]\nname = 'lan0'\ndevice = 'net_null0'\naddresses = ['10.0.0.2/24']\n"
    )
}

fn service(name: &str, port: u16) -> String {
    format!(
        "[[service]]\nname = '{name}'\naddress = '10.0.0.100'\nport = {port}\nprotocol = 'tcp'\n\
         forward = 'l2dsr'\n"
    )
}

fn document(name: &str, version: &str, text: &str) -> Document {
    Document { name: name.into(), version: version.into(), text: text.into() }
}

fn endpoints(service: &str, version: &str, addresses: &[&[u8]]) -> Endpoints {
    let endpoint = |address: &&[u8]| Endpoint { address: address.to_vec(), ..Endpoint::default() };
    Endpoints {
        service: service.into(),
        version: version.into(),
        endpoints: addresses.iter().map(endpoint).collect(),
    }
}

fn contents(version: &str, documents: Vec<Document>, endpoints: Vec<Endpoints>) -> Arc<Contents> {
    Arc::new(Contents { version: version.into(), documents, endpoints })
}

/// A server at the feed's socket. Dropping it ends it, and all its connections.
struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start<F: Future<Output = ()>>(
        folder: &TempDir,
        serve: impl FnOnce(Listener) -> F + Send + 'static,
    ) -> Self {
        Self::at(ApiAddress::Unix(folder.path().join("plane")), serve)
    }

    fn at<F: Future<Output = ()>>(
        address: ApiAddress,
        serve: impl FnOnce(Listener) -> F + Send + 'static,
    ) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = Listener::open(&address).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }

    fn saying(folder: &TempDir, script: Vec<FeedUpdate>) -> Self {
        Self::start(folder, async |listener| {
            let server = ControlPlaneServer::new(Script(script));
            let server = tonic::transport::Server::builder().add_service(server);
            server.serve_with_incoming(incoming(listener, None)).await.unwrap();
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A control plane that shows what it is given.
struct Plane {
    shown: watch::Sender<Arc<Contents>>,
    _server: Server,
}

impl Plane {
    fn start(folder: &TempDir, first: Arc<Contents>) -> Self {
        let (shown, seen) = watch::channel(first);
        let server = Server::start(folder, async |listener| {
            plane::serve(listener, None, seen).await.unwrap();
        });
        Self { shown, _server: server }
    }
}

/// The feed, and what is wanted, as control has it.
struct Balancer {
    feeds: Feeds,
    wanted: Wanted,
}

impl Balancer {
    fn start(text: &str) -> Self {
        let config = config(text);
        let nothing = Wanted::nothing(config.desired.hash_key());
        let mut wanted = nothing.with(State::of_file(&config)).unwrap();
        let feeds = Feeds::start(&config, &mut wanted).unwrap();
        Self { feeds, wanted }
    }

    /// The next state, joined with the others. What is wanted then: names, and numbers of backends.
    async fn next(&mut self) -> Result<(String, Vec<(String, usize)>), String> {
        let Offer { state, answer } = timeout(PATIENCE, self.feeds.next()).await.unwrap();
        let version = state.version.clone();
        match self.wanted.with(state) {
            Ok(wanted) => {
                self.wanted = wanted;
                answer.send(Ok(1)).unwrap();
                Ok((version, self.services()))
            }
            Err(overlaps) => {
                let says = overlaps.to_string();
                answer.send(Err(Refused::from(overlaps))).unwrap();
                Err(says)
            }
        }
    }

    fn services(&self) -> Vec<(String, usize)> {
        let services = self.wanted.desired().services().iter().map(|it| it.spec());
        services.map(|spec| (spec.name.clone(), spec.backends.len())).collect()
    }

    fn now(&self) -> standing::Now {
        self.feeds.standings()[0].now()
    }

    async fn until(&self, what: impl Fn(&standing::Now) -> bool) -> standing::Now {
        let end = Instant::now() + PATIENCE;
        while !what(&self.now()) {
            assert!(Instant::now() < end, "{:?}", self.now());
            sleep(Duration::from_millis(5)).await;
        }
        self.now()
    }
}

fn named(services: &[(&str, usize)]) -> Vec<(String, usize)> {
    services.iter().map(|(name, backends)| ((*name).into(), *backends)).collect()
}

#[tokio::test]
async fn states_come_whole_and_what_has_not_changed_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let (web, dns) =
        (document("a", "1", &service("web", 80)), document("b", "1", &service("dns", 53)));
    let list = endpoints("web", "1", &[&[10, 0, 0, 11], &[10, 0, 0, 12]]);
    let first = contents("v1", vec![web.clone(), dns.clone()], vec![list.clone()]);
    let plane = Plane::start(&folder, first);
    let mut balancer = Balancer::start(&file(&folder));
    assert_eq!(balancer.next().await, Ok(("v1".into(), named(&[("web", 2), ("dns", 0)]))));
    let before: Vec<_> = balancer.wanted.desired().services().to_vec();

    let fewer = endpoints("web", "2", &[&[10, 0, 0, 12]]);
    plane.shown.send_replace(contents("v2", vec![web.clone(), dns], vec![fewer]));
    assert_eq!(balancer.next().await, Ok(("v2".into(), named(&[("web", 1), ("dns", 0)]))));
    let after = balancer.wanted.desired().services();
    assert!(!Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));

    plane.shown.send_replace(contents("v3", vec![web], vec![]));
    assert_eq!(balancer.next().await, Ok(("v3".into(), named(&[("web", 0)]))));
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_the_old_state_stays() {
    let folder = tempfile::tempdir().unwrap();
    let good = document("a", "1", &service("web", 80));
    let plane = Plane::start(&folder, contents("v1", vec![good.clone()], vec![]));
    let text = format!("{}{}", file(&folder), service("dns", 53).replace("'tcp'", "'udp'"));
    let mut balancer = Balancer::start(&text);
    balancer.next().await.unwrap();

    let bad = document("b", "1", &service("ssh", 22).replace("'l2dsr'", "'l2dsx'"));
    plane.shown.send_replace(contents("v2", vec![good.clone(), bad.clone()], vec![]));
    let now = balancer.until(|now| now.reason.starts_with("b:6:11: \"l2dsx\"")).await;
    assert!(now.reason.contains("did you mean \"l2dsr\"") && now.told == "v2", "{now:?}");
    assert_eq!(balancer.services(), named(&[("dns", 0), ("web", 0)]));

    // Another source has it: both are named. And what was wrong before is mended with what comes next.
    let other = document("b", "2", &service("dns", 54));
    plane.shown.send_replace(contents("v3", vec![good.clone(), other], vec![]));
    let says = balancer.next().await.unwrap_err();
    let both = "service \"dns\" of feed \"grpc\" and \"dns\" of the file";
    assert!(says.contains(both), "{says}");
    balancer.until(|now| now.reason.starts_with("b: ") && now.reason.contains(both)).await;
    let mended = document("b", "3", &service("ssh", 22));
    plane.shown.send_replace(contents("v4", vec![good, mended], vec![]));
    let all = named(&[("dns", 0), ("web", 0), ("ssh", 0)]);
    assert_eq!(balancer.next().await, Ok(("v4".into(), all)));
    balancer.until(|now| now.reason.is_empty()).await;

    let wrong = endpoints("web", "1", &[&[10, 0, 0, 11], &[1, 2, 3]]);
    let text = document("a", "1", &service("web", 80));
    plane.shown.send_replace(contents("v5", vec![text], vec![wrong]));
    balancer.until(|now| now.reason.starts_with("web:2: an address of 3 bytes")).await;
}

/// While the control plane is away its last good state stays, also for the next process; and when it is back,
/// only what is new is told.
#[tokio::test]
async fn a_break_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = contents("v1", vec![document("a", "1", &service("web", 80))], vec![]);
    let plane = Plane::start(&folder, Arc::clone(&first));
    let mut balancer = Balancer::start(&file(&folder));
    balancer.next().await.unwrap();
    let saved = folder.path().join("feed-grpc");
    let end = Instant::now() + PATIENCE;
    while !saved.exists() {
        assert!(Instant::now() < end, "nothing is written down");
        sleep(Duration::from_millis(5)).await;
    }
    drop(plane);
    balancer.until(|now| now.away.is_some()).await;
    assert_eq!(balancer.services(), named(&[("web", 0)]));
    drop(balancer);

    let mut balancer = Balancer::start(&file(&folder));
    assert_eq!(balancer.services(), named(&[("web", 0)]), "the next process has it");
    let mut both = (*first).clone();
    both.version = "v2".into();
    both.documents.push(document("b", "1", &service("dns", 53)));
    let _plane = Plane::start(&folder, Arc::new(both));
    assert_eq!(balancer.next().await, Ok(("v2".into(), named(&[("web", 0), ("dns", 0)]))));
    let resources = balancer.feeds.standings()[0].counters()[3];
    assert_eq!(resources, ("resources", 1), "one was new");
}

#[test]
fn calls_are_spread_and_get_rare() {
    assert_eq!(backoff(0, 0.0), BACKOFF_MIN);
    assert_eq!(backoff(2, 1.0), BACKOFF_MIN * 2);
    assert_eq!(backoff(u32::MAX, 0.0), BACKOFF_MAX);
}

/// Says what it is given to whoever calls, and no more.
struct Script(Vec<FeedUpdate>);

#[tonic::async_trait]
impl ControlPlane for Script {
    type FeedStream = Pin<Box<dyn Stream<Item = Result<FeedUpdate, Status>> + Send>>;

    async fn feed(
        &self,
        _: Request<Streaming<FeedAnswer>>,
    ) -> Result<Response<Self::FeedStream>, Status> {
        let told = stream::iter(self.0.clone().into_iter().map(Ok));
        Ok(Response::new(Box::pin(told.chain(stream::pending()))))
    }
}

/// Whatever a control plane says, what is wanted stays, until it says something that makes sense.
#[tokio::test]
async fn nonsense_changes_nothing() {
    let update = |version: &str, more| FeedUpdate {
        version: version.into(),
        more,
        documents: vec![document("b", "1", &service("ssh", 22))],
        ..FeedUpdate::default()
    };
    let long = FeedUpdate {
        documents: vec![document("b", "1", &"#".repeat(17 << 20))],
        ..update("v2", false)
    };
    let many = endpoints("web", "1", &vec![&[10, 0, 0, 1][..]; 65_536]);
    let many = FeedUpdate { endpoints: vec![many], ..update("v2", false) };
    let cases = [
        (vec![update("", false)], "a name or a version of no"),
        (vec![update("v2", true), update("v3", false)], "parts of versions \"v2\" and \"v3\""),
        (vec![long], "message length too large"),
        (vec![many], "65535 of one service"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let first = contents("v1", vec![document("a", "1", &service("web", 80))], vec![]);
    let plane = Plane::start(&folder, Arc::clone(&first));
    let mut balancer = Balancer::start(&file(&folder));
    balancer.next().await.unwrap();
    drop(plane);
    for (updates, says) in cases {
        let _server = Server::saying(&folder, updates);
        balancer.until(|now| now.away.is_some() && now.reason.contains(says)).await;
    }
    let half = Server::saying(&folder, vec![update("v2", true)]);
    balancer.until(|now| now.away.is_none()).await;
    drop(half);
    let garbage = tokio::net::UnixListener::bind(folder.path().join("plane")).unwrap();
    let (mut wire, _) = timeout(PATIENCE, garbage.accept()).await.unwrap().unwrap();
    wire.write_all(&[0xff; 4096]).await.unwrap();
    drop((wire, garbage));
    std::fs::remove_file(folder.path().join("plane")).unwrap();
    assert_eq!(balancer.services(), named(&[("web", 0)]));

    let mut both = (*first).clone();
    both.version = "v2".into();
    both.documents.push(document("b", "1", &service("ssh", 22)));
    let _plane = Plane::start(&folder, Arc::new(both));
    assert_eq!(balancer.next().await, Ok(("v2".into(), named(&[("web", 0), ("ssh", 0)]))));
}

#[tokio::test]
async fn both_ends_show_by_tls_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    for (name, ca) in [
        ("ca", None),
        ("other", None),
        ("plane", Some("ca")),
        ("weir", Some("ca")),
        ("thief", Some("other")),
    ] {
        certificate(folder.path(), name, ca, 2);
    }
    let [cert, key, ca] = ["plane.pem", "plane.key", "ca.pem"].map(|it| folder.path().join(it));
    let tls = Acceptor::new(ServerFiles { cert, key, client_ca: Some(ca) }).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = ApiAddress::Tcp(([127, 0, 0, 1], port).into());
    let first = contents("v1", vec![document("a", "1", &service("web", 80))], vec![]);
    let (_shown, seen) = watch::channel(first);
    let _server = Server::at(address, async move |listener| {
        plane::serve(listener, Some(tls), seen).await.unwrap();
    });
    let text = |ca: &str, identity: &str| {
        let file = |name: &str| folder.path().join(name).display().to_string();
        let mut keys = format!("address = 'https://localhost:{port}'\nca = '{}'\n", file(ca));
        if !identity.is_empty() {
            let (cert, key) = (format!("{identity}.pem"), format!("{identity}.key"));
            keys.extend(["cert = '", &file(&cert), "'\nkey = '", &file(&key), "'\n"]);
        }
        let plain = format!("address = 'unix:{}/plane'\n", folder.path().display());
        self::file(&folder).replace(&plain, &keys)
    };
    for (ca, identity) in [("other.pem", "weir"), ("ca.pem", ""), ("ca.pem", "thief")] {
        let balancer = Balancer::start(&text(ca, identity));
        let now = balancer.until(|now| now.away.is_some() && !now.reason.is_empty()).await;
        assert!(balancer.services().is_empty(), "{now:?}");
    }
    let mut balancer = Balancer::start(&text("ca.pem", "weir"));
    assert_eq!(balancer.next().await, Ok(("v1".into(), named(&[("web", 0)]))));

    // Who accepts and says nothing is not waited for.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = silent.local_addr().unwrap().port();
    let text = text("ca.pem", "weir").replace(&format!(":{port}'"), &format!(":{other}'"));
    let balancer = Balancer::start(&text);
    balancer.until(|now| now.reason.ends_with("no answer within 1s")).await;
}
