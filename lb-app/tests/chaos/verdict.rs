//! What a scenario is charged with: everything that broke, less what had to.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::journal::{Broken, Failed, How, INTERVAL_MS, Moment, Report};

/// How many broken connections are told of one by one; and how many in the table.
const EXAMPLES_MAX: usize = 1000;
const EXAMPLES_SHOWN_MAX: usize = 5;

/// What may fail, and when.
#[derive(Clone, Debug)]
pub(crate) enum Excuse {
    /// Connections of a backend that were open when it failed, or were opened before this was known:
    /// they may break at any time after.
    Own { backend: String, from: Moment, until: Moment },
    /// No connection can be expected to open then.
    Opening { from: Moment, until: Moment },
}

/// A restart of a balancer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    pub(crate) signalled: Moment,
    pub(crate) in_force: Moment,
}

/// What is found out while a scenario runs.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) scenario: &'static str,
    pub(crate) started: Moment,
    /// Open when it began.
    pub(crate) connections: u64,
    pub(crate) report: Report,
    pub(crate) excuses: Vec<Excuse>,
    pub(crate) restarts: Vec<Restart>,
    /// What else is wrong.
    pub(crate) problems: Vec<String>,
}

/// The result of a scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) seconds: f64,
    pub(crate) connections: u64,
    pub(crate) exchanged: u64,
    /// Open connections that broke and should not have, and how.
    pub(crate) broken: u64,
    pub(crate) broken_how: BTreeMap<How, u64>,
    pub(crate) broken_of: BTreeMap<String, u64>,
    /// Some of them.
    pub(crate) examples: Vec<Example>,
    /// Connections that broke with their own backend.
    pub(crate) own: u64,
    pub(crate) opened: u64,
    /// Connections that failed to open and should not have, and how.
    pub(crate) failed: u64,
    pub(crate) failed_how: BTreeMap<How, u64>,
    /// When some of them failed, in seconds since the scenario began.
    pub(crate) failed_at: Vec<f64>,
    /// Connections that failed to open while none could be expected to.
    pub(crate) failed_in_gap: u64,
    /// The longest that a connection waited for an answer that came.
    pub(crate) worst_pause_ms: f64,
    /// The longest time without an answer on any connection.
    pub(crate) worst_silence_ms: f64,
    pub(crate) restarts: Vec<RestartRow>,
    pub(crate) problems: Vec<String>,
}

/// A broken connection. Times are seconds since the scenario began.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Example {
    pub(crate) backend: String,
    /// The client's.
    pub(crate) port: u16,
    /// Negative: before that.
    pub(crate) opened: f64,
    pub(crate) broke: f64,
    pub(crate) how: How,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RestartRow {
    /// From the signal until the new process says that its tables are in force, and is connected.
    pub(crate) in_force: f64,
    /// From the signal to the first answer after the gap.
    pub(crate) first_answer: f64,
    /// The gap: no answer on any connection.
    pub(crate) gap: f64,
}

