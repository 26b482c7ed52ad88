//! What was measured, as it is saved.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Of the file; another number means something else.
pub const FORMAT: u32 = 1;
/// A round whose floor moved by more than this share does not count.
pub const FLOOR_MOVES_MAX: f64 = 0.15;

/// All of one measurement.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Where and with what.
    pub about: About,
    /// In their order.
    pub rounds: Vec<Round>,
    /// Each with trials of all rounds.
    pub series: Vec<Series>,
}

/// Where and with what was measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct About {
    /// Of Weir.
    pub version: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Its model.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Of Linux.
    pub kernel: String,
    /// Of DPDK.
    pub dpdk: String,
    /// The profile's file, or what it was made of.
    pub profile: String,
    /// Of a trial.
    pub seconds: f64,
    /// The share of frames that may be lost at the highest rate.
    pub loss_max: f64,
}

/// How fast the machine itself was, in pieces of always the same work a second.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Round {
    /// Before the round.
    pub floor_before: f64,
    /// And after it.
    pub floor_after: f64,
}

impl Round {
    /// Did the machine keep its pace?
    #[must_use]
    pub fn is_steady(self) -> bool {
        (self.floor_after / self.floor_before - 1.0).abs() <= FLOOR_MOVES_MAX
    }
}

/// What was measured of one device with one kind of traffic.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Series {
    /// The device under test.
    pub device: String,
    /// How it forwards; empty, if that is not Weir's to say.
    pub mode: String,
    /// Bytes of a frame.
    pub size: String,
    /// At several loads.
    pub points: Vec<Point>,
}

impl Series {
    /// What tells it from others.
    #[must_use]
    pub fn name(&self) -> String {
        let words = [&*self.device, &*self.mode, &*self.size];
        words.into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// The load of [`Point`]s at which the device was given as much as it took.
pub const FULL: &str = "full";
/// That of the highest rate without loss.
pub const HIGHEST: &str = "highest";

/// What was measured at one load.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Point {
    /// [`FULL`], [`HIGHEST`], a share of the highest as in "70%", or frames a second.
    pub load: String,
    /// One a round, if all went well.
    pub trials: Vec<Trial>,
}

/// What was measured once.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Trial {
    /// Its place in [`Results::rounds`].
    pub round: usize,
    /// Frames a second that should come back, as sent.
    pub offered: f64,
    /// And as they came.
    pub received: f64,
    /// The share that did not come.
    pub loss: f64,
    /// Frames of attacks, a second.
    pub attacks: f64,
    /// Share of the time in which the generator's CPU was somebody else's.
    pub generator_away: f64,
    /// In which the device was ready to run but did not; absent, if nobody knows.
    pub device_away: Option<f64>,
    /// Absent at full load, where frames wait in full queues, and of captures.
    pub latency: Option<Latency>,
    /// The same while neither was interrupted; absent, if there was no such time.
    pub calm: Option<Latency>,
}

impl Trial {
    /// The loss that the device is to blame for: while its CPU is somebody else's, it can lose what comes
    /// then.
    #[must_use]
    pub fn own_loss(&self) -> f64 {
        (self.loss - self.device_away.unwrap_or(0.0)).max(0.0)
    }
}

/// Nanoseconds from sending to receiving.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[expect(missing_docs, reason = "percentiles by their names")]
pub struct Latency {
    /// How many it is about.
    pub frames: u64,
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
}

impl Latency {
    /// `None`: there are no frames.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Self {
            frames: histogram.len(),
            min: histogram.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
        })
    }
}

/// A figure of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of one value.
    #[must_use]
    pub fn at(value: f64) -> Self {
        Self { median: value, min: value, max: value }
    }

    /// `None`: there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

impl Results {
    /// The trials of a point in rounds that count.
    pub fn counting<'a>(&'a self, point: &'a Point) -> impl Iterator<Item = &'a Trial> {
        point
            .trials
            .iter()
            .filter(|trial| self.rounds.get(trial.round).is_some_and(|round| round.is_steady()))
    }

