//! The files `pool-*`: the connections of `fullnat`, behind a header.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use ipnet::IpNet;
use lb_core::pool::Pool;
use tracing::{info, warn};

use super::{HEADER_WORDS, Identity, Refused, open, read_header, remove, write_header};

const PREFIX: &str = "pool-";

fn name(net: IpNet) -> String {
    format!("{PREFIX}{}-{}", net.network(), net.prefix_len())
}

/// Removes the files of pools that are not wanted any more.
pub(super) fn remove_others(directory: &Path, wanted: &BTreeSet<IpNet>) -> io::Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(|net| name(*net)).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && !wanted.contains(&name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The pool that the process before has left, if that can be believed; else a new one, with its file.
pub(super) fn open_pool(directory: &Path, net: IpNet, ours: &Identity) -> io::Result<Pool> {
    // Neither the number of tracked flows nor whose files those are makes a difference.
    let ours = Identity { flows_max: 0, pair: 0, ..*ours };
    let path = directory.join(name(net));
    let words = HEADER_WORDS + Pool::words(net);
    match is_from_before(&path, words, &ours) {
        Ok(true) => info!("pool {net} goes on from the process before"),
        Ok(false) => {}
        Err(refused) => {
            warn!("{}: {refused}; nothing is remembered of its connections", path.display());
            remove(&path)?;
        }
    }
    let memory = dpdk::map_words(&open(&path)?, words)?;
    let (header, entries) = memory.split_at(HEADER_WORDS);
    write_header(header, &ours);
    Pool::over(net, entries).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn is_from_before(path: &Path, words: usize, ours: &Identity) -> Result<bool, Refused> {
    let unreadable = |error: io::Error| Refused::Unreadable(error.kind());
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(unreadable)?,
    };
    if file.metadata().map_err(unreadable)?.len() != words as u64 * 8 {
        return Err(Refused::Damaged);
    }
    let header = dpdk::map_words(&file, HEADER_WORDS).map_err(unreadable)?;
    read_header(header)?.check(ours)?;
    Ok(true)
}
