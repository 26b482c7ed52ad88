//! The addresses and ports that clients stand behind (`fullnat`), and whose each is.
//!
//! A connection's place in the table *is* its address and port. The flow hash names two buckets of
//! eight ports each, the connection takes a free one of them, and what a backend sends to that port
//! leads to the same place without a search.
//!
//! * **Shared**: every worker looks up, opens and refreshes connections in the same table, so it does
//!   not matter which queue a packet comes by, in either direction. An entry is a word of state,
//!   which is changed by compare-and-swap, and a cache line of content, which is written only while
//!   the state says so, and believed only if the state is the same after reading (a seqlock: Boehm,
//!   *Can Seqlocks Get Along with Programming Language Memory Models?*, MSPC '12). Loom checks that, and
//!   what workers do to one entry at a time, with buckets that are small (`RUSTFLAGS="--cfg loom"`).
//! * **Bounded**: 64,512 connections an address, of 72 bytes each. Connections of which nobody knows
//!   whether there is a client (half-open) take half of a bucket at most, and compete only with each
//!   other: a flood of them pushes nobody out who talks.
//!
//! The memory may be a file's, and outlives the process: see [`Pool::over`].

use std::net::{IpAddr, Ipv6Addr};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

use ipnet::IpNet;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use zerocopy::FromZeros;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::flow_hash::two_choices;
use crate::prefetch::prefetch_far;
use crate::rate::Tick;
use crate::tables::Station;
use crate::tuple::{Tuple, address_bytes, is_ipv6};

mod state;

pub use state::{Phase, State};

/// Addresses of a pool, at most.
pub const ADDRESSES_MAX: u32 = 1 << HOST_BITS_MAX;
const HOST_BITS_MAX: u8 = 6;
/// The ports below are not the pool's: they belong to well-known services (RFC 6056 §3.2).
pub const FIRST_PORT: u16 = if cfg!(loom) { 65_532 } else { 1024 };
/// Ports of one address.
pub const PORTS: u32 = 65_536 - FIRST_PORT as u32;
/// Ports of one bucket.
const WAYS: usize = WAYS_U32 as usize;
const WAYS_U32: u32 = if cfg!(loom) { 2 } else { 8 };
const BUCKETS: u32 = PORTS / WAYS_U32;
/// Half-open connections in a bucket, at most.
const OPENING_MAX: usize = WAYS / 2;

/// The clients' connections, and the balancer's own addresses and ports that they leave by.
#[derive(Debug)]
pub struct Pool {
    net: IpNet,
    first: u128,
    /// How many there are: of the first address, then of the second, ...
    buckets: u32,
    memory: Memory,
    /// Buckets beyond the memory, by number: all that a trial has.
    copies: Box<[(usize, Box<[CacheLine]>)]>,
}

/// Lines; of each bucket its states, and then what each of them is about.
#[derive(Debug)]
enum Memory {
    Own(Box<[CacheLine]>),
    Lent(&'static [Line]),
}

type Line = [AtomicU64; LINE_WORDS];
const LINE_WORDS: usize = 8;
const BUCKET_LINES: usize = 1 + WAYS;

/// A connection, as it lies in the table.
type Content = [u64; LINE_WORDS];

/// The bits that say whose a connection is.
const FLOW: Content = Connection {
    client: [0xff; 16],
    vip: [0xff; 16],
    client_port: [0xff; 2],
    vip_port: [0xff; 2],
    protocol: 0xff,
    ..NOTHING
}
.words();

/// Those that say which backend's end it has.
const END: Content = Connection { backend: [0xff; 16], backend_port: [0xff; 2], ..NOTHING }.words();

/// As [`Connection::default`].
const NOTHING: Connection = Connection {
    client: [0; 16],
    vip: [0; 16],
    backend: [0; 16],
    client_port: [0; 2],
    vip_port: [0; 2],
    backend_port: [0; 2],
    idle_max: 0,
    protocol: 0,
    unused: 0,
    place: 0,
    isn: 0,
};

#[derive(Debug, Default)]
#[cfg_attr(not(loom), derive(FromZeros))]
#[repr(align(64))]
struct CacheLine(Line);

const _: () = assert!(WAYS <= LINE_WORDS && PORTS.is_multiple_of(WAYS_U32));

/// Who talks to whom. Addresses are IPv4-mapped where they are IPv4's; ports as on the wire. It lies in the table as it
/// is here, so that it is read without a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Connection {
    /// The client's address.
    pub client: [u8; 16],
    /// The service's address that it uses.
    pub vip: [u8; 16],
    /// The server that it talks to.
    pub backend: [u8; 16],
    /// The client's port.
    pub client_port: [u8; 2],
    /// The service's.
    pub vip_port: [u8; 2],
    /// The server's.
    pub backend_port: [u8; 2],
    /// How long it may be silent, see [`units`].
    pub idle_max: u16,
    /// IANA's number: of TCP, UDP or SCTP.
    pub protocol: u8,
    /// Nothing.
    pub unused: u8,
    /// Place of the backend in the service's list, when it was last looked for.
    pub place: u16,
    /// TCP: the sequence number of the client's SYN.
    pub isn: u32,
}

