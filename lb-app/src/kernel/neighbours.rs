//! The stations on our links: who has which MAC, and whom the kernel has to be asked about.
//!
//! The kernel keeps the neighbours, we mirror those that are next hops. It probes a neighbour only
//! while its own traffic goes there, and balanced traffic is none of its own: so we ask it to use
//! every one that it is not sure of (`NTF_USE`), again and again, at a bounded rate. A neighbour
//! that we ask about is marked as learned elsewhere (`NTF_EXT_LEARNED`), which spares it from
//! garbage collection and its limit (`gc_thresh3`, 1024 by default).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_core::wire::ethernet::MacAddr;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::Instant;

use super::netlink::Request;

/// How long after it was asked the kernel is asked again about a station that it is still not sure
/// of.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// The kernel is not asked about one station more often than that, whatever happens. So soon after
/// it has given up on one (it takes 3 s: three probes, one a second), it is asked again.
const ASK_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// An administrator's `ip neigh flush` has the kernel report a neighbour as failed, and as gone at
/// once; gone within this time, it is taken for forgotten, not for silent.
pub(super) const FLUSH_TIME: Duration = Duration::from_millis(100);

/// A station: the interface that it is on, and its address.
pub(super) type Key = (u32, IpAddr);

/// What is known of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Station {
    /// Nothing yet.
    Unknown,
    /// Its last known MAC. It stays when the kernel forgets the neighbour, until it is found
    /// silent.
    At(MacAddr),
    /// It did not answer when last asked.
    Silent,
}

#[derive(Debug)]
struct Neighbour {
    station: Station,
    /// The last MAC of a silent station, and when it was found silent.
    before: Option<(MacAddr, Instant)>,
    /// When the kernel was last asked, if it has the neighbour because of that.
    asked: Option<Instant>,
    /// When to ask, unless the kernel is sure of it or about to find out; also in
    /// `Neighbours::due`.
    due: Option<Instant>,
}

/// The stations that are next hops, or were a little ago. Bounded by the backends and the next hops of a route.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    table: BTreeMap<Key, Neighbour>,
    due: BTreeSet<(Instant, Key)>,
}

