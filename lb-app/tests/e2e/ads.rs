//! A small xDS control plane (ADS, the state of the world), and the resources that it tells of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HealthStatus, SocketAddress, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::google::protobuf::Any;
use futures_util::{Stream, stream};
use lb_xds::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use lb_xds::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::{Message, Name};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// All that is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    version: String,
    /// By the URL of their type.
    resources: BTreeMap<String, Vec<Any>>,
}

impl World {
    pub(crate) fn new(version: &str) -> Self {
        Self { version: version.into(), ..Self::default() }
    }

    /// With a TCP service: a listener and, of the same name, a cluster and its endpoints, on the listener's
    /// port.
    pub(crate) fn with(
        mut self,
        name: &str,
        (address, port): (IpAddr, u16),
        endpoints: &[(IpAddr, HealthStatus)],
    ) -> Self {
        let proxy = TcpProxy {
            stat_prefix: name.into(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(name.into())),
            ..TcpProxy::default()
        };
        let filter = Filter {
            name: "envoy.filters.network.tcp_proxy".into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(&proxy))),
        };
        let endpoint = |(address, status): &(IpAddr, HealthStatus)| LbEndpoint {
            health_status: (*status).into(),
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(socket(*address, port)),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        };
        let locality = LocalityLbEndpoints {
            lb_endpoints: endpoints.iter().map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        };
        self.add(&Cluster {
            name: name.into(),
            lb_policy: LbPolicy::Maglev.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            ..Cluster::default()
        });
        self.add(&ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![locality],
            ..ClusterLoadAssignment::default()
        });
        self.add(&Listener {
            name: name.into(),
            address: Some(socket(address, port)),
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        });
        self
    }

    fn add<M: Message + Name>(&mut self, resource: &M) {
        self.resources.entry(M::type_url()).or_default().push(any(resource));
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn socket(address: IpAddr, port: u16) -> Address {
    let socket = SocketAddress {
        address: address.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

type Refusals = Arc<Mutex<Vec<String>>>;

/// The control plane. Dropping it ends it, and all its calls.
#[derive(Debug)]
pub(crate) struct Ads {
    world: watch::Sender<World>,
    refusals: Refusals,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ads {
    /// At a Unix socket.
    pub(crate) fn start(socket: &Path, first: World) -> Self {
        let (world, seen) = watch::channel(first);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let refusals = Refusals::default();
        let service = Service { world: seen, refusals: Arc::clone(&refusals) };
        let path = socket.to_path_buf();
        let serve = async move {
            let listener = UnixListener::bind(path).expect("the socket is new");
            ready.send(()).expect("it is waited for");
            let calls = stream::unfold(listener, async |listener| {
                Some((listener.accept().await.map(|(call, _)| call), listener))
            });
            let server = AggregatedDiscoveryServiceServer::new(service);
            let server = tonic::transport::Server::builder().add_service(server);
            tokio::select! {
                end = server.serve_with_incoming(calls) => end.expect("it serves"),
                _ = stopped => {}
            }
        };
        let thread = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("epoll").block_on(serve);
        });
        is_ready.recv().expect("it starts");
        let (socket, stop, thread) = (socket.to_path_buf(), Some(stop), Some(thread));
        Self { world, refusals, socket, stop, thread }
    }

    pub(crate) fn tell(&self, world: World) {
        self.world.send_replace(world);
    }

    /// What was refused, and why.
    pub(crate) fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Ads {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        fs::remove_file(&self.socket).ok();
    }
}

struct Service {
    world: watch::Receiver<World>,
    refusals: Refusals,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answer, answers) = mpsc::channel(16);
        let (world, refusals) = (self.world.clone(), Arc::clone(&self.refusals));
        tokio::spawn(converse(world, refusals, requests.into_inner(), answer));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the state of the world"))
    }
}

/// Answers each type that is asked for: at first, when other names are asked for, and when it has changed.
async fn converse(
    mut world: watch::Receiver<World>,
    refusals: Refusals,
    mut requests: Streaming<DiscoveryRequest>,
    answer: mpsc::Sender<Result<DiscoveryResponse, Status>>,
) {
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut told = BTreeMap::new();
    let mut count = 0;
    loop {
        tokio::select! {
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                if let Some(refusal) = request.error_detail {
                    refusals.lock().unwrap_or_else(PoisonError::into_inner).push(refusal.message);
                }
                asked.insert(request.type_url, request.resource_names.into_iter().collect());
            }
            changed = world.changed() => if changed.is_err() { return },
        }
        let now = world.borrow_and_update().clone();
        for (type_url, names) in &asked {
            let new = (names.clone(), now.version.clone());
            if told.get(type_url) == Some(&new) {
                continue;
            }
            count += 1;
            let response = DiscoveryResponse {
                version_info: now.version.clone(),
                resources: now.resources.get(type_url).cloned().unwrap_or_default(),
                type_url: type_url.clone(),
                nonce: count.to_string(),
                ..DiscoveryResponse::default()
            };
            if answer.send(Ok(response)).await.is_err() {
                return;
            }
            told.insert(type_url.clone(), new);
        }
    }
}
