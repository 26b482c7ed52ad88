//! What can be wrong with a file: each problem says what it is, and what to write instead.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_core::model::Invalid;
use miette::Diagnostic;

use crate::API_SOCKET_DEFAULT;

/// One thing that is wrong with a configuration.
///
/// `Display` says what is wrong. [`Diagnostic::help`] says what to write instead, where the
/// message itself does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Diagnostic)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages document the variants and their fields")]
pub enum Problem {
    #[error("the file has {bytes} bytes; at most {max} are read")]
    #[diagnostic(help("split the services between balancers, or remove comments"))]
    FileTooLarge { bytes: usize, max: usize },

    #[error("{0}")]
    Syntax(String),

    #[error("duplicate key: it is already written above")]
    #[diagnostic(help("keep one of the two; a [table] may be opened once, too"))]
    DuplicateKey,

    #[error("unknown key {} in {table}", cut(key))]
    #[diagnostic(help("{}", known_keys(key, known)))]
    UnknownKey { key: String, table: &'static str, known: &'static [&'static str] },

    #[error("{table} has no `{key}`")]
    #[diagnostic(help("add `{key} = {example}`"))]
    MissingKey { key: &'static str, table: &'static str, example: &'static str },

    #[error("expected {expected}, found {found}")]
    #[diagnostic(help("write it as in `{example}`"))]
    WrongType { expected: &'static str, found: &'static str, example: &'static str },

    #[error("the number {} is in quotes", cut(given))]
    #[diagnostic(help("write it without: `{given}`"))]
    QuotedNumber { given: String },

    #[error("expected a list, found {found}")]
    #[diagnostic(help("{}", list_like(example)))]
    NotAList { found: &'static str, example: &'static str },

    #[error("{} is out of range", short(given))]
    #[diagnostic(help("write a number from {min} to {max}"))]
    OutOfRange { given: String, min: i64, max: i64 },

    #[error("{} is not {expected}", cut(given))]
    #[diagnostic(help("write it as in `{example}`"))]
    Malformed { given: String, expected: &'static str, example: &'static str },

    #[error("{} is not one of the words that this key takes", cut(given))]
    #[diagnostic(help("{}", words_to_use(given, words)))]
    UnknownWord { given: String, words: Vec<&'static str> },

    #[error("{} is not a range of ports", cut(given))]
    #[diagnostic(help("write the lower port first, both from 1 to 65535, as in \"8000-8099\""))]
    PortRange { given: String },

    #[error("a hash key has 32 hexadecimal digits, this one has {digits} characters")]
    #[diagnostic(help("make one with `openssl rand -hex 16`"))]
    HashKey { digits: usize },

    #[error("a peer key has 64 hexadecimal digits, this one has {digits} characters")]
    #[diagnostic(help("make one with `openssl rand -hex 32`, and write it on all balancers"))]
    PeerKey { digits: usize },

    #[error("[site] has no `{key}`, which balancers with peers need")]
    #[diagnostic(help("add to [site] `{key} = {example}`"))]
    PeersNeed { key: &'static str, example: &'static str },

    #[error("no port has an IPv{version} address that backends could answer to")]
    #[diagnostic(help(
        "add one to the `addresses` of a [[port]] with a kernel side, or write `via = \"backend\"`"
    ))]
    NoCheckSource { version: u8 },

    #[error("{0} is a port's own address, and what comes from it is not known to be an answer")]
    #[diagnostic(help("use another address for the service, or write `via = \"backend\"`"))]
    CheckOfOwn(IpAddr),

    #[error(
        "{0} is reached from other machines, and whoever reaches the API may change everything"
    )]
    #[diagnostic(help(
        "add a table [api.tls] with `cert`, `key` and `client_ca`; or write a Unix socket, as in \
         \"{API_SOCKET_DEFAULT}\", or a loopback address: \"127.0.0.1:{}\"", .0.port()
    ))]
    ApiNotLoopback(SocketAddr),

    #[error("TLS has no meaning at a Unix socket, whose mode says who may use it")]
    #[diagnostic(help("remove it, or write an address: `grpc = \"0.0.0.0:9301\"`"))]
    TlsOfASocket,

    #[error(
        "{0} is reached through the network, and whoever is on the way could say what is wanted"
    )]
    #[diagnostic(help(
        "write \"https://{0}\" and a `ca`, or a loopback address, or a Unix socket: \"unix:/PATH\""
    ))]
    FeedNotLoopback(SocketAddr),

    #[error("`{key}` has no meaning without TLS")]
    #[diagnostic(help("remove it, or write an `address` that begins with \"https://\""))]
    KeyOfTls { key: &'static str },

    #[error("`{key}` has no meaning for this kind of feed")]
    #[diagnostic(help("remove it, or write `kind = \"xds\"`"))]
    KeyOfXds { key: &'static str },

    #[error("nobody could be trusted: there is no `ca`")]
    #[diagnostic(help(
        "add `ca = \"/etc/weir/ca.pem\"`, the certificates that the control plane's is signed by"
    ))]
    NoCa,

    #[error("a certificate and its key belong together: there is no `{key}`")]
    #[diagnostic(help("add `{key} = \"/etc/weir/{key}.pem\"`, or remove this"))]
    HalfAnIdentity { key: &'static str },

    #[error("a pace is 10ms to 1m")]
    PaceOfNoUse,

    #[error("there is no [[peer]]")]
    #[diagnostic(help("add a [[peer]] for each of the other balancers, or remove this key"))]
    NoPeer,

    #[error("{0} is not an address where a peer can be reached")]
    #[diagnostic(help("write the unicast address that it has as `peer_listen`"))]
    PeerNotUnicast(IpAddr),

    #[error("{0} is not an address where peers can call")]
    #[diagnostic(help("write one of this balancer's own, as it is in the others' [[peer]]"))]
    ListenNotUnicast(IpAddr),

    #[error("{} is not an IP address", cut(given))]
    #[diagnostic(help(
        "write an IPv4 or IPv6 address, as in \"10.0.0.11\" or \"fd00::11\"; \
         host names are not looked up"
    ))]
    NotAnAddress { given: String },

    #[error("{} is an address with a port", cut(given))]
    #[diagnostic(help(
        "the port has a key of its own: `address = \"{address}\"`, `port = {port}`"
    ))]
    AddressWithPort { given: String, address: IpAddr, port: u16 },

    #[error("{} has no prefix length", cut(given))]
    #[diagnostic(help("write the address with its subnet's, as in \"{given}/{usual}\""))]
    NoPrefixLength { given: IpAddr, usual: u8 },

    #[error("{given} is its subnet's {what}, not a host")]
    #[diagnostic(help("write the port's own address in that subnet, with the prefix length"))]
    NotAHost { given: String, what: &'static str },

    #[error("{0} cannot be a port's address")]
    #[diagnostic(help("use a unicast address"))]
    PortNotUnicast(IpAddr),

    #[error("{0} is not one station's MAC address")]
    #[diagnostic(help("the first octet is even, and not all are zero: as in 02:00:00:00:00:02"))]
    PortNotAStation(String),

    #[error("a name has 1 to 63 letters, digits, '-', '_' or '.'")]
    BadName,

    #[error("{} cannot be an interface's name", cut(given))]
    #[diagnostic(help(
        "use 1 to 15 letters, digits, '-', '_' or '.', but not \"lo\", \"all\" or \"default\""
    ))]
    InterfaceName { given: String },

    #[error("{given} {what} are too many")]
    #[diagnostic(help("at most {max}"))]
    TooMany { what: &'static str, given: usize, max: usize },

    #[error("there is no port: no frame could come or go")]
    #[diagnostic(help(
        "add a table [[port]] with `name = \"lan0\"`, `device = \"0000:01:00.0\"` (any DPDK \
         device) and `addresses = [\"10.0.0.2/24\"]`"
    ))]
    NoPort,

    #[error("{what} {} is given twice", cut(given))]
    #[diagnostic(help("{fix}"))]
    Duplicate { what: &'static str, given: String, fix: &'static str },

    #[error("`workers` is an empty list")]
    #[diagnostic(help("name at least one CPU, as in `workers = [1]`, or write \"auto\""))]
    NoWorker,

    #[error("`interface` without `mac` says nothing: the next hop's port comes from the kernel")]
    #[diagnostic(help("add the backend's `mac`, or remove `interface`"))]
    InterfaceWithoutMac,

    #[error("`{key}` has no meaning in this forwarding mode")]
    #[diagnostic(help("remove it, or write `forward = {modes}`"))]
    KeyOfOtherMode { key: &'static str, modes: &'static str },

    #[error("`{key}` has no meaning for this check")]
    #[diagnostic(help("remove it, or write `check = {checks}`"))]
    KeyOfOtherCheck { key: &'static str, checks: &'static str },

    #[error("a \"udp\" check needs `send`: servers answer only what they understand")]
    #[diagnostic(help(
        "add a datagram that the server answers, as in `send = \"ping\"`, or its bytes: \"0x00ff\""
    ))]
    NoPayload,

    #[error("\"fullnat\" needs a `pool`: addresses that backends see instead of the clients'")]
    #[diagnostic(help(
        "add `pool = \"10.0.0.200/30\"`, or one address: of the backends' family, nobody else's, and \
         on a port's subnet or routed to the balancer"
    ))]
    NoPool,

    #[error("no [[port]] is named {}", cut(given))]
    #[diagnostic(help("{}", port_names(given, ports)))]
    NoSuchPort { given: String, ports: Vec<String> },

    #[error("{0} is this balancer's own address; packets would come back to it")]
    #[diagnostic(help("write the server's address here, or change the port's"))]
    BackendIsOurs(IpAddr),

    #[error(
        "the pool {pool} has {address}, this balancer's own address; what comes to that would be \
         taken for a backend's answer"
    )]
    #[diagnostic(help("write a pool of addresses that are nobody's, or change the port's"))]
    PoolIsOurs { pool: IpNet, address: IpAddr },

    #[error(
        "the pool {pool} has {address}, which is that of the subnet {net} as a whole and no host's; \
         servers would not answer there"
    )]
    #[diagnostic(help("write a smaller pool, or one in the middle of the subnet"))]
    PoolHasNoHost { pool: IpNet, address: IpAddr, net: IpNet },

    #[error("no port has an {family} address, which tunnels to this backend would start from")]
    #[diagnostic(help(
        "add one to a port's `addresses`, as in \"{example}\", or use backends of the other family"
    ))]
    NoTunnelSource { family: &'static str, example: &'static str },

    #[error(
        "no port has a kernel side that could resolve this backend's MAC address{}",
        more(*others)
    )]
    #[diagnostic(help(
        "add `mac = \"02:00:00:00:00:0c\"` (the backend's own), or set `kernel = true` on a port"
    ))]
    NeverResolves { others: usize },

    #[error("`{key}` has no meaning beside `capture`, whose frames are sent as they are")]
    #[diagnostic(help("remove one of the two"))]
    CaptureAndKey { key: &'static str },

    #[error("fragments and attacks are {sum}% of the frames: none are left to be measured")]
    #[diagnostic(help("write shares whose sum is below 100%"))]
    NothingLeft { sum: u32 },

    #[error("there is no IPv4 flow whose datagrams could be cut into fragments")]
    #[diagnostic(help("write a share of `ipv6` below 100%, or remove `fragments`"))]
    FragmentsOfIpv6,

    #[error("{0}")]
    Service(Invalid),
}

