//! Servers that are good, wrong or dead.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::sleep;

use super::loopback;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    /// Keeps it, and says nothing.
    Hang,
    /// Takes the first bytes, and ends it in good order.
    Close,
    /// Resets it after the first bytes.
    Reset,
    /// Says this, whatever is asked.
    Say(&'static [u8]),
    /// Says one byte of this at a time, slowly, and never more.
    Trickle(&'static [u8]),
}

/// A server with connections that are counted.
pub(super) struct Server {
    pub(super) at: SocketAddr,
    /// Connections that are open.
    pub(super) open: Arc<AtomicUsize>,
    /// Connections that were made.
    pub(super) made: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Nobody listens there. The port stays taken while the socket lives.
pub(super) fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(loopback(0)).unwrap();
    let at = socket.local_addr().unwrap();
    (socket, at)
}

pub(super) async fn serve(manner: Manner) -> Server {
    serve_at(loopback(0), manner).await
}

pub(super) async fn serve_at(at: SocketAddr, manner: Manner) -> Server {
    let listener = TcpListener::bind(at).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (open, made) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (opened, counted) = (Arc::clone(&open), Arc::clone(&made));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            opened.fetch_add(1, Ordering::SeqCst);
            counted.fetch_add(1, Ordering::SeqCst);
            let opened = Arc::clone(&opened);
            tokio::spawn(async move {
                answer(stream, manner).await;
                opened.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Server { at, open, made, task }
}

/// Ends when the connection does.
async fn answer(stream: TcpStream, manner: Manner) {
    match manner {
        Manner::Hang => {}
        Manner::Close => {
            let _ = stream.readable().await;
            let _ = stream.try_read(&mut [0; 4096]);
            return;
        }
        Manner::Reset => {
            let _ = stream.readable().await;
            stream.set_zero_linger().unwrap();
            return;
        }
        Manner::Say(bytes) => {
            let _ = stream.writable().await;
            let _ = stream.try_write(bytes);
        }
        Manner::Trickle(bytes) => {
            for byte in bytes {
                sleep(Duration::from_millis(50)).await;
                if stream.try_write(&[*byte]).is_err() {
                    return;
                }
            }
        }
    }
    let mut buffer = [0; 4096];
    loop {
        let _ = stream.readable().await;
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// A web server. `/healthz` is good, `/moved` leads elsewhere, `/broken` is not good, `/host` is
/// good if asked for the right site, `/slow` comes late.
pub(super) async fn web() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let io = TokioIo::new(stream);
            tokio::spawn(http1::Builder::new().serve_connection(io, service_fn(page)));
        }
    });
    at
}

async fn page(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let host = request.headers().get("host").map(|host| host.as_bytes().to_vec());
    let status = match request.uri().path() {
        "/healthz" => StatusCode::OK,
        "/moved" => StatusCode::FOUND,
        "/host" if host.as_deref() == Some(b"www.example.org:8080") => StatusCode::OK,
        "/slow" => {
            sleep(Duration::from_secs(2)).await;
            StatusCode::OK
        }
        "/broken" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NOT_FOUND,
    };
    let mut response = Response::new("x".repeat(100_000));
    *response.status_mut() = status;
    Ok(response)
}

/// A gRPC server with the health service as tonic has it.
pub(super) async fn grpc() -> (SocketAddr, tonic_health::server::HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    (at, reporter)
}

/// A gRPC server without the health service.
pub(super) async fn grpc_without_health() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let router = tonic::service::Routes::default();
    let server = tonic::transport::Server::builder().add_routes(router);
    tokio::spawn(server.serve_with_incoming(incoming));
    at
}

/// Answers each datagram with `answer`, or not at all.
pub(super) async fn datagrams(answer: Option<&'static [u8]>) -> SocketAddr {
    let socket = UdpSocket::bind(loopback(0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = answer.filter(|_| &buffer[..len] == b"ping") {
                socket.send_to(answer, from).await.unwrap();
            }
        }
    });
    at
}

/// OpenSSL's server of HTTP over TLS, with a certificate of its own making, for another name. Ends
/// with the value.
pub(super) struct OpenSsl {
    pub(super) at: SocketAddr,
    process: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) async fn openssl(more: &[&str]) -> OpenSsl {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-subj", "/CN=other.example", "-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (taken, at) = refusing();
    drop(taken);
    let process = std::process::Command::new("openssl")
        .args(["s_server", "-accept", &at.to_string(), "-key", &key, "-cert", &certificate, "-www"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = OpenSsl { at, process, _folder: folder };
    for _ in 0..1000 {
        if TcpStream::connect(at).await.is_ok() {
            return server;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("openssl s_server does not listen at {at}");
}
