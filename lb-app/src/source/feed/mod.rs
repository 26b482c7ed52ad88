//! Control planes: each feed is a client of one, and yields what that wants as whole states.
//!
//! In reading order:
//! * `resources` is all that a control plane has told, part by part, and what services that makes.
//! * `link` is the connection to it.
//! * `session` is one call: updates come, and answers go; `xds` is the same for control planes that
//!   speak xDS.
//! * `standing` is what is shown of a feed.
//!
//! They have a thread of their own: neither the data path nor control waits for a control plane. What comes while
//! control makes tables is folded into what was told before, so the next state has it all, and no queue grows.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lb_config::{Config, Feed, FeedKind, PortConfig};
use lb_xds::{Delta, StateOfTheWorld};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use super::{Offer, State, Wanted};

mod link;
mod resources;
mod saved;
mod session;
mod standing;
mod xds;

pub(crate) use standing::Standing;

use session::{Session, SessionError};

/// Offers that wait for control: each feed has one under way.
const OFFERS_MAX: usize = lb_config::FEEDS_MAX;
/// How long a feed waits before it calls again: twice as long each time, and by chance up to half of it
/// less, so that not all balancers come back at once.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Who has been talked to for so long is called again without much waiting.
const GOOD_CALL: Duration = Duration::from_secs(30);

/// The running feeds. Dropping them ends them.
#[derive(Debug)]
pub(crate) struct Feeds {
    offers: mpsc::Receiver<Offer>,
    standings: Arc<[Arc<Standing>]>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Feeds {
    /// Starts the feeds of `config`. What they had told the process before joins what is wanted.
    pub(crate) fn start(config: &Config, wanted: &mut Wanted) -> io::Result<Self> {
        let (offer, offers) = mpsc::channel(OFFERS_MAX);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = Vec::new();
        let mut standings = Vec::new();
        for feed in &config.feeds {
            let standing = Arc::new(Standing::new(feed.name.clone()));
            standings.push(Arc::clone(&standing));
            let place = Place {
                feed: feed.clone(),
                standing,
                offers: offer.clone(),
                state_dir: &config.dataplane.state_dir,
                ports: &config.ports,
            };
            tasks.push(match (feed.kind, feed.incremental) {
                (FeedKind::Grpc, _) => task(Session::new(place), wanted),
                (FeedKind::Xds, false) => task(xds::Session::<StateOfTheWorld>::new(place), wanted),
                (FeedKind::Xds, true) => task(xds::Session::<Delta>::new(place), wanted),
            });
        }
        let mut thread = None;
        if !tasks.is_empty() {
            // It must not be dropped here, within another one: only made where there is a thread for it.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let run = move || {
                runtime.block_on(async {
                    let mut tasks: JoinSet<()> = tasks.into_iter().collect();
                    tokio::select! {
                        Some(ended) = tasks.join_next() => error!("a feed has ended: {ended:?}"),
                        _ = stopped => {}
                    }
                });
            };
            thread = Some(thread::Builder::new().name("feeds".into()).spawn(run)?);
        }
        Ok(Self { offers, standings: standings.into(), stop: Some(stop), thread })
    }

    /// The next state that a feed offers. Nothing is lost when this is cancelled.
    pub(crate) async fn next(&mut self) -> Offer {
        match self.offers.recv().await {
            Some(offer) => offer,
            // There are no feeds, or their thread has ended and has said why.
            None => std::future::pending().await,
        }
    }

    /// How the feeds are.
    pub(crate) fn standings(&self) -> &Arc<[Arc<Standing>]> {
        &self.standings
    }
}

impl Drop for Feeds {
    fn drop(&mut self) {
        self.stop = None;
        self.offers.close();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the feeds' thread ended early");
        }
    }
}

/// What a client of a control plane is given.
struct Place<'a> {
    feed: Feed,
    standing: Arc<Standing>,
    offers: mpsc::Sender<Offer>,
    state_dir: &'a Path,
    ports: &'a [PortConfig],
}

/// A client of a control plane, whatever that speaks.
trait Caller: Send {
    fn standing(&self) -> &Standing;

    /// What is in force, in words.
    fn in_force(&self) -> String;

    /// Calls, and follows what is told until that is over.
    fn call(&mut self) -> impl Future<Output = Result<Infallible, SessionError>> + Send;

    /// What was in force in the process before, if it still can be.
    fn remember(&mut self) -> Option<State>;

    /// What was remembered is in force.
    fn begin(&mut self);

    /// When the call is over: what has come whole is put in force all the same.
    fn settle(&mut self) -> impl Future<Output = ()> + Send;
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What follows the control plane; what that had told before joins what is wanted.
fn task(mut session: impl Caller + 'static, wanted: &mut Wanted) -> Task {
    if let Some(state) = session.remember() {
        match wanted.with(state) {
            Ok(both) => {
                *wanted = both;
                session.begin();
            }
            Err(error) => {
                warn!("feed {:?}: what it told before: {error}", session.standing().name);
            }
        }
    }
    Box::pin(follow(session))
}

/// Keeps calling the control plane. What is in force stays, however long it is away.
async fn follow(mut session: impl Caller) {
    let mut failures = 0;
    loop {
        let start = Instant::now();
        let error = match session.call().await {
            Err(error) => error,
            Ok(never) => match never {},
        };
        if session.standing().lost(&error.to_string()) {
            let (name, version) = (&session.standing().name, session.in_force());
            warn!("feed {name:?}: {error}; {version} stays in force, and it is tried again");
        }
        session.settle().await;
        failures = if start.elapsed() > GOOD_CALL { 0 } else { failures + 1 };
        sleep(backoff(failures, fastrand::f64())).await;
    }
}

/// How long to wait after so many failures in a row; `chance` is from 0 to 1.
fn backoff(failures: u32, chance: f64) -> Duration {
    let most = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    most.mul_f64(1.0 - chance / 2.0)
}

#[cfg(test)]
pub(super) mod testing {
    //! A feed without a session.

    use std::sync::Arc;

    use lb_config::PortConfig;
    use lb_core::model::Service;

    use super::resources::Resources;
    use crate::api::proto::FeedUpdate;

    /// What services an update makes by itself, if it is one, and they are valid.
    pub(in crate::source) fn services(
        ports: &[PortConfig],
        update: FeedUpdate,
    ) -> Option<Vec<Arc<Service>>> {
        let mut resources = Resources::new(ports);
        resources.take(update).ok()?;
        resources.services().ok()
    }
}
#[cfg(test)]
mod tests;
