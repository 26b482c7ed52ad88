//! Two runs beside each other: what got slower?

use std::fmt;

use crate::results::{FULL, HIGHEST, Point, Results, Spread, Trial};

/// How a figure has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// By less than the tolerance.
    Same,
    /// For the better.
    Better,
    /// For the worse.
    Worse,
    /// By more than the tolerance, but the rounds of the two overlap.
    Unclear,
}

/// A figure of both.
#[derive(Clone, Debug)]
pub struct Line {
    /// Of what.
    pub what: String,
    /// In the first run.
    pub before: Spread,
    /// In the second.
    pub after: Spread,
    /// What came of it.
    pub verdict: Verdict,
}

/// What two runs have in common, compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Every figure that both have.
    pub lines: Vec<Line>,
    /// What one of them has alone.
    pub alone: Vec<String>,
}

impl Comparison {
    /// Did anything get slower?
    #[must_use]
    pub fn is_worse(&self) -> bool {
        self.lines.iter().any(|line| line.verdict == Verdict::Worse)
    }
}

/// A figure, and whether more is better.
type Figure = (&'static str, bool, fn(&Trial) -> Option<f64>);

/// What is compared: of the highest rates, themselves; of loads that were given, latency.
fn figures(load: &str) -> &'static [Figure] {
    const RATE: Figure = ("frames/s", true, |trial| Some(trial.received));
    const P50: Figure = ("p50 ns", false, |trial| Some(latency(trial)?.p50 as f64));
    const P99: Figure = ("p99 ns", false, |trial| Some(latency(trial)?.p99 as f64));
    match load {
        FULL | HIGHEST => &[RATE],
        _ => &[RATE, P50, P99],
    }
}

/// While neither was interrupted, if that is known.
fn latency(trial: &Trial) -> Option<crate::results::Latency> {
    trial.calm.or(trial.latency)
}

/// Compares two runs; what changed by less than `tolerance`, a share, is the same.
#[must_use]
pub fn compare(before: &Results, after: &Results, tolerance: f64) -> Comparison {
    let mut comparison = Comparison { lines: Vec::new(), alone: Vec::new() };
    let (old, new) = (points(before), points(after));
    for (name, point) in &old {
        let Some((_, other)) = new.iter().find(|(it, _)| it == name) else {
            comparison.alone.push(format!("{name}: only in the first"));
            continue;
        };
        for &(figure, is_more_better, pick) in figures(&point.load) {
            let spreads = (before.spread(point, pick), after.spread(other, pick));
            if let (Some(before), Some(after)) = spreads {
                let verdict = verdict(before, after, (is_more_better, tolerance));
                let what = format!("{name}: {figure}");
                comparison.lines.push(Line { what, before, after, verdict });
            }
        }
    }
    let is_new = |(name, _): &&(String, _)| !old.iter().any(|(it, _)| it == name);
    let alone = new.iter().filter(is_new).map(|(name, _)| format!("{name}: only in the second"));
    comparison.alone.extend(alone);
    comparison
}

fn points(results: &Results) -> Vec<(String, &Point)> {
    let of = |series: &'_ crate::results::Series, point: &Point| {
        format!("{}, {}", series.name(), point.load)
    };
    let series = results.series.iter();
    series.flat_map(|it| it.points.iter().map(move |point| (of(it, point), point))).collect()
}

fn verdict(before: Spread, after: Spread, (is_more_better, tolerance): (bool, f64)) -> Verdict {
    let change = after.median / before.median - 1.0;
    let overlap = before.min <= after.max && after.min <= before.max;
    match (change > 0.0) == is_more_better {
        _ if change.abs() <= tolerance || change.is_nan() => Verdict::Same,
        _ if overlap => Verdict::Unclear,
        true => Verdict::Better,
        false => Verdict::Worse,
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, before, after, verdict } = self;
        let change = (after.median / before.median - 1.0) * 100.0;
        let verdict = match verdict {
            Verdict::Same => "same",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Unclear => "unclear: the rounds overlap",
        };
        let spread = |it: &Spread| format!("{:.0} ({:.0} to {:.0})", it.median, it.min, it.max);
        let (before, after) = (spread(before), spread(after));
        write!(f, "{what:<40} {before:>32} {after:>32} {change:>+7.1}%  {verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    /// Of runs with these rates; the load is a given one, so that latency counts, too.
    fn compared(before: &[(f64, u64)], after: &[(f64, u64)]) -> Vec<Verdict> {
        let at_a_rate = |trials: &[(f64, u64)]| {
            let mut results = results(trials);
            results.series[0].points[0].load = "70%".into();
            results
        };
        let comparison = compare(&at_a_rate(before), &at_a_rate(after), 0.05);
        let verdicts: Vec<Verdict> = comparison.lines.iter().map(|line| line.verdict).collect();
        assert_eq!(comparison.is_worse(), verdicts.contains(&Verdict::Worse));
        assert!(comparison.alone.is_empty());
        verdicts
    }

    #[test]
    fn slower_is_worse_unless_it_may_be_noise() {
        use Verdict::{Better, Same, Unclear, Worse};
        let before = [(10e6, 1000), (11e6, 1100), (12e6, 1200)];
        for (after, expect) in [
            ([(10e6, 1000), (11e6, 1100), (12e6, 1200)], [Same, Same, Same]),
            ([(10e6, 1000), (10.6e6, 1100), (12e6, 1200)], [Same, Same, Same]),
            ([(7e6, 1000), (8e6, 1100), (9e6, 1200)], [Worse, Same, Same]),
            ([(7e6, 1000), (8e6, 1100), (10.5e6, 1200)], [Unclear, Same, Same]),
            ([(14e6, 500), (15e6, 600), (16e6, 700)], [Better, Better, Better]),
            ([(10e6, 2000), (11e6, 2100), (12e6, 2200)], [Same, Worse, Worse]),
        ] {
            assert_eq!(compared(&before, &after), expect, "{after:?}");
        }
    }

    #[test]
    fn of_the_highest_rate_only_the_rate_counts() {
        let comparison = compare(&results(&[(10e6, 1000)]), &results(&[(10e6, 9000)]), 0.05);
        assert_eq!(comparison.lines.len(), 1);
        assert!(comparison.lines[0].to_string().contains("weir l2dsr 64, highest: frames/s"));
        assert!(!comparison.is_worse());
    }

    #[test]
    fn what_one_has_alone_is_told() {
        let (before, mut after) = (results(&[(10e6, 1000)]), results(&[(10e6, 1000)]));
        after.series[0].size = "imix".into();
        let comparison = compare(&before, &after, 0.05);
        assert!(comparison.lines.is_empty());
        let expect = [
            "weir l2dsr 64, highest: only in the first",
            "weir l2dsr imix, highest: only in the second",
        ];
        assert_eq!(comparison.alone, expect);
    }
}
