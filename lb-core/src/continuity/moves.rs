//! How much of a service would move with another version of its table.

use super::roster::{self, Name};
use crate::tables::ServiceTable;

/// Shares of all hashes of flows, in whole parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Of those flows that have a backend: the ones that would have another, or none, if they began
    /// afterwards.
    pub moved: u64,
    /// All.
    pub of: u64,
}

impl Moves {
    /// As a number from 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 48 bits")]
    pub fn share(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.moved as f64 / self.of as f64 }
    }
}

/// Compares the slots of a service before and after a change. With as many slots as before a part is a
/// slot.
#[must_use]
pub fn moves(old: &ServiceTable, new: &ServiceTable) -> Moves {
    let [before, after] = [old, new].map(|table| u64::from(table.slots.len()));
    if before == 0 {
        return Moves { moved: 0, of: after.max(1) };
    }
    if after == 0 {
        return Moves { moved: before, of: before };
    }
    let names = |table: &ServiceTable| -> Vec<Option<Name>> {
        let spec = table.source.spec();
        let members = table.roster.members().iter();
        members.map(|it| it.as_ref().map(|it| roster::name(spec, &it.backend))).collect()
    };
    let (old_names, new_names) = (names(old), names(new));
    let of = |table: &ServiceTable, names: &[Option<Name>], slot: u64| {
        let place = usize::try_from(slot).ok().and_then(|slot| table.slots.slots().get(slot));
        place.and_then(|place| names.get(usize::from(*place)).copied().flatten())
    };
    // Slots are equal parts of the hashes. Where there are as many, they begin and end together.
    let scale = if before == after { (1, 1) } else { (after, before) };
    let (mut slots, mut moved, mut from) = ((0, 0), 0, 0);
    while slots.0 < before && slots.1 < after {
        let ends = ((slots.0 + 1) * scale.0, (slots.1 + 1) * scale.1);
        let end = ends.0.min(ends.1);
        if of(old, &old_names, slots.0) != of(new, &new_names, slots.1) {
            moved += end - from;
        }
        slots = (slots.0 + u64::from(ends.0 == end), slots.1 + u64::from(ends.1 == end));
        from = end;
    }
    Moves { moved, of: before * scale.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow_hash::reduce;
    use crate::model::ServiceSpec;
    use crate::model::tests::spec;
    use crate::stage::classify::tests::{tables, tables_after};

    /// Flows that are counted.
    const STEPS: u64 = 50_000;

    /// Of some backends, those of the set; with weights.
    fn web(set: &[(usize, u32)], slots: u32) -> ServiceSpec {
        let mut spec = ServiceSpec { slots: Some(slots), ..spec("web", "10.0.0.100", &[]) };
        for (host, weight) in set {
            let address = format!("10.0.0.{}", 11 + host);
            let mut backend = crate::model::tests::backend(&address);
            backend.weight = *weight;
            spec.backends.push(backend);
        }
        spec
    }

    fn set() -> impl Strategy<Value = Vec<(usize, u32)>> {
        let weights = proptest::collection::vec(proptest::option::of(0..4_u32), 3);
        weights.prop_map(|weights| {
            let some = weights.into_iter().enumerate();
            some.filter_map(|(host, weight)| Some((host, weight?))).collect()
        })
    }

    proptest! {
        /// What is foretold is what then moves: the slots that are in transition.
        #[test]
        fn what_is_foretold_moves(before in set(), after in set()) {
            let old = tables([web(&before, 1009)]);
            let new = tables_after(Some(&old), [web(&after, 1009)]);
            let foretold = moves(&old.services[0], &new.services[0]);
            let moved = new.services[0].transitions.as_ref().map_or(0, |it| it.count() as u64);
            let (old_len, new_len) = (old.services[0].slots.len(), new.services[0].slots.len());
            match (old_len, new_len) {
                (0, _) => prop_assert_eq!(foretold.moved, 0),
                (_, 0) => prop_assert_eq!(foretold.moved, foretold.of),
                _ => prop_assert_eq!((foretold.moved, foretold.of), (moved, 1009)),
            }
        }

        /// With another number of slots, the share is that of the flows that have another backend.
        #[test]
        fn shares_are_those_of_flows(after in set(), seed: u64) {
            let old = tables([web(&[(0, 1), (1, 2), (2, 1)], 251)]);
            let new = tables_after(Some(&old), [web(&after, 1009)]);
            let [old, new] = [&old.services[0], &new.services[0]];
            let of = |table: &ServiceTable, hash| {
                let slot = reduce(hash, table.slots.len()) as usize;
                let place = table.slots.slots().get(slot)?;
                Some(table.roster.get(*place)?.backend.address)
            };
            let hash = |i: u64| seed.wrapping_add(i.wrapping_mul(u64::MAX / STEPS));
            let moved = (0..STEPS).filter(|i| of(old, hash(*i)) != of(new, hash(*i))).count();
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let share = moved as f64 / STEPS as f64;
            let foretold = moves(old, new).share();
            prop_assert!((foretold - share).abs() < 0.03, "{foretold} {share}");
        }
    }
}
