//! Requests to the kernel over rtnetlink.
//!
//! One socket, one exchange at a time, matched by sequence number: an exchange that the caller
//! gave up halfway leaves answers behind that the next one passes over. Requests go in batches of
//! a size whose answers always fit the socket's buffer, so that none is lost and ten thousand
//! route lookups take a few hundred system calls.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload,
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
        requests: Vec<Request>,
    ) -> Result<Vec<Answer>, KernelError> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter();
        loop {
            let batch: Vec<Request> = requests.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                return Ok(answers);
            }
            answers.extend(self.exchange(batch).await?.0);
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
        for attempt in 0..DUMPS_MAX {
            if attempt > 0 {
                tokio::time::sleep(DUMP_PAUSE).await;
            }
            let batch = vec![(request.clone(), NLM_F_DUMP)];
            let (mut answers, consistent) = self.exchange(batch).await?;
            match answers.pop().unwrap_or(Ok(Vec::new())) {
                Ok(table) if consistent => return Ok(table),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(KernelError::Refused { request: format!("list {what}"), errno });
                }
            }
        }
        Err(KernelError::Unsettled(what))
    }

    /// Sends a batch and collects the answers; also says whether dumps among them are consistent.
    async fn exchange(&mut self, batch: Vec<Request>) -> Result<(Vec<Answer>, bool), KernelError> {
        let first = self.sequence.wrapping_add(1);
        let mut pending = Pending::new(first, batch.len());
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
                    messages(&self.received).for_each(|message| pending.take(message));
                }
            }
            Ok(())
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(())) => Ok((pending.answers, pending.consistent)),
            Ok(Err(error)) => Err(KernelError::Netlink(error)),
            Err(_) => Err(KernelError::NoAnswer(ANSWER_TIMEOUT_S)),
        }
    }
}

/// The answers to a batch, as they come in.
struct Pending {
    first: u32,
    answers: Vec<Answer>,
    complete: Vec<bool>,
    left: usize,
    consistent: bool,
}

impl Pending {
    fn new(first: u32, len: usize) -> Self {
        Self {
            first,
            answers: vec![Ok(Vec::new()); len],
            complete: vec![false; len],
            left: len,
            consistent: true,
        }
    }

    fn take(&mut self, message: &[u8]) {
        let (header, payload) = match NetlinkMessage::deserialize(message) {
            Ok(message) => message.into_parts(),
            Err(error) => {
                // An attribute newer than the decoder, of something that does not concern us.
                tracing::debug!(%error, "a netlink message is unreadable");
                return;
            }
        };
        let place = header.sequence_number.wrapping_sub(self.first) as usize;
        let (Some(answer), Some(complete)) =
            (self.answers.get_mut(place), self.complete.get_mut(place))
        else {
            return; // of an earlier exchange
        };
        self.consistent &= header.flags & NLM_F_DUMP_INTR == 0;
        let done = match payload {
            NetlinkPayload::InnerMessage(message) => {
                if let Ok(messages) = answer {
                    messages.push(message);
                }
                false
            }
            NetlinkPayload::Error(error) => {
                if let Some(code) = error.code {
                    *answer = Err(Errno::from_raw(code.get().saturating_neg()));
                }
                true
            }
            NetlinkPayload::Done(done) => {
                if done.code < 0 {
                    *answer = Err(Errno::from_raw(done.code.saturating_neg()));
                }
                true
            }
            _ => false,
        };
        if done && !*complete {
            *complete = true;
            self.left -= 1;
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
