//! Consistent hashing: which slot belongs to which backend.
//!
//! Maglev lets backends take turns, each claiming the next slot of its own permutation, until none
//! is free. That balances perfectly, but a backend that leaves shifts everyone's turns, and of 100
//! backends one that leaves moves 1.55 times its share. So here **slots choose**: a slot remembers the
//! first *two* backends that came by, and belongs to the first, unless the second needs it more.
//! A *price* for each backend, near 1, says who needs it: it rises while the backend has more than
//! its due and falls while it has less. That moves about 1.2 times the share, with shares within
//! 1 % of what is due (3 % where few backends have very unequal weights); all of it again a pure
//! function of the set.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use crate::flow_hash::reduce;

/// Builds the lookup table of one service: slot → index into `weights`.
///
/// * **Shape**: `slots` entries, each an index of `weights` whose weight is above zero; empty if
///   there is none. `slots` is prime. `identities[i]` names backend `i` and is unique.
/// * **Units**: weights are relative shares; 0 owns no slot.
/// * **Promise**: the same *set* of (identity, weight) and `slots` gives each identity the same
///   slots on every machine and in every release, whatever the order of the list.
/// * **Cost**: `O(slots · log slots)` expected; control thread only.
///
/// # Source
/// Permutations: Eisenbud et al., *Maglev* (NSDI '16) §3.4. Weights by turns: in every round each
/// backend earns its weight, and comes by one slot for every `max(weights)` that it has earned.
#[must_use]
pub fn build(identities: &[u64], weights: &[u32], slots: u32) -> Box<[u16]> {
    if weights.iter().all(|&weight| weight == 0) {
        return Box::default();
    }
    let mut shares = Shares::new(weights, slots);
    let (mut table, contests) = first_two(identities, weights, slots, &mut shares);
    for _ in 0..ROUNDS_MAX {
        shares.start_round();
        for contest in &contests {
            let owner = contest.owner(&shares.price);
            shares.counts[usize::from(owner)] += 1;
        }
        if shares.adjust_prices() {
            break;
        }
    }
    for contest in &contests {
        table[contest.slot as usize] = contest.owner(&shares.price);
    }
    table
}

/// Rounds of price finding, at most: the shares hardly move any more.
const ROUNDS_MAX: usize = 64;
/// A share may be off by this part of its due before its price moves: what is left alone moves
/// no slot when others come and go.
const TOLERANCE: f32 = 0.008;
/// The part of the error that one round corrects: small steps end at the edge of the tolerance,
/// where the same backend ends in a similar set.
const GAIN: f32 = 0.25;
/// No backend.
const NONE: u16 = u16::MAX;

/// What each backend has, should have, and pays for more.
struct Shares {
    due: Vec<f32>,
    price: Vec<f32>,
    /// Slots that only this backend wants.
    uncontested: Vec<u32>,
    counts: Vec<u32>,
    /// A second comer that costs this many times what the first does has no chance.
    cost_ratio_max: f32,
}

impl Shares {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "rounded alike everywhere"
    )]
    fn new(weights: &[u32], slots: u32) -> Self {
        let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let due = |&weight: &u32| (f64::from(slots) * f64::from(weight) / sum as f64) as f32;
        let owners = weights.iter().filter(|&&weight| weight > 0).count();
        // Shares before pricing stray by about 1 / √due, and few backends of unequal weights by more
        // than many; both prices may move by five times that.
        let owners = owners as f32;
        let stray = 3.0 / owners + 5.0 / (slots as f32 / owners).sqrt();
        Self {
            due: weights.iter().map(due).collect(),
            price: vec![1.0; weights.len()],
            uncontested: vec![0; weights.len()],
            counts: vec![0; weights.len()],
            cost_ratio_max: (1.0 + stray) * (1.0 + stray),
        }
    }

    fn start_round(&mut self) {
        self.counts.copy_from_slice(&self.uncontested);
    }

    /// Moves each price by how far its share is outside of the tolerance; are all within?
    #[expect(clippy::cast_precision_loss, reason = "a count of slots is below 2^24")]
    fn adjust_prices(&mut self) -> bool {
        let mut settled = true;
        for ((price, &due), &count) in self.price.iter_mut().zip(&self.due).zip(&self.counts) {
            let tolerance = (due * TOLERANCE).max(0.5);
            let error = count as f32 - due;
            let excess = error - error.clamp(-tolerance, tolerance);
            if excess != 0.0 {
                settled = false;
                *price *= (1.0 + GAIN * excess / due).clamp(0.8, 1.25);
            }
        }
        settled
    }
}

/// A slot that two backends want.
struct Contest {
    slot: u32,
    backends: [u16; 2],
    /// What the slot costs each, at a price of 1; above zero.
    costs: [f32; 2],
}

