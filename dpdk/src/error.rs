//! A DPDK call that failed, and the two ways in which DPDK says so.

use std::{ffi::c_int, fmt, ptr::NonNull};

use dpdk_sys as sys;
use nix::errno::Errno;

use crate::log::Log;

/// A DPDK function failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CallError {
    /// The function.
    pub call: &'static str,
    /// What it returned.
    pub errno: Errno,
    /// What EAL or the driver logged about it.
    pub cause: Option<String>,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The cause goes first: drivers fail with -1 for want of an errno, which reads `EPERM`.
        let why = self.cause.as_deref().unwrap_or(self.errno.desc());
        write!(f, "{why} ({}: {:?})", self.call, self.errno)
    }
}

/// A DPDK call under way. Made before the call, so that what is logged meanwhile is the cause.
pub(crate) struct Call {
    name: &'static str,
    log: &'static Log,
    start: u64,
}

impl Call {
    pub(crate) fn new(name: &'static str, log: &'static Log) -> Self {
        Self { name, log, start: log.now() }
    }

    /// For functions that return a negative errno.
    pub(crate) fn negative_errno(self, ret: c_int) -> Result<c_int, CallError> {
        if ret < 0 { Err(self.failed(ret.saturating_neg())) } else { Ok(ret) }
    }

    /// For functions that return -1 and set `rte_errno`.
    pub(crate) fn rte_errno(self, ret: c_int) -> Result<c_int, CallError> {
        if ret < 0 { Err(self.failed(rte_errno())) } else { Ok(ret) }
    }

    /// For functions that return null and set `rte_errno`.
    pub(crate) fn non_null<T>(self, ret: *mut T) -> Result<NonNull<T>, CallError> {
        NonNull::new(ret).ok_or_else(|| self.failed(rte_errno()))
    }

    fn failed(self, errno: c_int) -> CallError {
        CallError {
            call: self.name,
            errno: Errno::from_raw(errno),
            cause: self.log.cause_since(self.start),
        }
    }
}

fn rte_errno() -> c_int {
    // SAFETY: reads a thread-local variable.
    unsafe { sys::shim_errno() }
}
