//! DPDK's environment: memory, buses, drivers. One per process, and until the process ends.

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int},
    fmt, fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    process,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use dpdk_sys as sys;
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use thiserror::Error;

use crate::{
    error::{Call, CallError},
    log::{Log, LogLevel, LogLine},
    pool::Pools,
};

/// Where frames live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In huge pages of the system's, which must have enough free ones: see
    /// [`huge_pages_free_mb`]. Needs no mounted hugetlbfs.
    HugePages,
    /// In ordinary pages. Slower, and not for physical NICs.
    Ordinary,
}

/// How to start EAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EalConfig {
    /// Which pages to use.
    pub memory: Memory,
    /// How much to reserve, in MiB.
    pub memory_mb: u32,
    /// Look for PCI devices. None of them is touched before it is attached.
    pub pci: bool,
    /// The CPU for EAL's own threads (interrupts, alarms), which do little. `None` is the first
    /// CPU that the calling thread may use.
    pub main_cpu: Option<usize>,
    /// What to keep of EAL's log.
    pub log_level: LogLevel,
    /// Passed to EAL as they are, after the others.
    pub extra_args: Vec<String>,
}

impl Default for EalConfig {
    fn default() -> Self {
        Self {
            memory: Memory::Ordinary,
            memory_mb: 512,
            pci: false,
            main_cpu: None,
            log_level: LogLevel::Notice,
            extra_args: Vec::new(),
        }
    }
}

/// EAL cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EalError {
    /// It was started before in this process, whether it succeeded or not.
    #[error("DPDK can be started once in a process, and was before")]
    StartedBefore,
    /// An extra argument cannot be a C string.
    #[error("the EAL argument {0:?} contains a zero byte")]
    Argument(String),
    /// The main CPU cannot be used.
    #[error("CPU {cpu} is not among those that this process may use")]
    MainCpu {
        /// The CPU that was asked for.
        cpu: usize,
    },
    /// The system has too few free huge pages. Unlike after other errors, EAL can be started with
    /// other settings.
    #[error("{asked_mb} MiB in huge pages were asked for, but {free_mb} MiB are free")]
    HugePages {
        /// The memory asked for.
        asked_mb: u32,
        /// The memory in free huge pages.
        free_mb: u64,
    },
    /// The thread's CPU affinity cannot be read or set.
    #[error("the CPU affinity cannot be read or set: {0}")]
    Affinity(Errno),
    /// The C library has no memory for a stream.
    #[error("DPDK's log cannot be redirected")]
    Log,
    /// EAL says no.
    #[error(transparent)]
    Init(#[from] CallError),
}

/// DPDK is running.
///
/// A proof, not a resource: EAL cannot be started twice, and is never torn down, so that no frame
/// or pool can outlive it. It leaves nothing in the file system behind, however the process ends:
/// memory is anonymous, and the runtime directory is removed once EAL is up.
#[derive(Clone, Copy)]
pub struct Eal {
    shared: &'static Shared,
}

impl fmt::Debug for Eal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eal").finish_non_exhaustive()
    }
}

/// What all handles share, for as long as the process lives.
pub(crate) struct Shared {
    pub(crate) log: &'static Log,
    control: Mutex<()>,
    pub(crate) pools: Mutex<Pools>,
}

impl Eal {
    /// Starts EAL.
    ///
    /// The calling thread's CPU affinity is the same before and after, and so is its standard
    /// output: what EAL logs is kept for [`Eal::log_lines`] and for error messages.
    ///
    /// # Errors
    ///
    /// [`EalError`]. Once EAL itself has failed there is no second try in the same process, because
    /// it keeps half of the first one.
    pub fn start(config: &EalConfig) -> Result<Self, EalError> {
        static STARTED: AtomicBool = AtomicBool::new(false);

        let allowed = sched_getaffinity(THIS_THREAD).map_err(EalError::Affinity)?;
        let main_cpu = main_cpu(&allowed, config.main_cpu)?;
        let prefix = format!("dpdk-{}", process::id());
        let args = arguments(config, main_cpu, &prefix)?;
        let free_mb = huge_pages_free_mb();
        if config.memory == Memory::HugePages && free_mb < u64::from(config.memory_mb) {
            return Err(EalError::HugePages { asked_mb: config.memory_mb, free_mb });
        }
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(EalError::StartedBefore);
        }

        let log = Log::install().ok_or(EalError::Log)?;
        let pinned = Pinned::to(main_cpu, allowed)?;
        let started = init(args, log);
        drop(pinned);
        remove_runtime_dir(&prefix);
        started?;
        let shared = Shared { log, control: Mutex::default(), pools: Mutex::default() };
        Ok(Self { shared: Box::leak(Box::new(shared)) })
    }

    /// The lines that EAL and the drivers logged since the last time, at most the 512 newest.
    #[must_use]
    pub fn log_lines(&self) -> Vec<LogLine> {
        self.shared.log.drain()
    }

    /// The release of DPDK that is running, such as `DPDK 22.11.4`.
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: returns a string of static lifetime.
        let version = unsafe { sys::rte_version() };
        // SAFETY: as above; it ends in a zero.
        let version = unsafe { CStr::from_ptr(version) };
        version.to_string_lossy().into_owned()
    }

    pub(crate) fn shared(self) -> &'static Shared {
        self.shared
    }

    /// Allows to call what DPDK wants called by one thread at a time: all about devices but their
    /// queues.
    pub(crate) fn control(self) -> Control {
        let lock = self.shared.control.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: EAL runs, so the log is installed; one at a time, because of the lock.
        unsafe { sys::shim_divert_begin() };
        Control { _lock: lock }
    }

    pub(crate) fn call(self, name: &'static str) -> Call {
        Call::new(name, self.shared.log)
    }
}

