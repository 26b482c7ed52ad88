//! Consistent hashing: which slot belongs to which backend.
//!
//! Maglev lets backends take turns, each claiming the next slot of its own permutation, until none
//! is free. That balances perfectly, but a backend that leaves shifts everyone's turns, and of 100
//! backends one that leaves moves 1.55 times its share. So here **slots choose**. Backends race: each
//! visits random slots of its own, at a pace proportional to its weight. A slot remembers the *two*
//! backends that came first, and belongs to the first, unless the second needs it more. A *price*
//! for each backend, near 1, says who needs it: it rises while the backend has more than its due
//! and falls while it has less. In the end single slots change hands, those first that cost least,
//! until all shares are within 1 % of what is due. That moves about 1.2 times the share; all of it
//! again a pure function of the set.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use crate::flow_hash::reduce;

/// Builds the lookup table of one service: slot → index into `weights`.
///
/// * **Shape**: `slots` entries, each an index of `weights` whose weight is above zero; empty if
///   there is none. `identities[i]` names backend `i` and is unique.
/// * **Units**: weights are relative shares; 0 owns no slot.
/// * **Promise**: the same *set* of (identity, weight) and `slots` gives each identity the same
///   slots on every machine and in every release, whatever the order of the list: of floats only
///   what IEEE 754 rounds alike everywhere is used.
/// * **Cost**: `O(slots · log slots)` expected; control thread only.
///
/// # Source
/// The idea of a table that backends fill in their own order: Eisenbud et al., *Maglev* (NSDI '16)
/// §3.4. The race gives each backend first place in proportion to its weight, as weighted
/// rendezvous hashing does (Thaler and Ravishankar, 1998), without asking every backend about every
/// slot.
#[must_use]
pub fn build(identities: &[u64], weights: &[u32], slots: u32) -> Box<[u16]> {
    let mut racers: Vec<Racer> = identities
        .iter()
        .zip(weights)
        .zip(0..NOBODY)
        .filter(|((_, weight), _)| **weight > 0)
        .map(|((identity, weight), backend)| Racer::new(*identity, *weight, backend))
        .collect();
    match racers[..] {
        [] => return Box::default(),
        [Racer { backend, .. }] => return vec![backend; slots as usize].into(),
        _ => racers.sort_unstable_by_key(|racer| racer.identity),
    }
    // From here on a backend is its rank among the racers: the order of the list is forgotten.
    let mut shares = Shares::new(&racers, slots);
    let arrivals = race(&mut racers, slots);
    let (mut table, contests) = shares.judge(&arrivals);
    for _ in 0..ROUNDS_MAX {
        shares.count(&contests);
        if shares.adjust_prices() {
            break;
        }
    }
    shares.count(&contests);
    for contest in &contests {
        table[contest.slot as usize] = contest.owner(&shares.price);
    }
    shares.mend(&mut table, &contests);
    table.into_iter().map(|rank| racers[usize::from(rank)].backend).collect()
}

/// Rounds of price finding, at most: what is left to do is then a matter of single slots.
const ROUNDS_MAX: usize = 12;
/// A share may be off by this part of its due before its price moves: what is left alone moves
/// no slot when others come and go.
const TOLERANCE: f32 = 0.0085;
/// A share may be off by this part of its due in the end, or by this many slots: to ask for more
/// of shares of a few dozen slots would move several times as many of them.
const ERROR_MAX: f64 = 0.01;
const ERROR_MAX_SLOTS: f64 = 1.5;
/// Passes that mend, at most: one or two do, unless shares are a few slots each.
const MENDS_MAX: usize = 4;
/// The part of the error that one round corrects: small steps end at the edge of the tolerance,
/// where the same backend ends in a similar set.
const GAIN: f32 = 0.4;
/// Visits to a slot, on average, in one leg of the race: between legs it is found out which slots
/// need no more visits.
const LEG: f64 = 1.5;
/// Visits whose slots are found before any is visited.
const AHEAD: u32 = 64;
/// No backend.
const NOBODY: u16 = u16::MAX;

/// A backend in the race: its visit `k` is due at `(k + phase) / weight`.
struct Racer {
    identity: u64,
    /// Where its visits go to is drawn from this.
    seed: u64,
    backend: u16,
    weight: f64,
    /// Below 1: who has the same weight does not come at the same time.
    phase: f64,
    visits: u32,
}

impl Racer {
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    fn new(identity: u64, weight: u32, backend: u16) -> Self {
        let phase = (hash(identity, 1) >> 11) as f64 / (1_u64 << 53) as f64;
        Self { identity, seed: hash(identity, 2), backend, weight: weight.into(), phase, visits: 0 }
    }

