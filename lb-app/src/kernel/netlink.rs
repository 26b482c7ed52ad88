//! Requests to the kernel over rtnetlink.
//!
//! One socket, one exchange at a time, matched by sequence number: an exchange that the caller
//! gave up halfway leaves answers behind that the next one passes over. Requests go in batches of
//! a size whose answers always fit the socket's buffer, so that none is lost and ten thousand
//! route lookups take a few hundred system calls.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use super::error::KernelError;

/// How long an answer may take. The kernel answers while it takes the request: this only ends
/// what would else hang.
const ANSWER_TIMEOUT_S: u64 = 5;

/// Requests sent at once. The kernel charges an answer with up to 5 kB of the socket's receive
/// buffer, which has 208 kB by default.
const BATCH_MAX: usize = 32;

/// How often a dump is begun because the table changed under it, and how long it is left alone
/// before.
const DUMPS_MAX: usize = 4;
const DUMP_PAUSE: Duration = Duration::from_millis(5);

/// Largest datagram that the kernel sends: dumps fill the reader's buffer, up to 32 kB.
pub(super) const DATAGRAM_LEN_MAX: usize = 64 << 10;

/// A request, with flags beyond `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) type Request = (RouteNetlinkMessage, u16);

/// What the kernel gave for one request; empty where it has nothing to say but "done".
pub(super) type Answer = Result<Vec<RouteNetlinkMessage>, Errno>;

pub(super) struct Netlink {
    socket: TokioSocket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM_LEN_MAX) })
    }

    /// One request that must succeed; `what` names it in the error.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        what: impl FnOnce() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut answers = self.ask_all(vec![request]).await?;
        let answer = answers.pop().unwrap_or(Ok(Vec::new()));
        answer.map_err(|errno| KernelError::Refused { request: what(), errno })
    }

    /// Any number of requests; gives the answers in their order.
    pub(super) async fn ask_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Answer>, KernelError> {
        let mut answers = Vec::new();
        let mut requests = requests.into_iter();
        loop {
            let batch: Vec<Request> = requests.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                return Ok(answers);
            }
            let mut messages = vec![Vec::new(); batch.len()];
            let read = |place: usize, message: &[u8]| {
                if let Some(messages) = messages.get_mut(place) {
                    messages.extend(decode(message));
                }
            };
            let ended = self.exchange(batch, read).await?;
            let both = ended.results.into_iter().zip(messages);
            answers.extend(both.map(|(result, messages)| result.map(|()| messages)));
            // The kernel answers at once, so the awaits above never let other tasks run.
            tokio::task::yield_now().await;
        }
    }

    /// A whole table of the kernel, as it was at one time.
    ///
    /// # Errors
    /// [`KernelError::Unsettled`] if there was no such time: to be tried again later.
    pub(super) async fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        what: &'static str,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.dump_as(request, what, decode).await
    }

    /// As [`Self::dump`], of each message what `read` makes of it.
    pub(super) async fn dump_as<T>(
        &mut self,
        request: RouteNetlinkMessage,
        what: &'static str,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for attempt in 0..DUMPS_MAX {
            if attempt > 0 {
                tokio::time::sleep(DUMP_PAUSE).await;
            }
            let mut table = Vec::new();
            let batch = vec![(request.clone(), NLM_F_DUMP)];
            let ended = self.exchange(batch, |_, message| table.extend(read(message))).await?;
            match ended.results.first() {
                Some(Err(errno)) if *errno != Errno::EINTR => {
                    let request = format!("list {what}");
                    return Err(KernelError::Refused { request, errno: *errno });
                }
                Some(Ok(())) if ended.are_consistent => return Ok(table),
                _ => {}
            }
        }
        Err(KernelError::Unsettled(what))
    }

    /// Sends a batch, and gives `read` the messages of the answers, each with the place of its request.
    async fn exchange(
        &mut self,
        batch: Vec<Request>,
        mut read: impl FnMut(usize, &[u8]),
    ) -> Result<Ended, KernelError> {
        let mut pending = Pending::new(self.sequence.wrapping_add(1), batch.len());
        let mut bytes = Vec::new();
        for (message, flags) in batch {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut bytes, message, flags, self.sequence);
        }
        let patience = Duration::from_secs(ANSWER_TIMEOUT_S);
        let answered = async {
            self.socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
            while pending.left > 0 {
                self.received.clear();
                let from = self.socket.recv_from(&mut self.received).await?;
                if from.port_number() == 0 {
                    messages(&self.received).for_each(|message| pending.take(message, &mut read));
                }
            }
            Ok(())
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(())) => Ok(pending.ended),
            Ok(Err(error)) => Err(KernelError::Netlink(error)),
            Err(_) => Err(KernelError::NoAnswer(ANSWER_TIMEOUT_S)),
        }
    }
}

/// How a batch has ended.
struct Ended {
    /// By the place of the request.
    results: Vec<Result<(), Errno>>,
    /// Dumps are of one time.
    are_consistent: bool,
}

/// The answers to a batch, as they come in.
struct Pending {
    first: u32,
    ended: Ended,
    is_complete: Vec<bool>,
    left: usize,
}

impl Pending {
    fn new(first: u32, len: usize) -> Self {
        let ended = Ended { results: vec![Ok(()); len], are_consistent: true };
        Self { first, ended, is_complete: vec![false; len], left: len }
    }

    fn take(&mut self, message: &[u8], read: impl FnOnce(usize, &[u8])) {
        let Ok(buffer) = NetlinkBuffer::new_checked(message) else { return };
        let place = buffer.sequence_number().wrapping_sub(self.first) as usize;
        let (Some(result), Some(is_complete)) =
            (self.ended.results.get_mut(place), self.is_complete.get_mut(place))
        else {
            return; // of an earlier exchange
        };
        self.ended.are_consistent &= buffer.flags() & NLM_F_DUMP_INTR == 0;
        match buffer.message_type() {
            NLMSG_NOOP | NLMSG_OVERRUN => {}
            NLMSG_ERROR | NLMSG_DONE => {
                let code = buffer.payload().first_chunk().map_or(0, |it| i32::from_ne_bytes(*it));
                if code < 0 {
                    *result = Err(Errno::from_raw(code.saturating_neg()));
                }
                if !*is_complete {
                    *is_complete = true;
                    self.left -= 1;
                }
            }
            _ => read(place, message),
        }
    }
}

/// A message that says something. `None`: it is not to be read.
fn decode(message: &[u8]) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(message).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(message)) => Some(message),
        Ok(_) => None,
        Err(error) => {
            // An attribute newer than the decoder, of something that does not concern us.
            tracing::debug!(%error, "a netlink message is unreadable");
            None
        }
    }
}

/// Appends a request in the form of the wire.
fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len().next_multiple_of(4);
    bytes.resize(start + message.buffer_len(), 0);
    if let Some(place) = bytes.get_mut(start..) {
        message.serialize(place);
    }
}

/// The messages of a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(datagram).ok()?;
        let len = usize::try_from(buffer.length()).ok()?;
        let message = datagram.get(..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
