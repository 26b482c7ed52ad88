use std::sync::Arc;

use etherparse::{IpNumber, TcpHeader};

use super::*;
use crate::burst::Fate;
use crate::counters::Counters;
use crate::model::tests::{backend, spec};
use crate::model::{Backend, ClientAddress, Forward, FullNat, Protocol, ServiceSpec};
use crate::pool::Phase::{self, Answered, Closed, Established, Opening};
use crate::sign::Sign::GoesOn;
use crate::sim::SimFrame;
use crate::sim::packet::Packet;
use crate::stage::classify::tests::{classified, tables as tables_of};
use crate::stage::select::select;
use crate::tables::SlotTable;
use crate::tuple::Tuple;
use crate::wire::SCTP;
use crate::wire::sctp::{ABORT, INIT, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
use crate::wire::tcp::{ACK, FIN, RST, SYN};

const CLIENT: &str = "198.51.100.7:40000";
const VIP: &str = "10.0.0.100:80";

fn service(backends: &[&str]) -> ServiceSpec {
    let pool = "10.0.0.64/32".parse().unwrap();
    let forward = Forward::FullNat(FullNat { pool, client_address: ClientAddress::Hidden });
    let backends =
        backends.iter().map(|address| Backend { port: Some(8080), ..backend(address) }).collect();
    ServiceSpec { forward, backends, ..spec("web", "10.0.0.100", &[]) }
}

fn tables(backends: &[&str]) -> Tables {
    tables_of([service(backends)])
}

/// `other` with the connections of `tables`, as one version follows another.
fn following(tables: &Tables, mut other: Tables) -> Tables {
    other.pools.clone_from(&tables.pools);
    for service in other.services.iter_mut().map(Arc::make_mut) {
        let pooled = service.pooled.as_mut().unwrap();
        pooled.pool = std::sync::Arc::clone(&tables.pools[0]);
    }
    other
}

/// A segment with those flags, and a sequence number.
fn segment(src: &str, dst: &str, flags: u8, sequence: u32) -> Packet {
    Packet::tcp(src, dst).with(|p| {
        let mut header = TcpHeader::new(p.src.port(), p.dst.port(), sequence, 1024);
        (header.syn, header.rst) = (flags & SYN != 0, flags & RST != 0);
        (header.fin, header.ack) = (flags & FIN != 0, flags & ACK != 0);
        (p.raw_segment, p.payload) = (true, header.to_bytes().to_vec());
    })
}

/// An error from a router to whoever sent `quote`, in which the ports stand already.
fn error(to: &str, quote: &Packet) -> Packet {
    let port_is_none = to.split(':').next().unwrap();
    Packet::tcp("192.0.2.9:0", &format!("{port_is_none}:0")).with(|p| {
        (p.protocol, p.raw_segment) = (IpNumber::ICMP, true);
        p.payload = [&[3, 1, 0, 0, 0, 0, 0, 0], &quote.ip()[..]].concat();
    })
}

/// What the stage found out about a packet, or why it goes no further.
fn connected(tables: &Tables, packet: Packet, now: Tick) -> Result<Meta, Exit> {
    let mut burst: Burst<SimFrame> = classified(tables, [packet]);
    select(&mut burst, tables, &Counters::new(4), now);
    connect(&mut burst, tables, now);
    match burst.fate(0) {
        Fate::Send(_) => Ok(*burst.meta(0)),
        Fate::Exit(exit) => Err(exit),
    }
}

fn address(packed: [u8; 16]) -> String {
    std::net::Ipv6Addr::from(packed).to_ipv4_mapped().unwrap().to_string()
}

/// One packet of a story.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client sends a segment.
    Client(u8),
    /// The backend that the connection is on answers.
    Backend(u8),
    /// A router tells the backend of a packet to the client.
    ErrorToBackend,
    /// A router tells the client, by the pool's address, of one to the backend.
    ErrorToClient,
}
use Step::{Client, ErrorToBackend, ErrorToClient};

