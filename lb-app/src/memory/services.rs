//! The file `services`: one `postcard` message, and its checksum.

use std::io;
use std::net::IpAddr;

use lb_core::continuity::{Member, Remembered, Standing};
use lb_core::model::{Affinity, Backend, PortRange, Protocol, StaticHop, Vip};
use lb_core::rate::Tick;
use lb_core::tables::ServiceId;
use lb_core::wire::ethernet::MacAddr;
use serde::{Deserialize, Serialize};

use super::{Identity, LAYOUT, Refused};

#[derive(Serialize, Deserialize)]
struct ServiceRecord {
    name: String,
    id: u32,
    /// With its prefix length.
    address: String,
    ports: (u16, u16),
    /// By its place in [`PROTOCOLS`].
    protocol: u8,
    keeps_clients: bool,
    slots: u32,
    seats: Vec<Option<Seat>>,
    from: Vec<u16>,
    until: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Seat {
    address: IpAddr,
    port: Option<u16>,
    weight: u32,
    drain: bool,
    mac: Option<[u8; 6]>,
    interface: Option<String>,
    standing: StandingRecord,
    /// The weight that counted.
    effective: u32,
}

#[derive(Serialize, Deserialize)]
enum StandingRecord {
    Wanted,
    Leaving(u64),
    Gone(u64),
}

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Any];
const CHECKSUM_BYTES: usize = 4;

pub(super) fn encode(identity: &Identity, services: &[Remembered]) -> io::Result<Vec<u8>> {
    let records: Vec<ServiceRecord> = services.iter().map(ServiceRecord::from).collect();
    let mut bytes = postcard::to_stdvec(&(LAYOUT, identity, records)).map_err(io::Error::other)?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Identity, Vec<Remembered>), Refused> {
    let (message, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Refused::Damaged)?;
    if crc32fast::hash(message) != u32::from_le_bytes(*checksum) {
        return Err(Refused::Damaged);
    }
    let damaged = |_| Refused::Damaged;
    let (layout, rest) = postcard::take_from_bytes::<u64>(message).map_err(damaged)?;
    if layout != LAYOUT {
        return Err(Refused::Version);
    }
    let (identity, records) =
        postcard::from_bytes::<(Identity, Vec<ServiceRecord>)>(rest).map_err(damaged)?;
    let services: Option<Vec<Remembered>> =
        records.into_iter().map(ServiceRecord::remembered).collect();
    Ok((identity, services.ok_or(Refused::Damaged)?))
}

impl From<&Remembered> for ServiceRecord {
    fn from(service: &Remembered) -> Self {
        let seat = |(member, effective): &(Member, u32)| Seat {
            address: member.backend.address,
            port: member.backend.port,
            weight: member.backend.weight,
            drain: member.backend.drain,
            mac: member.backend.static_hop.as_ref().map(|hop| hop.mac.0),
            interface: member.backend.static_hop.as_ref().and_then(|hop| hop.interface.clone()),
            standing: match member.standing {
                Standing::Wanted => StandingRecord::Wanted,
                Standing::Leaving(until) => StandingRecord::Leaving(until.0),
                Standing::Gone(until) => StandingRecord::Gone(until.0),
            },
            effective: *effective,
        };
        let protocol = PROTOCOLS.iter().position(|protocol| *protocol == service.vip.protocol);
        let (from, until) = service.transitions.clone().unwrap_or_default();
        Self {
            name: service.name.clone(),
            id: service.id.0,
            address: service.vip.address.to_string(),
            ports: (service.vip.ports.first(), service.vip.ports.last()),
            protocol: protocol.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX),
            keeps_clients: service.affinity == Affinity::Client,
            slots: service.slots,
            seats: service.seats.iter().map(|it| it.as_ref().map(seat)).collect(),
            from,
            until: until.into_iter().map(|until| until.0).collect(),
        }
    }
}

impl ServiceRecord {
    fn remembered(self) -> Option<Remembered> {
        let seat = |seat: Seat| {
            let static_hop =
                seat.mac.map(|mac| StaticHop { mac: MacAddr(mac), interface: seat.interface });
            let backend = Backend {
                address: seat.address,
                port: seat.port,
                weight: seat.weight,
                drain: seat.drain,
                static_hop,
            };
            let standing = match seat.standing {
                StandingRecord::Wanted => Standing::Wanted,
                StandingRecord::Leaving(until) => Standing::Leaving(Tick(until)),
                StandingRecord::Gone(until) => Standing::Gone(Tick(until)),
            };
            (Member { backend, standing }, seat.effective)
        };
        let (first, last) = self.ports;
        let until: Vec<Tick> = self.until.into_iter().map(Tick).collect();
        Some(Remembered {
            name: self.name,
            id: ServiceId(self.id),
            vip: Vip {
                address: self.address.parse().ok()?,
                ports: PortRange::new(first, last)?,
                protocol: *PROTOCOLS.get(usize::from(self.protocol))?,
            },
            affinity: if self.keeps_clients { Affinity::Client } else { Affinity::Flow },
            slots: self.slots,
            seats: self.seats.into_iter().map(|it| it.map(seat)).collect(),
            transitions: (!self.from.is_empty()).then_some((self.from, until)),
        })
    }
}
