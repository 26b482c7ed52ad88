//! The forwarding decision a second time: slow, obvious, one frame at a time, from the rules.
//!
//! Headers are read by `etherparse`. Taken from the balancer are the flow hash, which is a matter of
//! convention, and the owners of the slots, which have tests of their own.

use std::net::IpAddr;

use etherparse::err::ipv4::{HeaderError, HeaderSliceError};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    EtherType, Ethernet2HeaderSlice, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel, Ipv6FragmentHeader,
    Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    SingleVlanHeaderSlice, UdpHeader, ip_number,
};
use lb_core::drop_reason::DropReason::{
    self, BadChecksum, BadHeaderLength, BadSource, BadVersion, MultiSegment, NextHopUnresolved,
    NoBackend, NoHeadroom, NotOurs, SameSource, TooBig, TooManyExtensions, Truncated,
};
use lb_core::frame::Checked;
use lb_core::model::{
    Affinity, Backend, Forward, MssClamp, PortRange, Protocol, Service, Tunnel, TunnelKind,
};
use lb_core::tables::next_hop::{NextHop, Port, PortId};
use lb_core::tuple::Tuple;

use super::datagrams::{Datagrams, Name};
use super::run::Arrival;
use super::world::World;

/// What has to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop(DropReason),
    Punt,
    /// It leaves by this port, as these frames: one, or the pieces of its outer packet.
    Send(PortId, Vec<Vec<u8>>),
    /// It leaves by this port, as an answer to its sender; unless too many are answered: then it is
    /// dropped for this reason.
    Answer(PortId, Vec<u8>, DropReason),
    /// It waits for the first fragment of its datagram.
    Hold,
}

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// What a balancer remembers, and what it does.
#[derive(Debug)]
pub(crate) struct Model<'w> {
    world: &'w World,
    pub(crate) datagrams: Datagrams,
    /// The last identification that was given to an outer packet in pieces.
    last_id: u32,
}