/// A connection in the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Where.
    pub place: u32,
    /// How it was when it was read.
    pub state: State,
    /// As it lay in the table then: most packets need a few words of it.
    content: Content,
}

/// What [`Pool::glance`] has seen: where the connection seems to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Glance<'a>(Option<Entry<'a>>);

/// A place, and what is there.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    place: u32,
    state: &'a AtomicU64,
    content: &'a Line,
}

/// Time in units of 4.096 seconds, which a state counts in: they come around after three days.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "it comes around")]
pub fn units(tick: Tick) -> u16 {
    (tick.0 >> 12) as u16
}

/// How long a connection may be silent, at most: a day.
pub const IDLE_MAX: u16 = 21_094;

impl Connection {
    /// As much of a connection as its flow says.
    #[inline(always)]
    fn of(flow: &Tuple) -> Self {
        let [a, b, c, d] = flow.ports;
        Self {
            client: flow.src,
            vip: flow.dst,
            client_port: [a, b],
            vip_port: [c, d],
            protocol: flow.protocol,
            ..Self::default()
        }
    }

    /// Are client and service IPv6? The backend may be of the other family.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        is_ipv6(&self.vip)
    }

    /// From the client to the service.
    #[must_use]
    pub fn flow(&self) -> Tuple {
        let ([a, b], [c, d]) = (self.client_port, self.vip_port);
        Tuple {
            src: self.client,
            dst: self.vip,
            ports: [a, b, c, d],
            protocol: self.protocol,
            is_ipv6: self.is_ipv6(),
        }
    }

    #[inline(always)]
    const fn words(self) -> Content {
        zerocopy::transmute!(self)
    }

    #[inline(always)]
    fn from_words(words: Content) -> Self {
        zerocopy::transmute!(words)
    }
}

impl Found {
    /// It, when it has come as far as that.
    #[must_use]
    pub fn with_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Is the connection to this address and port of a backend?
    #[inline(always)]
    #[must_use]
    pub fn is_to(&self, backend: [u8; 16], backend_port: [u8; 2]) -> bool {
        let end = Connection { backend, backend_port, ..Connection::default() };
        is_as(&self.content, &end.words(), &END)
    }

    /// Place of the backend in the service's list, when it was last looked for.
    #[inline(always)]
    #[must_use]
    pub fn backend_place(&self) -> u16 {
        Connection::from_words(self.content).place
    }

    /// Who talks to whom.
    #[inline(always)]
    #[must_use]
    pub fn connection(&self) -> &Connection {
        zerocopy::transmute_ref!(&self.content)
    }
}

impl Pool {
    /// Nobody's yet. Of the prefix, [`ADDRESSES_MAX`] addresses are used at most.
    #[must_use]
    pub fn new(net: IpNet) -> Self {
        Self::of(net, Memory::Own(zeroed(Self::words(net) / LINE_WORDS)))
    }

    /// One that is this one where a flow with this hash may be, and around `place`, and nowhere else: for
    /// who tries what would become of a packet.
    #[must_use]
    pub(crate) fn trial(&self, hash: u64, place: Option<u32>) -> Self {
        let around = place.map(|place| place / WAYS_U32);
        let buckets = self.buckets_of(hash).into_iter().chain(around);
        let copies = buckets.map(|bucket| (bucket as usize, self.copy(bucket))).collect();
        Self { copies, ..Self::of(self.net, Memory::Own(Box::default())) }
    }

    fn copy(&self, bucket: u32) -> Box<[CacheLine]> {
        let copy = zeroed::<CacheLine>(BUCKET_LINES);
        for (number, CacheLine(line)) in (bucket as usize * BUCKET_LINES..).zip(&copy) {
            for (word, new) in self.line(number).into_iter().flatten().zip(line) {
                new.store(word.load(Ordering::Acquire), Ordering::Relaxed);
            }
        }
        copy
    }

