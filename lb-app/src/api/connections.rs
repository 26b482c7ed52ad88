//! Clients, and what bounds them.
//!
//! Who comes in is a stranger: it has to say the first words, of TLS where that is spoken, and of HTTP/2, and
//! soon. Strangers are many, and cost little; where there are too many, the one that has taken longest goes,
//! so that those who say nothing keep nobody out. Who has said the words is a client, and has a place.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy, sink,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet, yield_now};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::listen::Listener;
use crate::tls::Acceptor;

/// Clients at a time; others are turned away at once.
pub(super) const CONNECTIONS_MAX: usize = 32;
/// Strangers at a time.
pub(super) const STRANGERS_MAX: usize = 128;
/// How long one has to say the first words, at least: for so long nobody else comes in, if there are as
/// many already.
const HEARD_TIME_MIN: Duration = Duration::from_millis(100);
/// How long one may take to say the first words.
const GREETING_TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How long a client may take to read what was written to it: as long as it reads nothing, it is not asked
/// whether it is there, either.
pub(super) const UNREAD_TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// How long somebody who is refused by TLS may take to go.
const LINGER_TIME_MAX: Duration = Duration::from_millis(500);
/// The first words of HTTP/2 (RFC 9113 §3.4). From then on clients that are silent are asked whether they
/// are there: see [`super::server`].
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait when no more can be accepted, for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the same complaint is not repeated.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(10);

/// What a connection is, whatever it comes by.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A client's connection.
pub(crate) struct Connection {
    wire: Box<dyn Wire>,
    /// What has been read of it already.
    read: &'static [u8],
    /// Nothing more can be written until then, and no longer.
    unread: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// Why somebody is turned away.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Tls(io::Error),
    #[error("it does not speak HTTP/2")]
    NotHttp2,
    #[error("it has not said the first words within {}s", GREETING_TIME_MAX.as_secs())]
    Silent,
    #[error("it has gone before it had said the first words")]
    Gone,
    #[error("it has taken longest of {STRANGERS_MAX} that had not said the first words")]
    Crowd,
    #[error("there are {CONNECTIONS_MAX} clients")]
    NoPlace,
    #[error("it cannot be accepted: {0}")]
    Accept(io::Error),
}

/// Who comes in.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Address(SocketAddr),
    Process(Option<i32>),
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Process(Some(id)) => write!(f, "process {id}"),
            Self::Process(None) | Self::Unknown => f.write_str("a client"),
        }
    }
}

/// Says why clients are turned away: each reason once, and later with how many there were meanwhile.
#[derive(Debug, Default)]
struct Complaints(HashMap<Discriminant<Refusal>, (Instant, u64)>);

impl Complaints {
    /// What there is to say.
    fn say(&mut self, peer: Peer, refusal: &Refusal, now: Instant) -> Option<String> {
        let known = self.0.get_mut(&discriminant(refusal));
        if let Some((last, more)) = known
            && now.duration_since(*last) < COMPLAINT_INTERVAL
        {
            *more += 1;
            return None;
        }
        let before = self.0.insert(discriminant(refusal), (now, 0));
        let more = match before {
            Some((_, more @ 1..)) => format!("; so were {more} more since that was last said"),
            _ => String::new(),
        };
        Some(format!("{peer} is turned away: {refusal}{more}"))
    }

    fn note(&mut self, peer: Peer, refusal: &Refusal) {
        if let Some(complaint) = self.say(peer, refusal, Instant::now()) {
            warn!("{complaint}");
        }
    }
}

/// The clients that come in, by TLS if `tls` is there. To be called within a runtime.
pub(crate) fn incoming(
    listener: Listener,
    tls: Option<Acceptor>,
) -> ReceiverStream<io::Result<Connection>> {
    let (bring, brought) = mpsc::channel(1);
    tokio::spawn(receive(listener, tls, bring));
    ReceiverStream::new(brought)
}

