//! ICMP errors (RFC 7915 §4.2, §4.3, §5.2, §5.3): what they say, and the packet that they say it of.

use zerocopy::IntoBytes;

use super::head::Head;
use super::segment::{Change, id};
use super::{Ends, LONGER_BYTES, replace_front, split};
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::forward::L2Header;
use crate::frame::Frame;
use crate::tables::HopEntry;
use crate::tables::next_hop::PortId;
use crate::wire::checksum::Checksum;
use crate::wire::icmp::{
    BYTES_MAX, CHECKSUM, FRAGMENTATION_NEEDED, HEADER_BYTES, PARAMETER_PROBLEM, Says,
    TIME_EXCEEDED, UNREACHABLE, V6_BYTES_MAX, V6_PARAMETER_PROBLEM, V6_TIME_EXCEEDED, V6_TOO_BIG,
    V6_UNREACHABLE, checksum, without_extensions,
};
use crate::wire::{ICMP, ICMPV6, ipv4, ipv6};

/// As [`super::forward`], of an error.
#[cold]
pub(super) fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: &Ends,
) -> Result<(), DropReason> {
    let is_ipv6 = meta.tuple.is_ipv6;
    let (l2_bytes, packet) = split(frame, meta)?;
    let l2 = L2Header::new(hop, came_by, l2_bytes);
    let read = if is_ipv6 { Head::of_extended_ipv6 } else { Head::of_ipv4 };
    let head = read(packet)?;
    let hops = head.one_hop_less()?;
    if head.fragment.is_some_and(|part| part.offset != 0 || part.has_more) {
        return Err(DropReason::Untranslatable); // nobody has all that its checksum covers
    }
    let message = packet.get(head.bytes..).ok_or(DropReason::Truncated)?;
    // A new checksum would hide that this one was wrong.
    if checksum(message, is_ipv6.then(|| head.addresses(packet)))? != Checksum::ZERO {
        return Err(DropReason::BadChecksum);
    }
    let (&says, quote) = message.split_first_chunk().ok_or(DropReason::Truncated)?;
    let quote = without_extensions(says, quote, is_ipv6);
    let quoted = read(quote)?;
    quoted.check_protocol()?;
    let says = if is_ipv6 {
        to_ipv4(says, hop.mtu)
    } else {
        to_ipv6(says, quoted.bytes + quoted.payload_len, hop.mtu)
    }
    .ok_or(DropReason::Untranslatable)?;
    let segment = quote.get(quoted.bytes..).ok_or(DropReason::Truncated)?;
    let ends_of_quoted = &ends.swapped();
    let change = Change::new(&quoted, quote, segment, ends_of_quoted);
    // Its name is lost, if it had one.
    let quoted_header = quoted.translated(quoted.payload_len, ends_of_quoted, quoted.hops, 0);

    let (protocol, ip_bytes, bytes_max) = if is_ipv6 {
        (ICMP, ipv4::HEADER_BYTES, BYTES_MAX)
    } else {
        (ICMPV6, ipv6::HEADER_BYTES, V6_BYTES_MAX)
    };
    let front_bytes = HEADER_BYTES + quoted_header.len();
    let segment_max = usize::from(bytes_max.min(hop.mtu))
        .checked_sub(ip_bytes + front_bytes)
        .ok_or(DropReason::TooBig)?;
    let segment_len = segment.len().min(segment_max);
    let id = id(quoted.protocol, segment, meta.hash);
    let head = Head { protocol, ..head };
    let header = head.translated(front_bytes + segment_len, ends, hops, id);

    let old = l2_bytes.len() + head.bytes + HEADER_BYTES + quoted.bytes;
    let message = replace_front(frame, old..old + segment_len, &l2, header, front_bytes)?;
    let (place, quote) = message.split_first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
    *place = says;
    change.apply(quoted_header.write(quote)?);
    let addresses = (!is_ipv6).then_some(ends.addresses);
    let sum = checksum(message, addresses)?;
    message.get_mut(CHECKSUM).ok_or(DropReason::NoHeadroom)?.copy_from_slice(sum.as_bytes());
    Ok(())
}