/// The end of the pool that `found` leaves by, and of its backend.
fn ends(pool: &crate::pool::Pool, found: &Found) -> (String, String) {
    let port = |port: [u8; 2]| u16::from_be_bytes(port);
    let station = pool.station(found.place);
    let ours = format!("{}:{}", address(station.address), port(station.port.unwrap()));
    let Connection { backend, backend_port, .. } = *found.connection();
    (ours, format!("{}:{}", address(backend), port(backend_port)))
}

/// The connection of [`CLIENT`].
fn known(tables: &Tables) -> Option<Found> {
    let [client, vip] = [CLIENT, VIP].map(|it| it.parse::<std::net::SocketAddr>().unwrap());
    let flow = Tuple::new(client.ip(), vip.ip(), client.port(), vip.port(), TCP);
    tables.pools[0].find(&flow, tables.hasher.hash(&flow, true))
}

fn take(tables: &Tables, step: Step) -> Result<Meta, Exit> {
    let ends = known(tables).map(|found| ends(&tables.pools[0], &found));
    let packet = match (step, ends) {
        (Client(flags), _) => segment(CLIENT, VIP, flags, 7),
        (ErrorToBackend, _) => error(VIP, &segment(VIP, CLIENT, ACK, 7)),
        (Step::Backend(flags), Some((ours, backend))) => segment(&backend, &ours, flags, 7),
        (ErrorToClient, Some((ours, backend))) => error(&ours, &segment(&ours, &backend, ACK, 7)),
        (_, None) => panic!("there is no connection"),
    };
    connected(tables, packet, Tick(0))
}

/// What a packet leads to: how far the connection is then, or why it goes no further.
type Story = (&'static str, &'static [(Step, Result<Phase, DropReason>)]);

const STORIES: [Story; 9] = [
    (
        "from the first packet to the last",
        &[
            (Client(SYN), Ok(Opening)),
            (Step::Backend(SYN | ACK), Ok(Answered)),
            (Client(ACK), Ok(Established)),
            (Step::Backend(ACK), Ok(Established)),
            (Client(FIN | ACK), Ok(Established)),
            (Step::Backend(FIN | ACK), Ok(Closed)),
            (Client(ACK), Ok(Closed)),
        ],
    ),
    ("refused", &[(Client(SYN), Ok(Opening)), (Step::Backend(RST | ACK), Ok(Closed))]),
    (
        "given up",
        &[
            (Client(SYN), Ok(Opening)),
            (Step::Backend(SYN | ACK), Ok(Answered)),
            (Client(RST), Ok(Closed)),
        ],
    ),
    (
        "again",
        &[
            (Client(SYN), Ok(Opening)),
            (Step::Backend(RST), Ok(Closed)),
            (Client(SYN), Ok(Opening)),
            (Step::Backend(SYN | ACK), Ok(Answered)),
        ],
    ),
    // The backend decides what a SYN within a connection means (RFC 5961 §4).
    (
        "a SYN within it",
        &[
            (Client(SYN), Ok(Opening)),
            (Step::Backend(SYN | ACK), Ok(Answered)),
            (Client(SYN), Ok(Answered)),
            (Client(ACK), Ok(Established)),
            (Client(SYN), Ok(Established)),
        ],
    ),
    ("in the middle, after a restart", &[(Client(ACK), Ok(Opening))]),
    ("a reset of nothing", &[(Client(RST), Err(DropReason::NoConnection))]),
    ("an error about nothing", &[(ErrorToBackend, Err(DropReason::NoConnection))]),
    // They are not the other end's word: anybody could send one.
    (
        "errors",
        &[
            (Client(SYN), Ok(Opening)),
            (ErrorToClient, Ok(Opening)),
            (Step::Backend(SYN | ACK), Ok(Answered)),
            (ErrorToBackend, Ok(Answered)),
            (ErrorToClient, Ok(Answered)),
        ],
    ),
];

#[test]
fn connections_are_opened_and_followed() {
    for (name, steps) in STORIES {
        let tables = tables(&["10.0.0.11", "10.0.0.12"]);
        let mut first = None;
        for (step, expect) in steps {
            let found = take(&tables, *step);
            let known = known(&tables);
            match expect {
                Ok(phase) => {
                    let known = known.unwrap();
                    assert_eq!(known.state.phase(), *phase, "{name}: {step:?}");
                    assert_eq!(found.unwrap().slot, known.place, "{name}: {step:?}");
                    let place = *first.get_or_insert(known.place);
                    assert_eq!(place, known.place, "{name}: it has another port now");
                }
                Err(reason) => {
                    assert_eq!(found.unwrap_err(), Exit::from(*reason), "{name}: {step:?}");
                    assert!(known.is_none(), "{name}: {step:?}");
                }
            }
        }
    }
}

