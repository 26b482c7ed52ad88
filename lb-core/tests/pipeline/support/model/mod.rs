//! The forwarding decision a second time: slow, obvious, one frame at a time, from the rules.
//!
//! Headers are read by `etherparse`. Taken from the balancer are conventions: the flow hash, the ports
//! that it gives to connections, and the identifications of packets that come from IPv6; and the
//! owners of the slots, which have tests of their own.

use std::net::{IpAddr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    EtherType, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header,
    Ipv6Header, icmpv4, icmpv6,
};
use lb_core::drop_reason::DropReason::{
    self, MultiSegment, NoHeadroom, NotOurs, TooBig, Truncated, TtlExceeded,
};
use lb_core::frame::Checked;
use lb_core::model::{Forward, Service, Tunnel};
use lb_core::tables::next_hop::PortId;
use lb_core::tuple::Tuple;

use super::datagrams::{Datagrams, Name};
use super::run::Arrival;
use super::world::World;

mod admission;
mod between;
mod connections;
mod headers;
mod leaving;
mod nat;
mod services;
mod stream;

use admission::Admission;
use connections::Connection;
use headers::{Flow, Ip, L2, header_len, read_ports};
use leaving::{Tunnelled, l2dsr, pieces};
use services::{Addressed, Choice, Owner, addressed, choose, owner};

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

/// What a packet has of the flow that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A transport header.
    Segment,
    /// It is a fragment, and not the first.
    Later,
    /// It is an error about a packet of the flow.
    Error,
}

/// A packet that is somebody's.
struct Packet<'w> {
    l2: L2<'w>,
    ip: Ip<'w>,
    flow: Flow,
    part: Part,
    service: &'w Service,
    to: To<'w>,
}

/// Where it goes.
enum To<'w> {
    Backend(Choice<'w>),
    /// By number, if the service has a pool.
    BackendOf(Choice<'w>, usize),
    /// A `nat` backend's answer; address and port of the service, the port if it is another.
    Client(IpAddr, Option<u16>),
    ClientOf(usize),
}

/// A connection that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// What the backend sees instead of the client.
    pub(crate) stand: SocketAddr,
    pub(crate) protocol: u8,
}

/// What is known of a frame that is on its way.
pub(crate) struct OnItsWay<'w>(Packet<'w>);

impl OnItsWay<'_> {
    /// Those of a burst are sent on their way by kinds, one after the other.
    pub(crate) fn kind(&self) -> u8 {
        match self.0.to {
            To::Backend(_) => 0,
            To::BackendOf(..) => 1,
            To::ClientOf(_) => 2,
            To::Client(..) => 3,
        }
    }
}

/// What a balancer remembers, and what it does.
#[derive(Debug)]
pub(crate) struct Model<'w> {
    world: &'w World,
    pub(crate) datagrams: Datagrams,
    connections: Vec<Connection<'w>>,
    admission: Admission,
    /// The last identification that was given to an outer packet in pieces.
    last_id: u32,
}

