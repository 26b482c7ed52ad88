//! Who may open connections to a service above its rate: whoever has shown that the address that he
//! sends from is his.
//!
//! A SYN above the rate is answered with an ACK of a number that the client cannot have sent. A client
//! that waits for an answer to its SYN resets what that ACK seems to be of, with the very number, and
//! goes on waiting (RFC 9293 §3.10.7.3): so the reset proves that the answer has arrived, and the
//! client's next SYN is let in. Nobody else sees the number, which is [keyed](Cookies), so
//! nothing is remembered of SYNs; of clients that have answered, a few [bits](Clients) are.
//!
//! That shows that a host has the address, not that it has sent the SYN: it would reset as well what it
//! knows nothing of. So what is kept out are addresses that nobody has, or whose owners do not answer
//! what they have not asked for; which are most of those that are made up.
//!
//! One [`Admission`] is all services' and all workers'; each service with a bound has a [`Gate`].
//! Both outlive versions of the tables, and have a memory.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::{AboveRate, HashKey, SynBound};
use crate::rate::{SharedRate, Tick};

mod clients;
mod cookies;

pub use clients::{CLIENTS_MAX, Clients, Full, GENERATION_MS, GENERATION_MS_MIN};
pub use cookies::{Cookies, Epoch};

/// What services with a bound share.
#[derive(Debug)]
pub struct Admission {
    site: HashKey,
    /// What SYNs are challenged with.
    pub cookies: Cookies,
    /// Who has answered.
    pub clients: Clients,
}

impl Admission {
    /// Nobody has answered yet. The keys follow from the site's.
    #[must_use]
    pub fn new(site: HashKey) -> Self {
        Self { site, cookies: Cookies::new(site), clients: Clients::new(site) }
    }

    /// Do its keys follow from this one?
    #[must_use]
    pub fn is_of(&self, site: HashKey) -> bool {
        self.site == site
    }
}

/// The bound of one service.
#[derive(Debug)]
pub struct Gate {
    bound: SynBound,
    rate: SharedRate,
    /// The last epoch in which a SYN was challenged, and one; 0: none was.
    challenged: AtomicU64,
}

impl Gate {
    /// Nobody has come yet.
    #[must_use]
    pub fn new(bound: SynBound) -> Self {
        Self { bound, rate: SharedRate::new(bound.rate), challenged: AtomicU64::new(0) }
    }

    /// One to which as many have come: for who tries what would become of a packet.
    #[must_use]
    pub(crate) fn trial(&self) -> Self {
        let challenged = AtomicU64::new(self.challenged.load(Ordering::Relaxed));
        Self { bound: self.bound, rate: self.rate.clone(), challenged }
    }

    /// What it was made from.
    #[must_use]
    pub fn bound(&self) -> SynBound {
        self.bound
    }

    /// May another SYN pass, whoever sends it?
    #[inline]
    #[must_use]
    pub fn has_room(&self, now: Tick) -> bool {
        self.rate.allow(now)
    }

    /// Are the others challenged, not dropped?
    #[inline]
    #[must_use]
    pub fn challenges(&self) -> bool {
        self.bound.above == AboveRate::Challenge
    }

    /// Notes that one was.
    #[inline]
    pub fn challenged(&self, epoch: Epoch) {
        // Written once in an epoch, so that workers can keep the line in their caches.
        if self.challenged.load(Ordering::Relaxed) != epoch.0 + 1 {
            self.challenged.store(epoch.0 + 1, Ordering::Relaxed);
        }
    }

    /// Can there be a client that answers one?
    #[inline]
    #[must_use]
    pub fn awaits_answers(&self, epoch: Epoch) -> bool {
        let challenged = self.challenged.load(Ordering::Relaxed);
        challenged > 0 && challenged >= epoch.0
    }
}

/// A key for one purpose, from which nobody can tell the site's, nor that for another purpose.
fn derive(site: HashKey, purpose: &[u8]) -> [u8; 16] {
    siphasher::sip128::SipHasher24::new_with_key(&site.0).hash(purpose).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_awaited_for_two_epochs() {
        let gate = Gate::new(SynBound { rate: 1, above: AboveRate::Challenge });
        assert!(!gate.awaits_answers(Epoch(0)) && !gate.awaits_answers(Epoch(1)));
        for epoch in [0, 1, 700] {
            gate.challenged(Epoch(epoch));
            let awaits = [0, 1, 2].map(|later| gate.awaits_answers(Epoch(epoch + later)));
            assert_eq!(awaits, [true, true, false], "{epoch}");
        }
    }
}
