//! What clients address: the part of a service that packets are matched with.

use std::fmt;

use ipnet::IpNet;

use crate::wire::{SCTP, TCP, UDP};

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
    /// All of them, by address alone; but ICMP is the kernel's.
    Any,
}

impl Protocol {
    /// IANA's number, if it is one protocol.
    #[must_use]
    pub fn number(self) -> Option<u8> {
        match self {
            Self::Tcp => Some(TCP),
            Self::Udp => Some(UDP),
            Self::Sctp => Some(SCTP),
            Self::Any => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Any => "any",
        })
    }
}

/// The ports of a service: from one to another, both included. Not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// One port.
    #[must_use]
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// From `first` to `last`; `None`, if that is none.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// The port, if it is a single one.
    #[must_use]
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    /// Is it neither a single port nor every port?
    #[must_use]
    pub fn is_range(self) -> bool {
        self.single().is_none() && self != Self::ANY
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.single(), *self) {
            (Some(port), _) => write!(f, "{port}"),
            (None, Self::ANY) => f.write_str("any"),
            (None, Self { first, last }) => write!(f, "{first}-{last}"),
        }
    }
}

/// What clients address. Of several that a packet matches, the most specific has it: a single port
/// before a range before any; then the longer prefix; then a named protocol before any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// The service address, or all addresses of a prefix.
    pub address: IpNet,
    /// The service's ports.
    pub ports: PortRange,
    /// The service's protocol.
    pub protocol: Protocol,
}

impl Vip {
    /// Is it one address, not a prefix of several?
    #[must_use]
    pub fn is_one_address(&self) -> bool {
        self.address.prefix_len() == self.address.max_prefix_len()
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, ports, protocol } = self;
        match (self.is_one_address(), address) {
            (true, IpNet::V4(net)) => write!(f, "{protocol} {}:{ports}", net.addr()),
            (true, IpNet::V6(net)) => write!(f, "{protocol} [{}]:{ports}", net.addr()),
            (false, net) => write!(f, "{protocol} {net} port {ports}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(PortRange::new(80, 79), None);
        assert_eq!(PortRange::new(80, 80), Some(PortRange::one(80)));
        assert_eq!(PortRange::new(0, 65_535), Some(PortRange::ANY));
    }

    #[test]
    fn vips_are_shown_as_people_write_them() {
        for (address, ports, protocol, expect) in [
            ("10.0.0.100/32", PortRange::one(80), Protocol::Tcp, "tcp 10.0.0.100:80"),
            ("fd00::64/128", PortRange::one(53), Protocol::Udp, "udp [fd00::64]:53"),
            ("10.9.0.0/24", PortRange::ANY, Protocol::Any, "any 10.9.0.0/24 port any"),
            ("10.9.0.1/32", PortRange::new(80, 89).unwrap(), Protocol::Sctp, "sctp 10.9.0.1:80-89"),
        ] {
            let vip = Vip { address: address.parse().unwrap(), ports, protocol };
            assert_eq!(vip.to_string(), expect);
        }
    }
}
