//! One call to a control plane, and what becomes of what it tells.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_config::Feed;
use lb_core::model::{Health, Service};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use super::link::{self, LinkError};
use super::resources::{NoUpdate, Resources};
use super::saved::SavedFeed;
use super::standing::Standing;
use super::{Caller, Place};
use crate::api::proto::control_plane_client::ControlPlaneClient;
use crate::api::proto::feed_answer::Answer;
use crate::api::proto::{FeedAck, FeedAnswer, FeedHello, FeedNack, FeedUpdate, ResourceError};
use crate::source::{Offer, Refused, Source, State, Verdict, told};

/// Bytes of a message, at most.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Answers that the control plane has not read yet.
const ANSWERS_MAX: usize = 16;
/// How long it may take until it begins to answer the call, and from the first part of an update to the last.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const UPDATE_TIME_MAX: Duration = Duration::from_mins(1);
/// Parts of one update, at most; the sum of them is bounded when it is taken, and before that by this.
const PARTS_BYTES_MAX: usize = 256 << 20;
/// When what control has refused is offered again: the other source may have let go of it.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Why a call has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the control plane does not answer")]
    Silent,
    #[error("the control plane has ended the call")]
    Ended,
    #[error("the call has ended: {0}")]
    Status(String),
    #[error("the control plane breaks the rules: {0}")]
    NoUpdate(#[from] NoUpdate),
    #[error("the control plane breaks the rules: an update has more than {PARTS_BYTES_MAX} bytes")]
    LongUpdate,
    #[error("an update has not come whole within {}s", UPDATE_TIME_MAX.as_secs())]
    HalfAnUpdate,
    #[error("the control plane does not read its answers")]
    Unread,
}

/// A feed: what is known of it outlives the calls.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) feed: Feed,
    standing: Arc<Standing>,
    offers: mpsc::Sender<Offer>,
    resources: Resources,
    /// What control was offered, and has not answered yet.
    offered: Option<Offered>,
    /// The version that is in force; empty: none.
    in_force: String,
    /// Something was told that was not offered yet.
    is_new: bool,
    /// When the next state may be offered.
    next_offer: Instant,
    /// When the last one is to be offered again, which control has refused.
    retry: Option<Instant>,
    saved: SavedFeed<FeedUpdate>,
}

/// A state that control has been offered.
#[derive(Debug)]
struct Offered {
    version: String,
    verdict: oneshot::Receiver<Verdict>,
}

/// The parts of an update that have come.
#[derive(Debug, Default)]
struct Parts {
    update: Option<FeedUpdate>,
    bytes: usize,
    /// When the first came.
    since: Option<Instant>,
}

impl Caller for Session {
    fn standing(&self) -> &Standing {
        &self.standing
    }

    fn in_force(&self) -> String {
        match self.in_force.as_str() {
            "" => "nothing of it".into(),
            version => format!("version {version:?}"),
        }
    }

    async fn call(&mut self) -> Result<Infallible, SessionError> {
        let channel = link::connect(&self.feed).await?;
        let mut client =
            ControlPlaneClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        let hello = Answer::Hello(self.hello());
        answers.try_send(FeedAnswer { answer: Some(hello) }).map_err(|_| SessionError::Unread)?;
        let call = client.feed(ReceiverStream::new(answered));
        let updates = timeout(ANSWER_TIME_MAX, call).await.map_err(|_| SessionError::Silent)?;
        let updates = updates.map_err(|status| SessionError::Status(status.message().into()))?;
        self.standing.found();
        info!("feed {:?}: {} is there", self.feed.name, self.feed.address);
        self.follow(updates.into_inner(), &answers).await
    }

    async fn settle(&mut self) {
        while self.is_new || self.offered.is_some() {
            self.step().await;
        }
        if self.is_told_in_force() {
            self.saved.settle(|| self.resources.to_update());
        }
    }

    fn remember(&mut self) -> Option<State> {
        let update = self.saved.read()?;
        let name = &self.feed.name;
        let version = update.version.clone();
        if let Err(error) = self.resources.take(update) {
            warn!("feed {name:?}: what it told before is not used: {error}");
            return None;
        }
        match self.resources.services() {
            Ok(services) => Some(self.state(services, version)),
            Err(errors) => {
                let first = errors.first().map(told).unwrap_or_default();
                warn!("feed {name:?}: what it told before is valid no more: {first}");
                None
            }
        }
    }

    fn begin(&mut self) {
        self.in_force.clone_from(&self.resources.version);
        self.standing.told(&self.in_force, 0);
    }
}

impl Session {
    pub(super) fn new(place: Place) -> Self {
        let Place { feed, standing, offers, state_dir, ports } = place;
        let saved = SavedFeed::new(state_dir, feed.kind, &feed.name);
        Self {
            feed,
            standing,
            offers,
            resources: Resources::new(ports),
            offered: None,
            in_force: String::new(),
            is_new: false,
            next_offer: Instant::now(),
            retry: None,
            saved,
        }
    }

    fn state(&self, services: Vec<Arc<Service>>, version: String) -> State {
        let source = Source::Feed(self.feed.name.as_str().into());
        let (failed, since) = (Health::default(), SystemTime::now());
        State { source, services, failed, version, since }
    }

    fn is_told_in_force(&self) -> bool {
        !self.is_new && self.resources.version == self.in_force
    }

