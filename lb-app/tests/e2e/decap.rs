//! The tunnels' end at a backend: IP in IP, GRE and GUE, in all combinations of families, from sockets
//! to a TUN interface. It stands for the kernel's tunnel devices, which not every kernel has.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

/// An address family: 4 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// The protocol number of GRE.
const GRE: i32 = 47;
/// Bytes of its header, without options (RFC 2784).
const GRE_BYTES: usize = 4;
/// GUE's UDP port.
const GUE_PORT: u16 = 6080;

/// The kinds of tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ipip,
    Gre,
    Gue,
}

/// How many packets were taken out of tunnels, by kind, and by the families inside and outside.
#[derive(Debug, Default)]
pub(crate) struct Decapsulated(Mutex<BTreeMap<(Kind, Family, Family), u64>>);

impl Decapsulated {
    /// Packets of family `inner` that came inside packets of family `outer`.
    pub(crate) fn packets(&self, kind: Kind, inner: Family, outer: Family) -> u64 {
        self.counts().get(&(kind, inner, outer)).copied().unwrap_or_default()
    }

    fn count(&self, kind: Kind, packet: &[u8], outer: Family) {
        let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let inner = if is_v6 { Family::V6 } else { Family::V4 };
        *self.counts().entry((kind, inner, outer)).or_default() += 1;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<(Kind, Family, Family), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decapsulates what comes to the namespace of the calling thread, until the runtime ends.
pub(crate) fn start(decapsulated: &Arc<Decapsulated>) {
    let tun = DeviceBuilder::new().name("tun0").layer(Layer::L3).build_async().expect("a TUN");
    let tun = Arc::new(tun);
    let run = |kind, outer, socket: UdpSocket| {
        let (tun, decapsulated) = (Arc::clone(&tun), Arc::clone(decapsulated));
        tokio::spawn(async move {
            forward(kind, outer, &socket, &tun, &decapsulated).await.expect("the tunnel works");
        });
    };
    for outer in [Family::V4, Family::V6] {
        for inner in [Family::V4, Family::V6] {
            let socket = raw_socket(inner.protocol(), outer);
            run(Kind::Ipip, outer, socket.expect("root may open raw sockets"));
        }
        run(Kind::Gre, outer, raw_socket(GRE, outer).expect("root may open raw sockets"));
        let any: IpAddr = match outer {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        run(Kind::Gue, outer, gue_socket(SocketAddr::new(any, GUE_PORT)).expect("it is free"));
    }
}

/// Of one family only, so that the other can have the port, too.
fn gue_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

fn raw_socket(protocol: i32, outer: Family) -> io::Result<UdpSocket> {
    let domain = match outer {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_nonblocking(true)?;
    // To tokio, which has no raw sockets, all sockets that receive datagrams are alike.
    UdpSocket::from_std(socket.into())
}

async fn forward(
    kind: Kind,
    outer: Family,
    socket: &UdpSocket,
    tun: &AsyncDevice,
    decapsulated: &Decapsulated,
) -> io::Result<()> {
    let mut packet = vec![0; 1 << 16];
    loop {
        let bytes = socket.recv(&mut packet).await?;
        // raw(7): IPv4 comes with the outer header, IPv6 without.
        let outer_bytes = match outer {
            Family::V4 if kind != Kind::Gue => usize::from(packet[0] & 0x0f) * 4,
            _ => 0,
        };
        let shim_bytes = if kind == Kind::Gre { GRE_BYTES } else { 0 };
        let inner = &packet[outer_bytes + shim_bytes..bytes];
        tun.send(inner).await?;
        decapsulated.count(kind, inner, outer);
    }
}
