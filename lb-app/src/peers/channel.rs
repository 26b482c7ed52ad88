//! Messages between two balancers over a TCP connection that nobody else can read, write or repeat.
//!
//! The Noise Protocol Framework, revision 34: the handshake `NNpsk0` with the site's key, and from
//! then on its transport messages. Both sides contribute to the keys of a connection, and every
//! transport message has a number, so what somebody has recorded is refused. On the wire a Noise
//! message follows its length (16 bits, network order); inside, a message of ours follows its length
//! (32 bits, network order) and may go over several of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lb_config::PeerKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long a peer may take for a handshake, or to take what is written.
const PATIENCE: Duration = Duration::from_secs(2);
const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Bytes of a Noise message, at most.
const NOISE_BYTES_MAX: usize = u16::MAX as usize;
/// Bytes that encryption adds.
const TAG_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;

/// Why a peer is not talked to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeerError {
    #[error("it is not reached ({0})")]
    Io(io::ErrorKind),
    #[error(
        "it hangs up; is it leaving, or has it another `peer_key`, or no [[peer]] with this one's \
         `peer_listen`?"
    )]
    HungUp,
    #[error("it has another `peer_key`, or is no balancer")]
    Key,
    #[error("it has another `hash_key`; write the same on all balancers of the site")]
    HashKey,
    #[error("it is of another version of Weir")]
    Version,
    #[error("it has said nothing for too long")]
    Silent,
    #[error("it does not take what it is told")]
    Slow,
    #[error("what it says makes no sense")]
    Garbled,
}

impl From<io::Error> for PeerError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::HungUp,
            kind => Self::Io(kind),
        }
    }
}

/// What each side says first.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Hello {
    version: u16,
    /// Derived from the hash key.
    hash: u64,
}

/// Who we are, to a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) key: PeerKey,
    /// Says whether two balancers hash flows alike, and not how.
    pub(super) hash: u64,
}

/// To be counted up when anything changes that peers say.
const VERSION: u16 = 1;

/// Greets a peer that was called, or that calls. `message_max` bounds what it may say, in bytes.
pub(super) async fn greet(
    stream: TcpStream,
    identity: Identity,
    is_caller: bool,
    message_max: usize,
) -> Result<(Hearing, Saying), PeerError> {
    let greeting = async {
        stream.set_nodelay(true)?;
        let (mut from, mut to) = stream.into_split();
        let keys = Arc::new(handshake(&mut from, &mut to, identity.key, is_caller).await?);
        let mut hearing = Hearing {
            from,
            keys: Arc::clone(&keys),
            number: 0,
            raw: Vec::new(),
            plain: Vec::new(),
            message_max,
        };
        let mut saying = Saying { to, keys, number: 0 };
        let ours = Hello { version: VERSION, hash: identity.hash };
        saying.say(&ours).await?;
        let theirs: Hello = hearing.hear().await?;
        if theirs.version != VERSION {
            return Err(PeerError::Version);
        }
        if theirs.hash != identity.hash {
            return Err(PeerError::HashKey);
        }
        Ok((hearing, saying))
    };
    timeout(PATIENCE, greeting).await.unwrap_or(Err(PeerError::Silent))
}

async fn handshake(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    key: PeerKey,
    is_caller: bool,
) -> Result<StatelessTransportState, PeerError> {
    let mut state = handshake_state(key, is_caller).map_err(|_| PeerError::Key)?;
    let mut buffer = vec![0; NOISE_BYTES_MAX];
    for turn in [true, false] {
        if turn == is_caller {
            let length = state.write_message(&[], &mut buffer).map_err(|_| PeerError::Key)?;
            write_frame(to, &buffer[..length]).await?;
        } else {
            let frame = read_frame(from).await?;
            state.read_message(&frame, &mut buffer).map_err(|_| PeerError::Key)?;
        }
    }
    state.into_stateless_transport_mode().map_err(|_| PeerError::Key)
}

fn handshake_state(key: PeerKey, is_caller: bool) -> Result<HandshakeState, snow::Error> {
    let builder = Builder::new(NOISE.parse()?).psk(0, &key.0)?.prologue(b"weir peers")?;
    if is_caller { builder.build_initiator() } else { builder.build_responder() }
}

async fn write_frame(to: &mut OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
    let length = u16::try_from(frame.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(frame).await
}

async fn read_frame(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = from.read_u16().await?;
    let mut frame = vec![0; length.into()];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

/// What a peer says.
#[derive(Debug)]
pub(super) struct Hearing {
    from: OwnedReadHalf,
    keys: Arc<StatelessTransportState>,
    /// Of the next Noise message.
    number: u64,
    /// Read, and not decrypted yet.
    raw: Vec<u8>,
    /// Decrypted, and not heard yet.
    plain: Vec<u8>,
    message_max: usize,
}

impl Hearing {
    /// The next message. Nothing is lost when this is cancelled.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, PeerError> {
        loop {
            if let Some((length, rest)) = self.plain.split_first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > self.message_max {
                    return Err(PeerError::Garbled);
                }
                if let Some(message) = rest.get(..length) {
                    let message = postcard::from_bytes(message).map_err(|_| PeerError::Garbled);
                    self.plain.drain(..LENGTH_BYTES + length);
                    return message;
                }
            }
            self.read().await?;
        }
    }

    /// Reads and decrypts a Noise message.
    async fn read(&mut self) -> Result<(), PeerError> {
        let end = loop {
            if let Some((length, rest)) = self.raw.split_first_chunk() {
                let length = usize::from(u16::from_be_bytes(*length));
                if rest.len() >= length {
                    break size_of::<u16>() + length;
                }
            }
            if self.from.read_buf(&mut self.raw).await? == 0 {
                return Err(PeerError::HungUp);
            }
        };
        let frame = &self.raw[size_of::<u16>()..end];
        let start = self.plain.len();
        self.plain.resize(start + frame.len(), 0);
        let length = self
            .keys
            .read_message(self.number, frame, &mut self.plain[start..])
            .map_err(|_| PeerError::Key)?;
        self.plain.truncate(start + length);
        self.raw.drain(..end);
        self.number += 1;
        Ok(())
    }
}

/// What is said to a peer.
#[derive(Debug)]
pub(super) struct Saying {
    to: OwnedWriteHalf,
    keys: Arc<StatelessTransportState>,
    number: u64,
}

impl Saying {
    pub(super) async fn say(&mut self, message: &impl Serialize) -> Result<(), PeerError> {
        self.say_encoded(&encode(message)?).await
    }

    /// A message that [`encode`] has made.
    pub(super) async fn say_encoded(&mut self, message: &[u8]) -> Result<(), PeerError> {
        let saying = async {
            let mut frame = vec![0; NOISE_BYTES_MAX];
            for part in message.chunks(NOISE_BYTES_MAX - TAG_BYTES) {
                let length = self
                    .keys
                    .write_message(self.number, part, &mut frame)
                    .map_err(|_| PeerError::Key)?;
                self.number += 1;
                write_frame(&mut self.to, &frame[..length]).await?;
            }
            Ok(())
        };
        timeout(PATIENCE, saying).await.unwrap_or(Err(PeerError::Slow))
    }
}

/// A message with its length.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>, PeerError> {
    let garbled = |_| PeerError::Garbled;
    let bytes = postcard::to_extend(message, vec![0; LENGTH_BYTES]);
    let mut bytes = bytes.map_err(garbled)?;
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).map_err(|_| PeerError::Garbled)?;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}
