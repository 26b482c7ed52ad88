//! Telling a backend who the client is: TOA, and version 2 of the PROXY protocol.

use std::net::IpAddr;

use lb_core::drop_reason::DropReason::Untranslatable;
use lb_core::model::ClientAddress;

use super::connections::Connection;
use super::headers::Ip;
use super::nat::{repaired, word};
use super::{Part, Verdict};

/// What a segment of a client is changed by.
pub(super) enum Told {
    Nothing,
    /// An option, where there is room.
    Option(Vec<u8>),
    Header(Vec<u8>),
    /// The header is there: everything is so many bytes further on.
    Shifted(u32),
}

impl Told {
    /// Of a segment that a client sent on a connection.
    pub(super) fn of(
        connection: &Connection,
        how: ClientAddress,
        (segment, part, is_piece): (&[u8], Part, bool),
    ) -> Result<Self, Verdict> {
        let is_tcp = connection.flow.protocol == 6 && part == Part::Segment;
        let Some(header) = segment.get(..20).filter(|_| is_tcp) else { return Ok(Self::Nothing) };
        let (flags, client) = (header[13], connection.flow.src);
        let (has_syn, has_ack, has_rst) = (flags & 2 != 0, flags & 16 != 0, flags & 4 != 0);
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let behind = sequence.wrapping_sub(connection.isn).wrapping_sub(1);
        let is_first = behind == 0 && has_ack && !has_rst;
        let is_later =
            (1..1 << 31).contains(&behind) || behind == 0 && !is_first && connection.has_header;
        Ok(match how {
            _ if has_syn => Self::Nothing,
            ClientAddress::Toa if is_first && !is_piece => Self::Option(toa(connection)),
            ClientAddress::Proxy if is_first && !connection.has_header => {
                if is_piece {
                    return Err(Untranslatable.into());
                }
                Self::Header(proxy_header(connection))
            }
            ClientAddress::Proxy if is_first || is_later => Self::Shifted(proxy_len(client)),
            _ => Self::Nothing,
        })
    }
}

pub(super) fn toa_len(client: IpAddr) -> u16 {
    if client.is_ipv4() { 8 } else { 20 }
}

pub(super) fn proxy_len(client: IpAddr) -> u32 {
    if client.is_ipv4() { 28 } else { 52 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn toa(Connection { flow, .. }: &Connection) -> Vec<u8> {
    let len = u8::try_from(toa_len(flow.src)).unwrap();
    [&[254, len], &flow.ports[0].to_be_bytes()[..], &octets(flow.src)].concat()
}

/// "The PROXY protocol", §2.2.
fn proxy_header(Connection { flow, .. }: &Connection) -> Vec<u8> {
    let (family, len) = if flow.src.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    let ports = flow.ports.map(u16::to_be_bytes).concat();
    let addresses = [octets(flow.src), octets(flow.dst)].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, family, 0, len], &addresses, &ports].concat()
}

/// The segment with `added` behind `at` bytes of it, which makes its header longer if it is an option.
pub(super) fn with_added(segment: &[u8], at: usize, added: &[u8], is_option: bool) -> Vec<u8> {
    let mut new = [&segment[..at], added, &segment[at..]].concat();
    if is_option {
        new[12] += u8::try_from(added.len() / 4).unwrap() << 4;
    }
    // The pseudo-header has the length.
    let lengths = [segment.len(), new.len()].map(|len| u32::try_from(len).unwrap().to_be_bytes());
    let sum = repaired(
        word(segment, 16),
        (&[&lengths[0], &segment[12..14]].concat(), &[&lengths[1], &new[12..14], added].concat()),
    );
    new[16..18].copy_from_slice(&sum);
    new
}

/// The segment with another number at `at`, wherever that is.
pub(super) fn renumbered(segment: &mut [u8], at: usize, new: u32) {
    // At an odd place, the bytes of each word are the other way round (RFC 1071 §2 B).
    let from = at & !1;
    let to = (at + 5) & !1;
    let before = segment[from..to.min(segment.len())].to_vec();
    segment[at..at + 4].copy_from_slice(&new.to_be_bytes());
    let sum = repaired(word(segment, 16), (&before, &segment[from..to.min(segment.len())]));
    segment[16..18].copy_from_slice(&sum);
}

pub(super) fn number(segment: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]])
}

/// A backend's segment, as a client understands that has not sent the header. Has the backend all of
/// it?
pub(super) fn hide_header(connection: &Connection, segment: &mut [u8]) -> bool {
    let (first, len) = (connection.isn.wrapping_add(1), proxy_len(connection.flow.src));
    let before = |sequence: u32| match sequence.wrapping_sub(first) {
        behind if (1..1 << 31).contains(&behind) => first.wrapping_add(behind.saturating_sub(len)),
        _ => sequence,
    };
    let acknowledged = number(segment, 8);
    if segment[13] & 16 != 0 {
        renumbered(segment, 8, before(acknowledged));
    }
    for at in sack_edges(segment) {
        renumbered(segment, at, before(number(segment, at)));
    }
    (len..1 << 31).contains(&acknowledged.wrapping_sub(first))
}

/// The same of an error about a segment of the client.
pub(super) fn hide_header_in_error(connection: &Connection, message: &mut [u8]) {
    let (first, len) = (connection.isn.wrapping_add(1), proxy_len(connection.flow.src));
    let before = message.to_vec();
    let is_v6 = connection.flow.src.is_ipv6();
    let at = 8 + if is_v6 {
        Ip::of_quote(&before[8..], true).map_or(40, |ip| ip.packet.len() - ip.segment.len())
    } else {
        usize::from(message[8] & 15) * 4
    };
    if message.len() < at + 8 {
        return;
    }
    let behind = number(message, at + 4).wrapping_sub(first);
    if behind == 0 {
        let (place, least) = match (is_v6, message[0], message[1]) {
            (true, 2, _) => (4..8, 1280),
            (false, 3, 4) => (6..8, 68),
            _ => (0..0, 0),
        };
        let told = message[place.clone()].iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
        if told > least {
            let told = told.saturating_sub(len).max(least).to_be_bytes();
            message[place.clone()].copy_from_slice(&told[4 - place.len()..]);
        }
    } else if behind < 1 << 31 {
        let sequence = first.wrapping_add(behind.saturating_sub(len));
        message[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if message.len() >= at + 18 {
            let sum = repaired(
                word(message, at + 16),
                (&before[at + 4..at + 8], &message[at + 4..at + 8]),
            );
            message[at + 16..at + 18].copy_from_slice(&sum);
        }
    }
    let sum = repaired(word(message, 2), (&before, message));
    message[2..4].copy_from_slice(&sum);
}

/// Where the edges of selective acknowledgements lie (RFC 2018 §3).
fn sack_edges(segment: &[u8]) -> Vec<usize> {
    let header_len = usize::from(segment[12] / 16) * 4;
    let Some(options) = segment.get(20..header_len) else { return Vec::new() };
    let mut at = 0;
    while at < options.len() {
        match options[at..] {
            [1, ..] => at += 1,
            [5, len, ..] if len >= 2 && at + usize::from(len) <= options.len() => {
                let edges = (usize::from(len) - 2) / 4;
                return (0..edges).map(|edge| 20 + at + 2 + edge * 4).collect();
            }
            [kind, len, ..] if kind > 1 && len >= 2 => at += usize::from(len),
            _ => break,
        }
    }
    Vec::new()
}