/// A new connection in the place of one that is over has its own sequence numbers.
#[test]
fn a_connection_remembers_how_it_began() {
    let tables = tables(&["10.0.0.11"]);
    for sequence in [7, 9] {
        connected(&tables, segment(CLIENT, VIP, SYN, sequence), Tick(0)).unwrap();
        connected(&tables, segment(CLIENT, VIP, ACK, sequence + 1), Tick(0)).unwrap();
        assert_eq!(known(&tables).unwrap().connection().isn, sequence);
        take(&tables, Step::Backend(RST)).unwrap();
    }
}

/// From whom a packet of SCTP is, its first chunk, and what it leads to.
type Chunk = (bool, u8, Result<Phase, DropReason>);

const INIT_ACK: u8 = 2;
const DATA: u8 = 0;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;

const ASSOCIATIONS: [(&str, &[Chunk]); 8] = [
    (
        "from the first chunk to the last",
        &[
            (true, INIT, Ok(Opening)),
            (false, INIT_ACK, Ok(Answered)),
            (true, COOKIE_ECHO, Ok(Established)),
            (false, DATA, Ok(Established)),
            (true, SHUTDOWN, Ok(Established)),
            (false, SHUTDOWN_ACK, Ok(Established)),
            (true, SHUTDOWN_COMPLETE, Ok(Closed)),
        ],
    ),
    (
        "both shut it down",
        &[
            (true, INIT, Ok(Opening)),
            (false, INIT_ACK, Ok(Answered)),
            (true, COOKIE_ECHO, Ok(Established)),
            (false, SHUTDOWN_ACK, Ok(Established)),
            (true, SHUTDOWN_ACK, Ok(Closed)),
        ],
    ),
    ("refused", &[(true, INIT, Ok(Opening)), (false, ABORT, Ok(Closed))]),
    (
        "again",
        &[
            (true, INIT, Ok(Opening)),
            (false, INIT_ACK, Ok(Answered)),
            (true, ABORT, Ok(Closed)),
            (true, INIT, Ok(Opening)),
            (true, INIT, Ok(Opening)),
        ],
    ),
    // A client that has lost it begins it anew (RFC 9260 §5.2.2).
    (
        "an INIT within it",
        &[
            (true, INIT, Ok(Opening)),
            (false, INIT_ACK, Ok(Answered)),
            (true, INIT, Ok(Answered)),
            (true, COOKIE_ECHO, Ok(Established)),
            (true, INIT, Ok(Established)),
        ],
    ),
    ("in the middle, after a restart", &[(true, DATA, Ok(Opening))]),
    ("an abort of nothing", &[(true, ABORT, Err(DropReason::NoConnection))]),
    // RFC 9260 §8.4: nobody answers it. Who is not sure that it is over is told.
    (
        "ends of nothing",
        &[
            (true, SHUTDOWN_COMPLETE, Err(DropReason::NoConnection)),
            (true, SHUTDOWN_ACK, Ok(Opening)),
        ],
    ),
];

#[test]
fn associations_are_opened_and_followed() {
    for (name, chunks) in ASSOCIATIONS {
        let mut spec = service(&["10.0.0.11", "10.0.0.12"]);
        spec.vip.protocol = Protocol::Sctp;
        let tables = tables_of([spec]);
        let mut place = None;
        for (is_clients, kind, expect) in chunks {
            let step = format!("{name}: {kind} by the client: {is_clients}");
            let known = place.and_then(|place| tables.pools[0].get(place));
            let packet = match known.map(|found| ends(&tables.pools[0], &found)) {
                Some((ours, backend)) if !is_clients => Packet::sctp(&backend, &ours),
                _ => Packet::sctp(CLIENT, VIP),
            };
            let packet = packet.with(|p| p.payload = vec![*kind, 0, 0, 4]);
            match connected(&tables, packet, Tick(0)) {
                Ok(meta) => {
                    assert_eq!(meta.slot, *place.get_or_insert(meta.slot), "{step}");
                    let found = tables.pools[0].get(meta.slot).unwrap();
                    assert_eq!(Ok(found.state.phase()), *expect, "{step}");
                    assert_eq!((found.connection().protocol, found.connection().isn), (SCTP, 0));
                }
                Err(exit) => assert_eq!(exit, Exit::from(expect.unwrap_err()), "{step}"),
            }
        }
    }
}

