//! The forwarding decision a second time: slow, obvious, one frame at a time, from the rules.
//!
//! Headers are read by `etherparse`. Taken from the balancer are the flow hash, which is a matter of
//! convention, and the owners of the slots, which have tests of their own.

use std::net::IpAddr;

use etherparse::err::ipv4::{HeaderError, HeaderSliceError};
use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel,
    Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    SingleVlanHeaderSlice, UdpHeader, ip_number,
};
use lb_core::drop_reason::DropReason::{
    self, BadChecksum, BadHeaderLength, BadSource, BadVersion, Fragment, MultiSegment,
    NextHopUnresolved, NoBackend, NoHeadroom, NotOurs, SameSource, TooBig, TooManyExtensions,
    Truncated,
};
use lb_core::frame::Checked;
use lb_core::model::{
    Affinity, Backend, Forward, MssClamp, PortRange, Protocol, Service, Tunnel, TunnelKind,
};
use lb_core::tables::next_hop::{NextHop, Port, PortId};
use lb_core::tuple::Tuple;

use super::run::Arrival;
use super::world::World;

/// What has to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop(DropReason),
    Punt,
    /// It leaves by this port, and is these bytes.
    Send(PortId, Vec<u8>),
}

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// What has to become of a frame that came in by a port.
pub(crate) fn verdict(world: &World, arrival: &Arrival) -> Verdict {
    match decide(world, arrival) {
        Ok(sent) => sent,
        Err(Verdict::Punt) if !world.ports[arrival.port.index()].kernel => NotOurs.into(),
        Err(other) => other,
    }
}

fn decide(world: &World, arrival: &Arrival) -> Result<Verdict, Verdict> {
    if arrival.is_split {
        return Err(MultiSegment.into());
    }
    let l2 = L2::read(&arrival.bytes)?;
    if l2.dst != world.ports[arrival.port.index()].mac.0 {
        let is_group = l2.dst[0] % 2 == 1;
        return Err(if is_group { Verdict::Punt } else { NotOurs.into() });
    }
    let ip = match l2.ether_type {
        EtherType::IPV4 => Ip::read_v4(l2.payload, arrival.checked)?,
        EtherType::IPV6 => Ip::read_v6(l2.payload)?,
        _ => return Err(Verdict::Punt),
    };
    let ports = ip.ports()?;
    let (place, service) = service_of(world, &ip, ports)?;
    let choice = choose(world, place, service, &ip, ports)?;
    let sent = match service.spec().forward {
        Forward::L2dsr => l2dsr(world, arrival, &l2, &ip, (&choice, service.spec().mss))?,
        Forward::Tunnel(Tunnel { kind, .. }) => {
            tunnel(world, arrival, &l2, &ip, (&choice, kind, service.spec().mss))?
        }
    };
    Ok(Verdict::Send(choice.way.port, sent))
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
}

struct Ip<'a> {
    src: IpAddr,
    dst: IpAddr,
    traffic_class: u8,
    protocol: IpNumber,
    is_fragment: bool,
    /// Without padding.
    packet: &'a [u8],
    segment: &'a [u8],
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
            is_fragment: header.is_fragmenting_payload(),
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
            is_fragment: false,
            packet,
            segment: &packet[40..],
        };
        ip.skip_extensions()?;
        Ok(ip)
    }

    /// At most 8 of them; none behind a fragment header, where they may be another fragment's.
    fn skip_extensions(&mut self) -> Result<(), Verdict> {
        for walked in 0.. {
            let is_fragment_header = self.protocol == ip_number::IPV6_FRAG;
            let is_extension = matches!(
                self.protocol,
                ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS
            );
            if self.is_fragment || !(is_fragment_header || is_extension) {
                break;
            }
            if walked == 8 {
                return Err(TooManyExtensions.into());
            }
            let header_len;
            (self.protocol, header_len) = if is_fragment_header {
                let header =
                    Ipv6FragmentHeaderSlice::from_slice(self.segment).map_err(|_| Truncated)?;
                self.is_fragment = header.is_fragmenting_payload();
                (header.next_header(), 8)
            } else {
                let header =
                    Ipv6RawExtHeaderSlice::from_slice(self.segment).map_err(|_| Truncated)?;
                (header.next_header(), header.slice().len())
            };
            self.segment = &self.segment[header_len..];
        }
        Ok(())
    }

    /// Source and destination port; zeros in a fragment.
    fn ports(&self) -> Result<[u16; 2], Verdict> {
        let header_len = match self.protocol {
            IpNumber::TCP => 20,
            IpNumber::UDP => 8,
            IpNumber::SCTP => 12,
            IpNumber::ICMP | IpNumber::IPV6_ICMP => return Err(Verdict::Punt),
            _ => return Ok([0; 2]),
        };
        if self.is_fragment {
            return Ok([0; 2]);
        }
        let header = self.segment.get(..header_len).ok_or(Truncated)?;
        Ok([[header[0], header[1]], [header[2], header[3]]].map(u16::from_be_bytes))
    }
}