impl<'w> Model<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        Self { world, datagrams: Datagrams::default(), last_id: 0 }
    }

    /// What has to become of a frame that came in by a port; `now` in milliseconds, and whether the frame
    /// has been here before, and had to wait.
    pub(crate) fn verdict(&mut self, arrival: &Arrival, now: (u64, bool)) -> Verdict {
        match self.decide(arrival, now) {
            Ok(sent) => sent,
            Err(Verdict::Punt) if !self.world.ports[arrival.port.index()].kernel => NotOurs.into(),
            Err(other) => other,
        }
    }

    fn decide(&mut self, arrival: &Arrival, now: (u64, bool)) -> Result<Verdict, Verdict> {
        let world = self.world;
        if arrival.is_split {
            return Err(MultiSegment.into());
        }
        let l2 = L2::read(&arrival.bytes)?;
        if l2.dst != world.ports[arrival.port.index()].mac.0 {
            let is_group = l2.dst[0] % 2 == 1;
            return Err(if is_group { Verdict::Punt } else { NotOurs.into() });
        }
        let mut ip = match l2.ether_type {
            EtherType::IPV4 => Ip::read_v4(l2.payload, arrival.checked)?,
            EtherType::IPV6 => Ip::read_v6(l2.payload)?,
            _ => return Err(Verdict::Punt),
        };
        let (flow, is_later) = self.flow(&mut ip, now)?;
        let (place, service) = service_of(world, &flow)?;
        let choice = choose(world, place, service, &flow)?;
        let mss = service.spec().mss;
        match service.spec().forward {
            Forward::L2dsr => {
                let sent = l2dsr(world, arrival, &l2, &ip, (&choice, mss));
                if sent == Err(TooBig.into()) && (ip.dont_fragment || ip.dst.is_ipv6()) {
                    return self.answer(arrival, &l2, &ip, (choice.way.port, 0, is_later));
                }
                Ok(Verdict::Send(choice.way.port, vec![sent?]))
            }
            Forward::Tunnel(Tunnel { kind, .. }) => {
                let tunnel = Tunnelled::new(world, &ip, &choice, (kind, mss))?;
                let mtu = usize::from(world.ports[choice.way.port.index()].mtu);
                if tunnel.overhead() + ip.packet.len() <= mtu {
                    let sent = tunnel.frame(world, arrival, &l2, &choice.way)?;
                    return Ok(Verdict::Send(choice.way.port, vec![sent]));
                }
                let may_be_cut =
                    if ip.dst.is_ipv4() { !ip.dont_fragment } else { ip.packet.len() <= 1280 };
                if !may_be_cut {
                    let told = (choice.way.port, tunnel.overhead(), is_later);
                    return self.answer(arrival, &l2, &ip, told);
                }
                let whole = tunnel.frame(world, arrival, &l2, &choice.way)?;
                self.last_id += 1;
                // An IPv6 fragment header needs room in front, too.
                let front_len = whole.len() - ip.packet.len();
                let is_v6 = choice.backend.address.is_ipv6();
                if is_v6 && front_len + 8 > l2.len() + arrival.headroom {
                    return Err(NoHeadroom.into());
                }
                let pieces = pieces(&whole, mtu, self.last_id);
                Ok(Verdict::Send(choice.way.port, pieces))
            }
            Forward::Nat | Forward::FullNat(_) => {
                panic!("no service of the fixed world translates")
            }
        }
    }

    /// The flow that a packet belongs to, or is about; and whether nobody is told what becomes of it.
    fn flow(&mut self, ip: &mut Ip, now: (u64, bool)) -> Result<(Flow, bool), Verdict> {
        let (src, dst, protocol) = (ip.src, ip.dst, ip.protocol.0);
        let own = |ports| Flow { src, dst, ports, protocol };
        let header_len = header_len(ip.protocol);
        if matches!(ip.protocol, IpNumber::ICMP | IpNumber::IPV6_ICMP) {
            let flow = ip.quoted_flow().filter(|flow| flow.dst == ip.dst);
            return flow.map(|flow| (flow, true)).ok_or(Verdict::Punt);
        }
        let Some(piece) = ip.piece else {
            let Some(header_len) = header_len else { return Ok((own([0; 2]), false)) };
            return Ok((own(read_ports(ip.segment.get(..header_len).ok_or(Truncated)?)), false));
        };
        let addressed = addressed(self.world, ip);
        if matches!(addressed, Addressed::Nobody) {
            return Err(Verdict::Punt);
        }
        // RFC 791, RFC 8200: whole eights but for the last, and no more than 64 kB.
        let len = ip.fragment_bytes;
        if len == 0 || (piece.has_more && !len.is_multiple_of(8)) {
            return Err(Truncated.into());
        }
        let (start, end) = (piece.offset * 8, piece.offset * 8 + len);
        if end > 65_535 {
            return Err(TooBig.into());
        }
        let is_later = start > 0;
        match addressed {
            Addressed::AnyPort { by_client } if header_len.is_none() || by_client => {
                return Ok((own([0; 2]), is_later));
            }
            _ => {}
        }
        let first = if is_later { None } else { ip.first_of_datagram() };
        let seen = self.datagrams.fragment(self.world, &name(ip), first, (start, end), now)?;
        if [IpNumber::ICMP.0, IpNumber::IPV6_ICMP.0].contains(&seen.1) {
            return Err(Verdict::Punt); // found behind an extension header
        }
        Ok((Flow { ports: seen.0, protocol: seen.1, ..own([0; 2]) }, is_later))
    }

    /// Too big: whoever sent it is told what would fit, if he may be told.
    fn answer(
        &self,
        arrival: &Arrival,
        l2: &L2,
        ip: &Ip,
        (way, overhead, is_silent): (PortId, usize, bool),
    ) -> Result<Verdict, Verdict> {
        let sender = &arrival.bytes[6..12];
        if is_silent || sender[0] % 2 == 1 || sender == [0; 6] {
            return Err(TooBig.into());
        }
        let mtu = u16::try_from(usize::from(self.world.ports[way.index()].mtu) - overhead).unwrap();
        let mut packet = Vec::new();
        match (ip.dst, ip.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let quote = &ip.packet[..ip.packet.len().min(576 - 28)];
                let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
                let needed = Icmpv4Type::DestinationUnreachable(needed);
                let message = Icmpv4Header::with_checksum(needed, quote);
                let mut header =
                    Ipv4Header::new(0, 64, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
                header.dscp = 0x30.try_into().unwrap();
                header.dont_fragment = true;
                header.set_payload_len(8 + quote.len()).unwrap();
                header.write(&mut packet).unwrap();
                message.write(&mut packet).unwrap();
                packet.extend(quote);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let quote = &ip.packet[..ip.packet.len().min(1280 - 48)];
                let (source, destination) = (from.octets(), to.octets());
                let too_big = Icmpv6Type::PacketTooBig { mtu: mtu.max(1280).into() };
                let message =
                    Icmpv6Header::with_checksum(too_big, source, destination, quote).unwrap();
                let header = Ipv6Header {
                    payload_length: u16::try_from(8 + quote.len()).unwrap(),
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: 64,
                    source,
                    destination,
                    ..Default::default()
                };
                header.write(&mut packet).unwrap();
                message.write(&mut packet).unwrap();
                packet.extend(quote);
            }
            mixed => panic!("two families: {mixed:?}"),
        }
        let own = self.world.ports[arrival.port.index()].mac.0;
        let front = [sender, &own, l2.tags, &l2.ether_type.0.to_be_bytes()].concat();
        // Headroom: what is in front of the packet grows by the new headers.
        let new_bytes = if ip.dst.is_ipv4() { 28 } else { 48 };
        if new_bytes > arrival.headroom {
            return Err(NoHeadroom.into());
        }
        Ok(Verdict::Answer(arrival.port, [front, packet].concat(), TooBig))
    }
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    src: IpAddr,
    dst: IpAddr,
    ports: [u16; 2],
    protocol: u8,
}

