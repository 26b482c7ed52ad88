//! Slot → backend; and of flows whose slot is changing, the backend that they are on.

use crate::burst::{Burst, Meta, Rule};
use crate::continuity::tracker::{Glance, Phase, Tracked};
use crate::continuity::transition::Moved;
use crate::continuity::{Flow, NOBODY, Tracker};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::{BURST_MAX, Frame};
use crate::prefetch::prefetch_far;
use crate::rate::Tick;
use crate::sign::Sign;
use crate::tables::{ServiceTable, Tables};

/// Chooses the backend of each frame, by the rules of [`crate::continuity`]. Reads `meta.service`,
/// `meta.hash`, `meta.slot`; writes `meta.backend`.
///
/// Answers of backends go past.
///
/// Drops: the service's [`without_slots`](ServiceTable::without_slots).
#[inline(never)]
pub fn select<F: Frame>(burst: &mut Burst<F>, tables: &Tables, counters: &Counters, now: Tick) {
    burst.for_each_meta(burst.requests() & !burst.tracked(), |_, meta| {
        let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
        meta.backend = by_slot(meta, service)?;
        ask_for(meta, service);
        Ok(())
    });
    if burst.tracked() != 0 {
        select_tracked(burst, tables, counters, now);
    }
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
        prefetch_far(backend);
        if service.has_equal_ways {
            prefetch_far(backend.further());
        }
    }
}

/// Of slots that changes have touched.
#[inline(never)]
fn select_tracked<F: Frame>(burst: &mut Burst<F>, tables: &Tables, counters: &Counters, now: Tick) {
    let tracker = &*tables.tracker;
    let mut glances = [Glance::default(); BURST_MAX];
    burst.for_each_meta(burst.tracked(), |i, meta| {
        if let Some(service) = tables.service(meta.service) {
            glances[i] = tracker.glance(meta, service);
        }
        Ok(())
    });
    burst.for_each(burst.tracked(), |i, frame, meta| {
        let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
        let packet = (frame.bytes(), &*meta);
        meta.backend = by_flow(packet, service, (tracker, counters), glances[i], now)?;
        ask_for(meta, service);
        Ok(())
    });
}

/// Of a flow that is tracked and goes on, which most are, nothing has to be written down.
#[inline(always)]
fn by_flow(
    (frame, meta): (&[u8], &Meta),
    service: &ServiceTable,
    (tracker, counters): (&Tracker, &Counters),
    glance: Glance,
    now: Tick,
) -> Result<u16, DropReason> {
    let sign = if service.has_openings { Sign::of(frame, meta) } else { Sign::GoesOn };
    let found = tracker.find_after(glance, meta, service);
    if let Some(found) = &found
        && found.knows(sign, now)
        && service.may_serve(found.backend())
        && !is_by_slot(meta, service, found.backend())
    {
        return Ok(found.backend());
    }
    by_news(meta, service, (tracker, counters), found, (sign, now))
}

/// Would the slot say the same, if the flow were not tracked?
#[inline]
fn is_by_slot(meta: &Meta, service: &ServiceTable, backend: u16) -> bool {
    service.slots.slots().get(meta.slot as usize) == Some(&backend)
        && moved(meta, service) == Moved::No
}

#[inline]
fn moved(meta: &Meta, service: &ServiceTable) -> Moved {
    service.transitions.as_ref().map_or(Moved::No, |it| it.of(meta.hash))
}

/// Of a flow that there is something new of; `found`, if it was tracked when the burst came.
#[inline(never)]
fn by_news(
    meta: &Meta,
    service: &ServiceTable,
    (tracker, counters): (&Tracker, &Counters),
    found: Option<Tracked>,
    (sign, now): (Sign, Tick),
) -> Result<u16, DropReason> {
    let flow = &Flow::new(meta, service);
    // A packet before it in the burst may be the flow's first.
    let found = found.or_else(|| tracker.find(flow));
    let opens = sign == Sign::Opens;
    // An error is about a flow, not a sign that it goes on.
    let is_flows_own = meta.rule != Rule::IcmpError;
    if let Some(found) = &found {
        let backend = found.backend();
        // A client's port may be used again as soon as a connection is closed; and of one that its
        // backend has reset, no end is seen here: if that is there no more, nobody would say so.
        let is_over = found.phase() == Phase::Closing
            || !service.takes_flows(backend) && tracker.is_over(flow, found, now);
        let is_another = opens && is_over;
        if service.may_serve(backend) && found.age(now) <= service.idle_max && !is_another {
            if is_by_slot(meta, service, backend) {
                tracker.forget(flow, found);
            } else if is_flows_own {
                tracker.refresh(flow, found, sign, now);
            }
            return Ok(backend);
        }
    }
    let current = by_slot(meta, service);
    let from = match moved(meta, service) {
        // Of one that was tracked, peers, who knew of its backend, are to hear of the new one.
        Moved::No if found.is_none() => return current,
        Moved::From(from) if service.may_serve(from) && !opens => Some(from),
        Moved::No | Moved::From(_) | Moved::FromNobody => None,
    };
    let backend = from.map_or(current, Ok)?;
    if let Some(found) = &found {
        tracker.forget(flow, found);
    }
    if is_flows_own {
        let has_room = tracker.track(flow, backend, sign, now);
        (if has_room { &counters.tracked } else { &counters.untracked }).add(1);
    }
    Ok(backend)
}

#[cfg(test)]
mod tests;
