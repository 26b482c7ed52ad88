//! What the user of Weir writes, and what comes of it: TOML text to a validated [`Config`].
//!
//! In reading order:
//! * `spec` lists the tables and keys of the file. It is the only list: the readers, the messages
//!   about unknown keys and the JSON [`schema`] are made from it.
//! * `read` and `scalar` turn a TOML tree into those tables. They note mistakes and go on.
//! * `validate` turns tables into a [`Config`]. The rules of services are `lb_core::model`'s; here
//!   are those that a file adds: ports, workers, and what a service needs of the ports.
//! * [`profile`] is another file's: what `weir bench` sends.
//! * [`services`] reads what sources other than the file have: their documents have only services.
//! * `problem` has all that can be wrong; `diagnostics` and `source` show it.
//!
//! A file is taken as a whole or not at all, and every problem in it is told at once.

mod api;
mod diagnostics;
mod feed;
mod problem;
pub mod profile;
mod read;
mod scalar;
mod source;
mod spec;
mod validate;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use lb_core::model::{Backend, DesiredState, HashKey, Service};
use lb_core::wire::ethernet::MacAddr;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use toml::de::DeTable;

pub use api::{API_SOCKET_DEFAULT, Api, ApiAddress, ApiAddressError, ApiTls};
pub use diagnostics::{Diagnostics, PROBLEMS_SHOWN_MAX, Place};
use diagnostics::{Report, Span};
pub use feed::{
    FEEDS_MAX, Feed, FeedAddress, FeedAddressError, FeedKind, FeedTls, PACE_DEFAULT, PACE_MAX,
    PACE_MIN,
};
pub use problem::Problem;
pub use scalar::ForwardMode;

/// Bytes of a configuration file, at most. 100,000 backends need about 8 MiB.
pub const FILE_BYTES_MAX: usize = 64 << 20;
/// Workers of one balancer, at most.
pub const WORKERS_MAX: usize = 64;
/// Addresses of one port, at most.
pub const PORT_ADDRESSES_MAX: usize = 64;
/// Additional arguments for DPDK, at most.
pub const EAL_ARGS_MAX: usize = 64;
/// Other balancers of a site, at most.
pub const PEERS_MAX: usize = 16;
/// The port of peers that have none.
pub const PEER_PORT_DEFAULT: u16 = 9302;
/// The name of a site that has none.
pub const SITE_NAME_DEFAULT: &str = "weir";
/// Where the directories are that outlive a process, each with the name of its site.
const STATE_DIR: &str = "/run/weir";
/// The hash key of a site that has none. Everybody knows it.
pub const DEMO_HASH_KEY: HashKey = HashKey(*b"weir-demo-key-!!");

/// A configuration that is valid as a whole.
///
/// **Having one tells you**: there are 1 to [`lb_core::model::PORTS_MAX`] ports; their names,
/// devices and addresses are distinct; workers are distinct; every `interface` of a backend is a
/// port; no backend is one of the ports' addresses; where a service tunnels, some port has an
/// address of each backend's family. It does **not** tell you that devices or CPUs exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the balancers of a site have in common.
    pub site: Site,
    /// Workers and memory.
    pub dataplane: Dataplane,
    /// How programs and the command reach it; absent: they do not.
    pub api: Option<Api>,
    /// In the order of the file.
    pub ports: Vec<PortConfig>,
    /// Who else tells what is wanted: distinct names, at most [`FEEDS_MAX`].
    pub feeds: Vec<Feed>,
    /// The services of the file, and the site's hash key.
    pub desired: DesiredState,
    /// What is allowed, but hardly meant.
    pub warnings: Vec<Warning>,
}

/// What the balancers of one site have in common, besides the hash key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// For people and metrics.
    pub name: String,
    /// Absent: this balancer is alone.
    pub peering: Option<Peering>,
}

/// The other balancers of a site, and how they are talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peering {
    /// Where this balancer is reached by them.
    pub listen: SocketAddr,
    /// What all of them know.
    pub key: PeerKey,
    /// Where the others are: distinct, and not `listen`; at most [`PEERS_MAX`].
    pub peers: Vec<SocketAddr>,
}

/// The key that balancers of a site know each other by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PeerKey(pub [u8; 32]);

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerKey(…)") // a secret: who knows it can lead flows astray
    }
}

/// The workers and the memory that move packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Where workers run.
    pub workers: Workers,
    /// Whether to use huge pages.
    pub hugepages: Hugepages,
    /// MiB of packet memory.
    pub memory_mb: u32,
    /// Flows that are remembered while backends change, at most, of each family.
    pub flows_max: u32,
    /// Where what is remembered outlives the process; absolute.
    pub state_dir: PathBuf,
    /// What a worker does when nothing comes.
    pub idle: Idle,
    /// More arguments for DPDK's EAL; none is empty or has control characters.
    pub eal_args: Vec<String>,
    /// Frames a second to the kernel, and as many back, for each port.
    pub punts_per_second: u32,
}

/// Where workers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// The application chooses.
    Auto,
    /// One on each of these CPUs: distinct, 1 to [`WORKERS_MAX`]. Whether they exist is not
    /// checked here.
    Cpus(Vec<u16>),
}

/// Whether to use huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hugepages {
    /// Where there are some.
    #[default]
    Auto,
    /// Do not start without.
    Required,
    /// Never.
    Off,
}

/// What a worker does when nothing comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Sleeps a little, and longer the longer nothing comes.
    #[default]
    Adaptive,
    /// Polls on.
    Poll,
}

