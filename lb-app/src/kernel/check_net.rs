//! A network of their own for checks that go to service addresses.
//!
//! The machine has these addresses itself: what is sent to them there never leaves it. So the sockets
//! of such checks are in a network namespace that has the ports' own addresses, none of the services',
//! and one way out for everything, a TUN. Who reads it has to bring the packets to their backends, and
//! their answers back.

use std::fmt;
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tracing::error;

use super::error::KernelError;
use super::interface::{add_own, shaped, up};
use super::netlink::{Netlink, Request};
use super::tap::Tap;

/// The TUN's name there.
const NAME: &str = "backends";
/// What every link carries (RFC 8200 §5), so that a tunnel's header fits as well.
const MTU: u16 = 1280;
/// Packets that wait to be read from the TUN, at most: one each of all checks that may be under way.
const QUEUE_LEN: u32 = 8192;

/// The network, and a thread whose sockets are there. Dropping it ends both.
pub(crate) struct CheckNet {
    tun: Tap,
    runtime: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl CheckNet {
    /// A network with these addresses.
    pub(crate) fn open(own: Vec<IpAddr>) -> Result<Self, KernelError> {
        let (opened, is_open) = mpsc::sync_channel(1);
        let (end, ended) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("checks".into()).spawn(move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(opened.send(Err(error.into()))),
            };
            let is_kept = match runtime.block_on(set_up(&own)) {
                Ok(tun) => opened.send(Ok((tun, runtime.handle().clone()))).is_ok(),
                Err(error) => return drop(opened.send(Err(error))),
            };
            if is_kept {
                // Fails when the other end is dropped, which is as good.
                let _ = runtime.block_on(ended);
            }
        })?;
        let ended_early = || KernelError::Netlink(std::io::Error::other("the thread has ended"));
        let (tun, runtime) = is_open.recv().map_err(|_| ended_early())??;
        Ok(Self { tun, runtime, end: Some(end), thread: Some(thread) })
    }

    /// Where tasks run whose sockets are in this network.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The way out: IP packets, without anything in front.
    pub(crate) fn tun(&self) -> &Tap {
        &self.tun
    }
}

impl Drop for CheckNet {
    fn drop(&mut self) {
        self.end = None;
        let Some(thread) = self.thread.take() else { return };
        // The last who has it may be a check, on that very thread.
        let is_another = thread.thread().id() != thread::current().id();
        if is_another && thread.join().is_err() {
            error!("the thread of the checks through services ended early");
        }
    }
}

impl fmt::Debug for CheckNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckNet").field("tun", &self.tun).finish_non_exhaustive()
    }
}

/// Takes the calling thread to a new network.
async fn set_up(own: &[IpAddr]) -> Result<Tap, KernelError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(KernelError::Namespace)?;
    let tun = Tap::open_tun(NAME)?;
    let index = tun.index()?;
    let mut netlink = Netlink::open()?;
    let attributes = vec![LinkAttribute::Mtu(MTU.into()), LinkAttribute::TxQueueLen(QUEUE_LEN)];
    for request in [shaped(index, attributes), up(index)] {
        netlink.ask(request, || format!("set {NAME} up")).await?;
    }
    for address in own {
        let what = || format!("add {address} to {NAME}");
        netlink.ask(add_own(index, IpNet::from(*address)), what).await?;
    }
    for (family, is_used) in [
        (AddressFamily::Inet, own.iter().any(IpAddr::is_ipv4)),
        (AddressFamily::Inet6, own.iter().any(IpAddr::is_ipv6)),
    ] {
        if is_used {
            let what = || format!("make {NAME} the way to everywhere");
            netlink.ask(everywhere(index, family), what).await?;
        }
    }
    Ok(tun)
}

fn everywhere(index: u32, family: AddressFamily) -> Request {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(index));
    (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
}
