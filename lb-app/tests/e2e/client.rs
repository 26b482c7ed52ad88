//! What a client does: HTTP, datagrams, pings. Every wait has an end.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::netns::{Netns, expect_success};
use crate::pattern::{self, Checksum};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything short may take: far more than it ever takes where things work.
pub(crate) const SHORT: Duration = Duration::from_secs(10);

/// How long a bulk transfer may take.
const LONG: Duration = Duration::from_mins(1);

/// How long the balancer may take to learn where its backends are.
const PATIENCE: Duration = Duration::from_secs(15);

/// An HTTP connection.
#[derive(Debug)]
pub(crate) struct Http(SendRequest<Body>);

impl Http {
    pub(crate) async fn connect(to: SocketAddr) -> Outcome<Self> {
        Self::over(tcp(to)?, to).await
    }

    /// Connects from this source port. Closing sends a reset, so that the port is free again.
    pub(crate) async fn connect_from(port: u16, to: SocketAddr) -> Outcome<Self> {
        let socket = tcp(to)?;
        socket.set_reuseaddr(true)?;
        socket.set_zero_linger()?;
        socket.bind(SocketAddr::new(unspecified(to), port))?;
        Self::over(socket, to).await
    }

    /// Connects from this address.
    pub(crate) async fn connect_as(from: IpAddr, to: SocketAddr) -> Outcome<Self> {
        let socket = tcp(to)?;
        socket.bind(SocketAddr::new(from, 0))?;
        Self::over(socket, to).await
    }

    async fn over(socket: TcpSocket, to: SocketAddr) -> Outcome<Self> {
        let stream = timeout(SHORT, socket.connect(to)).await??;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// The name of the backend at the other end.
    pub(crate) async fn name(&mut self) -> Outcome<String> {
        let body = timeout(SHORT, self.request(Method::GET, "/", Body::empty())).await??;
        text(body).await
    }

    /// Downloads chunks of the pattern, with a pause before each; returns their checksum.
    pub(crate) async fn download(&mut self, chunks: u64, pause: Duration) -> Outcome<String> {
        let path = format!("/pattern/{chunks}/{}", pause.as_millis());
        timeout(LONG, async {
            let mut pieces =
                self.request(Method::GET, &path, Body::empty()).await?.into_data_stream();
            let mut sum = Checksum::default();
            while let Some(piece) = futures_util::StreamExt::next(&mut pieces).await {
                sum.update(&piece?);
            }
            Ok(sum.finish())
        })
        .await?
    }

    /// Uploads chunks of the pattern, with a pause before each; returns the checksum of what the
    /// backend received.
    pub(crate) async fn upload(&mut self, chunks: u64, pause: Duration) -> Outcome<String> {
        let body = pattern::body(chunks, pause);
        timeout(LONG, async { text(self.request(Method::PUT, "/checksum", body).await?).await })
            .await?
    }

    async fn request(&mut self, method: Method, path: &str, body: Body) -> Outcome<Body> {
        let request =
            Request::builder().method(method).uri(path).header(HOST, "weir").body(body)?;
        self.0.ready().await?;
        let response = self.0.send_request(request).await?;
        match response.status() {
            StatusCode::OK => Ok(Body::new(response.into_body())),
            status => Err(format!("{path}: {status}").into()),
        }
    }
}

async fn text(body: Body) -> Outcome<String> {
    Ok(String::from_utf8(timeout(SHORT, to_bytes(body, 4096)).await??.into())?)
}

fn tcp(to: SocketAddr) -> io::Result<TcpSocket> {
    if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn unspecified(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Opens a TCP connection.
pub(crate) async fn connect_tcp(to: SocketAddr) -> io::Result<TcpStream> {
    timeout(SHORT, tcp(to)?.connect(to)).await?
}

/// Opens a TCP connection, sends `request` and the end, and returns all that comes, and our end.
pub(crate) async fn ask(to: SocketAddr, request: &[u8]) -> Outcome<(String, SocketAddr)> {
    let mut stream = connect_tcp(to).await?;
    let own = stream.local_addr()?;
    stream.write_all(request).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    timeout(SHORT, stream.read_to_string(&mut answer)).await??;
    Ok((answer, own))
}

/// Sends a datagram from a new source port and returns what comes back.
pub(crate) async fn echo(to: SocketAddr, datagram: &str) -> io::Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(to), 0)).await?;
    socket.connect(to).await?;
    socket.send(datagram.as_bytes()).await?;
    let mut answer = vec![0; 1 << 16];
    let bytes = timeout(SHORT, socket.recv(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer[..bytes]).into_owned())
}

/// Pings `to` three times; panics unless every ping is answered.
pub(crate) fn ping(from: &Netns, to: IpAddr) {
    let to = to.to_string();
    expect_success(from.command("ping").args(["-c", "3", "-i", "0.2", "-W", "5", &to]));
}

/// How many connections each backend got.
pub(crate) type Spread = BTreeMap<String, u32>;

/// Opens `connections` connections, all open at the same time, and asks each who is there.
pub(crate) async fn spread(to: SocketAddr, connections: u32) -> Outcome<Spread> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Http::connect(to).await?);
    }
    let mut spread = Spread::new();
    for connection in &mut open {
        *spread.entry(connection.name().await?).or_default() += 1;
    }
    Ok(spread)
}

/// Waits until every one of these backends gets connections to `vip`: until the balancer has
/// learned where they are.
pub(crate) fn wait_for_backends(client: &Netns, vip: SocketAddr, names: &[&str]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let spread = client.block_on(|| spread(vip, 40));
        match &spread {
            Ok(spread) if names.iter().all(|name| spread.contains_key(*name)) => return,
            _ => assert!(Instant::now() < end, "not all of {names:?} serve {vip}: {spread:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Panics if `spread` is not what a fair choice by weight gives.
///
/// The bound is five standard deviations of the binomial distribution for each backend: a true
/// balancer fails it once in a million.
pub(crate) fn assert_fair(spread: &Spread, weights: &[(&str, u32)]) {
    let connections: u32 = spread.values().sum();
    let weights_sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
    for (name, weight) in weights {
        let share = f64::from(*weight) / f64::from(weights_sum);
        let due = f64::from(connections) * share;
        let bound = 5.0 * (due * (1.0 - share)).sqrt();
        let got = f64::from(spread.get(*name).copied().unwrap_or_default());
        assert!(
            (got - due).abs() <= bound,
            "{name} got {got} connections, due are {due:.0} ± {bound:.0}; all: {spread:?}"
        );
    }
    let known = spread.keys().all(|name| weights.iter().any(|(known, _)| known == name));
    assert!(known, "an unknown backend answered: {spread:?}");
}