/// Ends of one protocol are none of another's.
#[test]
fn an_answer_is_of_the_protocol_of_its_connection() {
    let mut spec = service(&["10.0.0.11"]);
    spec.vip.protocol = Protocol::Sctp;
    let tables = tables_of([spec]);
    let init = Packet::sctp(CLIENT, VIP).with(|p| p.payload = vec![INIT, 0, 0, 4]);
    let meta = connected(&tables, init, Tick(0)).unwrap();
    let (ours, backend) = ends(&tables.pools[0], &tables.pools[0].get(meta.slot).unwrap());
    for other in [Packet::tcp(&backend, &ours), Packet::udp(&backend, &ours)] {
        assert_eq!(connected(&tables, other, Tick(0)).unwrap_err(), Exit::Punt);
    }
    let answer = connected(&tables, Packet::sctp(&backend, &ours), Tick(0)).unwrap();
    assert_eq!((answer.rule, answer.slot), (Rule::Return, meta.slot));
}

#[test]
fn datagrams_need_no_syn() {
    let mut spec = service(&["10.0.0.11"]);
    spec.vip.protocol = Protocol::Udp;
    let tables = tables_of([spec]);
    let meta = connected(&tables, Packet::udp(CLIENT, VIP), Tick(0)).unwrap();
    let found = tables.pools[0].get(meta.slot).unwrap();
    assert_eq!(found.state.phase(), Opening);
    let (ours, backend) = ends(&tables.pools[0], &found);
    connected(&tables, Packet::udp(&backend, &ours), Tick(0)).unwrap();
    assert_eq!(tables.pools[0].get(meta.slot).unwrap().state.phase(), Answered);
    // What comes from elsewhere is no answer, whatever its port.
    for stranger in ["10.0.0.12:8080", "10.0.0.11:8081"] {
        let found = connected(&tables, Packet::udp(stranger, &ours), Tick(0));
        assert_eq!(found.unwrap_err(), Exit::Punt, "{stranger}");
    }
}