/// Bytes of the transport headers that begin with ports.
fn header_len(protocol: IpNumber) -> Option<usize> {
    match protocol {
        IpNumber::TCP => Some(20),
        IpNumber::UDP => Some(8),
        IpNumber::SCTP => Some(12),
        _ => None,
    }
}

fn read_ports(header: &[u8]) -> [u16; 2] {
    [[header[0], header[1]], [header[2], header[3]]].map(u16::from_be_bytes)
}

struct L2<'a> {
    dst: [u8; 6],
    /// Each with the `EtherType` that announces it.
    tags: &'a [u8],
    ether_type: EtherType,
    payload: &'a [u8],
}

impl<'a> L2<'a> {
    fn read(frame: &'a [u8]) -> Result<Self, Verdict> {
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

    fn len(&self) -> usize {
        14 + self.tags.len()
    }
}

struct Ip<'a> {
    src: IpAddr,
    dst: IpAddr,
    traffic_class: u8,
    /// Behind all headers that were walked.
    protocol: IpNumber,
    dont_fragment: bool,
    /// If it is a part of a packet.
    piece: Option<Piece>,
    /// Bytes that it has of the packet, if it is a part.
    fragment_bytes: usize,
    /// Without padding.
    packet: &'a [u8],
    segment: &'a [u8],
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    /// As its header says.
    protocol: u8,
    /// In eights.
    offset: usize,
    has_more: bool,
}

