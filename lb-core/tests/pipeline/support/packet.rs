//! Frames to test with, field by field. `etherparse` writes the headers, so that what is read is
//! not what the reader wrote.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader,
    VlanId,
};

/// The MAC that frames are for: the balancer's first port's.
pub(crate) const BALANCER: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The MAC that frames are from.
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// `EtherType` of a customer's tag.
pub(crate) const VLAN: u16 = 0x8100;
/// `EtherType` of a service provider's tag.
pub(crate) const SERVICE_VLAN: u16 = 0x88a8;

/// A packet and the frame around it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) dst_mac: [u8; 6],
    /// From the outside in: the tag's `EtherType` and its VLAN.
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    /// TCP, UDP and SCTP get a header; of others, `payload` is all.
    pub(crate) protocol: IpNumber,
    pub(crate) traffic_class: u8,
    pub(crate) ttl: u8,
    /// IPv4: options; whole words.
    pub(crate) options: Vec<u8>,
    /// IPv6: extension headers, each with its content: 6 bytes, 14, 22, and so on.
    pub(crate) extensions: Vec<(IpNumber, Vec<u8>)>,
    /// Offset in 8 bytes, and whether more follow. IPv6: a fragment header, behind `extensions`.
    pub(crate) fragment: Option<(u16, bool)>,
    pub(crate) payload: Vec<u8>,
    /// `payload` is the whole segment: no header is put before it.
    pub(crate) raw_segment: bool,
    /// The checksum of TCP, UDP or ICMP is that of the segment, not what stands there.
    pub(crate) has_true_checksum: bool,
    /// Zero bytes behind the packet.
    pub(crate) padding: usize,
}

impl Packet {
    fn new(protocol: IpNumber, src: &str, dst: &str) -> Self {
        Self {
            dst_mac: BALANCER,
            tags: Vec::new(),
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol,
            traffic_class: 0,
            ttl: 61,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload: b"a payload of 27 bytes here.".to_vec(),
            raw_segment: false,
            has_true_checksum: false,
            padding: 0,
        }
    }

    /// A TCP segment, in one piece, from `src` to `dst` (addresses with ports).
    pub(crate) fn tcp(src: &str, dst: &str) -> Self {
        Self::new(IpNumber::TCP, src, dst)
    }

    /// A UDP datagram.
    pub(crate) fn udp(src: &str, dst: &str) -> Self {
        Self::new(IpNumber::UDP, src, dst)
    }

    /// An SCTP packet: the common header, then `payload`.
    pub(crate) fn sctp(src: &str, dst: &str) -> Self {
        Self::new(IpNumber::SCTP, src, dst)
    }

    /// An echo request (the ports do not appear).
    pub(crate) fn ping(src: &str, dst: &str) -> Self {
        let packet = Self::new(IpNumber::ICMP, src, dst);
        if packet.dst.is_ipv4() {
            Self { payload: vec![8, 0, 0xf7, 0xfe, 0, 1, 0, 0], ..packet }
        } else {
            let payload = vec![128, 0, 0, 0, 0, 1, 0, 0];
            Self { protocol: IpNumber::IPV6_ICMP, payload, ..packet }
        }
    }

