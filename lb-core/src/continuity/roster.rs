//! Who has which place among the backends of a service, from one version of the tables to the next.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use super::NOBODY;
use crate::model::{Backend, ServiceSpec};
use crate::rate::Tick;
use crate::tuple::address_bytes;

/// How a backend stands with its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is asked for.
    Wanted,
    /// It is not asked for any more, and keeps the flows that it has; until this time at most.
    Leaving(Tick),
    /// It is gone. Its place is not given to another before this time, when no flow can be
    /// remembered there any more.
    Gone(Tick),
}

/// A backend at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it was last asked for.
    pub backend: Backend,
    /// Is it still?
    pub standing: Standing,
}

/// The backends of a service by their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster(Vec<Option<Member>>);

/// A backend's name among those of its service, on all balancers alike: its address, and its port, if
/// it is not the one that the client used. Two with another port are two backends.
pub type Name = (IpAddr, Option<u16>);

/// The name of a backend.
#[must_use]
pub fn name(spec: &ServiceSpec, backend: &Backend) -> Name {
    (backend.address, spec.port_of(backend))
}

impl Roster {
    /// As it was remembered; `None`, if that cannot be.
    #[must_use]
    pub fn restore(members: Vec<Option<Member>>) -> Option<Self> {
        (members.len() <= usize::from(NOBODY)).then_some(Self(members))
    }

    /// Gives the backends of `spec` places: those that they had, else free ones. `is_idle` says of a
    /// place whether no flow is remembered there. A backend that is no longer asked for leaves when
    /// that is so, after [`ServiceSpec::grace`] at the latest.
    #[must_use]
    pub fn next(&self, spec: &ServiceSpec, is_idle: impl Fn(u16) -> bool, now: Tick) -> Self {
        let wanted =
            |backend: &Backend| Member { backend: backend.clone(), standing: Standing::Wanted };
        let mut places: BTreeMap<Name, usize> = BTreeMap::new();
        for (place, member) in self.0.iter().enumerate() {
            places.extend(member.iter().map(|member| (name(spec, &member.backend), place)));
        }
        let mut next = vec![None; self.0.len()];
        let mut newcomers = Vec::new();
        for backend in &spec.backends {
            match places.get(&name(spec, backend)) {
                Some(&place) => next[place] = Some(wanted(backend)),
                None => newcomers.push(backend),
            }
        }
        for ((seat, old), place) in next.iter_mut().zip(&self.0).zip(0..) {
            if seat.is_none() {
                *seat = old.as_ref().and_then(|old| old.left(spec, || is_idle(place), now));
            }
        }
        let mut from = 0;
        for backend in newcomers {
            let free = (from..next.len()).find(|&place| next[place].is_none());
            let place = free.or_else(|| {
                next.push(None);
                Some(next.len() - 1).filter(|&place| place < usize::from(NOBODY))
            });
            // All places taken: who has left may not stay.
            let place = place.or_else(|| {
                next.truncate(usize::from(NOBODY));
                let is_wanted = |seat: &Option<Member>| {
                    seat.as_ref().is_some_and(|member| member.standing == Standing::Wanted)
                };
                next.iter().position(|seat| !is_wanted(seat))
            });
            if let Some(place) = place {
                next[place] = Some(wanted(backend));
                from = place + 1;
            }
        }
        while next.pop_if(|seat| seat.is_none()).is_some() {}
        Self(next)
    }

    /// By place; some are empty.
    #[must_use]
    pub fn members(&self) -> &[Option<Member>] {
        &self.0
    }

    /// Who has a place.
    #[must_use]
    pub fn get(&self, place: u16) -> Option<&Member> {
        self.0.get(usize::from(place))?.as_ref()
    }

    /// Who has which place, those excepted that are gone.
    pub fn names(&self, spec: &ServiceSpec) -> impl Iterator<Item = (Name, u16)> {
        let members = self.0.iter().zip(0..);
        members.filter_map(|(member, place)| {
            let member = member.as_ref().filter(|it| !matches!(it.standing, Standing::Gone(_)))?;
            Some((name(spec, &member.backend), place))
        })
    }

    /// Those that may serve, as far as it is known here.
    pub fn serving(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().flatten().filter(|member| !matches!(member.standing, Standing::Gone(_)))
    }

    /// What each of them is to the table of slots, by place.
    #[must_use]
    pub fn identities(&self, spec: &ServiceSpec) -> Box<[u64]> {
        let members = self.0.iter().map(Option::as_ref);
        members.map(|member| member.map_or(0, |it| identity(name(spec, &it.backend)))).collect()
    }

    /// When the next one's standing changes by itself.
    #[must_use]
    pub fn next_change(&self) -> Option<Tick> {
        let changes = self.0.iter().flatten().filter_map(|member| match member.standing {
            Standing::Wanted => None,
            Standing::Leaving(until) | Standing::Gone(until) => Some(until),
        });
        changes.min()
    }
}

