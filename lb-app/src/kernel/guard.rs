//! Keeps the kernel from answering what is the balancer's.
//!
//! A port on `net_af_packet` or `net_pcap` gets *copies*: the kernel's own stack sees each frame
//! of that interface too. It holds the VIPs (on the exception TAP), so it would answer clients
//! itself, with resets. [`Guard`] has it drop what comes in on the interface, in the `netdev`
//! family's ingress hook; packet sockets get their copy before that.
//!
//! The chain is in a table that its netlink socket owns (`NFT_TABLE_F_OWNER`, Linux 5.12): the
//! kernel removes it when the socket is closed, however the process ends, and lets nobody else
//! touch it. It is the balancer's own table: other tables, and `nft flush ruleset`, do not matter.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use super::netlink::{DATAGRAM_LEN_MAX, messages};

/// DPDK drivers that get copies, and the arguments that name the interfaces they receive from.
const COPYING: [(&str, &[&str]); 3] = [
    ("net_af_packet", &["iface"]),
    ("eth_af_packet", &["iface"]),
    ("net_pcap", &["iface", "rx_iface", "rx_iface_in"]),
];

/// Before all other chains of the hook (the lowest runs first).
const PRIORITY: i32 = i32::MIN;

// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const FAMILY_UNSPEC: u8 = 0;
const FAMILY_NETDEV: u8 = 5;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNER: u32 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const POLICY_DROP: u32 = 0;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const INGRESS: u32 = 0;
/// On an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

/// Why the kernel cannot be kept out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GuardError {
    /// The device names an interface that is not there.
    #[error("device {device:?}: there is no interface {interface}; create it, or name another")]
    NoInterface {
        /// The port's device.
        device: String,
        /// The interface that it names.
        interface: String,
    },
    /// Guarded, the interface's own address would be cut off: perhaps the way to this machine.
    #[error(
        "{interface} has the address {address}, which would be cut off: the port takes all that \
         comes in there; give the address to the port (`addresses`), or use another interface"
    )]
    HasAddress {
        /// The interface.
        interface: String,
        /// Its address.
        address: IpAddr,
    },
    /// Another process guards it.
    #[error("{0} is in use by another balancer; stop that one, or use another interface")]
    InUse(String),
    /// Not enough privileges.
    #[error("may not keep the kernel from answering on {0}; run as root, or with CAP_NET_ADMIN")]
    Permission(String),
    /// The kernel lacks nftables, or is older than 5.12.
    #[error(
        "cannot keep the kernel from answering on {0}: this kernel has no nftables with netdev \
         ingress hooks and table owners; use Linux 5.12 or later with CONFIG_NF_TABLES_NETDEV"
    )]
    Unsupported(String),
    /// Anything else.
    #[error("cannot keep the kernel from answering on {interface}: {source}")]
    System {
        /// The interface.
        interface: String,
        /// Why not.
        source: io::Error,
    },
}

/// While it lives, the kernel's stack receives nothing on the guarded interfaces.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Owns the tables.
    _socket: Socket,
}

impl Guard {
    /// Guards the interfaces that a port's DPDK device receives copies from; `None` if it is a
    /// device of another kind. To be called before the port has a kernel side.
    ///
    /// # Errors
    /// [`GuardError`]; nothing is guarded then.
    pub(crate) fn for_device(device: &str) -> Result<Option<Self>, GuardError> {
        let interfaces = copied_interfaces(device);
        if interfaces.is_empty() {
            return Ok(None);
        }
        for interface in &interfaces {
            if if_nametoindex(*interface).is_err() {
                return Err(GuardError::NoInterface {
                    device: device.to_owned(),
                    interface: (*interface).to_owned(),
                });
            }
            refuse_addresses(interface)?;
        }
        let mut socket = open().map_err(|source| system(&interfaces.join(", "), source))?;
        for interface in &interfaces {
            drop_ingress(&mut socket, interface)?;
            tracing::info!("the kernel receives nothing on {interface} any more: it is a port");
        }
        Ok(Some(Self { _socket: socket }))
    }
}

/// The kernel interfaces that a device (`net_af_packet0,iface=veth0`) receives copies from.
fn copied_interfaces(device: &str) -> Vec<&str> {
    let mut parts = device.split(',');
    let driver = parts.next().unwrap_or_default();
    let Some((_, keys)) = COPYING.iter().find(|(name, _)| driver.starts_with(name)) else {
        return Vec::new();
    };
    let mut interfaces: Vec<&str> = parts
        .filter_map(|part| part.split_once('='))
        .filter(|(key, _)| keys.contains(key))
        .map(|(_, interface)| interface)
        .collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    interfaces
}