impl Neighbours {
    /// The request whose answer [`Self::replace`] takes.
    pub(super) fn request() -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())
    }

    pub(super) fn station(&self, key: Key) -> Station {
        self.table.get(&key).map_or(Station::Unknown, |neighbour| neighbour.station)
    }

    /// Tracks none but `keys`. Gives those to [`release`].
    pub(super) fn retain(&mut self, keys: &BTreeSet<Key>) -> Vec<Key> {
        let mut released = Vec::new();
        let due = &mut self.due;
        self.table.retain(|key, neighbour| {
            let wanted = keys.contains(key);
            if !wanted {
                neighbour.due.map(|at| due.remove(&(at, *key)));
                released.extend(neighbour.asked.map(|_| *key));
            }
            wanted
        });
        released
    }

    /// Tracks these, too. Gives those that are new, of which nothing is known yet.
    pub(super) fn track(&mut self, keys: &BTreeSet<Key>, now: Instant) -> Vec<Key> {
        let mut new = Vec::new();
        for key in keys {
            self.table.entry(*key).or_insert_with(|| {
                new.push(*key);
                self.due.insert((now, *key));
                Neighbour { station: Station::Unknown, before: None, asked: None, due: Some(now) }
            });
        }
        new
    }

    /// Takes a dump.
    pub(super) fn replace(&mut self, dump: &[RouteNetlinkMessage], now: Instant) {
        let mut absent: BTreeSet<Key> = self.table.keys().copied().collect();
        for message in dump {
            if let RouteNetlinkMessage::NewNeighbour(message) = message
                && let Some(key) = key(message)
            {
                self.set(message, now);
                absent.remove(&key);
            }
        }
        for key in absent {
            self.ask_by(key, now);
        }
    }

    /// Takes a notice; is the station of a tracked neighbour another than before?
    pub(super) fn set(&mut self, message: &NeighbourMessage, now: Instant) -> bool {
        let Some(key) = key(message) else { return false };
        let Some(neighbour) = self.table.get_mut(&key) else { return false };
        let before = neighbour.station;
        let state = message.header.state;
        neighbour.station = match (state, mac(message)) {
            (NeighbourState::Failed, _) => Station::Silent,
            // Being asked about: what was known before holds until there is an answer.
            (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => before,
            (_, Some(mac)) => Station::At(mac),
        };
        if let (Station::At(mac), Station::Silent) = (before, neighbour.station) {
            neighbour.before = Some((mac, now));
        }
        let changed = neighbour.station != before;
        match state {
            NeighbourState::Stale | NeighbourState::None => self.ask_by(key, now),
            NeighbourState::Failed => self.ask_by(key, now + ASK_INTERVAL_MIN),
            NeighbourState::Permanent | NeighbourState::Noarp => {
                neighbour.asked = None; // the administrator's, from now on
                self.schedule(key, None);
            }
            _ => self.schedule(key, None),
        }
        changed
    }

    /// Takes the notice that the kernel has forgotten a neighbour; answers as [`Self::set`].
    pub(super) fn remove(&mut self, message: &NeighbourMessage, now: Instant) -> bool {
        let Some(key) = key(message) else { return false };
        self.ask_by(key, now);
        let Some(neighbour) = self.table.get_mut(&key) else { return false };
        match (neighbour.station, neighbour.before.take()) {
            (Station::Silent, Some((mac, since))) if now.duration_since(since) < FLUSH_TIME => {
                neighbour.station = Station::At(mac);
                true
            }
            _ => false,
        }
    }

    /// When the next station is to be asked about.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The stations to ask the kernel about now, at most `max`.
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Vec<Key> {
        let mut keys = Vec::new();
        while keys.len() < max
            && let Some((due, key)) = self.due.first().copied()
            && due <= now
        {
            if let Some(neighbour) = self.table.get_mut(&key) {
                neighbour.asked = Some(now);
            }
            self.schedule(key, Some(now + ASK_INTERVAL));
            keys.push(key);
        }
        keys
    }

    /// The kernel needs to be asked, at `at` or earlier where that is planned already.
    fn ask_by(&mut self, key: Key, at: Instant) {
        if let Some(neighbour) = self.table.get(&key) {
            let at = neighbour.asked.map_or(at, |asked| at.max(asked + ASK_INTERVAL_MIN));
            self.schedule(key, Some(neighbour.due.map_or(at, |due| due.min(at))));
        }
    }

    fn schedule(&mut self, key: Key, at: Option<Instant>) {
        if let Some(neighbour) = self.table.get_mut(&key) {
            neighbour.due.map(|due| self.due.remove(&(due, key)));
            at.map(|at| self.due.insert((at, key)));
            neighbour.due = at;
        }
    }
}

/// Asks the kernel to find out, or make sure of, a station's MAC.
pub(super) fn ask((index, address): Key) -> Request {
    let mut message = message(index, address);
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use | NeighbourFlags::ExtLearned;
    (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

/// Asks what the kernel knows of a station.
pub(super) fn look((index, address): Key) -> Request {
    (RouteNetlinkMessage::GetNeighbour(message(index, address)), 0)
}

/// Asks the kernel to find out a station's MAC, and to forget it as it pleases.
pub(super) fn ask_once((index, address): Key) -> Request {
    let mut message = message(index, address);
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

/// Leaves a station to the kernel alone. It is found again when the kernel has traffic for it.
pub(super) fn release((index, address): Key) -> Request {
    (RouteNetlinkMessage::DelNeighbour(message(index, address)), 0)
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// The MAC that a message tells.
pub(super) fn mac(message: &NeighbourMessage) -> Option<MacAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => {
            <[u8; 6]>::try_from(mac.as_slice()).ok().map(MacAddr)
        }
        _ => None,
    })
}

pub(super) fn key(message: &NeighbourMessage) -> Option<Key> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })?;
    Some((message.header.ifindex, address))
}

