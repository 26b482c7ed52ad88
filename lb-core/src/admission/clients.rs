//! Clients that have answered: a Bloom filter in two generations.
//!
//! * **A generation** ends after a minute, or when it is full, but not before those that it has let in
//!   can have sent another SYN or two; it counts as long again, until the next one ends. So a client is
//!   let in for one to two minutes; when very many come, for at least four seconds.
//! * **Bounded**: 8 MiB, and [`CLIENTS_MAX`] clients a generation: a million, because also a host that
//!   has sent no SYN resets what it is sent in answer to one in its name (RFC 9293 §3.10.7.1), and of
//!   random addresses some have such a host. Of addresses that never
//!   answered, at most 1 in 5,000 is taken for one that did: where a generation is full, a client's
//!   block (a cache line: Putze, Sanders, Singler, *Cache-, Hash- and Space-Efficient Bloom Filters*,
//!   2009) has 16 others on average, and of each of its seven words 22 % of the bits are set.
//! * **Shared**, without any order between workers: who reads while another writes may miss a client,
//!   which is then challenged again, or take an older generation's client for a newer one's.
//! * **Never swept**: a block says which generation wrote it last, and the next one that writes clears
//!   it first.
//!
//! A client is an IPv4 address, or an IPv6 /64: who has one of its addresses has all of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use siphasher::sip::SipHasher13;
use zerocopy::FromZeros;

use super::derive;
use crate::model::HashKey;
use crate::rate::Tick;
use crate::tables::ServiceId;
use crate::tuple::is_ipv6;

/// Clients that one generation lets in, at most. (A fuzzer makes a memory for every input.)
pub const CLIENTS_MAX: u32 = if cfg!(fuzzing) { 1 << 10 } else { 1 << 20 };
/// How long a generation grows, at most.
pub const GENERATION_MS: u64 = 60_000;
/// The same of one that is full: a client's second SYN follows after one second, its third after
/// three (RFC 6298 §2).
pub const GENERATION_MS_MIN: u64 = 4_000;

/// Blocks of a generation.
const BLOCKS: usize = CLIENTS_MAX as usize / 16;
/// Words of a block that hold a client's bits, one each.
const WORDS: usize = 7;
const NUMBER_BITS: u32 = 24;

/// Who may open connections to which service.
pub struct Clients {
    hasher: SipHasher13,
    /// See [`Generation`].
    generation: AtomicU64,
    /// Clients of this generation.
    count: AtomicU32,
    /// Of even generations, and of odd ones.
    blocks: [Box<[Block]>; 2],
}

#[derive(Debug, FromZeros)]
#[repr(C, align(64))]
struct Block {
    /// The generation that wrote here last.
    number: AtomicU64,
    bits: [AtomicU64; WORDS],
}

const _: () = assert!(size_of::<Block>() == 64);

/// No room to remember another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Its number, which comes around after two years at the least, and the tick that it began at.
#[derive(Clone, Copy)]
struct Generation {
    number: u64,
    began: u64,
}

impl Generation {
    fn of(word: u64) -> Self {
        Self { number: word & mask(NUMBER_BITS), began: word >> NUMBER_BITS }
    }

    fn word(self) -> u64 {
        self.began << NUMBER_BITS | self.number & mask(NUMBER_BITS)
    }
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

impl Clients {
    /// Nobody yet, with a key that follows from the site's.
    #[must_use]
    pub fn new(site: HashKey) -> Self {
        // Memory is taken when it is used.
        let blocks = || <[Block]>::new_box_zeroed_with_elems(BLOCKS).unwrap_or_default();
        Self {
            hasher: SipHasher13::new_with_key(&derive(site, b"weir: clients that have answered")),
            generation: AtomicU64::new(Generation { number: 1, began: 0 }.word()),
            count: AtomicU32::new(0),
            blocks: [blocks(), blocks()],
        }
    }

