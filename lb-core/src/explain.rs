//! What would become of a packet, and why.
//!
//! It is taken through the pipeline itself, like any other. Only the memories that a packet changes (the
//! flow table, the connections of pools, what gates have counted) are copies of as much of them as
//! has to do with its flow: so there is nothing that could be told differently here, and nothing has
//! happened afterwards.

use std::mem;
use std::sync::Arc;

use crate::burst::{Burst, Fate, Meta, WorkerId};
use crate::continuity::tracker::Tracked;
use crate::continuity::transition::Moved;
use crate::continuity::{Flow, Tracker};
use crate::counters::Counters;
use crate::frame::Frame as _;
use crate::pipeline::process;
use crate::rate::Tick;
use crate::sim::SimFrame;
use crate::stage::classify::classify;
use crate::stage::parse::parse;
use crate::state::{Settings, State};
use crate::tables::next_hop::PortId;
use crate::tables::{ServiceTable, Station, Tables};
use crate::tuple::Tuple;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, MacAddr};
use crate::wire::{SCTP, TCP, UDP, sctp, tcp, udp};

/// What would become of a packet.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What the stages find out about it.
    pub meta: Meta,
    /// What becomes of it.
    pub fate: Fate,
    /// What of its flow is remembered before.
    pub tracked: Option<Tracked>,
    /// Whom its slot was on, if that is in transition.
    pub moved: Moved,
    /// `fullnat`: what its backend sees instead of the client.
    pub behind: Option<Station>,
    /// The frame as it leaves, if it does.
    pub frame: Vec<u8>,
}

/// Takes packets through the pipeline, one after the other, as if each were the next to come.
#[derive(Debug)]
pub struct Explainer {
    tables: Arc<Tables>,
    /// The same, but for the memories that a packet changes: those are copies, each for one packet.
    trial: Tables,
    state: State<SimFrame>,
    burst: Burst<SimFrame>,
}

impl Explainer {
    /// By these tables, and what is remembered beside them at the time of each question.
    #[must_use]
    pub fn new(tables: &Arc<Tables>) -> Self {
        let mut trial = Tables::clone(tables);
        trial.tracker = Arc::new(Tracker::for_trial());
        Self { tables: Arc::clone(tables), trial, state: new_state(), burst: Burst::default() }
    }

    /// The tables that it goes by.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// What would become of a frame that comes in by `port`, on any worker. `None`: there is no such port.
    pub fn explain(&mut self, port: PortId, frame: &[u8], now: Tick) -> Option<Trace> {
        let came_by = self.tables.ports.get(port.index())?;
        let burst = &mut self.burst;
        burst.refill(port, |frames| frames.push(SimFrame::new(frame)));
        parse(burst, came_by);
        classify(burst, &self.tables);
        let known = *burst.meta(0);
        let is_services = matches!(burst.fate(0), Fate::Send(_));
        burst.take(|_, _, _, _| ());
        let tables = Arc::clone(&self.tables);
        let service = tables.service(known.service).filter(|_| is_services);

        let tracked = service.and_then(|it| tables.tracker.find(&Flow::new(&known, it)));
        if let Some(service) = service {
            self.copy(&known, service, tracked, now);
        }
        let burst = &mut self.burst;
        burst.refill(port, |frames| frames.push(SimFrame::new(frame)));
        self.state.now = now;
        process(burst, &self.trial, &Counters::new(0), &mut self.state);
        let (meta, fate) = (*burst.meta(0), burst.fate(0));
        let mut left = Vec::new();
        burst.take(|_, frame, _, _| left.extend_from_slice(frame.bytes()));
        self.forget(&known);

        let service = service.filter(|_| !meta.rule.is_return());
        let transitions = service.and_then(|service| service.transitions.as_ref());
        let is_sent = matches!(fate, Fate::Send(_));
        let pooled = service.and_then(|service| service.pooled.as_ref()).filter(|_| is_sent);
        Some(Trace {
            meta,
            fate,
            tracked: tracked.filter(|_| service.is_some()),
            moved: transitions.map_or(Moved::No, |it| it.of(meta.hash)),
            behind: pooled.map(|pooled| pooled.pool.station(meta.slot)),
            frame: left,
        })
    }

