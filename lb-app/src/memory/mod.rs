//! What outlives the process: tracked flows, and what the services were like when they were tracked.
//!
//! Files in a directory that only one process may use at a time:
//!
//! * `flows`: a header, and the memory of [`Tracker`], which workers write as they go. It is mapped,
//!   so it is up to date whenever and however the process ends.
//! * `services`: places, weights and transitions, written before every version of the tables that is
//!   published: those that have changed. It says which `flows` it belongs to.
//! * `pool-*`: the connections of a pool of `fullnat`, as `flows`. They stand for themselves.
//!
//! The first two are believed together or not at all: not if they are of another layout, of another start of
//! the machine (times would mean nothing), another hash key, another `flows_max`, or damaged.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::mem;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use lb_core::continuity::{Remembered, Tracker};
use lb_core::pool::Pool;
use lb_core::rate::Tick;
use lb_core::tables::{ServiceTable, Tables};
use lb_core::tuple::Tuple;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

mod pools;
mod services;

/// Why the memory cannot be had. One line: the cause, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(
        "{} is in use by another process; stop it, or write another `state_dir` or site name",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(
        "{}: {source}; write another `state_dir` or a lower `flows_max` in [dataplane]",
        path.display()
    )]
    Io { path: PathBuf, source: io::Error },
}

/// Why what another process has left is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is of another version of Weir")]
    Version,
    #[error("it is from before the machine was started")]
    Boot,
    #[error("it is of another hash key")]
    HashKey,
    #[error("it has room for another number of flows (`flows_max`)")]
    FlowsMax,
    #[error("the two files do not belong together")]
    Pair,
    #[error("it is damaged")]
    Damaged,
    #[error("it cannot be read: {0}")]
    Unreadable(io::ErrorKind),
}

/// What is remembered, and where.
#[derive(Debug)]
pub(crate) struct Memory {
    directory: PathBuf,
    identity: Identity,
    tracker: Arc<Tracker>,
    /// The connections of `fullnat`: of those that are wanted, as far as there is memory for them.
    pools: Vec<Arc<Pool>>,
    wanted: BTreeSet<IpNet>,
    written: Option<Written>,
    /// When we were here last.
    alive: &'static AtomicU64,
    /// The same of the process before, if there was one whose memory this is.
    last_alive: Option<Tick>,
    /// As long as it is held, the directory is ours.
    _lock: Flock<File>,
}

/// What the files must agree in, besides their layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Names a start of the machine.
    boot: [u64; 2],
    /// Derived from the hash key.
    key: u64,
    flows_max: u64,
    /// Drawn when the flows began.
    pair: u64,
}

/// Flows of which peers have not been told yet, at most, of either kind.
const NEWS: usize = 1 << 16;

/// Changes of services are written behind all of them until they are as many bytes, or so many.
const CHANGES_BYTES_MIN: usize = 1 << 16;

const MAGIC: u64 = u64::from_le_bytes(*b"weirflow");
/// Of both files. To be counted up when either changes, or what is in it.
const LAYOUT: u64 = 7;
/// The word of the header that is changed again and again; what is in front of it is never.
const ALIVE: usize = 7;
/// Words of the header: a page.
const HEADER_WORDS: usize = 512;

