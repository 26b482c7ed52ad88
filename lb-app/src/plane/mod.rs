//! A small control plane: tells balancers what a directory has, and follows it. It is the reference for the
//! server's part of `feed.proto`, and enough for a lab.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::api::proto::control_plane_server::{ControlPlane, ControlPlaneServer};
use crate::api::proto::feed_answer::Answer;
use crate::api::proto::{FeedAnswer, FeedHello, FeedUpdate, ResourceVersion};
use crate::api::{Listener, incoming};
use crate::source::told;
use crate::tls::Acceptor;

mod folder;

pub(crate) use folder::{Contents, read, watch_folder};

/// Bytes of a balancer's message, at most: the names of all that it has.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes of a message to a balancer, about.
const PART_BYTES: usize = 1 << 20;
/// Messages that a balancer has not read yet, and how long they wait for it.
const UNREAD_MAX: usize = 4;
const UNREAD_TIME_MAX: Duration = Duration::from_secs(30);
/// How often a balancer is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves what `contents` shows, until something fails.
pub(crate) async fn serve(
    listener: Listener,
    tls: Option<Acceptor>,
    contents: watch::Receiver<Arc<Contents>>,
) -> Result<(), tonic::transport::Error> {
    let plane = ControlPlaneServer::new(Plane { contents });
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let plane = plane.max_decoding_message_size(MESSAGE_BYTES_MAX);
    server.add_service(plane).serve_with_incoming(incoming(listener, tls)).await
}

/// The control plane, to balancers.
#[derive(Debug)]
struct Plane {
    contents: watch::Receiver<Arc<Contents>>,
}

#[tonic::async_trait]
impl ControlPlane for Plane {
    type FeedStream = Pin<Box<dyn Stream<Item = Result<FeedUpdate, Status>> + Send>>;

    async fn feed(
        &self,
        request: Request<Streaming<FeedAnswer>>,
    ) -> Result<Response<Self::FeedStream>, Status> {
        let mut answers = request.into_inner();
        let first = answers.message().await?.and_then(|message| message.answer);
        let Some(Answer::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message is a FeedHello"));
        };
        let (tell, told) = mpsc::channel(UNREAD_MAX);
        let contents = self.contents.clone();
        tokio::spawn(async move {
            let node = hello.node.clone();
            match follow(hello, contents, answers, &tell).await {
                Ok(()) => info!("{node}: gone"),
                Err(status) => {
                    warn!("{node}: {}", status.message());
                    let _ = tell.try_send(Err(status)); // it may have gone
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// Tells a balancer of each change, and hears what it says, until it goes.
async fn follow(
    hello: FeedHello,
    mut contents: watch::Receiver<Arc<Contents>>,
    mut answers: Streaming<FeedAnswer>,
    tell: &mpsc::Sender<Result<FeedUpdate, Status>>,
) -> Result<(), Status> {
    let FeedHello { node, release, version, documents, endpoints } = hello;
    info!("{node}: Weir {release}, has version {version:?}");
    let mut has = Has { version, documents: versions(documents), endpoints: versions(endpoints) };
    loop {
        let newest = Arc::clone(&contents.borrow_and_update());
        for part in has.missing(&newest) {
            let told = tell.send_timeout(Ok(part), UNREAD_TIME_MAX).await;
            told.map_err(|_| Status::deadline_exceeded("an update was not read in time"))?;
        }
        loop {
            tokio::select! {
                changed = contents.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is ending"))?;
                    break;
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => show(&node, answer.answer),
                    Ok(None) | Err(_) => return Ok(()),
                }
            }
        }
    }
}

fn show(node: &str, answer: Option<Answer>) {
    match answer {
        Some(Answer::Ack(ack)) => {
            info!(
                "{node}: version {} is in force, as version {} of its tables",
                ack.version, ack.tables
            );
        }
        Some(Answer::Nack(nack)) => {
            warn!(
                "{node}: version {} is refused, {:?} stays in force",
                nack.version, nack.in_force
            );
            for error in &nack.errors {
                warn!("{node}: {}", told(error));
            }
        }
        Some(Answer::Hello(_)) | None => warn!("{node}: says something out of turn"),
    }
}

fn versions(known: Vec<ResourceVersion>) -> BTreeMap<String, String> {
    known.into_iter().map(|it| (it.name, it.version)).collect()
}

/// What a balancer has, as far as we know: versions by name.
#[derive(Debug, Default)]
struct Has {
    version: String,
    documents: BTreeMap<String, String>,
    endpoints: BTreeMap<String, String>,
}

impl Has {
    /// What it has to be told, in parts. After that it has it.
    fn missing(&mut self, newest: &Contents) -> Vec<FeedUpdate> {
        let is_new = |has: &BTreeMap<String, String>, name: &String, version: &String| {
            has.get(name) != Some(version)
        };
        let documents = newest.documents.iter();
        let documents = documents.filter(|it| is_new(&self.documents, &it.name, &it.version));
        let endpoints = newest.endpoints.iter();
        let endpoints = endpoints.filter(|it| is_new(&self.endpoints, &it.service, &it.version));
        let mut parts = Parts::new(&newest.version);
        for document in documents {
            parts.room_for(document.text.len()).documents.push(document.clone());
        }
        for list in endpoints {
            parts.room_for(prost::Message::encoded_len(list)).endpoints.push(list.clone());
        }
        let all: BTreeMap<String, String> =
            newest.documents.iter().map(|it| (it.name.clone(), it.version.clone())).collect();
        for name in self.documents.keys().filter(|name| !all.contains_key(*name)) {
            parts.room_for(name.len()).documents_removed.push(name.clone());
        }
        self.documents = all;
        let all: BTreeMap<String, String> =
            newest.endpoints.iter().map(|it| (it.service.clone(), it.version.clone())).collect();
        for name in self.endpoints.keys().filter(|name| !all.contains_key(*name)) {
            parts.room_for(name.len()).endpoints_removed.push(name.clone());
        }
        self.endpoints = all;
        if parts.is_empty() && self.version == newest.version {
            return Vec::new();
        }
        self.version.clone_from(&newest.version);
        parts.finish()
    }
}

/// An update that is cut into messages.
struct Parts {
    parts: Vec<FeedUpdate>,
    bytes: usize,
}

impl Parts {
    fn new(version: &str) -> Self {
        let first = FeedUpdate { version: version.into(), more: true, ..FeedUpdate::default() };
        Self { parts: vec![first], bytes: 0 }
    }

    /// The part that so much more is put into.
    fn room_for(&mut self, bytes: usize) -> &mut FeedUpdate {
        let last = self.parts.len() - 1;
        if self.bytes > 0 && self.bytes + bytes > PART_BYTES {
            let version = self.parts[last].version.clone();
            self.parts.push(FeedUpdate { version, more: true, ..FeedUpdate::default() });
            self.bytes = 0;
        }
        self.bytes += bytes.max(1);
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn finish(mut self) -> Vec<FeedUpdate> {
        if let Some(last) = self.parts.last_mut() {
            last.more = false;
        }
        self.parts
    }
}
