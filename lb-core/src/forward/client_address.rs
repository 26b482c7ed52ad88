//! Telling a backend who the client is, within the TCP stream that comes from the pool.
//!
//! * *TOA*, the option of kind 254 (an experimental one of RFC 4727) that Linux modules of that name
//!   read: the client's port and address, in the segments before the client has sent a byte and in
//!   the first that has one, as far as there is room. Not in a part of a segment: the other parts are
//!   behind what they were cut behind.
//! * *PROXY protocol*, version 2 (`HAProxy`'s specification, §2.2): a header before the first byte of the
//!   stream. The client knows nothing of it: its sequence numbers grow by the header's length, and
//!   the backend's acknowledgements shrink by it. It is sent again with whatever the client sends
//!   again from the beginning, until the backend has acknowledged it. Errors about the client's segments
//!   are told as if there were none. A client that sends its first bytes in fragments cannot be helped:
//!   there is no place for a header between them.

use std::ops::Range;

use arrayvec::ArrayVec;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::ClientAddress;
use crate::pool::{Connection, Found};
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ports::TCP_HEADER_BYTES;
use crate::wire::tcp::{self, Tcp};
use crate::wire::{TCP, ethernet, icmp};

/// Kind of the TOA option.
const TOA: u8 = 254;
/// What a PROXY header begins with: its signature, then version 2 and the command PROXY.
const PROXY_START: [u8; 13] = *b"\r\n\r\n\0\r\nQUIT\n\x21";
/// The families of a PROXY header, with TCP: bytes 14.
const PROXY_TCP4: u8 = 0x11;
const PROXY_TCP6: u8 = 0x21;
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
        Self { connection: found.connection(), how, has_header: found.state.has_header() }
    }

    /// Bytes that a packet of the client has to grow by, as it came.
    ///
    /// # Errors
    /// [`DropReason::Untranslatable`]: it is a part of a datagram, of which the others stay where they are.
    pub(super) fn header_bytes_of(&self, frame: &[u8], meta: &Meta) -> Result<u16, DropReason> {
        let is_first = self.how == ClientAddress::Proxy
            && has_segment(meta)
            && frame
                .get(meta.l4_offset.into()..)
                .is_some_and(|segment| self.part(segment) == Part::First && !self.has_header);
        match is_first {
            true if meta.is_fragment => Err(DropReason::Untranslatable),
            true => Ok(proxy_bytes(self.is_ipv6())),
            false => Ok(0),
        }
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
            (ClientAddress::Toa, Part::First) if meta.is_fragment => Ok(()),
            (ClientAddress::Toa, Part::First) => self.add_option(frame, place, mtu),
            (ClientAddress::Proxy, Part::First) if !self.has_header => {
                let header = tcp::header_bytes(segment).ok_or(DropReason::Truncated)?;
                insert(frame, place, header, &self.proxy_header(), false)
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
        let before = |sequence| self.without_header(sequence);
        let (&Tcp { acknowledgement, flags, .. }, _) =
            Tcp::ref_from_prefix(segment).map_err(|_| DropReason::Truncated)?;
        if flags & tcp::ACK != 0 {
            shift(segment, tcp::ACKNOWLEDGEMENT, before)?;
        }
        for edge in tcp::sack_edges(segment) {
            shift(segment, edge, before)?;
        }
        let behind = acknowledgement.get().wrapping_sub(self.first());
        let more = u32::from(proxy_bytes(self.is_ipv6()));
        Ok(!self.has_header && is_behind(behind) && behind >= more)
    }

    /// The same in a translated error about a packet of the client: of what fits a path, the header
    /// takes its part, and the quoted sequence number is the backend's.
    ///
    /// # Errors
    /// [`DropReason::Truncated`].
    pub(super) fn error_to_client<F: Frame>(
        &self,
        frame: &mut F,
        meta: &Meta,
    ) -> Result<(), DropReason> {
        if self.how != ClientAddress::Proxy || meta.tuple.protocol != TCP {
            return Ok(());
        }
        let place = Place::find(frame.bytes())?;
        let message = frame.bytes_mut().get_mut(place.l4..).ok_or(DropReason::Truncated)?;
        let before = Sum::default().plus(message);
        let (says, quote) = message.split_first_chunk_mut().ok_or(DropReason::Truncated)?;
        let segment = quote.get_mut(transport_offset(quote, place.is_ipv6)?..);
        let segment = segment.ok_or(DropReason::Truncated)?;
        let quoted = segment.get(tcp::SEQUENCE).and_then(|bytes| U32::read_from_bytes(bytes).ok());
        let Some(quoted) = quoted.map(U32::get) else { return Ok(()) };
        let sent = self.without_header(quoted);
        if sent != quoted {
            // The checksum may be beyond the quote's end.
            let [old, new] = [quoted, sent].map(u32::to_be_bytes);
            segment.get_mut(tcp::SEQUENCE).ok_or(DropReason::Truncated)?.copy_from_slice(&new);
            if let Some(place) = segment.get_mut(tcp::CHECKSUM) {
                let sum = Checksum::from([place[0], place[1]]).replace(&old, &new);
                place.copy_from_slice(sum.as_bytes());
            }
        } else if quoted == self.first() {
            icmp::lower_mtu(says, place.is_ipv6, proxy_bytes(self.is_ipv6()));
        }
        icmp::repair(message, before, Sum::default().plus(message))
    }

    fn is_ipv6(&self) -> bool {
        self.connection.is_ipv6()
    }

    /// A number of the backend's stream as the client counts: of what the backend has of the header,
    /// the client has sent nothing.
    fn without_header(&self, sequence: u32) -> u32 {
        let (first, more) = (self.first(), u32::from(proxy_bytes(self.is_ipv6())));
        match sequence.wrapping_sub(first) {
            behind if !is_behind(behind) => sequence,
            behind => first.wrapping_add(behind.saturating_sub(more)),
        }
    }

    /// Sequence number of the first byte.
    fn first(&self) -> u32 {
        self.connection.isn.wrapping_add(1)
    }

    fn part(&self, segment: &[u8]) -> Part {
        let Ok((&Tcp { sequence, flags, .. }, _)) = Tcp::ref_from_prefix(segment) else {
            return Part::Before;
        };
        match sequence.get().wrapping_sub(self.first()) {
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
        if fits { insert(frame, place, TCP_HEADER_BYTES, &option, true) } else { Ok(()) }
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
    meta.rule.has_segment() && meta.tuple.protocol == TCP
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
        Ok(Self { is_ipv6, l3, l4: l3 + transport_offset(packet, is_ipv6)? })
    }
}

/// Bytes of a packet before its transport header.
fn transport_offset(packet: &[u8], is_ipv6: bool) -> Result<usize, DropReason> {
    if is_ipv6 {
        return Ok(ipv6::upper_layer_of_first(packet)?.offset);
    }
    let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
    Ok(ip.header_len())
}

/// Puts `added`, words of 4 bytes, into the segment behind `at` bytes of it; and makes room for them
/// in its header, if they are options.
fn insert<F: Frame>(
    frame: &mut F,
    place: Place,
    at: usize,
    added: &Added,
    are_options: bool,
) -> Result<(), DropReason> {
    let front = place.l4 + at;
    let bytes = frame.prepend(added.len()).ok_or(DropReason::NoHeadroom)?;
    let before = bytes.get_mut(..added.len() + front).ok_or(DropReason::NoHeadroom)?;
    before.copy_within(added.len().., 0);
    before.get_mut(front..).ok_or(DropReason::NoHeadroom)?.copy_from_slice(added);

    let packet = bytes.get_mut(place.l3..).ok_or(DropReason::Truncated)?;
    let len = |bytes: usize| u16::try_from(bytes).map(U16::new).map_err(|_| DropReason::TooBig);
    if place.is_ipv6 {
        let payload_len = len(packet.len().saturating_sub(ipv6::HEADER_BYTES))?;
        let (ip, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        ip.payload_len = payload_len;
    } else {
        let total_len = len(packet.len())?;
        let (ip, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        ip.checksum = ip.checksum.replace(ip.total_len.as_bytes(), total_len.as_bytes());
        ip.total_len = total_len;
    }
    let segment = bytes.get_mut(place.l4..).ok_or(DropReason::Truncated)?;
    let lengths = [len(segment.len() - added.len())?, len(segment.len())?];
    let (header, _) = Tcp::mut_from_prefix(segment).map_err(|_| DropReason::Truncated)?;
    let old = [header.data_offset, header.flags];
    if are_options {
        let words = u8::try_from(added.len() / 4).map_err(|_| DropReason::Truncated)?;
        header.data_offset = header.data_offset.wrapping_add(words << 4);
    }
    let new = [header.data_offset, header.flags];
    // The pseudo-header has the length.
    let sum = header.checksum.replace(lengths[0].as_bytes(), lengths[1].as_bytes());
    header.checksum = sum.replace(&old, &new).replace(&[], added);
    Ok(())
}

/// Changes a sequence number.
fn shift(
    segment: &mut [u8],
    place: Range<usize>,
    to: impl Fn(u32) -> u32,
) -> Result<(), DropReason> {
    let old = segment.get(place.clone()).and_then(|bytes| U32::read_from_bytes(bytes).ok());
    let new = to(old.ok_or(DropReason::Truncated)?.get());
    tcp::replace(segment, place, new.to_be_bytes()).ok_or(DropReason::Truncated)
}

#[cfg(test)]
mod tests;
