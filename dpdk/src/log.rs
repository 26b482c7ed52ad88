//! What EAL and the drivers say: kept in memory instead of sprayed over the terminal.

use std::{
    collections::VecDeque,
    ffi::{c_char, c_int, c_void},
    fmt,
    io::{self, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dpdk_sys as sys;

use crate::eal::PROGRAM_NAME;

/// Lines kept; older ones are lost.
const LINES_MAX: usize = 512;
/// Bytes of one line; the rest of a longer one is lost.
const LINE_BYTES_MAX: usize = 1024;

/// Parts of lines that `net_tap` logs as errors before it goes on without: it wants a queueing
/// discipline for `rte_flow`, and to tell secondary processes, of which there are none.
const HARMLESS: [&str; 5] = [
    "Specified qdisc kind is unknown",
    "Could not add multiq qdisc",
    "failed to create multiq qdisc",
    "Disabling rte flow support",
    "Failed to send start req to secondary",
];

/// How much a line matters, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// Worth knowing.
    Notice,
    /// What goes on.
    Info,
    /// Everything.
    Debug,
}

impl LogLevel {
    /// DPDK's number for it, as `--log-level` takes it.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Error => sys::RTE_LOG_ERR,
            Self::Warning => sys::RTE_LOG_WARNING,
            Self::Notice => sys::RTE_LOG_NOTICE,
            Self::Info => sys::RTE_LOG_INFO,
            Self::Debug => sys::RTE_LOG_DEBUG,
        }
    }

    fn from_number(number: c_int) -> Self {
        match u32::try_from(number).unwrap_or(0) {
            0..=sys::RTE_LOG_ERR => Self::Error,
            sys::RTE_LOG_WARNING => Self::Warning,
            sys::RTE_LOG_NOTICE => Self::Notice,
            sys::RTE_LOG_INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// One line of EAL's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// What it says, without the line's end.
    pub text: String,
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The last lines, numbered in the order of their coming.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<LogLine>,
    /// The number of the first line kept.
    first: u64,
    /// The number of the first line that [`Log::drain`] has not given out.
    undrained: u64,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl Log {
    /// Makes EAL log into a buffer that lives as long as the process: EAL's threads never end.
    /// `None`, if the C library has no memory for a stream.
    pub(crate) fn install() -> Option<&'static Self> {
        let log: &'static Self = Box::leak(Box::default());
        let cookie = (&raw const *log).cast_mut().cast();
        // SAFETY: `logged` and `printed` take the cookie for a `&'static Log`, which it is.
        let ret = unsafe { sys::shim_log_to(cookie, Some(logged), Some(printed)) };
        (ret == 0).then_some(log)
    }

    /// A point in time, for [`Log::cause_since`].
    pub(crate) fn now(&self) -> u64 {
        self.lock().next()
    }

    /// The most telling line since `start`: the first error, else the first warning. What follows
    /// is what the callers of the failed function say, one after the other.
    pub(crate) fn cause_since(&self, start: u64) -> Option<String> {
        let lines = self.lock();
        let skip = usize::try_from(start.saturating_sub(lines.first)).unwrap_or(usize::MAX);
        lines
            .kept
            .iter()
            .skip(skip)
            .filter(|line| line.level <= LogLevel::Warning)
            .min_by_key(|line| line.level)
            .map(|line| line.text.clone())
    }

    /// The lines that were not given out before.
    pub(crate) fn drain(&self) -> Vec<LogLine> {
        let mut lines = self.lock();
        let skip = lines.undrained.saturating_sub(lines.first);
        lines.undrained = lines.next();
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        lines.kept.iter().skip(skip).cloned().collect()
    }

    /// Adds a line of our own.
    pub(crate) fn say(&self, level: LogLevel, text: String) {
        self.lock().push(LogLine { level, text });
    }

    /// Takes text that need not begin or end where lines do.
    fn write(&self, level: LogLevel, bytes: &[u8]) {
        let mut lines = self.lock();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LINE_BYTES_MAX.saturating_sub(lines.partial.len());
            lines.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                let text = String::from_utf8_lossy(&lines.partial).trim().to_owned();
                lines.partial.clear();
                if !text.is_empty() {
                    let harmless = HARMLESS.iter().any(|part| text.contains(part));
                    let level = if harmless { LogLevel::Debug } else { level };
                    lines.push(LogLine { level, text });
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn next(&self) -> u64 {
        self.first + self.kept.len() as u64
    }

    fn push(&mut self, line: LogLine) {
        if self.kept.len() == LINES_MAX {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back(line);
    }
}

/// The write function of EAL's log stream.
///
/// # Safety
///
/// 1. `cookie` is a `&'static Log`.
/// 2. `text` is `len` bytes.
unsafe extern "C" fn logged(cookie: *mut c_void, text: *const c_char, len: usize) -> isize {
    // SAFETY: reads a thread-local variable.
    let level = unsafe { sys::rte_log_cur_msg_loglevel() };
    // SAFETY: our own obligations.
    let (log, bytes) = unsafe { arguments(cookie, text, len) };
    if u32::try_from(level).is_ok_and(|level| level <= sys::RTE_LOG_CRIT) {
        // EAL is about to abort the process: nobody will read the log any more.
        let _ = io::stderr().write_all(bytes);
    }
    log.write(LogLevel::from_number(level), bytes);
    len.cast_signed()
}

/// The write function of the stream that stands in for stderr.
///
/// # Safety
///
/// As for [`logged`].
unsafe extern "C" fn printed(cookie: *mut c_void, text: *const c_char, len: usize) -> isize {
    // SAFETY: our own obligations.
    let (log, bytes) = unsafe { arguments(cookie, text, len) };
    let getopt = bytes.starts_with(PROGRAM_NAME.as_bytes());
    log.write(if getopt { LogLevel::Error } else { LogLevel::Warning }, bytes);
    len.cast_signed()
}

/// # Safety
///
/// As for [`logged`]; and the bytes stay as they are while the result is used.
unsafe fn arguments<'a>(
    cookie: *mut c_void,
    text: *const c_char,
    len: usize,
) -> (&'static Log, &'a [u8]) {
    // SAFETY: obligation 1.
    let log = unsafe { &*cookie.cast::<Log>() };
    // SAFETY: obligation 2.
    (log, unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: LogLevel, text: &str) -> LogLine {
        LogLine { level, text: text.to_owned() }
    }

    #[test]
    fn lines_are_joined_split_and_given_out_once() {
        let log = Log::default();
        log.write(LogLevel::Info, b"EAL: one");
        assert_eq!(log.drain(), []);
        log.write(LogLevel::Info, b" line\n\nEAL: another\nhal");
        assert_eq!(
            log.drain(),
            [line(LogLevel::Info, "EAL: one line"), line(LogLevel::Info, "EAL: another")]
        );
        log.write(LogLevel::Error, b"f\n");
        assert_eq!(log.drain(), [line(LogLevel::Error, "half")]);
        assert_eq!(log.drain(), []);
    }

    #[test]
    fn the_cause_is_the_first_error_since_then() {
        let log = Log::default();
        log.write(LogLevel::Error, b"before\n");
        let start = log.now();
        assert_eq!(log.cause_since(start), None);
        log.write(LogLevel::Warning, b"a warning\n");
        assert_eq!(log.cause_since(start).as_deref(), Some("a warning"));
        log.write(LogLevel::Error, b"the reason\nits consequence\n");
        assert_eq!(log.cause_since(start).as_deref(), Some("the reason"));
    }

    #[test]
    fn the_log_is_bounded() {
        let log = Log::default();
        let start = log.now();
        for i in 0..2 * LINES_MAX {
            log.write(LogLevel::Info, format!("{i}\n").as_bytes());
        }
        log.write(LogLevel::Error, &[b'x'; 2 * LINE_BYTES_MAX]);
        log.write(LogLevel::Error, b"\n");
        let lines = log.drain();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines[LINES_MAX - 1].text.len(), LINE_BYTES_MAX);
        assert!(log.cause_since(start).is_some());
    }
}
