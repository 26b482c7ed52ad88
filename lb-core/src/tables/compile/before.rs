//! What tables were made from, and so what of them need not be made again.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::Circumstances;
use crate::continuity::Standing;
use crate::model::{DesiredState, Health, Service, ServiceSpec};
use crate::pool::Pool;
use crate::rate::Tick;
use crate::tables::next_hop::NextHops;
use crate::tables::{Answers, BackendEntry, ServiceTable, Tables, VipIndex};

/// What tables were made from.
#[derive(Clone, Debug)]
pub(in crate::tables) struct Basis {
    desired: DesiredState,
    next_hops: NextHops,
    health: Health,
    /// By the place of the service.
    outlooks: Vec<Outlook>,
}

/// What makes a service's table another one, besides what is wanted. Kept beside the tables, so that those
/// need not be touched to see that nothing has become of them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::tables) struct Outlook {
    /// When it changes by itself.
    change: Option<Tick>,
    pub(super) is_in_transition: bool,
    /// There is a backend without a way to it.
    pub(in crate::tables) awaits_ways: bool,
    /// There is a backend that is leaving.
    pub(in crate::tables) has_leaving: bool,
}

impl Outlook {
    pub(super) fn of(table: &ServiceTable) -> Self {
        let members = table.roster.members().iter().zip(&*table.backends);
        let awaits = |(member, entry): (&Option<_>, &BackendEntry)| {
            member.is_some() && entry.hops().is_empty()
        };
        Self {
            change: table.next_change(),
            is_in_transition: table.transitions.is_some(),
            awaits_ways: members.into_iter().any(awaits),
            has_leaving: table.roster.serving().any(|it| it.standing != Standing::Wanted),
        }
    }
}

impl Basis {
    pub(super) fn new(
        desired: &DesiredState,
        circumstances: &Circumstances<'_>,
        outlooks: Vec<Outlook>,
    ) -> Self {
        Self {
            desired: desired.clone(),
            next_hops: circumstances.next_hops.clone(),
            health: circumstances.health.cloned().unwrap_or_default(),
            outlooks,
        }
    }

    pub(in crate::tables) fn desired(&self) -> &DesiredState {
        &self.desired
    }

    /// Of the service at `place`.
    pub(in crate::tables) fn outlook(&self, place: usize) -> Option<&Outlook> {
        self.outlooks.get(place)
    }

    /// When the first service changes by itself.
    pub(in crate::tables) fn next_change(&self) -> Option<Tick> {
        self.outlooks.iter().filter_map(|outlook| outlook.change).min()
    }
}

/// The version before, and what has changed since.
pub(super) struct Before<'a> {
    tables: Option<&'a Tables>,
    /// Absent: all may have changed.
    known: Option<Known<'a>>,
    /// Places of services, by name. Made when somebody is looked for.
    places: OnceCell<BTreeMap<&'a str, usize>>,
}

struct Known<'a> {
    basis: &'a Basis,
    /// By place in the version before: what its table was made from has changed, besides what is wanted.
    is_stale: Vec<bool>,
    /// The services that others have taken the places of, with those. Absent: there are not as many.
    replaced: Option<Vec<[&'a ServiceSpec; 2]>>,
}

impl<'a> Before<'a> {
    pub(super) fn new(
        desired: &'a DesiredState,
        circumstances: &Circumstances<'_>,
        tables: Option<&'a Tables>,
    ) -> Self {
        let known = tables.and_then(|tables| Known::new(desired, circumstances, tables));
        Self { tables, known, places: OnceCell::new() }
    }

