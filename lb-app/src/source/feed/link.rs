//! The connection to a control plane.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lb_config::{Feed, FeedAddress, FeedTls};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::tls::{TlsError, client_config, innermost};

/// How long a control plane may take to accept us, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How often one that is silent is asked whether it is there, and how long it may take to say so.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that may be on their way to us.
const WINDOW_BYTES: u32 = 4 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("no control plane can be reached at {address}: {cause}")]
    Unreachable { address: FeedAddress, cause: String },
}

/// Connects to where `feed` says. Files are read each time: certificates are renewed.
pub(crate) async fn connect(feed: &Feed) -> Result<Channel, LinkError> {
    let unreachable = |error: tonic::transport::Error| LinkError::Unreachable {
        address: feed.address.clone(),
        cause: innermost(&error),
    };
    let uri = match &feed.address {
        // The name is for HTTP only: the connector knows where to go.
        FeedAddress::Unix(_) => "http://weir".to_owned(),
        other => other.to_string(),
    };
    let mut endpoint = Endpoint::from_shared(uri)
        .map_err(unreachable)?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIME_MAX)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    if let Some(FeedTls { ca, identity }) = &feed.tls {
        let identity = identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        endpoint = endpoint.tls_config(client_config(ca, identity)?).map_err(unreachable)?;
    }
    let connecting = async {
        let FeedAddress::Unix(path) = &feed.address else { return endpoint.connect().await };
        let path = path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        endpoint.connect_with_connector(connector).await
    };
    // Tonic's own limit ends with TCP's part.
    let connected = timeout(CONNECT_TIME_MAX, connecting).await;
    let silent = |_| LinkError::Unreachable {
        address: feed.address.clone(),
        cause: format!("no answer within {}s", CONNECT_TIME_MAX.as_secs()),
    };
    connected.map_err(silent)?.map_err(unreachable)
}
