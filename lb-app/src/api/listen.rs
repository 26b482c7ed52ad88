//! The socket: made so that there is no moment in which others may use it, and taken away at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lb_config::ApiAddress;
use tokio::net::{TcpListener, UnixListener};

use super::ApiError;

/// Root and its group may use the socket: who reaches the API may change everything.
const SOCKET_MODE: u32 = 0o660;
const DIRECTORY_MODE: u32 = 0o755;

/// Where clients come in.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
}

/// A socket's file that is ours. Dropping it removes it, if it is still there.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Listens. To be called within a runtime.
    pub(crate) fn open(address: &ApiAddress) -> Result<Self, ApiError> {
        let failed = |source| ApiError::Listen { address: address.clone(), source };
        match address {
            ApiAddress::Unix(path) => {
                make_way(path, failed)?;
                unix(path).map_err(failed)
            }
            ApiAddress::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                TcpListener::from_std(listener).map(Self::Tcp).map_err(failed)
            }
        }
    }
}

/// Refuses what is somebody else's. A socket that nobody listens to was left behind.
fn make_way(path: &Path, failed: impl Fn(io::Error) -> ApiError) -> Result<(), ApiError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(ApiError::NotASocket(path.into())),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
            // It is there; or so busy that it has no room for another.
            _ => Err(ApiError::SocketInUse(path.into())),
        },
    }
}

/// Under another name first: it has its name, in place of one that was left behind, only when it has
/// its mode.
fn unix(path: &Path) -> io::Result<Listener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new); // of a process that had our number, and died just here
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(SOCKET_MODE))?;
    let identity = identity(&new)?;
    fs::rename(&new, path)?;
    Ok(Listener::Unix { listener, _file: SocketFile { path: path.into(), identity } })
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have come since.
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path); // at the end there is nobody to tell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Listener, ApiError> {
        Listener::open(&ApiAddress::Unix(path.into()))
    }

    #[tokio::test]
    async fn a_socket_is_roots_and_its_groups_and_goes_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/weir.sock");
        let listener = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let refused = open(&path).unwrap_err().to_string();
        assert!(refused.contains("weir.sock is in use by another process"), "{refused}");
        drop(listener);
        assert!(!path.exists());
        drop(open(&path).unwrap());
    }

    #[tokio::test]
    async fn what_was_left_behind_is_replaced_and_what_is_no_socket_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as after a crash");
        let ours = open(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        // Somebody has put another in its place: that is not ours to remove.
        fs::remove_file(&path).unwrap();
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        let refused = open(&path).unwrap_err().to_string();
        assert!(refused.contains("is no socket; remove it"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_port_in_use_is_said() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Listener::open(&ApiAddress::Tcp(address)).unwrap_err().to_string();
        assert!(refused.contains(&format!("at {address}: Address already in use")), "{refused}");
    }
}
