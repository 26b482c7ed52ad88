//! Rights that the process gives up when it has started.
//!
//! Devices, huge pages and namespaces take rights that nothing needs any more afterwards. Linux keeps rights
//! for each thread, and lets nobody change another thread's; by then EAL and drivers have threads of their
//! own. So every thread is sent a signal, in whose handler it gives up its rights itself. (glibc does the same
//! for user ids, but not for capabilities.) That it has is read from `/proc`: the kernel is the judge.

use std::fs;
use std::io;
use std::mem::size_of;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, pid_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::getpid;
use thiserror::Error;

/// To listen at ports below 1024 (linux/capability.h).
pub const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
/// To change interfaces, addresses, routes and neighbours (linux/capability.h).
pub const CAP_NET_ADMIN: u64 = 1 << 12;
/// To open raw and packet sockets (linux/capability.h).
pub const CAP_NET_RAW: u64 = 1 << 13;

/// By default it is ignored, so that one too many does no harm. No driver uses it.
const SIGNAL: Signal = Signal::SIGURG;
/// How long all threads together may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long they are given before they are looked at again.
const PAUSE: Duration = Duration::from_millis(1);
/// As many as the bits of a mask; the kernel says no where there are fewer.
const CAPABILITIES: c_long = 64;
/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h): masks of 64 bits, in halves.
const VERSION_3: u32 = 0x2008_0522;

/// Why rights are not given up. Some threads may have given up theirs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrivilegesError {
    /// The kernel does not say what rights threads have.
    #[error("cannot see which privileges threads have: {0}; is /proc there?")]
    Unknown(io::Error),
    /// A thread cannot be told.
    #[error("cannot tell a thread to give up its privileges: {0}")]
    Signal(#[from] Errno),
    /// A thread has not given up its own: it blocks the signal, or may not.
    #[error("the thread {name:?} does not give up its privileges")]
    Kept {
        /// Its name.
        name: String,
    },
}

/// Gives up, in every thread, all capabilities but `KEPT` (a sum of `CAP_*`), and the ways to any others:
/// programs that are run have none (`no_new_privs`; the bounding and the inheritable set are empty). What the
/// process has not got it does not get. Threads that begin later have what the one has that starts them.
///
/// Each thread is interrupted once by SIGURG; system calls that can be are begun again.
///
/// # Errors
/// [`PrivilegesError`], if not every thread has given up its rights within two seconds.
///
/// # Source
/// capabilities(7), prctl(2), signal-safety(7).
pub fn keep_capabilities<const KEPT: u64>() -> Result<(), PrivilegesError> {
    let _handled = Handled::by(give_up::<KEPT>)?;
    let deadline = Instant::now() + PATIENCE;
    // One that a thread starts which has rights has them, too: until none is left that has.
    loop {
        let mut left = None;
        for thread in threads().map_err(PrivilegesError::Unknown)? {
            // `None`: it has ended.
            let Some(status) = status(thread).map_err(PrivilegesError::Unknown)? else { continue };
            if !has_given_up(&status, KEPT) {
                tell(thread)?;
                left = Some(status);
            }
        }
        let Some(status) = left else { return Ok(()) };
        if Instant::now() > deadline {
            let name = field(&status, "Name").unwrap_or_default().to_owned();
            return Err(PrivilegesError::Kept { name });
        }
        thread::sleep(PAUSE);
    }
}

/// While it lives, the signal has this handler.
struct Handled {
    before: SigAction,
}

impl Handled {
    fn by(handler: extern "C" fn(c_int)) -> Result<Self, Errno> {
        let handler = SigHandler::Handler(handler);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the only handler is `give_up`, which does nothing but system calls, with memory of its own
        // stack, and leaves `errno` as it was: it may interrupt anything (signal-safety(7)).
        let before = unsafe { sigaction(SIGNAL, &action) }?;
        Ok(Self { before })
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        // SAFETY: it is what was there before, and is put back into the process that had it.
        let _ = unsafe { sigaction(SIGNAL, &self.before) };
    }
}