impl<'a> Ip<'a> {
    fn read_v4(bytes: &'a [u8], checked: Checked) -> Result<Self, Verdict> {
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

    fn read_v6(bytes: &'a [u8]) -> Result<Self, Verdict> {
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
        let mut ip = Self {
            src: src.into(),
            dst: header.destination_addr().into(),
            traffic_class: header.traffic_class(),
            protocol: header.next_header(),
            dont_fragment: true,
            piece: None,
            fragment_bytes: 0,
            packet,
            segment: &packet[40..],
        };
        ip.skip_extensions(false)?;
        Ok(ip)
    }

    /// At most 8 of them; none behind a fragment header, where they may be another fragment's, unless
    /// `beyond` says that this is the first one.
    fn skip_extensions(&mut self, beyond: bool) -> Result<(), Verdict> {
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
    fn first_of_datagram(&mut self) -> Option<([u16; 2], u8)> {
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

    /// The flow that an ICMP error quotes, the other way round.
    fn quoted_flow(&self) -> Option<Flow> {
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
        let (src, dst, protocol, segment) = if is_v4 {
            let header = Ipv4HeaderSlice::from_slice(quote).ok()?;
            if header.fragments_offset().value() > 0 {
                return None;
            }
            let segment = &quote[header.slice().len()..];
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.protocol(),
                segment,
            )
        } else {
            let header = Ipv6HeaderSlice::from_slice(quote).ok()?;
            let mut quoted = Self {
                src: header.source_addr().into(),
                dst: header.destination_addr().into(),
                protocol: header.next_header(),
                packet: quote,
                segment: &quote[40..],
                piece: None,
                ..*self
            };
            quoted.skip_extensions(true).ok()?;
            if quoted.piece.is_some_and(|piece| piece.offset > 0) {
                return None;
            }
            (quoted.src, quoted.dst, quoted.protocol, quoted.segment)
        };
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

/// The services that are addressed, whatever the ports, by their place.
fn candidates(world: &World, dst: IpAddr, protocol: u8) -> Vec<(usize, &Service)> {
    let services = world.desired.services().iter().map(AsRef::as_ref).enumerate();
    let is_meant = |service: &Service| {
        let vip = service.spec().vip;
        vip.address.contains(&dst) && vip.protocol.number().is_none_or(|number| number == protocol)
    };
    services.filter(|(_, service)| is_meant(service)).collect()
}

fn by_precedence(service: &Service) -> (u8, u8, bool) {
    let vip = service.spec().vip;
    let kind = if vip.ports == PortRange::ANY { 2 } else { u8::from(vip.ports.is_range()) };
    (kind, 255 - vip.address.prefix_len(), vip.protocol == Protocol::Any)
}

/// Of the services that a packet matches, the most specific: by ports, then prefix, then protocol.
fn service_of<'w>(world: &'w World, flow: &Flow) -> Result<(usize, &'w Service), Verdict> {
    let mut candidates = candidates(world, flow.dst, flow.protocol);
    candidates.retain(|(_, service)| {
        let ports = service.spec().vip.ports;
        ports.first() <= flow.ports[1] && flow.ports[1] <= ports.last()
    });
    candidates.sort_by_key(|(_, service)| by_precedence(service));
    candidates.first().copied().ok_or(Verdict::Punt)
}

/// Do ports count for where its packets go? Not where clients are kept together, and not where all
/// protocols go by address alone.
fn counts_ports(service: &Service) -> bool {
    let spec = service.spec();
    spec.affinity == Affinity::Flow && spec.vip.protocol != Protocol::Any
}

/// What the address of a fragment says.
enum Addressed {
    Nobody,
    /// One service, whatever the ports are; are clients kept together there?
    AnyPort {
        by_client: bool,
    },
    ByPort,
}

fn addressed(world: &World, ip: &Ip) -> Addressed {
    // Behind a fragment header may be other headers; then only the first fragment knows.
    if matches!(ip.protocol.0, 0 | 43 | 44 | 60) && ip.dst.is_ipv6() {
        let any = [6, 17, 132].iter().any(|number| !candidates(world, ip.dst, *number).is_empty());
        return if any { Addressed::ByPort } else { Addressed::Nobody };
    }
    let mut candidates = candidates(world, ip.dst, ip.protocol.0);
    candidates.sort_by_key(|(_, service)| by_precedence(service));
    match candidates.first() {
        None => Addressed::Nobody,
        Some((_, service)) if service.spec().vip.ports == PortRange::ANY => {
            Addressed::AnyPort { by_client: !counts_ports(service) }
        }
        Some(_) => Addressed::ByPort,
    }
}

/// The flow that a frame, an ICMP error, is about.
pub(crate) fn quoted(frame: &[u8]) -> Option<Tuple> {
    let l2 = L2::read(frame).ok()?;
    let ip = match l2.ether_type {
        EtherType::IPV4 => Ip::read_v4(l2.payload, Checked::Good).ok()?,
        _ => Ip::read_v6(l2.payload).ok()?,
    };
    let Flow { src, dst, ports: [src_port, dst_port], protocol } = ip.quoted_flow()?;
    Some(Tuple::new(src, dst, src_port, dst_port, protocol))
}

/// The datagram that a frame is a fragment of.
pub(crate) fn datagram_of(arrival: &Arrival) -> Option<Name> {
    let l2 = L2::read(&arrival.bytes).ok()?;
    let ip = match l2.ether_type {
        EtherType::IPV4 => Ip::read_v4(l2.payload, Checked::Good).ok()?,
        _ => Ip::read_v6(l2.payload).ok()?,
    };
    ip.piece.is_some().then(|| name(&ip))
}

/// What the fragments of a datagram have in common.
fn name(ip: &Ip) -> Name {
    let piece = ip.piece.unwrap();
    Name { src: ip.src, dst: ip.dst, id: piece.id, protocol: piece.protocol }
}

/// Where a packet goes.
struct Choice<'w> {
    backend: &'w Backend,
    hash: u64,
    way: NextHop,
    /// Of outer headers.
    source: Option<IpAddr>,
}

/// The owner of the flow's slot, and one of the ways there.
fn choose<'w>(
    world: &'w World,
    place: usize,
    service: &'w Service,
    flow: &Flow,
) -> Result<Choice<'w>, Verdict> {
    let spec = service.spec();
    let mut wanted = spec.backends.iter().filter(|b| b.weight > 0 && !b.drain).peekable();
    if wanted.peek().is_none() {
        return Err(NoBackend.into());
    }
    if !wanted.any(|backend| !ways(world, spec.forward, backend).is_empty()) {
        return Err(NextHopUnresolved.into());
    }
    let [src_port, dst_port] = flow.ports;
    let tuple = Tuple::new(flow.src, flow.dst, src_port, dst_port, flow.protocol);
    let hash = world.tables.hasher.hash(&tuple, counts_ports(service));
    let slots = world.tables.services[place].slots.slots();
    assert_eq!(slots.len(), service.slots() as usize);
    let slot = u128::from(hash) * slots.len() as u128 / (1 << 64);
    let backend = &spec.backends[usize::from(slots[usize::try_from(slot).unwrap()])];
    assert!(backend.weight > 0 && !backend.drain, "a slot is on {backend:?}");
    let ways = ways(world, spec.forward, backend);
    assert!(!ways.is_empty(), "a slot is on {backend:?}, which nobody knows the way to");
    let way = ways[low_half_reduced(hash, ways.len())];
    Ok(Choice {
        backend,
        hash,
        way,
        source: match spec.forward {
            Forward::L2dsr | Forward::Nat | Forward::FullNat(_) => None,
            Forward::Tunnel(tunnel) => outer_source(world, &tunnel, backend, &ways)
                .map(|source| vary(source, &tunnel, hash)),
        },
    })
}

