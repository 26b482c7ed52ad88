//! Each kind of check against each kind of server.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use lb_core::model::{HttpProbe, Probe};
use tonic_health::ServingStatus;

use super::servers::Manner::{Close, Hang, Reset, Say, Trickle};
use super::servers::{datagrams, grpc, grpc_without_health, openssl, refusing, serve, web};
use super::{ask, http, loopback};

fn said<T>(what: &str) -> Result<T, String> {
    Err(what.into())
}

fn page(path: &str) -> Probe {
    Probe::Http(http(path))
}

#[tokio::test]
async fn tcp() {
    let (_socket, nobody) = refusing();
    assert_eq!(ask(nobody, Probe::Tcp).await, said("connection refused"));
    for manner in [Hang, Close, Say(b"220 hello\r\n")] {
        let server = serve(manner).await;
        assert_eq!(ask(server.at, Probe::Tcp).await, Ok(()), "{manner:?}");
    }
    let ipv6 = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    assert_eq!(ask(ipv6.local_addr().unwrap(), Probe::Tcp).await, Ok(()));
}

/// A listener whose queue is full drops SYNs, as a host that is down does.
#[tokio::test]
async fn tcp_without_an_answer() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(loopback(0)).unwrap();
    let listener = socket.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let connect = tokio::net::TcpStream::connect(at);
        waiting.push(tokio::time::timeout(Duration::from_millis(50), connect).await);
    }
    assert!(waiting.iter().any(Result::is_err), "the queue is full");
    assert_eq!(ask(at, Probe::Tcp).await, said("no answer within 400ms"));
}

#[tokio::test]
async fn http_statuses() {
    let at = web().await;
    assert_eq!(ask(at, page("/healthz")).await, Ok(()));
    assert_eq!(ask(at, page("/moved")).await, Ok(()));
    assert_eq!(ask(at, page("/broken")).await, said("status 503"));
    assert_eq!(ask(at, page("/nowhere?healthz")).await, said("status 404"));
    assert_eq!(ask(at, page("/slow")).await, said("no answer within 400ms"));
    let expecting =
        |expect: &[_]| Probe::Http(HttpProbe { expect: expect.to_vec(), ..http("/broken") });
    assert_eq!(ask(at, expecting(&[(200, 299), (503, 503)])).await, Ok(()));
    assert_eq!(ask(at, expecting(&[(500, 502), (504, 599)])).await, said("status 503"));
    let site = |host: &str| Probe::Http(HttpProbe { host: Some(host.into()), ..http("/host") });
    assert_eq!(ask(at, site("www.example.org:8080")).await, Ok(()));
    assert_eq!(ask(at, site("www.example.org")).await, said("status 404"));
}

#[tokio::test]
async fn http_of_servers_that_are_none() {
    let (_socket, nobody) = refusing();
    assert_eq!(ask(nobody, page("/")).await, said("connection refused"));
    for (manner, says) in [
        (Hang, "no answer within 400ms"),
        (Close, "connection closed without an answer"),
        (Reset, "connection reset"),
        (Trickle(b"HTTP/1.1 200 OK\r\n\r\n"), "no answer within 400ms"),
        (Say(b"HTTP/1.1 2"), "no answer within 400ms"),
    ] {
        let server = serve(manner).await;
        assert_eq!(ask(server.at, page("/")).await, said(says), "{manner:?}");
    }
    let server = serve(Say(b"SSH-2.0-OpenSSH_9.6\r\n")).await;
    let answer = ask(server.at, page("/")).await.unwrap_err();
    assert!(answer.starts_with("not HTTP: "), "{answer}");
    // Only the status counts, so the body may be anything, and need not come.
    let server = serve(Say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc")).await;
    assert_eq!(ask(server.at, page("/")).await, Ok(()));
}

/// A head without an end is not kept.
#[tokio::test]
async fn http_with_an_endless_head() {
    static ENDLESS: [u8; 200_000] = [b'a'; 200_000];
    let server = serve(Say(&ENDLESS)).await;
    let answer = ask(server.at, page("/")).await.unwrap_err();
    assert!(answer.starts_with("not HTTP: "), "{answer}");
}

#[tokio::test]
async fn https() {
    let page = |host: Option<&str>| {
        Probe::Http(HttpProbe { tls: true, host: host.map(Into::into), ..http("/") })
    };
    for version in ["-tls1_3", "-tls1_2"] {
        let server = openssl(&[version]).await;
        for host in [None, Some("www.example.org"), Some("www.example.org:443"), Some("[::1]:443")]
        {
            assert_eq!(ask(server.at, page(host)).await, Ok(()), "{version} {host:?}");
        }
        let asks_too_much = HttpProbe { expect: vec![(204, 204)], tls: true, ..http("/") };
        assert_eq!(ask(server.at, Probe::Http(asks_too_much)).await, said("status 200"));
    }
    let (_socket, nobody) = refusing();
    assert_eq!(ask(nobody, page(None)).await, said("connection refused"));
    for (manner, says) in [
        (Hang, "no answer within 400ms"),
        (Close, "connection closed without an answer"),
        (Reset, "connection reset"),
    ] {
        let server = serve(manner).await;
        assert_eq!(ask(server.at, page(None)).await, said(says), "{manner:?}");
    }
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0; 64],
        b"\x16\x03\x03\x00\x04\xff\xff\xff\xff",
    ] {
        let server = serve(Say(garbage)).await;
        let answer = ask(server.at, page(None)).await.unwrap_err();
        assert!(answer.starts_with("not TLS: "), "{answer}");
    }
}