    /// Makes the visits that are due before `end`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a few dozen visits a slot at most; times are rounded alike everywhere"
    )]
    fn run_until(
        &mut self,
        end: f64,
        rank: u16,
        (arrivals, settled): (&mut [Arrivals], &[u64]),
        slots: u32,
    ) {
        let due = (end * self.weight - self.phase).ceil().max(0.0) as u32;
        let (pause, phase) = ((1.0 / self.weight) as f32, self.phase as f32);
        // Whether a slot is settled is chance: so that is not a branch.
        let mut open = [(0, 0); AHEAD as usize + 1];
        while self.visits < due {
            let mut count = 0;
            let ahead = due.min(self.visits + AHEAD);
            for visit in self.visits..ahead {
                let slot = reduce(scatter(self.seed, visit), slots);
                open[count] = (slot, visit);
                count += usize::from(settled[slot as usize / 64] >> (slot % 64) & 1 == 0);
            }
            for &(slot, visit) in &open[..count] {
                let time = (visit as f32 + phase) * pause;
                arrivals[slot as usize].add(Arrival::new(time, rank));
            }
            self.visits = ahead;
        }
    }
}

/// Who came when: the bits of the time (not negative, so that they order like it), then the rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival(u64);

impl Arrival {
    const NONE: Self = Self(u64::MAX);

    fn new(time: f32, rank: u16) -> Self {
        Self(u64::from(time.to_bits()) << 32 | u64::from(rank))
    }

    #[expect(clippy::cast_possible_truncation, reason = "as it was put together")]
    fn rank(self) -> u16 {
        self.0 as u16
    }

    fn time(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }
}

/// The first two racers that came by a slot.
#[derive(Clone)]
struct Arrivals([Arrival; 2]);

impl Arrivals {
    /// Branchless where it is hard to predict: this is most of the cost of a table.
    fn add(&mut self, arrival: Arrival) {
        let [first, second] = self.0;
        if first.rank() != arrival.rank() && second.rank() != arrival.rank() {
            self.0 = [first.min(arrival), second.min(first.max(arrival))];
        }
    }
}

/// Lets backends visit slots until somebody came by each.
fn race(racers: &mut [Racer], slots: u32) -> Vec<Arrivals> {
    let mut arrivals = vec![Arrivals([Arrival::NONE; 2]); slots as usize];
    // By bit, so that it stays in the cache: most of the later visits are to settled slots.
    let mut settled = vec![0_u64; arrivals.len().div_ceil(64)];
    let leg = LEG * f64::from(slots) / racers.iter().map(|racer| racer.weight).sum::<f64>();
    let mut end = 0.0;
    while arrivals.iter().any(|arrivals| arrivals.0[0] == Arrival::NONE) {
        end += leg;
        for (rank, racer) in (0..).zip(&mut *racers) {
            racer.run_until(end, rank, (&mut arrivals, &settled), slots);
        }
        for (bits, arrivals) in settled.iter_mut().zip(arrivals.chunks(64)) {
            let bit = |(i, it): (usize, &Arrivals)| u64::from(it.0[1] != Arrival::NONE) << i;
            *bits = arrivals.iter().enumerate().map(bit).sum();
        }
    }
    arrivals
}

/// A slot that two backends want.
#[derive(Clone, Copy)]
struct Contest {
    slot: u32,
    /// Who they are, by rank: the one that came first, and the other.
    pair: [u16; 2],
    /// When the other came, in terms of when the first did: what the slot costs it, at a price of 1.
    delay: f32,
}

impl Contest {
    /// What the slot costs each at these prices.
    fn priced(&self, price: &[f32]) -> [f32; 2] {
        let [first, other] = self.pair.map(|rank| price[usize::from(rank)]);
        [first, self.delay * other]
    }

    fn owner(&self, price: &[f32]) -> u16 {
        let [first, other] = self.priced(price);
        self.pair[usize::from(other < first)]
    }

    /// What changes if the slot does not stay with `owner`.
    fn offer(&self, owner: u16, price: &[f32]) -> Offer {
        let ([one, other], [cost, other_cost]) = (self.pair, self.priced(price));
        if owner == one {
            Offer { owner, rival: other, loss: other_cost / cost }
        } else {
            Offer { owner, rival: one, loss: cost / other_cost }
        }
    }
}

/// A slot that may change hands.
struct Offer {
    owner: u16,
    rival: u16,
    /// What it costs the rival, in terms of what it costs the owner.
    loss: f32,
}

/// What each backend has, should have, and pays for more; by rank.
struct Shares {
    due: Vec<f32>,
    /// The fewest and the most slots that are near enough.
    bounds: Vec<[u32; 2]>,
    price: Vec<f32>,
    /// Slots that only this backend wants.
    uncontested: Vec<u32>,
    counts: Vec<u32>,
    /// How far its price may move. A second that came later than the first by more than both of
    /// theirs has no chance.
    reach: Vec<f32>,
}

