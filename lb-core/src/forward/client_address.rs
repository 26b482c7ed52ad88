//! Telling a backend who the client is, within the TCP stream that comes from the pool.
//!
//! * *TOA*, the option of kind 254 (an experimental one of RFC 4727) that Linux modules of that name
//!   read: the client's port and address, in the segments before the client has sent a byte and in
//!   the first that has one, as far as there is room.
//! * *PROXY protocol*, version 2 (`HAProxy`'s specification, §2.2): a header before the first byte of the
//!   stream. The client knows nothing of it: its sequence numbers grow by the header's length, and
//!   the backend's acknowledgements shrink by it. It is sent again with whatever the client sends
//!   again from the beginning, until the backend has acknowledged it.

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, IntoBytes};

use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::ClientAddress;
use crate::pool::{Connection, Found};
use crate::wire::checksum::Checksum;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ports::TCP_HEADER_BYTES;
use crate::wire::{ethernet, tcp};

/// Kind of the TOA option.
const TOA: u8 = 254;
/// What a PROXY header begins with: its signature, then version 2 and the command PROXY.
const PROXY_START: [u8; 13] = *b"\r\n\r\n\0\r\nQUIT\n\x21";
/// The families of a PROXY header, with TCP: bytes 14.
const PROXY_TCP4: u8 = 0x11;
const PROXY_TCP6: u8 = 0x21;
const IPV6_HEADER_BYTES: u16 = 40;
const ADDED_BYTES_MAX: usize = 52;

type Added = ArrayVec<u8, ADDED_BYTES_MAX>;

/// Bytes of the option, by the client's family: kind, length, port, address.
#[must_use]
pub(super) fn toa_bytes(is_ipv6: bool) -> u16 {
    if is_ipv6 { 20 } else { 8 }
}

/// Bytes of the header, by the client's family: 16, then two addresses and two ports.
#[must_use]
pub(super) fn proxy_bytes(is_ipv6: bool) -> u16 {
    if is_ipv6 { 52 } else { 28 }
}

/// The stream from a client, as far as telling who it is has to do with it.
pub(super) struct Stream<'a> {
    connection: &'a Connection,
    how: ClientAddress,
    /// The backend has acknowledged the PROXY header.
    has_header: bool,
}

/// Where a segment stands in the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A SYN, or nothing that belongs to the stream.
    Before,
    /// It begins with the first byte, or would.
    First,
    /// Behind it.
    Later,
}

impl<'a> Stream<'a> {
    /// Of a connection.
    #[must_use]
    pub(super) fn of(found: &'a Found, how: ClientAddress) -> Self {
        Self { connection: &found.connection, how, has_header: found.state.has_header() }
    }

    /// Bytes that a packet of the client has to grow by, as it came.
    pub(super) fn header_bytes_of(&self, frame: &[u8], meta: &Meta) -> u16 {
        let is_first = self.how == ClientAddress::Proxy
            && has_segment(meta)
            && frame
                .get(meta.l4_offset.into()..)
                .is_some_and(|segment| self.part(segment) == Part::First && !self.has_header);
        if is_first { proxy_bytes(self.is_ipv6()) } else { 0 }
    }

    /// Tells the backend, in a translated packet of the client that may have `mtu` bytes.
    ///
    /// # Errors
    /// [`DropReason::NoHeadroom`].
    pub(super) fn to_backend<F: Frame>(
        &self,
        frame: &mut F,
        meta: &Meta,
        mtu: u16,
    ) -> Result<(), DropReason> {
        if self.how == ClientAddress::Hidden || !has_segment(meta) {
            return Ok(());
        }
        let place = Place::find(frame.bytes())?;
        let segment = frame.bytes_mut().get_mut(place.l4..).ok_or(DropReason::Truncated)?;
        match (self.how, self.part(segment)) {
            (ClientAddress::Hidden, _) | (_, Part::Before) | (ClientAddress::Toa, Part::Later) => {
                Ok(())
            }
            (ClientAddress::Toa, Part::First) => self.add_option(frame, place, mtu),
            (ClientAddress::Proxy, Part::First) if !self.has_header => {
                let header = tcp::header_bytes(segment).ok_or(DropReason::Truncated)?;
                insert(frame, place, header, &self.proxy_header())
            }
            (ClientAddress::Proxy, _) => {
                let more = u32::from(proxy_bytes(self.is_ipv6()));
                shift(segment, tcp::SEQUENCE, |sequence| sequence.wrapping_add(more))
            }
        }
    }