/// The ids of this process's threads.
fn threads() -> io::Result<Vec<pid_t>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        threads.extend(entry?.file_name().to_str().and_then(|name| name.parse::<pid_t>().ok()));
    }
    Ok(threads)
}

/// What the kernel says of a thread; `None`: it has ended.
fn status(thread: pid_t) -> io::Result<Option<String>> {
    match fs::read_to_string(format!("/proc/self/task/{thread}/status")) {
        Ok(status) => Ok(Some(status)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).map(str::trim)
}

/// The bounding set is not looked at: where it may not be changed, `no_new_privs` makes it meaningless.
fn has_given_up(status: &str, kept: u64) -> bool {
    let is_within = |name, most: u64| {
        let mask = field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
        mask.is_some_and(|mask| mask & !most == 0)
    };
    is_within("CapPrm", kept)
        && is_within("CapEff", kept)
        && is_within("CapInh", 0)
        && field(status, "NoNewPrivs") == Some("1")
}

/// Sends the signal to one thread of this process.
fn tell(thread: pid_t) -> Result<(), Errno> {
    let (process, signal) = (getpid().as_raw(), SIGNAL as c_int);
    // SAFETY: takes numbers only; it can only meet a thread of this process, which has a handler.
    let told = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    match Errno::result(told) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()), // it may have ended
        Err(errno) => Err(errno),
    }
}

/// `cap_user_header_t`
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// `cap_user_data_t`: one half of each mask, the lower first.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const _: () = assert!(size_of::<Header>() == 8 && size_of::<[Half; 2]>() == 24);

/// The handler. Whoever waits for it sees what it could not do: nothing is returned.
extern "C" fn give_up<const KEPT: u64>(_: c_int) {
    let errno = Errno::last_raw();
    for capability in 0..CAPABILITIES {
        prctl(libc::PR_CAPBSET_DROP, capability);
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    let header = Header { version: VERSION_3, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: `header` and `halves` are as the kernel wants them for this version, and outlive the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut halves) };
    if got == 0 {
        for (half, shift) in halves.iter_mut().zip([0, 32]) {
            #[expect(clippy::cast_possible_truncation, reason = "it is one half")]
            let kept = (KEPT >> shift) as u32;
            half.permitted &= kept;
            *half = Half { effective: half.permitted, inheritable: 0, ..*half };
        }
        // SAFETY: as above; the kernel only reads.
        unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const halves) };
    }
    Errno::set_raw(errno);
}

fn prctl(option: c_int, argument: c_long) {
    const NONE: c_long = 0;
    // SAFETY: the two options that this is called with take numbers only.
    unsafe {
        libc::syscall(libc::SYS_prctl, c_long::from(option), argument, NONE, NONE, NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_given_up_is_known_from_what_the_kernel_says() {
        let status = |masks: [&str; 3], no_new| {
            let [inheritable, permitted, effective] = masks;
            format!(
                "Name:\tw\nCapInh:\t{inheritable}\nCapPrm:\t{permitted}\nCapEff:\t{effective}\n\
                 CapBnd:\tff\nNoNewPrivs:\t{no_new}\n"
            )
        };
        for (masks, no_new, expect) in [
            (["0", "0", "0"], 1, true),
            (["0", "0000000000003000", "3000"], 1, true),
            (["0", "3000", "3000"], 0, false),
            (["1", "3000", "3000"], 1, false),
            (["0", "3001", "3000"], 1, false),
            (["0", "3000", "8000000000003000"], 1, false),
            (["0", "", "0"], 1, false),
        ] {
            let status = status(masks, no_new);
            assert_eq!(has_given_up(&status, CAP_NET_ADMIN | CAP_NET_RAW), expect, "{status}");
        }
        assert!(!has_given_up("", u64::MAX));
        let own = super::status(getpid().as_raw()).unwrap().unwrap();
        assert!(field(&own, "CapPrm").is_some_and(|mask| mask.len() == 16), "{own}");
    }
}
