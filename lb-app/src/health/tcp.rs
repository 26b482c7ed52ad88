//! Does somebody take connections?

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

use super::failure::Failure;

pub(super) async fn check(address: SocketAddr) -> Result<(), Failure> {
    connect(address).await.map(drop)
}

/// A connection that will end by a reset: one that ended in good order would stay in the kernel for
/// a minute (TIME-WAIT), and 10,000 backends every two seconds would make it 300,000.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    Ok(socket.connect(address).await?)
}
