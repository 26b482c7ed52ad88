//! Where frames go on the link: what the kernel (or the configuration) knows of the way to a
//! backend.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arrayvec::ArrayVec;
use imbl::OrdMap;
use ipnet::IpNet;

use crate::wire::ethernet::MacAddr;

/// The place of a port in the balancer's list of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u8);

impl PortId {
    /// As an index.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What the data plane has to know of a port. Fixed while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Also the name of its interface on the kernel's side.
    pub name: String,
    /// Its own MAC: only frames to it, or to a group, are looked at.
    pub mac: MacAddr,
    /// Largest network-layer packet, in bytes.
    pub mtu: u16,
    /// Its own addresses, with their subnets; the first of a family is the source of outer headers.
    pub addresses: Vec<IpNet>,
    /// Does the kernel take what is not a service's?
    pub kernel: bool,
    /// May frames that leave by it leave their UDP checksum to the NIC?
    pub udp_checksums: bool,
}

impl Port {
    /// The source of outer IPv4 headers.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        })
    }

    /// The source of outer IPv6 headers.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|net| match net {
            IpNet::V6(net) => Some(net.addr()),
            IpNet::V4(_) => None,
        })
    }
}

/// One station on a link, reached through one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// The port that the frame leaves by.
    pub port: PortId,
    /// The frame's destination.
    pub mac: MacAddr,
    /// The VLAN of that port; absent: the frame keeps the tags that it came with if it leaves by
    /// the port that it came from, and else leaves without.
    pub vlan: Option<u16>,
}

/// Next hops of equal cost that are used, at most; the lowest are taken.
pub const HOPS_MAX: usize = 4;

/// The ways to one backend: the flow hash chooses.
pub type Hops = ArrayVec<NextHop, HOPS_MAX>;

/// Why there is no way to a backend yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// The kernel has not been asked, or is still finding out.
    #[error("its MAC address is not known yet")]
    Unknown,
    /// No route, or an unreachable, blackhole or prohibit route.
    #[error("the kernel has no route to it")]
    NoRoute,
    /// The kernel would deliver to itself.
    #[error("it is an address of this machine")]
    Local,
    /// The route leads elsewhere.
    #[error("its route leaves by {0}, which is not a port of this balancer")]
    ForeignInterface(String),
    /// The station does not answer ARP or neighbour discovery.
    #[error("{0} does not answer on {1}")]
    NoNeighbour(IpAddr, String),
    /// l2dsr through a router: the frame would come back.
    #[error("it is behind the gateway {0}; l2dsr needs it on the port's own link")]
    BehindGateway(IpAddr),
    /// A tunnel whose outer header would have no source.
    #[error("no port has an address of its family, to be the source of the outer header")]
    NoSource,
}

/// A backend that there is a way to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The ways, lowest first; not empty.
    pub hops: Hops,
    /// The first gateway on the way, if the backend is not on the link itself.
    pub gateway: Option<IpAddr>,
}

/// What the kernel's side knows, by backend address. Cheap to clone, and what two of them have in common
/// is soon found: whoever has an earlier one finds what has changed since.
pub type NextHops = OrdMap<IpAddr, Answer>;

/// What the kernel's side knows of the way to one backend. Those behind a gateway share it.
pub type Answer = Arc<Result<Resolved, Unresolved>>;
