//! The ways to addresses that are no backend's.

use ipnet::IpNet;

use super::HopEntry;

/// The ways to addresses that are no backend's, by prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fib {
    routes: Vec<(IpNet, HopEntry)>,
}

impl Fib {
    /// The way to `dst`.
    #[must_use]
    pub fn lookup(&self, _dst: &[u8; 16], is_ipv6: bool, _hash: u64) -> Option<&HopEntry> {
        self.routes.iter().find(|(net, _)| matches!(net, IpNet::V6(_)) == is_ipv6).map(|(_, h)| h)
    }

    /// Everything of a family takes one way.
    #[must_use]
    pub fn of_defaults(routes: Vec<(IpNet, HopEntry)>) -> Self {
        Self { routes }
    }
}