impl Contest {
    fn owner(&self, price: &[f32]) -> u16 {
        let [first, second] = self.backends;
        let cost = |i: usize| self.costs[i] * price[usize::from(self.backends[i])];
        if cost(1) < cost(0) { second } else { first }
    }
}

/// Lets backends walk their permutations until every slot was come by. Returns each slot's first
/// comer, and the slots where the second came close.
fn first_two(
    identities: &[u64],
    weights: &[u32],
    slots: u32,
    shares: &mut Shares,
) -> (Box<[u16]>, Vec<Contest>) {
    let mut walkers: Vec<Walker> = identities
        .iter()
        .zip(weights)
        .zip(0..NONE)
        .filter(|((_, weight), _)| **weight > 0)
        .map(|((identity, weight), backend)| Walker::new(*identity, *weight, backend, slots))
        .collect();
    walkers.sort_unstable_by_key(|walker| walker.identity);
    let stride = walkers.iter().map(|walker| walker.weight).max().unwrap_or(1);
    for walker in &mut walkers {
        walker.earned = stride / 2; // as in `cost`: the first visit is due after half a turn
    }

    let mut comers = vec![([NONE; 2], [0_u32; 2]); slots as usize];
    // Apart, since it is small enough to stay in the cache: most visits find two already.
    let mut comer_counts = vec![0_u8; slots as usize];
    // Few backends of very unequal weights meet late: then it is enough that all slots have an
    // owner. Many backends meet long before.
    let (mut lonely, mut single, mut patience) = (slots, slots, 16 * u64::from(slots));
    while lonely > 0 || (single > slots / 20 && patience > 0) {
        for walker in &mut walkers {
            patience = patience.saturating_sub(1);
            if !walker.has_turn(stride, slots) {
                continue;
            }
            let slot = walker.slot as usize;
            let place = comer_counts[slot];
            if place < 2 {
                comer_counts[slot] += 1;
                let (backends, visits) = &mut comers[slot];
                backends[usize::from(place)] = walker.backend;
                visits[usize::from(place)] = walker.visits;
                lonely -= u32::from(place == 0);
                single -= u32::from(place == 1);
            }
            walker.advance(slots);
        }
    }

    let mut contests = Vec::new();
    let mut table = Vec::with_capacity(comers.len());
    for (slot, (backends, visits)) in (0..slots).zip(comers) {
        let [first, second] = backends;
        table.push(first);
        if second != NONE {
            let cost = |i: usize| cost(visits[i], slots, weights[usize::from(backends[i])]);
            let costs = [cost(0), cost(1)];
            if costs[1] < costs[0] * shares.cost_ratio_max {
                contests.push(Contest { slot, backends, costs });
                continue;
            }
        }
        shares.uncontested[usize::from(first)] += 1;
    }
    (table.into_boxed_slice(), contests)
}

/// What a slot costs a backend that came by it on its `visit`th step: exponentially distributed
/// with a rate of `weight`, so that the chance to be the cheapest is proportional to the weight.
///
/// Addition, multiplication and division are rounded alike on every machine; a library's
/// logarithm is not. So `-ln(1 - x) = 2 artanh(x / (2 - x))`, as a series.
#[expect(clippy::cast_precision_loss, reason = "rounded alike everywhere")]
fn cost(visit: u32, slots: u32, weight: u32) -> f32 {
    let x = (visit as f32 + 0.5) / slots as f32;
    let t = x / (2.0 - x);
    let tt = t * t;
    t * (1.0 + tt * (1.0 / 3.0 + tt * (1.0 / 5.0 + tt * (1.0 / 7.0 + tt / 9.0)))) / weight as f32
}

/// A backend on its way through its own permutation of the slots.
struct Walker {
    identity: u64,
    weight: u32,
    earned: u32,
    visits: u32,
    slot: u32,
    skip: u32,
    backend: u16,
}

impl Walker {
    fn new(identity: u64, weight: u32, backend: u16, slots: u32) -> Self {
        // `skip` is 1..slots, coprime to a prime.
        let within = |salt, n| reduce(hash(identity, salt), n);
        Self {
            identity,
            weight,
            earned: 0,
            visits: 0,
            slot: within(1, slots),
            skip: 1 + within(2, slots - 1),
            backend,
        }
    }

    /// Earns its weight for this turn; is that enough for a visit? Not after a visit of every slot.
    fn has_turn(&mut self, stride: u32, slots: u32) -> bool {
        if self.visits == slots {
            return false;
        }
        self.earned += self.weight;
        let enough = self.earned >= stride;
        self.earned -= if enough { stride } else { 0 };
        enough
    }

    fn advance(&mut self, slots: u32) {
        self.visits += 1;
        self.slot += self.skip;
        if self.slot >= slots {
            self.slot -= slots;
        }
    }
}

