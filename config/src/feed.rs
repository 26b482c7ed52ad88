//! Control planes that tell the balancer what is wanted.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::{ApiAddress, ForwardMode};

/// Feeds of one balancer, at most.
pub const FEEDS_MAX: usize = 8;
/// Time between two states that are taken from a feed, if not written.
pub const PACE_DEFAULT: Duration = Duration::from_millis(100);
/// Less would be a new version for almost every update; more, a feed that seems to stand.
pub const PACE_MIN: Duration = Duration::from_millis(10);
/// See there.
pub const PACE_MAX: Duration = Duration::from_mins(1);
/// Bytes of a host's name, at most (RFC 1035 §2.3.4).
const HOST_MAX: usize = 253;

/// A control plane, and how it is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// Distinct among feeds; a name as services have them.
    pub name: String,
    /// What it speaks.
    pub kind: FeedKind,
    /// Where it is.
    pub address: FeedAddress,
    /// What it knows this balancer as; absent: by the name of its host.
    pub node: Option<String>,
    /// There if, and only if, the address is one of TLS.
    pub tls: Option<FeedTls>,
    /// Time between two states that are taken, at least.
    pub pace: Duration,
    /// xDS only: to be told what has changed, not the state of the world.
    pub incremental: bool,
    /// xDS only: how packets reach the backends of services that do not say so.
    pub forward: Option<ForwardMode>,
}

/// What control planes speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedKind {
    /// `weir.v1.ControlPlane`.
    Grpc,
    /// Envoy's: the aggregated discovery service (ADS).
    Xds,
}

/// Where a control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedAddress {
    /// A socket of this machine.
    Unix(PathBuf),
    /// In the clear.
    Http(SocketAddr),
    /// With TLS.
    Https {
        /// A name, or an IP address.
        host: String,
        /// Not 0.
        port: u16,
    },
}

/// Files in PEM format. Whether they are there is not checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedTls {
    /// The certificates that the control plane's has to be signed by.
    pub ca: PathBuf,
    /// This balancer's certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What was given is no [`FeedAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write \"unix:/PATH\", \"http://ADDRESS:PORT\" or \"https://HOST:PORT\"")]
pub struct FeedAddressError;

impl FromStr for FeedAddress {
    type Err = FeedAddressError;

    fn from_str(text: &str) -> Result<Self, FeedAddressError> {
        if let Some(address) = text.strip_prefix("http://") {
            let address = address.parse().ok().filter(|it: &SocketAddr| it.port() != 0);
            return address.map(Self::Http).ok_or(FeedAddressError);
        }
        if let Some(authority) = text.strip_prefix("https://") {
            let (host, port) = authority.rsplit_once(':').ok_or(FeedAddressError)?;
            let port = port.parse().ok().filter(|port| *port != 0).ok_or(FeedAddressError)?;
            let is_host = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
            let is_sound = (1..=HOST_MAX).contains(&host.len()) && host.chars().all(is_host);
            return is_sound
                .then(|| Self::Https { host: host.into(), port })
                .ok_or(FeedAddressError);
        }
        match text.parse() {
            Ok(ApiAddress::Unix(path)) => Ok(Self::Unix(path)),
            _ => Err(FeedAddressError),
        }
    }
}

impl fmt::Display for FeedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in [
            "unix:/run/plane.sock",
            "http://127.0.0.1:9310",
            "https://a.example:1",
            "https://[::1]:9",
        ] {
            assert_eq!(text.parse::<FeedAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "127.0.0.1:9310",
            "unix:plane.sock",
            "http://localhost:1",
            "http://127.0.0.1:0",
            "https://a.example",
            "https://:1",
            "https://a/b:1",
            "https://a.example:65536",
        ] {
            assert_eq!(text.parse::<FeedAddress>(), Err(FeedAddressError), "{text}");
        }
    }
}
