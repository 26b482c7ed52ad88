//! A datagram in fragments that leave in any order, as no kernel sends them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::client::SHORT;
use crate::topology::{CLIENT, v4, v6};

/// Payload bytes of a fragment.
const STEP: usize = 1200;

/// As [`client::echo`](crate::client::echo), with the datagram's fragments in an order that `seed`
/// chooses.
pub(crate) async fn echo_shuffled(to: SocketAddr, datagram: &str, seed: u64) -> io::Result<String> {
    let from: IpAddr = if to.is_ipv4() { v4(0, CLIENT).into() } else { v6(0, CLIENT).into() };
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).await?;
    socket.connect(to).await?;
    let mut packets = fragments(socket.local_addr()?, to, datagram.as_bytes(), seed);
    shuffle(&mut packets, seed);
    let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(255)))?;
    for packet in packets {
        raw.send_to(&packet, &SocketAddr::new(to.ip(), 0).into())?;
    }
    let mut answer = vec![0; 1 << 16];
    let bytes = timeout(SHORT, socket.recv(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer[..bytes]).into_owned())
}

fn fragments(from: SocketAddr, to: SocketAddr, payload: &[u8], seed: u64) -> Vec<Vec<u8>> {
    let id = u16::try_from(seed).expect("is small") ^ from.port();
    let mut datagram = Vec::new();
    let header = match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => UdpHeader::with_ipv4_checksum(
            from.port(),
            to.port(),
            &Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets()).expect("is short"),
            payload,
        ),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let ip = Ipv6Header { source, destination, ..Default::default() };
            UdpHeader::with_ipv6_checksum(from.port(), to.port(), &ip, payload)
        }
        mixed => panic!("two families: {mixed:?}"),
    };
    header.expect("is short enough").write(&mut datagram).expect("memory takes it");
    datagram.extend(payload);
    let count = datagram.chunks(STEP).len();
    let piece = |(number, bytes): (usize, &[u8])| {
        let offset = u16::try_from(number * STEP / 8).expect("is short enough");
        let offset = IpFragOffset::try_new(offset).expect("is short enough");
        packet(from.ip(), to.ip(), id, (offset, number + 1 < count), bytes)
    };
    datagram.chunks(STEP).enumerate().map(piece).collect()
}

fn packet(
    from: IpAddr,
    to: IpAddr,
    id: u16,
    (offset, has_more): (IpFragOffset, bool),
    bytes: &[u8],
) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("is short");
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(len, 64, IpNumber::UDP, src.octets(), dst.octets());
            let mut header = header.expect("is short");
            header.identification = id;
            header.dont_fragment = false;
            (header.fragment_offset, header.more_fragments) = (offset, has_more);
            header.write(&mut packet).expect("memory takes it");
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = Ipv6Header {
                payload_length: len + 8,
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            };
            header.write(&mut packet).expect("memory takes it");
            let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, has_more, id.into());
            fragment.write(&mut packet).expect("memory takes it");
        }
        mixed => panic!("two families: {mixed:?}"),
    }
    packet.extend(bytes);
    packet
}

/// Fisher and Yates, with a generator of its own: the same order for the same seed.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for i in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let below = u64::try_from(i + 1).expect("is small");
        items.swap(i, usize::try_from((state >> 33) % below).expect("is small"));
    }
}
