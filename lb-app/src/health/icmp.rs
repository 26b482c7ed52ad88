//! Does somebody send pings back?

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lb_core::wire::checksum::Checksum;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::warn;
use zerocopy::IntoBytes as _;

use super::failure::Failure;

/// Bytes of an ICMP header with identifier and sequence number (RFC 792, RFC 4443 §4).
const HEADER_BYTES: usize = 8;
/// Behind it: our key, and the ping's number.
const PAYLOAD_BYTES: usize = 16;
/// Bytes of a message that are looked at: with the largest IPv4 header.
const MESSAGE_BYTES_MAX: usize = 60 + HEADER_BYTES + PAYLOAD_BYTES;
/// After an error of the socket.
const PAUSE: Duration = Duration::from_millis(100);

/// What an echo is asked for and answered with, by family.
#[derive(Clone, Copy, Debug)]
struct Types {
    request: u8,
    reply: u8,
}

const IPV4: Types = Types { request: 8, reply: 0 };
const IPV6: Types = Types { request: 128, reply: 129 };

/// Sends pings, all of a family by one socket, which is opened when it is first needed.
#[derive(Debug)]
pub(super) struct Pinger {
    ipv4: OnceLock<Arc<Side>>,
    ipv6: OnceLock<Arc<Side>>,
    /// In every ping, so that answers are to ours.
    key: u64,
}

/// The pings of one family.
#[derive(Debug)]
struct Side {
    /// Of another kind than it seems: the calls are the same, and addresses have port 0.
    socket: UdpSocket,
    /// Raw sockets give the IPv4 header, too.
    is_raw: bool,
    types: Types,
    key: u64,
    next: AtomicU64,
    /// Who was asked, and who waits for the answer.
    waiting: Mutex<HashMap<u64, (IpAddr, oneshot::Sender<()>)>>,
}

/// Waits no longer, however that comes.
struct Waiting<'a> {
    side: &'a Side,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.side.waiting().remove(&self.number);
    }
}

impl Pinger {
    pub(super) fn new(key: u64) -> Self {
        Self { ipv4: OnceLock::new(), ipv6: OnceLock::new(), key }
    }

    /// Returns when the answer has come.
    pub(super) async fn check(&self, address: IpAddr) -> Result<(), Failure> {
        let side = self.side(address).map_err(Failure::Ours)?;
        let number = side.next.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        side.waiting().insert(number, (address, answered));
        let _waiting = Waiting { side: &side, number };
        side.socket.send_to(&side.request(number), SocketAddr::from((address, 0))).await?;
        answer.await.map_err(|_| Failure::Ours(io::Error::other("the ICMP socket is closed")))
    }

    fn side(&self, address: IpAddr) -> io::Result<Arc<Side>> {
        let (cell, domain, protocol, types) = match address {
            IpAddr::V4(_) => (&self.ipv4, Domain::IPV4, Protocol::ICMPV4, IPV4),
            IpAddr::V6(_) => (&self.ipv6, Domain::IPV6, Protocol::ICMPV6, IPV6),
        };
        if let Some(side) = cell.get() {
            return Ok(Arc::clone(side));
        }
        let (socket, is_raw) = open(domain, protocol)?;
        let side = Arc::new(Side {
            socket,
            is_raw,
            types,
            key: self.key,
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
        });
        // Ends with the runtime.
        tokio::spawn(Arc::clone(&side).receive());
        Ok(Arc::clone(cell.get_or_init(|| side)))
    }
}

/// Where the kernel allows it (`net.ipv4.ping_group_range`), a socket that gets the answers to its
/// own pings only; else one that gets all ICMP messages of the machine.
fn open(domain: Domain, protocol: Protocol) -> io::Result<(UdpSocket, bool)> {
    let (socket, is_raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (Socket::new(domain, Type::RAW, Some(protocol))?, true)
        }
        socket => (socket?, false),
    };
    socket.set_nonblocking(true)?;
    let socket =
        UdpSocket::from_std(std::net::UdpSocket::from(std::os::fd::OwnedFd::from(socket)))?;
    Ok((socket, is_raw))
}

impl Side {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, (IpAddr, oneshot::Sender<()>)>> {
        // Whoever panicked did so between two whole changes.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, number: u64) -> [u8; HEADER_BYTES + PAYLOAD_BYTES] {
        let mut message = [0; HEADER_BYTES + PAYLOAD_BYTES];
        let [.., a, b] = number.to_be_bytes();
        message[0] = self.types.request;
        message[4..6].copy_from_slice(&self.key.to_be_bytes()[..2]);
        message[6..8].copy_from_slice(&[a, b]);
        message[8..16].copy_from_slice(&self.key.to_be_bytes());
        message[16..24].copy_from_slice(&number.to_be_bytes());
        // Of ICMPv6 the kernel makes it (RFC 3542 §3.1), and of sockets of the other kind.
        let checksum = Checksum::of(&message);
        message[2..4].copy_from_slice(checksum.as_bytes());
        message
    }

    /// The number of the ping that `message` is the answer to.
    fn reply(&self, message: &[u8]) -> Option<u64> {
        let is_ipv4 = self.types.reply == IPV4.reply;
        let message = match message.first() {
            Some(first) if is_ipv4 && self.is_raw => message.get(usize::from(first & 0xf) * 4..)?,
            _ => message,
        };
        let (header, payload) = message.split_at_checked(HEADER_BYTES)?;
        let (key, rest) = payload.split_first_chunk()?;
        let number = rest.first_chunk()?;
        let is_ours =
            header.starts_with(&[self.types.reply, 0]) && u64::from_be_bytes(*key) == self.key;
        is_ours.then(|| u64::from_be_bytes(*number))
    }

    async fn receive(self: Arc<Self>) {
        let mut message = [0; MESSAGE_BYTES_MAX];
        loop {
            match self.socket.recv_from(&mut message).await {
                Ok((len, from)) => {
                    if let Some(number) = message.get(..len).and_then(|it| self.reply(it)) {
                        self.take(number, from.ip());
                    }
                }
                Err(error) => {
                    warn!("the socket for pings: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn take(&self, number: u64, from: IpAddr) {
        let mut waiting = self.waiting();
        if waiting.get(&number).is_some_and(|(address, _)| *address == from)
            && let Some((_, answered)) = waiting.remove(&number)
        {
            // Fails if nobody waits any more, which is as good.
            let _ = answered.send(());
        }
    }
}
