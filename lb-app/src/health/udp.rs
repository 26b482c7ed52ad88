//! Does somebody answer datagrams?

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::failure::Failure;

/// Bytes of an answer that are looked at.
const ANSWER_BYTES_MAX: usize = 2048;

pub(super) async fn check(address: SocketAddr, send: &[u8], expect: &[u8]) -> Result<(), Failure> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
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
