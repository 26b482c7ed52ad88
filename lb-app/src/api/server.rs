//! The answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server as Transport;
use tonic::{Request, Response, Status};

use super::connections::incoming;
use super::listen::Listener;
use super::proto::balancer_server::{Balancer, BalancerServer};
use super::proto::{
    self, GetStatusRequest, ListBackendsRequest, ListPortsRequest, ListPortsResponse,
    ListServicesRequest, ListWorkersRequest, ListWorkersResponse,
};
use super::{Ask, View, state};

/// Calls at a time of one client.
const CALLS_MAX: u32 = 16;
/// How long a call may take until its answer begins.
const CALL_TIME_MAX: Duration = Duration::from_mins(1);
/// How often a client is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Bytes of a request, at most.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Messages of an answer that wait for the client to read, and how long they wait: what they are made
/// of is kept so long.
const MESSAGES_MAX: usize = 64;
const UNREAD_TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Serves until `stopped`.
pub(super) async fn serve(
    listener: Listener,
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
        .serve_with_incoming(incoming(listener));
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

/// Messages, one after the other.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends what `messages` yields as the client reads it. One that reads nothing for too long gets no
/// more: the version of the tables that the messages are made of is to be freed.
fn told<T: Send + 'static>(
    messages: impl Iterator<Item = T> + Send + 'static,
) -> Response<Messages<T>> {
    let (tell, told) = mpsc::channel(MESSAGES_MAX);
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        for message in messages {
            match tell.send_timeout(Ok(message), UNREAD_TIME_MAX).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
                // It must not take what it has for all there is.
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    let _ = end.send(Status::deadline_exceeded("the answer was not read in time"));
                    return;
                }
            }
        }
    });
    let failure = stream::once(ended).filter_map(async |ended| ended.ok().map(Err));
    Response::new(Box::pin(ReceiverStream::new(told).chain(failure)))
}

#[tonic::async_trait]
impl Balancer for Server {
    type ListServicesStream = Messages<proto::Service>;
    type ListBackendsStream = Messages<proto::Backend>;

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
        let service = move |place| Some(state::service(&view, view.tables.services.get(place)?));
        Ok(told(places.filter_map(service)))
    }

    async fn list_backends(
        &self,
        request: Request<ListBackendsRequest>,
    ) -> Result<Response<Self::ListBackendsStream>, Status> {
        let view = self.view()?;
        let places = places(&view, request.into_inner().service.as_deref())?;
        let backends =
            move |place| view.tables.services.get(place).map(|table| state::backends(&view, table));
        Ok(told(places.filter_map(backends).flatten()))
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