fn asking(service: &str) -> Probe {
    Probe::Grpc { service: service.into(), host: None }
}

#[tokio::test]
async fn grpc_verdicts() {
    let (at, reporter) = grpc().await;
    assert_eq!(ask(at, asking("")).await, Ok(()));
    assert_eq!(
        ask(at, asking("web.Api")).await,
        said("gRPC status 5: it does not know the service")
    );
    reporter.set_service_status("web.Api", ServingStatus::Serving).await;
    assert_eq!(ask(at, asking("web.Api")).await, Ok(()));
    reporter.set_service_status("web.Api", ServingStatus::NotServing).await;
    assert_eq!(ask(at, asking("web.Api")).await, said("it says of itself: NOT_SERVING"));
    reporter.set_service_status("web.Api", ServingStatus::Unknown).await;
    assert_eq!(ask(at, asking("web.Api")).await, said("it says of itself: UNKNOWN"));
    let named = Probe::Grpc { service: String::new(), host: Some("api.example:443".into()) };
    assert_eq!(ask(at, named).await, Ok(()));
    let at = grpc_without_health().await;
    assert_eq!(ask(at, asking("")).await, said("gRPC status 12: it has no health service"));
}

#[tokio::test]
async fn grpc_of_servers_that_are_none() {
    let (_socket, nobody) = refusing();
    assert_eq!(ask(nobody, asking("")).await, said("connection refused"));
    for (manner, says) in [(Hang, "no answer within 400ms"), (Reset, "connection reset")] {
        let server = serve(manner).await;
        assert_eq!(ask(server.at, asking("")).await, said(says), "{manner:?}");
    }
    // What is sent behind its end may be answered by a reset.
    let answer = ask(serve(Close).await.at, asking("")).await.unwrap_err();
    assert!(answer.starts_with("connection "), "{answer}");
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 64]] {
        let server = serve(Say(garbage)).await;
        let answer = ask(server.at, asking("")).await.unwrap_err();
        assert!(answer.starts_with("not gRPC: "), "{answer}");
    }
    let answer = ask(web().await, asking("")).await.unwrap_err();
    assert!(answer.starts_with("connection "), "{answer}");
}

#[tokio::test]
async fn udp() {
    let probe =
        |send: &[u8], expect: &[u8]| Probe::Udp { send: send.into(), expect: expect.into() };
    let at = datagrams(Some(b"pong 1")).await;
    assert_eq!(ask(at, probe(b"ping", b"")).await, Ok(()));
    assert_eq!(ask(at, probe(b"ping", b"pong")).await, Ok(()));
    let wrong = ask(at, probe(b"ping", b"pong 2")).await;
    assert_eq!(wrong, said("the answer does not begin as expected"));
    let longer = ask(at, probe(b"ping", b"pong 1 and more")).await;
    assert_eq!(longer, said("the answer does not begin as expected"));
    assert_eq!(ask(at, probe(b"what?", b"")).await, said("no answer within 400ms"));
    assert_eq!(ask(datagrams(Some(b"")).await, probe(b"ping", b"")).await, Ok(()));
    assert_eq!(
        ask(datagrams(None).await, probe(b"ping", b"")).await,
        said("no answer within 400ms")
    );
    let free = std::net::UdpSocket::bind(loopback(0)).unwrap().local_addr().unwrap();
    assert_eq!(ask(free, probe(b"ping", b"")).await, said("port unreachable"));
}

#[tokio::test]
async fn icmp() {
    if !nix::unistd::geteuid().is_root() {
        return; // raw sockets are root's
    }
    assert_eq!(ask(loopback(0), Probe::Icmp).await, Ok(()));
    assert_eq!(ask("127.9.9.9:0".parse().unwrap(), Probe::Icmp).await, Ok(()));
    assert_eq!(ask((Ipv6Addr::LOCALHOST, 0).into(), Probe::Icmp).await, Ok(()));
    // RFC 6890: nobody is there, and no router leads there.
    let nowhere: SocketAddr = "240.0.0.1:0".parse().unwrap();
    assert!(ask(nowhere, Probe::Icmp).await.is_err());
}
