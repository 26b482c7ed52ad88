//! Fragment → the ports of its datagram.

use zerocopy::FromBytes;

use crate::burst::{Burst, Exit, Meta, Rule, WorkerId};
use crate::drop_reason::DropReason;
use crate::flow_hash::reduce;
use crate::fragments::{First, Key, Refused};
use crate::frame::Frame;
use crate::model::Affinity;
use crate::state::State;
use crate::tables::{ByAddress, Tables};
use crate::tuple::Tuple;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6;
use crate::wire::part::Part;
use crate::wire::ports::{self, Ports};
use crate::wire::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// Gives fragments the ports of their datagram, which only the first one has. Reads `meta`; writes
/// `meta.tuple`, `meta.rule`. Costs a glance where there are no fragments.
///
/// Punts fragments for addresses that no service has. Hands over those of other workers; holds
/// those that come before their first one.
///
/// Drops: [`DropReason::FragmentTiny`], [`DropReason::FragmentOverlap`],
/// [`DropReason::FragmentFull`], and what is not a good fragment.
#[inline(always)]
pub fn fragment<F: Frame>(burst: &mut Burst<F>, tables: &Tables, state: &mut State<F>) {
    if burst.has_fragments() {
        fragments(burst, tables, state);
    }
}

#[cold]
fn fragments<F: Frame>(burst: &mut Burst<F>, tables: &Tables, state: &mut State<F>) {
    burst.for_each(burst.live(), |number, frame, meta| {
        if meta.is_fragment { one(number, frame.bytes(), meta, tables, state) } else { Ok(()) }
    });
}

fn one<F>(
    number: usize,
    frame: &[u8],
    meta: &mut Meta,
    tables: &Tables,
    state: &mut State<F>,
) -> Result<(), Exit> {
    let by_address = by_address(&meta.tuple, tables);
    if by_address == ByAddress::None {
        return Err(Exit::Punt);
    }
    let piece = Piece::read(frame, meta)?;
    match by_address {
        ByAddress::Service(place) if needs_no_ports(place, meta, tables) => {
            meta.rule = if piece.start == 0 { Rule::Flow } else { Rule::Fragment };
            return Ok(());
        }
        _ => {}
    }
    let (key, hash) = name(&piece, meta, tables);
    let owner = reduce(hash, state.workers.into());
    if owner != u32::from(state.worker.0) {
        return Err(Exit::HandOver(WorkerId(u8::try_from(owner).unwrap_or(0))));
    }
    let place = state.fragments.find(&key, hash, state.now);
    if let Some(why) = state.fragments.condemned(place) {
        return Err(why.into());
    }
    let first = if piece.start == 0 {
        let Some(first) = piece.first(frame, meta) else {
            state.fragments.condemn(place, DropReason::FragmentTiny, state.now);
            return Err(DropReason::FragmentTiny.into());
        };
        Some(first)
    } else {
        state.fragments.first(place)
    };
    match state.fragments.note(place, piece.start, piece.end) {
        Ok(()) => {}
        Err(Refused::Again) if state.is_releasing => {} // by itself, when it came to wait
        Err(Refused::Again) => return Err(DropReason::FragmentOverlap.into()),
        Err(Refused::Overlap) => {
            state.fragments.condemn(place, DropReason::FragmentOverlap, state.now);
            return Err(DropReason::FragmentOverlap.into());
        }
        Err(Refused::Full) => return Err(DropReason::FragmentFull.into()),
    }
    let Some(first) = first else {
        if state.is_releasing {
            return Err(DropReason::FragmentFull.into()); // what the first told is forgotten already
        }
        state.fragments.name(number, key, hash);
        return Err(Exit::Hold);
    };
    if piece.start == 0 {
        state.fragments.set_first(place, first, state.now);
    } else {
        meta.rule = Rule::Fragment;
    }
    (meta.tuple.ports, meta.tuple.protocol) = (first.ports, first.protocol);
    // Found behind an extension header; `parse` punts the others.
    if matches!(first.protocol, ICMP | ICMPV6) { Err(Exit::Punt) } else { Ok(()) }
}