    /// A figure of a point, over all rounds that count and have one.
    pub fn spread(&self, point: &Point, figure: impl Fn(&Trial) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.counting(point).filter_map(figure))
    }

    /// Writes them as JSON.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub fn save(&self, path: &Path) -> Result<(), ResultsError> {
        let unwritten = |source| ResultsError::Write { path: path.into(), source };
        let mut file = fs::File::create(path).map_err(unwritten)?;
        serde_json::to_writer_pretty(&mut file, self).map_err(|it| unwritten(it.into()))?;
        writeln!(file).map_err(unwritten)
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub fn load(path: &Path) -> Result<Self, ResultsError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ResultsError::Read { path: path.into(), source })?;
        let results: Self = serde_json::from_str(&text)
            .map_err(|source| ResultsError::Format { path: path.into(), source })?;
        if results.format != FORMAT {
            return Err(ResultsError::Version { path: path.into(), format: results.format });
        }
        Ok(results)
    }
}

/// Results cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants and their fields")]
pub enum ResultsError {
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{} has no results of `weir bench run` or `weir bench search`: {source}",
        path.display()
    )]
    Format { path: PathBuf, source: serde_json::Error },
    #[error(
        "{} has results in format {format}, and this weir reads {FORMAT}: measure again",
        path.display()
    )]
    Version { path: PathBuf, format: u32 },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results of `l2dsr`, one trial a round, which offered so many frames a second, and their p99.
    pub(crate) fn results(trials: &[(f64, u64)]) -> Results {
        let trial = |(round, &(offered, p99)): (usize, &(f64, u64))| Trial {
            round,
            offered,
            received: offered,
            loss: 0.0,
            attacks: 0.0,
            generator_away: 0.0,
            device_away: Some(0.01),
            latency: Some(Latency {
                frames: 1000,
                min: p99 / 4,
                p50: p99 / 2,
                p90: p99 / 2,
                p99,
                p99_9: p99 * 2,
                p99_99: p99 * 3,
                max: p99 * 4,
            }),
            calm: None,
        };
        let points = vec![Point {
            load: HIGHEST.into(),
            trials: trials.iter().enumerate().map(trial).collect(),
        }];
        let series =
            Series { device: "weir".into(), mode: "l2dsr".into(), size: "64".into(), points };
        let round = Round { floor_before: 100.0, floor_after: 101.0 };
        Results {
            format: FORMAT,
            about: About { profile: "p.toml".into(), cpus: 2, ..About::default() },
            rounds: vec![round; trials.len()],
            series: vec![series],
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let results = results(&[(1.5e6, 4321), (1.6e6, 9)]);
        results.save(&path).unwrap();
        assert_eq!(Results::load(&path).unwrap(), results);
    }

    #[test]
    fn other_files_are_told_from_results() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert!(Results::load(&path).unwrap_err().to_string().starts_with("cannot read /"));
        fs::write(&path, "[]").unwrap();
        assert!(Results::load(&path).unwrap_err().to_string().contains("has no results of"));
        Results { format: 2, ..results(&[]) }.save(&path).unwrap();
        assert!(Results::load(&path).unwrap_err().to_string().contains("measure again"));
        let nowhere = results(&[]).save(Path::new("/nowhere/a.json")).unwrap_err();
        assert!(nowhere.to_string().starts_with("cannot write /nowhere"));
    }

    #[test]
    fn a_spread_has_the_middle_and_the_ends() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 9.0, 1.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[1.0, 2.0]), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
    }

    #[test]
    fn what_is_lost_while_the_cpu_is_somebody_elses_is_not_the_devices_fault() {
        let mut trial = results(&[(1e6, 1)]).series[0].points[0].trials[0].clone();
        for (loss, away, own) in
            [(0.03, Some(0.01), 0.02), (0.03, Some(0.04), 0.0), (0.03, None, 0.03)]
        {
            (trial.loss, trial.device_away) = (loss, away);
            assert!((trial.own_loss() - own).abs() < 1e-9, "{loss} {away:?}");
        }
    }

    #[test]
    fn rounds_whose_floor_moved_do_not_count() {
        let mut results = results(&[(1e6, 1), (2e6, 1), (3e6, 1)]);
        results.rounds[1].floor_after = 120.0;
        let spread = results.spread(&results.series[0].points[0], |trial| Some(trial.received));
        assert_eq!(spread, Some(Spread { median: 2e6, min: 1e6, max: 3e6 }));
        let counting = results.counting(&results.series[0].points[0]);
        assert_eq!(counting.map(|trial| trial.round).collect::<Vec<_>>(), [0, 2]);
    }
}
