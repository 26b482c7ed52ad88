//! Has a web server a page of a good status?

use std::net::SocketAddr;

use ::http::header::{CONNECTION, HOST, USER_AGENT};
use ::http::{HeaderValue, Request};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lb_core::model::HttpProbe;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::failure::Failure;
use super::probe::Route;
use super::{tcp, tls};

/// Bytes of a response's head, at most.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How we are called in the logs of backends.
pub(super) const AGENT: HeaderValue = HeaderValue::from_static("weir-health-check");

pub(super) async fn check(
    route: &Route<'_>,
    probe: &HttpProbe,
    connector: &TlsConnector,
) -> Result<(), Failure> {
    let request = request(route.to, probe).map_err(|error| Failure::Http(error.to_string()))?;
    let stream = tcp::connect(route).await?;
    let status = if probe.tls {
        let host = probe.host.as_deref();
        fetch(tls::wrap(connector, stream, route.to.ip(), host).await?, request).await?
    } else {
        fetch(stream, request).await?
    };
    if probe.expects(status) { Ok(()) } else { Err(Failure::Status(status)) }
}

fn request(address: SocketAddr, probe: &HttpProbe) -> Result<Request<String>, ::http::Error> {
    let host = probe.host.clone().unwrap_or_else(|| address.to_string());
    Request::get(&probe.path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(String::new())
}

/// Asks, and returns the status. The rest of the answer is not waited for.
async fn fetch<S>(stream: S, request: Request<String>) -> Result<u16, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut answer => response?,
        // It has left the answer behind, or the reason why there is none.
        ended = connection => {
            ended?;
            answer.await?
        }
    };
    Ok(response.status().as_u16())
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        if error.is_incomplete_message() {
            return Self::Closed;
        }
        Self::of_socket(&error).unwrap_or_else(|| Self::Http(error.to_string()))
    }
}