    /// Over the words of a file, which has been a pool of this prefix before, or is all zero. `None`:
    /// there are not [`Pool::words`].
    #[must_use]
    pub fn over(net: IpNet, words: &'static [AtomicU64]) -> Option<Self> {
        let (lines, _) = words.get(..Self::words(net))?.as_chunks();
        let pool = Self::of(net, Memory::Lent(lines));
        // What a process was writing when it ended is nobody's.
        let states = (0..pool.buckets).filter_map(|bucket| pool.states(bucket)).flatten();
        for state in states {
            let before = State(state.load(Ordering::Relaxed));
            if before.phase() == Phase::Busy {
                state.store(before.freed().0, Ordering::Relaxed);
            }
        }
        Some(pool)
    }

    /// Words that a pool of this prefix takes.
    #[must_use]
    pub fn words(net: IpNet) -> usize {
        buckets(net) as usize * BUCKET_LINES * LINE_WORDS
    }

    fn of(net: IpNet, memory: Memory) -> Self {
        let first = u128::from_be_bytes(address_bytes(net.network()));
        Self { net, first, buckets: buckets(net), memory, copies: Box::default() }
    }

    #[inline]
    fn line(&self, number: usize) -> Option<&Line> {
        let line = match &self.memory {
            Memory::Own(lines) => lines.get(number).map(|line| &line.0),
            Memory::Lent(lines) => lines.get(number),
        };
        line.or_else(|| self.copied(number))
    }

    /// Is asked of a trial only, but for what is beyond the pool.
    #[cold]
    #[inline(never)]
    fn copied(&self, number: usize) -> Option<&Line> {
        let (bucket, line) = (number / BUCKET_LINES, number % BUCKET_LINES);
        let (_, copy) = self.copies.iter().find(|(copied, _)| *copied == bucket)?;
        copy.get(line).map(|line| &line.0)
    }

    #[inline]
    fn states(&self, bucket: u32) -> Option<&[AtomicU64; WAYS]> {
        self.line(bucket as usize * BUCKET_LINES)?.first_chunk()
    }

    #[inline]
    fn content(&self, bucket: u32, way: usize) -> Option<&Line> {
        self.line(bucket as usize * BUCKET_LINES + 1 + way)
    }

