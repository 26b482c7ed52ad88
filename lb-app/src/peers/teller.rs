//! Tells the peers that ask, of services, and of flows as they come.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_core::continuity::TOLD_TIMES;
use lb_core::continuity::tracker::Report;
use lb_core::pool::units;
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};
use tracing::{debug, warn};

use super::channel::{self, Identity, PeerError, Saying, greet};
use super::message::{Packing, Reply, Request};
use super::pace::Pace;
use super::{ALIVE_INTERVAL, Shared};
use crate::memory;

/// How often workers' news are looked for: what a balancer that is killed has not told yet.
const NEWS_INTERVAL: Duration = Duration::from_millis(5);
/// News that are told at once, at most: so many flows each time.
const NEWS_MAX: usize = 5000;
/// How many times news a peer may be late by, before it has to ask for everything again: more than a
/// second.
const LATE_MAX: usize = 256;
/// Flows a second that one peer is told of, when it asks for all.
const TOLD_PER_SECOND: u32 = 1_000_000;
/// Parts of the flow table, of which one is looked through at a time: news do not wait for all.
const PARTS: usize = 2048;

/// Messages with what is new at a time.
type News = Arc<[Vec<u8>]>;
/// Callers that are greeted or told at once.
const CALLERS_MAX: usize = 2 * lb_config::PEERS_MAX;
/// How often the log says that a stranger has called.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);
/// Bytes of a request, at most.
const REQUEST_BYTES_MAX: usize = 64;
/// How often those who listen are told again of flows that go on: at least, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Answers peers until it is aborted.
pub(super) async fn tell(
    listener: TcpListener,
    peers: BTreeSet<IpAddr>,
    identity: Identity,
    shared: Shared,
) {
    let (news, _) = broadcast::channel(LATE_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(spread_news(news.clone(), shared.tables.clone()));
    let callers = Arc::new(Semaphore::new(CALLERS_MAX));
    let mut complain_after = Instant::now();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&callers).acquire_owned().await else { return };
        let (stream, caller) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("cannot take a peer's call: {error}");
                tokio::time::sleep(ALIVE_INTERVAL).await; // there may be no descriptor left
                continue;
            }
        };
        if !peers.contains(&caller.ip().to_canonical()) {
            if Instant::now() >= complain_after {
                warn!("{} calls, and is no [[peer]]", caller.ip());
                complain_after = Instant::now() + COMPLAINT_INTERVAL;
            }
            continue;
        }
        let session = Session { tables: shared.tables.clone(), news: news.subscribe() };
        tasks.spawn(async move {
            if let Err(error) = session.run(stream, identity).await {
                debug!("peer {caller} is told nothing more: {error}");
            }
            drop(permit);
        });
    }
}

