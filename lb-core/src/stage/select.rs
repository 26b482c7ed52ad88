//! Slot → backend; and of flows whose slot is changing, the backend that they are on.

use crate::burst::{Burst, Meta, Rule};
use crate::continuity::tracker::{Phase, Sign};
use crate::continuity::transition::Moved;
use crate::continuity::{Flow, NOBODY, Tracker};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::prefetch::prefetch;
use crate::rate::Tick;
use crate::tables::{ServiceTable, Tables};
use crate::wire::{SCTP, TCP, sctp, tcp};

/// Chooses the backend of each frame, by the rules of [`crate::continuity`]. Reads `meta.service`,
/// `meta.hash`, `meta.slot`; writes `meta.backend`.
///
/// Answers of backends go past.
///
/// Drops: the service's [`without_slots`](ServiceTable::without_slots).
#[inline(always)]
pub fn select<F: Frame>(burst: &mut Burst<F>, tables: &Tables, counters: &Counters, now: Tick) {
    if tables.in_transition || !tables.tracker.is_empty() {
        return select_in_change(burst, tables, counters, now);
    }
    burst.for_each_live(|_, meta| {
        if meta.rule.is_return() {
            return Ok(());
        }
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        meta.backend = by_slot(meta, service)?;
        ask_for(meta, service);
        Ok(())
    });
}

/// The backend that the slot has.
#[inline(always)]
fn by_slot(meta: &Meta, service: &ServiceTable) -> Result<u16, DropReason> {
    match service.slots.slots().get(meta.slot as usize) {
        Some(backend) => Ok(*backend),
        // Connections of a pool have theirs.
        None if service.pooled.is_some() => Ok(NOBODY),
        None => Err(service.without_slots),
    }
}

/// Asks for the memory of the backend.
#[inline(always)]
fn ask_for(meta: &Meta, service: &ServiceTable) {
    if let Some(backend) = service.backends.get(usize::from(meta.backend)) {
        prefetch(backend);
    }
}

/// As long as a slot of any service is in transition, or a flow is tracked.
#[inline(never)]
fn select_in_change<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    counters: &Counters,
    now: Tick,
) {
    let tracker = &*tables.tracker;
    burst.for_each_live(|_, meta| {
        if let Some(service) = tables.services.get(meta.service as usize)
            && may_track(service, tracker)
        {
            tracker.prefetch(service.key_shape, meta.hash);
        }
        Ok(())
    });
    burst.for_each_live(|frame, meta| {
        if meta.rule.is_return() {
            return Ok(());
        }
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        meta.backend = if may_track(service, tracker) {
            by_flow(frame.bytes(), meta, service, (tracker, counters), now)?
        } else {
            by_slot(meta, service)?
        };
        ask_for(meta, service);
        Ok(())
    });
}

/// May a flow of the service be tracked, or become so?
#[inline]
fn may_track(service: &ServiceTable, tracker: &Tracker) -> bool {
    service.transitions.is_some() || tracker.tracks(service.id)
}

fn by_flow(
    frame: &[u8],
    meta: &Meta,
    service: &ServiceTable,
    (tracker, counters): (&Tracker, &Counters),
    now: Tick,
) -> Result<u16, DropReason> {
    let flow = Flow::new(meta, service);
    let sign = if service.has_openings { sign(frame, meta) } else { Sign::GoesOn };
    let opens = sign == Sign::Opens;
    // An error is about a flow, not a sign that it goes on.
    let is_flows_own = meta.rule != Rule::IcmpError;
    let current = by_slot(meta, service);
    let moved = service.transitions.as_ref().map_or(Moved::No, |it| it.of(meta.hash));
    let mut is_let_down = false;
    if let Some(found) = tracker.find(&flow) {
        let backend = found.backend();
        // A client's port may be used again as soon as a connection is closed.
        let is_another = opens && found.phase() == Phase::Closing;
        if service.may_serve(backend) && found.age(now) <= service.idle_max && !is_another {
            if moved == Moved::No && current == Ok(backend) {
                tracker.forget(&flow, &found); // its slot says the same
            } else if is_flows_own {
                tracker.refresh(&flow, &found, sign, now);
            }
            return Ok(backend);
        }
        tracker.forget(&flow, &found);
        is_let_down = !service.may_serve(backend);
    }
    let from = match moved {
        // Who knew of its backend is to hear of the new one.
        Moved::No if is_let_down => None,
        Moved::No => return current,
        Moved::From(from) if service.may_serve(from) && !opens => Some(from),
        Moved::From(_) | Moved::FromNobody => None,
    };
    let backend = from.map_or(current, Ok)?;
    if is_flows_own {
        let has_room = tracker.track(&flow, backend, sign, now);
        (if has_room { &counters.tracked } else { &counters.untracked }).add(1);
    }
    Ok(backend)
}

/// What a packet says about its flow, by its own word.
fn sign(frame: &[u8], meta: &Meta) -> Sign {
    let segment = frame.get(meta.l4_offset.into()..).filter(|_| meta.rule.has_segment());
    let byte = |place: usize| segment.and_then(|segment| segment.get(place)).copied();
    match meta.tuple.protocol {
        TCP => match byte(tcp::FLAGS) {
            Some(flags) if flags & (tcp::FIN | tcp::RST) != 0 => Sign::Ends,
            Some(flags) if flags & (tcp::SYN | tcp::ACK) == tcp::SYN => Sign::Opens,
            _ => Sign::GoesOn,
        },
        SCTP => match byte(sctp::CHUNK_TYPE) {
            Some(sctp::INIT) => Sign::Opens,
            Some(sctp::ABORT | sctp::SHUTDOWN_ACK | sctp::SHUTDOWN_COMPLETE) => Sign::Ends,
            _ => Sign::GoesOn,
        },
        _ => Sign::GoesOn,
    }
}

#[cfg(test)]
mod tests;
