//! What a feed has told last that is in force, for the process that comes next: its control plane may be away
//! then. A checksum (CRC-32, little-endian), and one message.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_config::FeedKind;
use prost::{DecodeError, Message};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// Writing down what is in force takes one part in so many of the time, at most.
const SAVE_SHARE: u32 = 50;
const SAVE_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Why it is not known what was told before.
#[derive(Debug, thiserror::Error)]
enum SavedError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error("it is damaged: its checksum is not that of its bytes")]
    Damaged,
    #[error("it is of another release: {0}")]
    Foreign(#[from] DecodeError),
}

/// See above; and when it is written.
#[derive(Debug)]
pub(super) struct SavedFeed<M> {
    path: PathBuf,
    /// What control was offered last, as it is written down; absent: it was not time to.
    snapshot: Option<M>,
    /// What is in force is not written down.
    is_behind: bool,
    next: Instant,
}

impl<M: Message + Default> SavedFeed<M> {
    /// Of the feed of that name; what kinds tell is no message of another.
    pub(super) fn new(state_dir: &Path, kind: FeedKind, feed: &str) -> Self {
        let name = match kind {
            FeedKind::Grpc => format!("feed-{feed}"),
            FeedKind::Xds => format!("xds-{feed}"),
        };
        let (path, next) = (state_dir.join(name), Instant::now());
        Self { path, snapshot: None, is_behind: false, next }
    }

    /// What cannot be read is said, and nothing is known.
    pub(super) fn read(&self) -> Option<M> {
        let read = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            read => read.map_err(SavedError::from).and_then(|bytes| decode(&bytes)),
        };
        read.inspect_err(|error| warn!("{}: {error}; it is not used", self.path.display())).ok()
    }

    /// A state is offered. While those follow each other there is no other time to see what it is.
    pub(super) fn offered(&mut self, snapshot: impl FnOnce() -> M) {
        self.snapshot = (self.next <= Instant::now()).then(snapshot);
    }

    /// What was offered last is in force, or not.
    pub(super) fn concluded(&mut self, is_in_force: bool) {
        let snapshot = self.snapshot.take();
        if is_in_force {
            self.is_behind = true;
            if let Some(snapshot) = snapshot {
                self.write(&snapshot);
            }
        }
    }

    /// Comes when what is in force is to be written down.
    pub(super) async fn is_due(&self) {
        if !self.is_behind {
            std::future::pending::<()>().await;
        }
        sleep_until(self.next).await;
    }

    /// The call is over: nothing more comes that could be waited for.
    pub(super) fn settle(&mut self, state: impl FnOnce() -> M) {
        if self.is_behind {
            self.write(&state());
        }
    }

    /// Writes down what is in force.
    pub(super) fn write(&mut self, state: &M) {
        let start = Instant::now();
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let written = fs::write(&new, encode(state)).and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = written {
            warn!("{}: {error}; the next process will have to ask", self.path.display());
        }
        self.is_behind = false;
        let pause = (start.elapsed() * SAVE_SHARE).max(SAVE_INTERVAL_MIN);
        self.next = Instant::now() + pause;
    }
}

fn encode(state: &impl Message) -> Vec<u8> {
    let message = state.encode_to_vec();
    let checksum = crc32fast::hash(&message).to_le_bytes();
    [checksum.as_slice(), &message].concat()
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, SavedError> {
    let (checksum, message) = bytes.split_first_chunk().ok_or(SavedError::Damaged)?;
    if crc32fast::hash(message) != u32::from_le_bytes(*checksum) {
        return Err(SavedError::Damaged);
    }
    Ok(M::decode(message)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::FeedUpdate;

    #[test]
    fn what_is_damaged_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = SavedFeed::<FeedUpdate>::new(folder.path(), FeedKind::Grpc, "prod");
        assert_eq!(saved.read(), None, "there is no file yet");
        let state = FeedUpdate { version: "v1".into(), full: true, ..FeedUpdate::default() };
        saved.write(&state);
        assert_eq!(saved.read(), Some(state));
        let path = folder.path().join("feed-prod");
        let good = fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(saved.read(), None, "another byte at {place}");
            fs::write(&path, &good[..place]).unwrap();
            assert_eq!(saved.read(), None, "{place} bytes of it");
        }
    }
}
