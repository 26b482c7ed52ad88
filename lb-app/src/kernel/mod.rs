//! The kernel's side: the kernel is the slow path.
//!
//! Weir takes the frames of the flows that it balances; all others belong to the kernel of the
//! machine. So each port has an interface there, of the port's name, with its MAC, MTU and
//! addresses: an exception TAP ([`tap`]), set up by [`interface`]. The data plane hands it what is
//! no service's, and sends what comes from it ([`pump`]). It holds the VIPs as `/32` and `/128`
//! addresses, so the kernel answers ARP, neighbour discovery and pings for them, and refuses
//! ports without a service. `ip`, `ping`, `tcpdump -i lan0` and routing daemons work as ever.
//!
//! In return the kernel knows the way to the backends. [`mirror`] keeps what it knows of
//! [`links`], [`routes`] and [`neighbours`] over [`netlink`], stays up to date by [`notices`], and
//! makes next hops of it; [`classes`] spares it most questions where there are very many backends.
//! [`reach`] does so for everybody else, where services need it.
//!
//! An interface `lan0.100` that an administrator puts on `lan0`, with
//! `ip link add link lan0 name lan0.100 type vlan id 100`, is VLAN 100 of the port.
//!
//! Nothing outlives the process, even if it is killed: the TAPs take their addresses, routes and
//! neighbours with them, and [`guard`]'s tables go with its socket.
//!
//! # Ports on an interface that the kernel has as well
//!
//! A port on `net_af_packet` or `net_pcap` gets copies of the interface's frames, and the kernel
//! would answer them, too. [`guard`] keeps it from that. What it cannot do is left to whoever sets
//! the machine up:
//!
//! - The interface has no addresses of its own; its IPv6 stack would still speak of itself (router
//!   solicitations, multicast reports): `ip link set IF addrgenmode none`, or
//!   `sysctl net.ipv6.conf.IF.disable_ipv6=1`, keeps it silent.
//! - Packet sockets see frames after receive offloads: merged frames are longer than the MTU and
//!   were never on the wire. Off, on the port's interface: `ethtool -K IF gro off lro off`.
//! - What comes over a veth or a bridge from the same machine was never on a wire at all: checksums
//!   are not filled in, and segments not cut. Off, on the *sender's* side:
//!   `ethtool -K PEER tx off` (in the peer's namespace or container).

mod check_net;
mod classes;
mod clients;
mod error;
mod guard;
mod interface;
mod links;
mod mirror;
mod neighbours;
mod netlink;
mod notices;
mod pump;
mod reach;
mod routes;
mod tap;

pub(crate) use check_net::CheckNet;
pub(crate) use error::KernelError;
pub(crate) use guard::{Guard, GuardError};
pub(crate) use mirror::{InterfaceState, Kernel};
pub(crate) use pump::{Exchange, Pump, PumpCounters};
pub(crate) use tap::Tap;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