    pub(super) fn tables(&self) -> Option<&'a Tables> {
        self.tables
    }

    /// The service's table, if nothing has become of it.
    pub(super) fn unchanged(
        &self,
        place: usize,
        service: &Arc<Service>,
    ) -> Option<(Arc<ServiceTable>, Outlook)> {
        let known = self.known.as_ref()?;
        let was = |place: &usize| {
            known.basis.desired.services().get(*place).is_some_and(|it| Arc::ptr_eq(it, service))
        };
        let place =
            Some(place).filter(was).or_else(|| self.place_of(place, service).filter(was))?;
        let table = self.tables?.services.get(place)?;
        (!known.is_stale[place]).then(|| (Arc::clone(table), known.basis.outlooks[place]))
    }

    /// The table of the service that had its name.
    pub(super) fn named(&self, place: usize, service: &Service) -> Option<&'a Arc<ServiceTable>> {
        self.tables?.services.get(self.place_of(place, service)?)
    }

    /// Where the service was that had the name of the one that is now at `place`: there, most of the time.
    fn place_of(&self, place: usize, service: &Service) -> Option<usize> {
        let services = &self.tables?.services;
        let name = &*service.spec().name;
        if services.get(place).is_some_and(|it| *it.source.spec().name == *name) {
            return Some(place);
        }
        let places = self.places.get_or_init(|| {
            services.iter().zip(0..).map(|(it, place)| (&*it.source.spec().name, place)).collect()
        });
        places.get(name).copied()
    }

    /// Is this the same of each service as of the one that had its place?
    pub(super) fn is_same<T: PartialEq>(&self, of: impl Fn(&ServiceSpec) -> T) -> bool {
        let replaced = self.known.as_ref().and_then(|known| known.replaced.as_ref());
        replaced.is_some_and(|replaced| replaced.iter().all(|[old, new]| of(old) == of(new)))
    }

    /// The index of destinations, if it is still right.
    pub(super) fn vips(&self) -> Option<VipIndex> {
        let tables = self.tables.filter(|_| self.is_same(|spec| spec.vip));
        tables.map(|tables| tables.vips.clone())
    }

    /// What is known of answers, as it is with these tables.
    pub(super) fn answers(&self, services: &[Arc<ServiceTable>]) -> Option<Answers> {
        let tables = self.tables.filter(|tables| tables.services.len() == services.len())?;
        let both = (0..).zip(tables.services.iter().zip(services));
        let replaced = both.filter(|(_, (old, new))| !Arc::ptr_eq(old, new));
        let replaced: Vec<_> =
            replaced.map(|(place, (old, new))| (place, &**old, &**new)).collect();
        Some(tables.answers.followed_by(services, &replaced))
    }
}

impl<'a> Known<'a> {
    /// `None`: what all tables depend on has changed.
    fn new(
        desired: &'a DesiredState,
        circumstances: &Circumstances<'_>,
        tables: &'a Tables,
    ) -> Option<Self> {
        let basis = tables.basis.as_ref()?;
        let is_there = |pool: &Arc<Pool>| tables.pools.iter().any(|it| Arc::ptr_eq(it, pool));
        if basis.desired.hash_key() != desired.hash_key()
            || tables.ports != *circumstances.ports
            || !circumstances.pools.iter().all(is_there)
        {
            return None;
        }
        let replaced = desired.changed_since(&basis.desired);
        let replaced = replaced.map(|both| both.map(|(old, new)| [old.spec(), new.spec()]));
        Some(Self {
            basis,
            is_stale: is_stale(basis, circumstances, tables),
            replaced: replaced.map(Iterator::collect),
        })
    }
}

/// Of which services has something changed besides what is wanted?
fn is_stale(basis: &Basis, circumstances: &Circumstances<'_>, tables: &Tables) -> Vec<bool> {
    let is_due = |it: &Outlook| it.change.is_some_and(|change| change <= circumstances.now);
    let mut is_stale: Vec<bool> = basis.outlooks.iter().map(is_due).collect();
    let health = circumstances.health.cloned().unwrap_or_default();
    let names = health.changed_since(&basis.health);
    let ids: BTreeSet<_> = circumstances.idle.iter().map(|(id, _)| *id).collect();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    let mut is_any_new = false;
    let (old, new) = (&basis.next_hops, circumstances.next_hops);
    for change in (!old.ptr_eq(new)).then(|| old.diff(new)).into_iter().flatten() {
        match change {
            DiffItem::Add(..) => is_any_new = true,
            DiffItem::Update { old: (address, _), .. } | DiffItem::Remove(address, _) => {
                addresses.insert(*address);
            }
        }
    }
    if is_any_new {
        for (is_stale, outlook) in is_stale.iter_mut().zip(&basis.outlooks) {
            *is_stale |= outlook.awaits_ways;
        }
    }
    if !(names.is_empty() && ids.is_empty() && addresses.is_empty()) {
        for (is_stale, table) in is_stale.iter_mut().zip(&tables.services) {
            let mut members = table.roster.members().iter().flatten();
            *is_stale |= names.contains(&*table.source.spec().name)
                || ids.contains(&table.id)
                || members.any(|member| addresses.contains(&member.backend.address));
        }
    }
    is_stale
}
