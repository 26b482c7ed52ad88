//! How a TAP is set up: as an ordinary interface of the machine, with the port's MAC.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use lb_core::tables::next_hop::Port;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use tracing::debug;

use super::error::KernelError;
use super::netlink::{Netlink, Request};

/// Frames that wait to be read from a TAP, at most. A burst of the kernel's (neighbour probes,
/// above all) that finds it full is lost.
const QUEUE_LEN: u32 = 4096;

/// What a TAP needs to be different from the defaults: below `/proc/sys/net`, per interface.
const SETTINGS: [(&str, &str, &str); 6] = [
    // Answer ARP only for addresses of this interface (another port's TAP answers for its own),
    ("ipv4", "arp_ignore", "1"),
    // and ask with an address of this interface: a backend that has the VIP itself (l2dsr) does
    // not answer questions that come from the VIP.
    ("ipv4", "arp_announce", "2"),
    // Addresses are used at once: balancers of a site may share a VIP, and nothing may wait for
    // a data plane that does not forward yet.
    ("ipv6", "accept_dad", "0"),
    // Addresses and routes come from the configuration and from routing daemons.
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "autoconf", "0"),
    // Setting the interface down and up again keeps its addresses, as it does with IPv4.
    ("ipv6", "keep_addr_on_down", "1"),
];

/// How the kernel asks for neighbours there, in both families: five times as often, for as long. A
/// question may be lost, above all the first ones, while the link comes up; and flows wait for it.
const QUESTIONS: [(&str, &str); 3] =
    [("retrans_time_ms", "200"), ("mcast_solicit", "15"), ("ucast_solicit", "15")];

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix_len: u8,
}

/// All addresses of this machine.
pub(super) async fn assigned(netlink: &mut Netlink) -> Result<Vec<Assigned>, KernelError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let dump = netlink.dump(request, "addresses").await?;
    Ok(dump
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => assignment(message),
            _ => None,
        })
        .collect())
}

fn assignment(message: &AddressMessage) -> Option<Assigned> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // Where both are there, the other one is the peer's.
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    Some(Assigned {
        index: message.header.index,
        address: found?,
        prefix_len: message.header.prefix_len,
    })
}

/// Gives the interface `index`, a TAP that is down, all that `port` says, and sets it up.
pub(super) async fn configure(
    netlink: &mut Netlink,
    port: &Port,
    index: u32,
) -> Result<(), KernelError> {
    for (family, key, value) in SETTINGS {
        write_setting(family, &port.name, key, value)?;
    }
    for (family, (key, value)) in
        ["ipv4", "ipv6"].into_iter().flat_map(|family| QUESTIONS.map(|it| (family, it)))
    {
        let path = Path::new("/proc/sys/net").join(family).join("neigh").join(&port.name).join(key);
        // It works without as well, only later.
        if let Err(error) = fs::write(&path, value) {
            debug!("{}: {error}", path.display());
        }
    }
    if port.ipv6().is_some() {
        // Else it is as the administrator wants interfaces to be.
        write_setting("ipv6", &port.name, "disable_ipv6", "0")?;
    }
    let attributes = vec![
        LinkAttribute::Address(port.mac.0.to_vec()),
        LinkAttribute::Mtu(u32::from(port.mtu)),
        LinkAttribute::TxQueueLen(QUEUE_LEN),
    ];
    let what = || format!("give {} the MAC {} and the MTU {}", port.name, port.mac, port.mtu);
    netlink.ask(shaped(index, attributes), what).await?;

    let what = || format!("set {} up", port.name);
    netlink.ask(up(index), what).await?;

    for net in &port.addresses {
        let what = || format!("add {net} to {}", port.name);
        netlink.ask(add_own(index, *net), what).await?;
    }
    Ok(())
}

/// Asks the kernel to give an interface these attributes.
pub(super) fn shaped(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    (RouteNetlinkMessage::SetLink(link), 0)
}

/// Asks the kernel to set an interface up.
pub(super) fn up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(link), 0)
}

/// Asks the kernel to take an own address.
pub(super) fn add_own(index: u32, net: IpNet) -> Request {
    add(index, net, AddressFlags::Nodad)
}

/// Asks the kernel to take a VIP: to answer for it, but never to choose it as a source.
pub(super) fn add_vip(index: u32, net: IpNet) -> Request {
    let mut request = add(index, net, AddressFlags::Nodad | AddressFlags::Noprefixroute);
    if let (RouteNetlinkMessage::NewAddress(message), IpNet::V6(_)) = (&mut request.0, net) {
        // A deprecated address is not chosen as a source (RFC 6724, rule 3). Among IPv4
        // addresses that of the destination's prefix is chosen, which no VIP's is.
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_preferred = 0;
        lifetime.ifa_valid = u32::MAX;
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    request
}

fn add(index: u32, net: IpNet, flags: AddressFlags) -> Request {
    let mut message = address_message(index, net);
    message.attributes.push(AddressAttribute::Flags(flags));
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Asks the kernel to give up an address.
pub(super) fn remove(index: u32, net: IpNet) -> Request {
    (RouteNetlinkMessage::DelAddress(address_message(index, net)), 0)
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = match net.addr() {
        IpAddr::V6(address) if address.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

/// Writes only what is not so already: `/proc/sys` may be read-only in a container whose
/// defaults are right.
fn write_setting(
    family: &str,
    interface: &str,
    key: &str,
    value: &'static str,
) -> Result<(), KernelError> {
    let path = Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(key);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == value => Ok(()),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => Ok(()),
        _ => fs::write(&path, value).map_err(|source| KernelError::Setting { path, value, source }),
    }
}
