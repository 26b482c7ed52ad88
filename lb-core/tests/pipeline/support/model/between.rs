//! Packets that become ones of the other family (RFC 7915).

use std::net::IpAddr;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use lb_core::drop_reason::DropReason::{
    BadChecksum, FragmentTiny, TooBig, Truncated, TtlExceeded, Untranslatable,
};

use super::headers::{Ip, header_len, internet_sum};
use super::nat::{Ends, Made, octets, resegment, resegment_sctp, word};
use super::{Part, Verdict};

/// The largest packet that fits `mtu` bytes after translation.
pub(super) fn mtu_before(mtu: u16, is_v6: bool, to_v6: bool) -> u16 {
    match (is_v6, to_v6) {
        (true, false) => (mtu + 20).max(1280),
        (false, true) => mtu - 20,
        _ => mtu,
    }
}

/// What headers say in both families.
struct Head {
    is_v6: bool,
    /// Bytes of all headers.
    len: usize,
    /// Bytes behind them, as they say.
    payload_len: usize,
    traffic_class: u8,
    hops: u8,
    protocol: IpNumber,
    /// Of a fragment, or of what has a fragment header: identification, offset, more.
    piece: Option<(u32, u16, bool)>,
}

impl Head {
    /// §4.1, §5.1: options and extension headers go; but a route that is not at its end cannot.
    fn read(packet: &[u8]) -> Result<Self, Verdict> {
        if packet[0] >> 4 == 4 {
            let len = usize::from(packet[0] % 16) * 4;
            if has_source_route(&packet[20..len]) {
                return Err(Untranslatable.into());
            }
            let [flags, _] = [packet[6], packet[7]];
            let offset = u16::from_be_bytes(word(packet, 6)) % (1 << 13);
            let has_more = flags & 0x20 != 0;
            let id = u16::from_be_bytes(word(packet, 4)).into();
            return Ok(Self {
                is_v6: false,
                len,
                payload_len: usize::from(u16::from_be_bytes(word(packet, 2))).saturating_sub(len),
                traffic_class: packet[1],
                hops: packet[8],
                protocol: IpNumber(packet[9]),
                piece: (has_more || offset > 0).then_some((id, offset, has_more)),
            });
        }
        let (mut protocol, mut len, mut piece) = (packet[6], 40, None);
        let mut is_piece = false;
        while matches!(protocol, 0 | 43 | 44 | 60) && !is_piece {
            let header = &packet[len..];
            if protocol == 43 && header[3] > 0 {
                return Err(Untranslatable.into());
            }
            if protocol == 44 {
                let both = u16::from_be_bytes(word(header, 2));
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                piece = Some((id, both >> 3, both & 1 == 1));
                is_piece = both >> 3 > 0 || both & 1 == 1;
                len += 8;
            } else {
                len += 8 + usize::from(header[1]) * 8;
            }
            protocol = header[0];
        }
        let total_len = 40 + usize::from(u16::from_be_bytes(word(packet, 4)));
        Ok(Self {
            is_v6: true,
            len,
            payload_len: total_len.saturating_sub(len),
            traffic_class: packet[0] << 4 | packet[1] >> 4,
            hops: packet[7],
            protocol: IpNumber(protocol),
            piece,
        })
    }

    /// ICMP is another protocol there, and extension headers are none.
    fn check_protocol(&self) -> Result<(), Verdict> {
        match self.protocol.0 {
            0 | 1 | 43 | 44 | 58 | 60 => Err(Untranslatable.into()),
            _ => Ok(()),
        }
    }

    /// The header of the other family. `id` is for IPv4 packets that may be cut.
    fn translated(
        &self,
        payload_len: usize,
        (src, dst): (IpAddr, IpAddr),
        hops: u8,
        id: u16,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (src, dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let more = if self.piece.is_some() { 8 } else { 0 };
                let mut header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    payload_length: u16::try_from(more + payload_len).unwrap_or(u16::MAX),
                    next_header: self.protocol,
                    hop_limit: hops,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                if let Some((id, offset, has_more)) = self.piece {
                    header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                    header.write(&mut bytes).unwrap();
                    let offset = IpFragOffset::try_new(offset).unwrap();
                    let part = Ipv6FragmentHeader::new(self.protocol, offset, has_more, id);
                    part.write(&mut bytes).unwrap();
                } else {
                    header.write(&mut bytes).unwrap();
                }
            }
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header {
                    dscp: (self.traffic_class >> 2).try_into().unwrap(),
                    ecn: (self.traffic_class & 3).try_into().unwrap(),
                    time_to_live: hops,
                    protocol: self.protocol,
                    source: src.octets(),
                    destination: dst.octets(),
                    total_len: u16::try_from(20 + payload_len).unwrap_or(u16::MAX),
                    ..Ipv4Header::default()
                };
                header.dont_fragment = false;
                match self.piece {
                    Some((id, offset, has_more)) => {
                        header.identification = u16::try_from(id % (1 << 16)).unwrap();
                        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
                        header.more_fragments = has_more;
                    }
                    None if header.total_len > 1260 => header.dont_fragment = true,
                    None => header.identification = id,
                }
                header.header_checksum = header.calc_header_checksum();
                header.write_raw(&mut bytes).unwrap();
            }
            mixed => panic!("two families: {mixed:?}"),
        }
        bytes
    }

    fn addresses(&self, packet: &[u8]) -> Vec<u8> {
        packet[if self.is_v6 { 8..40 } else { 12..20 }].to_vec()
    }
}