/// Link-local addresses come by themselves: nobody reaches a machine by them alone.
fn refuse_addresses(interface: &str) -> Result<(), GuardError> {
    let all = getifaddrs().map_err(|errno| system(interface, errno.into()))?;
    for found in all.filter(|it| it.interface_name == interface) {
        let Some(storage) = found.address else { continue };
        let v4 = storage.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        let v6 = storage.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::ip);
        let v6 = v6.filter(|address: &Ipv6Addr| !address.is_unicast_link_local());
        if let Some(address) = v4.or(v6.map(IpAddr::V6)) {
            return Err(GuardError::HasAddress { interface: interface.to_owned(), address });
        }
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // The kernel has answered by the time that the request is sent.
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// As `nft add table netdev weir-IF { flags owner; }` and `nft add chain netdev weir-IF ingress
/// { type filter hook ingress device IF priority ...; policy drop; }`, in one transaction.
fn drop_ingress(socket: &mut Socket, interface: &str) -> Result<(), GuardError> {
    let table = format!("weir-{interface}\0");
    let create = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let hook = [
        attribute(HOOK_NUMBER, &INGRESS.to_be_bytes()),
        attribute(HOOK_PRIORITY, &PRIORITY.to_be_bytes()),
        attribute(HOOK_DEVICE, format!("{interface}\0").as_bytes()),
    ];
    let table_attributes = [
        attribute(TABLE_NAME, table.as_bytes()),
        attribute(TABLE_FLAGS, &TABLE_OWNER.to_be_bytes()),
    ];
    let chain_attributes = [
        attribute(CHAIN_TABLE, table.as_bytes()),
        attribute(CHAIN_NAME, b"ingress\0"),
        attribute(CHAIN_HOOK | NESTED, &hook.concat()),
        attribute(CHAIN_POLICY, &POLICY_DROP.to_be_bytes()),
        attribute(CHAIN_TYPE, b"filter\0"),
    ];
    let batch = [
        message(BATCH_BEGIN, NLM_F_REQUEST, FAMILY_UNSPEC, &[]),
        message(NEW_TABLE, create, FAMILY_NETDEV, &table_attributes.concat()),
        message(NEW_CHAIN, create, FAMILY_NETDEV, &chain_attributes.concat()),
        message(BATCH_END, NLM_F_REQUEST, FAMILY_UNSPEC, &[]),
    ];
    socket
        .send_to(&batch.concat(), &SocketAddr::new(0, 0), 0)
        .and_then(|_| first_refusal(socket))
        .map_err(|source| system(interface, source))?
        .map_or(Ok(()), |(kind, errno)| Err(explain(interface, kind, errno)))
}

/// A netlink message with the header of nfnetlink. Its kind is its sequence number, too.
fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let payload = [&[family, 0, high, low], attributes].concat();
    // All lengths here are those of a few short names.
    let len = u32::try_from(16 + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(u32::from(kind).to_ne_bytes());
    bytes.extend([0; 4]); // the kernel's port
    bytes.extend(payload);
    bytes
}

/// A netlink attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Reads the answers to a transaction; gives the kind of message that was refused, if any, and why.
fn first_refusal(socket: &Socket) -> io::Result<Option<(u16, Errno)>> {
    let mut acknowledged = 0;
    let mut received = Vec::with_capacity(DATAGRAM_LEN_MAX);
    while acknowledged < 2 {
        received.clear();
        socket.recv(&mut received, 0)?;
        for answer in messages(&received).map(NetlinkBuffer::new) {
            if answer.message_type() != NLMSG_ERROR {
                continue;
            }
            let code = answer.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            if code != 0 {
                let kind = u16::try_from(answer.sequence_number()).unwrap_or_default();
                return Ok(Some((kind, Errno::from_raw(code.saturating_neg()))));
            }
            acknowledged += 1;
        }
    }
    Ok(None)
}

fn explain(interface: &str, kind: u16, errno: Errno) -> GuardError {
    let name = interface.to_owned();
    match (kind, errno) {
        (BATCH_BEGIN, Errno::EPERM) => GuardError::Permission(name),
        // Nobody but its owner may touch the table.
        (NEW_TABLE, Errno::EPERM | Errno::EEXIST | Errno::EBUSY) => GuardError::InUse(name),
        (
            _,
            Errno::EOPNOTSUPP
            | Errno::EINVAL
            | Errno::EPROTONOSUPPORT
            | Errno::EAFNOSUPPORT
            | Errno::ENOENT,
        ) => GuardError::Unsupported(name),
        _ => system(interface, errno.into()),
    }
}

fn system(interface: &str, source: io::Error) -> GuardError {
    GuardError::System { interface: interface.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{SocketAddr as Endpoint, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket,
    };

    use super::super::tap::Tap;
    use super::super::testing::{Host, in_namespace, ip};
    use super::*;

    const DEVICE: &str = "net_af_packet0,iface=guarded,blocksz=4096";

    #[test]
    fn devices_that_get_copies() {
        for (device, expected) in [
            ("net_af_packet0,iface=veth0", vec!["veth0"]),
            ("net_af_packet,qpairs=2,iface=eth1,framesz=2048", vec!["eth1"]),
            ("eth_af_packet0,iface=veth0", vec!["veth0"]),
            ("net_pcap0,iface=eth0", vec!["eth0"]),
            ("net_pcap0,rx_iface=eth0,tx_iface=eth1", vec!["eth0"]),
            ("net_pcap0,rx_pcap=in.pcap,tx_pcap=out.pcap", vec![]),
            ("net_tap0,iface=weir0", vec![]),
            ("net_af_xdp0,iface=eth0", vec![]),
            ("0000:01:00.0", vec![]),
        ] {
            assert_eq!(copied_interfaces(device), expected, "{device}");
        }
    }

    /// A veth to another host, whose end here is `guarded`; 10.0.0.100 is an address of this
    /// machine, elsewhere, and the other host knows the way.
    fn veth(far: &Host) {
        ip(&format!("link add guarded type veth peer name far0 netns {}", far.netns));
        ip("link set guarded address 02:00:00:00:00:02 up");
        ip("address add 10.0.0.100/32 dev lo");
        ip("route add 10.0.0.1/32 dev guarded");
        far.ip("address add 10.0.0.1/24 dev far0");
        far.ip("link set far0 up");
        far.ip("neigh add 10.0.0.100 lladdr 02:00:00:00:00:02 dev far0");
    }

    /// Is a connection from the other host refused, with nobody listening? The first SYN, or the ARP
    /// request before the reset, may be lost where the link has only just come up, or where a process
    /// that another test is just starting has a copy of the guard's socket until it runs its program.
    /// Both are sent again after a second.
    fn is_refused(far: &Host) -> bool {
        connect_within(far, Duration::from_secs(5)) == io::ErrorKind::ConnectionRefused
    }

    /// Is there no answer to one SYN? Tells something of a guard only where there was one without it.
    fn is_silent(far: &Host) -> bool {
        connect_within(far, Duration::from_millis(700)) == io::ErrorKind::TimedOut
    }

    fn connect_within(far: &Host, patience: Duration) -> io::ErrorKind {
        far.run(move || {
            let vip: Endpoint = "10.0.0.100:80".parse().unwrap();
            TcpStream::connect_timeout(&vip, patience).unwrap_err().kind()
        })
    }

    #[test]
    fn the_kernel_does_not_answer_on_a_guarded_interface() {
        in_namespace(|| {
            let far = Host::new();
            veth(&far);
            assert!(is_refused(&far), "unguarded");

            let guard = Guard::for_device(DEVICE).unwrap().unwrap();
            let packets = packet_socket();
            assert!(is_silent(&far), "a reset came through");
            assert!(frames_for_the_vip(&packets) > 0, "the packet socket gets the SYN");

            let error = Guard::for_device(DEVICE).unwrap_err();
            assert!(matches!(error, GuardError::InUse(_)), "{error:?}");

            drop(guard);
            assert!(is_refused(&far), "guarded no more");
        });
    }

    /// What DPDK's driver receives from.
    fn packet_socket() -> OwnedFd {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
    }

    fn frames_for_the_vip(packets: &OwnedFd) -> usize {
        let mut frame = [0; 2048];
        let next =
            || recv(packets.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok().map(|_| frame);
        std::iter::from_fn(next)
            .filter(|it| it[12..14] == [8, 0] && it[30..34] == [10, 0, 0, 100])
            .count()
    }

    /// The test runs itself as another process, with this set, to hold what is to be left behind.
    const HOLD: &str = "WEIR_TEST_HOLD";

    #[test]
    fn a_killed_process_leaves_nothing_behind() {
        if std::env::var_os(HOLD).is_some() {
            let _guard = Guard::for_device(DEVICE).unwrap().unwrap();
            let _tap = Tap::open("lan0").unwrap();
            println!("\nheld");
            // Until it is killed, or the test that started it is gone.
            std::io::stdin().lines().for_each(drop);
            return;
        }
        in_namespace(|| {
            let far = Host::new();
            veth(&far);
            assert!(is_refused(&far), "unguarded");
            let module = module_path!().split_once("::").unwrap().1;
            let mut holder = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg(format!("{module}::a_killed_process_leaves_nothing_behind"))
                .env(HOLD, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "held"));
            assert!(ip("link show").contains("lan0"));
            assert!(is_silent(&far), "a reset came through");

            holder.kill().unwrap(); // SIGKILL
            holder.wait().unwrap();
            assert!(!ip("link show").contains("lan0"));
            assert!(is_refused(&far), "guarded no more");
        });
    }

    #[test]
    fn what_would_be_cut_off_is_refused() {
        in_namespace(|| {
            let error = Guard::for_device(DEVICE).unwrap_err();
            assert!(matches!(error, GuardError::NoInterface { .. }), "{error:?}");
            let far = Host::new();
            veth(&far);
            ip("address add 192.0.2.7/24 dev guarded");
            let error = Guard::for_device(DEVICE).unwrap_err();
            assert!(
                error.to_string().starts_with("guarded has the address 192.0.2.7, which would")
            );
        });
    }
}
