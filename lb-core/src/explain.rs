//! What would become of a packet, and why.
//!
//! It is taken through the pipeline itself, like any other. Only the memories that a packet changes (the
//! flow table, the connections of pools, what gates have counted) are copies of as much of them as
//! has to do with its flow: so there is nothing that could be told differently here, and nothing has
//! happened afterwards.

use std::sync::Arc;

use crate::burst::{Burst, Fate, Meta, WorkerId};
use crate::continuity::Flow;
use crate::continuity::tracker::Tracked;
use crate::continuity::transition::Moved;
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

/// What would become of a frame that comes in by `port`, on any worker. `None`: there is no such port.
#[must_use]
pub fn explain(tables: &Tables, port: PortId, frame: &[u8], now: Tick) -> Option<Trace> {
    let came_by = tables.ports.get(port.index())?;
    let mut burst = Burst::default();
    burst.refill(port, |frames| frames.push(SimFrame::new(frame)));
    parse(&mut burst, came_by);
    classify(&mut burst, tables);
    let known = *burst.meta(0);
    let is_services = matches!(burst.fate(0), Fate::Send(_));
    let service = tables.service(known.service).filter(|_| is_services);
    burst.take(|_, _, _, _| ());

    let trial = trial(tables, &known, service, now);
    burst.refill(port, |frames| frames.push(SimFrame::new(frame)));
    let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: u32::MAX };
    let mut state = State::new(settings);
    state.now = now;
    process(&mut burst, &trial, &Counters::new(0), &mut state);
    let (meta, fate) = (*burst.meta(0), burst.fate(0));
    let mut left = Vec::new();
    burst.take(|_, frame, _, _| left.extend_from_slice(frame.bytes()));
    let service = service.filter(|_| !meta.rule.is_return());
    let transitions = service.and_then(|service| service.transitions.as_ref());
    let is_sent = matches!(fate, Fate::Send(_));
    let pooled = service.and_then(|service| service.pooled.as_ref()).filter(|_| is_sent);
    Some(Trace {
        meta,
        fate,
        tracked: service.and_then(|it| tables.tracker.find(&Flow::new(&known, it))),
        moved: transitions.map_or(Moved::No, |it| it.of(meta.hash)),
        behind: pooled.map(|pooled| pooled.pool.station(meta.slot)),
        frame: left,
    })
}

/// Tables for one packet: all that it could change is a copy.
fn trial(tables: &Tables, meta: &Meta, service: Option<&ServiceTable>, now: Tick) -> Tables {
    let mut trial = tables.clone();
    // Of what is nobody's, nothing is looked up.
    let Some(service) = service else { return trial };
    if service.may_track(&tables.tracker) {
        trial.tracker = Arc::new(tables.tracker.trial(&Flow::new(meta, service), now));
    }
    let Some(own) = trial.services.get_mut(meta.service as usize) else { return trial };
    let own = Arc::make_mut(own);
    own.touched = None;
    own.gate = service.gate.as_ref().map(|gate| Arc::new(gate.trial()));
    if let Some(pooled) = &mut own.pooled {
        let place = meta.rule.is_return().then_some(meta.slot);
        let hash = tables.hasher.hash(&meta.tuple, true);
        let before = Arc::clone(&pooled.pool);
        pooled.pool = Arc::new(before.trial(hash, place));
        let pools = Arc::make_mut(&mut trial.pools).iter_mut();
        for pool in pools.filter(|pool| Arc::ptr_eq(pool, &before)) {
            *pool = Arc::clone(&pooled.pool);
        }
    }
    trial
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
        let ask = |vip: &str, opens| {
            let tuple = tuple(TCP, CLIENT, vip);
            explain(&tables, PortId(0), &packet(&tuple, station, opens), now).unwrap()
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
        let tables = tables([spec("web", "10.0.0.100", &["10.0.0.11"])]);
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
            let trace = explain(&tables, PortId(0), &packet, Tick(0)).unwrap();
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
