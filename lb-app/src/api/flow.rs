//! A flow, as people write it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use lb_core::tuple::Tuple;
use lb_core::wire::{SCTP, TCP, UDP};

/// Protocol, source and destination. What has no ports has port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
}

/// What is wrong with it, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlowError {
    #[error("{0}; write it as in \"tcp 198.51.100.7:40000 > 10.0.0.100:80\"")]
    Form(String),
    #[error("{0} and {1} are not of one family")]
    Families(IpAddr, IpAddr),
}

impl Flow {
    pub(crate) fn tuple(&self) -> Tuple {
        let Self { protocol, src, dst } = self;
        Tuple::new(src.ip(), dst.ip(), src.port(), dst.port(), *protocol)
    }

    /// Has its protocol packets that open a flow?
    pub(crate) fn has_openings(&self) -> bool {
        matches!(self.protocol, TCP | SCTP)
    }
}

impl FromStr for Flow {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let form = |what: &str| FlowError::Form(what.into());
        let (protocol, ends) =
            text.trim().split_once(' ').ok_or_else(|| form("it has no protocol"))?;
        let protocol = match protocol {
            "tcp" => TCP,
            "udp" => UDP,
            "sctp" => SCTP,
            number => number
                .parse()
                .map_err(|_| form(&format!("{number:?} is not tcp, udp, sctp or a number")))?,
        };
        let (src, dst) = ends.split_once('>').ok_or_else(|| form("it has no '>'"))?;
        let has_ports = matches!(protocol, TCP | UDP | SCTP);
        let end = |text: &str| {
            let text = text.trim();
            let (end, what) = if has_ports {
                (text.parse().ok(), "an address with a port")
            } else {
                (text.parse().ok().map(|ip| SocketAddr::new(ip, 0)), "an address")
            };
            end.ok_or_else(|| form(&format!("{text:?} is not {what}")))
        };
        let (src, dst) = (end(src)?, end(dst)?);
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(FlowError::Families(src.ip(), dst.ip()));
        }
        Ok(Self { protocol, src, dst })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, src, dst } = self;
        match *protocol {
            TCP => write!(f, "tcp {src} > {dst}"),
            UDP => write!(f, "udp {src} > {dst}"),
            SCTP => write!(f, "sctp {src} > {dst}"),
            number => write!(f, "{number} {} > {}", src.ip(), dst.ip()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in [
            "tcp 198.51.100.7:40000 > 10.0.0.100:80",
            "udp [2001:db8::7]:40000 > [fd00::100]:53",
            "sctp 198.51.100.7:1 > 10.0.0.100:65535",
            "47 198.51.100.7 > 10.0.0.100",
        ] {
            assert_eq!(text.parse::<Flow>().unwrap().to_string(), text);
        }
        assert_eq!(
            " tcp 198.51.100.7:1>10.0.0.100:80 ".parse::<Flow>(),
            "tcp 198.51.100.7:1 > 10.0.0.100:80".parse()
        );
        for (text, says) in [
            ("tcp", "it has no protocol; write"),
            ("icmp 1.2.3.4 > 1.2.3.5", "\"icmp\" is not tcp, udp, sctp or a number; write"),
            ("tcp 1.2.3.4:5", "it has no '>'; write"),
            ("tcp 1.2.3.4 > 1.2.3.5:80", "\"1.2.3.4\" is not an address with a port; write"),
            ("47 1.2.3.4 > 1.2.3.5:80", "\"1.2.3.5:80\" is not an address; write"),
            ("tcp 1.2.3.4:5 > [::1]:80", "1.2.3.4 and ::1 are not of one family"),
        ] {
            let error = text.parse::<Flow>().unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }
}