fn low_half_reduced(hash: u64, n: usize) -> usize {
    let n = u64::try_from(n).unwrap();
    usize::try_from((hash % (1 << 32)) * n / (1 << 32)).unwrap()
}

/// The next hops of a backend; none if it cannot be reached in this way.
fn ways(world: &World, forward: Forward, backend: &Backend) -> Vec<NextHop> {
    let ports = &world.ports;
    let (ways, gateway) = if let Some(hop) = &backend.static_hop {
        let on_link = |port: &Port| port.addresses.iter().any(|net| net.contains(&backend.address));
        let place = match &hop.interface {
            Some(name) => ports.iter().position(|port| port.name == *name),
            None => ports.iter().position(on_link).or(Some(0)),
        };
        let port = |place| PortId(u8::try_from(place).unwrap());
        let way = |place| NextHop { port: port(place), mac: hop.mac, vlan: None };
        (place.map(way).into_iter().collect(), None)
    } else if let Some(Ok(resolved)) = world.next_hops.get(&backend.address) {
        (resolved.hops.to_vec(), resolved.gateway)
    } else {
        (Vec::new(), None)
    };
    let reachable = match forward {
        Forward::L2dsr => gateway.is_none(),
        Forward::Nat | Forward::FullNat(_) => true,
        Forward::Tunnel(tunnel) => outer_source(world, &tunnel, backend, &ways).is_some(),
    };
    if reachable { ways } else { Vec::new() }
}

