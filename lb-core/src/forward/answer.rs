//! ICMP errors that the balancer sends in a VIP's name: a frame becomes the answer to its sender.

use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::{U16, U32};

use super::{L2Header, push_front};
use crate::burst::{Exit, Meta, Rule};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::state::State;
use crate::tables::HopEntry;
use crate::tables::next_hop::{Port, PortId};
use crate::tuple::mapped;
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::{self, Says};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{ICMP, ICMPV6};

/// Precedence of errors: internetwork control (RFC 1812 §4.3.2.5).
const IPV4_TOS: u8 = 0xc0;
const HOPS: u8 = 64;

/// Why a packet goes no further, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is too big for the way; so many bytes would fit (RFC 1191, RFC 8201).
    TooBig(u16),
    /// It has no hop left (RFC 1812 §5.3.1, RFC 4443 §3.3).
    TtlExceeded,
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooBig(_) => Self::TooBig,
            Refusal::TtlExceeded => Self::TtlExceeded,
        }
    }
}

/// Turns the frame into an answer to its sender, and counts it; or says why the frame is dropped
/// without a word: its sender is not one station, or it is one of those that nobody is told about (RFC
/// 1122 §3.2.2, RFC 4443 §2.4 e), or too many are told already.
///
/// Drops: the reason that belongs to `refusal`; [`DropReason::NoHeadroom`].
#[cold]
pub fn tell<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    refusal: Refusal,
    (port_id, port): (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Exit {
    let may_be_told = matches!(meta.rule, Rule::Flow | Rule::Return);
    if !may_be_told || !state.answers.allow(state.now) {
        return DropReason::from(refusal).into();
    }
    // A VIP speaks for itself where only its packets can be meant; else the balancer, as a router.
    let as_router = meta.rule == Rule::Return || refusal == Refusal::TtlExceeded;
    let own = if meta.tuple.is_ipv6 {
        port.ipv6().map(|address| address.octets())
    } else {
        port.ipv4().map(|address| mapped(address.octets()))
    };
    let from = own.filter(|_| as_router).unwrap_or(meta.tuple.dst);
    let head = match (refusal, meta.tuple.is_ipv6) {
        (Refusal::TooBig(mtu), is_ipv6) => too_big(mtu, is_ipv6),
        (Refusal::TtlExceeded, false) => [icmp::TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0],
        (Refusal::TtlExceeded, true) => [icmp::V6_TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0],
    };
    if let Err(reason) = answer(frame, meta, (port_id, port), from, head) {
        state.answers.give_back();
        return if reason == DropReason::NotOurs { refusal.into() } else { reason }.into();
    }
    counters.answered.add(1);
    Exit::Answer(port_id, refusal.into())
}

/// So many bytes would fit.
pub(super) fn too_big(mtu: u16, is_ipv6: bool) -> Says {
    let [high, low] = mtu.to_be_bytes();
    if is_ipv6 {
        [icmp::V6_TOO_BIG, 0, 0, 0, 0, 0, high, low]
    } else {
        [icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, 0, 0, 0, 0, high, low]
    }
}

/// Turns the frame into an error that says `head`, from `from`, back the way that it came.
/// [`DropReason::NotOurs`]: that is not one station.
fn answer<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    (port_id, port): (PortId, &Port),
    from: [u8; 16],
    head: Says,
) -> Result<(), DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let (l2_bytes, _) = frame.bytes().split_at_checked(l3_offset).ok_or(DropReason::Truncated)?;
    let (ethernet, _) = ethernet::parse(frame.bytes())?;
    let &Ethernet { src: sender, .. } = ethernet;
    if !sender.is_station() {
        return Err(DropReason::NotOurs);
    }
    let back = HopEntry {
        macs: [sender, port.mac],
        out: port_id,
        vlan: None,
        mtu: port.mtu,
        udp_checksums: false,
    };
    let l2 = L2Header::new(&back, port_id, l2_bytes);
    let quote = l3_offset..l3_offset + usize::from(meta.packet_len);
    let ends = [from, meta.tuple.src];
    write(frame, quote, &l2, (meta.tuple.is_ipv6, ends), head)
}

/// Turns the frame into an error that says `head` and quotes the bytes at `quote`, as many as it may;
/// from the first to the second of `ends`, whose family is also the quote's.
pub(super) fn write<F: Frame>(
    frame: &mut F,
    quote: Range<usize>,
    l2: &L2Header,
    (is_ipv6, [src, dst]): (bool, [[u8; 16]; 2]),
    head: Says,
) -> Result<(), DropReason> {
    let (ip_bytes, bytes_max, ether_type) = if is_ipv6 {
        (ipv6::HEADER_BYTES, icmp::V6_BYTES_MAX, ethernet::IPV6)
    } else {
        (ipv4::HEADER_BYTES, icmp::BYTES_MAX, ethernet::IPV4)
    };
    let quote_max = usize::from(bytes_max) - ip_bytes - icmp::HEADER_BYTES;
    frame.truncate(quote.start + quote.len().min(quote_max));
    frame.trim_front(quote.start);
    let packet = push_front(frame, l2, ether_type, ip_bytes + icmp::HEADER_BYTES)?;
    let (ip, message) = packet.split_at_mut_checked(ip_bytes).ok_or(DropReason::NoHeadroom)?;
    message.get_mut(..icmp::HEADER_BYTES).ok_or(DropReason::NoHeadroom)?.copy_from_slice(&head);
    let addresses = if is_ipv6 { Some(Sum::default().plus(&src).plus(&dst)) } else { None };
    let (protocol, tos) = if is_ipv6 { (ICMPV6, 0) } else { (ICMP, IPV4_TOS) };
    put_ip(ip, (is_ipv6, [src, dst]), (protocol, tos), message.len())?;
    let checksum = icmp::checksum(message, addresses)?;
    if let Some(place) = message.get_mut(icmp::CHECKSUM) {
        place.copy_from_slice(checksum.as_bytes());
    }
    Ok(())
}

/// Writes an IP header from the first to the second of the ends, before `len` bytes of a protocol; with
/// a type of service, if it is IPv4. `ip` has as many bytes as the header.
///
/// # Errors
/// [`DropReason::TooBig`]: no packet has as many bytes.
pub(super) fn put_ip(
    ip: &mut [u8],
    (is_ipv6, [src, dst]): (bool, [[u8; 16]; 2]),
    (protocol, tos): (u8, u8),
    len: usize,
) -> Result<(), DropReason> {
    let in_field = |len| u16::try_from(len).map(U16::new).map_err(|_| DropReason::TooBig);
    if is_ipv6 {
        let header = Ipv6 {
            version_class_flow: U32::new(6 << 28),
            payload_len: in_field(len)?,
            next_header: protocol,
            hop_limit: HOPS,
            src,
            dst,
        };
        ip.copy_from_slice(header.as_bytes());
    } else {
        let [src, dst] = [src, dst].map(|it| [it[12], it[13], it[14], it[15]]);
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos,
            total_len: in_field(ipv4::HEADER_BYTES + len)?,
            id: U16::ZERO,
            fragment: U16::new(ipv4::DONT_FRAGMENT),
            ttl: HOPS,
            protocol,
            checksum: Checksum::ZERO,
            src,
            dst,
        };
        header.checksum = Checksum::of(header.as_bytes());
        ip.copy_from_slice(header.as_bytes());
    }
    Ok(())
}