impl Memory {
    /// Takes the directory, and what is in it if that can be believed: the tables of the process
    /// before, to go on from. `empty` has no services, and the key of this configuration.
    pub(crate) fn open(
        directory: &Path,
        flows_max: u32,
        empty: &Tables,
    ) -> Result<(Self, Option<Tables>), MemoryError> {
        let failed = |path: &Path, source| MemoryError::Io { path: path.into(), source };
        let create = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        create.map_err(|source| failed(directory, source))?;
        let lock = directory.join("lock");
        let lock = open(&lock).map_err(|source| failed(&lock, source))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| MemoryError::InUse(directory.into()))?;
        let ours = Identity {
            boot: boot().map_err(|source| failed(Path::new(BOOT_ID), source))?,
            key: key(empty),
            flows_max: flows_max.into(),
            pair: 0,
        };
        let path = directory.join("flows");
        let as_failed = |source| failed(&path, source);
        let before = before(directory, &ours).map_err(|refused| {
            warn!("{}: {refused}; nothing is remembered of earlier flows", directory.display());
        });
        let before = before.ok().flatten();
        let pair = if let Some(before) = &before {
            before.pair
        } else {
            remove(&path).map_err(as_failed)?;
            now().0 ^ u64::from(std::process::id()) << 40
        };
        let identity = Identity { pair, ..ours };
        let words = HEADER_WORDS + Tracker::words(flows_max);
        let file = open(&path).map_err(as_failed)?;
        let memory = dpdk::map_words(&file, words).map_err(as_failed)?;
        let (header, flows) = memory.split_at(HEADER_WORDS);
        write_header(header, &identity);
        let alive =
            header.get(ALIVE).ok_or_else(|| as_failed(io::ErrorKind::OutOfMemory.into()))?;
        let last_alive = before.as_ref().map(|it| it.alive);
        let tracker = Tracker::over(flows, flows_max).map(|it| Arc::new(it.with_news(NEWS)));
        let tracker = tracker.ok_or_else(|| as_failed(io::ErrorKind::OutOfMemory.into()))?;
        let tables = before.and_then(|before| {
            let mut tables = empty.clone();
            tables.tracker = Arc::clone(&tracker);
            tables.resume(before.services)
        });
        if let Some(tables) = &tables {
            let moving = tables.services.iter().filter(|service| service.transitions.is_some());
            info!(
                "goes on from the process before: services {}, of which {} are in transition, \
                 tracked flows {}",
                tables.services.len(),
                moving.count(),
                tracker.len()
            );
        }
        let directory = directory.into();
        let (pools, wanted) = (Vec::new(), BTreeSet::new());
        let written = None;
        let memory = Self {
            directory,
            identity,
            tracker,
            pools,
            wanted,
            written,
            alive,
            last_alive,
            _lock: lock,
        };
        Ok((memory, tables))
    }

    /// How long there was no process until `started`, if there was one before whose memory this is.
    pub(crate) fn away(&self, started: Tick) -> Option<Duration> {
        self.last_alive.map(|alive| Duration::from_millis(started.0.saturating_sub(alive.0)))
    }

    /// We are here: to be said now and then.
    pub(crate) fn note_alive(&self) {
        self.alive.store(now().0, Ordering::Relaxed);
    }

    /// The tracked flows.
    pub(crate) fn tracker(&self) -> &Arc<Tracker> {
        &self.tracker
    }

    /// The pools of these prefixes, with the connections that they had.
    pub(crate) fn pools(&mut self, wanted: &BTreeSet<IpNet>) -> &[Arc<Pool>] {
        if self.wanted == *wanted {
            return &self.pools;
        }
        self.wanted.clone_from(wanted);
        self.pools.retain(|pool| wanted.contains(&pool.net()));
        if let Err(error) = pools::remove_others(&self.directory, wanted) {
            warn!("{}: {error}", self.directory.display());
        }
        for net in wanted {
            if self.pools.iter().all(|pool| pool.net() != *net) {
                match pools::open_pool(&self.directory, *net, &self.identity) {
                    Ok(pool) => self.pools.push(Arc::new(pool)),
                    Err(error) => {
                        let directory = self.directory.display();
                        warn!("{directory}: {error}; a restart will break connections of {net}");
                    }
                }
            }
        }
        &self.pools
    }

    /// Remembers what services are like: before a version of the tables is published.
    pub(crate) fn save(&mut self, tables: &Arc<Tables>) {
        let written = self.written.take().and_then(|written| written.followed_by(tables));
        let written = written.map_or_else(|| self.write(tables), Ok);
        self.written = written
            .inspect_err(|error| {
                let path = self.directory.join("services");
                warn!("{}: {error}; the next process will not go on from here", path.display());
            })
            .ok();
    }

    /// Writes all of it.
    fn write(&self, tables: &Arc<Tables>) -> io::Result<Written> {
        let new = self.directory.join("services.new");
        let services = tables.services.iter().map(|table| Remembered::new(table));
        let bytes = services::encode(&self.identity, services)?;
        remove(&new)?;
        let mut file = open(&new)?;
        file.write_all(&bytes)?;
        fs::rename(&new, self.directory.join("services"))?;
        let room = bytes.len().max(CHANGES_BYTES_MIN);
        Ok(Written { file, room, tables: Arc::clone(tables) })
    }
}

/// The file `services`, as it was written last.
#[derive(Debug)]
struct Written {
    file: File,
    /// Bytes of changes that it may get, until all of it is written again.
    room: usize,
    tables: Arc<Tables>,
}

