//! Headers, as `etherparse` reads them.

use std::net::IpAddr;

use etherparse::err::ipv4::{HeaderError, HeaderSliceError};
use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice, ip_number,
};
use lb_core::drop_reason::DropReason::{
    BadChecksum, BadHeaderLength, BadSource, BadVersion, SameSource, TooBig, TooManyExtensions,
    Truncated,
};
use lb_core::frame::Checked;
use lb_core::tuple::Tuple;

use super::Verdict;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ports: [u16; 2],
    pub(super) protocol: u8,
}

impl Flow {
    pub(super) fn tuple(&self) -> Tuple {
        Tuple::new(self.src, self.dst, self.ports[0], self.ports[1], self.protocol)
    }
}

/// Bytes of the transport headers that begin with ports.
pub(super) fn header_len(protocol: IpNumber) -> Option<usize> {
    match protocol {
        IpNumber::TCP => Some(20),
        IpNumber::UDP => Some(8),
        IpNumber::SCTP => Some(12),
        _ => None,
    }
}

pub(super) fn read_ports(header: &[u8]) -> [u16; 2] {
    [[header[0], header[1]], [header[2], header[3]]].map(u16::from_be_bytes)
}

pub(super) struct L2<'a> {
    pub(super) dst: [u8; 6],
    /// Each with the `EtherType` that announces it.
    pub(super) tags: &'a [u8],
    pub(super) ether_type: EtherType,
    pub(super) payload: &'a [u8],
}

impl<'a> L2<'a> {
    pub(super) fn read(frame: &'a [u8]) -> Result<Self, Verdict> {
        let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Truncated)?;
        let (mut ether_type, mut len) = (ethernet.ether_type(), 14);
        while len < 22
            && matches!(ether_type, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING)
        {
            let tag = SingleVlanHeaderSlice::from_slice(&frame[len..]).map_err(|_| Truncated)?;
            (ether_type, len) = (tag.ether_type(), len + 4);
        }
        let dst = ethernet.destination();
        Ok(Self { dst, tags: &frame[12..len - 2], ether_type, payload: &frame[len..] })
    }

    pub(super) fn len(&self) -> usize {
        14 + self.tags.len()
    }
}

#[derive(Clone, Copy)]
pub(super) struct Ip<'a> {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) traffic_class: u8,
    /// Behind all headers that were walked.
    pub(super) protocol: IpNumber,
    pub(super) dont_fragment: bool,
    /// If it is a part of a packet.
    pub(super) piece: Option<Piece>,
    /// Bytes that it has of the packet, if it is a part.
    pub(super) fragment_bytes: usize,
    /// Without padding.
    pub(super) packet: &'a [u8],
    pub(super) segment: &'a [u8],
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) id: u32,
    /// As its header says.
    pub(super) protocol: u8,
    /// In eights.
    pub(super) offset: usize,
    pub(super) has_more: bool,
}