impl Shares {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "rounded alike everywhere"
    )]
    fn new(racers: &[Racer], slots: u32) -> Self {
        let sum: f64 = racers.iter().map(|racer| racer.weight).sum();
        let due = racers.iter().map(|racer| f64::from(slots) * racer.weight / sum);
        // Shares before pricing stray by about 1 / √due (so a light backend's by more than those of
        // the heavy ones around it), and few backends of unequal weights by more than many; a price
        // may move by five times that, and further where shares are a few slots and luck is skewed.
        let n = racers.len() as f32;
        let reach = |due: f64| 1.0 + 3.0 / n + 5.0 / (due as f32).sqrt() + 10.0 / due as f32;
        Self {
            due: due.clone().map(|due| due as f32).collect(),
            bounds: due.clone().map(bounds).collect(),
            price: vec![1.0; racers.len()],
            uncontested: vec![0; racers.len()],
            counts: vec![0; racers.len()],
            reach: due.map(reach).collect(),
        }
    }

    /// Gives each slot to who came first; returns the owners, and the slots where the second came
    /// close.
    fn judge(&mut self, arrivals: &[Arrivals]) -> (Vec<u16>, Vec<Contest>) {
        // Which slots are contested is chance: so that is not a branch.
        let mut contests = vec![Contest { slot: 0, pair: [0; 2], delay: 0.0 }; arrivals.len() + 1];
        let mut count = 0;
        for (slot, Arrivals(both)) in (0..).zip(arrivals) {
            let (pair, [first, second]) = (both.map(Arrival::rank), both.map(Arrival::time));
            let reach = pair.map(|rank| self.reach.get(usize::from(rank)).copied().unwrap_or(0.0));
            // Nobody's time is not a number, and so never near enough.
            let delay = second / first;
            let is_contested = delay < reach[0] * reach[1];
            contests[count] = Contest { slot, pair, delay };
            count += usize::from(is_contested);
            self.uncontested[usize::from(pair[0])] += u32::from(!is_contested);
        }
        contests.truncate(count);
        (arrivals.iter().map(|Arrivals([first, _])| first.rank()).collect(), contests)
    }

    /// Counts what each backend has at these prices.
    fn count(&mut self, contests: &[Contest]) {
        self.counts.copy_from_slice(&self.uncontested);
        for contest in contests {
            self.counts[usize::from(contest.owner(&self.price))] += 1;
        }
    }

    /// Moves each price by how far its share is outside of the tolerance; are all within?
    #[expect(clippy::cast_precision_loss, reason = "a count of slots is at most 2^24")]
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

    /// Moves single slots, least loss first, until all shares are within bounds: the last steps of
    /// the prices would be many and small.
    fn mend(&mut self, table: &mut [u16], contests: &[Contest]) {
        for _ in 0..MENDS_MAX {
            // Losses are not negative, so that their bits order like them.
            let mut offers: Vec<(u32, u32)> = (0..)
                .zip(contests)
                .map(|(i, contest)| (i, contest.offer(table[contest.slot as usize], &self.price)))
                .filter(|(_, offer)| {
                    self.has_too_many(offer.owner) || self.has_too_few(offer.rival)
                })
                .map(|(i, offer)| (offer.loss.to_bits(), i))
                .collect();
            offers.sort_unstable();
            let mut mended = false;
            for (_, i) in offers {
                let contest = &contests[i as usize];
                let owner = &mut table[contest.slot as usize];
                let offer = contest.offer(*owner, &self.price);
                if self.mends(&offer) {
                    self.counts[usize::from(offer.owner)] -= 1;
                    self.counts[usize::from(offer.rival)] += 1;
                    *owner = offer.rival;
                    mended = true;
                }
            }
            if !mended {
                break;
            }
        }
    }

    /// Does the offer bring one of the two nearer to its bounds, and the other not out of them?
    fn mends(&self, &Offer { owner, rival, .. }: &Offer) -> bool {
        let [least, _] = self.bounds[usize::from(owner)];
        let [_, most] = self.bounds[usize::from(rival)];
        self.counts[usize::from(owner)] > least
            && self.counts[usize::from(rival)] < most
            && (self.has_too_many(owner) || self.has_too_few(rival))
    }

    fn has_too_many(&self, rank: u16) -> bool {
        self.counts[usize::from(rank)] > self.bounds[usize::from(rank)][1]
    }

    fn has_too_few(&self, rank: u16) -> bool {
        self.counts[usize::from(rank)] < self.bounds[usize::from(rank)][0]
    }
}