impl Problem {
    /// What to write instead, where the message itself does not say so.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        self.help().map(|help| help.to_string())
    }

    /// How the two places of a conflict are called: what came first, and what is wrong.
    pub(crate) fn labels(&self) -> (&'static str, &'static str) {
        match self {
            Self::BackendIsOurs(_) => ("the port's", "the backend's"),
            Self::PoolIsOurs { .. } => ("the port's", "in the pool"),
            Self::PoolHasNoHost { .. } => ("the port's subnet", "the pool"),
            Self::CaptureAndKey { .. } => ("this", "and this"),
            _ => ("first here", "here again"),
        }
    }
}

/// Characters of what was written that a message repeats; the line itself is shown below.
const CHARS_SHOWN_MAX: usize = 60;
/// A key that is longer is not compared with those that exist.
const SIMILAR_BYTES_MAX: usize = 64;

/// `text`, cut where it is long.
fn short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(CHARS_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// `text` cut, escaped and in quotes.
fn cut(text: &(impl ToString + ?Sized)) -> String {
    format!("{:?}", short(&text.to_string()))
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", nor that of another one of this service".into(),
        n => format!(", nor those of {n} others of this service"),
    }
}

fn list_like(example: &str) -> String {
    if example.starts_with("[[") {
        format!("open each one with `{example}`")
    } else {
        format!("write a list, as in `[{example}]`")
    }
}