    fn hello(&self) -> FeedHello {
        let (documents, endpoints) = self.resources.known();
        FeedHello {
            node: self.feed.node.clone().unwrap_or_else(host_name),
            release: env!("CARGO_PKG_VERSION").into(),
            version: self.in_force.clone(),
            documents,
            endpoints,
        }
    }

    async fn follow(
        &mut self,
        mut updates: Streaming<FeedUpdate>,
        answers: &mpsc::Sender<FeedAnswer>,
    ) -> Result<Infallible, SessionError> {
        let mut parts = Parts::default();
        loop {
            let deadline = parts.since.map(|since| since + UPDATE_TIME_MAX);
            tokio::select! {
                // Verdicts first: what comes in must not keep them from being told.
                biased;
                answer = self.step() => {
                    answers
                        .try_send(FeedAnswer { answer: Some(answer) })
                        .map_err(|_| SessionError::Unread)?;
                }
                message = updates.message() => {
                    let message = message
                        .map_err(|status| SessionError::Status(status.message().into()))?
                        .ok_or(SessionError::Ended)?;
                    if let Some(update) = parts.add(message)? {
                        self.take(update)?;
                    }
                }
                () = at(deadline) => return Err(SessionError::HalfAnUpdate),
            }
        }
    }

    fn take(&mut self, update: FeedUpdate) -> Result<(), NoUpdate> {
        let version = update.version.clone();
        let changed = self.resources.take(update)?;
        self.standing.told(&version, changed);
        self.is_new = true;
        Ok(())
    }

    /// Offers what is new, when it may, and returns what is to be told of it. May be cancelled at any time.
    async fn step(&mut self) -> Answer {
        loop {
            if let Some(Offered { verdict, .. }) = &mut self.offered {
                // Without a verdict the balancer ends.
                let verdict = verdict.await.unwrap_or(Err(Refused::Ending));
                if let Some(offered) = self.offered.take() {
                    return self.conclude(offered, verdict);
                }
            }
            tokio::select! {
                () = sleep_until(self.next_offer), if self.is_new => {
                    if let Some(answer) = self.offer() {
                        return answer;
                    }
                }
                () = self.saved.is_due(), if self.is_told_in_force() => {
                    self.saved.write(&self.resources.to_update());
                }
                () = at(self.retry) => (self.is_new, self.retry) = (true, None),
            }
        }
    }

    /// Offers what was told; if it is wrong, says so.
    fn offer(&mut self) -> Option<Answer> {
        (self.is_new, self.retry) = (false, None);
        self.next_offer = Instant::now() + self.feed.pace;
        let version = self.resources.version.clone();
        let services = match self.resources.services() {
            Ok(services) => services,
            Err(errors) => return Some(self.refuse(version, errors)),
        };
        let (answer, verdict) = oneshot::channel();
        let offer = Offer { state: self.state(services, version.clone()), answer };
        // There is room for one of each feed. Without anybody who takes it the balancer ends.
        if self.offers.try_send(offer).is_ok() {
            self.saved.offered(|| self.resources.to_update());
            self.offered = Some(Offered { version, verdict });
        }
        None
    }

    fn conclude(&mut self, offered: Offered, verdict: Verdict) -> Answer {
        let Offered { version, .. } = offered;
        self.saved.concluded(verdict.is_ok());
        match verdict {
            Ok(tables) => {
                self.in_force.clone_from(&version);
                self.standing.took();
                Answer::Ack(FeedAck { version, tables })
            }
            Err(refused) => {
                self.retry = Some(Instant::now() + RETRY_INTERVAL);
                let ours = Source::Feed(self.feed.name.as_str().into());
                let document = |service: &str| self.resources.document_of(service).map(Into::into);
                let errors = refused.errors(&ours, document);
                self.refuse(version, errors)
            }
        }
    }

    fn refuse(&mut self, version: String, errors: Vec<ResourceError>) -> Answer {
        let first = errors.first().map(told).unwrap_or_default();
        if self.standing.refuses(&first) {
            let (name, in_force) = (&self.feed.name, self.in_force());
            warn!(
                "feed {name:?}: version {version:?} is refused: {first}; {in_force} stays in force"
            );
        }
        Answer::Nack(FeedNack { version, in_force: self.in_force.clone(), errors })
    }
}

impl Parts {
    /// Adds a part. The update, if that was the last one.
    fn add(&mut self, part: FeedUpdate) -> Result<Option<FeedUpdate>, SessionError> {
        self.bytes += prost::Message::encoded_len(&part);
        if self.bytes > PARTS_BYTES_MAX {
            return Err(SessionError::LongUpdate);
        }
        self.since.get_or_insert_with(Instant::now);
        let is_last = !part.more;
        match &mut self.update {
            None => self.update = Some(part),
            Some(first) if first.version != part.version => {
                let (first, version) = (first.version.clone(), part.version);
                return Err(NoUpdate::OtherVersion(first, version).into());
            }
            Some(first) => {
                first.full |= part.full;
                first.documents.extend(part.documents);
                first.endpoints.extend(part.endpoints);
                first.documents_removed.extend(part.documents_removed);
                first.endpoints_removed.extend(part.endpoints_removed);
            }
        }
        Ok(if is_last { std::mem::take(self).update } else { None })
    }
}

pub(super) async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The machine's name; a feed's `node` says another.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().into()
}
