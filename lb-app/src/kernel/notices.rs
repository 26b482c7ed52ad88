//! What the kernel tells without being asked: changes of links, addresses, routes and neighbours.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::task::{Context, Poll, ready};

use ipnet::IpNet;
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use nix::errno::Errno;

use super::links::{self, Link};
use super::netlink::{DATAGRAM_LEN_MAX, messages};

/// `RTNLGRP_*` of `linux/rtnetlink.h`: link, neigh, IPv4 ifaddr, route, rule, IPv6 ifaddr, route,
/// rule, nexthop.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// `RTM_NEWRULE` and `RTM_DELRULE`, `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`: which routes they
/// concern cannot be told.
const EVERY_ROUTE: [u16; 4] = [32, 33, 104, 105];

/// Receive buffer asked for, in bytes; the kernel grants at most `net.core.rmem_max`. A neighbour
/// that changes takes about 1 kB of it.
const BUFFER_LEN: i32 = 4 << 20;

/// Datagrams taken at once.
const DATAGRAMS_MAX: usize = 1024;

/// One change.
#[derive(Debug)]
pub(super) enum Notice {
    Link(u32, Link),
    LinkGone(u32),
    Neighbour(NeighbourMessage),
    NeighbourGone(NeighbourMessage),
    /// Routes to this prefix came, went, or changed.
    Routes(IpNet),
    /// Any route may have changed.
    EveryRoute,
    /// An interface lost an address, and perhaps routes without further notice.
    AddressGone,
    /// Notices were lost: everything may have changed.
    Lost,
}

impl Notice {
    /// May there be other routes than before?
    pub(super) fn is_about_routes(&self) -> bool {
        !matches!(self, Self::Neighbour(_) | Self::NeighbourGone(_))
    }
}

pub(super) struct Notices {
    socket: TokioSocket,
    received: Vec<u8>,
}

impl Notices {
    pub(super) fn subscribe() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind_auto()?;
        inner.set_rx_buf_sz(BUFFER_LEN)?;
        for group in GROUPS {
            inner.add_membership(group)?;
        }
        Ok(Self { socket, received: Vec::with_capacity(DATAGRAM_LEN_MAX) })
    }

    /// Waits for a notice, and gives it with those that have come by then. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Notice>> {
        poll_fn(|context| match self.poll_notices(context) {
            Ok(notices) if notices.is_empty() => Poll::Pending,
            result => Poll::Ready(result),
        })
        .await
    }

    /// Notices that have come by now, and whether these are all. While some are left that came
    /// after a [`Notice::Lost`], the kernel loses further ones without another word.
    pub(super) fn ready(&mut self) -> io::Result<(Vec<Notice>, bool)> {
        let mut notices = Vec::new();
        for _ in 0..DATAGRAMS_MAX {
            self.received.clear();
            // Not by way of tokio, which ends a turn early, so that other tasks have theirs.
            match self.socket.socket_ref().recv_from(&mut self.received, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((notices, true));
                }
                received => self.take(received.map(|(_, from)| from), &mut notices)?,
            }
        }
        Ok((notices, false))
    }

    fn poll_notices(&mut self, context: &mut Context<'_>) -> io::Result<Vec<Notice>> {
        let mut notices = Vec::new();
        for _ in 0..DATAGRAMS_MAX {
            match self.poll_datagram(context, &mut notices) {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            }
        }
        Ok(notices)
    }

    fn poll_datagram(
        &mut self,
        context: &mut Context<'_>,
        notices: &mut Vec<Notice>,
    ) -> Poll<io::Result<()>> {
        self.received.clear();
        let received = ready!(self.socket.poll_recv_from(context, &mut self.received));
        Poll::Ready(self.take(received, notices))
    }

    /// Takes the datagram that was received, or why none was.
    fn take(
        &mut self,
        received: io::Result<SocketAddr>,
        notices: &mut Vec<Notice>,
    ) -> io::Result<()> {
        match received {
            Ok(from) if from.port_number() == 0 => {
                notices.extend(messages(&self.received).filter_map(parse));
            }
            Ok(_) => {} // somebody else's
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                notices.push(Notice::Lost);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What a message means to us, if anything.
fn parse(message: &[u8]) -> Option<Notice> {
    let kind = NetlinkBuffer::new_checked(message).ok()?.message_type();
    if EVERY_ROUTE.contains(&kind) {
        return Some(Notice::EveryRoute);
    }
    let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(%error, "a netlink notice of type {kind} is unreadable");
            return Some(Notice::Lost);
        }
    };
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(link) => links::parse(&link).map(|(i, l)| Notice::Link(i, l)),
        // A bridge says so when a port leaves it: the link itself stays.
        RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(Notice::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) => Some(Notice::Neighbour(neighbour)),
        RouteNetlinkMessage::DelNeighbour(neighbour) => Some(Notice::NeighbourGone(neighbour)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
            if !route.header.flags.contains(RouteFlags::Cloned) =>
        {
            Some(prefix(&route).map_or(Notice::EveryRoute, Notice::Routes))
        }
        RouteNetlinkMessage::DelAddress(_) => Some(Notice::AddressGone),
        _ => None,
    }
}

/// The destination of a route.
pub(super) fn prefix(route: &RouteMessage) -> Option<IpNet> {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let default = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(destination.unwrap_or(default), route.header.destination_prefix_length).ok()
}