impl<'w> Model<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        Self {
            world,
            datagrams: Datagrams::default(),
            connections: Vec::new(),
            admission: Admission::new(world),
            last_id: 0,
        }
    }

    /// All connections, as far as the balancer has told.
    pub(crate) fn known(&self) -> Vec<Known> {
        let known = |it: &Connection| Known {
            client: (it.flow.src, it.flow.ports[0]).into(),
            vip: (it.flow.dst, it.flow.ports[1]).into(),
            backend: it.backend.into(),
            stand: it.stand.into(),
            protocol: it.flow.protocol,
        };
        self.connections.iter().filter(|it| it.next.is_none()).map(known).collect()
    }

    /// Clients that have answered a challenge.
    pub(crate) fn admitted(&self) -> u64 {
        self.admission.let_in.len() as u64
    }

    /// Where a frame goes that came in by a port; `now` in milliseconds, and whether the frame has been
    /// here before, and had to wait. All frames of a burst are asked about before the first of them
    /// opens a connection, and all before the first of them leaves.
    pub(crate) fn find(
        &mut self,
        arrival: &'w Arrival,
        now: (u64, bool),
    ) -> Result<OnItsWay<'w>, Verdict> {
        self.read(arrival, now)
            .map(OnItsWay)
            .map_err(|verdict| self.without_kernel(arrival, verdict))
    }

    /// What is remembered of it, if it belongs to a connection.
    pub(crate) fn connect(&mut self, packet: &mut OnItsWay<'w>) -> Result<(), Verdict> {
        self.follow(&mut packet.0)
    }

    /// What becomes of it.
    pub(crate) fn leave(&mut self, arrival: &'w Arrival, packet: &OnItsWay<'w>) -> Verdict {
        self.forward(arrival, &packet.0).unwrap_or_else(|verdict| verdict)
    }

    fn without_kernel(&self, arrival: &Arrival, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Punt if !self.world.ports[arrival.port.index()].kernel => NotOurs.into(),
            other => other,
        }
    }

    fn read(&mut self, arrival: &'w Arrival, now: (u64, bool)) -> Result<Packet<'w>, Verdict> {
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
        let (flow, part) = self.flow(&mut ip, now)?;
        let (service, to) = match owner(world, &flow) {
            Owner::Service(place, service) => {
                self.admission.admit(
                    world,
                    arrival,
                    (&l2, &ip),
                    (&flow, part),
                    (service, now.0),
                )?;
                (service, To::Backend(choose(world, place, service, &flow)?))
            }
            Owner::Station(service, vip, vip_port) => (service, To::Client(vip, vip_port)),
            Owner::Nobody => {
                let number = self.by_stand(&flow).ok_or(Verdict::Punt)?;
                (self.connections[number].service, To::ClientOf(number))
            }
        };
        Ok(Packet { l2, ip, flow, part, service, to })
    }

    /// The flow that a packet belongs to, or is about.
    fn flow(&mut self, ip: &mut Ip, now: (u64, bool)) -> Result<(Flow, Part), Verdict> {
        let (src, dst, protocol) = (ip.src, ip.dst, ip.protocol.0);
        let own = |ports| Flow { src, dst, ports, protocol };
        let header_len = header_len(ip.protocol);
        if matches!(ip.protocol, IpNumber::ICMP | IpNumber::IPV6_ICMP) {
            let flow = ip.quoted_flow().filter(|flow| flow.dst == ip.dst);
            return flow.map(|flow| (flow, Part::Error)).ok_or(Verdict::Punt);
        }
        let Some(piece) = ip.piece else {
            let Some(header_len) = header_len else { return Ok((own([0; 2]), Part::Segment)) };
            let header = ip.segment.get(..header_len).ok_or(Truncated)?;
            return Ok((own(read_ports(header)), Part::Segment));
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
        let part = if start > 0 { Part::Later } else { Part::Segment };
        match addressed {
            Addressed::AnyPort { by_client } if header_len.is_none() || by_client => {
                return Ok((own([0; 2]), part));
            }
            _ => {}
        }
        let first = if start > 0 { None } else { ip.first_of_datagram() };
        let seen = self.datagrams.fragment(self.world, &name(ip), first, (start, end), now)?;
        if [IpNumber::ICMP.0, IpNumber::IPV6_ICMP.0].contains(&seen.1) {
            return Err(Verdict::Punt); // found behind an extension header
        }
        Ok((Flow { ports: seen.0, protocol: seen.1, ..own([0; 2]) }, part))
    }

    fn forward(&mut self, arrival: &'w Arrival, packet: &Packet<'w>) -> Result<Verdict, Verdict> {
        let world = self.world;
        let Packet { l2, ip, service, to, .. } = packet;
        let mss = service.spec().mss;
        let To::Backend(choice) = to else { return self.translate(arrival, packet) };
        match service.spec().forward {
            Forward::L2dsr => {
                let sent = l2dsr(world, arrival, l2, ip, (choice, mss));
                if sent == Err(TooBig.into()) && (ip.dont_fragment || ip.dst.is_ipv6()) {
                    return self.too_big(arrival, packet, (choice.way.port, 0));
                }
                Ok(Verdict::Send(choice.way.port, vec![sent?]))
            }
            Forward::Tunnel(Tunnel { kind, .. }) => {
                let tunnel = Tunnelled::new(world, ip, choice, (kind, mss))?;
                let mtu = usize::from(world.ports[choice.way.port.index()].mtu);
                if tunnel.overhead() + ip.packet.len() <= mtu {
                    let sent = tunnel.frame(world, arrival, l2, &choice.way)?;
                    return Ok(Verdict::Send(choice.way.port, vec![sent]));
                }
                let may_be_cut =
                    if ip.dst.is_ipv4() { !ip.dont_fragment } else { ip.packet.len() <= 1280 };
                if !may_be_cut {
                    return self.too_big(arrival, packet, (choice.way.port, tunnel.overhead()));
                }
                let whole = tunnel.frame(world, arrival, l2, &choice.way)?;
                // An IPv6 fragment header needs room in front, too.
                let front_len = whole.len() - ip.packet.len();
                let is_v6 = choice.backend.address.is_ipv6();
                self.last_id += 1;
                if is_v6 && front_len + 8 > l2.len() + arrival.headroom {
                    return Err(NoHeadroom.into());
                }
                let pieces = pieces(&whole, mtu, self.last_id);
                Ok(Verdict::Send(choice.way.port, pieces))
            }
            Forward::Nat | Forward::Nat46(_) | Forward::FullNat(_) => {
                self.translate(arrival, packet)
            }
        }
    }

    fn too_big(
        &self,
        arrival: &Arrival,
        packet: &Packet,
        (way, overhead): (PortId, usize),
    ) -> Result<Verdict, Verdict> {
        let mtu = u16::try_from(usize::from(self.world.ports[way.index()].mtu) - overhead).unwrap();
        self.answer(arrival, packet, Some(mtu))
    }

    /// Whoever sent it is told what would fit, or that no hop is left; if he may be told.
    fn answer(
        &self,
        arrival: &Arrival,
        Packet { l2, ip, part, to, .. }: &Packet,
        mtu: Option<u16>,
    ) -> Result<Verdict, Verdict> {
        let reason = if mtu.is_some() { TooBig } else { TtlExceeded };
        let sender = &arrival.bytes[6..12];
        if *part != Part::Segment || sender[0] % 2 == 1 || sender == [0; 6] {
            return Err(reason.into());
        }
        let port = &self.world.ports[arrival.port.index()];
        // A VIP speaks for itself; of routes, the router does, if it has an address.
        let is_back = matches!(to, To::Client(..) | To::ClientOf(_));
        let own = port.addresses.iter().map(ipnet::IpNet::addr);
        let own =
            own.filter(|_| is_back || mtu.is_none()).find(|a| a.is_ipv4() == ip.dst.is_ipv4());
        let mut packet = Vec::new();
        match (own.unwrap_or(ip.dst), ip.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let quote = &ip.packet[..ip.packet.len().min(576 - 28)];
                let says = match mtu {
                    Some(next_hop_mtu) => Icmpv4Type::DestinationUnreachable(
                        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                    ),
                    None => {
                        Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
                    }
                };
                let message = Icmpv4Header::with_checksum(says, quote);
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
                let says = match mtu {
                    Some(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.max(1280).into() },
                    None => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                };
                let message =
                    Icmpv6Header::with_checksum(says, source, destination, quote).unwrap();
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
        let front = [sender, &port.mac.0, l2.tags, &l2.ether_type.0.to_be_bytes()].concat();
        // Headroom: what is in front of the packet grows by the new headers.
        let new_bytes = if ip.dst.is_ipv4() { 28 } else { 48 };
        if new_bytes > arrival.headroom {
            return Err(NoHeadroom.into());
        }
        Ok(Verdict::Answer(arrival.port, [front, packet].concat(), reason))
    }
}

/// The flow that a frame, an ICMP error, is about.
pub(crate) fn quoted(frame: &[u8]) -> Option<Tuple> {
    let l2 = L2::read(frame).ok()?;
    let ip = match l2.ether_type {
        EtherType::IPV4 => Ip::read_v4(l2.payload, Checked::Good).ok()?,
        _ => Ip::read_v6(l2.payload).ok()?,
    };
    ip.quoted_flow().map(|flow| flow.tuple())
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
