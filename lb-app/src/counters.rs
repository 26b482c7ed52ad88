//! The counters as people read them: one `name value` a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dpdk::{Port, Started};
use lb_core::counters::{Counter, Counters};
use lb_core::drop_reason::DropReason;
use lb_core::stopwatch::Step;
use lb_core::tables::{ServiceId, ServiceTable, Tables};

use crate::kernel::PumpCounters;
use crate::source::feed::Standing;

/// Frames and bytes.
type Totals = (u64, u64);

/// What ids had counted when they were given to the services that have them now.
#[derive(Debug, Default)]
pub(crate) struct Baselines(BTreeMap<ServiceId, (Arc<str>, Totals)>);

impl Baselines {
    /// Notes the ids that `tables` gives to other services than `before`; `None`, if there are none.
    #[must_use]
    pub(crate) fn next(
        &self,
        before: &Tables,
        tables: &Tables,
        workers: &[Arc<Counters>],
    ) -> Option<Self> {
        let is_known = |(old, new): (&Arc<ServiceTable>, &Arc<ServiceTable>)| {
            let name = |table: &Arc<ServiceTable>| table.source.spec().name.clone();
            Arc::ptr_eq(old, new) || (old.id, name(old)) == (new.id, name(new))
        };
        let is_same = before.services.len() == self.0.len()
            && before.services.len() == tables.services.len()
            && before.services.iter().zip(&tables.services).all(is_known);
        if is_same {
            return None;
        }
        let entry = |table: &Arc<ServiceTable>| {
            let name = table.source.spec().name.as_str();
            let known = self.0.get(&table.id).filter(|(known, _)| **known == *name).cloned();
            let counted = || totals(table.id, workers.iter().map(|counters| &**counters));
            (table.id, known.unwrap_or_else(|| (name.into(), counted())))
        };
        Some(Self(tables.services.iter().map(entry).collect()))
    }

    /// What a service has counted since it is there.
    pub(crate) fn since<'a>(
        &self,
        id: ServiceId,
        workers: impl IntoIterator<Item = &'a Counters>,
    ) -> Totals {
        let (frames, bytes) = totals(id, workers);
        let (_, (frames_before, bytes_before)) =
            self.0.get(&id).map_or((None, (0, 0)), |(name, totals)| (Some(name), *totals));
        (frames - frames_before, bytes - bytes_before)
    }
}

fn totals<'a>(id: ServiceId, workers: impl IntoIterator<Item = &'a Counters>) -> Totals {
    workers
        .into_iter()
        .filter_map(|counters| counters.service(id))
        .fold((0, 0), |sum, traffic| (sum.0 + traffic.frames.get(), sum.1 + traffic.bytes.get()))
}

/// All that is counted; drop reasons that did not occur are left out.
pub(crate) fn table(
    workers: &[Arc<Counters>],
    pump: &PumpCounters,
    devices: &[(String, Port<Started>)],
    tables: &Tables,
    baselines: &Baselines,
    peers: [(&'static str, u64); 4],
    feeds: &[Arc<Standing>],
) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |name: &str, value: u64| lines.push((name.to_owned(), value.to_string()));
    let sum = |pick: fn(&Counters) -> &Counter| -> u64 {
        workers.iter().map(|counters| pick(counters).get()).sum()
    };
    line("version", tables.version);
    line("received", sum(|counters| &counters.received));
    line("injected", sum(|counters| &counters.injected));
    line("created", sum(|counters| &counters.created));
    line("taken_over", sum(|counters| &counters.taken_over));
    line("released", sum(|counters| &counters.released));
    line("sent", sum(|counters| &counters.sent));
    line("punted", sum(|counters| &counters.punted));
    line("handed_over", sum(|counters| &counters.handed_over));
    line("held", sum(|counters| &counters.held));
    line("answered", sum(|counters| &counters.answered));
    line("challenged", sum(|counters| &counters.challenged));
    line("admitted", sum(|counters| &counters.admitted));
    line("tracked", sum(|counters| &counters.tracked));
    line("untracked", sum(|counters| &counters.untracked));
    line("tracked.now", tables.tracker.len().into());
    for (name, value) in peers {
        line(name, value);
    }
    for feed in feeds {
        for (what, value) in feed.counters() {
            line(&format!("feed.{}.{what}", feed.name), value);
        }
    }
    for reason in DropReason::ALL {
        let dropped: u64 =
            workers.iter().map(|counters| counters.drops[reason as usize].get()).sum();
        if dropped > 0 {
            line(&format!("dropped.{reason}"), dropped);
        }
    }
    let frames = sum(|counters| &counters.timed_frames);
    line("timed_frames", frames);
    for step in Step::ALL {
        let cycles: u64 =
            workers.iter().map(|counters| counters.step_cycles[step as usize].get()).sum();
        line(&format!("cycles_per_frame.{}", step.name()), cycles.checked_div(frames).unwrap_or(0));
    }
    let balances = workers.iter().map(|counters| counters.balance());
    let (came, left) = balances.fold((0, 0), |sum, (came, left)| (sum.0 + came, sum.1 + left));
    line("unaccounted", came.abs_diff(left));
    line("kernel.refused", pump.refused.load(Ordering::Relaxed));
    line("kernel.lost", pump.lost.load(Ordering::Relaxed));
    for (name, device) in devices {
        let Ok(stats) = device.stats() else { continue };
        for (what, value) in [
            ("received", stats.ipackets),
            ("sent", stats.opackets),
            ("missed", stats.imissed),
            ("receive_errors", stats.ierrors),
            ("send_errors", stats.oerrors),
            ("no_buffer", stats.rx_nombuf),
        ] {
            line(&format!("port.{name}.{what}"), value);
        }
    }
    for service in &tables.services {
        let (frames, bytes) =
            baselines.since(service.id, workers.iter().map(|counters| &**counters));
        let name = &service.source.spec().name;
        lines.push((format!("service {name}"), format!("frames {frames} bytes {bytes}")));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:width$}  {value}"); // a String takes all
        text
    })
}