/// RFC 791 §3.1: a loose or a strict one, whose pointer is not behind its end.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [1, ..] => &options[1..],
            [131 | 137, len, pointer, ..] if pointer <= len => return true,
            [0, ..] | [] | [_] => return false,
            [_, len, ..] if len >= 2 => options.get(len.into()..).unwrap_or_default(),
            _ => return false,
        };
    }
}

/// A convention: what the transport checksum was, or that of the first bytes, and the flow hash.
fn identification(protocol: IpNumber, segment: &[u8], hash: u64) -> u16 {
    let place = match protocol {
        IpNumber::TCP => segment.get(16..18),
        IpNumber::UDP => segment.get(6..8),
        IpNumber::SCTP => segment.get(8..10),
        _ => None,
    };
    let distinct = if let Some(sum) = place {
        u16::from_be_bytes([sum[0], sum[1]])
    } else {
        let first = &segment[..segment.len().min(8)];
        let sum = [first, &vec![0; first.len() % 2]].concat();
        u16::from_ne_bytes((!u16::try_from(internet_sum(&sum)).unwrap()).to_be_bytes())
    };
    distinct ^ u16::try_from(hash % (1 << 16)).unwrap()
}

fn addresses(ends: &Ends) -> (IpAddr, IpAddr) {
    (ends.src.unwrap().0, ends.dst.unwrap().0)
}

