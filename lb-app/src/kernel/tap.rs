//! The exception TAP: an Ethernet interface of the kernel whose other end is ours.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Longest interface name, in bytes (`IFNAMSIZ` without its NUL).
const NAME_LEN_MAX: usize = 15;

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TapError {
    /// The kernel would not take this name for an interface.
    #[error(
        "{0:?} cannot name an interface; use 1 to {NAME_LEN_MAX} letters, digits, '-', '_' or '.'"
    )]
    Name(String),
    /// The port's name is that of an interface that is there already.
    #[error(
        "interface {0} exists already; rename the port, or delete it (`ip link del {0}`) \
         if another program left it behind"
    )]
    Exists(String),
    /// Not enough privileges.
    #[error("may not create interface {0}; run as root, or with CAP_NET_ADMIN")]
    Permission(String),
    /// The kernel cannot make TAPs.
    #[error("cannot create interface {0}: no /dev/net/tun; load the driver (`modprobe tun`)")]
    NoDriver(String),
    /// Anything else.
    #[error("cannot create interface {name}: {source}")]
    Open {
        /// The interface.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// One TAP. The interface lives as long as this value, and not longer than the process, however
/// that ends: it is not persistent.
///
/// Frames are plain Ethernet II with tags in place, without FCS, padding or any header in front,
/// checksums complete, and never longer than the interface's MTU asks for: the kernel segments
/// before it hands over. Reads and writes never block.
pub(crate) struct Tap {
    device: SyncDevice,
    name: String,
}

impl Tap {
    /// Makes the interface `name`; it is down and has no address yet.
    ///
    /// # Errors
    /// [`TapError`]; nothing is left behind then.
    pub(crate) fn open(name: &str) -> Result<Self, TapError> {
        Self::make(name, Layer::L2)
    }

    /// As [`Tap::open`], but frames are IP packets, without Ethernet.
    pub(crate) fn open_tun(name: &str) -> Result<Self, TapError> {
        Self::make(name, Layer::L3)
    }

    fn make(name: &str, layer: Layer) -> Result<Self, TapError> {
        check_name(name)?;
        // The driver would attach to a persistent TAP of that name instead of failing.
        match if_nametoindex(name) {
            Ok(_) => return Err(TapError::Exists(name.to_owned())),
            Err(Errno::ENODEV) => {}
            Err(errno) => {
                return Err(TapError::Open { name: name.to_owned(), source: errno.into() });
            }
        }
        let device = DeviceBuilder::new()
            .name(name)
            .layer(layer)
            .inherit_enable_state()
            .build_sync()
            .map_err(|error| explain(name, error))?;
        device.set_nonblocking(true).map_err(|error| explain(name, error))?;
        Ok(Self { device, name: name.to_owned() })
    }

    /// Name of the interface.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number of the interface.
    pub(crate) fn index(&self) -> Result<u32, TapError> {
        self.device.if_index().map_err(|error| explain(&self.name, error))
    }

    /// Takes a frame that the kernel sends; gives its length in bytes, or `None` where there is
    /// none. What does not fit `frame` is cut off: give it MTU + 22 bytes (Ethernet, two tags).
    ///
    /// # Errors
    /// `EBADFD` once somebody has deleted the interface; others do not come up.
    pub(crate) fn try_read(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.device.recv(frame) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands the kernel a frame.
    ///
    /// # Errors
    /// The kernel did not take the frame: `EIO` while the interface is down, `EBADFD` once
    /// somebody has deleted it, `EINVAL` for less than an Ethernet header, `EAGAIN` or `ENOBUFS`
    /// when it has no memory. The frame is lost: count it.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.device.send(frame) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Readable when the kernel has sent a frame.
impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("name", &self.name).finish_non_exhaustive()
    }
}

/// As `dev_valid_name()` of the kernel, but only what is safe in paths, `%`-patterns and shells.
fn check_name(name: &str) -> Result<(), TapError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let len_fits = (1..=NAME_LEN_MAX).contains(&name.len());
    if len_fits && name.chars().all(allowed) && name != "." && name != ".." {
        Ok(())
    } else {
        Err(TapError::Name(name.to_owned()))
    }
}

fn explain(name: &str, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => TapError::Permission(name),
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TapError::NoDriver(name),
        Some(Errno::EBUSY | Errno::EEXIST) => TapError::Exists(name),
        _ => TapError::Open { name, source: error },
    }
}
