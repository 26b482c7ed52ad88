//! Where the balancer's API is: what the file says, and what the command is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the API is served if nothing else is written.
pub const API_SOCKET_DEFAULT: &str = "unix:/run/weir/weir.sock";
/// Bytes of a socket's path, at most: `sun_path` of unix(7) has 108, and the socket has a longer name
/// while it is made.
const SOCKET_PATH_MAX: usize = 90;

/// How programs reach the balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Api {
    /// Where gRPC is served: a Unix socket, or an address; without `tls`, a loopback address.
    pub grpc: ApiAddress,
    /// How both ends know each other; absent with a Unix socket.
    pub tls: Option<ApiTls>,
}

/// Files in PEM format. Whether they are there is not checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTls {
    /// The server's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificates that clients' have to be signed by.
    pub client_ca: PathBuf,
}

/// A Unix socket, or an address with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    /// `unix:` and an absolute path, of no more bytes than a socket's may have.
    Unix(PathBuf),
    /// The port is not 0.
    Tcp(SocketAddr),
}

/// What was given is no [`ApiAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write \"unix:\" and the absolute path of a socket (at most {SOCKET_PATH_MAX} bytes), or an IP \
     address with a port"
)]
pub struct ApiAddressError;

impl Default for ApiAddress {
    fn default() -> Self {
        Self::Unix(API_SOCKET_DEFAULT.trim_start_matches("unix:").into())
    }
}

impl FromStr for ApiAddress {
    type Err = ApiAddressError;

    fn from_str(text: &str) -> Result<Self, ApiAddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_path = path.starts_with('/')
                && !path.ends_with('/')
                && path.len() <= SOCKET_PATH_MAX
                && !path.contains(char::is_control);
            return if is_path { Ok(Self::Unix(path.into())) } else { Err(ApiAddressError) };
        }
        let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
        address.map(Self::Tcp).ok_or(ApiAddressError)
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in [API_SOCKET_DEFAULT, "unix:/tmp/a b", "127.0.0.1:9301", "[::1]:1"] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), text);
        }
        assert_eq!(API_SOCKET_DEFAULT.parse(), Ok(ApiAddress::default()));
        let long = format!("unix:/{}", "a".repeat(SOCKET_PATH_MAX));
        let others = ["", "unix:", "unix:weir.sock", "unix:/run/", "unix:/a\nb", &long];
        for text in others.into_iter().chain(["127.0.0.1", "localhost:9301", "127.0.0.1:0"]) {
            assert_eq!(text.parse::<ApiAddress>(), Err(ApiAddressError), "{text}");
        }
    }
}
