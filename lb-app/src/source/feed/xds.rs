//! A control plane that speaks xDS: one call, in either variant.
//!
//! What it says and what that means is `lb_xds`'s. Here is when things are said, and what control is
//! offered.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_config::Feed;
use lb_core::model::{Health, Service};
use lb_xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use lb_xds::{
    Delta, Keys, Kind, MESSAGE_BYTES_MAX, Node, Protocol, Saved, Services, StateOfTheWorld, Store,
    summary,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use tracing::{info, warn};

use super::saved::SavedFeed;
use super::session::{RETRY_INTERVAL, SessionError, at, host_name};
use super::standing::Standing;
use super::{Caller, Place, backoff, link};
use crate::source::{Offer, Refused, Source, State, Verdict};

/// Requests that the control plane has not read yet.
const REQUESTS_MAX: usize = 64;
/// How long what a service needs may be missing before that is said (as the protocol recommends).
const MISSING_TIME_MAX: Duration = Duration::from_secs(15);
/// Listeners that are named then.
const MISSING_TOLD_MAX: usize = 5;
/// Notes that are remembered, so that they are told once.
const NOTES_MAX: usize = 1000;

type Client = AggregatedDiscoveryServiceClient<Channel>;
type Answers<P> = Result<Response<Streaming<<P as Protocol>::Answer>>, Status>;

/// How a variant is called.
pub(super) trait Variant: Protocol<Request: Send, Answer: Send> + Send + 'static {
    fn new(node: Node) -> Self;

    fn call(
        client: &mut Client,
        requests: ReceiverStream<Self::Request>,
    ) -> impl Future<Output = Answers<Self>> + Send;
}

impl Variant for StateOfTheWorld {
    fn new(node: Node) -> Self {
        Self::new(node)
    }

    async fn call(client: &mut Client, requests: ReceiverStream<Self::Request>) -> Answers<Self> {
        client.stream_aggregated_resources(requests).await
    }
}

impl Variant for Delta {
    fn new(node: Node) -> Self {
        Self::new(node)
    }

    async fn call(client: &mut Client, requests: ReceiverStream<Self::Request>) -> Answers<Self> {
        client.delta_aggregated_resources(requests).await
    }
}

/// A feed: what is known of it outlives the calls.
pub(super) struct Session<P: Variant> {
    pub(super) feed: Feed,
    standing: Arc<Standing>,
    offers: mpsc::Sender<Offer>,
    protocol: P,
    store: Store,
    /// What was told last, as the control plane calls it; and what of it is in force.
    version: String,
    in_force: String,
    /// What control has taken, or has been offered, and not answered yet.
    shown: Shown,
    offered: Option<oneshot::Receiver<Verdict>>,
    /// Something was told that was not offered yet.
    is_new: bool,
    next_offer: Instant,
    /// When the last one is to be offered again, which control has refused.
    retry: Option<Instant>,
    saved: SavedFeed<Saved>,
    /// Refusals that wait, by kind: the control plane would answer them with the same at once.
    held: [Option<(Instant, P::Request)>; 3],
    /// What was said last of refusals, by kind.
    refusals: [String; 3],
    notes: BTreeSet<String>,
    /// When it is looked for what services wait for, and what was said of that.
    next_look: Option<Instant>,
    missing: String,
}

/// What of services control is to know.
#[derive(Clone, Debug, Default)]
struct Shown {
    services: Vec<Arc<Service>>,
    failed: Health,
}

impl Shown {
    fn of(store: &Store) -> Self {
        let Services { services, failed } = store.services();
        Self { services, failed: Health::new(failed) }
    }

    fn is_same(&self, other: &Self) -> bool {
        let mut both = self.services.iter().zip(&other.services);
        self.services.len() == other.services.len()
            && both.all(|(one, other)| Arc::ptr_eq(one, other))
            && self.failed == other.failed
    }
}

impl<P: Variant> Caller for Session<P> {
    fn standing(&self) -> &Standing {
        &self.standing
    }

    fn in_force(&self) -> String {
        match self.in_force.as_str() {
            "" => "what is in force of it".into(),
            version => format!("version {version:?}"),
        }
    }

