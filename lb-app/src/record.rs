//! What is remembered of a service, as it is written: to a file, or to a peer.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_core::continuity::{Member, NOBODY, Remembered, Standing, remembered};
use lb_core::model::{Affinity, Backend, PortRange, Protocol, SLOTS_MAX, StaticHop, Vip};
use lb_core::rate::Tick;
use lb_core::tables::ServiceId;
use lb_core::wire::ethernet::MacAddr;
use rapidhash::RapidHashMap;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    name: String,
    id: u32,
    key: FlowsOf,
    slots: u32,
    seats: Vec<Option<Seat>>,
    transitions: Option<Transitions>,
}

/// Whose flows they are: packets mean the same flows to services that are alike in this.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct FlowsOf {
    address: IpAddr,
    prefix: u8,
    ports: (u16, u16),
    /// By its place in [`PROTOCOLS`].
    protocol: u8,
    keeps_clients: bool,
}

/// Slots that have moved. Few of them have, as a rule, and together.
#[derive(Debug, Serialize, Deserialize)]
struct Transitions {
    slots: u32,
    /// When transitions end: each time once.
    ends: Vec<u64>,
    moved: Vec<Moved>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Moved {
    /// Slots that have not moved since the one before.
    skipped: u32,
    from: u16,
    /// Place in `ends`.
    end: u32,
}

#[derive(Debug, Serialize, Deserialize)]
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
    since: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
enum StandingRecord {
    Wanted,
    Leaving(u64),
    Gone(u64),
}

const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Any];
impl FlowsOf {
    pub(crate) fn new(vip: &Vip, affinity: Affinity) -> Self {
        let protocol = PROTOCOLS.iter().position(|protocol| *protocol == vip.protocol);
        Self {
            address: vip.address.addr(),
            prefix: vip.address.prefix_len(),
            ports: (vip.ports.first(), vip.ports.last()),
            protocol: protocol.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX),
            keeps_clients: affinity == Affinity::Client,
        }
    }

    fn parts(&self) -> Option<(Vip, Affinity)> {
        let (first, last) = self.ports;
        let vip = Vip {
            address: IpNet::new(self.address, self.prefix).ok()?,
            ports: PortRange::new(first, last)?,
            protocol: *PROTOCOLS.get(usize::from(self.protocol))?,
        };
        Some((vip, if self.keeps_clients { Affinity::Client } else { Affinity::Flow }))
    }
}

impl Transitions {
    fn new(from: &[u16], until: &[Tick]) -> Option<Self> {
        let mut ends = Vec::new();
        let mut places = RapidHashMap::default(); // few: one for each change
        let mut moved = Vec::with_capacity(from.len());
        let mut skipped = 0;
        for (&from, until) in from.iter().zip(until) {
            if from == NOBODY {
                skipped += 1;
                continue;
            }
            let end = *places.entry(until.0).or_insert_with(|| {
                ends.push(until.0);
                ends.len() - 1
            });
            let end = u32::try_from(end).ok()?;
            moved.push(Moved { skipped, from, end });
            skipped = 0;
        }
        Some(Self { slots: u32::try_from(from.len()).ok()?, ends, moved })
    }

    fn by_slot(self) -> Option<(Vec<u16>, Vec<Tick>)> {
        if self.slots > SLOTS_MAX {
            return None;
        }
        let mut from = vec![NOBODY; self.slots as usize];
        let mut until = vec![Tick(0); self.slots as usize];
        let mut slot = 0_usize;
        for moved in self.moved {
            slot = slot.checked_add(moved.skipped as usize)?;
            *from.get_mut(slot)? = moved.from;
            *until.get_mut(slot)? = Tick(*self.ends.get(moved.end as usize)?);
            slot += 1;
        }
        Some((from, until))
    }
}

impl From<&Remembered> for ServiceRecord {
    fn from(service: &Remembered) -> Self {
        let seat = |remembered::Seat { member, weight, since }: &remembered::Seat| Seat {
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
            effective: *weight,
            since: since.map(|since| since.0),
        };
        let transitions = service.transitions.as_ref();
        Self {
            name: service.name.clone(),
            id: service.id.0,
            key: FlowsOf::new(&service.vip, service.affinity),
            slots: service.slots,
            seats: service.seats.iter().map(|it| it.as_ref().map(seat)).collect(),
            transitions: transitions.and_then(|(from, until)| Transitions::new(from, until)),
        }
    }
}

impl ServiceRecord {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// For how many slots memory is taken when it is read: of its table, and of its transitions.
    pub(crate) fn slots(&self) -> u64 {
        let moved = self.transitions.as_ref().map_or(0, |transitions| transitions.slots);
        u64::from(self.slots.max(moved))
    }

    /// `None`, if that cannot be.
    pub(crate) fn remembered(self) -> Option<Remembered> {
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
            remembered::Seat {
                member: Member { backend, standing },
                weight: seat.effective,
                since: seat.since.map(Tick),
            }
        };
        let (vip, affinity) = self.key.parts()?;
        let transitions = match self.transitions {
            None => None,
            Some(transitions) => Some(transitions.by_slot()?),
        };
        Some(Remembered {
            name: self.name,
            id: ServiceId(self.id),
            vip,
            affinity,
            slots: self.slots,
            seats: self.seats.into_iter().map(|it| it.map(seat)).collect(),
            transitions,
        })
    }
}
