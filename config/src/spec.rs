//! What may be written: every table of the file with its keys.
//!
//! To add a key, add it here and use it in [`crate::validate`].

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lb_core::model::{
    AboveRate, Affinity, CHECK_RUN_MAX, ClientAddress, ClientPrefix, Flows, HashKey, Protocol,
    SLOTS_MAX, SYN_RATE_MAX, Via, WEIGHT_MAX,
};
use lb_core::wire::ethernet::MacAddr;
use schemars::{Schema, SchemaGenerator, json_schema};
use toml::de::DeValue;

use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{At, Given, List, Node, OneOrMore, Optional, Read, Required, kind, table};
use crate::scalar::{
    BackendState, CheckKind, Device, Directory, EalArgument, Expect, FilePath, ForwardMode,
    InterfaceName, Mss, Pace, Payload, PeerAddress, Scalar, ServiceAddress, ServicePort, Share,
    UrlPath, Within,
};
use crate::{ApiAddress, ChecksumOffload, FeedAddress, FeedKind, Hugepages, Idle, PeerKey};

/// MiB of packet memory, if not written.
pub(crate) const MEMORY_MB_DEFAULT: u32 = 512;
/// Flows, if not written.
pub(crate) const FLOWS_MAX_DEFAULT: u32 = 1_000_000;
/// Frames a second, if not written.
pub(crate) const PUNTS_PER_SECOND_DEFAULT: u32 = 20_000;
/// Bytes, if not written: Ethernet's.
pub(crate) const MTU_DEFAULT: u16 = 1500;
/// A CPU's number, at most: Linux is built for up to 8192.
const CPU_MAX: i64 = 8191;

table! {
    /// The configuration of Weir, a layer-4 load balancer.
    File("the file", "") {
        /// What the balancers of one site have in common.
        site: Optional<Site>,
        /// The workers and the memory that move packets.
        dataplane: Optional<Dataplane>,
        /// How programs and the command `weir` reach the balancer. Absent: they do not.
        api: Optional<Api>,
        /// The network ports.
        port: List<Port>,
        /// The other balancers of the site. Each one is told of the flows that the others remember, so
        /// that no flow notices by which balancer it comes. This balancer itself may be among them.
        peer: List<Peer>,
        /// Control planes that tell what is wanted, beside the services of this file: one, or a list.
        feed: OneOrMore<Feed>,
        /// The services.
        service: List<Service>,
    }
}

table! {
    /// What the balancers of one site have in common.
    Site("[site]", "[site]") {
        /// Name of the site, for people and metrics.
        name: Optional<String> = crate::SITE_NAME_DEFAULT,
        /// Key of the flow hash, 32 hexadecimal digits, the same on all balancers of the site.
        /// Keep it secret: who knows it can aim flows at one backend. Absent: a fixed key, for
        /// trying things out only.
        hash_key: Optional<HashKey>,
        /// Key that balancers of the site know each other by, 64 hexadecimal digits, the same on all of
        /// them; needed with peers. Keep it secret: who knows it can lead flows astray.
        peer_key: Optional<PeerKey>,
        /// Address of this balancer where its peers reach it, and it comes from; with a port, if that is
        /// not 9302. Needed with peers.
        peer_listen: Optional<PeerAddress>,
    }
}

table! {
    /// Another balancer of the site.
    Peer("[[peer]]", "[[peer]]") {
        /// What it has as `peer_listen`.
        address: Required<PeerAddress>,
    }
}

