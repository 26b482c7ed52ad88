//! The connections of `fullnat`: who is known, and how far it is.

use std::net::IpAddr;

use lb_core::drop_reason::DropReason::{NoBackend, NoConnection};
use lb_core::model::{Forward, FullNat, Service};
use lb_core::pool::FIRST_PORT;

use super::headers::Flow;
use super::{Model, Packet, Part, To, Verdict};

/// What a packet says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Begins,
    GoesOn,
    /// Its sender is done.
    Done,
    Over,
}

impl Says {
    fn of(protocol: u8, part: Part, segment: &[u8]) -> Self {
        if part != Part::Segment {
            return Self::GoesOn;
        }
        match protocol {
            // RFC 9293 §3.1: of the flags, the strongest.
            6 => {
                let has = |flag: u8| segment.get(13).is_some_and(|flags| flags & flag != 0);
                let [fin, syn, rst, ack] = [1, 2, 4, 16].map(has);
                match (rst, fin, syn && !ack) {
                    (true, _, _) => Self::Over,
                    (_, true, _) => Self::Done,
                    (_, _, true) => Self::Begins,
                    _ => Self::GoesOn,
                }
            }
            // RFC 9260 §3.2, of the first chunk: INIT, SHUTDOWN ACK, and what nobody answers: ABORT
            // and SHUTDOWN COMPLETE.
            132 => match segment.get(12) {
                Some(1) => Self::Begins,
                Some(8) => Self::Done,
                Some(6 | 14) => Self::Over,
                _ => Self::GoesOn,
            },
            _ => Self::GoesOn,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Only the client has spoken.
    Opening,
    /// The backend, too.
    Answered,
    /// The client has answered that.
    Established,
    Closed,
}

/// A connection of a client.
#[derive(Clone, Debug)]
pub(super) struct Connection<'w> {
    pub(super) service: &'w Service,
    /// From the client to the service.
    pub(super) flow: Flow,
    pub(super) backend: (IpAddr, u16),
    /// Where it stands in the pool: the balancer chooses.
    pub(super) stand: (IpAddr, u16),
    progress: Progress,
    client_is_done: bool,
    backend_is_done: bool,
    /// The backend has acknowledged the PROXY header.
    pub(super) has_header: bool,
    /// TCP: the sequence number of the client's SYN.
    pub(super) isn: u32,
    /// The one that has its place now, of the same client and port.
    pub(super) next: Option<usize>,
}

impl Connection<'_> {
    /// What the client says, or the backend: RFC 9293 §3.6, RFC 9260 §9.
    fn heard(&mut self, says: Says, is_client: bool) {
        match (self.progress, is_client) {
            (Progress::Opening, false) => self.progress = Progress::Answered,
            (Progress::Answered, true) if says != Says::Begins => {
                self.progress = Progress::Established;
            }
            _ => {}
        }
        if says == Says::Done {
            *(if is_client { &mut self.client_is_done } else { &mut self.backend_is_done }) = true;
        }
        if says == Says::Over || (self.client_is_done && self.backend_is_done) {
            self.progress = Progress::Closed;
        }
    }
}

impl<'w> Model<'w> {
    /// The connection that a backend's flow answers.
    pub(super) fn by_stand(&self, flow: &Flow) -> Option<usize> {
        let is_it = |connection: &Connection| {
            connection.next.is_none()
                && connection.stand == (flow.dst, flow.ports[1])
                && connection.backend == (flow.src, flow.ports[0])
                && connection.flow.protocol == flow.protocol
        };
        self.connections.iter().position(is_it)
    }

    /// Finds the connection of a client's packet, or opens one; notes how far it is.
    pub(super) fn follow(&mut self, packet: &mut Packet<'w>) -> Result<(), Verdict> {
        let Forward::FullNat(full_nat) = packet.service.spec().forward else { return Ok(()) };
        let is_tcp = packet.flow.protocol == 6 && packet.part == Part::Segment;
        let header = packet.ip.segment.get(..20).filter(|_| is_tcp);
        let says = Says::of(packet.flow.protocol, packet.part, packet.ip.segment);
        let To::Backend(choice) = &packet.to else {
            if let To::ClientOf(number) = &mut packet.to {
                // A packet of the client may have opened it anew since.
                while let Some(next) = self.connections[*number].next {
                    *number = next;
                }
                if packet.part != Part::Error {
                    self.connections[*number].heard(says, false);
                }
            }
            return Ok(());
        };
        let is_it = |it: &Connection| it.next.is_none() && it.flow == packet.flow;
        let known = self.connections.iter().position(is_it);
        let may_reopen = |number: usize| {
            matches!(self.connections[number].progress, Progress::Opening | Progress::Closed)
        };
        let number = match known {
            Some(number) if !(says == Says::Begins && may_reopen(number)) => {
                if packet.part != Part::Error {
                    self.connections[number].heard(says, true);
                }
                number
            }
            _ if says == Says::Over || packet.part == Part::Error => {
                return Err(NoConnection.into());
            }
            known => {
                let port = choice.backend.port.unwrap_or(packet.flow.ports[1]);
                let isn = header.map_or(0, |header| {
                    u32::from_be_bytes([header[4], header[5], header[6], header[7]])
                });
                let connection = Connection {
                    service: packet.service,
                    flow: packet.flow,
                    backend: (choice.backend.address, port),
                    stand: self.stand(&packet.flow, &full_nat),
                    progress: Progress::Opening,
                    client_is_done: false,
                    backend_is_done: false,
                    has_header: false,
                    isn,
                    next: None,
                };
                let number = self.connections.len();
                if let Some(known) = known {
                    assert_eq!(connection.stand, self.connections[known].stand);
                    self.connections[known].next = Some(number);
                }
                let is_free = |it: &Connection| it.next.is_some() || it.stand != connection.stand;
                assert!(self.connections.iter().all(is_free), "two have one port: {connection:?}");
                self.connections.push(connection);
                number
            }
        };
        let To::Backend(choice) = std::mem::replace(&mut packet.to, To::ClientOf(number)) else {
            return Err(NoBackend.into());
        };
        packet.to = To::BackendOf(choice, number);
        Ok(())
    }

    /// The backend says that it has the PROXY header; but whoever came before it is still told of the
    /// connection that there was then.
    pub(super) fn acknowledged(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.has_header |= connection.next.is_none();
    }

    /// The address and port that the balancer has chosen for a flow.
    fn stand(&self, flow: &Flow, full_nat: &FullNat) -> (IpAddr, u16) {
        let tables = &self.world.tables;
        let pool = tables.pools.iter().find(|pool| pool.net() == full_nat.pool).unwrap();
        let hash = tables.hasher.hash(&flow.tuple(), true);
        let found = pool.find(&flow.tuple(), hash);
        let found = found.unwrap_or_else(|| panic!("nobody opened a connection for {flow:?}"));
        let station = pool.station(found.place);
        let address = std::net::Ipv6Addr::from(station.address);
        let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
        let port = u16::from_be_bytes(station.port.unwrap());
        assert!(full_nat.pool.contains(&address) && port >= FIRST_PORT, "{address} {port}");
        (address, port)
    }
}