    /// Hides from the client what it does not know, in a translated packet of the backend. Has the
    /// backend acknowledged the PROXY header now?
    ///
    /// # Errors
    /// [`DropReason::Truncated`].
    pub(super) fn to_client<F: Frame>(
        &self,
        frame: &mut F,
        meta: &Meta,
    ) -> Result<bool, DropReason> {
        if self.how != ClientAddress::Proxy || !has_segment(meta) {
            return Ok(false);
        }
        let place = Place::find(frame.bytes())?;
        let segment = frame.bytes_mut().get_mut(place.l4..).ok_or(DropReason::Truncated)?;
        let first = self.first();
        let more = u32::from(proxy_bytes(self.is_ipv6()));
        // Of what the backend has of the header, the client has sent nothing.
        let before = |sequence: u32| match sequence.wrapping_sub(first) {
            behind if !is_behind(behind) => sequence,
            behind => first.wrapping_add(behind.saturating_sub(more)),
        };
        let bytes = segment.get(tcp::ACKNOWLEDGEMENT).ok_or(DropReason::Truncated)?;
        let acknowledged = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if segment.get(tcp::FLAGS).is_some_and(|flags| flags & tcp::ACK != 0) {
            shift(segment, tcp::ACKNOWLEDGEMENT, before)?;
        }
        for edge in tcp::sack_edges(segment) {
            shift(segment, edge, before)?;
        }
        let behind = acknowledged.wrapping_sub(first);
        Ok(!self.has_header && is_behind(behind) && behind >= more)
    }

    fn is_ipv6(&self) -> bool {
        self.connection.flow().is_ipv6
    }

    /// Sequence number of the first byte.
    fn first(&self) -> u32 {
        self.connection.isn.wrapping_add(1)
    }

    fn part(&self, segment: &[u8]) -> Part {
        let Some((header, _)) = segment.split_first_chunk::<TCP_HEADER_BYTES>() else {
            return Part::Before;
        };
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let flags = header[tcp::FLAGS];
        match sequence.wrapping_sub(self.first()) {
            _ if flags & tcp::SYN != 0 => Part::Before,
            // Nobody reads what comes with a reset.
            0 if flags & tcp::ACK != 0 && flags & tcp::RST == 0 => Part::First,
            0 if self.has_header => Part::Later,
            0 => Part::Before,
            behind if is_behind(behind) => Part::Later,
            _ => Part::Before,
        }
    }

    fn add_option<F: Frame>(
        &self,
        frame: &mut F,
        place: Place,
        mtu: u16,
    ) -> Result<(), DropReason> {
        let Connection { client, client_port, .. } = self.connection;
        let address = client.get(if self.is_ipv6() { 0 } else { 12 }..).unwrap_or_default();
        let len = toa_bytes(self.is_ipv6());
        let mut option = Added::new();
        #[expect(clippy::cast_possible_truncation, reason = "8 or 20")]
        option.extend([TOA, len as u8]);
        option.extend(client_port.iter().chain(address).copied());
        let segment = frame.bytes().get(place.l4..).ok_or(DropReason::Truncated)?;
        let header = tcp::header_bytes(segment).ok_or(DropReason::Truncated)?;
        let fits = header + option.len() <= tcp::HEADER_BYTES_MAX
            && frame.bytes().len() - place.l3 + option.len() <= usize::from(mtu);
        if fits { insert(frame, place, TCP_HEADER_BYTES, &option) } else { Ok(()) }
    }

    fn proxy_header(&self) -> Added {
        let Connection { client, vip, client_port, vip_port, .. } = self.connection;
        let is_ipv6 = self.is_ipv6();
        let from = if is_ipv6 { 0 } else { 12 };
        let mut header = Added::new();
        header.extend(PROXY_START);
        header.push(if is_ipv6 { PROXY_TCP6 } else { PROXY_TCP4 });
        header.extend((proxy_bytes(is_ipv6) - 16).to_be_bytes());
        header.extend(client.iter().skip(from).chain(vip.iter().skip(from)).copied());
        header.extend(client_port.iter().chain(vip_port).copied());
        header
    }
}

/// Is it ahead by less than half of all sequence numbers (RFC 9293 §3.4)?
fn is_behind(difference: u32) -> bool {
    difference != 0 && difference < 1 << 31
}