/// A packet of one family, as one of the other.
pub(super) fn translated(
    ip: &Ip,
    part: Part,
    ends: &Ends,
    (mtu, hash): (u16, u64),
) -> Result<Made, Verdict> {
    let packet = ip.packet;
    let head = Head::read(packet)?;
    let hops = head.hops.checked_sub(1).filter(|hops| *hops > 0).ok_or(TtlExceeded)?;
    if part == Part::Error {
        return error(packet, &head, hops, ends, (mtu, hash));
    }
    head.check_protocol()?;
    let mut segment = packet[head.len..].to_vec();
    let is_later = head.piece.is_some_and(|(_, offset, _)| offset > 0);
    let id = identification(head.protocol, &segment, hash);
    if !is_later {
        let is_piece = head.piece.is_some();
        if header_len(head.protocol).is_some_and(|len| segment.len() < len) {
            return Err(if is_piece { FragmentTiny } else { Truncated }.into());
        }
        let (src, dst) = addresses(ends);
        let new = [octets(src), octets(dst)].concat();
        let ports = [ends.src, ends.dst].map(|end| end.and_then(|(_, port)| port));
        let change = (head.addresses(packet), new.clone());
        if head.protocol == IpNumber::SCTP {
            if head.piece.is_some_and(|(_, _, has_more)| has_more) {
                return Err(Untranslatable.into()); // of a part nobody can tell its checksum
            }
            resegment_sctp(&mut segment, ports);
        } else {
            resegment(&mut segment, (head.protocol.0, false), ports, change);
        }
        // No checksum stays none in IPv4, whatever it was in IPv6 (RFC 768).
        if head.protocol == IpNumber::UDP && !head.is_v6 && word(&segment, 6) == [0, 0] {
            if is_piece {
                return Err(Untranslatable.into()); // §4.5: of a part nobody can tell it
            }
            let len = usize::from(u16::from_be_bytes(word(&segment, 4)));
            if len < 8 || len > segment.len() {
                return Err(Truncated.into());
            }
            let sum = match sum_with_pseudo(&segment[..len], &new, 17) {
                0 => 0xffff,
                sum => sum,
            };
            segment[6..8].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let header = head.translated(segment.len(), addresses(ends), hops, id);
    if header.len() + segment.len() > mtu.into() {
        return Err(TooBig.into());
    }
    let (l4, fronts) = (header.len(), (head.len, header.len()));
    Ok(Made { packet: [header, segment].concat(), l4, fronts })
}

/// The checksum over a segment and its pseudo-header (RFC 8200 §8.1; of IPv4, RFC 768).
fn sum_with_pseudo(segment: &[u8], addresses: &[u8], protocol: u8) -> u16 {
    let len = u32::try_from(segment.len()).unwrap().to_be_bytes();
    !u16::try_from(internet_sum(&[addresses, &len, &[0, 0, 0, protocol], segment].concat()))
        .unwrap()
}

/// §4.2, §4.3, §5.2, §5.3: what an error says, and what it says it of.
fn error(
    packet: &[u8],
    head: &Head,
    hops: u8,
    ends: &Ends,
    (mtu, hash): (u16, u64),
) -> Result<Made, Verdict> {
    if head.piece.is_some_and(|(_, offset, has_more)| offset > 0 || has_more) {
        return Err(Untranslatable.into());
    }
    let message = &packet[head.len..];
    let is_true = if head.is_v6 {
        sum_with_pseudo(message, &head.addresses(packet), 58)
    } else {
        !u16::try_from(internet_sum(message)).unwrap()
    };
    if is_true != 0 {
        return Err(BadChecksum.into());
    }
    // RFC 4884 §4: behind the quote may be more, which goes.
    let counted = match (head.is_v6, message[0]) {
        (true, 1 | 3) => usize::from(message[4]) * 8,
        (true, _) => 0,
        (false, _) => usize::from(message[5]) * 4,
    };
    let quote = &message[8..];
    let quote = if counted < 128 { quote } else { quote.get(..counted).unwrap_or(quote) };
    let quoted = Head::read(quote)?;
    quoted.check_protocol()?;
    let says = if head.is_v6 {
        in_ipv4(message, mtu)
    } else {
        in_ipv6(message, quoted.len + quoted.payload_len, mtu)
    };
    let says = says.ok_or(Untranslatable)?;
    let (src, dst) = addresses(ends);
    let quoted_header = quoted.translated(quoted.payload_len, (dst, src), quoted.hops, 0);
    let mut segment = quote[quoted.len..].to_vec();
    let id = identification(quoted.protocol, &segment, hash);
    let ports = [ends.dst, ends.src].map(|end| end.and_then(|(_, port)| port));
    let change = (quoted.addresses(quote), [octets(dst), octets(src)].concat());
    if segment.len() >= 4 && matches!(quoted.protocol.0, 6 | 17 | 132) {
        resegment(&mut segment, (quoted.protocol.0, false), ports, change);
    }
    let (protocol, ip_len, most) =
        if head.is_v6 { (IpNumber::ICMP, 20, 576) } else { (IpNumber::IPV6_ICMP, 40, 1280) };
    let front_len = 8 + quoted_header.len();
    segment.truncate(most.min(usize::from(mtu)) - ip_len - front_len);
    let outer = Head { protocol, ..*head };
    let kept = segment.len();
    let mut new = [&says[..], &quoted_header, &segment].concat();
    let header = outer.translated(new.len(), (src, dst), hops, id);
    let sum = if head.is_v6 {
        !u16::try_from(internet_sum(&new)).unwrap()
    } else {
        sum_with_pseudo(&new, &[octets(src), octets(dst)].concat(), 58)
    };
    new[2..4].copy_from_slice(&sum.to_be_bytes());
    let l4 = header.len();
    let fronts = (head.len + 8 + quoted.len, header.len() + new.len() - kept);
    Ok(Made { packet: [header, new].concat(), l4, fronts })
}

fn says(kind: u8, code: u8, parameter: u32) -> [u8; 8] {
    let [a, b, c, d] = parameter.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// §4.2. `None`: there is nothing like it.
fn in_ipv6(message: &[u8], quoted_len: usize, mtu: u16) -> Option<[u8; 8]> {
    Some(match (message[0], message[1]) {
        (3, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => says(1, 0, 0),
        (3, 2) => says(4, 1, 6),
        (3, 3) => says(1, 4, 0),
        (3, 4) => {
            let told = match u16::from_be_bytes(word(message, 6)) {
                // RFC 1191 §7.1: the next plateau.
                0 => [32_000, 17_914, 8_166, 4_352, 2_002, 1_492]
                    .into_iter()
                    .find(|plateau| usize::from(*plateau) < quoted_len)
                    .unwrap_or(0_u16),
                told => told,
            };
            says(2, 0, u32::from(told.saturating_add(20).min(mtu).max(1280)))
        }
        (3, 9 | 10 | 13 | 15) => says(1, 1, 0),
        (11, code) => says(3, code, 0),
        (12, 0 | 2) => says(
            4,
            0,
            match message[4] {
                0 => 0,
                1 => 1,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            },
        ),
        _ => return None,
    })
}

/// §5.2. `None`: there is nothing like it.
fn in_ipv4(message: &[u8], mtu: u16) -> Option<[u8; 8]> {
    let parameter = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    Some(match (message[0], message[1]) {
        (1, 0 | 2 | 3) => says(3, 1, 0),
        (1, 1) => says(3, 10, 0),
        (1, 4) => says(3, 3, 0),
        (2, _) => {
            let told = parameter.clamp(1280, 65_535) - 20;
            says(3, 4, told.min(mtu.into()))
        }
        (3, code) => says(11, code, 0),
        (4, 0) => {
            let pointer = match parameter {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            says(12, 0, pointer << 24)
        }
        (4, 1) => says(3, 2, 0),
        _ => return None,
    })
}
