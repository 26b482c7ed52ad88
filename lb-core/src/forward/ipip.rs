//! IP in IP: the packet travels untouched inside another one. RFC 2003 (4 in 4), RFC 2473 (any in 6),
//! RFC 4213 §3 (6 in 4).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::{L2Header, push_front};
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Outer};
use crate::wire::checksum::Checksum;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{IPV4_IN_IP, IPV6_IN_IP, ethernet};

/// Hops that an outer packet may take (RFC 1700).
const HOPS: u8 = 64;

/// Puts the packet, without its padding, into an outer header and sends it to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    outer: &Outer,
) -> Result<(), DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let header_bytes = match outer {
        Outer::None => return Ok(()),
        Outer::Ipv4 { .. } => ipv4::HEADER_BYTES,
        Outer::Ipv6 { .. } => ipv6::HEADER_BYTES,
    };
    let packet_len = usize::from(meta.packet_len);
    // Below: as an outer IPv4 header counts, itself included.
    let total_len = u16::try_from(packet_len + header_bytes).map_err(|_| DropReason::TooBig)?;
    if total_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    let (l2_bytes, packet) =
        frame.bytes().split_at_checked(l3_offset).ok_or(DropReason::Truncated)?;
    let traffic_class = traffic_class(packet, meta.tuple.is_ipv6)?;
    let l2 = L2Header::new(hop, came_by, l2_bytes);
    frame.truncate(l3_offset + packet_len);
    frame.trim_front(l3_offset);
    let inner = if meta.tuple.is_ipv6 { IPV6_IN_IP } else { IPV4_IN_IP };
    match outer {
        Outer::None => Ok(()),
        Outer::Ipv4 { src, dst } => {
            let room = push_front(frame, &l2, ethernet::IPV4, ipv4::HEADER_BYTES)?;
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: traffic_class,
                total_len: U16::new(total_len),
                id: U16::ZERO, // RFC 6864 §4.1: of no meaning with DF set
                fragment: U16::new(ipv4::DONT_FRAGMENT),
                ttl: HOPS,
                protocol: inner,
                checksum: Checksum::ZERO,
                src: src.octets(),
                dst: dst.octets(),
            };
            header.checksum = Checksum::of(header.as_bytes());
            header.write_to(room).map_err(|_| DropReason::NoHeadroom)
        }
        Outer::Ipv6 { src, dst } => {
            let room = push_front(frame, &l2, ethernet::IPV6, ipv6::HEADER_BYTES)?;
            let header = Ipv6 {
                version_class_flow: U32::new(
                    6 << 28 | u32::from(traffic_class) << 20 | flow_label(meta.hash),
                ),
                payload_len: U16::new(meta.packet_len),
                next_header: inner,
                hop_limit: HOPS,
                src: src.octets(),
                dst: dst.octets(),
            };
            header.write_to(room).map_err(|_| DropReason::NoHeadroom)
        }
    }
}

/// DSCP and ECN of the outer header: the inner ones, as RFC 2983 §3.1 (uniform model) and RFC 6040
/// §4.1 (normal mode) say.
#[inline]
fn traffic_class(packet: &[u8], is_ipv6: bool) -> Result<u8, DropReason> {
    if is_ipv6 {
        let (ip, _) = Ipv6::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        Ok(ip.traffic_class())
    } else {
        packet.get(1).copied().ok_or(DropReason::Truncated)
    }
}

/// 20 bits of the flow hash (RFC 6438 §3): routers on the way spread flows by them. Not the highest,
/// which chose the slot, and are much the same for all that goes to one backend.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn flow_label(hash: u64) -> u32 {
    hash as u32 & 0xf_ffff
}