/// A backend's address and port (0: the one that the client used) as a number, on every balancer
/// alike.
fn identity((address, port): Name) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address_bytes(address));
    bytes[16..].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    rapidhash_v3_nano_inline::<true, false>(&bytes, const { &RapidSecrets::seed_cpp(0) })
}

impl Member {
    /// How a backend stands that is not asked for.
    fn left(&self, spec: &ServiceSpec, is_idle: impl Fn() -> bool, now: Tick) -> Option<Self> {
        let after = |time: std::time::Duration| Tick(now.0.saturating_add(Tick::from(time).0));
        let gone = || Standing::Gone(after(spec.idle_timeout()));
        let standing = match self.standing {
            Standing::Wanted => Standing::Leaving(after(spec.grace())),
            Standing::Leaving(until) if now >= until || is_idle() => gone(),
            Standing::Gone(until) if now >= until => return None,
            as_before => as_before,
        };
        Some(Self { backend: self.backend.clone(), standing })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::tests::{backend, spec};

    const A: &str = "10.0.0.11";
    const B: &str = "10.0.0.12";
    const C: &str = "10.0.0.13";

    fn seats(roster: &Roster) -> Vec<Option<(String, Standing)>> {
        let seat = |member: &Member| (member.backend.address.to_string(), member.standing);
        roster.members().iter().map(|member| member.as_ref().map(seat)).collect()
    }

    #[test]
    fn a_backend_keeps_its_place_and_leaves_it_late() {
        let with = |backends: &[&str]| ServiceSpec {
            grace: Some(Duration::from_secs(100)),
            idle_timeout: Some(Duration::from_secs(10)),
            ..spec("web", "10.0.0.100", backends)
        };
        let wanted = |address: &str| Some((address.to_owned(), Standing::Wanted));
        let other = |address: &str, standing| Some((address.to_owned(), standing));
        let busy = |_| false;
        let first = Roster::default().next(&with(&[A, B]), busy, Tick(0));
        assert_eq!(seats(&first), [wanted(A), wanted(B)]);
        // The order of the list is nothing.
        assert_eq!(first.next(&with(&[B, A]), busy, Tick(0)), first);

        let leaving = first.next(&with(&[C, B]), busy, Tick(1000));
        let until = Standing::Leaving(Tick(101_000));
        assert_eq!(seats(&leaving), [other(A, until), wanted(B), wanted(C)]);
        assert_eq!(leaving.next_change(), Some(Tick(101_000)));
        assert_eq!(leaving.next(&with(&[C, B]), busy, Tick(2000)), leaving);
        // Who comes back is as before.
        assert_eq!(seats(&leaving.next(&with(&[A, B, C]), busy, Tick(3000)))[0], wanted(A));

        let idle = |place: u16| place == 0;
        for (is_idle, now) in [(idle as fn(u16) -> bool, 5000), (busy, 101_000)] {
            let gone = leaving.next(&with(&[B, C]), is_idle, Tick(now));
            assert_eq!(seats(&gone)[0], other(A, Standing::Gone(Tick(now + 10_000))));
            // Somebody new does not sit down there yet, but who is back does.
            let early = gone.next(&with(&[B, C, "10.0.0.14"]), busy, Tick(now + 9_999));
            assert_eq!(seats(&early)[3], wanted("10.0.0.14"));
            assert_eq!(seats(&gone.next(&with(&[A, B, C]), busy, Tick(now + 1)))[0], wanted(A));
            let late = gone.next(&with(&[B, C, "10.0.0.14"]), busy, Tick(now + 10_000));
            assert_eq!(seats(&late), [wanted("10.0.0.14"), wanted(B), wanted(C)]);
        }
    }

    #[test]
    fn another_port_is_another_backend() {
        let mut two = spec("web", "10.0.0.100", &[A, A]);
        (two.backends[0].port, two.backends[1].port) = (Some(8080), Some(8081));
        let first = Roster::default().next(&two, |_| false, Tick(0));
        two.backends.remove(0);
        let second = first.next(&two, |_| false, Tick(0));
        assert!(matches!(second.get(0).unwrap().standing, Standing::Leaving(_)));
        assert_eq!(second.get(1), first.get(1));
    }

    /// Names are never found too few for those that are wanted.
    #[test]
    fn who_is_wanted_comes_before_who_has_left() {
        let full = usize::from(NOBODY);
        let members = (0..full).map(|i| {
            let i = u32::try_from(i).unwrap();
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string();
            Some(Member { backend: backend(&address), standing: Standing::Gone(Tick(9)) })
        });
        let roster = Roster::restore(members.collect()).unwrap();
        let next =
            roster.next(&spec("web", "10.1.0.100", &["10.9.0.1", "10.9.0.2"]), |_| false, Tick(0));
        assert_eq!(next.members().len(), full);
        let wanted = next.members().iter().flatten().filter(|m| m.standing == Standing::Wanted);
        assert_eq!(wanted.count(), 2);
        assert!(Roster::restore(vec![None; full + 1]).is_none());
    }
}