/// How much free memory in huge pages the system has, in MiB, of all page sizes.
#[must_use]
pub fn huge_pages_free_mb() -> u64 {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    sizes
        .flatten()
        .filter_map(|size| {
            let name = size.file_name();
            let kb: u64 =
                name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages = fs::read_to_string(size.path().join("free_hugepages")).ok()?;
            Some(kb * pages.trim().parse::<u64>().ok()? / 1024)
        })
        .sum()
}

/// While it lives, nobody else is at the devices, and what C code prints goes into the log.
pub(crate) struct Control {
    _lock: MutexGuard<'static, ()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: diverted by `Eal::control`; the lock is still held.
        unsafe { sys::shim_divert_end() };
    }
}

/// What getopt puts before its complaints.
pub(crate) const PROGRAM_NAME: &str = "dpdk";

const THIS_THREAD: Pid = Pid::from_raw(0);

/// The calling thread runs on one CPU alone until this is dropped. EAL puts its own threads where
/// the thread that starts it may run.
struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn to(cpu: usize, before: CpuSet) -> Result<Self, EalError> {
        let mut only = CpuSet::new();
        only.set(cpu).map_err(EalError::Affinity)?;
        sched_setaffinity(THIS_THREAD, &only).map_err(EalError::Affinity)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Cannot fail: this was the thread's own affinity a moment ago. If CPUs went away
        // meanwhile, the kernel has already moved the thread.
        let _ = sched_setaffinity(THIS_THREAD, &self.before);
    }
}

fn main_cpu(allowed: &CpuSet, wanted: Option<usize>) -> Result<usize, EalError> {
    let usable = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    match wanted {
        Some(cpu) => Some(cpu).filter(usable).ok_or(EalError::MainCpu { cpu }),
        None => (0..CpuSet::count()).find(usable).ok_or(EalError::Affinity(Errno::ESRCH)),
    }
}

fn arguments(config: &EalConfig, main_cpu: usize, prefix: &str) -> Result<Vec<CString>, EalError> {
    let mut args: Vec<String> = vec![
        PROGRAM_NAME.to_owned(),
        // Logical core 0, whatever the CPU: DPDK has room for 128 of them.
        format!("--lcores=0@{main_cpu}"),
        format!("--file-prefix={prefix}"),
        format!("--log-level={}", config.log_level.number()),
        "--no-telemetry".to_owned(),
        "-m".to_owned(),
        config.memory_mb.to_string(),
    ];
    match config.memory {
        Memory::HugePages => args.push("--in-memory".to_owned()),
        Memory::Ordinary => args.extend(["--no-huge", "--no-shconf"].map(str::to_owned)),
    }
    if config.pci {
        // An allow list with no device in it: EAL would otherwise take every device that is bound
        // to a driver of its kind.
        args.push("--allow=0000:00:00.0".to_owned());
    } else {
        args.push("--no-pci".to_owned());
    }
    args.extend_from_slice(&config.extra_args);
    args.into_iter()
        .map(|arg| {
            CString::new(arg).map_err(|error| {
                EalError::Argument(String::from_utf8_lossy(&error.into_vec()).into_owned())
            })
        })
        .collect()
}

/// Runs `rte_eal_init`. Leaks the arguments: EAL permutes them and keeps pointers into them.
fn init(args: Vec<CString>, log: &'static Log) -> Result<(), CallError> {
    let count = c_int::try_from(args.len()).unwrap_or(c_int::MAX);
    let mut pointers: Vec<*mut c_char> = args.into_iter().map(CString::into_raw).collect();
    pointers.push(std::ptr::null_mut());
    let pointers: &'static mut [*mut c_char] = pointers.leak();
    let call = Call::new("rte_eal_init", log);
    // SAFETY: the log is installed, and nobody else diverts before EAL runs.
    unsafe { sys::shim_divert_begin() };
    // SAFETY:
    // - `pointers` are `count` C strings and a null; all of it is writable, and lives for ever.
    // - Only `Eal::start` comes here, once in a process.
    let ret = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    // SAFETY: diverted above.
    unsafe { sys::shim_divert_end() };
    call.rte_errno(ret).map(drop)
}

/// Removes the directory that EAL makes even where it puts nothing into it.
fn remove_runtime_dir(prefix: &str) {
    // SAFETY: returns a static buffer, which EAL wrote during its start.
    let dir = unsafe { sys::rte_eal_get_runtime_dir() };
    if dir.is_null() {
        return;
    }
    // SAFETY: as above; it ends in a zero.
    let dir = unsafe { CStr::from_ptr(dir) };
    let dir = Path::new(OsStr::from_bytes(dir.to_bytes()));
    if dir.file_name() == Some(OsStr::new(prefix)) {
        // Not there if EAL failed early; not empty if extra arguments made EAL use it.
        let _ = fs::remove_dir(dir);
    }
}
