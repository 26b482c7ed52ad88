//! The API: what programs, and the command, see of the balancer and tell it.
//!
//! In reading order:
//! * `proto/weir/v1/*.proto` are the reference; [`proto`] is generated from them.
//! * `listen` makes the socket, and takes it away.
//! * `connections` bounds how many clients there are, and how long each may take; by TLS they show who they
//!   are.
//! * `view` is what control shows after each change: all that is read is read from the newest one, so
//!   control does nothing for it. `state` puts it into messages.
//! * `server` answers. What it cannot answer from the view it asks of control, one [`Ask`] at a time.
//!
//! It has a thread of its own: neither the data path nor control waits for a client.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use lb_config::ApiAddress;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::control::{ChangeError, Which};
use crate::source::{Application, ApplyError};
use crate::tls::{Acceptor, TlsError};

mod connections;
pub(crate) mod explain;
pub(crate) mod flow;
mod listen;
mod plan;
pub(crate) mod proto;
mod server;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod view;

pub(crate) use connections::{Wire, incoming};
pub(crate) use listen::Listener;
pub(crate) use state::port;
pub(crate) use view::View;

/// Questions that may wait for control.
const ASKS_MAX: usize = 16;

/// What only control can answer.
#[derive(Debug)]
pub(crate) enum Ask {
    /// What the ports have counted.
    Ports(oneshot::Sender<Vec<proto::Port>>),
    /// The file is to be loaded again.
    Reload(oneshot::Sender<proto::ReloadResponse>),
    /// This is what the API is to want from now on.
    Apply(Application, oneshot::Sender<Applied>),
    /// These backends are to be drained; or, if not, no more.
    Drain(Which, bool, oneshot::Sender<Result<Drained, ChangeError>>),
}

/// What became of [`Ask::Drain`].
#[derive(Debug)]
pub(crate) struct Drained {
    /// The newest version, and the one that every worker goes by.
    pub(crate) version: u64,
    pub(crate) in_force: u64,
    /// Those that have the backends.
    pub(crate) services: Vec<String>,
}

/// What became of [`Ask::Apply`].
#[derive(Debug)]
pub(crate) struct Applied {
    /// The version that it is applied as.
    pub(crate) outcome: Result<u64, ApplyError>,
    /// The one that is applied now.
    pub(crate) latest: u64,
    /// The newest version of the tables, and the one that every worker goes by.
    pub(crate) version: u64,
    pub(crate) in_force: u64,
}

/// Why there is no API. One line: the cause, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error(
        "{} is in use by another process; stop it, or write another `grpc` in [api]",
        .0.display()
    )]
    SocketInUse(PathBuf),
    #[error(
        "{} is there, and is no socket; remove it, or write another `grpc` in [api]",
        .0.display()
    )]
    NotASocket(PathBuf),
    #[error("cannot serve the API at {address}: {source}; write another `grpc` in [api]")]
    Listen { address: ApiAddress, source: io::Error },
    #[error("cannot serve the API by TLS: {0}; see [api.tls]")]
    Tls(#[from] TlsError),
    #[error("cannot start the API's thread: {0}")]
    Thread(#[from] io::Error),
}

/// The running API. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Api {
    asked: mpsc::Receiver<Ask>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Serves as `config` says, of what `view` shows. Until it shows something, the balancer is said to
    /// start.
    pub(crate) fn start(
        config: &lb_config::Api,
        view: watch::Receiver<Option<Arc<View>>>,
    ) -> Result<Self, ApiError> {
        let tls = config.tls.as_ref().map(|tls| Acceptor::new(tls.into())).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _runtime = runtime.enter();
            Listener::open(&config.grpc)?
        };
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("api".into()).spawn(move || {
            // Ended from either side: by `stop`, or because there is nobody to stop it any more.
            let stopped = async { drop(stopped.await) };
            let serve = server::serve(listener, tls, view, asks, stopped);
            if let Err(error) = runtime.block_on(serve) {
                error!("the API has ended: {error}");
            }
        })?;
        Ok(Self { asked, stop: Some(stop), thread: Some(thread) })
    }

    /// The next question for control. Nothing is lost when this is cancelled.
    pub(crate) async fn next(&mut self) -> Ask {
        match self.asked.recv().await {
            Some(ask) => ask,
            // It has ended, and has said why.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop = None;
        self.asked.close();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the API's thread ended early");
        }
    }
}