    /// The addresses.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Are its addresses IPv6?
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.net.addr().is_ipv6()
    }

    /// Asks for the memory that [`Pool::glance`] looks at first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        if let Some(states) = self.states(self.buckets_of(hash)[0]) {
            prefetch_far(states);
        }
    }

    /// Where the connection of a flow seems to be, by a part of its hash. Asks for the memory that
    /// [`Glance::find`] needs.
    #[inline]
    #[must_use]
    pub fn glance(&self, hash: u64) -> Glance<'_> {
        let [first, _] = self.buckets_of(hash);
        let tag = tag(hash);
        let is_it = |state: &AtomicU64| State(state.load(Ordering::Relaxed)).tag() == tag;
        if let Some(states) = self.states(first)
            && let Some(way) = states.iter().position(is_it)
            && let Some(content) = self.content(first, way)
        {
            prefetch_far(content);
            #[expect(clippy::cast_possible_truncation, reason = "below WAYS")]
            let place = first * WAYS_U32 + way as u32;
            return Glance(Some(Entry { place, state: &states[way], content }));
        }
        let [_, second] = self.buckets_of(hash);
        if let Some(states) = self.states(second) {
            prefetch_far(states);
        }
        Glance(None)
    }

    /// Asks for the memory of the connection that has this address and port, if there is one.
    #[inline]
    pub fn prefetch_at(&self, address: &[u8; 16], port: [u8; 2]) {
        if let Some(place) = self.place_of(address, port) {
            self.prefetch_place(place);
        }
    }

    #[inline]
    fn prefetch_place(&self, place: u32) {
        if let Some(entry) = self.entry(place) {
            prefetch_far(entry.state);
            prefetch_far(entry.content);
        }
    }

    /// The connection of a flow from a client to a service, whose hash with ports is `hash`.
    #[inline(never)]
    #[must_use]
    pub fn find(&self, flow: &Tuple, hash: u64) -> Option<Found> {
        let tag = tag(hash);
        for bucket in self.buckets_of(hash) {
            for (way, state) in (0..).zip(self.states(bucket)?) {
                let state = State(state.load(Ordering::Acquire));
                if state.tag() == tag
                    && let Some(entry) = self.entry(bucket * WAYS_U32 + way)
                    && let Some((state, content)) = entry.read()
                    && is_of(&content, flow)
                {
                    return Some(Found { place: entry.place, state, content });
                }
            }
        }
        None
    }

    /// The connection that has this address and port, into `found`. `false`: there is none.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, address: &[u8; 16], port: [u8; 2], found: &mut Found) -> bool {
        if let Some(place) = self.place_of(address, port)
            && let Some((state, content)) = self.entry(place).and_then(Entry::read)
        {
            *found = Found { place, state, content };
            return true;
        }
        false
    }

    #[inline]
    fn place_of(&self, address: &[u8; 16], port: [u8; 2]) -> Option<u32> {
        let nth = u128::from_be_bytes(*address).checked_sub(self.first)?;
        let nth = u32::try_from(nth).ok().filter(|nth| *nth < ADDRESSES_MAX)?;
        let port = u16::from_be_bytes(port).checked_sub(FIRST_PORT)?;
        Some(nth * PORTS + u32::from(port))
    }

    /// The connection at `place`.
    #[inline]
    #[must_use]
    pub fn get(&self, place: u32) -> Option<Found> {
        let (state, content) = self.entry(place)?.read()?;
        Some(Found { place, state, content })
    }

    /// The state that a connection has by now; `None`, if it has been written anew since.
    #[inline]
    #[must_use]
    pub fn state_of(&self, found: &Found) -> Option<State> {
        let states = self.states(found.place / WAYS_U32)?;
        let state = State(states[found.place as usize % WAYS].load(Ordering::Acquire));
        found.state.is_same_writing(state).then_some(state)
    }

    /// The address and port that a place stands for.
    #[must_use]
    pub fn station(&self, place: u32) -> Station {
        let port = FIRST_PORT + (place % PORTS) as u16;
        let address = self.first + u128::from(place / PORTS);
        Station { address: address.to_be_bytes(), port: Some(port.to_be_bytes()) }
    }

    /// Gives a flow with this hash an address and port. `None`: all that could be its are taken by
    /// connections in use.
    #[must_use]
    pub fn open(&self, connection: &Connection, hash: u64, now: Tick) -> Option<u32> {
        let now = units(now);
        // Another worker may be faster: then there is one candidate less.
        for _ in 0..2 * WAYS {
            let Candidate { place, before, .. } = self.candidate(hash, now)?;
            if self.write(place, before, connection, State::opening(before, tag(hash), now)) {
                return Some(place);
            }
        }
        None
    }

    /// Changes the content of an entry that was `before`. `false`, and nothing has happened, if it is
    /// not as it was any more.
    #[must_use]
    pub fn rewrite(&self, found: &Found, connection: &Connection, to: State) -> bool {
        self.write(found.place, found.state, connection, to)
    }

    /// Changes the state of an entry, if it is as it was.
    #[inline]
    pub fn update(&self, found: &Found, to: State) {
        if to != found.state
            && let Some(Entry { state, .. }) = self.entry(found.place)
        {
            // Somebody else was faster: as good.
            let _ =
                state.compare_exchange(found.state.0, to.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// A place that nobody needs, or that of a half-open connection.
    fn candidate(&self, hash: u64, now: u16) -> Option<Candidate> {
        let mut half_open = None;
        for bucket in self.buckets_of(hash) {
            let (mut free, mut opening) = (None, 0);
            for (way, state) in (0..).zip(self.states(bucket)?) {
                let place = bucket * WAYS_U32 + way;
                let before = State(state.load(Ordering::Acquire));
                let age = before.age(now);
                let idle_max = || {
                    self.entry(place)
                        .map_or(0, |it| Connection::from_words(read(it.content)).idle_max)
                };
                let this = Candidate { place, before, age };
                match before.phase() {
                    Phase::Busy => {}
                    Phase::Free => keep_oldest(&mut free, Candidate { age: u16::MAX, ..this }),
                    // Of those that are over, what has been for the longest: its server is the most
                    // likely to have forgotten it as well.
                    _ if age > before.idle_max(idle_max) => keep_oldest(&mut free, this),
                    Phase::Opening | Phase::Answered => {
                        opening += 1;
                        keep_oldest(&mut half_open, this);
                    }
                    Phase::Established | Phase::Closed => {}
                }
            }
            if free.is_some() && opening < OPENING_MAX {
                return free;
            }
        }
        half_open
    }

    fn write(&self, place: u32, before: State, connection: &Connection, to: State) -> bool {
        let Some(Entry { state, content, .. }) = self.entry(place) else { return false };
        let busy = before.busy();
        let taken =
            state.compare_exchange(before.0, busy.0, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if taken {
            // Who reads any of the new words will see that the state has changed.
            fence(Ordering::Release);
            for (word, value) in content.iter().zip(connection.words()) {
                word.store(value, Ordering::Relaxed);
            }
            state.store(to.written_after(busy).0, Ordering::Release);
        }
        taken
    }

    #[inline(always)]
    fn entry(&self, place: u32) -> Option<Entry<'_>> {
        let (bucket, way) = (place / WAYS_U32, place as usize % WAYS);
        let (state, content) = (&self.states(bucket)?[way], self.content(bucket, way)?);
        Some(Entry { place, state, content })
    }

    /// The two buckets of a hash.
    fn buckets_of(&self, hash: u64) -> [u32; 2] {
        two_choices(hash, self.buckets)
    }
}

impl Glance<'_> {
    /// The connection that is there, if it is the flow's and `is_known` says so of its state.
    #[inline(always)]
    #[must_use]
    pub fn find(self, flow: &Tuple, is_known: impl Fn(State) -> bool) -> Option<Found> {
        let entry = self.0?;
        let (state, content) = entry.read()?;
        let found = Found { place: entry.place, state, content };
        (is_known(state) && is_of(&content, flow)).then_some(found)
    }
}

impl Entry<'_> {
    /// The connection that is there.
    #[inline(always)]
    fn read(self) -> Option<(State, Content)> {
        let state = State(self.state.load(Ordering::Acquire));
        let content = read(self.content);
        // What was read is believed only if nobody has written in the meantime.
        fence(Ordering::Acquire);
        let after = State(self.state.load(Ordering::Relaxed));
        (state.is_connection() && state.is_same_writing(after)).then_some((state, content))
    }
}

