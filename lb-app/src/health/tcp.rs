//! Does somebody take connections?

use lb_core::wire::TCP;
use tokio::net::{TcpSocket, TcpStream};

use super::failure::Failure;
use super::probe::Route;

pub(super) async fn check(route: &Route<'_>) -> Result<(), Failure> {
    connect(route).await.map(drop)
}

/// A connection that will end by a reset: one that ended in good order would stay in the kernel for
/// a minute (TIME-WAIT), and 10,000 backends every two seconds would make it 300,000.
pub(super) async fn connect(route: &Route<'_>) -> Result<TcpStream, Failure> {
    let socket = if route.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    if let Some(from) = route.from {
        socket.bind(from.address())?;
        from.announce(TCP, socket.local_addr()?);
    }
    Ok(socket.connect(route.to).await?)
}