table! {
    /// The workers and the memory that move packets.
    Dataplane("[dataplane]", "[dataplane]") {
        /// CPUs with one worker each, pinned, as in [1, 2]; or "auto".
        workers: Optional<Workers> = "auto",
        /// Huge pages: "auto" uses them where there are some, "required" does not start without,
        /// "off" never uses them.
        hugepages: Optional<Hugepages> = "auto",
        /// MiB of memory for packets.
        memory_mb: Optional<Within<u32, 64, 1_048_576>> = MEMORY_MB_DEFAULT,
        /// Flows that are remembered while backends change, at most, of IPv4 and as many of IPv6; 16
        /// and 32 bytes each, and half as much again. The table takes its memory at the start.
        flows_max: Optional<Within<u32, 1024, 268_435_456>> = FLOWS_MAX_DEFAULT,
        /// Directory where what is remembered outlives the process, in files that no other process
        /// may use. Absent: /run/weir and the site's name.
        state_dir: Optional<Directory>,
        /// What a worker does when nothing comes: "adaptive" sleeps a little, "poll" never does.
        idle: Optional<Idle> = "adaptive",
        /// More arguments for DPDK's environment layer (EAL), passed on as they are.
        eal_args: List<EalArgument> = Vec::<String>::new(),
        /// Frames a second that go to the kernel, and as many back, at most; for each port.
        punts_per_second: Optional<Within<u32, 1, 10_000_000>> = PUNTS_PER_SECOND_DEFAULT,
    }
}

table! {
    /// How programs and the command `weir` reach the balancer.
    Api("[api]", "[api]") {
        /// Where gRPC is served: a Unix socket, "unix:" and its absolute path, which root and its group
        /// may use; or an address with a port: a loopback address, as in "127.0.0.1:9301", which
        /// everybody on this machine may use, or any with `tls`.
        grpc: Optional<ApiAddress> = crate::API_SOCKET_DEFAULT,
        /// With it, only TLS is spoken at the address, and only with clients that have a certificate.
        tls: Optional<ApiTls>,
    }
}

table! {
    /// How the API and its clients know each other. Files are in PEM format, and are read again when they
    /// change.
    ApiTls(
        "[api.tls]",
        "tls = { cert = \"/etc/weir/api.pem\", key = \"/etc/weir/api.key\", client_ca = \"/etc/weir/ca.pem\" }"
    ) {
        /// The file with this balancer's certificate, and those between it and its clients' CA.
        cert: Required<FilePath>,
        /// The file with the key of `cert`.
        key: Required<FilePath>,
        /// The file with the certificates that clients' have to be signed by. Whoever has one of these may
        /// change everything.
        client_ca: Required<FilePath>,
    }
}

table! {
    /// A control plane that tells what is wanted.
    Feed("[feed]", "[[feed]]") {
        /// Its name among feeds. Absent: its kind.
        name: Optional<String>,
        /// What it speaks: "grpc", Weir's own protocol (`weir.v1.ControlPlane`); or "xds", Envoy's.
        kind: Required<FeedKind>,
        /// Where it is: "unix:" and a socket's absolute path; "http://" and a loopback address with a
        /// port; or "https://", a host and a port.
        address: Required<FeedAddress>,
        /// What it knows this balancer as. Absent: by the name of its host.
        node: Optional<String>,
        /// "https" only: the file with the certificates that the control plane's has to be signed by
        /// (PEM).
        ca: Optional<FilePath>,
        /// "https" only: the file with this balancer's own certificate (PEM), where the control plane
        /// asks for one.
        cert: Optional<FilePath>,
        /// The file with the key of `cert` (PEM).
        key: Optional<FilePath>,
        /// Time between two states that are taken, at least. What comes meanwhile is taken together.
        pace: Optional<Pace> = "100ms",
        /// "xds" only: to be told what has changed (delta), not all there is, each time. Not every
        /// control plane can.
        incremental: Optional<bool> = false,
        /// "xds" only: `forward` of services whose metadata does not say it.
        forward: Optional<ForwardMode>,
    }
}

table! {
    /// What a document of a feed, or one that is applied, may have.
    Document("the document", "") {
        /// The services.
        service: List<Service>,
    }
}

table! {
    /// A network port.
    Port("[[port]]", "[[port]]") {
        /// Its name, which the interface on the kernel's side has too.
        name: Required<InterfaceName>,
        /// The DPDK device: a PCI address, or a virtual device with its arguments.
        device: Required<Device>,
        /// The balancer's own addresses on this port, with the prefix length of their subnets.
        addresses: List<IpNet> = Vec::<String>::new(),
        /// MAC address, if not the device's own.
        mac: Optional<MacAddr>,
        /// Bytes of an IP packet, at most.
        mtu: Optional<Within<u16, 1280, 9000>> = MTU_DEFAULT,
        /// Give Linux an interface for what the balancer does not handle itself: ARP, pings,
        /// routing, ssh. Without, every backend needs a `mac`.
        kernel: Optional<bool> = true,
        /// Who computes checksums: with "auto" the device where it can and it pays (IPv4 headers that
        /// come in; the UDP checksum of "gue" over IPv6), with "off" always the balancer.
        checksum_offload: Optional<ChecksumOffload> = "auto",
    }
}