impl Written {
    /// With what has changed. `None`: all of it is to be written.
    fn followed_by(mut self, tables: &Arc<Tables>) -> Option<Self> {
        let name = |table: &ServiceTable| table.source.spec().name.clone();
        let before = mem::replace(&mut self.tables, Arc::clone(tables));
        if before.services.len() != tables.services.len() {
            return None;
        }
        let both = before.services.iter().zip(&tables.services);
        let changed: Vec<_> = both.filter(|(old, new)| !Arc::ptr_eq(old, new)).collect();
        if changed.iter().any(|(old, new)| name(old) != name(new)) {
            return None;
        }
        if !changed.is_empty() {
            let changed = changed.iter().map(|(_, new)| Remembered::new(new));
            let bytes = services::encode_changed(changed).ok()?;
            self.room = self.room.checked_sub(bytes.len())?;
            self.file.write_all(&bytes).ok()?;
        }
        Some(self)
    }
}

/// What the process before has left.
struct Before {
    /// The name of the pair.
    pair: u64,
    services: Vec<Remembered>,
    /// When it said last that it was there.
    alive: Tick,
}

/// `None`: there was none.
fn before(directory: &Path, ours: &Identity) -> Result<Option<Before>, Refused> {
    let unreadable = |error: io::Error| Refused::Unreadable(error.kind());
    let flows = match File::options().read(true).write(true).open(directory.join("flows")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let flows_max = u32::try_from(ours.flows_max).unwrap_or(u32::MAX);
    let bytes = (HEADER_WORDS + Tracker::words(flows_max)) as u64 * 8;
    let length = flows.metadata().map_err(unreadable)?.len();
    if length < HEADER_WORDS as u64 * 8 {
        return Err(Refused::Damaged);
    }
    let header = dpdk::map_words(&flows, HEADER_WORDS).map_err(unreadable)?;
    let theirs = read_header(header)?;
    theirs.check(ours)?;
    if length != bytes {
        return Err(Refused::Damaged);
    }
    let bytes = fs::read(directory.join("services")).map_err(unreadable)?;
    let (identity, services) = services::decode(&bytes)?;
    identity.check(ours)?;
    if identity != theirs {
        return Err(Refused::Pair);
    }
    let alive = header.get(ALIVE).map_or(0, |word| word.load(Ordering::Relaxed));
    Ok(Some(Before { pair: identity.pair, services, alive: Tick(alive) }))
}

impl Identity {
    /// Is it of this configuration on this start of the machine?
    fn check(&self, ours: &Self) -> Result<(), Refused> {
        if self.boot != ours.boot {
            return Err(Refused::Boot);
        }
        if self.key != ours.key {
            return Err(Refused::HashKey);
        }
        if self.flows_max != ours.flows_max {
            return Err(Refused::FlowsMax);
        }
        Ok(())
    }
}

fn write_header(header: &[AtomicU64], identity: &Identity) {
    let Identity { boot: [a, b], key, flows_max, pair } = *identity;
    for (word, value) in header.iter().zip([MAGIC, LAYOUT, a, b, key, flows_max, pair]) {
        word.store(value, Ordering::Relaxed);
    }
}

fn read_header(header: &[AtomicU64]) -> Result<Identity, Refused> {
    let words: Vec<u64> = header.iter().map(|word| word.load(Ordering::Relaxed)).collect();
    match words[..] {
        [MAGIC, LAYOUT, a, b, key, flows_max, pair, ..] => {
            Ok(Identity { boot: [a, b], key, flows_max, pair })
        }
        [MAGIC, ..] => Err(Refused::Version),
        _ => Err(Refused::Damaged),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The name of this start of the machine.
fn boot() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |digits: Option<&str>| digits.and_then(|it| u64::from_str_radix(it, 16).ok());
    match (half(digits.get(..16)), half(digits.get(16..32))) {
        (Some(high), Some(low)) => Ok([high, low]),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Says whether two processes hash flows alike, and not how.
pub(crate) fn key(tables: &Tables) -> u64 {
    tables.hasher.hash(&Tuple::default(), true)
}

/// The time that processes of one start of the machine have in common: since it was started.
pub(crate) fn now() -> Tick {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    time.unwrap_or_default().into()
}

#[cfg(test)]
mod tests;
