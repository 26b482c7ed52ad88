//! Who may open connections to a service with a bound. Taken from the balancer are the numbers that it
//! challenges with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader};
use lb_core::admission::{self, Epoch};
use lb_core::drop_reason::DropReason::{ChallengeMet, SynLimit};
use lb_core::model::{AboveRate, Service};
use lb_core::rate::Tick;

use super::headers::{Flow, Ip, L2};
use super::{Part, Verdict};
use crate::support::run::Arrival;
use crate::support::world::World;

/// What is remembered of services, by their names.
#[derive(Debug)]
pub(super) struct Admission {
    cookies: admission::Cookies,
    /// When the last SYN passed because there was room.
    passed: BTreeMap<String, u64>,
    challenged: BTreeSet<String>,
    pub(super) let_in: BTreeSet<(String, IpAddr)>,
}

impl Admission {
    pub(super) fn new(world: &World) -> Self {
        Self {
            cookies: admission::Cookies::new(world.desired.hash_key()),
            passed: BTreeMap::new(),
            challenged: BTreeSet::new(),
            let_in: BTreeSet::new(),
        }
    }

    /// Runs are shorter than an epoch.
    pub(super) fn admit(
        &mut self,
        world: &World,
        arrival: &Arrival,
        (l2, ip): (&L2<'_>, &Ip<'_>),
        (flow, part): (&Flow, Part),
        (service, now_ms): (&Service, u64),
    ) -> Result<(), Verdict> {
        let Some(bound) = service.spec().syn else { return Ok(()) };
        let Some(&flags) = ip.segment.get(13) else { return Ok(()) };
        if part != Part::Segment || flow.protocol != IpNumber::TCP.0 {
            return Ok(());
        }
        let name = service.spec().name.clone();
        let number = self.cookies.of(&flow.tuple(), Epoch::from(Tick(now_ms)));
        let (is_syn, is_rst, is_ack) = (flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
        let guest = (name.clone(), client(flow.src));
        if is_rst && !is_syn {
            let is_answer = ip.segment[4..8] == number.to_be_bytes();
            if ip.piece.is_none() && is_answer && self.challenged.contains(&name) {
                self.let_in.insert(guest);
                return Err(ChallengeMet.into());
            }
            return Ok(());
        }
        if !is_syn || is_rst || is_ack {
            return Ok(());
        }
        assert!(bound.rate <= 10, "then there is never room for two at once");
        let has_room = |last: &u64| now_ms - last >= 1000 / u64::from(bound.rate);
        if self.passed.get(&name).is_none_or(has_room) {
            self.passed.insert(name, now_ms);
            return Ok(());
        }
        if bound.above == AboveRate::Drop {
            return Err(SynLimit.into());
        }
        if self.let_in.contains(&guest) {
            return Ok(());
        }
        let sender = &arrival.bytes[6..12];
        if ip.piece.is_some() || sender[0] % 2 == 1 || sender == [0; 6] {
            return Err(SynLimit.into());
        }
        self.challenged.insert(name);
        let own = &world.ports[arrival.port.index()].mac.0;
        let front = [sender, own, l2.tags, &l2.ether_type.0.to_be_bytes()].concat();
        let frame = [front, answer(flow, number)].concat();
        Err(Verdict::Answer(arrival.port, frame, SynLimit))
    }
}

/// An IPv6 client is all of its /64.
fn client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

/// A packet from the service: an acknowledgement of `number`.
fn answer(flow: &Flow, number: u32) -> Vec<u8> {
    let [client_port, vip_port] = flow.ports;
    let mut segment = TcpHeader {
        source_port: vip_port,
        destination_port: client_port,
        acknowledgment_number: number,
        ack: true,
        ..TcpHeader::default()
    };
    let mut packet = Vec::new();
    match (flow.dst, flow.src) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header =
                Ipv4Header::new(20, 64, IpNumber::TCP, from.octets(), to.octets()).unwrap();
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            segment.checksum = segment.calc_checksum_ipv4(&header, &[]).unwrap();
            header.write(&mut packet).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                payload_length: 20,
                next_header: IpNumber::TCP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            segment.checksum = segment.calc_checksum_ipv6(&header, &[]).unwrap();
            header.write(&mut packet).unwrap();
        }
        mixed => panic!("two families: {mixed:?}"),
    }
    segment.write(&mut packet).unwrap();
    packet
}
