//! Runs `weir replay`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use serde_json::Value;

use crate::case::{Case, Names, cases, folder};

/// From case to case, in microseconds: longer than fragments are waited for.
const CASE_MICROS: u64 = 20_000_000;

/// What became of the frames of a case.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What came in: microseconds, and the frame.
    pub(crate) input: Vec<(u64, Vec<u8>)>,
    /// What was open in that.
    pub(crate) filled: Names,
    pub(crate) verdicts: Vec<Value>,
    /// In the order of sending.
    pub(crate) frames: Vec<Vec<u8>>,
}

type Outcomes = Vec<(Case, Result<Outcome, String>)>;

/// Of all cases. Runs them on the first call.
pub(crate) fn outcomes() -> &'static Outcomes {
    static OUTCOMES: OnceLock<Outcomes> = OnceLock::new();
    OUTCOMES.get_or_init(|| {
        let mut by_config = BTreeMap::<String, Vec<Case>>::new();
        for case in cases() {
            by_config.entry(case.config.clone()).or_default().push(case);
        }
        let queue = Mutex::new(by_config.into_values());
        let done = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let Some(cases) = queue.lock().unwrap().next() else { break };
                        let outcomes = run_all(&cases);
                        done.lock().unwrap().extend(cases.into_iter().zip(outcomes));
                    }
                });
            }
        });
        done.into_inner().unwrap()
    })
}

/// All cases of one configuration, in one capture; each for itself if that fails, to find out whose
/// fault it is.
fn run_all(cases: &[Case]) -> Vec<Result<Outcome, String>> {
    let config = folder().join(&cases[0].config);
    let check =
        Command::new(env!("CARGO_BIN_EXE_weir")).arg("check").arg(&config).output().unwrap();
    if !check.status.success() {
        let error = String::from_utf8_lossy(&check.stderr).into_owned();
        return cases.iter().map(|_| Err(error.clone())).collect();
    }
    let all: Vec<&Case> = cases.iter().collect();
    match replay_until_known(&config, &all) {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(_) if cases.len() > 1 => {
            let one =
                |case| replay_until_known(&config, &[case]).map(|mut outcomes| outcomes.remove(0));
            cases.iter().map(one).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

/// Names that one frame after the other tells, at most.
const ROUNDS_MAX: usize = 8;

/// What comes in may depend on what left before: on the port that a connection was given. So a replay
/// tells what the next one is asked with, until nothing is new.
fn replay_until_known(config: &Path, cases: &[&Case]) -> Result<Vec<Outcome>, String> {
    let mut names = vec![Names::new(); cases.len()];
    for _ in 0..ROUNDS_MAX {
        let outcomes = replay(config, cases, &names)?;
        let learnt: Vec<Names> =
            cases.iter().zip(&outcomes).map(|(case, outcome)| told(case, outcome)).collect();
        if learnt == names {
            return Ok(outcomes);
        }
        names = learnt;
    }
    Err("what is open is another thing each time".into())
}

/// What is known of the bytes that come in, from the frames that left as expected.
fn told(case: &Case, outcome: &Outcome) -> Names {
    let mut names = Names::new();
    let _ = case.out.iter().zip(&outcome.frames).all(|(expect, frame)| {
        let mut with_these = names.clone();
        let is_met = expect.is_met_by(frame, &mut with_these);
        if is_met {
            names = with_these;
        }
        is_met
    });
    names.retain(|name, _| case.input.iter().any(|(_, frame)| frame.names().any(|it| it == name)));
    names
}

fn replay(config: &Path, cases: &[&Case], names: &[Names]) -> Result<Vec<Outcome>, String> {
    let place = cases[0].config.replace('.', "-");
    let folder = Folder::new(&format!("{place}-{}", cases[0].name.len()));
    let mut given = Vec::new();
    for (case, names) in cases.iter().zip(names) {
        let frames = case.input.iter().map(|(at, frame)| (*at, frame.filled(names)));
        given.push(frames.collect::<Vec<_>>());
    }
    let mut input = Vec::new();
    for (i, frames) in (0..).zip(&given) {
        input.extend(frames.iter().map(|(at, frame)| (i * CASE_MICROS + at, frame.clone())));
    }
    let input = folder.file("in.pcap", pcap(&input));
    let [out, verdicts] = ["out.pcap", "verdicts"].map(|name| folder.0.join(name));
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["replay".as_ref(), "-c".as_ref(), config.as_os_str()])
        .args(["--in".as_ref(), input.as_os_str(), "--out".as_ref(), out.as_os_str()])
        .args(["--verdicts".as_ref(), verdicts.as_os_str()])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let verdicts = fs::read_to_string(verdicts).map_err(|error| error.to_string())?;
    let mut verdicts = verdicts.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut outcomes: Vec<Outcome> = given
        .into_iter()
        .zip(names)
        .map(|(input, names)| Outcome {
            verdicts: verdicts.by_ref().take(input.len()).collect(),
            frames: Vec::new(),
            filled: names.clone(),
            input,
        })
        .collect();
    let [more, fewer] = [verdicts.count(), outcomes.last().unwrap().verdicts.len()];
    if more > 0 || fewer != cases.last().unwrap().input.len() {
        return Err("not as many verdicts as frames".into());
    }
    for (micros, frame) in frames(&fs::read(out).map_err(|error| error.to_string())?) {
        let place = usize::try_from(micros / CASE_MICROS).unwrap();
        outcomes.get_mut(place).ok_or("a frame from beyond the end")?.frames.push(frame);
    }
    Ok(outcomes)
}

/// A folder of its own, gone at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-golden-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// When the captures begin: any time will do.
const START_SECONDS: u64 = 1_700_000_000;

/// A classic pcap, by its definition: microseconds, little-endian, Ethernet.
pub(crate) fn pcap(frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (micros, frame) in frames {
        let seconds = START_SECONDS + micros / 1_000_000;
        for word in [seconds, micros % 1_000_000, frame.len() as u64, frame.len() as u64] {
            file.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// The frames of a pcap that Weir wrote, with nanoseconds: microseconds from the start, and bytes.
fn frames(file: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let [seconds, nanos, len] = [word(0), word(4), word(8)];
        let micros = (u64::from(seconds) - START_SECONDS) * 1_000_000 + u64::from(nanos) / 1000;
        let (frame, behind) = rest[16..].split_at(len as usize);
        frames.push((micros, frame.to_vec()));
        rest = behind;
    }
    frames
}
