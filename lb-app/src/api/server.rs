//! The answers.

use std::collections::BTreeMap;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use lb_core::explain::Explainer;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server as Transport;
use tonic::{Request, Response, Status, Streaming};

use super::connections::{UNREAD_TIME_MAX, incoming};
use super::flow::{Flow, FlowError};
use super::listen::Listener;
use super::proto::balancer_server::{Balancer, BalancerServer};
use super::proto::service_change::Change;
use super::proto::{
    self, ApplyRequest, ApplyResponse, BackendName, DrainRequest, DrainResponse, ExplainRequest,
    ExplainResponse, GetStatusRequest, ListBackendsRequest, ListPortsRequest, ListPortsResponse,
    ListServicesRequest, ListWorkersRequest, ListWorkersResponse, PlanRequest, PlanResponse,
    ReloadRequest, ReloadResponse, ServiceChange, UndrainRequest, UndrainResponse,
    WatchServicesRequest,
};
use super::{Applied, Ask, Drained, View, explain, plan, state};
use crate::control::{ChangeError, DrainError, Which};
use crate::memory;
use crate::source::{Application, ApplyError};
use crate::tls::Acceptor;

/// Calls at a time of one client.
const CALLS_MAX: u32 = 8;
/// How long a call may take until its answer begins.
const CALL_TIME_MAX: Duration = Duration::from_mins(1);
/// How often a client is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Bytes of a request, at most: a file of 100,000 backends.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Flows that are explained by one version of the tables, at most, before others of the API's clients have a turn.
const FLOWS_AT_ONCE: usize = 256;
/// Messages of an answer that wait for the client to read, for [`UNREAD_TIME_MAX`]: what they are made of is
/// kept so long.
const MESSAGES_MAX: usize = 64;

/// Serves until `stopped`.
pub(super) async fn serve(
    listener: Listener,
    tls: Option<Acceptor>,
    view: watch::Receiver<Option<Arc<View>>>,
    asks: mpsc::Sender<Ask>,
    stopped: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    health.set_not_serving::<BalancerServer<Server>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut started = view.clone();
    tokio::spawn(async move {
        // An error is the end of everything.
        if started.wait_for(Option::is_some).await.is_ok() {
            health.set_service_status("", tonic_health::ServingStatus::Serving).await;
            health.set_serving::<BalancerServer<Server>>().await;
        }
    });
    let balancer =
        BalancerServer::new(Server { view, asks }).max_decoding_message_size(REQUEST_BYTES_MAX);
    let server = Transport::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(CALLS_MAX)
        .timeout(CALL_TIME_MAX)
        .add_service(balancer)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming(incoming(listener, tls));
    tokio::select! {
        ended = server => Ok(ended?),
        // Calls that are under way end: some would never, since they tell of changes.
        () = stopped => Ok(()),
    }
}

/// The balancer, to clients.
#[derive(Clone, Debug)]
struct Server {
    view: watch::Receiver<Option<Arc<View>>>,
    asks: mpsc::Sender<Ask>,
}

impl Server {
    fn view(&self) -> Result<Arc<View>, Status> {
        let view = self.view.borrow().clone();
        view.ok_or_else(|| Status::unavailable("the balancer is starting"))
    }

