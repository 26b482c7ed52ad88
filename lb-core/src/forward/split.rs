//! A packet in pieces (RFC 791 §3.2, RFC 8200 §4.5).

use arrayvec::ArrayVec;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::L2Header;
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::state::State;
use crate::tables::HopEntry;
use crate::wire::checksum::Checksum;
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::part::Part;

/// L2 header with its `EtherType`, IPv6 header, fragment header.
const FRONT_BYTES_MAX: usize = L2Header::BYTES_MAX + 2 + ipv6::HEADER_BYTES + ipv6::FRAGMENT_BYTES;

type Front = ArrayVec<u8, FRONT_BYTES_MAX>;

/// What all pieces of one packet have in common.
struct Whole {
    l2_bytes: usize,
    is_ipv6: bool,
    /// Of a packet that is a piece itself: which.
    part: Part,
    /// The protocol of what is in pieces.
    protocol: u8,
    /// Bytes before the payload.
    header_bytes: usize,
    /// Bytes of the frame up to the end of the packet.
    packet_end: usize,
    /// Bytes of payload in all pieces but the last; whole eights.
    step: usize,
}

/// Cuts the packet of `frame`, which has no options or extension headers, but may be a piece itself,
/// into pieces that fit `hop`. The frame becomes the first; the others are added to `state`, behind
/// `place`.
///
/// # Errors
/// [`DropReason::NoBuffer`], [`DropReason::NoHeadroom`]; then there is no piece at all.
pub(super) fn split<F: Frame>(
    frame: &mut F,
    hop: &HopEntry,
    place: usize,
    state: &mut State<F>,
    counters: &Counters,
) -> Result<(), DropReason> {
    let whole = Whole::read(frame.bytes(), hop, state)?;
    frame.truncate(whole.packet_end); // padding is none of it
    if whole.step == 0 {
        return Err(DropReason::TooBig);
    }
    let mut made = 0;
    let mut at = whole.step;
    while let Some(rest) = frame.bytes().get(whole.header_bytes + at..).filter(|r| !r.is_empty()) {
        let piece = rest.get(..whole.step).unwrap_or(rest);
        let front = whole.front(frame.bytes(), at, piece.len(), rest.len() > piece.len());
        let created = front
            .and_then(|front| frame.sibling(&front, piece))
            .ok_or(DropReason::NoBuffer)
            .and_then(|piece| state.create(place, hop.out, piece));
        if let Err(reason) = created {
            state.forget_created(place);
            return Err(reason);
        }
        made += 1;
        at += whole.step;
    }
    let front = whole.front(frame.bytes(), 0, whole.step, true);
    frame.truncate(whole.header_bytes + whole.step);
    frame.trim_front(whole.header_bytes);
    let room = front.as_ref().and_then(|front| frame.prepend(front.len()).zip(Some(front)));
    let Some((bytes, front)) = room else {
        state.forget_created(place);
        return Err(DropReason::NoHeadroom);
    };
    if let Some(place) = bytes.get_mut(..front.len()) {
        place.copy_from_slice(front);
    }
    counters.created.add(made);
    Ok(())
}

impl Whole {
    fn read<F>(frame: &[u8], hop: &HopEntry, state: &mut State<F>) -> Result<Self, DropReason> {
        let (_, payload) = ethernet::parse(frame)?;
        let packet = frame.get(payload.offset..).ok_or(DropReason::Truncated)?;
        let is_ipv6 = payload.ether_type == ethernet::IPV6;
        let mut whole = || Part { id: state.next_id(), offset: 0, has_more: false };
        let packet_bytes;
        let (part, protocol, header_bytes, front_bytes) = if is_ipv6 {
            let (ip, _) = Ipv6::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            packet_bytes = ip.total_len();
            let (part, protocol, header_bytes) = match ipv6::fragment_header(packet) {
                Some((header, at)) => {
                    (header.part(), header.next_header, at + ipv6::FRAGMENT_BYTES)
                }
                None => (whole(), ip.next_header, ipv6::HEADER_BYTES),
            };
            (part, protocol, header_bytes, ipv6::HEADER_BYTES + ipv6::FRAGMENT_BYTES)
        } else {
            let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            packet_bytes = ip.total_len.get().into();
            let part = if ip.is_fragment() { ip.part() } else { whole() };
            (part, ip.protocol, ipv4::HEADER_BYTES, ipv4::HEADER_BYTES)
        };
        Ok(Self {
            l2_bytes: payload.offset,
            is_ipv6,
            part,
            protocol,
            header_bytes: payload.offset + header_bytes,
            packet_end: payload.offset + packet_bytes,
            step: usize::from(hop.mtu).saturating_sub(front_bytes) & !7,
        })
    }

    /// What stands before the piece of `len` bytes at `offset`.
    fn front(&self, frame: &[u8], offset: usize, len: usize, has_more: bool) -> Option<Front> {
        let (l2, packet) = frame.split_at_checked(self.l2_bytes)?;
        let Part { id, offset: first, has_more: is_followed } = self.part;
        let offset = u16::try_from(usize::from(first) * 8 + offset).ok()?;
        let has_more = has_more || is_followed;
        let mut front = Front::new();
        front.try_extend_from_slice(l2).ok()?;
        if self.is_ipv6 {
            let (ip, _) = Ipv6::ref_from_prefix(packet).ok()?;
            let header = Ipv6 {
                payload_len: U16::new(u16::try_from(len + ipv6::FRAGMENT_BYTES).ok()?),
                next_header: ipv6::FRAGMENT,
                ..*ip
            };
            front.try_extend_from_slice(header.as_bytes()).ok()?;
            let [high, low] = (offset | u16::from(has_more)).to_be_bytes();
            front.try_extend_from_slice(&[self.protocol, 0, high, low]).ok()?;
            front.try_extend_from_slice(&id.to_be_bytes()).ok()?;
        } else {
            let (ip, _) = Ipv4::ref_from_prefix(packet).ok()?;
            let flags = if has_more { ipv4::MORE_FRAGMENTS } else { 0 };
            let [.., high, low] = id.to_be_bytes();
            let mut header = Ipv4 {
                total_len: U16::new(u16::try_from(len + ipv4::HEADER_BYTES).ok()?),
                id: U16::from_bytes([high, low]),
                fragment: U16::new(flags | (offset / 8)),
                checksum: Checksum::ZERO,
                ..*ip
            };
            header.checksum = Checksum::of(header.as_bytes());
            front.try_extend_from_slice(header.as_bytes()).ok()?;
        }
        Some(front)
    }
}