    /// Has the client, by its address, been let in to the service?
    #[must_use]
    pub fn has(&self, service: ServiceId, client: &[u8; 16], now: Tick) -> bool {
        let number = self.number(now);
        let hash = self.hash(service, client);
        let is_of = |number: u64| {
            self.block(number, hash).is_some_and(|block| {
                block.number.load(Ordering::Relaxed) == number && block.has(hash)
            })
        };
        is_of(number) || is_of(number.wrapping_sub(1) & mask(NUMBER_BITS))
    }

    /// Lets a client in to the service; was it not already?
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(&self, service: ServiceId, client: &[u8; 16], now: Tick) -> Result<bool, Full> {
        let number = self.number(now);
        let hash = self.hash(service, client);
        let block = self.block(number, hash).ok_or(Full)?;
        let last = block.number.load(Ordering::Relaxed);
        if last == number && block.has(hash) {
            return Ok(false);
        }
        if self.count.load(Ordering::Relaxed) >= CLIENTS_MAX {
            return Err(Full);
        }
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        if last != number && block.number.compare_exchange(last, number, success, failure).is_ok() {
            block.bits.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        for (word, bit) in block.bits.iter().zip(bits(hash)) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// The number of the generation that grows now; the first to see that one is over begins the next.
    fn number(&self, now: Tick) -> u64 {
        let word = self.generation.load(Ordering::Relaxed);
        let Generation { number, began } = Generation::of(word);
        let age_ms = now.0.saturating_sub(began);
        let is_full = || self.count.load(Ordering::Relaxed) >= CLIENTS_MAX;
        if age_ms < GENERATION_MS && (age_ms < GENERATION_MS_MIN || !is_full()) {
            return number;
        }
        // After a long silence the last one is over as well.
        let steps = if age_ms < 2 * GENERATION_MS { 1 } else { 2 };
        let next = Generation { number: number + steps, began: now.0 }.word();
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.generation.compare_exchange(word, next, success, failure) {
            Ok(_) => {
                self.count.store(0, Ordering::Relaxed);
                Generation::of(next).number
            }
            Err(others) => Generation::of(others).number,
        }
    }

    fn hash(&self, ServiceId(service): ServiceId, client: &[u8; 16]) -> u64 {
        let mut bytes = [0; 20];
        let len = if is_ipv6(client) { 8 } else { 16 };
        bytes[..len].copy_from_slice(&client[..len]);
        bytes[16..].copy_from_slice(&service.to_le_bytes());
        self.hasher.hash(&bytes)
    }

    #[expect(clippy::cast_possible_truncation, reason = "places in small arrays")]
    fn block(&self, number: u64, hash: u64) -> Option<&Block> {
        self.blocks[number as usize % 2].get((hash >> 48) as usize % BLOCKS)
    }
}

impl Block {
    fn has(&self, hash: u64) -> bool {
        self.bits.iter().zip(bits(hash)).all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }
}

/// A bit of each word of a block; six bits of the hash say which.
fn bits(hash: u64) -> impl Iterator<Item = u64> {
    (0..WORDS).map(move |word| 1 << (hash >> (6 * word) & mask(6)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{address_bytes, mapped};

    const WEB: ServiceId = ServiceId(3);

    fn clients() -> Clients {
        Clients::new(HashKey([7; 16]))
    }

    fn client(number: u32) -> [u8; 16] {
        mapped(number.to_be_bytes())
    }

    #[test]
    fn a_client_is_let_in_to_one_service() {
        let clients = clients();
        assert!(!clients.has(WEB, &client(7), Tick(5)));
        assert_eq!(clients.add(WEB, &client(7), Tick(5)), Ok(true));
        assert_eq!(clients.add(WEB, &client(7), Tick(5)), Ok(false));
        assert!(clients.has(WEB, &client(7), Tick(5)));
        assert!(!clients.has(WEB, &client(8), Tick(5)));
        assert!(!clients.has(ServiceId(4), &client(7), Tick(5)));
        let other_key = Clients::new(HashKey([8; 16]));
        assert_ne!(other_key.hash(WEB, &client(7)), clients.hash(WEB, &client(7)));
    }

    #[test]
    fn all_of_a_64_is_one_client() {
        let clients = clients();
        let at = |address: &str| address_bytes(address.parse().unwrap());
        clients.add(WEB, &at("2001:db8::7"), Tick(0)).unwrap();
        assert!(clients.has(WEB, &at("2001:db8::ffff:1"), Tick(0)));
        assert!(!clients.has(WEB, &at("2001:db8:0:1::7"), Tick(0)));
    }

    #[test]
    fn a_client_stays_for_the_rest_of_a_generation_and_for_the_next() {
        // Let in at, seen at: and is it still?
        for (at, seen, expect) in [
            (0, 59_999, true),
            (0, 60_000, true),
            (0, 119_999, true),
            (0, 120_000, false),
            (59_000, 61_000, true),
            (59_000, 119_999, true),
            (59_000, 120_000, false),
            (0, 1_000_000_000, false),
        ] {
            let clients = clients();
            clients.add(WEB, &client(7), Tick(at)).unwrap();
            // In between somebody looks every second, or nobody does.
            assert_eq!(clients.has(WEB, &client(7), Tick(seen)), expect, "{at} {seen}, at once");
            let clients = self::clients();
            clients.add(WEB, &client(7), Tick(at)).unwrap();
            for second in at / 1000 + 1..=(seen / 1000).min(200) {
                let _ = clients.has(WEB, &client(8), Tick(second * 1000));
            }
            assert_eq!(clients.has(WEB, &client(7), Tick(seen)), expect, "{at} {seen}");
        }
    }

    #[test]
    fn a_block_that_is_used_again_has_forgotten() {
        let clients = clients();
        for minute in 0..5_u32 {
            let now = Tick(u64::from(minute) * GENERATION_MS);
            for number in 0..1000 {
                assert_eq!(clients.add(WEB, &client(minute << 16 | number), now), Ok(true));
            }
            let in_force = |minute: u32| {
                (0..1000).filter(|n| clients.has(WEB, &client(minute << 16 | n), now)).count()
            };
            for before in 0..=minute {
                let expect = if minute - before < 2 { 1000 } else { 0 };
                assert_eq!(in_force(before), expect, "{before} in {minute}");
            }
        }
    }

    #[test]
    fn a_full_generation_ends_early_but_not_too_early() {
        let clients = clients();
        let mut added = 0;
        let mut number = 0;
        while added < CLIENTS_MAX {
            added += u32::from(clients.add(WEB, &client(number), Tick(0)).unwrap());
            number += 1;
        }
        assert!(number - added < 20, "strangers: {}", number - added);
        let next = client(1 << 30);
        assert_eq!(clients.add(WEB, &next, Tick(GENERATION_MS_MIN - 1)), Err(Full));
        assert_eq!(clients.add(WEB, &client(0), Tick(GENERATION_MS_MIN - 1)), Ok(false));
        assert_eq!(clients.add(WEB, &next, Tick(GENERATION_MS_MIN)), Ok(true));
        assert!(clients.has(WEB, &client(0), Tick(GENERATION_MS_MIN)));
        assert_eq!(clients.count.load(Ordering::Relaxed), 1);
    }

    /// What the module's documentation says of strangers.
    #[test]
    fn few_strangers_are_let_in_when_all_is_full() {
        let clients = clients();
        for (first, now) in [(0, 0), (1 << 22, GENERATION_MS_MIN)] {
            let mut number = first;
            while clients.add(WEB, &client(number), Tick(now)).is_ok() {
                number += 1;
            }
        }
        let strangers = (1 << 24)..(1 << 24) + 1_000_000;
        let let_in =
            strangers.filter(|n| clients.has(WEB, &client(*n), Tick(GENERATION_MS_MIN))).count();
        println!("{let_in} in a million");
        assert!(let_in < 200, "{let_in} in a million");
    }
}