    /// Asks control, and waits for what it says.
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Status> {
        let gone = || Status::unavailable("the balancer is ending");
        self.view()?;
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl Server {
    /// What becomes of each of some flows, as the balancer is now.
    fn explain_all(&self, asked: Vec<Result<ExplainRequest, Status>>) -> Vec<Answer> {
        let view = match self.view() {
            Ok(view) => view,
            Err(status) => return vec![Err(status)],
        };
        let (mut explainer, now) = (Explainer::new(&view.tables), memory::now());
        let mut answer = |asked: Result<ExplainRequest, Status>| {
            Ok(explain::explain(&mut explainer, &flow(&asked?)?, view.workers.len(), now))
        };
        asked.into_iter().map(&mut answer).collect()
    }

    async fn set_drain(&self, name: Option<BackendName>, drain: bool) -> Result<Drained, Status> {
        let which = which(name.unwrap_or_default())?;
        let answer = self.ask(|answer| Ask::Drain(which, drain, answer)).await?;
        answer.map_err(|error| match &error {
            ChangeError::Drain(DrainError::NoBackend(_) | DrainError::NotOfService(..)) => {
                Status::not_found(error.to_string())
            }
            _ => Status::failed_precondition(error.to_string()),
        })
    }
}

fn flow(request: &ExplainRequest) -> Result<Flow, Status> {
    let flow = request.flow.parse();
    flow.map_err(|error: FlowError| Status::invalid_argument(error.to_string()))
}

fn which(BackendName { address, port, service }: BackendName) -> Result<Which, Status> {
    let wrong = |what: String| Status::invalid_argument(what);
    let port = port.map(|port| {
        u16::try_from(port).map_err(|_| wrong(format!("{port} is not a port (1 to 65535)")))
    });
    Ok(Which {
        address: address.parse().map_err(|_| wrong(format!("{address:?} is not an IP address")))?,
        port: port.transpose()?,
        service,
    })
}

type Answer = Result<ExplainResponse, Status>;

/// Messages, one after the other.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends what `messages` yields as the client reads it.
fn told<T: Send + 'static>(
    messages: impl Iterator<Item = T> + Send + 'static,
) -> Response<Messages<T>> {
    telling(async move |tell| {
        for message in messages {
            tell.tell(message).await?;
        }
        Ok(())
    })
}

/// Sends what `tell` tells as the client reads it. A client that reads nothing for too long gets no
/// more: the version of the tables that messages are made of is to be freed.
fn telling<T, F>(tell: impl FnOnce(Teller<T>) -> F + Send + 'static) -> Response<Messages<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Given>> + Send + 'static,
{
    let (teller, told) = mpsc::channel(MESSAGES_MAX);
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        // It must not take what it has for all there is.
        if let Err(Given::Up) = tell(Teller(teller)).await {
            let _ = end.send(Status::deadline_exceeded("the answer was not read in time"));
        }
    });
    let failure = stream::once(ended).filter_map(async |ended| ended.ok().map(Err));
    Response::new(Box::pin(ReceiverStream::new(told).chain(failure)))
}

/// Sends messages, one after the other.
struct Teller<T>(mpsc::Sender<Result<T, Status>>);

/// Why no more are sent.
enum Given {
    /// The client has gone.
    Over,
    /// It does not read.
    Up,
}

impl<T> Teller<T> {
    async fn tell(&self, message: T) -> Result<(), Given> {
        self.answer(Ok(message)).await
    }

    /// An error ends the answer.
    async fn answer(&self, answer: Result<T, Status>) -> Result<(), Given> {
        let told = self.0.send_timeout(answer, UNREAD_TIME_MAX).await;
        told.map_err(|error| match error {
            SendTimeoutError::Closed(_) => Given::Over,
            SendTimeoutError::Timeout(_) => Given::Up,
        })
    }
}

/// Tells of services as they are, and of each one that changes.
async fn watch_services(
    mut view: watch::Receiver<Option<Arc<View>>>,
    teller: Teller<ServiceChange>,
) -> Result<(), Given> {
    let mut known: BTreeMap<String, proto::Service> = BTreeMap::new();
    loop {
        let seen = view.borrow_and_update().clone();
        if let Some(view) = seen {
            let mut before = mem::take(&mut known);
            for table in &view.tables.services {
                let uncounted = proto::Service {
                    tracked_flows: 0,
                    frames: 0,
                    bytes: 0,
                    ..state::service(&view, table)
                };
                let name = uncounted.name.clone();
                if before.remove(&name).as_ref() != Some(&uncounted) {
                    teller.tell(of(Change::Service(uncounted.clone()))).await?;
                }
                known.insert(name, uncounted);
            }
            for name in before.into_keys() {
                teller.tell(of(Change::Removed(name))).await?;
            }
            teller.tell(of(Change::Version(view.tables.version))).await?;
        }
        tokio::select! {
            changed = view.changed() => changed.map_err(|_| Given::Over)?,
            () = teller.0.closed() => return Err(Given::Over),
        }
    }
}

fn of(change: Change) -> ServiceChange {
    ServiceChange { change: Some(change) }
}