/// As the kernel tells the state of a station that has the MAC 02:00:00:00:00:11.
#[cfg(test)]
pub(super) fn notice((index, address): Key, state: NeighbourState) -> NeighbourMessage {
    let mut message = message(index, address);
    message.header.state = state;
    if !matches!(state, NeighbourState::Failed | NeighbourState::Incomplete) {
        let mac = vec![2, 0, 0, 0, 0, 0x11];
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

    fn tracking(key: Key, now: Instant) -> Neighbours {
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.track(&BTreeSet::from([key]), now), [key]);
        assert_eq!(neighbours.track(&BTreeSet::from([key]), now), [], "no new one");
        neighbours
    }

    #[test]
    fn states_of_a_neighbour() {
        let key = (7, "10.0.0.11".parse().unwrap());
        let now = Instant::now();
        let mut neighbours = tracking(key, now);
        let at = Station::At(MacAddr(MAC));
        // After the kernel said so: what is known, whether that is new, and when to ask, in s.
        for (state, station, changed, due_s) in [
            (NeighbourState::Incomplete, Station::Unknown, false, None),
            (NeighbourState::Reachable, at, true, None),
            (NeighbourState::Stale, at, false, Some(0)),
            (NeighbourState::Delay, at, false, None),
            (NeighbourState::Probe, at, false, None),
            (NeighbourState::Failed, Station::Silent, true, Some(1)),
            (NeighbourState::Incomplete, Station::Silent, false, None),
            (NeighbourState::Failed, Station::Silent, false, Some(1)),
            (NeighbourState::Permanent, at, true, None),
            (NeighbourState::Noarp, at, false, None),
        ] {
            assert_eq!(neighbours.set(&notice(key, state), now), changed, "{state}");
            assert_eq!(neighbours.station(key), station, "{state}");
            let due = due_s.map(|s| now + Duration::from_secs(s));
            assert_eq!(neighbours.next_due(), due, "{state}");
        }
        let stranger = (7, "10.0.0.12".parse().unwrap());
        assert!(!neighbours.set(&notice(stranger, NeighbourState::Reachable), now));
        assert_eq!(neighbours.station(stranger), Station::Unknown);
    }

    #[test]
    fn asking_is_bounded_and_repeated() {
        let keys: BTreeSet<Key> = (1..=3).map(|i| (i, "fe80::1".parse().unwrap())).collect();
        let now = Instant::now();
        let mut neighbours = Neighbours::default();
        neighbours.track(&keys, now);
        assert_eq!(neighbours.take_due(now, 2).len(), 2);
        assert_eq!(neighbours.take_due(now, 2).len(), 1);
        assert_eq!(neighbours.next_due(), Some(now + ASK_INTERVAL), "no answer: asked again");

        let key = *keys.first().unwrap();
        neighbours.set(&notice(key, NeighbourState::Stale), now);
        assert_eq!(neighbours.next_due(), Some(now + ASK_INTERVAL_MIN), "asked only just now");
        let later = now + ASK_INTERVAL;
        assert_eq!(neighbours.take_due(later, 9).len(), 3);
    }

    #[test]
    fn a_flushed_neighbour_is_not_silent_but_a_dead_one_is() {
        let key = (7, "10.0.0.11".parse().unwrap());
        let now = Instant::now();
        let mut neighbours = tracking(key, now);
        for (between, station) in
            [(Duration::ZERO, Station::At(MacAddr(MAC))), (FLUSH_TIME, Station::Silent)]
        {
            neighbours.set(&notice(key, NeighbourState::Reachable), now);
            neighbours.set(&notice(key, NeighbourState::Failed), now);
            neighbours.remove(&notice(key, NeighbourState::Failed), now + between);
            assert_eq!(neighbours.station(key), station, "gone after {between:?}");
        }
    }

    #[test]
    fn only_neighbours_of_our_own_making_are_released() {
        let keys: BTreeSet<Key> = (1..=3).map(|i| (i, "10.0.0.11".parse().unwrap())).collect();
        let [permanent, asked, _] = keys.iter().copied().collect::<Vec<_>>().try_into().unwrap();
        let now = Instant::now();
        let mut neighbours = Neighbours::default();
        neighbours.track(&keys, now);
        assert_eq!(neighbours.take_due(now, 2), [permanent, asked]);
        neighbours.set(&notice(permanent, NeighbourState::Permanent), now);
        assert_eq!(neighbours.retain(&keys), []);
        assert_eq!(neighbours.retain(&BTreeSet::new()), [asked]);
        assert_eq!(neighbours.next_due(), None);
    }
}
