//! Why an answer is no good.

use std::error::Error;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio_rustls::rustls;

/// Why a check did not succeed. One line, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    #[error("connection closed without an answer")]
    Closed,
    #[error("port unreachable")]
    PortUnreachable,
    #[error("no route, or no station of this address")]
    NoRoute,
    #[error("not TLS: {0}")]
    Tls(rustls::Error),
    #[error("not HTTP: {0}")]
    Http(String),
    #[error("status {0}")]
    Status(u16),
    #[error("not gRPC: {0}")]
    Grpc(String),
    #[error("gRPC status {0}: {1}")]
    GrpcStatus(String, &'static str),
    #[error("it says of itself: {0}")]
    NotServing(&'static str),
    #[error("the answer does not begin as expected")]
    WrongAnswer,
    #[error("{0}")]
    Io(io::Error),
    /// It is us, not the backend: nothing follows for it.
    #[error("{0}")]
    Ours(io::Error),
}

impl Failure {
    /// Did the check not come to pass for a reason of our own?
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// From an error of a protocol that has an error of the socket somewhere behind it; `None`: it
    /// has not.
    pub(super) fn of_socket(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Some(copy(error).into());
            }
            cause = error.source();
        }
        None
    }
}

/// An error of the system can be had twice; of any other, the words.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls {
            return Self::Tls(tls.clone());
        }
        let code = error.raw_os_error().map(Errno::from_raw);
        match (code, error.kind()) {
            // No file, no memory, no port, no right (`man 2 socket`, `connect`, `sendto`).
            (
                Some(
                    Errno::EMFILE
                    | Errno::ENFILE
                    | Errno::ENOBUFS
                    | Errno::ENOMEM
                    | Errno::EADDRNOTAVAIL
                    | Errno::EACCES
                    | Errno::EPERM
                    | Errno::EAFNOSUPPORT,
                ),
                _,
            ) => Self::Ours(error),
            (_, io::ErrorKind::ConnectionRefused) => Self::Refused,
            (_, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Self::Reset,
            (_, io::ErrorKind::UnexpectedEof) => Self::Closed,
            (_, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                Self::NoRoute
            }
            _ => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_our_own_fault_is_not_the_backends() {
        let of = |code: Errno| Failure::from(io::Error::from(code));
        for code in [Errno::EMFILE, Errno::ENOBUFS, Errno::EADDRNOTAVAIL] {
            assert!(of(code).is_ours(), "{code}");
        }
        for (code, says) in [
            (Errno::ECONNREFUSED, "connection refused"),
            (Errno::ECONNRESET, "connection reset"),
            (Errno::EPIPE, "connection reset"),
            (Errno::EHOSTUNREACH, "no route, or no station of this address"),
            (Errno::ENETUNREACH, "no route, or no station of this address"),
        ] {
            assert_eq!(of(code).to_string(), says);
            assert!(!of(code).is_ours());
        }
        assert_eq!(
            Failure::NoAnswer(Duration::from_millis(1500)).to_string(),
            "no answer within 1.5s"
        );
    }
}