/// The tunnel's prefix, if it is of the backend's family; else an address of that family: of the
/// first way's port, else of any.
fn outer_source(
    world: &World,
    tunnel: &Tunnel,
    backend: &Backend,
    ways: &[NextHop],
) -> Option<IpAddr> {
    let first = ways.first().map(|way| &world.ports[way.port.index()]);
    let addresses = first.into_iter().chain(&*world.ports).flat_map(|port| &port.addresses);
    tunnel
        .source
        .map(|net| net.network())
        .into_iter()
        .chain(addresses.map(ipnet::IpNet::addr))
        .find(|address| address.is_ipv4() == backend.address.is_ipv4())
}

/// The bits that a prefix leaves open are the flow hash's, at most 64.
fn vary(source: IpAddr, tunnel: &Tunnel, hash: u64) -> IpAddr {
    let Some(net) = tunnel.source.filter(|net| net.network() == source) else { return source };
    let open = u32::from(net.max_prefix_len() - net.prefix_len()).min(64);
    let bits = u128::from(hash) % (1 << open);
    match source {
        IpAddr::V4(source) => {
            (source.to_bits() + u32::try_from(bits).unwrap()).to_be_bytes().into()
        }
        IpAddr::V6(source) => (source.to_bits() + bits).to_be_bytes().into(),
    }
}

/// MACs and tags of what leaves: the hop's VLAN; else, out of the port that it came by, the tags
/// that the frame had; else none.
fn l2_front(world: &World, came_by: PortId, old: &L2, way: &NextHop) -> Vec<u8> {
    let macs = [way.mac.0, world.ports[way.port.index()].mac.0].concat();
    let tags = match way.vlan {
        Some(vlan) => vec![0x81, 0x00, vlan.to_be_bytes()[0], vlan.to_be_bytes()[1]],
        None if way.port == came_by => old.tags.to_vec(),
        None => Vec::new(),
    };
    [macs, tags].concat()
}

fn l2dsr(
    world: &World,
    arrival: &Arrival,
    l2: &L2,
    ip: &Ip,
    (choice, clamp): (&Choice, MssClamp),
) -> Result<Vec<u8>, Verdict> {
    let mtu = world.ports[choice.way.port.index()].mtu;
    if ip.packet.len() > mtu.into() {
        return Err(TooBig.into());
    }
    let front = l2_front(world, arrival.port, l2, &choice.way);
    let front = [&front[..], &l2.ether_type.0.to_be_bytes()].concat();
    let mut payload = clamped(ip, clamp, mtu.into());
    payload.extend(&l2.payload[ip.packet.len()..]); // padding and all
    fit(arrival, l2, &front, &payload)
}

/// A packet behind its outer headers.
struct Tunnelled {
    ether_type: EtherType,
    outer: Vec<u8>,
    shim: Vec<u8>,
    packet: Vec<u8>,
}

