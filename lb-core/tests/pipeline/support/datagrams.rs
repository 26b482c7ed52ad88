//! What is known of datagrams in pieces: slow and obvious.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_core::drop_reason::DropReason;
use lb_core::fragments::{DATAGRAMS_MAX, LIFETIME_MS, STRETCHES_MAX};
use lb_core::tuple::Tuple;

use super::model::Verdict;
use super::world::World;

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) id: u32,
    pub(crate) protocol: u8,
}

/// Ports and protocol, as the first fragment tells them.
pub(crate) type First = ([u16; 2], u8);

#[derive(Clone, Debug)]
struct Datagram {
    name: Name,
    since_ms: u64,
    first: Option<First>,
    /// Why nothing more of it passes.
    bad: Option<DropReason>,
    /// Each byte that came.
    passed: BTreeSet<usize>,
}

/// Datagrams by bucket: four in each, of which the oldest makes room.
#[derive(Debug, Default)]
pub(crate) struct Datagrams(BTreeMap<u64, [Option<Datagram>; 4]>);

impl Datagrams {
    /// A fragment with the bytes from `start` to `end`. `first`: what it tells as the first one; nothing,
    /// if its headers are not whole, or it is not the first.
    pub(crate) fn fragment(
        &mut self,
        world: &World,
        name: &Name,
        first: Option<First>,
        (start, end): (usize, usize),
        (now_ms, is_released): (u64, bool),
    ) -> Result<First, Verdict> {
        let datagram = self.find(world, name, now_ms);
        if let Some(why) = datagram.bad {
            return Err(why.into());
        }
        if first.is_none() && start == 0 {
            datagram.bad = Some(DropReason::FragmentTiny);
            return Err(DropReason::FragmentTiny.into());
        }
        let common = (start..end).filter(|byte| datagram.passed.contains(byte)).count();
        // The bytes of what had to wait count since it came, unless the datagram was forgotten.
        if !(is_released && common == end - start) {
            if common > 0 {
                datagram.bad = (common < end - start).then_some(DropReason::FragmentOverlap);
                return Err(DropReason::FragmentOverlap.into());
            }
            let mut after = datagram.passed.clone();
            after.extend(start..end);
            let begins = |byte: &&usize| **byte == 0 || !after.contains(&(**byte - 1));
            if after.iter().filter(begins).count() > STRETCHES_MAX {
                return Err(DropReason::FragmentFull.into());
            }
            datagram.passed = after;
        }
        let told = first.or(datagram.first);
        let told =
            told.ok_or(if is_released { DropReason::FragmentFull.into() } else { Verdict::Hold })?;
        if first.is_some() {
            datagram.first = Some(told);
        }
        Ok(told)
    }

    /// Has the first fragment come, or is there nothing to wait for any more?
    pub(crate) fn is_decided(&mut self, world: &World, name: &Name, now_ms: u64) -> bool {
        let datagram = self.find(world, name, now_ms);
        datagram.first.is_some() || datagram.bad.is_some()
    }

    fn find(&mut self, world: &World, name: &Name, now_ms: u64) -> &mut Datagram {
        // A convention: the hash of the name, as if the identification were the ports.
        let [high, low] =
            [name.id >> 16, name.id & 0xffff].map(|half| u16::try_from(half).unwrap());
        let tuple = Tuple::new(name.src, name.dst, high, low, name.protocol);
        let hash = world.tables.hasher.hash(&tuple, true);
        let bucket = self.0.entry(hash % (DATAGRAMS_MAX as u64 / 4)).or_default();
        for place in &mut *bucket {
            if place
                .as_ref()
                .is_some_and(|it| it.name == *name && now_ms >= it.since_ms + LIFETIME_MS)
            {
                *place = None;
            }
        }
        let known = bucket.iter().position(|it| it.as_ref().is_some_and(|it| it.name == *name));
        let place = known.unwrap_or_else(|| {
            let age = |place: usize| bucket[place].as_ref().map_or(0, |it| it.since_ms + 1);
            (0..4).min_by_key(|place| age(*place)).unwrap()
        });
        if known.is_none() {
            bucket[place] = None;
        }
        bucket[place].get_or_insert_with(|| Datagram {
            name: *name,
            since_ms: now_ms,
            first: None,
            bad: None,
            passed: BTreeSet::new(),
        })
    }
}
