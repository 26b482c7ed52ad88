//! What SYNs are challenged with.

use siphasher::sip::SipHasher24;

use super::derive;
use crate::model::HashKey;
use crate::rate::Tick;
use crate::tuple::Tuple;

/// A stretch of time, of 8.192 seconds: a cookie is good in its own and in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl From<Tick> for Epoch {
    fn from(tick: Tick) -> Self {
        Self(tick.0 >> 13)
    }
}

/// Numbers that only those know who are sent them: SipHash-2-4 of the flow and the epoch, 32 bits of
/// it. Who guesses has two chances in 2^32 a segment.
#[derive(Clone, Copy)]
pub struct Cookies(SipHasher24);

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies(…)") // a secret
    }
}

impl Cookies {
    /// With a key that follows from the site's.
    #[must_use]
    pub fn new(site: HashKey) -> Self {
        Self(SipHasher24::new_with_key(&derive(site, b"weir: cookies of SYN challenges")))
    }

    /// The number for a flow from a client.
    ///
    /// Once in 2^32 it is what the client expects, which then ignores it (RFC 9293 §3.10.7.3, fifth),
    /// and gets another in the next epoch.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "as many bits as the number has")]
    pub fn of(&self, flow: &Tuple, epoch: Epoch) -> u32 {
        let mut bytes = [0; 44];
        bytes[..16].copy_from_slice(&flow.src);
        bytes[16..32].copy_from_slice(&flow.dst);
        bytes[32..36].copy_from_slice(&flow.ports);
        bytes[36..].copy_from_slice(&epoch.0.to_le_bytes());
        self.0.hash(&bytes) as u32
    }

    /// Was the flow given this number, in this epoch or the last?
    #[inline]
    #[must_use]
    pub fn has_given(&self, flow: &Tuple, number: u32, epoch: Epoch) -> bool {
        let last = Epoch(epoch.0.saturating_sub(1));
        self.of(flow, epoch) == number || self.of(flow, last) == number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn flow(src: &str, dst: &str, ports: (u16, u16)) -> Tuple {
        Tuple::new(src.parse().unwrap(), dst.parse().unwrap(), ports.0, ports.1, 6)
    }

    #[test]
    fn a_cookie_is_good_for_its_flow_and_for_two_epochs() {
        let cookies = Cookies::new(HashKey([7; 16]));
        let given = flow("198.51.100.7", "10.0.0.100", (40_000, 80));
        for epoch in [0, 1, 1 << 40] {
            let number = cookies.of(&given, Epoch(epoch));
            let good =
                [0, 1, 2].map(|later| cookies.has_given(&given, number, Epoch(epoch + later)));
            assert_eq!(good, [true, true, false]);
            assert!(!cookies.has_given(&given, number.wrapping_add(1), Epoch(epoch)));
        }
        assert!(!cookies.has_given(&given, cookies.of(&given, Epoch(9)), Epoch(8)), "not before");
    }

    #[test]
    fn every_part_counts() {
        let flows = [
            flow("198.51.100.7", "10.0.0.100", (40_000, 80)),
            flow("198.51.100.8", "10.0.0.100", (40_000, 80)),
            flow("198.51.100.7", "10.0.0.101", (40_000, 80)),
            flow("198.51.100.7", "10.0.0.100", (40_001, 80)),
            flow("198.51.100.7", "10.0.0.100", (40_000, 81)),
            flow("2001:db8::7", "fd00::100", (40_000, 80)),
        ];
        let of = |key: u8, epoch| {
            let cookies = Cookies::new(HashKey([key; 16]));
            flows.map(|flow| cookies.of(&flow, Epoch(epoch)))
        };
        let all: BTreeSet<u32> = [of(7, 0), of(7, 1), of(8, 0)].concat().into_iter().collect();
        assert_eq!(all.len(), 3 * flows.len());
    }

    #[test]
    fn an_epoch_is_some_seconds() {
        let of = |ms| Epoch::from(Tick(ms));
        assert_eq!([of(0), of(8191), of(8192)], [Epoch(0), Epoch(0), Epoch(1)]);
    }
}