/// The same without a checksum yet.
fn says(kind: u8, code: u8, parameter: u32) -> Says {
    let [a, b, c, d] = parameter.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// RFC 7915 §4.2. `None`: there is nothing like it, or nobody would act on it.
fn to_ipv6(message: Says, quoted_len: usize, hop_mtu: u16) -> Option<Says> {
    let [kind, code, _, _, pointer, _, high, low] = message;
    Some(match (kind, code) {
        // Network or host: unreachable, source route failed, unknown, isolated, not for this TOS.
        (UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => says(V6_UNREACHABLE, 0, 0),
        // Protocol: that is the next header, which lies at 6.
        (UNREACHABLE, 2) => says(V6_PARAMETER_PROBLEM, 1, 6),
        (UNREACHABLE, 3) => says(V6_UNREACHABLE, 4, 0),
        (UNREACHABLE, FRAGMENTATION_NEEDED) => {
            let mtu = match u16::from_be_bytes([high, low]) {
                0 => plateau_below(quoted_len),
                told => told,
            };
            let mtu = mtu.saturating_add(LONGER_BYTES).min(hop_mtu).max(ipv6::MTU_MIN);
            says(V6_TOO_BIG, 0, mtu.into())
        }
        // Prohibited: network, host, by a filter; precedence too low.
        (UNREACHABLE, 9 | 10 | 13 | 15) => says(V6_UNREACHABLE, 1, 0),
        (TIME_EXCEEDED, code) => says(V6_TIME_EXCEEDED, code, 0),
        (PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match pointer {
                0 => 0,       // version
                1 => 1,       // TOS
                2 | 3 => 4,   // total length
                8 => 7,       // TTL
                9 => 6,       // protocol
                12..=15 => 8, // source
                16..=19 => 24,
                _ => return None,
            };
            says(V6_PARAMETER_PROBLEM, 0, pointer)
        }
        _ => return None,
    })
}

/// The MTU of a path by a router that does not tell it (RFC 1191 §5 and §7.1), where IPv6 can use it.
fn plateau_below(packet_len: usize) -> u16 {
    const PLATEAUS: [u16; 6] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492];
    let below = PLATEAUS.into_iter().find(|&plateau| usize::from(plateau) < packet_len);
    below.unwrap_or(ipv6::MTU_MIN - LONGER_BYTES)
}

/// RFC 7915 §5.2. `None`: there is nothing like it, or nobody would act on it.
fn to_ipv4(message: Says, hop_mtu: u16) -> Option<Says> {
    let [kind, code, _, _, parameter @ ..] = message;
    let parameter = u32::from_be_bytes(parameter);
    Some(match (kind, code) {
        // No route, beyond scope, address unreachable.
        (V6_UNREACHABLE, 0 | 2 | 3) => says(UNREACHABLE, 1, 0),
        (V6_UNREACHABLE, 1) => says(UNREACHABLE, 10, 0),
        (V6_UNREACHABLE, 4) => says(UNREACHABLE, 3, 0),
        (V6_TOO_BIG, _) => {
            // No link has less than the least (RFC 8201 §4).
            let mtu = u16::try_from(parameter).unwrap_or(u16::MAX).max(ipv6::MTU_MIN);
            says(UNREACHABLE, FRAGMENTATION_NEEDED, (mtu - LONGER_BYTES).min(hop_mtu).into())
        }
        (V6_TIME_EXCEEDED, code) => says(TIME_EXCEEDED, code, 0),
        (V6_PARAMETER_PROBLEM, 0) => {
            let pointer = match parameter {
                0 => 0,       // version
                1 => 1,       // traffic class
                4 | 5 => 2,   // payload length
                6 => 9,       // next header
                7 => 8,       // hop limit
                8..=23 => 12, // source
                24..=39 => 16,
                _ => return None,
            };
            says(PARAMETER_PROBLEM, 0, pointer << 24)
        }
        (V6_PARAMETER_PROBLEM, 1) => says(UNREACHABLE, 2, 0),
        _ => return None,
    })
}