impl Draft {
    pub(crate) fn new(scenario: &'static str, connections: u64) -> Self {
        Self {
            scenario,
            started: Moment::now(),
            connections,
            report: Report::default(),
            excuses: Vec::new(),
            restarts: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Judges.
    pub(crate) fn finish(mut self) -> Row {
        let seconds = Moment::now().ms_since(self.started) / 1000.0;
        self.expect_exchange(seconds);
        let (own, broken): (Vec<_>, Vec<_>) =
            self.report.broken.iter().partition(|broken| self.is_own(broken));
        let (in_gap, failed): (Vec<_>, Vec<_>) =
            self.report.failed.iter().partition(|failed| self.is_in_gap(failed));
        Row {
            scenario: self.scenario,
            seconds,
            connections: self.connections,
            exchanged: self.report.exchanged,
            broken: count(&broken),
            broken_how: tally(broken.iter().map(|broken| broken.how)),
            broken_of: tally(broken.iter().map(|broken| broken.backend.clone())),
            examples: broken.iter().take(EXAMPLES_MAX).map(|one| self.example(one)).collect(),
            own: count(&own),
            opened: self.report.opened.values().sum(),
            failed: count(&failed),
            failed_how: tally(failed.iter().map(|failed| failed.how)),
            failed_at: failed.iter().take(EXAMPLES_MAX).map(|one| self.since(one.to)).collect(),
            failed_in_gap: count(&in_gap),
            worst_pause_ms: self.report.worst_pause_ms,
            worst_silence_ms: self.longest_gap(|_, _| true).0,
            restarts: self.restarts.iter().map(|restart| self.restart(*restart)).collect(),
            problems: self.problems.clone(),
        }
    }

    /// Seconds since the scenario began.
    fn since(&self, moment: Moment) -> f64 {
        (moment.ms_since(self.started) - self.started.ms_since(moment)) / 1000.0
    }

    fn example(&self, broken: &Broken) -> Example {
        let Broken { ref backend, port, opened, at, how } = *broken;
        Example {
            backend: backend.clone(),
            port,
            opened: self.since(opened),
            broke: self.since(at),
            how,
        }
    }

    /// Nothing breaks where nothing moves: half of the messages is the least.
    fn expect_exchange(&mut self, seconds: f64) {
        #[expect(clippy::cast_precision_loss, reason = "there are not so many messages")]
        let [exchanged, connections, interval_ms] =
            [self.report.exchanged, self.connections, INTERVAL_MS].map(|count| count as f64);
        let due = connections * seconds * 1000.0 / interval_ms;
        if exchanged < due / 2.0 {
            self.problems.push(format!("only {exchanged} messages of {due:.0} were exchanged"));
        }
    }

    fn is_own(&self, broken: &Broken) -> bool {
        self.excuses.iter().any(|excuse| match excuse {
            Excuse::Own { backend, from, until } => {
                // One that was never answered does not say whose it is.
                let is_of = broken.backend == *backend || broken.backend.is_empty();
                is_of && broken.at >= *from && broken.opened <= *until
            }
            Excuse::Opening { .. } => false,
        })
    }

    fn is_in_gap(&self, failed: &Failed) -> bool {
        self.excuses.iter().any(|excuse| match excuse {
            Excuse::Opening { from, until } | Excuse::Own { from, until, .. } => {
                failed.to >= *from && failed.from <= *until
            }
        })
    }

    fn restart(&self, restart: Restart) -> RestartRow {
        let Restart { signalled, in_force } = restart;
        let (gap, end) = self.longest_gap(|from, to| to > signalled && from < in_force);
        RestartRow {
            in_force: in_force.ms_since(signalled),
            first_answer: end.ms_since(signalled),
            gap,
        }
    }

    /// The longest gap of which something is true, and when it ended.
    fn longest_gap(&self, is_meant: impl Fn(Moment, Moment) -> bool) -> (f64, Moment) {
        let gaps = self.report.gaps.iter().filter(|gap| is_meant(gap.from, gap.to));
        let longest = gaps.max_by(|a, b| a.to.ms_since(a.from).total_cmp(&b.to.ms_since(b.from)));
        longest.map_or((0.0, Moment::default()), |gap| (gap.to.ms_since(gap.from), gap.to))
    }
}

fn count<T>(of: &[T]) -> u64 {
    of.len().try_into().expect("u64 is as wide")
}

fn tally<T: Ord>(of: impl Iterator<Item = T>) -> BTreeMap<T, u64> {
    of.fold(BTreeMap::new(), |mut tally, one| {
        *tally.entry(one).or_default() += 1;
        tally
    })
}

impl Row {
    pub(crate) fn is_good(&self) -> bool {
        self.broken == 0 && self.failed == 0 && self.problems.is_empty()
    }

    fn notes(&self) -> Vec<String> {
        let how = |tally: &BTreeMap<How, u64>| {
            let parts: Vec<_> = tally
                .iter()
                .map(|(how, count)| format!("{count} {how:?}").to_lowercase())
                .collect();
            parts.join(", ")
        };
        let mut notes = Vec::new();
        if self.broken > 0 {
            let of: Vec<_> =
                self.broken_of.iter().map(|(of, count)| format!("{of} {count}")).collect();
            notes.push(format!("broken: {} (of {})", how(&self.broken_how), of.join(", ")));
        }
        notes.extend(self.examples.iter().take(EXAMPLES_SHOWN_MAX).map(|example| {
            let Example { backend, port, opened, broke, how } = example;
            format!("    from port {port} to {backend}: opened {opened:.1} s, {how:?} {broke:.1} s")
        }));
        if self.failed > 0 {
            let at = self.failed_at.iter().take(EXAMPLES_SHOWN_MAX).map(|at| format!("{at:.1} s"));
            let at: Vec<_> = at.collect();
            notes.push(format!("failed to open: {} (at {})", how(&self.failed_how), at.join(", ")));
        }
        notes.extend(self.restarts.iter().map(|restart| {
            let RestartRow { in_force, first_answer, gap } = restart;
            format!(
                "restart: no answer for {gap:.0} ms; the first came {first_answer:.0} ms after \
                 the signal; in force after {in_force:.0} ms"
            )
        }));
        notes.extend(self.problems.iter().cloned());
        notes
    }
}

/// Prints the table of all results.
pub(crate) fn print(rows: &[Row], seed: u64) {
    println!(
        "\n{:39}{:>7}{:>11}{:>8}{:>6}{:>8}{:>8}{:>8}{:>11}",
        "scenario", "open", "exchanged", "broken", "own", "opened", "failed", "in gap", "pause, ms"
    );
    for row in rows {
        println!(
            "{:39}{:>7}{:>11}{:>8}{:>6}{:>8}{:>8}{:>8}{:>11.0}",
            row.scenario,
            row.connections,
            row.exchanged,
            row.broken,
            row.own,
            row.opened,
            row.failed,
            row.failed_in_gap,
            row.worst_pause_ms
        );
        row.notes().iter().for_each(|note| println!("    {note}"));
    }
    let bad = rows.iter().filter(|row| !row.is_good()).count();
    println!("\n{bad} of {} scenarios are not as they should be (seed {seed})", rows.len());
}
