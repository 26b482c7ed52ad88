//! Does somebody answer datagrams?

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_core::wire::UDP;
use tokio::net::UdpSocket;

use super::failure::Failure;
use super::probe::Route;

/// Bytes of an answer that are looked at.
const ANSWER_BYTES_MAX: usize = 2048;

pub(super) async fn check(route: &Route<'_>, send: &[u8], expect: &[u8]) -> Result<(), Failure> {
    let any: IpAddr = match route.to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = route.from.map_or_else(|| (any, 0).into(), |from| from.address());
    let socket = UdpSocket::bind(from).await?;
    if let Some(from) = route.from {
        from.announce(UDP, socket.local_addr()?);
    }
    socket.connect(route.to).await?;
    socket.send(send).await.map_err(unreachable)?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let len = socket.recv(&mut answer).await.map_err(unreachable)?;
    if answer[..len].starts_with(expect) { Ok(()) } else { Err(Failure::WrongAnswer) }
}

/// So a connected socket tells that the answer was an ICMP error.
fn unreachable(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::PortUnreachable,
        _ => error.into(),
    }
}
