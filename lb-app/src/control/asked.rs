//! The backends that the kernel is asked about: those that are wanted, and those that may serve still.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::IpAddr;

use imbl::OrdSet;
use lb_core::model::{Backend, DesiredState, Service};
use lb_core::tables::{ServiceTable, Tables};

/// See above. It follows changes, and does not look at what stays as it is.
#[derive(Debug)]
pub(super) struct Asked {
    desired: DesiredState,
    /// Of `desired`.
    backends: usize,
    /// Of addresses that several services want: how many do besides the first.
    more: HashMap<IpAddr, u32>,
    /// Those that nobody wants, where flows may still go.
    leaving: HashSet<IpAddr>,
    /// Wanted, or leaving.
    all: OrdSet<IpAddr>,
}

impl Asked {
    pub(super) fn new(nothing: DesiredState) -> Self {
        Self {
            desired: nothing,
            backends: 0,
            more: HashMap::new(),
            leaving: HashSet::new(),
            all: OrdSet::new(),
        }
    }

    /// When this is wanted, and `tables` are in force.
    pub(super) fn follow(&mut self, desired: &DesiredState, tables: &Tables) -> &OrdSet<IpAddr> {
        let before = mem::replace(&mut self.desired, desired.clone());
        let backends = |service: &Service| service.spec().backends.len();
        if let Some(changed) = desired.changed_since(&before) {
            for (old, new) in changed {
                self.backends = self.backends + backends(new) - backends(old);
                let [was, is] = [old, new].map(|service| addresses(&service.spec().backends));
                if !was.eq(is) {
                    self.add(new);
                    self.remove(old);
                }
            }
        } else {
            self.backends = desired.services().iter().map(|service| backends(service)).sum();
            desired.services().iter().for_each(|service| self.add(service));
            before.services().iter().for_each(|service| self.remove(service));
        }
        for address in self.leaving.drain() {
            self.all.remove(&address);
        }
        for address in may_serve(desired, tables) {
            if !self.all.contains(&address) {
                self.leaving.insert(address);
                self.all.insert(address);
            }
        }
        &self.all
    }

    /// How many backends are wanted.
    pub(super) fn backends(&self) -> usize {
        self.backends
    }

    fn add(&mut self, service: &Service) {
        for address in addresses(&service.spec().backends) {
            if !self.all.contains(&address) {
                self.all.insert(address);
            } else if !self.leaving.remove(&address) {
                *self.more.entry(address).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, service: &Service) {
        for address in addresses(&service.spec().backends) {
            match self.more.get_mut(&address) {
                None => drop(self.all.remove(&address)),
                Some(1) => drop(self.more.remove(&address)),
                Some(more) => *more -= 1,
            }
        }
    }
}

/// Where tables in force may send flows, and all of that which `desired` does not have. Service by service: what is
/// next to each other is looked for next to each other.
fn may_serve<'a>(
    desired: &'a DesiredState,
    tables: &'a Tables,
) -> Box<dyn Iterator<Item = IpAddr> + 'a> {
    let serving =
        |table: &'a ServiceTable| addresses(table.roster.serving().map(|member| &member.backend));
    match tables.made_of().and_then(|made_of| desired.changed_since(made_of)) {
        Some(changed) => {
            let replaced = changed.flat_map(|(old, _)| addresses(&old.spec().backends));
            Box::new(tables.leaving().flat_map(serving).chain(replaced))
        }
        None => Box::new(tables.services.iter().flat_map(move |table| serving(table))),
    }
}

/// Of those that the kernel knows the way to.
fn addresses<'a>(backends: impl IntoIterator<Item = &'a Backend>) -> impl Iterator<Item = IpAddr> {
    let asked = backends.into_iter().filter(|backend| backend.static_hop.is_none());
    asked.map(|backend| backend.address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use lb_core::model::{Forward, HashKey, PortRange, Protocol, ServiceSpec, Vip};
    use lb_core::rate::Tick;
    use lb_core::tables::compile::{Circumstances, compile};
    use lb_core::tables::next_hop::NextHops;
    use proptest::prelude::*;

    use super::*;

    /// By definition.
    fn asked(desired: &DesiredState, tables: &Tables) -> BTreeSet<IpAddr> {
        let wanted = desired.services().iter().flat_map(|it| addresses(&it.spec().backends));
        let known = tables.services.iter().flat_map(|service| service.roster.serving());
        wanted.chain(addresses(known.map(|member| &member.backend))).collect()
    }

    fn service(number: u8, backends: &[u8]) -> Arc<Service> {
        let address = IpAddr::from([10, 9, 0, number]);
        let vip =
            Vip { address: address.into(), ports: PortRange::one(80), protocol: Protocol::Tcp };
        let backend = |host: &u8| Backend {
            address: [10, 0, 0, *host].into(),
            port: None,
            weight: 1,
            drain: false,
            static_hop: None,
        };
        let spec = ServiceSpec {
            slots: Some(13),
            backends: backends.iter().map(backend).collect(),
            ..ServiceSpec::new(&format!("service{number}"), vip, Forward::L2dsr)
        };
        Arc::new(Service::new(spec).unwrap())
    }

    proptest! {
        #[test]
        fn it_is_what_is_wanted_or_may_serve_still(
            changes in proptest::collection::vec(
                (0_u8..4, proptest::collection::btree_set(1_u8..9, 0..5), any::<bool>(), 0_u64..3),
                1..30,
            ),
        ) {
            let mut services = vec![None; 4];
            let mut desired = DesiredState::empty(HashKey([7; 16]));
            let (ports, next_hops) = (Arc::from([]), NextHops::new());
            let mut now = Tick(0);
            let mut tables = compile(&desired, &Circumstances::new(&ports, &next_hops), None);
            let mut followed = Asked::new(desired.clone());
            for (number, backends, is_there, days) in changes {
                let backends: Vec<u8> = backends.into_iter().collect();
                services[usize::from(number)] = is_there.then(|| service(number, &backends));
                now.0 += days * 43_200_000;
                let wanted = services.iter().flatten().map(Arc::clone).collect();
                desired = desired.followed_by(wanted).unwrap();
                let seen: BTreeSet<IpAddr> =
                    followed.follow(&desired, &tables).iter().copied().collect();
                prop_assert_eq!(&seen, &asked(&desired, &tables));
                let count: usize = desired.services().iter().map(|it| it.spec().backends.len()).sum();
                prop_assert_eq!(followed.backends(), count);
                let circumstances =
                    Circumstances { now, ..Circumstances::new(&ports, &next_hops) };
                tables = compile(&desired, &circumstances, Some(&tables));
                // Looked at once more, when they are in force.
                let seen: BTreeSet<IpAddr> =
                    followed.follow(&desired, &tables).iter().copied().collect();
                prop_assert_eq!(&seen, &asked(&desired, &tables));
            }
        }
    }
}
