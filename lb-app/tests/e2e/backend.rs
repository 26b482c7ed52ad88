//! A backend: an HTTP server, a UDP echo server and a tunnel's end, in a namespace of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, put};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::decap::{self, Decapsulated};
use crate::netns::{Netns, Servers};
use crate::pattern::{self, Checksum};

/// Where every backend serves HTTP.
pub(crate) const HTTP_PORTS: [u16; 6] = [80, 8080, 8081, 8082, 8083, 8084];

/// Where every backend says what the PROXY protocol tells it of its clients.
pub(crate) const PROXY_PORT: u16 = 8090;

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
                serve_proxied().await;
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

/// Reads a PROXY protocol header (version 2) and all that follows; answers source, destination, and
/// how many bytes followed.
async fn serve_proxied() {
    let listener = TcpListener::bind(("::", PROXY_PORT)).await.expect("the port is free");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer = match proxied(&mut stream).await {
                    Ok(answer) => answer,
                    Err(error) => format!("no PROXY header: {error}"),
                };
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
}

async fn proxied(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).await?;
    if !head.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21") {
        return Ok(format!("no PROXY header: {head:?}"));
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    stream.read_exact(&mut rest).await?;
    let (ports, addresses) = match head[13] {
        0x11 => (8, [&rest[..4], &rest[4..8]].map(|it| <[u8; 4]>::try_from(it).map(IpAddr::from))),
        _ => {
            (32, [&rest[..16], &rest[16..32]].map(|it| <[u8; 16]>::try_from(it).map(IpAddr::from)))
        }
    };
    let [src, dst] = addresses.map(|address| address.expect("as long"));
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let (src, dst) = (SocketAddr::new(src, port(ports)), SocketAddr::new(dst, port(ports + 2)));
    let mut body = Vec::new();
    stream.read_to_end(&mut body).await?;
    Ok(format!("{src} {dst} {}", body.len()))
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