impl Tunnelled {
    fn new(
        world: &World,
        ip: &Ip,
        choice: &Choice,
        (kind, clamp): (TunnelKind, MssClamp),
    ) -> Result<Self, Verdict> {
        let inner = if ip.dst.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let (protocol, mut shim) = match kind {
            TunnelKind::Ipip if ip.dst.is_ipv4() => (IpNumber::IPV4, Vec::new()),
            TunnelKind::Ipip => (IpNumber::IPV6, Vec::new()),
            TunnelKind::Gre => (IpNumber::GRE, [[0; 2], inner.0.to_be_bytes()].concat()),
            TunnelKind::Gue { port } => {
                let source = u16::try_from(choice.hash % (1 << 14)).unwrap() + 49_152;
                let len = u16::try_from(8 + ip.packet.len()).map_err(|_| TooBig)?;
                let words = [source, port, len, 0].map(u16::to_be_bytes);
                (IpNumber::UDP, words.concat())
            }
        };
        let payload_len = shim.len() + ip.packet.len();
        let (ether_type, outer) = outer_header(ip.traffic_class, protocol, payload_len, choice)?;
        let overhead = outer.len() + shim.len();
        let mtu = usize::from(world.ports[choice.way.port.index()].mtu);
        let packet = clamped(ip, clamp, mtu - overhead);
        if protocol == IpNumber::UDP
            && let (Some(IpAddr::V6(src)), IpAddr::V6(dst)) =
                (choice.source, choice.backend.address)
        {
            let (udp, _) = UdpHeader::from_slice(&shim).unwrap();
            // Of a packet that believes its own checksums: the outer one is wrong where they are.
            let truthful = with_true_checksums(&packet);
            let sum = udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &truthful).unwrap();
            shim[6..].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(Self { ether_type, outer, shim, packet })
    }

    fn overhead(&self) -> usize {
        self.outer.len() + self.shim.len()
    }

    fn frame(
        &self,
        world: &World,
        arrival: &Arrival,
        l2: &L2,
        way: &NextHop,
    ) -> Result<Vec<u8>, Verdict> {
        let front = l2_front(world, arrival.port, l2, way);
        let ether_type = self.ether_type.0.to_be_bytes();
        let front = [&front[..], &ether_type, &self.outer, &self.shim].concat();
        fit(arrival, l2, &front, &self.packet)
    }
}

/// The packet with the checksums that it should have, if it is nothing but an IP header and all of a
/// TCP or UDP segment that has one.
fn with_true_checksums(packet: &[u8]) -> Vec<u8> {
    let mut truthful = packet.to_vec();
    let is_v4 = packet[0] >> 4 == 4;
    let (plain, protocol) = if is_v4 { (20, packet[9]) } else { (40, packet[6]) };
    let is_fragment = is_v4 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    if (is_v4 && packet[0] != 0x45) || is_fragment {
        return truthful;
    }
    let segment = &packet[plain..];
    let at = match protocol {
        6 => 16,
        17 if usize::from(u16::from_be_bytes([segment[4], segment[5]])) == segment.len() => 6,
        _ => return truthful,
    };
    if segment[at..at + 2] == [0; 2] {
        return truthful;
    }
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
    let len = u32::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [addresses, &len, &[0, 0, 0, protocol]].concat();
    truthful[plain + at..][..2].fill(0);
    let sum = checksum_of(&[&pseudo, &truthful[plain..]].concat());
    truthful[plain + at..][..2].copy_from_slice(&sum);
    if is_v4 {
        truthful[10..12].fill(0);
        let sum = checksum_of(&truthful[..20]);
        truthful[10..12].copy_from_slice(&sum);
    }
    truthful
}