table! {
    /// A service: the address that clients use, and the servers behind it.
    Service("[[service]]", "[[service]]") {
        /// Name, unique among services.
        name: Required<String>,
        /// The address that clients use (VIP); or a prefix, as in "10.9.0.0/24", that is routed to
        /// the balancer.
        address: Required<ServiceAddress>,
        /// The port that clients use: one, a range as in "8000-8099", or "any".
        port: Required<ServicePort>,
        /// Transport protocol; "any" takes all but ICMP, by address alone.
        protocol: Required<Protocol>,
        /// How packets reach a backend: "l2dsr" sets the destination MAC address; "ipip", "gue" (over
        /// UDP) and "gre" put the packet into another IP packet; "nat" sets the destination address
        /// and port, and backends answer through the balancer (of another family: see `client_prefix`);
        /// "fullnat" sets the source as well, to
        /// one of `pool`, so that backends need no route for the answer, and may be of another family.
        forward: Required<ForwardMode>,
        /// Prefix that the sources of outer headers are drawn from, by flow, so that the network and
        /// the backends spread flows; "ipip", "gue" and "gre" only. Absent: the port's address.
        outer_source: Optional<IpNet>,
        /// The backends' UDP port; "gue" only. Absent: 6080.
        gue_port: Optional<Within<u16, 1, 65_535>>,
        /// "fullnat" only: the addresses of the balancer's that backends see instead of the client's,
        /// one or a prefix, which nobody else may have. Each has room for 64,512 connections.
        pool: Optional<Given<ServiceAddress>>,
        /// "fullnat" of TCP only: how backends learn of the client's address: by a TCP option ("toa"),
        /// by a PROXY protocol header of version 2 ("proxy"), or not at all ("hidden", if absent).
        client_address: Optional<ClientAddress>,
        /// "nat" of IPv6 backends with IPv4 clients only: the prefix of 96 bits that backends see
        /// clients' addresses behind, as in `64:ff9b::/96`; their way there leads through the balancer.
        client_prefix: Optional<Given<ClientPrefix>>,
        /// How long a flow may be silent and is still kept on its backend while backends change; with
        /// "fullnat", before its port is another's. Absent: 15 minutes, for UDP one.
        idle_timeout: Optional<Duration>,
        /// How long a backend that is no longer listed keeps the flows that it has. Absent: a day. It
        /// leaves earlier when it has none any more.
        grace: Optional<Duration>,
        /// How long a backend that begins to serve, or serves again, takes to get its whole share, in up to
        /// ten steps: as in "30s". Absent: it has it at once.
        slow_start: Optional<Duration>,
        /// Lowers the largest segment size in TCP's SYNs to this, or with "auto" to what fits the way
        /// to the backend.
        mss: Optional<Mss>,
        /// TCP, also of "any": a bound on new connections. Absent: there is none.
        syn: Optional<Syn>,
        /// What stays on one backend: each "flow", or all flows of a "client".
        affinity: Optional<Affinity> = "flow",
        /// UDP only: "sticky" keeps the datagrams of a flow together when backends change,
        /// "datagram" sends each by what is in force.
        flows: Optional<Flows> = "sticky",
        /// Slots of the lookup table, a prime. Absent: chosen from the number of backends.
        slots: Optional<Within<u32, 1, { SLOTS_MAX as i64 }>>,
        /// How it is found out whether a backend may serve. Absent: all may.
        health: Optional<Health>,
        /// The servers.
        backends: List<Backend> = Vec::<String>::new(),
    }
}