    /// Copies what a packet of the flow could change.
    fn copy(&mut self, known: &Meta, service: &ServiceTable, tracked: Option<Tracked>, now: Tick) {
        if let Some(tracked) = tracked {
            self.trial.tracker.copy(&Flow::new(known, service), &tracked, now);
        }
        let Some(place) = self.trial.services.get_mut(known.service as usize) else { return };
        if service.gate.is_none() && service.pooled.is_none() {
            return;
        }
        let own = Arc::make_mut(place);
        own.gate = service.gate.as_ref().map(|gate| Arc::new(gate.trial()));
        if let Some(pooled) = &mut own.pooled {
            let at = known.rule.is_return().then_some(known.slot);
            let hash = self.tables.hasher.hash(&known.tuple, true);
            let copy = Arc::new(pooled.pool.trial(hash, at));
            let before = mem::replace(&mut pooled.pool, Arc::clone(&copy));
            let mut pools = Arc::make_mut(&mut self.trial.pools).iter_mut();
            if let Some(pool) = pools.find(|pool| Arc::ptr_eq(pool, &before)) {
                *pool = copy;
            }
        }
    }

    /// Takes all copies away again, and what else a packet has left.
    fn forget(&mut self, known: &Meta) {
        let place = known.service as usize;
        if let Some(service) = self.tables.services.get(place) {
            self.trial.services[place] = Arc::clone(service);
        }
        self.trial.pools = Arc::clone(&self.tables.pools);
        if !self.trial.tracker.is_empty() {
            self.trial.tracker = Arc::new(Tracker::for_trial());
        }
        self.state.forget_created(0);
        if known.is_fragment {
            self.state = new_state();
        }
    }
}

fn new_state() -> State<SimFrame> {
    State::new(Settings { worker: WorkerId(0), workers: 1, punts_per_second: u32::MAX })
}

/// A packet of a flow, as a client on the port's link would send it to `station`; one that opens the
/// flow, if `opens` and its protocol has such.
#[must_use]
pub fn packet(tuple: &Tuple, station: MacAddr, opens: bool) -> Vec<u8> {
    /// The client's, or its router's.
    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const TTL: u8 = 64;
    let [src, dst] = [&tuple.src, &tuple.dst]
        .map(|address| if tuple.is_ipv6 { &address[..] } else { &address[12..] });
    let mut segment = segment(tuple, opens);
    #[expect(clippy::cast_possible_truncation, reason = "it has some dozen bytes")]
    let len = segment.len() as u16;
    let checksum = match tuple.protocol {
        TCP => Some(tcp::CHECKSUM),
        UDP => Some(udp::CHECKSUM),
        _ => None,
    };
    if let Some(place) = checksum {
        let sum = Sum::default().pseudo_header(src, dst, len, tuple.protocol).plus(&segment);
        segment[place].copy_from_slice(zerocopy::IntoBytes::as_bytes(&sum.checksum()));
    }
    let mut ip = Vec::new();
    if tuple.is_ipv6 {
        ip.extend([0x60, 0, 0, 0]);
        ip.extend(len.to_be_bytes());
        ip.extend([tuple.protocol, TTL]);
    } else {
        ip.extend([0x45, 0]);
        ip.extend((20 + len).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, TTL, tuple.protocol, 0, 0]); // may not be fragmented
    }
    ip.extend([src, dst].concat());
    if !tuple.is_ipv6 {
        let checksum = Sum::default().plus(&ip).checksum();
        ip[10..12].copy_from_slice(zerocopy::IntoBytes::as_bytes(&checksum));
    }
    let kind = if tuple.is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 };
    [&station.0[..], &ROUTER, &kind.to_be_bytes(), &ip, &segment].concat()
}