/// Gives what workers have noted to all who listen.
async fn spread_news(to: broadcast::Sender<News>, tables: watch::Receiver<Option<Arc<Tables>>>) {
    let mut interval = interval(NEWS_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut packing: Option<Packing> = None;
    loop {
        interval.tick().await;
        let Some(tables) = tables.borrow().clone() else { continue };
        let now = memory::now();
        let next = || tables.tracker.next_news(now);
        let news = std::iter::from_fn(next).take(NEWS_MAX);
        if to.receiver_count() == 0 {
            news.for_each(drop);
            continue;
        }
        let mut news = news.peekable();
        if news.peek().is_none() {
            continue;
        }
        let packing = match &mut packing {
            Some(packing) if packing.is_of(&tables) => packing,
            other => other.insert(Packing::new(Arc::clone(&tables))),
        };
        news.for_each(|report| packing.add(&report));
        let flows = packing.finish().into_iter().map(Reply::Flows);
        let messages: Vec<_> = flows.filter_map(|flows| channel::encode(&flows).ok()).collect();
        let _ = to.send(messages.into()); // nobody listens any more
    }
}

/// A peer that has called.
#[derive(Debug)]
struct Session {
    tables: watch::Receiver<Option<Arc<Tables>>>,
    news: broadcast::Receiver<News>,
}

impl Session {
    async fn run(mut self, stream: TcpStream, identity: Identity) -> Result<(), PeerError> {
        let (mut hearing, mut saying) = greet(stream, identity, false, REQUEST_BYTES_MAX).await?;
        let mut alive = interval(ALIVE_INTERVAL);
        let mut listens = false;
        // What was asked for, and is not told yet.
        let mut asked = None;
        let mut again = Instant::now();
        let mut tables = self.tables.clone();
        loop {
            tokio::select! {
                request = hearing.hear() => match request? {
                    Request::State => self.tell_state(&mut saying).await?,
                    Request::Flows { all } => asked = Some(all),
                },
                // Before, there is nothing that could be told, nor is it known that there is nothing.
                there = are_there(&mut tables), if asked.is_some() => {
                    there?;
                    let all = asked.take().unwrap_or(false);
                    listens = true;
                    self.tell_flows(&mut saying, |report| all || report.is_own()).await?;
                    saying.say(&Reply::FlowsEnd).await?;
                    again = Instant::now() + self.period();
                }
                news = self.news.recv() => match news {
                    Ok(news) if listens => say_all(&mut saying, &news).await?,
                    Err(_) if listens => return Err(PeerError::Slow),
                    Ok(_) | Err(_) => {}
                },
                () = sleep_until(again), if listens => {
                    // Who has been silent since then has been told of.
                    let period = self.period();
                    let age_max = units(Tick::from(period)) + 1;
                    let is_meant = |report: &Report| report.is_own() && report.seen.age <= age_max;
                    self.tell_flows(&mut saying, is_meant).await?;
                    again = Instant::now() + period;
                }
                _ = alive.tick() => saying.say(&Reply::Alive).await?,
            }
        }
    }

    /// How often those who listen are told of all flows that go on.
    fn period(&self) -> Duration {
        let tables = self.tables.borrow();
        let services = tables.iter().flat_map(|tables| &tables.services);
        let shortest = services.map(|service| service.source.spec().idle_timeout()).min();
        let (least, most) = AGAIN;
        shortest.map_or(most, |it| it / u32::from(TOLD_TIMES)).clamp(least, most)
    }

    /// Says what services are like; before the first tables are in force, there are none.
    async fn tell_state(&self, saying: &mut Saying) -> Result<(), PeerError> {
        let tables = self.tables.borrow().clone();
        let services = tables.iter().flat_map(|tables| tables.remember());
        for service in services {
            let record = (&service).into();
            saying.say(&Reply::Service { now: memory::now().0, record }).await?;
        }
        saying.say(&Reply::StateEnd).await
    }

    /// Tells of all flows that are meant, and of what is new meanwhile.
    async fn tell_flows(
        &mut self,
        saying: &mut Saying,
        is_meant: impl Fn(&Report) -> bool,
    ) -> Result<(), PeerError> {
        let Some(tables) = self.tables.borrow().clone() else { return Ok(()) };
        let mut packing = Packing::new(Arc::clone(&tables));
        let mut pace = Pace::new(TOLD_PER_SECOND);
        for part in 0..PARTS {
            if tables.tracker.is_empty() {
                break;
            }
            let mut told = 0;
            tables.tracker.reports((part, PARTS), memory::now(), |report| {
                if is_meant(&report) {
                    packing.add(&report);
                    told += 1;
                }
            });
            if part + 1 == PARTS || told > 0 {
                for flows in packing.finish() {
                    saying.say(&Reply::Flows(flows)).await?;
                }
            }
            loop {
                match self.news.try_recv() {
                    Ok(news) => say_all(saying, &news).await?,
                    Err(TryRecvError::Lagged(_)) => return Err(PeerError::Slow),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            pace.keep(told).await;
        }
        Ok(())
    }
}

async fn are_there(tables: &mut watch::Receiver<Option<Arc<Tables>>>) -> Result<(), PeerError> {
    tables.wait_for(Option::is_some).await.map(drop).map_err(|_| PeerError::HungUp) // we are leaving
}

async fn say_all(saying: &mut Saying, news: &[Vec<u8>]) -> Result<(), PeerError> {
    for message in news {
        saying.say_encoded(message).await?;
    }
    Ok(())
}