/// A connection stays on its backend, wherever that stands in the list; and its place in the list is
/// looked for once.
#[test]
fn a_changed_list_moves_no_connection() {
    let before = tables(&["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    take(&before, Client(SYN)).unwrap();
    take(&before, Step::Backend(SYN | ACK)).unwrap();
    let opened = *known(&before).unwrap().connection();
    // The others come before it now.
    let mut list = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
    list.sort_by_key(|other| *other == address(opened.backend));
    let after = following(&before, tables(&list));
    let meta = take(&after, Client(ACK)).unwrap();
    assert_eq!(meta.backend, 2);
    let found = known(&after).unwrap();
    assert_eq!((found.connection().backend, found.connection().place), (opened.backend, 2));
    assert_eq!(found.state.phase(), Established, "the packet counts as well");
    // An answer comes by its place in the pool, whatever the list.
    assert!(take(&after, Step::Backend(ACK)).unwrap().rule.is_return());
}

/// Whoever was on a backend that is gone gets another, at the same port of the pool.
#[test]
fn a_connection_whose_backend_is_gone_is_opened_anew() {
    let before = tables(&["10.0.0.11"]);
    take(&before, Client(SYN)).unwrap();
    take(&before, Step::Backend(SYN | ACK)).unwrap();
    take(&before, Client(ACK)).unwrap();
    let place = known(&before).unwrap().place;
    let after = following(&before, tables(&["10.0.0.12"]));
    // An error about it, or its end, is not worth a new one.
    for step in [ErrorToBackend, Client(RST)] {
        assert_eq!(take(&after, step).unwrap_err(), DropReason::NoConnection.into());
    }
    take(&after, Client(ACK)).unwrap();
    let found = known(&after).unwrap();
    assert_eq!((found.place, found.state.phase()), (place, Opening));
    assert_eq!(address(found.connection().backend), "10.0.0.12");
    // The port is the backend's, too.
    let mut spec = service(&["10.0.0.12"]);
    spec.backends[0].port = Some(8081);
    let later = following(&after, tables_of([spec]));
    take(&later, Client(ACK)).unwrap();
    let port = known(&later).unwrap().connection().backend_port;
    assert_eq!(u16::from_be_bytes(port), 8081);
}

/// Its server does not hear it any more: another one tells the client at once that it is over.
#[test]
fn a_connection_leaves_a_backend_that_has_failed() {
    let list = ["10.0.0.11", "10.0.0.12"];
    let before = tables(&list);
    take(&before, Client(SYN)).unwrap();
    take(&before, Step::Backend(SYN | ACK)).unwrap();
    let opened = known(&before).unwrap();
    let failed = usize::from(opened.connection().place);
    let mut after = following(&before, tables(&list));
    let service = Arc::make_mut(&mut after.services[0]);
    let mut entries = service.backends.to_vec();
    entries[failed] = BackendEntry::without_ways(entries[failed].path, false);
    service.backends = entries.into();
    let mut weights = [1, 1];
    weights[failed] = 0;
    service.slots = SlotTable::new([1, 2].into(), weights.into(), 251);
    take(&after, Client(ACK)).unwrap();
    let found = known(&after).unwrap();
    assert_eq!((found.place, found.state.phase()), (opened.place, Opening));
    assert_eq!(address(found.connection().backend), list[1 - failed]);
}

/// Who talks is not pushed out; when they fall silent, there is room.
#[test]
fn a_full_pool_opens_nothing() {
    let tables = tables(&["10.0.0.11"]);
    let [client, vip] = [CLIENT, VIP].map(|it| it.parse::<std::net::SocketAddr>().unwrap());
    let flow = Tuple::new(client.ip(), vip.ip(), client.port(), vip.port(), TCP);
    let hash = tables.hasher.hash(&flow, true);
    let pool = &tables.pools[0];
    let connection = Connection { protocol: TCP, idle_max: 100, ..Connection::default() };
    for other in 1_u16.. {
        let other = Connection { client_port: other.to_be_bytes(), ..connection };
        let Some(place) = pool.open(&other, hash, Tick(0)) else { break };
        let found = pool.get(place).unwrap();
        pool.update(&found, found.state.backend_sent(GoesOn, 0).client_sent(GoesOn, 0));
    }
    assert_eq!(take(&tables, Client(SYN)).unwrap_err(), DropReason::PoolFull.into());
    let later = Tick(102 << 12);
    connected(&tables, segment(CLIENT, VIP, SYN, 7), later).unwrap();
}

/// Ports tell the connections of a client apart, also where they do not choose the backend.
#[test]
fn flows_of_one_client_have_ports_of_their_own() {
    let spec = ServiceSpec { affinity: Affinity::Client, ..service(&["10.0.0.11", "10.0.0.12"]) };
    let tables = tables_of([spec]);
    let opened: Vec<Meta> = (0..20)
        .map(|n| segment(&format!("198.51.100.7:{}", 40_000 + n), VIP, SYN, 7))
        .map(|packet| connected(&tables, packet, Tick(0)).unwrap())
        .collect();
    let places: std::collections::BTreeSet<u32> = opened.iter().map(|meta| meta.slot).collect();
    assert_eq!(places.len(), 20);
    assert!(opened.iter().all(|meta| meta.backend == opened[0].backend));
}

#[test]
fn services_without_a_pool_are_left_alone() {
    let plain = spec("plain", "10.0.0.101", &["10.0.0.11"]);
    let tables = tables_of([service(&["10.0.0.11"]), plain]);
    let packet = segment(CLIENT, "10.0.0.101:80", RST, 7);
    let meta = connected(&tables, packet, Tick(0)).unwrap();
    assert_eq!((meta.service, meta.backend), (1, 0));
    assert!(tables.pools[0].get(meta.slot).is_none());
}