/// Its transport header, without a checksum, and with a little behind it.
fn segment(tuple: &Tuple, opens: bool) -> Vec<u8> {
    let mut bytes = tuple.ports.to_vec();
    match tuple.protocol {
        TCP => {
            bytes.extend([0; 8]);
            bytes.extend([0x50, if opens { tcp::SYN } else { tcp::ACK }, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => bytes.extend([0, 8, 0, 0]),
        SCTP => {
            const DATA: u8 = 0;
            bytes.extend([0; 8]);
            bytes.extend([if opens { sctp::INIT } else { DATA }, 0, 0, 20]);
            bytes.extend([0; 16]);
            let crc = crc32c::crc32c(&bytes).to_le_bytes();
            bytes[8..12].copy_from_slice(&crc);
        }
        _ => bytes = vec![0; 8],
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::Exit;
    use crate::model::tests::spec;
    use crate::model::{ClientAddress, Forward, FullNat, ServiceSpec};
    use crate::stage::classify::tests::{tables, tables_after};

    fn tuple(protocol: u8, src: &str, dst: &str) -> Tuple {
        let [src, dst]: [std::net::SocketAddr; 2] = [src, dst].map(|it| it.parse().unwrap());
        Tuple::new(src.ip(), dst.ip(), src.port(), dst.port(), protocol)
    }

    /// What is asked leaves no trace, however often; what is done is told.
    #[test]
    fn nothing_has_happened_afterwards() {
        const CLIENT: &str = "198.51.100.7:40000";
        let pool = "10.0.0.200/32".parse().unwrap();
        let fullnat = Forward::FullNat(FullNat { pool, client_address: ClientAddress::default() });
        let behind =
            ServiceSpec { forward: fullnat, ..spec("behind", "10.0.0.101", &["10.0.0.11"]) };
        let before = tables([spec("web", "10.0.0.100", &["10.0.0.11"]), behind.clone()]);
        let backends = ["10.0.0.11", "10.0.0.12"];
        let tables = tables_after(Some(&before), [spec("web", "10.0.0.100", &backends), behind]);
        let station = tables.ports[0].mac;
        let now = Tick(5000);
        let tables = Arc::new(tables);
        let mut explainer = Explainer::new(&tables);
        let mut ask = |vip: &str, opens| {
            let tuple = tuple(TCP, CLIENT, vip);
            explainer.explain(PortId(0), &packet(&tuple, station, opens), now).unwrap()
        };
        let later = ask("10.0.0.100:80", false);
        assert!(matches!(later.fate, Fate::Send(_)), "{later:?}");
        for vip in ["10.0.0.100:80", "10.0.0.101:80"] {
            for opens in [true, false, true] {
                assert!(ask(vip, opens).tracked.is_none());
            }
        }
        assert!(tables.tracker.is_empty());
        let flow = tuple(TCP, CLIENT, "10.0.0.101:80");
        let hash = tables.hasher.hash(&flow, true);
        assert!(tables.pools[0].find(&flow, hash).is_none());
        let first = ask("10.0.0.101:80", true);

        // Now it happens.
        let mut burst = Burst::default();
        let frames = ["10.0.0.100:80", "10.0.0.101:80"]
            .map(|vip| SimFrame::new(&packet(&tuple(TCP, CLIENT, vip), station, true)));
        burst.refill(PortId(0), |room| room.extend(frames));
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1 };
        process(&mut burst, &tables, &Counters::new(2), &mut State::new(settings));
        let found = tables.pools[0].find(&flow, hash).unwrap();
        assert_eq!(first.behind, Some(tables.pools[0].station(found.place)));
        let again = ask("10.0.0.101:80", false);
        assert_eq!(again.behind, first.behind);
        let in_transition = tables.services[0].transitions.is_some();
        assert!(in_transition && ask("10.0.0.100:80", false).moved == later.moved);
        assert_eq!(!tables.tracker.is_empty(), later.moved != Moved::No);
    }

    #[test]
    fn packets_are_good() {
        let tables = Arc::new(tables([spec("web", "10.0.0.100", &["10.0.0.11"])]));
        let mut explainer = Explainer::new(&tables);
        for (protocol, src, dst) in [
            (TCP, "198.51.100.7:40000", "10.0.0.1:80"),
            (TCP, "[2001:db8::7]:40000", "[fd00::1]:80"),
            (UDP, "198.51.100.7:40000", "10.0.0.1:53"),
            (UDP, "[2001:db8::7]:40000", "[fd00::1]:53"),
            (SCTP, "198.51.100.7:40000", "10.0.0.1:53"),
            (47, "198.51.100.7:0", "10.0.0.1:0"),
        ] {
            let tuple = tuple(protocol, src, dst);
            let packet = packet(&tuple, tables.ports[0].mac, true);
            let trace = explainer.explain(PortId(0), &packet, Tick(0)).unwrap();
            assert_eq!(trace.fate, Fate::Exit(Exit::Punt), "{tuple:?}");
            assert_eq!(trace.meta.tuple, tuple);
            let parsed = etherparse::PacketHeaders::from_ethernet_slice(&packet).unwrap();
            let ip = parsed.net.unwrap();
            let payload = parsed.payload.slice();
            let sums = parsed.transport.map(|it| match (it, &ip) {
                (etherparse::TransportHeader::Tcp(it), etherparse::NetHeaders::Ipv4(ip, _)) => {
                    (it.checksum, it.calc_checksum_ipv4(ip, payload).unwrap())
                }
                (etherparse::TransportHeader::Tcp(it), etherparse::NetHeaders::Ipv6(ip, _)) => {
                    (it.checksum, it.calc_checksum_ipv6(ip, payload).unwrap())
                }
                (etherparse::TransportHeader::Udp(it), etherparse::NetHeaders::Ipv4(ip, _)) => {
                    (it.checksum, it.calc_checksum_ipv4(ip, payload).unwrap())
                }
                (etherparse::TransportHeader::Udp(it), etherparse::NetHeaders::Ipv6(ip, _)) => {
                    (it.checksum, it.calc_checksum_ipv6(ip, payload).unwrap())
                }
                other => panic!("{other:?}"),
            });
            assert!(sums.is_none_or(|(given, due)| given == due), "{tuple:?}");
        }
    }
}
