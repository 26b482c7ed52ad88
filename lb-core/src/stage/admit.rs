//! SYN → may it open a connection?

use crate::admission::{Admission, Epoch, Gate};
use crate::burst::{Burst, Exit, Meta, Rule};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::forward::challenge::challenge;
use crate::frame::Frame;
use crate::rate::Tick;
use crate::tables::next_hop::{Port, PortId};
use crate::tables::{ServiceId, Tables};
use crate::wire::TCP;
use crate::wire::tcp::{ACK, FLAGS, RST, SEQUENCE, SYN};

/// Lets SYNs for a service with a bound pass up to its rate, and above it those of clients that have
/// answered a challenge; the others are challenged, which makes answers of them: see
/// [`crate::admission`]. All that belongs to connections goes past. Costs a glance where no service has
/// a bound.
///
/// Drops: [`DropReason::SynLimit`]; and resets that answer a challenge: [`DropReason::ChallengeMet`],
/// [`DropReason::AdmitFull`].
#[inline(always)]
pub fn admit<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    port: &Port,
    counters: &Counters,
    now: Tick,
) {
    if let Some(admission) = &tables.admission {
        admit_all(burst, (tables, admission), port, counters, now);
    }
}

#[inline(never)]
fn admit_all<F: Frame>(
    burst: &mut Burst<F>,
    (tables, admission): (&Tables, &Admission),
    port: &Port,
    counters: &Counters,
    now: Tick,
) {
    let came_by = burst.port();
    burst.for_each_live(|frame, meta| {
        if meta.rule != Rule::Flow || meta.tuple.protocol != TCP {
            return Ok(());
        }
        let service = tables.service(meta.service).ok_or(DropReason::NoBackend)?;
        let Some(gate) = &service.gate else { return Ok(()) };
        let door = Door { admission, gate, service: service.id, counters, now };
        let flags = segment(frame.bytes(), meta).and_then(|it| it.get(FLAGS)).copied();
        match flags.unwrap_or(0) & (SYN | ACK | RST) {
            SYN => door.syn(frame, meta, (came_by, port)),
            flags if flags & (SYN | RST) == RST => door.rst(frame.bytes(), meta),
            _ => Ok(()),
        }
    });
}

/// What it is up to whether a packet passes.
struct Door<'a> {
    admission: &'a Admission,
    gate: &'a Gate,
    service: ServiceId,
    counters: &'a Counters,
    now: Tick,
}

impl Door<'_> {
    fn syn<F: Frame>(
        &self,
        frame: &mut F,
        meta: &mut Meta,
        (came_by, port): (PortId, &Port),
    ) -> Result<(), Exit> {
        let Self { admission, gate, service, counters, now } = *self;
        if gate.has_room(now) {
            return Ok(());
        }
        if !gate.challenges() {
            return Err(DropReason::SynLimit.into());
        }
        if admission.clients.has(service, &meta.tuple.src, now) {
            return Ok(());
        }
        // A part of a packet is not answered, as little as by ICMP (RFC 1122 §3.2.2).
        if meta.is_fragment {
            return Err(DropReason::SynLimit.into());
        }
        let epoch = Epoch::from(now);
        challenge(frame, meta, port, admission.cookies.of(&meta.tuple, epoch))?;
        gate.challenged(epoch);
        counters.challenged.add(1);
        counters.answered.add(1);
        Err(Exit::Answer(came_by, DropReason::SynLimit))
    }

    fn rst(&self, frame: &[u8], meta: &Meta) -> Result<(), Exit> {
        let Self { admission, gate, service, counters, now } = *self;
        let epoch = Epoch::from(now);
        if !gate.awaits_answers(epoch) || meta.is_fragment {
            return Ok(());
        }
        let sequence = segment(frame, meta)
            .and_then(|segment| Some(u32::from_be_bytes(segment.get(SEQUENCE)?.try_into().ok()?)));
        let is_answer = |number: &u32| admission.cookies.has_given(&meta.tuple, *number, epoch);
        if sequence.as_ref().is_none_or(|number| !is_answer(number)) {
            return Ok(());
        }
        let is_new = admission
            .clients
            .add(service, &meta.tuple.src, now)
            .map_err(|_| DropReason::AdmitFull)?;
        counters.admitted.add(is_new.into());
        Err(DropReason::ChallengeMet.into())
    }
}

/// The packet behind its IP headers.
fn segment<'a>(frame: &'a [u8], meta: &Meta) -> Option<&'a [u8]> {
    let end = usize::from(meta.l3_offset) + usize::from(meta.packet_len);
    frame.get(meta.l4_offset.into()..end)
}

#[cfg(test)]
mod tests;
