//! The other balancers of the site: each tells the others of the flows that it tracks, so that no flow
//! notices by which balancer it comes.
//!
//! In reading order:
//! * `channel` is a connection that nobody else can read, write or repeat; `message` is what is said.
//! * `teller` answers whoever calls and has the key; `hearer` calls one peer, asks, and listens.
//!
//! A balancer asks a peer for the state of services once, at its start, and goes on from there: so it
//! has the transitions that it missed. Then it asks for all flows, and hears of new ones as they come.
//! All this runs on a thread of its own, by the kernel's sockets: a peer that is late, gone or lying
//! keeps up neither the data path nor control.

mod channel;
mod hearer;
mod message;
mod pace;
mod teller;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lb_config::Peering;
use lb_core::continuity::Remembered;
use lb_core::tables::Tables;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::error;

use channel::Identity;
use hearer::Hearer;
use message::Heard;

/// How often somebody who has nothing to say says so.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// Who is talked to, and where we are called.
#[derive(Clone, Debug)]
struct Orders {
    peering: Peering,
    listener: Arc<TcpListener>,
}

/// How we stand with a peer.
#[derive(Clone, Debug, Default)]
struct Standing {
    /// It has been talked to.
    is_reached: bool,
    /// It has told what services are like, or could not be asked.
    is_asked: bool,
    /// What services were like.
    state: Option<Vec<Remembered>>,
    /// It has told of all its flows, and goes on.
    is_in_step: bool,
    heard: Heard,
}

type Findings = BTreeMap<SocketAddr, Standing>;

/// What the tasks of the thread have in common.
#[derive(Clone, Debug)]
struct Shared {
    /// Those in force; absent: none yet.
    tables: watch::Receiver<Option<Arc<Tables>>>,
    findings: watch::Sender<Findings>,
}

/// The running exchange. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Peers {
    orders: Option<watch::Sender<Option<Orders>>>,
    tables: watch::Sender<Option<Arc<Tables>>>,
    findings: watch::Receiver<Findings>,
    thread: Option<JoinHandle<()>>,
}

/// Peers that may be talked to: nothing can fail any more.
#[derive(Debug)]
pub(crate) struct Prepared(Option<Orders>);

/// Why no peer can call.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; write an address of this balancer as `peer_listen`")]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl Peers {
    /// Starts the thread. Nobody is talked to yet. `hash` says whether two balancers hash flows alike.
    pub(crate) fn start(hash: u64) -> io::Result<Self> {
        let (orders, ordered) = watch::channel(None);
        let (tables, in_force) = watch::channel(None);
        let (found, findings) = watch::channel(Findings::default());
        let shared = Shared { tables: in_force, findings: found };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("peers".into()).spawn(move || {
            runtime.block_on(run(ordered, hash, &shared));
        })?;
        Ok(Self { orders: Some(orders), tables, findings, thread: Some(thread) })
    }

    /// Listens where `peering` says; what is listened to already stays so.
    pub(crate) fn prepare(&self, peering: Option<&Peering>) -> Result<Prepared, ListenError> {
        let Some(peering) = peering else { return Ok(Prepared(None)) };
        let current = self.orders.as_ref().and_then(|orders| orders.borrow().clone());
        let same = current.filter(|orders| orders.peering.listen == peering.listen);
        let address = peering.listen;
        let listener = match same {
            Some(orders) => orders.listener,
            None => Arc::new(listen(address).map_err(|source| ListenError { address, source })?),
        };
        Ok(Prepared(Some(Orders { peering: peering.clone(), listener })))
    }

    /// Talks to these from now on.
    pub(crate) fn talk(&self, prepared: Prepared) {
        if let Some(orders) = &self.orders {
            orders.send_replace(prepared.0);
        }
    }

    /// What peers say that services are like: of all that are reached within `patience`, and then say it
    /// within ten times that.
    pub(crate) fn first_states(
        &self,
        patience: Duration,
    ) -> impl Future<Output = Vec<Vec<Remembered>>> + use<> {
        let count = self.count();
        let mut findings = self.findings.clone();
        async move {
            let all_called = |findings: &Findings| {
                let is_called = |it: &&Standing| it.is_reached || it.is_asked;
                findings.values().filter(is_called).count() >= count
            };
            let all_heard = |findings: &Findings| {
                findings.values().all(|standing| standing.is_asked || !standing.is_reached)
            };
            // Whether they all answer or not: what is known is taken.
            let _ = timeout(patience, findings.wait_for(all_called)).await;
            let _ = timeout(10 * patience, findings.wait_for(all_heard)).await;
            let findings = findings.borrow();
            let states = findings.values().filter_map(|standing| standing.state.clone());
            states.filter(|state| !state.is_empty()).collect()
        }
    }

    /// Waits until all who have told of services have told of their flows, for at most `patience`.
    pub(crate) async fn first_flows(&mut self, patience: Duration) {
        let all = |findings: &Findings| {
            let mut heard = findings.values().filter(|standing| standing.state.is_some());
            heard.all(|standing| standing.is_in_step)
        };
        let _ = timeout(patience, self.findings.wait_for(all)).await;
    }

    /// These tables are in force now.
    pub(crate) fn follow(&self, tables: &Arc<Tables>) {
        self.tables.send_replace(Some(Arc::clone(tables)));
    }

    /// Names of counters, and what they count.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 4] {
        let findings = self.findings.borrow();
        let sum = |pick: fn(&Standing) -> u64| findings.values().map(pick).sum();
        [
            ("peers_in_step", sum(|standing| standing.is_in_step.into())),
            ("peers.heard", sum(|standing| standing.heard.flows)),
            ("peers.refused", sum(|standing| standing.heard.refused)),
            ("peers.unknown", sum(|standing| standing.heard.unknown)),
        ]
    }

    /// How many there are.
    fn count(&self) -> usize {
        let orders = self.orders.as_ref().and_then(|orders| orders.borrow().clone());
        orders.map_or(0, |orders| orders.peering.peers.len())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread of the peers ended early");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Does what is ordered, until there are no orders any more.
async fn run(mut orders: watch::Receiver<Option<Orders>>, hash: u64, shared: &Shared) {
    let mut tasks = JoinSet::new();
    loop {
        let current = orders.borrow_and_update().clone();
        // Aborts what was ordered before.
        tasks.shutdown().await;
        shared.findings.send_replace(Findings::default());
        if let Some(orders) = current {
            begin(&mut tasks, &orders, hash, shared);
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

fn begin(tasks: &mut JoinSet<()>, orders: &Orders, hash: u64, shared: &Shared) {
    let Peering { listen, key, peers } = &orders.peering;
    let identity = Identity { key: *key, hash };
    let listener = orders.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
    match listener {
        Ok(listener) => {
            let callers = peers.iter().map(|peer| peer.ip().to_canonical()).collect();
            tasks.spawn(teller::tell(listener, callers, identity, shared.clone()));
        }
        Err(error) => error!("no peer can call: {error}"),
    }
    for peer in peers {
        let hearer = Hearer {
            peer: *peer,
            from: *listen,
            identity,
            shared: shared.clone(),
            trouble: None,
            is_new: true,
        };
        tasks.spawn(hearer.run());
    }
}

#[cfg(test)]
mod tests;