    async fn call(&mut self) -> Result<Infallible, SessionError> {
        let channel = link::connect(&self.feed).await?;
        let mut client = Client::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (requests, said) = mpsc::channel(REQUESTS_MAX);
        self.held = [None, None, None];
        for request in self.protocol.begin(&self.store) {
            requests.try_send(request).map_err(|_| SessionError::Unread)?;
        }
        // A control plane that has nothing to say yet is silent: keepalives tell whether it is there.
        let answers = P::call(&mut client, ReceiverStream::new(said)).await;
        let answers = answers.map_err(|status| SessionError::Status(status.message().into()))?;
        self.standing.found();
        info!("feed {:?}: {} is there", self.feed.name, self.feed.address);
        self.follow(answers.into_inner(), &requests).await
    }

    async fn settle(&mut self) {
        self.next_look = None;
        while self.is_new || self.offered.is_some() {
            self.step().await;
        }
        if self.is_told_in_force() {
            self.saved.settle(|| Saved::of(&self.store, &self.protocol, &self.version));
        }
    }

    fn remember(&mut self) -> Option<State> {
        let saved = self.saved.read()?;
        self.version.clone_from(&saved.version);
        let troubles = saved.restore(&mut self.store, &mut self.protocol);
        if !troubles.is_empty() {
            let (name, why) = (&self.feed.name, summary(&troubles));
            warn!("feed {name:?}: some of what it told before is not used: {why}");
        }
        // If it is not in force, it is offered again.
        self.is_new = true;
        Some(self.state(Shown::of(&self.store)))
    }

    fn begin(&mut self) {
        self.is_new = false;
        self.shown = Shown::of(&self.store);
        self.in_force.clone_from(&self.version);
        self.standing.told(&self.version, 0);
    }
}

impl<P: Variant> Session<P> {
    pub(super) fn new(place: Place) -> Self {
        let Place { feed, standing, offers, state_dir, ports } = place;
        let saved = SavedFeed::new(state_dir, feed.kind, &feed.name);
        let node = Node {
            id: feed.node.clone().unwrap_or_else(host_name),
            user_agent_name: "weir".into(),
            ..Node::default()
        };
        let defaults = feed
            .forward
            .map_or_else(Keys::default, |mode| Keys::default().with("forward", mode.name()));
        Self {
            feed,
            standing,
            offers,
            protocol: <P as Variant>::new(node),
            store: Store::new(defaults, ports),
            version: String::new(),
            in_force: String::new(),
            shown: Shown::default(),
            offered: None,
            is_new: false,
            next_offer: Instant::now(),
            retry: None,
            saved,
            held: [None, None, None],
            refusals: Default::default(),
            notes: BTreeSet::new(),
            next_look: None,
            missing: String::new(),
        }
    }

    async fn follow(
        &mut self,
        mut answers: Streaming<P::Answer>,
        requests: &mpsc::Sender<P::Request>,
    ) -> Result<Infallible, SessionError> {
        let send = |request| requests.try_send(request).map_err(|_| SessionError::Unread);
        loop {
            let due = self.held.iter().flatten().map(|(due, _)| *due).min();
            tokio::select! {
                biased;
                () = self.step() => {}
                () = at(due) => {
                    for held in &mut self.held {
                        if let Some((_, request)) = held.take_if(|(due, _)| *due <= Instant::now()) {
                            send(request)?;
                        }
                    }
                }
                answer = answers.message() => {
                    let answer = answer
                        .map_err(|status| SessionError::Status(status.message().into()))?
                        .ok_or(SessionError::Ended)?;
                    for request in self.take(answer) {
                        send(request)?;
                    }
                }
            }
        }
    }

    /// Takes an answer. What is to be said at once.
    fn take(&mut self, answer: P::Answer) -> Vec<P::Request> {
        let reply = self.protocol.receive(&mut self.store, answer);
        let summary = reply.summary();
        for note in reply.notes {
            self.note(note);
        }
        let Some(kind) = reply.kind else { return Vec::new() };
        self.standing.told(&reply.version, reply.resources);
        self.refuse(kind, &reply.version, summary);
        self.version = reply.version;
        self.is_new = true;
        self.next_look = Some(Instant::now() + MISSING_TIME_MAX);
        let held = &mut self.held[kind as usize];
        // A newer answer has come: what was to be said of the one before is void.
        *held = None;
        let mut requests = Vec::new();
        match reply.verdict {
            Some(verdict) if reply.refusals > 1 => {
                let pause = backoff(reply.refusals, fastrand::f64());
                *held = Some((Instant::now() + pause, verdict));
            }
            verdict => requests.extend(verdict),
        }
        requests.extend(reply.requests);
        requests
    }