/// Adds 16-bit words with an end-around carry (RFC 1071): 0xffff over a header that is true.
pub(crate) fn internet_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let sum = sum + (u32::from(pair[0]) << 8) + pair.get(1).map_or(0, |&low| u32::from(low));
        (sum & 0xffff) + (sum >> 16)
    })
}

/// Of the services that a packet matches, the most specific: by ports, then prefix, then protocol.
fn service_of<'w>(
    world: &'w World,
    ip: &Ip,
    [_, port]: [u16; 2],
) -> Result<(usize, &'w Service), Verdict> {
    let services = world.desired.services().iter().map(AsRef::as_ref).enumerate();
    let mut candidates: Vec<(usize, &Service)> = services
        .filter(|(_, service)| {
            let vip = service.spec().vip;
            let protocol = vip.protocol.number();
            vip.address.contains(&ip.dst) && protocol.is_none_or(|number| number == ip.protocol.0)
        })
        .collect();
    if ip.is_fragment {
        return Err(candidates.first().map_or(Verdict::Punt, |_| Fragment.into()));
    }
    candidates.retain(|(_, service)| {
        let ports = service.spec().vip.ports;
        ports.first() <= port && port <= ports.last()
    });
    candidates.sort_by_key(|(_, service)| {
        let vip = service.spec().vip;
        let kind = if vip.ports == PortRange::ANY { 2 } else { u8::from(vip.ports.is_range()) };
        (kind, 255 - vip.address.prefix_len(), vip.protocol == Protocol::Any)
    });
    candidates.first().copied().ok_or(Verdict::Punt)
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
    ip: &Ip,
    [src_port, dst_port]: [u16; 2],
) -> Result<Choice<'w>, Verdict> {
    let spec = service.spec();
    let mut wanted = spec.backends.iter().filter(|b| b.weight > 0 && !b.drain).peekable();
    if wanted.peek().is_none() {
        return Err(NoBackend.into());
    }
    if !wanted.any(|backend| !ways(world, spec.forward, backend).is_empty()) {
        return Err(NextHopUnresolved.into());
    }
    let tuple = Tuple::new(ip.src, ip.dst, src_port, dst_port, ip.protocol.0);
    let hash = world.tables.hasher.hash(&tuple, spec.affinity == Affinity::Flow);
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
            Forward::L2dsr => None,
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

fn tunnel(
    world: &World,
    arrival: &Arrival,
    l2: &L2,
    ip: &Ip,
    (choice, kind, clamp): (&Choice, TunnelKind, MssClamp),
) -> Result<Vec<u8>, Verdict> {
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
    let (ether_type, outer) =
        outer_header(ip.traffic_class, protocol, shim.len() + ip.packet.len(), choice)?;
    let mtu = usize::from(world.ports[choice.way.port.index()].mtu);
    let overhead = outer.len() + shim.len();
    if overhead + ip.packet.len() > mtu {
        return Err(TooBig.into());
    }
    let packet = clamped(ip, clamp, mtu - overhead);
    if protocol == IpNumber::UDP
        && let (Some(IpAddr::V6(src)), IpAddr::V6(dst)) = (choice.source, choice.backend.address)
    {
        let (udp, _) = UdpHeader::from_slice(&shim).unwrap();
        let sum = udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &packet).unwrap();
        shim[6..].copy_from_slice(&sum.to_be_bytes());
    }
    let front = l2_front(world, arrival.port, l2, &choice.way);
    let front = [&front[..], &ether_type.0.to_be_bytes(), &outer, &shim].concat();
    fit(arrival, l2, &front, &packet)
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
    if ip.protocol != IpNumber::TCP || ip.is_fragment || ip.segment[13] & 2 == 0 {
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