/// RFC 1071, word by word.
fn checksum_of(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// The pieces of a frame's outer packet that fit `mtu`.
fn pieces(frame: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let l2 = L2::read(frame).unwrap();
    let front = &frame[..l2.len()];
    let is_v4 = l2.ether_type == EtherType::IPV4;
    let (header_len, more_len) = if is_v4 { (20, 0) } else { (40, 8) };
    let payload = &l2.payload[header_len..];
    let step = (mtu - header_len - more_len) / 8 * 8;
    let count = payload.chunks(step).len();
    let piece = |(number, bytes): (usize, &[u8])| {
        let (offset, has_more) = (number * step / 8, number + 1 < count);
        let offset = IpFragOffset::try_new(offset.try_into().unwrap()).unwrap();
        let mut packet = front.to_vec();
        if is_v4 {
            let mut header = Ipv4HeaderSlice::from_slice(l2.payload).unwrap().to_header();
            header.identification = u16::try_from(id % (1 << 16)).unwrap();
            header.dont_fragment = false;
            (header.fragment_offset, header.more_fragments) = (offset, has_more);
            header.set_payload_len(bytes.len()).unwrap();
            header.write(&mut packet).unwrap();
        } else {
            let mut header = Ipv6HeaderSlice::from_slice(l2.payload).unwrap().to_header();
            let next = header.next_header;
            header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
            header.payload_length = u16::try_from(8 + bytes.len()).unwrap();
            header.write(&mut packet).unwrap();
            Ipv6FragmentHeader::new(next, offset, has_more, id).write(&mut packet).unwrap();
        }
        packet.extend(bytes);
        packet
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

/// The packet; if it is a SYN that announces larger segments than wanted, with smaller ones.
fn clamped(ip: &Ip, clamp: MssClamp, packet_max: usize) -> Vec<u8> {
    let mut packet = ip.packet.to_vec();
    let headers = if ip.dst.is_ipv4() { 40 } else { 60 };
    let max = match clamp {
        MssClamp::Keep => return packet,
        MssClamp::AtMost(max) => max,
        MssClamp::Auto => u16::try_from(packet_max - headers).unwrap(),
    };
    let start = packet.len() - ip.segment.len();
    if ip.protocol != IpNumber::TCP || ip.piece.is_some() || ip.segment[13] & 2 == 0 {
        return packet;
    }
    let header_len = usize::from(ip.segment[12] / 16) * 4;
    if header_len < 20 || header_len > ip.segment.len() {
        return packet;
    }
    let (mut options, mut at) = (&ip.segment[20..header_len], 20);
    loop {
        let len = match *options {
            [1, ..] => 1,
            [2, 4, high, low, ..] => {
                let old = u16::from_be_bytes([high, low]);
                if old > max {
                    let place = start + at + 2;
                    packet[place..place + 2].copy_from_slice(&max.to_be_bytes());
                    let shift = |mss: u16| if at % 2 == 0 { mss } else { mss.swap_bytes() };
                    let sum = u16::from_be_bytes([packet[start + 16], packet[start + 17]]);
                    let sum = [!sum, !shift(old), shift(max)].map(u16::to_be_bytes).concat();
                    let sum = !u16::try_from(internet_sum(&sum)).unwrap();
                    packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
                }
                return packet;
            }
            [kind, len, ..] if kind > 1 && len >= 2 && usize::from(len) <= options.len() => len,
            _ => return packet,
        };
        options = &options[len.into()..];
        at += usize::from(len);
    }
}

fn outer_header(
    traffic_class: u8,
    protocol: IpNumber,
    payload_len: usize,
    choice: &Choice,
) -> Result<(EtherType, Vec<u8>), Verdict> {
    let mut bytes = Vec::new();
    match (choice.source.unwrap(), choice.backend.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                dscp: (traffic_class >> 2).try_into().unwrap(),
                ecn: (traffic_class & 3).try_into().unwrap(),
                identification: 0,
                dont_fragment: true,
                time_to_live: 64,
                protocol,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            header.set_payload_len(payload_len).map_err(|_| TooBig)?;
            header.write(&mut bytes).unwrap();
            Ok((EtherType::IPV4, bytes))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let flow_label = u32::try_from(choice.hash % (1 << 20)).unwrap();
            let header = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(flow_label).unwrap(),
                payload_length: payload_len.try_into().map_err(|_| TooBig)?,
                next_header: protocol,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            header.write(&mut bytes).unwrap();
            Ok((EtherType::IPV6, bytes))
        }
        mixed => panic!("two families in one header: {mixed:?}"),
    }
}

/// The frame, if there is room for its front where the old one and the headroom were.
fn fit(arrival: &Arrival, l2: &L2, front: &[u8], payload: &[u8]) -> Result<Vec<u8>, Verdict> {
    let old_front = arrival.bytes.len() - l2.payload.len();
    if front.len() > old_front + arrival.headroom {
        return Err(NoHeadroom.into());
    }
    Ok([front, payload].concat())
}
