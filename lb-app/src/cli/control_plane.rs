//! `weir control-plane`

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Arc;

use lb_config::ApiAddress;
use tokio::sync::watch;
use tracing::info;

use super::Failure;
use crate::api::{ApiError, Listener};
use crate::plane;
use crate::tls::{Acceptor, ServerFiles};

/// What `weir control-plane` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its `*.toml` have services, and `SERVICE.endpoints` a service's backends, a line each:
    /// `ADDRESS[:PORT] [weight=N] [drain]`.
    folder: PathBuf,
    /// Where balancers call: a Unix socket, or an address with a port.
    #[arg(long, value_name = "ADDRESS", default_value = "unix:/run/weir/control-plane.sock")]
    listen: ApiAddress,
    /// The control plane's certificate (PEM): with it, only TLS is spoken.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// What balancers' certificates have to be signed by (PEM). Absent: they need none.
    #[arg(long, value_name = "FILE", requires = "cert")]
    client_ca: Option<PathBuf>,
}

/// Tells balancers what the directory has.
pub(crate) fn control_plane(args: Args) -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let tls = tls(&args)?;
    if let ApiAddress::Tcp(address) = &args.listen
        && tls.is_none()
        && !address.ip().is_loopback()
    {
        return Err(format!(
            "{address} is reached through the network: add --cert and --key, or listen on a loopback \
             address or a Unix socket"
        )
        .into());
    }
    let contents = plane::read(&args.folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = Listener::open(&args.listen).map_err(in_words)?;
        info!("version {}, at {}", contents.version, args.listen);
        let (shown, seen) = watch::channel(Arc::new(contents));
        tokio::select! {
            ended = plane::serve(listener, tls, seen) => Ok(ended?),
            () = plane::watch_folder(args.folder, shown) => Ok(()),
        }
    })
}

/// Why nobody can call, and what to do.
fn in_words(error: ApiError) -> String {
    match error {
        ApiError::SocketInUse(path) => {
            format!("{} is in use by another process; name another with --listen", path.display())
        }
        ApiError::NotASocket(path) => {
            format!("{} is there, and is no socket; name another with --listen", path.display())
        }
        ApiError::Listen { address, source } => {
            format!("cannot listen at {address}: {source}; name another with --listen")
        }
        ApiError::Tls(error) => error.to_string(),
        ApiError::Thread(error) => error.to_string(),
    }
}

fn tls(args: &Args) -> Result<Option<Acceptor>, Failure> {
    let (Some(cert), Some(key)) = (&args.cert, &args.key) else { return Ok(None) };
    let (cert, key, client_ca) = (cert.clone(), key.clone(), args.client_ca.clone());
    Ok(Some(Acceptor::new(ServerFiles { cert, key, client_ca })?))
}
