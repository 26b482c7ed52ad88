//! The stations on our links whatever they are: whom answers go to.
//!
//! A client on our link has asked for the VIP's MAC, and so the kernel has learned the client's.
//! That is remembered when the kernel forgets it (it keeps some hundreds of neighbours, we keep
//! [`STATIONS_MAX`]). When an administrator has it forget them (`ip neigh flush`), it is asked
//! about each of them once, since that is done where MACs have changed.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::tables::fib::STATIONS_MAX;
use lb_core::wire::ethernet::MacAddr;
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use tokio::time::Instant;

use super::neighbours::{FLUSH_TIME, Key, mac};

/// Who has to make room first: whom the kernel has forgotten, and of these who was heard of longest
/// ago.
type Rank = (bool, u64);

#[derive(Debug)]
struct Client {
    mac: MacAddr,
    /// Since when it does not answer.
    silent: Option<Instant>,
    rank: Rank,
}

/// The last known MACs.
#[derive(Debug, Default)]
pub(super) struct Clients {
    table: BTreeMap<Key, Client>,
    by_rank: BTreeSet<(Rank, Key)>,
    /// Whom to ask about; of `table`.
    doubtful: BTreeSet<Key>,
    /// Counts what was heard.
    heard: u64,
}

impl Clients {
    pub(super) fn mac(&self, key: Key) -> Option<MacAddr> {
        self.table.get(&key).filter(|client| client.silent.is_none()).map(|client| client.mac)
    }

    /// All that are not silent.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, MacAddr)> {
        let table = self.table.iter().filter(|(_, client)| client.silent.is_none());
        table.map(|(key, client)| (*key, client.mac))
    }

    /// Takes a notice about `key`; is its MAC another than before?
    pub(super) fn learn(&mut self, key: Key, message: &NeighbourMessage, now: Instant) -> bool {
        match (message.header.state, mac(message)) {
            (NeighbourState::Failed, _) => {
                let Some(client) = self.table.get_mut(&key) else { return false };
                self.doubtful.remove(&key);
                client.silent.replace(now).is_none()
            }
            // Being asked about: what was known holds until there is an answer.
            (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => false,
            (_, Some(mac)) => {
                let before = self.mac(key);
                self.doubtful.remove(&key);
                self.place(key, mac, true);
                before != Some(mac)
            }
        }
    }

    /// Takes the notice that the kernel has forgotten `key`; answers as [`Self::learn`].
    pub(super) fn forget(&mut self, key: Key, now: Instant) -> bool {
        let Some(Client { mac, silent, rank }) = self.table.get(&key) else { return false };
        match *silent {
            Some(since) if now.duration_since(since) >= FLUSH_TIME => {
                self.by_rank.remove(&(*rank, key));
                self.table.remove(&key);
                false
            }
            // As good as before.
            silent => {
                self.place(key, *mac, false);
                silent.is_some() && self.doubtful.insert(key)
            }
        }
    }

    /// Is there somebody to ask about?
    pub(super) fn has_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Whom to ask the kernel about now, at most `max`; each is named once.
    pub(super) fn take_doubtful(&mut self, max: usize) -> Vec<Key> {
        std::iter::from_fn(|| self.doubtful.pop_first()).take(max).collect()
    }

    fn place(&mut self, key: Key, mac: MacAddr, is_in_kernel: bool) {
        self.heard += 1;
        let rank = (is_in_kernel, self.heard);
        if let Some(before) = self.table.insert(key, Client { mac, silent: None, rank }) {
            self.by_rank.remove(&(before.rank, key));
        }
        self.by_rank.insert((rank, key));
        if self.table.len() > STATIONS_MAX
            && let Some((_, last)) = self.by_rank.pop_first()
        {
            self.table.remove(&last);
            self.doubtful.remove(&last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::neighbours::notice;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

    fn client(n: usize) -> Key {
        let [.., a, b, c] = n.to_be_bytes();
        (7, [10, a, b, c].into())
    }

    #[test]
    fn a_flushed_client_is_asked_about_once_and_a_silent_one_is_forgotten() {
        let (now, key) = (Instant::now(), client(1));
        let mut clients = Clients::default();
        assert!(clients.learn(key, &notice(key, NeighbourState::Stale), now));
        assert!(!clients.learn(key, &notice(key, NeighbourState::Stale), now));
        assert!(!clients.forget(key, now), "it made room for others");
        assert_eq!((clients.mac(key), clients.has_doubtful()), (Some(MacAddr(MAC)), false));

        assert!(clients.learn(key, &notice(key, NeighbourState::Failed), now));
        assert_eq!(clients.mac(key), None);
        assert!(clients.forget(key, now), "flushed");
        assert_eq!(clients.mac(key), Some(MacAddr(MAC)));
        assert_eq!(clients.take_doubtful(9), [key]);
        assert!(!clients.has_doubtful());

        assert!(clients.learn(key, &notice(key, NeighbourState::Failed), now));
        assert!(!clients.forget(key, now + FLUSH_TIME + Duration::from_millis(1)));
        assert_eq!((clients.mac(key), clients.iter().count()), (None, 0));
        assert_eq!((clients.table.len(), clients.by_rank.len()), (0, 0));
    }

    #[test]
    fn the_forgotten_and_the_oldest_make_room() {
        let now = Instant::now();
        let mut clients = Clients::default();
        let learn = |clients: &mut Clients, n| {
            let key = client(n);
            assert!(clients.learn(key, &notice(key, NeighbourState::Stale), now), "{n}");
        };
        (0..STATIONS_MAX).for_each(|n| learn(&mut clients, n));
        clients.forget(client(5), now);
        clients.learn(client(0), &notice(client(0), NeighbourState::Reachable), now);
        for (new, gone) in (STATIONS_MAX..).zip([5, 1, 2]) {
            assert!(clients.mac(client(gone)).is_some());
            learn(&mut clients, new);
            assert_eq!(clients.mac(client(gone)), None);
            assert_eq!((clients.table.len(), clients.by_rank.len()), (STATIONS_MAX, STATIONS_MAX));
        }
        assert!(clients.mac(client(0)).is_some(), "heard of since");
    }
}