fn has_segment(meta: &Meta) -> bool {
    matches!(meta.rule, Rule::Flow | Rule::Return) && meta.tuple.protocol == crate::wire::TCP
}

/// Where the headers of a translated packet lie.
#[derive(Clone, Copy)]
struct Place {
    is_ipv6: bool,
    l3: usize,
    l4: usize,
}

impl Place {
    fn find(frame: &[u8]) -> Result<Self, DropReason> {
        let (_, payload) = ethernet::parse(frame)?;
        let l3 = payload.offset;
        let packet = frame.get(l3..).ok_or(DropReason::Truncated)?;
        let is_ipv6 = payload.ether_type == ethernet::IPV6;
        let header_bytes = if is_ipv6 {
            ipv6::upper_layer_of_first(packet)?.offset
        } else {
            Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?.0.header_len()
        };
        Ok(Self { is_ipv6, l3, l4: l3 + header_bytes })
    }
}

/// Puts `added` into the segment, `at` so many bytes from its start; at 20, as an option. An even
/// number of bytes, at an even place.
fn insert<F: Frame>(
    frame: &mut F,
    place: Place,
    at: usize,
    added: &Added,
) -> Result<(), DropReason> {
    let len = added.len();
    let segment_before = frame.bytes().len() - place.l4;
    let front = place.l4 + at;
    let bytes = frame.prepend(len).ok_or(DropReason::NoHeadroom)?;
    let before = bytes.get_mut(..len + front).ok_or(DropReason::NoHeadroom)?;
    before.copy_within(len.., 0);
    let room = before.get_mut(front..).ok_or(DropReason::NoHeadroom)?;
    room.copy_from_slice(added);
    let packet = bytes.get_mut(place.l3..).ok_or(DropReason::Truncated)?;
    let packet_len = u16::try_from(packet.len()).map_err(|_| DropReason::TooBig)?;
    if place.is_ipv6 {
        let (ip, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let payload_len = packet_len.checked_sub(IPV6_HEADER_BYTES).ok_or(DropReason::Truncated)?;
        ip.payload_len.set(payload_len);
    } else {
        let (ip, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let old = ip.total_len;
        ip.total_len.set(packet_len);
        ip.checksum = ip.checksum.replace(old.as_bytes(), ip.total_len.as_bytes());
    }
    let segment = bytes.get_mut(place.l4..).ok_or(DropReason::Truncated)?;
    let lengths = [segment_before, segment.len()]
        .map(|len| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    // The header's length lies beside the flags.
    let words = segment.get_mut(12..14).ok_or(DropReason::Truncated)?;
    let [[a, b], [c, d]] = lengths;
    let old = [a, b, words[0], words[1]];
    if at == TCP_HEADER_BYTES && added.first() == Some(&TOA) {
        let more = u8::try_from(len / 4).map_err(|_| DropReason::Truncated)?;
        words[0] = words[0].wrapping_add(more << 4);
    }
    let new = [c, d, words[0], words[1]];
    repair(segment, |sum| sum.replace(&old, &new).replace(&[], added))
}

/// Changes a sequence number.
fn shift(
    segment: &mut [u8],
    place: std::ops::Range<usize>,
    to: impl Fn(u32) -> u32,
) -> Result<(), DropReason> {
    let is_odd = !place.start.is_multiple_of(2);
    let bytes = segment.get_mut(place).ok_or(DropReason::Truncated)?;
    let old = <[u8; 4]>::read_from_bytes(bytes).map_err(|_| DropReason::Truncated)?;
    let new = to(u32::from_be_bytes(old)).to_be_bytes();
    bytes.copy_from_slice(&new);
    // At an odd place, bytes count the other way round in the sum (RFC 1071 §2 B).
    let in_words = |[a, b, c, d]: [u8; 4]| if is_odd { [b, a, d, c] } else { [a, b, c, d] };
    repair(segment, |sum| sum.replace(&in_words(old), &in_words(new)))
}

fn repair(segment: &mut [u8], change: impl FnOnce(Checksum) -> Checksum) -> Result<(), DropReason> {
    let bytes = segment.get_mut(tcp::CHECKSUM).ok_or(DropReason::Truncated)?;
    let sum = change(Checksum::from([bytes[0], bytes[1]]));
    bytes.copy_from_slice(sum.as_bytes());
    Ok(())
}