/// Is it the flow's?
#[inline(always)]
fn is_of(content: &Content, flow: &Tuple) -> bool {
    is_as(content, &Connection::of(flow).words(), &FLOW)
}

/// Are two connections the same in the bits of a mask?
#[inline(always)]
fn is_as(one: &Content, other: &Content, mask: &Content) -> bool {
    let differ = |at: usize| (one[at] ^ other[at]) & mask[at];
    (differ(0) | differ(1) == 0)
        && (differ(2) | differ(3) == 0)
        && (differ(4) | differ(5) == 0)
        && (differ(6) | differ(7) == 0)
}

/// To be believed only if its state is the same before and after.
fn read(content: &Line) -> Content {
    content.each_ref().map(|word| word.load(Ordering::Relaxed))
}

fn buckets(net: IpNet) -> u32 {
    addresses(net) * BUCKETS
}

/// A place that a new connection could have.
struct Candidate {
    place: u32,
    before: State,
    /// Units since it was last in use.
    age: u16,
}

fn keep_oldest(oldest: &mut Option<Candidate>, other: Candidate) {
    if oldest.as_ref().is_none_or(|oldest| other.age > oldest.age) {
        *oldest = Some(other);
    }
}

/// All zero; memory is taken when it is used.
#[cfg(not(loom))]
pub(crate) fn zeroed<T: FromZeros>(len: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(len).unwrap_or_default()
}

#[cfg(loom)]
pub(crate) fn zeroed<T: Default>(len: usize) -> Box<[T]> {
    (0..len).map(|_| T::default()).collect()
}

/// How many addresses of a prefix a pool uses.
#[must_use]
pub fn addresses(net: IpNet) -> u32 {
    let host_bits = net.max_prefix_len() - net.prefix_len();
    1_u32.checked_shl(host_bits.into()).map_or(ADDRESSES_MAX, |n| n.min(ADDRESSES_MAX))
}

/// The addresses of a prefix that a pool uses.
pub fn all_addresses(net: IpNet) -> impl Iterator<Item = IpAddr> {
    let first = u128::from_be_bytes(address_bytes(net.network()));
    (0..addresses(net)).map(move |nth| {
        let address = Ipv6Addr::from(first + u128::from(nth));
        address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
    })
}

/// Has a prefix more addresses than a pool uses?
#[must_use]
pub fn is_larger_than_used(net: IpNet) -> bool {
    net.max_prefix_len() - net.prefix_len() > HOST_BITS_MAX
}

/// The part of a hash that is kept beside the state.
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