    fn note(&mut self, note: String) {
        if self.notes.len() >= NOTES_MAX {
            self.notes.clear();
        }
        if !self.notes.contains(&note) {
            info!("feed {:?}: {note}", self.feed.name);
            self.notes.insert(note);
        }
    }

    /// Says why an answer is refused, if that is news; an empty text: it is not.
    fn refuse(&mut self, kind: Kind, version: &str, why: String) {
        let before = &mut self.refusals[kind as usize];
        if !why.is_empty() {
            let is_news = *before != why;
            self.standing.refuses(&why);
            if is_news {
                let name = &self.feed.name;
                warn!("feed {name:?}: version {version:?} is refused, in part at least: {why}");
            }
        }
        *before = why;
    }

    /// Offers what is new, when it may, and takes what control says. May be cancelled at any time.
    async fn step(&mut self) {
        if let Some(verdict) = &mut self.offered {
            // Without a verdict the balancer ends.
            let verdict = verdict.await.unwrap_or(Err(Refused::Ending));
            self.offered = None;
            self.conclude(verdict);
            return;
        }
        tokio::select! {
            () = sleep_until(self.next_offer), if self.is_new => self.offer(),
            () = at(self.retry) => (self.is_new, self.retry) = (true, None),
            () = at(self.next_look) => self.look(),
            () = self.saved.is_due(), if self.is_told_in_force() => {
                self.saved.write(&Saved::of(&self.store, &self.protocol, &self.version));
            }
        }
    }

    fn is_told_in_force(&self) -> bool {
        !self.is_new && self.offered.is_none() && self.retry.is_none()
    }

    fn state(&self, shown: Shown) -> State {
        State {
            source: Source::Feed(self.feed.name.as_str().into()),
            services: shown.services,
            failed: shown.failed,
            version: self.version.clone(),
            since: SystemTime::now(),
        }
    }

    fn offer(&mut self) {
        self.is_new = false;
        let new = Shown::of(&self.store);
        if self.retry.is_none() && new.is_same(&self.shown) {
            self.in_force.clone_from(&self.version);
            self.saved.concluded(true);
            return;
        }
        self.retry = None;
        self.next_offer = Instant::now() + self.feed.pace;
        self.shown = new.clone();
        let state = self.state(new);
        let (answer, verdict) = oneshot::channel();
        // There is room for one of each feed. Without anybody who takes it the balancer ends.
        if self.offers.try_send(Offer { state, answer }).is_ok() {
            self.saved.offered(|| Saved::of(&self.store, &self.protocol, &self.version));
            self.offered = Some(verdict);
        }
    }

    fn conclude(&mut self, verdict: Verdict) {
        self.saved.concluded(verdict.is_ok());
        match verdict {
            Ok(_) => {
                self.in_force.clone_from(&self.version);
                if self.refusals.iter().all(String::is_empty) {
                    self.standing.took();
                }
            }
            Err(refused) => {
                self.retry = Some(Instant::now() + RETRY_INTERVAL);
                let why = refused.to_string();
                if self.standing.refuses(&why) {
                    let (name, in_force) = (&self.feed.name, self.in_force());
                    let version = &self.version;
                    warn!("feed {name:?}: version {version:?}: {why}; {in_force} stays in force");
                }
            }
        }
    }

    /// Says what services wait for, if that is news.
    fn look(&mut self) {
        self.next_look = None;
        let missing: Vec<String> = self
            .store
            .waiting()
            .take(MISSING_TOLD_MAX)
            .map(|(listener, what)| format!("listener {listener:?} waits for {what}"))
            .collect();
        let missing = missing.join("; ");
        if !missing.is_empty() && missing != self.missing {
            warn!("feed {:?}: {missing}", self.feed.name);
        }
        self.missing = missing;
    }
}
