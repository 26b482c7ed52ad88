//! A backend: an HTTP server, a UDP echo server and a tunnel's end, in a namespace of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, put};
use futures_util::StreamExt;
use tokio::net::{TcpListener, UdpSocket};

use crate::decap::{self, Decapsulated};
use crate::netns::{Netns, Servers};
use crate::pattern::{self, Checksum};

/// Where every backend serves HTTP.
pub(crate) const HTTP_PORTS: [u16; 6] = [80, 8080, 8081, 8082, 8083, 8084];

/// Where every backend echoes datagrams (RFC 862).
pub(crate) const ECHO_PORT: u16 = 7;

/// A running backend. Dropping it ends its servers and removes its namespace.
#[derive(Debug)]
pub(crate) struct Backend {
    /// What it answers to `GET /`, so that a client knows whom it reached.
    pub(crate) name: String,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    /// What came through a tunnel.
    pub(crate) decapsulated: Arc<Decapsulated>,
    _servers: Servers,
    // Last, because fields are dropped in this order.
    pub(crate) netns: Netns,
}

impl Backend {
    /// Starts the servers in `netns`, where `vips` are local addresses already.
    pub(crate) fn start(name: &str, v4: IpAddr, v6: IpAddr, netns: Netns, vips: &[IpAddr]) -> Self {
        let decapsulated = Arc::new(Decapsulated::default());
        let servers = {
            let (name, vips) = (name.to_owned(), vips.to_vec());
            let decapsulated = Arc::clone(&decapsulated);
            netns.serve(|| async move {
                serve_http(&name).await;
                for vip in vips {
                    echo(&name, vip).await;
                }
                decap::start(&decapsulated);
            })
        };
        Self { name: name.to_owned(), v4, v6, decapsulated, _servers: servers, netns }
    }
}

/// Serves HTTP, IPv4 and IPv6, until the runtime ends:
/// `GET /` answers the name; `GET /pattern/CHUNKS/PAUSE_MS` the pattern;
/// `PUT /checksum` the checksum of what was sent.
async fn serve_http(name: &str) {
    let name = name.to_owned();
    let router = Router::new()
        .route("/", get(move || async move { name }))
        .route("/pattern/{chunks}/{pause_ms}", get(download))
        .route("/checksum", put(upload));
    for port in HTTP_PORTS {
        let listener = TcpListener::bind(("::", port)).await.expect("the port is free");
        let router = router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
}

async fn download(Path((chunks, pause_ms)): Path<(u64, u64)>) -> Body {
    pattern::body(chunks, Duration::from_millis(pause_ms))
}

async fn upload(body: Body) -> String {
    let mut sum = Checksum::default();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => sum.update(&piece),
            Err(error) => return format!("broken off: {error}"),
        }
    }
    sum.finish()
}

/// Answers every datagram that comes for `vip` with this backend's name and the datagram.
/// Bound to the VIP, so that answers come from it.
async fn echo(name: &str, vip: IpAddr) {
    let socket = UdpSocket::bind(SocketAddr::new(vip, ECHO_PORT)).await.expect("the port is free");
    let name = name.to_owned();
    tokio::spawn(async move {
        let mut datagram = vec![0; 1 << 16];
        // An error is an ICMP error that came back for an answer: no reason to stop.
        loop {
            if let Ok((bytes, from)) = socket.recv_from(&mut datagram).await {
                let answer = [name.as_bytes(), b" ", &datagram[..bytes]].concat();
                socket.send_to(&answer, from).await.ok();
            }
        }
    });
}
