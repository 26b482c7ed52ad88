//! What balancers say to each other. Services are named by what clients address, and backends by
//! their addresses: ids and places are each balancer's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lb_core::continuity::tracker::{Phase, Report, Seen};
use lb_core::continuity::{Flow, roster};
use lb_core::rate::Tick;
use lb_core::tables::{ServiceId, Tables};
use serde::{Deserialize, Serialize};

use crate::record::{FlowsOf, ServiceRecord};

/// What is asked of a peer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// What services are like.
    State,
    /// All flows now, and what is new from now on.
    Flows {
        /// Also what the peer was told itself.
        all: bool,
    },
}

/// What a peer tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Service {
        /// Its clock.
        now: u64,
        record: ServiceRecord,
    },
    /// Those were all services.
    StateEnd,
    Flows(Flows),
    /// Those were all flows that there were when they were asked for.
    FlowsEnd,
    /// There is nothing to say.
    Alive,
}

/// Some flows of a service.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flows {
    service: FlowsOf,
    backends: Vec<roster::Name>,
    /// One after the other: backend (its place in `backends`) and silence in units, 16 bits each; phase,
    /// 8 bits; and the words of the key, 64 bits each; little-endian.
    entries: Vec<u8>,
}

/// Flows of a message, at most.
const FLOWS_MAX: usize = 2000;
/// Bytes of an entry before the key.
const HEAD_BYTES: usize = 5;
const WORD_BYTES: usize = 8;

const PHASES: [Phase; 4] = [Phase::Free, Phase::Opening, Phase::Established, Phase::Told];

/// As far as peers make a difference.
fn phase_number(phase: Phase) -> u8 {
    match phase {
        Phase::Free | Phase::Busy => 0,
        Phase::Opening => 1,
        Phase::Told => 3,
        Phase::Seen | Phase::Established | Phase::Closing => 2,
    }
}

/// Puts reports into messages.
#[derive(Debug)]
pub(super) struct Packing {
    tables: Arc<Tables>,
    services: HashMap<ServiceId, usize>,
    open: BTreeMap<ServiceId, Open>,
    full: Vec<Flows>,
}

#[derive(Debug)]
struct Open {
    flows: Flows,
    count: usize,
    /// By place here.
    backends: BTreeMap<u16, u16>,
}

impl Packing {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        let services = tables.services.iter().zip(0..).map(|(service, place)| (service.id, place));
        let services = services.collect();
        Self { tables, services, open: BTreeMap::new(), full: Vec::new() }
    }

    /// Are these the tables whose names it has?
    pub(super) fn is_of(&self, tables: &Arc<Tables>) -> bool {
        Arc::ptr_eq(&self.tables, tables)
    }

    /// Adds a flow, if there is a name for its service and its backend.
    pub(super) fn add(&mut self, report: &Report) {
        let Some(&place) = self.services.get(&report.seen.service) else { return };
        let Some(service) = self.tables.services.get(place) else { return };
        let spec = service.source.spec();
        let open = self.open.entry(service.id).or_insert_with(|| Open {
            flows: Flows {
                service: FlowsOf::new(&spec.vip, spec.affinity),
                backends: Vec::new(),
                entries: Vec::new(),
            },
            count: 0,
            backends: BTreeMap::new(),
        });
        let backend = if let Some(backend) = open.backends.get(&report.seen.backend) {
            *backend
        } else {
            let Some(member) = service.roster.get(report.seen.backend) else { return };
            let Ok(backend) = u16::try_from(open.flows.backends.len()) else { return };
            open.flows.backends.push(roster::name(spec, &member.backend));
            open.backends.insert(report.seen.backend, backend);
            backend
        };
        let entries = &mut open.flows.entries;
        entries.extend(backend.to_le_bytes());
        entries.extend(report.seen.age.to_le_bytes());
        entries.push(phase_number(report.seen.phase));
        for word in &report.key[..service.key_shape.words()] {
            entries.extend(word.to_le_bytes());
        }
        open.count += 1;
        if open.count == FLOWS_MAX
            && let Some(open) = self.open.remove(&service.id)
        {
            self.full.push(open.flows);
        }
    }

    /// The messages so far, and how many flows are in them.
    pub(super) fn finish(&mut self) -> Vec<Flows> {
        let open = std::mem::take(&mut self.open);
        self.full.extend(open.into_values().map(|open| open.flows));
        std::mem::take(&mut self.full)
    }
}

/// Finds services and backends by their names, in one version of the tables.
#[derive(Debug)]
pub(super) struct Names {
    tables: Arc<Tables>,
    services: HashMap<FlowsOf, usize>,
    /// Of services that were asked for.
    places: HashMap<usize, HashMap<roster::Name, u16>>,
}

/// What became of flows that a peer has told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) flows: u64,
    /// There was no room.
    pub(super) refused: u64,
    /// Of a service or a backend that is not known here.
    pub(super) unknown: u64,
}

impl Names {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        let services = tables.services.iter().zip(0..).map(|(service, place)| {
            let spec = service.source.spec();
            (FlowsOf::new(&spec.vip, spec.affinity), place)
        });
        let services = services.collect();
        Self { tables, services, places: HashMap::new() }
    }

    /// Tells the tracker of flows. `None`: they make no sense.
    pub(super) fn hear(&mut self, flows: &Flows, now: Tick) -> Option<Heard> {
        let mut heard = Heard::default();
        let place = self.services.get(&flows.service).copied();
        let Some((place, service)) = place.and_then(|at| Some((at, self.tables.services.get(at)?)))
        else {
            heard.unknown += 1;
            return Some(heard);
        };
        let places = self
            .places
            .entry(place)
            .or_insert_with(|| service.roster.names(service.source.spec()).collect());
        let backends: Vec<Option<u16>> =
            flows.backends.iter().map(|name| places.get(name).copied()).collect();
        let words = service.key_shape.words();
        let entries = flows.entries.chunks_exact(HEAD_BYTES + words * WORD_BYTES);
        if !entries.remainder().is_empty() {
            return None;
        }
        for entry in entries {
            let (&[b0, b1, a0, a1, phase], key_bytes) = entry.split_first_chunk()?;
            let phase = *PHASES.get(usize::from(phase))?;
            let Some(backend) = *backends.get(usize::from(u16::from_le_bytes([b0, b1])))? else {
                heard.unknown += 1;
                continue;
            };
            let mut key = [0; 5];
            for (word, bytes) in key.iter_mut().zip(key_bytes.as_chunks::<WORD_BYTES>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            let flow = Flow::with_key(key, service, &self.tables.hasher);
            let age = u16::from_le_bytes([a0, a1]);
            let seen = Seen { service: service.id, backend, age, phase };
            heard.flows += 1;
            heard.refused += u64::from(!self.tables.tracker.tell(&flow, seen, service, now));
        }
        Some(heard)
    }
}
