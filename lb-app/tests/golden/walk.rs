//! A second, plain reader of packets, for what has to hold whatever the case.

use crate::case::hex;

const GUE_PORTS: [u16; 2] = [6080, 6081];

/// What a frame has inside.
#[derive(Debug, Default)]
pub(crate) struct Walk<'f> {
    /// Checksums that are not true.
    pub(crate) wrong: Vec<Wrong>,
    /// The packet in the outer header, if there is one and it is there as a whole.
    pub(crate) tunnelled: Option<&'f [u8]>,
    depth: u32,
    is_tunnel: bool,
}

/// A checksum that is not true.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Whose.
    pub(crate) what: &'static str,
    /// Of the outermost IP header, or of what follows it.
    pub(crate) is_outermost: bool,
}

/// The IP packet in a frame, without padding.
pub(crate) fn packet(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2)?, [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let packet = frame.get(at + 2..)?;
    let len = match packet.first()? >> 4 {
        4 => word(packet, 2)?,
        6 => 40 + word(packet, 4)?,
        _ => return None,
    };
    packet.get(..len)
}

/// Addresses, protocol and ports of a whole TCP or UDP packet without extension headers.
pub(crate) fn flow(frame: &[u8]) -> Option<String> {
    let packet = packet(frame)?;
    let (addresses, protocol, l4) = match packet.first()? >> 4 {
        4 if word(packet, 6)?.trailing_zeros() >= 14 => {
            (packet.get(12..20)?, *packet.get(9)?, packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 => (packet.get(8..40)?, *packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    matches!(protocol, 6 | 17)
        .then(|| Some(format!("{} {protocol} {}", hex(addresses), hex(l4.get(..4)?))))?
}

impl<'f> Walk<'f> {
    pub(crate) fn of(frame: &'f [u8]) -> Self {
        let mut walk = Self::default();
        if let Some(packet) = packet(frame) {
            let _ = walk.ip(packet);
        }
        walk
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        self.is_tunnel
    }

    fn check(&mut self, what: &'static str, is_true: bool) {
        if !is_true {
            self.wrong.push(Wrong { what, is_outermost: self.depth == 0 });
        }
    }

    /// `None`: nothing more to see.
    fn ip(&mut self, packet: &'f [u8]) -> Option<()> {
        if packet.first()? >> 4 == 4 {
            let header = packet.get(..usize::from(packet[0] & 15) * 4)?;
            self.check("IPv4 header", sum([header]) == 0xffff);
            let total_len = word(packet, 2)?;
            let l4 = packet.get(header.len()..total_len)?;
            let pseudo = pseudo(packet.get(12..20)?, packet[9], l4.len());
            let is_part = word(packet, 6)? & 0x3fff != 0;
            self.upper(packet[9], l4, &pseudo, true, is_part)
        } else {
            let mut protocol = *packet.get(6)?;
            let mut at = 40;
            let end = 40 + word(packet, 4)?;
            let mut is_part = false;
            // A routing header would put another destination into the pseudo-header (RFC 8200
            // §8.1), if it still had segments left: here none has.
            while matches!(protocol, 0 | 43 | 44 | 60) && !is_part {
                let header = packet.get(at..)?;
                is_part = protocol == 44 && word(header, 2)? & 0xfff9 != 0;
                at += if protocol == 44 { 8 } else { 8 + usize::from(*header.get(1)?) * 8 };
                protocol = *header.first()?;
            }
            let l4 = packet.get(at..end)?;
            let pseudo = pseudo(packet.get(8..40)?, protocol, l4.len());
            self.upper(protocol, l4, &pseudo, false, is_part)
        }
    }

    fn upper(
        &mut self,
        protocol: u8,
        l4: &'f [u8],
        pseudo: &[u8],
        is_ipv4: bool,
        is_part: bool,
    ) -> Option<()> {
        let to_tunnel_port =
            protocol == 17 && GUE_PORTS.contains(&u16::try_from(word(l4, 2)?).ok()?);
        // The protocols that no case has inside at depth 0 without meaning a tunnel: 4, 41.
        let inner = match protocol {
            4 | 41 => Some(l4),
            47 if self.depth == 0 => l4.get(4..),
            17 if self.depth == 0 && to_tunnel_port => l4.get(8..),
            _ => None,
        };
        self.is_tunnel |= inner.is_some();
        if is_part {
            return None;
        }
        let is_true = sum([pseudo, l4]) == 0xffff;
        match protocol {
            1 => self.check("ICMP", sum([l4]) == 0xffff),
            58 => self.check("ICMPv6", is_true),
            6 => self.check("TCP", is_true),
            17 => self.check("UDP", is_true || is_ipv4 && word(l4, 6)? == 0),
            132 => self.check("SCTP", *l4.get(8..12)? == sctp_checksum(l4)),
            _ => {}
        }
        self.tunnelled = self.tunnelled.or(inner);
        self.depth += 1;
        self.ip(inner?)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at + 2)?;
    Some(usize::from(pair[0]) << 8 | usize::from(pair[1]))
}

fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    [addresses, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// The checksum that a packet of SCTP has to have (RFC 9260 §6.8, Appendix A): a `CRC32c`, bit by bit.
pub(crate) fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        let is_checksum = (8..12).contains(&at);
        crc ^= if is_checksum { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
        }
    }
    (!crc).to_le_bytes()
}

/// The sum of RFC 1071 over several stretches, each of which begins at an even place.
fn sum<const N: usize>(stretches: [&[u8]; N]) -> u64 {
    let pairs = stretches.into_iter().flat_map(|stretch| stretch.chunks(2));
    let mut sum: u64 = pairs
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}
