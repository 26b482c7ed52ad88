//! The tunnel's end at a backend: IP in IP, in all four combinations of families, from raw sockets
//! to a TUN interface. It stands for the kernel's tunnel devices, which not every kernel has.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

/// An address family: 4 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The protocol number of such a packet inside another (RFC 2003, RFC 2473).
    pub(crate) fn protocol(self) -> i32 {
        match self {
            Family::V4 => 4,
            Family::V6 => 41,
        }
    }
}

/// How many packets were taken out of each kind of tunnel.
#[derive(Debug, Default)]
pub(crate) struct Decapsulated([[AtomicU64; 2]; 2]);

impl Decapsulated {
    /// Packets of family `inner` that came inside packets of family `outer`.
    pub(crate) fn packets(&self, inner: Family, outer: Family) -> u64 {
        self.counter(inner, outer).load(Ordering::Relaxed)
    }

    fn counter(&self, inner: Family, outer: Family) -> &AtomicU64 {
        &self.0[inner as usize][outer as usize]
    }
}

/// Decapsulates what comes to the namespace of the calling thread, until the runtime ends.
pub(crate) fn start(decapsulated: &Arc<Decapsulated>) {
    let tun = DeviceBuilder::new().name("tun0").layer(Layer::L3).build_async().expect("a TUN");
    let tun = Arc::new(tun);
    for inner in [Family::V4, Family::V6] {
        for outer in [Family::V4, Family::V6] {
            let socket = raw_socket(inner, outer).expect("root may open raw sockets");
            let (tun, decapsulated) = (Arc::clone(&tun), Arc::clone(decapsulated));
            tokio::spawn(async move {
                let count = decapsulated.counter(inner, outer);
                forward(&socket, &tun, outer, count).await.expect("the tunnel works");
            });
        }
    }
}

fn raw_socket(inner: Family, outer: Family) -> io::Result<UdpSocket> {
    let domain = match outer {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(inner.protocol())))?;
    socket.set_nonblocking(true)?;
    // To tokio, which has no raw sockets, all sockets that receive datagrams are alike.
    UdpSocket::from_std(socket.into())
}

async fn forward(
    socket: &UdpSocket,
    tun: &AsyncDevice,
    outer: Family,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut packet = [0; 2048];
    loop {
        let bytes = socket.recv(&mut packet).await?;
        // raw(7): IPv4 comes with the outer header, IPv6 without.
        let header_bytes = match outer {
            Family::V4 => usize::from(packet[0] & 0x0f) * 4,
            Family::V6 => 0,
        };
        tun.send(&packet[header_bytes..bytes]).await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
}