/// Until nobody wants clients any more.
async fn receive(
    listener: Listener,
    mut tls: Option<Acceptor>,
    bring: mpsc::Sender<io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut complaints = Complaints::default();
    let mut greetings = JoinSet::new();
    let mut strangers: VecDeque<(Instant, Peer, AbortHandle)> = VecDeque::new();
    loop {
        strangers.retain(|(_, _, stranger)| !stranger.is_finished());
        let oldest = strangers.front().filter(|_| strangers.len() >= STRANGERS_MAX);
        let full_until = oldest.map(|(since, ..)| *since + HEARD_TIME_MIN);
        let full_until = full_until.filter(|until| *until > Instant::now());
        tokio::select! {
            () = sleep_until(full_until.unwrap_or_else(Instant::now)), if full_until.is_some() => {}
            accepted = accept(&listener), if full_until.is_none() => match accepted {
                Ok((wire, peer)) => {
                    if strangers.len() >= STRANGERS_MAX
                        && let Some((_, peer, oldest)) = strangers.pop_front()
                    {
                        oldest.abort();
                        complaints.note(peer, &Refusal::Crowd);
                    }
                    let greeting = greet(wire, tls.as_mut().map(Acceptor::newest));
                    let greeting = async move { (peer, greeting.await) };
                    strangers.push_back((Instant::now(), peer, greetings.spawn(greeting)));
                    // What it has said already is read before the next comes.
                    yield_now().await;
                }
                Err(error) => {
                    complaints.note(Peer::Unknown, &Refusal::Accept(error));
                    sleep(PAUSE).await;
                }
            },
            Some(ended) = greetings.join_next() => {
                let Ok((peer, greeted)) = ended else { continue }; // it was turned away above
                let place = || Arc::clone(&places).try_acquire_owned();
                let client = greeted.and_then(|wire| match place() {
                    Ok(place) => Ok(Connection { wire, read: PREFACE, unread: None, _place: place }),
                    Err(_) => Err(Refusal::NoPlace),
                });
                match client {
                    // Fails if nobody wants clients any more, which is seen below.
                    Ok(client) => drop(bring.send(Ok(client)).await),
                    Err(refusal) => complaints.note(peer, &refusal),
                }
            }
            () = bring.closed() => return,
        }
    }
}

async fn accept(listener: &Listener) -> io::Result<(Box<dyn Wire>, Peer)> {
    match listener {
        Listener::Unix { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            let peer = Peer::Process(stream.peer_cred().ok().and_then(|it| it.pid()));
            Ok((Box::new(stream), peer))
        }
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            let _ = stream.set_nodelay(true); // it may have gone
            Ok((Box::new(stream), Peer::Address(address)))
        }
    }
}

/// Hears a stranger's first words.
async fn greet(wire: Box<dyn Wire>, tls: Option<TlsAcceptor>) -> Result<Box<dyn Wire>, Refusal> {
    let greeting = async {
        let mut wire = match tls {
            None => wire,
            Some(tls) => match tls.accept(wire).into_fallible().await {
                Ok(wire) => Box::new(wire),
                Err((error, wire)) => {
                    hear_out(wire).await;
                    return Err(Refusal::of(error));
                }
            },
        };
        let mut words = [0; PREFACE.len()];
        wire.read_exact(&mut words).await.map_err(Refusal::of)?;
        if words == *PREFACE { Ok(wire) } else { Err(Refusal::NotHttp2) }
    };
    timeout(GREETING_TIME_MAX, greeting).await.unwrap_or(Err(Refusal::Silent))
}

/// Lets somebody who has been told why it is refused read that: where something it has said is not read, the
/// kernel resets the connection, and takes that back.
async fn hear_out(mut wire: Box<dyn Wire>) {
    let hear = async {
        wire.shutdown().await?;
        copy(&mut wire, &mut sink()).await
    };
    // It may go on talking, or have gone.
    let _ = timeout(LINGER_TIME_MAX, hear).await;
}

impl Refusal {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            // So rustls's errors come.
            io::ErrorKind::InvalidData => Self::Tls(error),
            _ => Self::Gone,
        }
    }
}

impl Connection {
    /// What became of writing, unless that takes too long.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.unread = None;
            return result;
        }
        let patience = self.unread.get_or_insert_with(|| Box::pin(sleep(UNREAD_TIME_MAX)));
        patience.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.wire).poll_read(context, buffer);
        }
        let (now, later) = self.read.split_at(self.read.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.read = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.wire).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.wire).poll_flush(context);
        self.bounded(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.wire).poll_shutdown(context);
        self.bounded(context, shut)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_said_once_and_later_how_often_it_was_true() {
        let mut complaints = Complaints::default();
        let start = Instant::now();
        let peer = Peer::Address(([192, 0, 2, 9], 4711).into());
        let mut say =
            |refusal, seconds| complaints.say(peer, &refusal, start + Duration::from_secs(seconds));
        let said = say(Refusal::NotHttp2, 0).unwrap();
        assert_eq!(said, "192.0.2.9:4711 is turned away: it does not speak HTTP/2");
        for second in 1..600 {
            assert_eq!(say(Refusal::NotHttp2, second), None);
        }
        assert!(say(Refusal::Gone, 5).is_some(), "another reason is news");
        let said = say(Refusal::NotHttp2, 600).unwrap();
        assert!(said.ends_with("; so were 599 more since that was last said"), "{said}");
        assert_eq!(say(Refusal::NotHttp2, 601), None);
    }
}