/// Not keyed: all balancers of a site have the same table without a word between them.
fn hash(identity: u64, salt: u64) -> u64 {
    const SECRETS: RapidSecrets = RapidSecrets::seed_cpp(0);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&identity.to_le_bytes());
    bytes[8..].copy_from_slice(&salt.to_le_bytes());
    rapidhash_v3_nano_inline::<true, false>(&bytes, &SECRETS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SLOTS: u32 = 65_537;

    fn identities(n: u32) -> Vec<u64> {
        (0..n).map(|i| hash(u64::from(i), 77)).collect()
    }

    fn counts(table: &[u16], backends: usize) -> Vec<u32> {
        let mut counts = vec![0; backends];
        for &backend in table {
            counts[usize::from(backend)] += 1;
        }
        counts
    }

    fn moved(one: &[u16], other: &[u16]) -> u32 {
        one.iter().zip(other).filter(|(a, b)| a != b).count().try_into().unwrap()
    }

    #[test]
    fn shares_are_within_one_percent() {
        for n in [1, 2, 3, 10, 50, 100] {
            let table = build(&identities(n), &vec![1; n as usize], SLOTS);
            let due = f64::from(SLOTS) / f64::from(n);
            for count in counts(&table, n as usize) {
                assert!((f64::from(count) - due).abs() <= 0.01 * due, "{n}: {count} of {due}");
            }
        }
    }

    /// Each of 100 backends in turn; what plain Maglev moves is 1.5 to 1.6 times the share.
    #[test]
    fn a_backend_that_leaves_moves_little_else() {
        let identities = identities(100);
        let full = build(&identities, &[1; 100], SLOTS);
        let own = counts(&full, 100);
        let ratios: Vec<f64> = (0..100)
            .map(|gone| {
                let mut weights = [1; 100];
                weights[gone] = 0;
                f64::from(moved(&full, &build(&identities, &weights, SLOTS))) / f64::from(own[gone])
            })
            .collect();
        let mean = ratios.iter().sum::<f64>() / 100.0;
        let worst = ratios.iter().copied().fold(0.0, f64::max);
        println!("moved {mean:.3} times the share on average, {worst:.3} at worst");
        assert!(mean <= 1.20, "{mean}");
        assert!(worst <= 1.25, "{worst}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Equal sets in any order give equal tables, and weights are kept.
        #[test]
        fn a_table_is_a_function_of_the_set(
            weights in proptest::collection::vec(0_u32..20, 1..40),
            seed: u64,
        ) {
            let n = weights.len();
            let identities: Vec<u64> = (0..n as u64).map(|i| hash(i, seed)).collect();
            let table = build(&identities, &weights, SLOTS);
            let sum: u32 = weights.iter().sum();
            if sum == 0 {
                prop_assert!(table.is_empty());
                return Ok(());
            }
            prop_assert_eq!(table.len(), SLOTS as usize);
            for (count, &weight) in counts(&table, n).into_iter().zip(&weights) {
                let due = f64::from(SLOTS) * f64::from(weight) / f64::from(sum);
                prop_assert!((f64::from(count) - due).abs() <= 0.03 * due + 2.0, "{} of {}", count, due);
            }
            let turned: Vec<u64> = identities.iter().rev().copied().collect();
            let turned_weights: Vec<u32> = weights.iter().rev().copied().collect();
            let other = build(&turned, &turned_weights, SLOTS);
            prop_assert!(table.iter().zip(&other).all(|(&a, &b)| usize::from(a) == n - 1 - usize::from(b)));
        }
    }

    /// On all machines, in all releases: if this fails, balancers of a site would disagree while
    /// one of them is upgraded.
    #[test]
    fn tables_are_the_same_in_every_release() {
        let table = build(&identities(7), &[1, 2, 3, 4, 0, 6, 7], 1009);
        let digest = table.iter().fold(0, |digest, &owner| hash(digest, u64::from(owner)));
        assert_eq!(
            (&table[..8], digest),
            (&[3, 6, 3, 2, 2, 1, 6, 2][..], 14_473_988_155_132_331_422)
        );
    }

    #[test]
    fn odd_sets() {
        assert!(build(&[], &[], SLOTS).is_empty());
        assert!(build(&[1], &[0], SLOTS).is_empty());
        assert_eq!(*build(&[1], &[5], 2), [0, 0]);
        let heavy = counts(&build(&[1, 2], &[65_535, 1], SLOTS), 2);
        assert!(heavy[1] <= 2, "{heavy:?}");
        // As many backends as slots.
        let all = build(&identities(997), &vec![1; 997], 997);
        assert!(counts(&all, 997).into_iter().filter(|&count| count > 0).count() > 600);
    }
}
