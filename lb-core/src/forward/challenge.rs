//! SYNs that are challenged: a frame becomes the answer to its sender. See [`crate::admission`].

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::{U16, U32};

use super::answer::put_ip;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::Port;
use crate::wire::TCP;
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ethernet;
use crate::wire::tcp::{self, Tcp};
use crate::wire::{ipv4, ipv6};

const SEGMENT_BYTES: u16 = 20;
const _: () = assert!(size_of::<Tcp>() == SEGMENT_BYTES as usize);

/// Turns a SYN, which is no fragment, into an ACK of `number` from whom it was sent to, back the way
/// that it came. It lies where the SYN was, which has at least as many bytes, and has its tags.
///
/// # Errors
/// [`DropReason::SynLimit`]: the sender is not one station.
pub fn challenge<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    port: &Port,
    number: u32,
) -> Result<(), DropReason> {
    let (ethernet, _) = ethernet::parse(frame.bytes())?;
    let sender = ethernet.src;
    if !sender.is_station() {
        return Err(DropReason::SynLimit);
    }
    let flow = meta.tuple.reversed();
    let ip_bytes = if flow.is_ipv6 { ipv6::HEADER_BYTES } else { ipv4::HEADER_BYTES };
    let l3_offset = usize::from(meta.l3_offset);
    frame.truncate(l3_offset + ip_bytes + usize::from(SEGMENT_BYTES));
    let bytes = frame.bytes_mut();
    let (l2, packet) = bytes.split_at_mut_checked(l3_offset).ok_or(DropReason::Truncated)?;
    let macs = l2.first_chunk_mut::<12>().ok_or(DropReason::Truncated)?;
    macs.copy_from_slice([sender, port.mac].as_bytes());
    let (ip, segment) = packet.split_at_mut_checked(ip_bytes).ok_or(DropReason::Truncated)?;
    let mut header = Tcp {
        src: U16::new(flow.src_port()),
        dst: U16::new(flow.dst_port()),
        // Says nothing to who waits for a SYN.
        sequence: U32::ZERO,
        acknowledgement: U32::new(number),
        data_offset: 5 << 4,
        flags: tcp::ACK,
        window: U16::ZERO,
        checksum: Checksum::ZERO,
        urgent: U16::ZERO,
    };
    // What IPv4 addresses have in front sums up to nothing (all ones, twice).
    header.checksum = Sum::default()
        .pseudo_header(&flow.src, &flow.dst, SEGMENT_BYTES, TCP)
        .plus(header.as_bytes())
        .checksum();
    header.write_to(segment).map_err(|_| DropReason::Truncated)?;
    put_ip(ip, (flow.is_ipv6, [flow.src, flow.dst]), (TCP, 0), segment.len())
}