    /// The packet, changed.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The frame, from the Ethernet header to the padding.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut frame = self.l2_header();
        frame.extend(self.ip());
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// The frame's Ethernet header and tags.
    pub(crate) fn l2_header(&self) -> Vec<u8> {
        let ip = if self.dst.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let types = self.tags.iter().map(|&(tag, _)| EtherType(tag)).chain([ip]);
        let mut types = types.collect::<Vec<_>>().into_iter();
        let mut bytes = Vec::new();
        Ethernet2Header {
            destination: self.dst_mac,
            source: ROUTER,
            ether_type: types.next().unwrap(),
        }
        .write(&mut bytes)
        .unwrap();
        for (&(_, vlan), ether_type) in self.tags.iter().zip(types) {
            let vlan_id = VlanId::try_new(vlan).unwrap();
            let tag = SingleVlanHeader { vlan_id, ether_type, ..Default::default() };
            tag.write(&mut bytes).unwrap();
        }
        bytes
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let segment = self.segment();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = u16::try_from(segment.len()).unwrap();
                let (offset, more_fragments) = self.fragment.unwrap_or_default();
                let mut header =
                    Ipv4Header::new(len, self.ttl, self.protocol, src.octets(), dst.octets())
                        .unwrap();
                header.dscp = (self.traffic_class >> 2).try_into().unwrap();
                header.ecn = (self.traffic_class & 3).try_into().unwrap();
                header.dont_fragment = self.fragment.is_none();
                header.more_fragments = more_fragments;
                header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
                header.options = self.options[..].try_into().unwrap();
                header.set_payload_len(segment.len()).unwrap();
                let mut bytes = Vec::new();
                header.write(&mut bytes).unwrap(); // with its checksum
                [bytes, segment].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (next_header, extensions) = self.extension_headers();
                let payload = [extensions, segment].concat();
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
                    payload_length: payload.len().try_into().unwrap(),
                    next_header,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                let mut bytes = Vec::new();
                header.write(&mut bytes).unwrap();
                [bytes, payload].concat()
            }
            mixed => panic!("two families: {mixed:?}"),
        }
    }

    /// The number of the first extension header (or of the protocol), and all of them.
    fn extension_headers(&self) -> (IpNumber, Vec<u8>) {
        let (mut next, mut bytes) = (self.protocol, Vec::new());
        if let Some((offset, more)) = self.fragment {
            let offset = IpFragOffset::try_new(offset).unwrap();
            bytes = Ipv6FragmentHeader::new(next, offset, more, 9).to_bytes().to_vec();
            next = IpNumber::IPV6_FRAGMENTATION_HEADER;
        }
        for (number, content) in self.extensions.iter().rev() {
            let header = Ipv6RawExtHeader::new_raw(next, content).unwrap();
            bytes.splice(0..0, header.to_bytes());
            next = *number;
        }
        (next, bytes)
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = self.segment_as_it_is();
        if self.has_true_checksum {
            self.sum_up(&mut segment);
        }
        segment
    }

    /// RFC 1071, with the pseudo-header of the family.
    fn sum_up(&self, segment: &mut [u8]) {
        let place = match self.protocol {
            IpNumber::TCP => 16,
            IpNumber::UDP => 6,
            IpNumber::ICMP | IpNumber::IPV6_ICMP => 2,
            _ => return,
        };
        if segment.len() < place + 2 {
            return;
        }
        segment[place..place + 2].fill(0);
        let len = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let pseudo = match (self.src.ip(), self.dst.ip()) {
            _ if self.protocol == IpNumber::ICMP => Vec::new(),
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            mixed => panic!("two families: {mixed:?}"),
        };
        let kind: &[u8] =
            if pseudo.is_empty() { &[] } else { &[len[0], len[1], 0, self.protocol.0] };
        let mut sum = 0;
        for pair in [&pseudo, kind, segment].into_iter().flat_map(|bytes| bytes.chunks(2)) {
            sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let sum = match !u16::try_from(sum).unwrap() {
            0 if self.protocol == IpNumber::UDP => 0xffff,
            sum => sum,
        };
        segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn segment_as_it_is(&self) -> Vec<u8> {
        let (src_port, dst_port) = (self.src.port(), self.dst.port());
        let mut bytes = Vec::new();
        if self.raw_segment {
            return self.payload.clone();
        }
        if self.protocol == IpNumber::TCP {
            TcpHeader::new(src_port, dst_port, 1, 1024).write(&mut bytes).unwrap();
        } else if self.protocol == IpNumber::UDP {
            let length = u16::try_from(8 + self.payload.len()).unwrap();
            UdpHeader { source_port: src_port, destination_port: dst_port, length, checksum: 0 }
                .write(&mut bytes)
                .unwrap();
        } else if self.protocol == IpNumber::SCTP {
            bytes = [&src_port.to_be_bytes()[..], &dst_port.to_be_bytes(), &[7; 8]].concat();
        }
        [bytes, self.payload.clone()].concat()
    }
}

/// A frame that is not IP.
pub(crate) fn other(dst_mac: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&dst_mac[..], &ROUTER, &ether_type.to_be_bytes(), payload].concat()
}

/// Makes the checksum of the IPv4 header at `offset` true again, after a change to it.
pub(crate) fn repair_ipv4_checksum(frame: &mut [u8], offset: usize) {
    let (header, _) = Ipv4Header::from_slice(&frame[offset..]).unwrap();
    frame[offset + 10..offset + 12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}