#[tonic::async_trait]
impl Balancer for Server {
    type ListServicesStream = Messages<proto::Service>;
    type ListBackendsStream = Messages<proto::Backend>;
    type WatchServicesStream = Messages<ServiceChange>;
    type ExplainFlowsStream = Messages<ExplainResponse>;

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<proto::Status>, Status> {
        Ok(Response::new(state::status(&*self.view()?)))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<Self::ListServicesStream>, Status> {
        let view = self.view()?;
        let places = places(&view, request.into_inner().service.as_deref())?;
        let service =
            move |place: usize| view.tables.services.get(place).map(|it| state::service(&view, it));
        Ok(told(places.filter_map(service)))
    }

    async fn list_backends(
        &self,
        request: Request<ListBackendsRequest>,
    ) -> Result<Response<Self::ListBackendsStream>, Status> {
        let view = self.view()?;
        let places = places(&view, request.into_inner().service.as_deref())?;
        let backends = move |place: usize| {
            view.tables.services.get(place).map(|it| state::backends(&view, it))
        };
        Ok(told(places.filter_map(backends).flatten()))
    }

    async fn watch_services(
        &self,
        _: Request<WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        self.view()?;
        let view = self.view.clone();
        Ok(telling(|teller| watch_services(view, teller)))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let flow = flow(&request.into_inner())?;
        let view = self.view()?;
        let mut explainer = Explainer::new(&view.tables);
        Ok(Response::new(explain::explain(
            &mut explainer,
            &flow,
            view.workers.len(),
            memory::now(),
        )))
    }

    async fn explain_flows(
        &self,
        request: Request<Streaming<ExplainRequest>>,
    ) -> Result<Response<Self::ExplainFlowsStream>, Status> {
        self.view()?;
        let server = self.clone();
        let mut asked = request.into_inner().ready_chunks(FLOWS_AT_ONCE);
        Ok(telling(async move |teller| {
            while let Some(asked) = asked.next().await {
                for answer in server.explain_all(asked) {
                    let is_last = answer.is_err();
                    teller.answer(answer).await?;
                    if is_last {
                        return Ok(());
                    }
                }
            }
            Ok(())
        }))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let PlanRequest { file_name, text } = request.into_inner();
        Ok(Response::new(plan::plan(&*self.view()?, &file_name, &text, memory::now())))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        Ok(Response::new(self.ask(Ask::Reload).await?))
    }

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest { documents, expected_version } = request.into_inner();
        let ports = &self.view()?.config.ports;
        let application = match Application::new(documents, expected_version, ports) {
            Ok(application) => application,
            Err(errors) => {
                let applied = state::applied(&*self.view()?);
                return Ok(Response::new(ApplyResponse { applied, errors, ..Default::default() }));
            }
        };
        let Applied { outcome, latest, version, in_force } =
            self.ask(|answer| Ask::Apply(application, answer)).await?;
        let errors = match outcome {
            Ok(_) => Vec::new(),
            Err(ApplyError::Refused(errors)) => errors,
            Err(stale @ ApplyError::Stale { .. }) => {
                return Err(Status::failed_precondition(stale.to_string()));
            }
        };
        let taken = errors.is_empty();
        Ok(Response::new(ApplyResponse { taken, applied: latest, version, in_force, errors }))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let Drained { version, in_force, services } =
            self.set_drain(request.into_inner().backend, true).await?;
        Ok(Response::new(DrainResponse { version, in_force, services }))
    }

    async fn undrain(
        &self,
        request: Request<UndrainRequest>,
    ) -> Result<Response<UndrainResponse>, Status> {
        let Drained { version, in_force, services } =
            self.set_drain(request.into_inner().backend, false).await?;
        Ok(Response::new(UndrainResponse { version, in_force, services }))
    }

    async fn list_ports(
        &self,
        _: Request<ListPortsRequest>,
    ) -> Result<Response<ListPortsResponse>, Status> {
        let ports = self.ask(Ask::Ports).await?;
        Ok(Response::new(ListPortsResponse { ports }))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let workers = state::workers(&*self.view()?);
        Ok(Response::new(ListWorkersResponse { workers }))
    }
}

/// The places in the tables of the services that are asked for.
fn places(view: &View, name: Option<&str>) -> Result<std::ops::Range<usize>, Status> {
    let services = &view.tables.services;
    let Some(name) = name else { return Ok(0..services.len()) };
    let place = services.iter().position(|table| table.source.spec().name == name);
    let place = place.ok_or_else(|| Status::not_found(format!("there is no service {name:?}")))?;
    Ok(place..place + 1)
}
