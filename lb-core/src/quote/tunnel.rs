//! The packet in a tunnel's, of which an error quotes both.

use zerocopy::FromBytes;

use super::packet;
use crate::model::TunnelKind;
use crate::tuple::Tuple;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{GRE, IPV4_IN_IP, IPV6_IN_IP, UDP, ethernet};

/// Bytes beyond the IP header that whoever sent the packet has to see, to know it again (RFC 792).
const SEGMENT_BYTES_MIN: usize = 8;
/// Bytes of GRE's header, as [`crate::forward::gre`] writes it.
const GRE_BYTES: usize = 4;

/// What is in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tunnelled<'a> {
    /// From the balancer to the backend.
    pub(crate) outer: Tuple,
    /// What is between the headers.
    pub(crate) kind: TunnelKind,
    /// From the client to the VIP.
    pub(crate) flow: Tuple,
    /// Bytes of the quote before the client's packet.
    pub(crate) offset: usize,
    /// The client's packet, as far as it is quoted.
    pub(crate) packet: &'a [u8],
    /// Bytes that it says it has.
    pub(crate) packet_len: usize,
}

/// Looks into the tunnel's packet that is quoted. `None`, if it is none that Weir sends, or so little
/// is quoted that the client would not know its packet, or it is one that nobody is told about: an
/// ICMP message, a later fragment, or from an address that is nobody's (RFC 1122 §3.2.2, RFC 4443
/// §2.4 e).
#[must_use]
pub(crate) fn inside(quote: &[u8], is_ipv6: bool) -> Option<Tunnelled<'_>> {
    let (outer, offset) = packet(quote, is_ipv6)?;
    let behind = quote.get(offset..)?;
    let (kind, is_ipv6) = match outer.protocol {
        IPV4_IN_IP => (TunnelKind::Ipip, false),
        IPV6_IN_IP => (TunnelKind::Ipip, true),
        GRE => {
            let &[0, 0, high, low] = behind.first_chunk::<GRE_BYTES>()? else { return None };
            match u16::from_be_bytes([high, low]) {
                ethernet::IPV4 => (TunnelKind::Gre, false),
                ethernet::IPV6 => (TunnelKind::Gre, true),
                _ => return None,
            }
        }
        UDP => {
            let kind = TunnelKind::Gue { port: outer.dst_port() };
            match behind.get(kind.shim_bytes())? >> 4 {
                4 => (kind, false),
                6 => (kind, true),
                _ => return None,
            }
        }
        _ => return None,
    };
    let inner = behind.get(kind.shim_bytes()..)?;
    let (flow, segment) = packet(inner, is_ipv6)?;
    let (packet_len, is_source) = if is_ipv6 {
        let (ip, _) = Ipv6::ref_from_prefix(inner).ok()?;
        (ip.total_len(), Ipv6::is_source(ip.src))
    } else {
        let (ip, _) = Ipv4::ref_from_prefix(inner).ok()?;
        (ip.total_len.get().into(), Ipv4::is_source(ip.src))
    };
    let packet = inner.get(..packet_len).unwrap_or(inner);
    let is_enough = packet.len() >= segment + SEGMENT_BYTES_MIN;
    let offset = offset + kind.shim_bytes();
    (is_source && is_enough).then_some(Tunnelled { outer, kind, flow, offset, packet, packet_len })
}