fn known_keys(key: &str, known: &[&str]) -> String {
    choose(key, known, "keys here", '`')
}

fn words_to_use(given: &str, words: &[&str]) -> String {
    choose(given, words, "words", '"')
}

fn port_names(given: &str, ports: &[String]) -> String {
    choose(given, &ports.iter().map(String::as_str).collect::<Vec<_>>(), "ports", '"')
}

fn choose(given: &str, known: &[&str], called: &str, quote: char) -> String {
    let quoted = |text: &&str| format!("{quote}{text}{quote}");
    let list = known.iter().map(quoted).collect::<Vec<_>>().join(", ");
    match similar(given, known) {
        Some(meant) => format!("did you mean {}? The {called} are {list}", quoted(&meant)),
        None => format!("the {called} are {list}"),
    }
}

/// The closest of `known`, if it is close: case apart, at most a third of its letters differ.
pub(crate) fn similar<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    if given.len() > SIMILAR_BYTES_MAX {
        return None;
    }
    let given = given.to_lowercase();
    known
        .iter()
        .map(|&word| (strsim::osa_distance(&given, word), word))
        .filter(|&(distance, word)| distance <= word.len().div_ceil(3))
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        const KEYS: &[&str] = &["name", "address", "backends"];
        for (given, meant) in [
            ("adress", Some("address")),
            ("NAME", Some("name")),
            ("backend", Some("backends")),
            ("naem", Some("name")),
            ("zone", None),
            ("", None),
        ] {
            assert_eq!(similar(given, KEYS), meant, "{given}");
        }
        assert_eq!(similar(&"a".repeat(1 << 20), KEYS), None);
    }

    #[test]
    fn messages_stay_short() {
        let problem = Problem::NotAnAddress { given: "é\u{1b}".repeat(1 << 16) };
        assert!(problem.to_string().chars().count() < 600);
        assert!(!problem.to_string().contains('\u{1b}'));
    }
}
