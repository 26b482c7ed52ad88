//! A test of the tests: the tunnel's end at the backends, without a balancer.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::backend::{Backend, ECHO_PORT};
use crate::client::{Outcome, SHORT};
use crate::decap::{Family, Kind};
use crate::lan::Lan;
use crate::topology::{CLIENT, Driver, Setup, VIP_IPIP, v4, v6};

/// Datagrams in hand-made tunnel packets reach the echo server, whose answers come back directly.
pub(crate) fn all_combinations() {
    let lan = Lan::new(Setup { driver: Driver::Tap, workers: 1 });
    let backend = &lan.backends[0];
    for (inner, outer) in [
        (Family::V4, Family::V4),
        (Family::V4, Family::V6),
        (Family::V6, Family::V4),
        (Family::V6, Family::V6),
    ] {
        let answer = lan.client.block_on(|| echo_through_tunnel(backend, inner, outer));
        let answer = answer.unwrap_or_else(|error| panic!("{inner:?} in {outer:?}: {error}"));
        assert_eq!(answer, "b1 hello", "{inner:?} in {outer:?}");
        assert_eq!(
            backend.decapsulated.packets(Kind::Ipip, inner, outer),
            1,
            "{inner:?} in {outer:?}"
        );
    }
}

async fn echo_through_tunnel(backend: &Backend, inner: Family, outer: Family) -> Outcome<String> {
    let (client, vip): (IpAddr, IpAddr) = match inner {
        Family::V4 => (v4(0, CLIENT).into(), v4(0, VIP_IPIP).into()),
        Family::V6 => (v6(0, CLIENT).into(), v6(0, VIP_IPIP).into()),
    };
    let socket = UdpSocket::bind(SocketAddr::new(client, 0)).await?;
    let builder = match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            PacketBuilder::ipv4(client.octets(), vip.octets(), 64)
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            PacketBuilder::ipv6(client.octets(), vip.octets(), 64)
        }
        _ => unreachable!("both are of the inner family"),
    };
    let mut packet = Vec::new();
    builder.udp(socket.local_addr()?.port(), ECHO_PORT).write(&mut packet, b"hello")?;

    // The kernel puts the outer header in front.
    let (domain, backend) = match outer {
        Family::V4 => (Domain::IPV4, backend.v4),
        Family::V6 => (Domain::IPV6, backend.v6),
    };
    let tunnel = Socket::new(domain, Type::RAW, Some(Protocol::from(inner.protocol())))?;
    tunnel.send_to(&packet, &SocketAddr::new(backend, 0).into())?;

    let mut answer = [0; 64];
    let (bytes, from) = timeout(SHORT, socket.recv_from(&mut answer)).await??;
    assert_eq!(from, SocketAddr::new(vip, ECHO_PORT));
    Ok(String::from_utf8(answer[..bytes].to_vec())?)
}