/// What is known of the service without ports.
fn by_address(tuple: &Tuple, tables: &Tables) -> ByAddress {
    if tuple.is_ipv6 && ipv6::is_extension(tuple.protocol) {
        // What the pieces are of stands behind, in the first one.
        let of = |protocol| by_address(&Tuple { protocol, ..*tuple }, tables);
        let any = [TCP, UDP, SCTP].into_iter().any(|protocol| of(protocol) != ByAddress::None);
        return if any { ByAddress::NeedsPorts } else { ByAddress::None };
    }
    match tables.vips.by_address(tuple) {
        ByAddress::None => match tables.answers.by_address(tuple) {
            ByAddress::None => tables.pool_index.by_address(tuple).of_a_station(),
            found => found,
        },
        found => found,
    }
}

/// Is its backend found without ports?
fn needs_no_ports(service: u32, meta: &Meta, tables: &Tables) -> bool {
    let has_ports = ports::header_bytes(meta.tuple.protocol).is_some();
    let service = tables.service(service);
    !has_ports || service.is_some_and(|service| service.affinity == Affinity::Client)
}

/// The datagram that a fragment belongs to, and the hash of that.
fn name(piece: &Piece, meta: &Meta, tables: &Tables) -> (Key, u64) {
    let Tuple { src, dst, is_ipv6, .. } = meta.tuple;
    let key = Key { src, dst, id: piece.id, protocol: piece.protocol, is_ipv6 };
    let tuple =
        Tuple { src, dst, ports: piece.id.to_be_bytes(), protocol: piece.protocol, is_ipv6 };
    (key, tables.hasher.hash(&tuple, true))
}

/// What a fragment says of itself.
struct Piece {
    id: u32,
    /// The protocol of what is in pieces.
    protocol: u8,
    /// The bytes of the datagram that it has.
    start: u32,
    end: u32,
}

impl Piece {
    fn read(frame: &[u8], meta: &Meta) -> Result<Self, DropReason> {
        let l3 = usize::from(meta.l3_offset);
        let packet_end = l3 + usize::from(meta.packet_len);
        let packet = frame.get(l3..packet_end).ok_or(DropReason::Truncated)?;
        let (part, protocol, header_bytes) = if meta.tuple.is_ipv6 {
            let (header, at) = ipv6::fragment_header(packet).ok_or(DropReason::Truncated)?;
            (header.part(), header.next_header, at + ipv6::FRAGMENT_BYTES)
        } else {
            let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            (ip.part(), ip.protocol, ip.header_len())
        };
        let Part { id, offset, has_more } = part;
        let len = packet.len().saturating_sub(header_bytes);
        // RFC 791 §3.2, RFC 8200 §4.5: all but the last are of whole eights.
        if len == 0 || (has_more && !len.is_multiple_of(8)) {
            return Err(DropReason::Truncated);
        }
        let start = u32::from(offset) * 8;
        let end = start + u32::try_from(len).unwrap_or(u32::MAX);
        if end > u32::from(u16::MAX) {
            return Err(DropReason::TooBig);
        }
        Ok(Self { id, protocol, start, end })
    }

    /// What the first fragment tells; `None`, if its headers are not whole.
    fn first(&self, frame: &[u8], meta: &mut Meta) -> Option<First> {
        let packet_end = usize::from(meta.l3_offset) + usize::from(meta.packet_len);
        let mut protocol = self.protocol;
        if meta.tuple.is_ipv6 {
            let packet = frame.get(meta.l3_offset.into()..packet_end)?;
            let upper = ipv6::upper_layer_of_first(packet).ok()?;
            protocol = upper.protocol;
            meta.l4_offset = u16::from(meta.l3_offset) + u16::try_from(upper.offset).ok()?;
        }
        let Some(header_bytes) = ports::header_bytes(protocol) else {
            return Some(First { ports: [0; 4], protocol });
        };
        let segment = frame.get(meta.l4_offset.into()..packet_end)?;
        let ports = Ports::parse(header_bytes, segment).ok()?;
        let ([a, b], [c, d]) = (ports.src.to_bytes(), ports.dst.to_bytes());
        Some(First { ports: [a, b, c, d], protocol })
    }
}