/// Who computes checksums. What is sent is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumOffload {
    /// The device, where it can and it pays.
    #[default]
    Auto,
    /// The balancer.
    Off,
}

/// A network port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// A name that a Linux interface can have; distinct among ports.
    pub name: String,
    /// The DPDK device with its arguments.
    pub device: String,
    /// The balancer's own addresses: unicast hosts, distinct among all ports; at most
    /// [`PORT_ADDRESSES_MAX`].
    pub addresses: Vec<IpNet>,
    /// If not the device's own; one station's.
    pub mac: Option<MacAddr>,
    /// Bytes of an IP packet, 1280 to 9000.
    pub mtu: u16,
    /// Whether Linux gets an interface for what the balancer does not handle itself.
    pub kernel: bool,
    /// Who computes checksums.
    pub checksum_offload: ChecksumOffload,
}

/// Something that is allowed, but hardly meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// No `hash_key`.
    #[error(
        "[site] has no `hash_key`: a fixed key is used, which everybody knows, and with which \
         flows can be aimed at one backend; make one with `openssl rand -hex 16` and write it on \
         all balancers of the site"
    )]
    DemoHashKey,
}

/// Why a file gives no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is longer than [`FILE_BYTES_MAX`].
    #[error("cannot read {}: it is longer than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// As given.
        path: PathBuf,
    },
    /// It is not text.
    #[error(
        "cannot read {}: line {line} is not UTF-8 text; save the file in the UTF-8 encoding",
        path.display()
    )]
    NotText {
        /// As given.
        path: PathBuf,
        /// The first such line, from 1.
        line: usize,
    },
    /// It is not a valid configuration.
    #[error(transparent)]
    Invalid(#[from] Diagnostics),
}

/// Reads `text`, calling it `file_name` in messages. Never panics, whatever the text is.
///
/// # Errors
/// All that is wrong. A syntax error stands alone: what follows it cannot be understood.
pub fn parse(file_name: &str, text: &str) -> Result<Config, Diagnostics> {
    let mut report = Report::default();
    let config = tables(text, &mut report, spec::File::read_entries)
        .and_then(|file| validate::config(file, &mut report));
    match config {
        Some(config) if report.count() == 0 => Ok(config),
        _ => Err(report.into_diagnostics(file_name, text)),
    }
}

/// Reads the services of `text`, a document of another source than the file, calling it `name` in
/// messages; `ports` are the file's.
///
/// # Errors
/// As [`parse`].
pub fn services(name: &str, text: &str, ports: &[PortConfig]) -> Result<Vec<Service>, Diagnostics> {
    let mut report = Report::default();
    let services = tables(text, &mut report, spec::Document::read_entries)
        .map(|document| validate::document(&document, ports, &mut report));
    match services {
        Some(services) if report.count() == 0 => Ok(services),
        _ => Err(report.into_diagnostics(name, text)),
    }
}

/// `service` with other backends, which no file has; `ports` are the file's.
///
/// # Errors
/// What is wrong, and with which of the backends (its place in the list), if it is one.
pub fn with_backends(
    service: &Service,
    backends: Vec<Backend>,
    ports: &[PortConfig],
) -> Result<Service, Vec<(Option<usize>, Problem)>> {
    validate::with_backends(service, backends, ports)
}

/// Reads the file at `path`.
///
/// # Errors
/// [`LoadError`]; its text is one line, but for [`LoadError::Invalid`].
pub fn load(path: &Path) -> Result<Config, LoadError> {
    Ok(parse(&path.to_string_lossy(), &read_text(path)?)?)
}

/// The text of the file at `path`.
///
/// # Errors
/// As [`load`], but never [`LoadError::Invalid`].
pub fn read_text(path: &Path) -> Result<String, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.into() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        LoadError::NotText { path: path.into(), line }
    })
}

/// The JSON schema (draft 7, which TOML editors understand) of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    schema_of::<spec::File>()
}

fn schema_of<T: JsonSchema>() -> serde_json::Value {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<T>().into()
}

/// The tables of the file, as `read` finds them. `None`: the syntax is wrong.
fn tables<T>(
    text: &str,
    report: &mut Report,
    read: impl FnOnce(&DeTable<'_>, Span, &mut Report) -> T,
) -> Option<T> {
    if text.len() > FILE_BYTES_MAX {
        report.add_general(Problem::FileTooLarge { bytes: text.len(), max: FILE_BYTES_MAX });
        return None;
    }
    let tree = match DeTable::parse(text) {
        Ok(tree) => tree,
        Err(error) if is_duplicate(&error) => with_duplicates(text, report)?,
        Err(error) => {
            add_syntax_error(&error, report);
            return None;
        }
    };
    Some(read(tree.get_ref(), tree.span().into(), report))
}

/// A key that is written twice does not make the rest unreadable.
fn with_duplicates<'i>(text: &'i str, report: &mut Report) -> Option<toml::Spanned<DeTable<'i>>> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        add_syntax_error(error, report);
    }
    errors.iter().all(is_duplicate).then_some(tree)
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message() == "duplicate key"
}

fn add_syntax_error(error: &toml::de::Error, report: &mut Report) {
    let problem = if is_duplicate(error) {
        Problem::DuplicateKey
    } else {
        Problem::Syntax(error.message().into())
    };
    match error.span() {
        Some(span) => report.add(span.into(), problem),
        None => report.add_general(problem),
    }
}

#[cfg(test)]
mod tests;