impl<'a> Ip<'a> {
    pub(super) fn read_v4(bytes: &'a [u8], checked: Checked) -> Result<Self, Verdict> {
        let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|error| match error {
            HeaderSliceError::Len(_) => Truncated,
            HeaderSliceError::Content(HeaderError::UnexpectedVersion { .. }) => BadVersion,
            HeaderSliceError::Content(HeaderError::HeaderLengthSmallerThanHeader { .. }) => {
                BadHeaderLength
            }
        })?;
        let packet = bytes.get(..header.total_len().into()).ok_or(Truncated)?;
        let segment = packet.get(header.slice().len()..).ok_or(Truncated)?;
        let is_true = match checked {
            Checked::Unknown => internet_sum(header.slice()) == 0xffff,
            Checked::Good => true,
            Checked::Bad => false,
        };
        if !is_true {
            return Err(BadChecksum.into());
        }
        let src = header.source_addr();
        if src.is_multicast() || src.is_loopback() || src.octets()[0] == 0 || src.octets()[0] >= 240
        {
            return Err(BadSource.into());
        }
        if src == header.destination_addr() {
            return Err(SameSource.into());
        }
        Ok(Self {
            src: src.into(),
            dst: header.destination_addr().into(),
            traffic_class: header.dcp().value() << 2 | header.ecn().value(),
            protocol: header.protocol(),
            dont_fragment: header.dont_fragment(),
            piece: header.is_fragmenting_payload().then(|| Piece {
                id: header.identification().into(),
                protocol: header.protocol().0,
                offset: header.fragments_offset().value().into(),
                has_more: header.more_fragments(),
            }),
            fragment_bytes: segment.len(),
            packet,
            segment,
        })
    }

    pub(super) fn read_v6(bytes: &'a [u8]) -> Result<Self, Verdict> {
        let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|error| match error {
            etherparse::err::ipv6::HeaderSliceError::Len(_) => Truncated,
            etherparse::err::ipv6::HeaderSliceError::Content(_) => BadVersion,
        })?;
        let packet = bytes.get(..40 + usize::from(header.payload_length())).ok_or(Truncated)?;
        let src = header.source_addr();
        if src.is_multicast() || src.is_loopback() || src.is_unspecified() {
            return Err(BadSource.into());
        }
        if src == header.destination_addr() {
            return Err(SameSource.into());
        }
        if packet.len() > 65_535 {
            return Err(TooBig.into());
        }
        let mut ip = Self::with_fixed_ipv6(&header, packet);
        ip.skip_extensions(false)?;
        Ok(ip)
    }

    /// What the fixed header of IPv6 says.
    fn with_fixed_ipv6(header: &Ipv6HeaderSlice<'_>, packet: &'a [u8]) -> Self {
        Self {
            src: header.source_addr().into(),
            dst: header.destination_addr().into(),
            traffic_class: header.traffic_class(),
            protocol: header.next_header(),
            dont_fragment: true,
            piece: None,
            fragment_bytes: 0,
            packet,
            segment: &packet[40..],
        }
    }

    /// At most 8 of them; none behind a fragment header, where they may be another fragment's, unless
    /// `beyond` says that this is the first one.
    pub(super) fn skip_extensions(&mut self, beyond: bool) -> Result<(), Verdict> {
        for walked in 0.. {
            let is_fragment_header = self.protocol == ip_number::IPV6_FRAG;
            let is_extension = matches!(
                self.protocol,
                ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS
            );
            let is_over = self.piece.is_some() && !beyond;
            if is_over || !(is_fragment_header || is_extension) {
                break;
            }
            if walked == 8 {
                return Err(TooManyExtensions.into());
            }
            let header_len;
            (self.protocol, header_len) = if is_fragment_header {
                let header =
                    Ipv6FragmentHeaderSlice::from_slice(self.segment).map_err(|_| Truncated)?;
                if header.is_fragmenting_payload() {
                    if self.piece.is_some() {
                        return Err(Truncated.into()); // a fragment's fragment
                    }
                    self.piece = Some(Piece {
                        id: header.identification(),
                        protocol: header.next_header().0,
                        offset: header.fragment_offset().value().into(),
                        has_more: header.more_fragments(),
                    });
                    self.fragment_bytes = self.segment.len() - 8;
                }
                (header.next_header(), 8)
            } else {
                let header =
                    Ipv6RawExtHeaderSlice::from_slice(self.segment).map_err(|_| Truncated)?;
                (header.next_header(), header.slice().len())
            };
            self.segment = self.segment.get(header_len..).ok_or(Truncated)?;
        }
        Ok(())
    }

    /// Ports and protocol of a first fragment; `None`, if not all headers are in it.
    pub(super) fn first_of_datagram(&mut self) -> Option<([u16; 2], u8)> {
        if self.dst.is_ipv6() {
            // Anew, so that no more than 8 are walked in all.
            self.protocol = IpNumber(self.packet[6]);
            (self.segment, self.piece) = (&self.packet[40..], None);
            self.skip_extensions(true).ok()?;
        }
        match header_len(self.protocol) {
            None => Some(([0; 2], self.protocol.0)),
            Some(len) => Some((read_ports(self.segment.get(..len)?), self.protocol.0)),
        }
    }

    /// A packet that is quoted, and may end anywhere behind its headers. `None`: it does not reach
    /// that far, or is a fragment and not the first.
    pub(super) fn of_quote(packet: &'a [u8], is_v6: bool) -> Option<Self> {
        if !is_v6 {
            let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
            return (header.fragments_offset().value() == 0).then(|| Self {
                src: header.source_addr().into(),
                dst: header.destination_addr().into(),
                traffic_class: header.dcp().value() << 2 | header.ecn().value(),
                protocol: header.protocol(),
                dont_fragment: header.dont_fragment(),
                piece: header.is_fragmenting_payload().then(|| Piece {
                    id: header.identification().into(),
                    protocol: header.protocol().0,
                    offset: 0,
                    has_more: header.more_fragments(),
                }),
                fragment_bytes: 0,
                packet,
                segment: &packet[header.slice().len()..],
            });
        }
        let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
        let mut quoted = Self::with_fixed_ipv6(&header, packet);
        quoted.skip_extensions(true).ok()?;
        quoted.piece.is_none_or(|piece| piece.offset == 0).then_some(quoted)
    }

    /// The flow that an ICMP error quotes, the other way round.
    pub(super) fn quoted_flow(&self) -> Option<Flow> {
        if self.piece.is_some() {
            return None;
        }
        let is_v4 = self.dst.is_ipv4();
        let is_error = match (is_v4, self.protocol, *self.segment.first()?) {
            (true, IpNumber::ICMP, message) => matches!(message, 3 | 11 | 12),
            (false, IpNumber::IPV6_ICMP, message) => matches!(message, 1..=4),
            _ => false,
        };
        let quote = self.segment.get(8..)?;
        if !is_error {
            return None;
        }
        let Self { src, dst, protocol, segment, .. } = Self::of_quote(quote, !is_v4)?;
        let ports = match (protocol, header_len(protocol)) {
            (IpNumber::ICMP | IpNumber::IPV6_ICMP, _) => return None,
            (_, None) => [0; 2],
            (_, Some(_)) => {
                let [vip, client] = read_ports(segment.get(..4)?);
                [client, vip]
            }
        };
        Some(Flow { src: dst, dst: src, ports, protocol: protocol.0 })
    }
}

/// Adds 16-bit words with an end-around carry (RFC 1071): 0xffff over a header that is true.
pub(crate) fn internet_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let sum = sum + (u32::from(pair[0]) << 8) + pair.get(1).map_or(0, |&low| u32::from(low));
        (sum & 0xffff) + (sum >> 16)
    })
}
