//! What can be wrong with a service, and where.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use super::{
    BACKENDS_MAX, CHECK_PAYLOAD_MAX, CHECK_RUN_MAX, CHECK_STATUSES_MAX, CHECK_TEXT_MAX, CheckKey,
    MSS_MIN, PortRange, SERVICES_MAX, SLOTS_MAX, SYN_RATE_MAX, Vip, WEIGHT_MAX,
};
use crate::pool;
use crate::wire::ethernet::MacAddr;

/// The key of a service's spec that a finding is about; a backend's by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the configuration key of that name")]
pub enum Key {
    Name,
    Address,
    Port,
    OuterSource,
    GuePort,
    Pool,
    ClientAddress,
    ClientPrefix,
    IdleTimeout,
    /// `grace`
    Grace,
    Flows,
    Mss,
    Syn,
    /// `rate`
    SynRate,
    Slots,
    Check(CheckKey),
    Backends,
    Backend(usize),
    BackendAddress(usize),
    BackendPort(usize),
    BackendWeight(usize),
    BackendMac(usize),
}

/// Why a service cannot be. Says what to write instead; [`Finding::key`] says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The name is empty, long, or has characters that tables and metrics would trip over.
    #[error("a name has 1 to 63 letters, digits, '-', '_' or '.'")]
    Name,
    /// Two services of one name.
    #[error("another service is named {0:?}; names are unique")]
    DuplicateName(String),
    /// Two services for the same packets.
    #[error("service {other:?} already has {vip}; give one of them another address or port")]
    DuplicateVip {
        /// What both claim.
        vip: Vip,
        /// The service that came first.
        other: String,
    },
    /// Two services with ranges that share ports.
    #[error("service {other:?} already has some of the ports of {vip}; let the ranges not overlap")]
    OverlappingPorts {
        /// What the later one claims.
        vip: Vip,
        /// The service that came first.
        other: String,
    },
    /// A prefix with bits behind it.
    #[error("{0} has bits set behind its prefix length; write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// A protocol that has no ports.
    #[error("protocol \"any\" goes by the address alone; write port = \"any\"")]
    PortsOfAny,
    /// An outer source that no outer header can have.
    #[error("no backend has an address of this family: {0} would never be a source; remove it")]
    SourceFamily(IpNet),
    /// Flows of a protocol that has connections, or nothing that Weir knows of.
    #[error(
        "only UDP's datagrams can go each its own way; remove `flows`, or write protocol = \"udp\""
    )]
    FlowsOfUdp,
    /// Segments of a protocol that has none.
    #[error("only TCP has segments; remove `mss`, or write protocol = \"tcp\"")]
    MssOfTcp,
    /// Smaller than every host has to accept.
    #[error("a segment size of {0} is too small; use at least {MSS_MIN}")]
    MssTooSmall(u16),
    /// A bound on what the protocol does not have.
    #[error(
        "only TCP's connections begin with a SYN; remove `syn`, or write protocol = \"tcp\" or \"any\""
    )]
    SynOfTcp,
    /// None at all, or more than are counted.
    #[error("{0} SYNs a second are not of use; use 1 to {SYN_RATE_MAX}")]
    SynRate(u32),
    /// More services than there may be.
    #[error("{0} services are too many; at most {SERVICES_MAX}")]
    TooManyServices(usize),
    /// Multicast, loopback, unspecified or broadcast.
    #[error("{0} cannot be a server's address; use a unicast address")]
    NotUnicast(IpAddr),
    /// Port 0.
    #[error("port 0 is not a port; use 1 to 65535")]
    PortZero,
    /// The number of slots is not prime, or out of bounds.
    #[error("{given} slots: the number has to be prime; {next} is the next prime")]
    SlotsNotPrime {
        /// What was asked for.
        given: u32,
        /// The next prime above.
        next: u32,
    },
    /// More slots than a table may have.
    #[error("{0} slots are too many; at most {SLOTS_MAX}")]
    TooManySlots(u32),
    /// Some backend would never be chosen.
    #[error("{backends} backends do not fit {slots} slots; use a prime of at least {}", backends * 100)]
    TooFewSlots {
        /// Slots asked for.
        slots: u32,
        /// Backends listed.
        backends: usize,
    },
    /// More backends than a slot can name.
    #[error("{0} backends are too many for one service; at most {BACKENDS_MAX}")]
    TooManyBackends(usize),
    /// The same server twice.
    #[error("backend {0} is listed twice; raise its weight instead")]
    DuplicateBackend(String),
    /// The backend is the service itself.
    #[error(
        "backend {0} has the service's own address, or one of its prefix; packets would go in a circle"
    )]
    BackendIsVip(IpAddr),
    /// This mode does not rewrite ports.
    #[error("this forwarding mode keeps the port: leave it out; the service's is {0}")]
    PortIsKept(PortRange),
    /// A translated packet stays of its family.
    #[error(
        "{0} is of another family than the service's address, and nat keeps the family: use a \
         backend of the same; or, for IPv4 clients of IPv6 backends, add \
         `client_prefix = \"64:ff9b::/96\"`; or forward = \"fullnat\" with a pool of the backend's \
         family, or a tunnel: \"ipip\", \"gue\" or \"gre\""
    )]
    NatFamily(IpAddr),
    /// Clients that have no place behind a prefix.
    #[error(
        "only IPv4 clients can be shown behind a prefix, and those of {0} are not; remove \
         `client_prefix`; for IPv4 backends write forward = \"fullnat\" with a pool of IPv4"
    )]
    PrefixOfIpv4(IpNet),
    /// Backends that cannot see a client behind a prefix.
    #[error(
        "{backend} is IPv4, and would see clients of {net}: use IPv6 backends, or remove `client_prefix`"
    )]
    PrefixFamily {
        /// The backend.
        backend: IpAddr,
        /// The prefix.
        net: Ipv6Net,
    },
    /// A backend with the address of a client.
    #[error("{backend} is of {net}, whose addresses are the clients'; use another prefix")]
    IsOfClients {
        /// The backend.
        backend: IpAddr,
        /// The prefix.
        net: Ipv6Net,
    },
    /// The way back would have to guess the VIP.
    #[error("this mode puts the service's address back into answers: write one address, not {0}")]
    NatPrefix(IpNet),
    /// The way back would have to guess the port.
    #[error(
        "nat could not tell which of the service's ports {0} an answer is from; leave the \
         backend's port out (each port is kept), or give the service one port"
    )]
    NatPorts(PortRange),
    /// A pool tells connections apart by ports.
    #[error(
        "fullnat tells connections apart by the ports of TCP, UDP and SCTP; use one of them, or \
         forward = \"nat\" or a tunnel"
    )]
    PoolProtocol,
    /// More addresses than a pool may have.
    #[error(
        "{0} has more than {max} addresses; a pool has at most {max}, of {ports} connections each: \
         write a longer prefix",
        max = pool::ADDRESSES_MAX, ports = pool::PORTS
    )]
    PoolTooLarge(IpNet),
    /// Backends that packets from the pool cannot be addressed to.
    #[error(
        "{backend} is of another family than the pool {pool}, which its packets come from; use a \
         pool of the backends' family, and a service for each family"
    )]
    PoolFamily {
        /// The backend.
        backend: IpAddr,
        /// The pool.
        pool: IpNet,
    },
    /// An address that is somebody's cannot stand for clients.
    #[error("{address} is in the pool {pool}; a pool needs addresses that are nobody's")]
    TakenByPool {
        /// A service's or a backend's address.
        address: IpAddr,
        /// The pool.
        pool: IpNet,
    },
    /// Two pools that share addresses but not all.
    #[error("the pool {pool} of service {other:?} overlaps this one; let them be equal, or apart")]
    OverlappingPools {
        /// The other pool.
        pool: IpNet,
        /// The service that came first.
        other: String,
    },
    /// Nothing that could carry the client's address.
    #[error(
        "only TCP can carry the client's address; remove `client_address`, or write protocol = \"tcp\""
    )]
    ClientAddressOfTcp,
    /// Longer than is counted.
    #[error("an idle timeout of {}s is not of use; use 4s to 24h", .0.as_secs())]
    IdleTimeout(Duration),
    /// Answers of a backend could be of two services.
    #[error(
        "service {other:?} also translates to {backend}, and an answer from there could be of \
         either; let the backend listen on a port of its own for each service"
    )]
    AmbiguousReturn {
        /// Address and ports of the backend.
        backend: Box<Vip>,
        /// The service that came first.
        other: String,
    },
    /// Weight out of range.
    #[error("weight {0} is too large; at most {WEIGHT_MAX}")]
    Weight(u32),
    /// A health check that would not know where to ask.
    #[error("the service's ports are {0}: add `port`, the one that is checked")]
    CheckPort(PortRange),
    /// A way to check that would be no other.
    #[error(
        "backends of \"nat\" and \"fullnat\" get packets at their own address: write `via = \"backend\"`, \
         or leave it out"
    )]
    CheckTranslated,
    /// A ping is nobody's of the service.
    #[error("a ping is no packet of the service: write `via = \"backend\"`, or leave it out")]
    CheckPing,
    /// A check that would not know whom to ask for.
    #[error("{0} is not one address; checks through a service need one: write `via = \"backend\"`")]
    CheckPrefix(IpNet),
    /// No time between checks, or too much.
    #[error("an interval is 100ms to 1h")]
    CheckInterval,
    /// No time for an answer, or more than there is between checks.
    #[error("a timeout is 10ms or more, and at most the interval")]
    CheckTimeout,
    /// Never, or hardly ever.
    #[error("{0} checks in a row are not of use; use 1 to {CHECK_RUN_MAX}")]
    CheckRun(u32),
    /// More than all.
    #[error("{0}% is not a share; use 0% to 100%")]
    CheckShare(u8),
    /// Nothing that a web server could be asked for.
    #[error(
        "a path begins with '/' and has at most {CHECK_TEXT_MAX} characters that need no escape; \
         write others as in \"/a%20b\""
    )]
    CheckPath,
    /// Nothing that a site could be named.
    #[error(
        "a host is a name or an address, with a port or without, as in \"www.example.org\" or \
         \"[fd00::1]:8080\""
    )]
    CheckHost,
    /// No status, or one that no server has.
    #[error(
        "write 1 to {CHECK_STATUSES_MAX} status codes from 100 to 599, or ranges as in \"200-299\""
    )]
    CheckStatuses,
    /// A longer text than anybody needs.
    #[error("{0} characters are too many; at most {CHECK_TEXT_MAX}")]
    CheckLength(usize),
    /// A larger datagram than every link carries.
    #[error("{0} bytes are too many for a health check's datagram; at most {CHECK_PAYLOAD_MAX}")]
    CheckPayload(usize),
    /// Group or zero MAC.
    #[error("{0} is not one station's MAC address")]
    NotAStation(MacAddr),
}

/// Something wrong with a service, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which key.
    pub key: Key,
    /// What about it.
    pub invalid: Invalid,
}