/// The fewest and the most slots that are as good as what is due.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^24 and a bit")]
fn bounds(due: f64) -> [u32; 2] {
    let error = (due * ERROR_MAX).max(ERROR_MAX_SLOTS);
    [(due - error).ceil().max(0.0) as u32, (due + error).floor() as u32]
}

/// Where a backend's visit goes: as good as random, and for that cheap. Linear permutations would
/// be cheaper still, but two of them in step make one backend live in the other's shadow.
fn scatter(seed: u64, visit: u32) -> u64 {
    const WEYL: u64 = 0x9e37_79b9_7f4a_7c15; // 2⁶⁴ / φ, odd
    let x = seed.wrapping_add((u64::from(visit) + 1).wrapping_mul(WEYL));
    let product = u128::from(x) * u128::from((x ^ WEYL).rotate_left(32) | 1);
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    {
        product as u64 ^ (product >> 64) as u64
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

    fn identities(n: u32, seed: u64) -> Vec<u64> {
        (0..n).map(|i| hash(u64::from(i), seed)).collect()
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

    /// The first backend whose share is off by more than 1 %, or by more than a slot and a half.
    fn unfair(table: &[u16], weights: &[u32]) -> Option<String> {
        let sum: u32 = weights.iter().sum();
        (0..).zip(counts(table, weights.len()).into_iter().zip(weights)).find_map(
            |(backend, (count, &weight))| {
                let due = f64::from(SLOTS) * f64::from(weight) / f64::from(sum);
                let error = (f64::from(count) - due).abs();
                (error > (0.01 * due).max(1.5)).then(|| format!("{backend}: {count} of {due}"))
            },
        )
    }

    #[test]
    fn shares_are_within_one_percent() {
        for n in [1, 2, 3, 10, 50, 100, 300, 655] {
            let weights = vec![1; n as usize];
            assert_eq!(unfair(&build(&identities(n, 77), &weights, SLOTS), &weights), None, "{n}");
        }
    }

    /// Few of the slots that light backends come by are contests by the heavy ones' measure.
    #[test]
    fn light_backends_among_heavy_ones_have_their_share() {
        for seed in 0..40 {
            let identities = identities(300, seed);
            let weights: Vec<u32> = (0..300).map(|i| 1 + (hash(i, seed) % 20) as u32).collect();
            assert_eq!(unfair(&build(&identities, &weights, SLOTS), &weights), None, "{seed}");
        }
    }

    /// Each of 100 backends in turn, in four sets; what plain Maglev moves is 1.5 to 1.6 times the
    /// share. The limit on a single one leaves room for its luck.
    #[test]
    fn a_backend_that_leaves_moves_little_else() {
        let mut ratios = Vec::new();
        for seed in 77..81 {
            let identities = identities(100, seed);
            let full = build(&identities, &[1; 100], SLOTS);
            let own = counts(&full, 100);
            ratios.extend((0..100).map(|gone| {
                let mut weights = [1; 100];
                weights[gone] = 0;
                let without = build(&identities, &weights, SLOTS);
                assert_eq!(unfair(&without, &weights), None, "set {seed} without {gone}");
                f64::from(moved(&full, &without)) / f64::from(own[gone])
            }));
        }
        let mean = ratios.iter().sum::<f64>() / 400.0;
        let worst = ratios.iter().copied().fold(0.0, f64::max);
        println!("moved {mean:.3} times the share on average, {worst:.3} at worst");
        assert!(mean <= 1.20, "{mean}");
        assert!(worst <= 1.25, "{worst}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

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
            prop_assert_eq!(unfair(&table, &weights), None);
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
        let table = build(&identities(7, 77), &[1, 2, 3, 4, 0, 6, 7], 1009);
        let digest = table.iter().fold(0, |digest, &owner| hash(digest, u64::from(owner)));
        assert_eq!(
            (&table[..8], digest),
            (&[6, 1, 6, 6, 5, 0, 6, 3][..], 15_332_095_723_096_140_647)
        );
        // One that is mended.
        let table = build(&identities(100, 77), &[1; 100], SLOTS);
        let digest = table.iter().fold(0, |digest, &owner| hash(digest, u64::from(owner)));
        assert_eq!(digest, 17_279_302_906_918_403_037);
    }

    #[test]
    fn odd_sets() {
        assert!(build(&[], &[], SLOTS).is_empty());
        assert!(build(&[1], &[0], SLOTS).is_empty());
        assert_eq!(*build(&[1], &[5], 2), [0, 0]);
        let heavy = counts(&build(&[1, 2], &[65_535, 1], SLOTS), 2);
        assert!(heavy[1] <= 2, "{heavy:?}");
        // As many backends as slots.
        let all = build(&identities(997, 77), &vec![1; 997], 997);
        assert!(counts(&all, 997).into_iter().filter(|&count| count > 0).count() > 600);
    }
}