table! {
    /// A bound on new connections.
    Syn("[service.syn]", "syn = { rate = 50_000 }") {
        /// New connections a second, over all workers, that pass whoever opens them; no more than a
        /// tenth of it at once.
        rate: Required<Within<u32, 1, { SYN_RATE_MAX as i64 }>>,
        /// What becomes of the others: with "challenge" the client has to show, without knowing it, that
        /// its address is its own, and its next SYN passes; "drop" drops them.
        above: Optional<AboveRate> = "challenge",
    }
}

table! {
    /// How it is found out whether a backend may serve.
    Health("[service.health]", "health = { check = \"tcp\" }") {
        /// What is asked of a backend: "tcp", a connection; "http" and "https", a page (nothing is
        /// concluded from the certificate); "grpc", its own verdict (grpc.health.v1, without TLS);
        /// "udp", an answer to a datagram; "icmp", the echo of a ping. "none" asks nothing.
        check: Required<CheckKind>,
        /// "http" and "https" only: what is fetched.
        path: Optional<UrlPath> = "/",
        /// "http", "https" and "grpc" only: the site's name, with its port if it is not the usual one.
        /// Absent: the address and port that are asked.
        host: Optional<String>,
        /// "grpc" only: the name of the service that is asked about. Absent: the whole server.
        service: Optional<String>,
        /// Where to ask. Absent: the backend's port.
        port: Optional<Within<u16, 1, 65_535>>,
        /// How a check gets there: "backend", to the backend's own address; "service", to the service's
        /// address by the service's own mode, which is for "l2dsr" and tunnels.
        via: Optional<Via> = "backend",
        /// "udp" only: the datagram that is sent: a text, or bytes as in "0x00ff".
        send: Optional<Payload>,
        /// "http" and "https": the good status codes, as in [200, "300-399"]; absent: 200 to 399.
        /// "udp": what the answer begins with, as for `send`; absent: any answer is good.
        expect: Optional<Expect>,
        /// Time between two checks of a backend.
        interval: Optional<Duration> = "2s",
        /// Time for an answer, at most the interval.
        timeout: Optional<Duration> = "1s",
        /// So many successes in a row bring a failed backend back; its very first one does alone.
        rise: Optional<Within<u32, 1, { CHECK_RUN_MAX as i64 }>> = 2,
        /// So many failures in a row make a backend fail. The very first check decides alone.
        fall: Optional<Within<u32, 1, { CHECK_RUN_MAX as i64 }>> = 3,
        /// If less than this share of the backends is healthy, all serve.
        panic_below: Optional<Share> = "0%",
    }
}

table! {
    /// A server behind a service.
    Backend("a backend", "{ address = \"10.0.0.11\" }") {
        /// Its address.
        address: Required<IpAddr>,
        /// Its port, if not the service's; "nat" and "fullnat" only.
        port: Optional<Within<u16, 1, 65_535>>,
        /// Its share of the flows, relative to the other backends.
        weight: Optional<Within<u32, 0, { WEIGHT_MAX as i64 }>> = 1,
        /// "drain" takes no new flows.
        state: Optional<BackendState> = "active",
        /// Where its frames go, if the kernel is not to be asked: its MAC address, or its router's.
        mac: Optional<MacAddr>,
        /// Name of the port that frames to `mac` leave by. Absent: the port whose subnet has the
        /// backend's address, else the first.
        interface: Optional<String>,
    }
}

/// Which CPUs move packets, as written.
#[derive(Debug)]
pub(crate) enum Workers {
    Auto,
    Cpus(Vec<At<Cpu>>),
}

/// A CPU's number.
pub(crate) type Cpu = Within<u16, 0, CPU_MAX>;

impl Read for Workers {
    const EXAMPLE: &'static str = "[1]";

    fn read(node: &Node<'_>, report: &mut Report) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(word) if word == "auto" => Some(Self::Auto),
            DeValue::Array(cpus) => {
                Some(Self::Cpus(cpus.iter().filter_map(|cpu| At::read(cpu, report)).collect()))
            }
            other => {
                let expected = "a list of CPUs or \"auto\"";
                let problem =
                    Problem::WrongType { expected, found: kind(other), example: Self::EXAMPLE };
                report.add(node.span().into(), problem);
                None
            }
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "auto" },
                { "type": "array", "items": <Cpu as Scalar>::schema(), "minItems": 1 },
            ],
        })
    }
}
