//! Clients, and what bounds them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::listen::Listener;

/// Clients at a time; others are turned away at once.
pub(super) const CONNECTIONS_MAX: usize = 32;
/// How long a client may take until it has spoken the first words of HTTP/2.
const PREFACE_TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// Bytes of those words (RFC 9113 §3.4). From then on clients that are silent are asked whether they
/// are there: see [`super::server`].
const PREFACE_BYTES: usize = 24;
/// How long to wait when no more clients can be accepted, for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What a connection is, whatever it comes by.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A client's connection.
pub(crate) struct Connection {
    wire: Box<dyn Wire>,
    /// Bytes of the preface that have not come yet, and how long they are waited for.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(wire: impl Wire + 'static, permit: OwnedSemaphorePermit) -> Self {
        let awaited = Some((PREFACE_BYTES, Box::pin(sleep(PREFACE_TIME_MAX))));
        Self { wire: Box::new(wire), awaited, _permit: permit }
    }
}

/// The clients that come in. To be called within a runtime.
pub(crate) fn incoming(listener: Listener) -> ReceiverStream<io::Result<Connection>> {
    let (bring, brought) = mpsc::channel(1);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let wire = match accept(&listener).await {
                Ok(wire) => wire,
                Err(error) => {
                    warn!("the API cannot accept a client: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            // Without a permit it is closed.
            if let Ok(permit) = Arc::clone(&permits).try_acquire_owned()
                && bring.send(Ok(Connection::new(wire, permit))).await.is_err()
            {
                return;
            }
        }
    });
    ReceiverStream::new(brought)
}

async fn accept(listener: &Listener) -> io::Result<Box<dyn Wire>> {
    match listener {
        Listener::Unix { listener, .. } => Ok(Box::new(listener.accept().await?.0)),
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.wire).poll_read(context, buffer) {
            if let Some((bytes, _)) = &mut this.awaited {
                *bytes = bytes.saturating_sub(buffer.filled().len() - before);
                if *bytes == 0 {
                    this.awaited = None;
                }
            }
            return Poll::Ready(result);
        }
        let Some((_, time)) = &mut this.awaited else { return Poll::Pending };
        ready!(time.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
