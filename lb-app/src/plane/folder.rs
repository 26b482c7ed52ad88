//! What a directory wants: `*.toml` has services; `SERVICE.endpoints` has the backends of one, a line each.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::proto::{Document, Endpoint, EndpointState, Endpoints};

/// How often the directory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Files that are read, at most.
const FILES_MAX: usize = 100_000;
/// Bytes of one of them, at most.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Why a directory is not served. What was served before, is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} has more than {FILES_MAX} files", .0.display())]
    TooMany(PathBuf),
    #[error("{} is longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("{}:{line}: write `ADDRESS[:PORT] [weight=N] [drain]`, not {text:?}", path.display())]
    Endpoint { path: PathBuf, line: usize, text: String },
}

/// All that is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// Of all of it: made of the contents, so that it is the same after a restart.
    pub(crate) version: String,
    /// By name.
    pub(crate) documents: Vec<Document>,
    /// By service.
    pub(crate) endpoints: Vec<Endpoints>,
}

/// Reads the directory.
pub(crate) fn read(folder: &Path) -> Result<Contents, FolderError> {
    let mut contents = Contents::default();
    let mut versions = String::new();
    for path in looked_at(folder)?.into_keys() {
        let text = fs::read_to_string(&path)
            .map_err(|source| FolderError::Unreadable { path: path.clone(), source })?;
        let (Some(name), Some(stem)) = (name(&path), path.file_stem()) else { continue };
        let version = version_of(&text);
        versions.extend([&name, ":", &version, "\n"].map(String::from));
        if path.extension().is_some_and(|it| it == "toml") {
            contents.documents.push(Document { name, version, text });
        } else {
            let service = stem.to_string_lossy().into_owned();
            contents.endpoints.push(Endpoints { service, version, endpoints: list(&path, &text)? });
        }
    }
    contents.version = version_of(&versions);
    Ok(contents)
}

/// Shows what the directory has, and each change of it. Never ends while somebody looks.
pub(crate) async fn watch_folder(folder: PathBuf, shown: watch::Sender<Arc<Contents>>) {
    let (mut seen, mut complained) = (BTreeMap::new(), String::new());
    while !shown.is_closed() {
        let newest = looked_at(&folder);
        let read = match newest {
            Ok(files) if files == seen => None,
            Ok(files) => {
                seen = files;
                Some(read(&folder))
            }
            Err(error) => Some(Err(error)),
        };
        match read {
            Some(Ok(contents)) if contents != **shown.borrow() => {
                info!("version {}: {} files", contents.version, seen.len());
                complained.clear();
                shown.send_replace(Arc::new(contents));
            }
            Some(Err(error)) if error.to_string() != complained => {
                complained = error.to_string();
                warn!("{complained}; what was there before is served");
            }
            _ => {}
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// The files that count, and what shows that they have changed.
fn looked_at(folder: &Path) -> Result<BTreeMap<PathBuf, (u64, Option<SystemTime>)>, FolderError> {
    let unreadable = |source| FolderError::Unreadable { path: folder.into(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_ours = path.extension().is_some_and(|it| it == "toml" || it == "endpoints");
        // One that goes while we look is gone.
        let Some(found) = fs::metadata(&path).ok().filter(|it| is_ours && it.is_file()) else {
            continue;
        };
        if found.len() > FILE_BYTES_MAX {
            return Err(FolderError::TooLong(path));
        }
        if files.len() == FILES_MAX {
            return Err(FolderError::TooMany(folder.into()));
        }
        files.insert(path, (found.len(), found.modified().ok()));
    }
    Ok(files)
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// Another text has another one: its checksum and its length.
fn version_of(text: &str) -> String {
    format!("{:08x}-{}", crc32fast::hash(text.as_bytes()), text.len())
}

/// The endpoints of a file; empty lines and what follows a '#' say nothing.
fn list(path: &Path, text: &str) -> Result<Vec<Endpoint>, FolderError> {
    let mut endpoints = Vec::new();
    for (place, line) in text.lines().enumerate() {
        let said = line.split('#').next().unwrap_or_default();
        let mut words = said.split_whitespace();
        let Some(address) = words.next() else { continue };
        let wrong = || FolderError::Endpoint {
            path: path.into(),
            line: place + 1,
            text: line.chars().take(80).collect(),
        };
        let mut endpoint = address_of(address).ok_or_else(wrong)?;
        for word in words {
            match word.strip_prefix("weight=") {
                Some(weight) => endpoint.weight = Some(weight.parse().map_err(|_| wrong())?),
                None if word == "drain" => endpoint.state = EndpointState::Drain.into(),
                None => return Err(wrong()),
            }
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn address_of(text: &str) -> Option<Endpoint> {
    let (address, port): (IpAddr, u16) = match text.parse::<SocketAddr>() {
        Ok(both) => (both.ip(), both.port()),
        Err(_) => (text.parse().ok()?, 0),
    };
    let address = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Some(Endpoint { address, port: port.into(), ..Endpoint::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_documents_and_endpoints() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("web.toml", "# nothing");
        write("web.endpoints", "10.0.0.11:80 weight=3\n\n# more\n[fd00::11]:81 drain\nfd00::12");
        write("notes.txt", "not ours");
        let contents = read(folder.path()).unwrap();
        assert_eq!(contents.documents[0].name, "web.toml");
        let [web] = &contents.endpoints[..] else { panic!("{contents:?}") };
        let shown: Vec<_> = web
            .endpoints
            .iter()
            .map(|it| (it.address.len(), it.port, it.weight, it.state))
            .collect();
        assert_eq!(web.service, "web");
        assert_eq!(shown, [(4, 80, Some(3), 0), (16, 81, None, 1), (16, 0, None, 0)]);
        assert_eq!(read(folder.path()).unwrap(), contents, "the same is of the same version");
        write("web.endpoints", "10.0.0.11 weigth=3");
        let wrong = read(folder.path()).unwrap_err().to_string();
        assert!(wrong.contains("web.endpoints:1: write `ADDRESS[:PORT]"), "{wrong}");
        write("web.endpoints", "");
        assert_ne!(read(folder.path()).unwrap().version, contents.version);
    }
}
