//! What a feed has told last that is in force, for the process that comes next: its control plane may be away
//! then. One message of the protocol.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use tracing::warn;

use crate::api::proto::FeedUpdate;

/// See above.
#[derive(Clone, Debug)]
pub(super) struct SavedFeed(PathBuf);

impl SavedFeed {
    pub(super) fn new(state_dir: &Path, feed: &str) -> Self {
        Self(state_dir.join(format!("feed-{feed}")))
    }

    /// What cannot be read is said, and nothing is known.
    pub(super) fn read(&self) -> Option<FeedUpdate> {
        let read = match fs::read(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            read => read.and_then(|bytes| Ok(FeedUpdate::decode(&bytes[..])?)),
        };
        read.inspect_err(|error| warn!("{}: {error}; it is not used", self.0.display())).ok()
    }

    pub(super) fn write(&self, update: &FeedUpdate) {
        let mut new = self.0.as_os_str().to_owned();
        new.push(".new");
        let written =
            fs::write(&new, update.encode_to_vec()).and_then(|()| fs::rename(&new, &self.0));
        if let Err(error) = written {
            warn!("{}: {error}; the next process will have to ask", self.0.display());
        }
    }
}
