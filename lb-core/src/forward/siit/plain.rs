//! The packets that almost all are, taken in at one look and translated in one go: no tag, no options or
//! extension headers, no fragment and no error; TCP, or UDP with a checksum; and nothing that keeps them
//! here. It makes of them what [`super::forward_any`] would, of the same pieces; but here all lengths and
//! places are known when it is compiled.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Ends;
use super::head::Head;
use super::segment::{Change, id};
use crate::burst::Meta;
use crate::forward::write_l2;
use crate::frame::Frame;
use crate::tables::HopEntry;
use crate::wire::ports::{TCP_HEADER_BYTES, header_bytes};
use crate::wire::{TCP, UDP, ethernet};

/// The headers as they lie on the wire. Smaller frames can be good ones, but are rare.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Headers<const IP: usize> {
    l2: [u8; ethernet::HEADER_BYTES],
    ip: [u8; IP],
    /// TCP's; or UDP's, with what is behind it.
    transport: [u8; TCP_HEADER_BYTES],
}

/// As [`super::forward`], from a header of `OLD` bytes, which `read` reads, to one of `NEW`. `None`, and
/// nothing has changed: it is no such packet.
#[inline(always)]
pub(super) fn translate<F: Frame, const OLD: usize, const NEW: usize>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    ends: &Ends,
    read: impl FnOnce(&[u8; OLD]) -> Option<Head>,
) -> Option<()> {
    let (Headers { ip, .. }, _) = Headers::<OLD>::ref_from_prefix(frame.bytes()).ok()?;
    let head = read(ip)?;
    // Compiled for both, since then it is known where the checksum is. Errors and later fragments are of
    // other protocols.
    match head.protocol {
        TCP => translate_as::<F, OLD, NEW>(frame, meta, hop, ends, &Head { protocol: TCP, ..head }),
        UDP => translate_as::<F, OLD, NEW>(frame, meta, hop, ends, &Head { protocol: UDP, ..head }),
        _ => None,
    }
}

/// As [`translate`], of what begins with `head`.
#[inline(always)]
fn translate_as<F: Frame, const OLD: usize, const NEW: usize>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    ends: &Ends,
    head: &Head,
) -> Option<()> {
    let bytes = frame.bytes();
    let (old, _) = Headers::<OLD>::ref_from_prefix(bytes).ok()?;
    let packet_len = usize::from(meta.packet_len);
    let segment_len = packet_len.checked_sub(OLD)?;
    if usize::from(meta.l3_offset) != ethernet::HEADER_BYTES
        || hop.vlan.is_some()
        || packet_len > bytes.len() - ethernet::HEADER_BYTES
        || segment_len < header_bytes(head.protocol)?
        || segment_len + NEW > usize::from(hop.mtu)
    {
        return None;
    }
    let hops = head.one_hop_less().ok()?;
    let change = Change::new(head, &old.ip, &old.transport, ends);
    if !change.has_checksum() {
        return None;
    }
    let id = if head.is_ipv6 { id(head.protocol, &old.transport, meta.hash) } else { 0 };
    let header = head.translated(segment_len, ends, hops, id);

    let bytes = if NEW > OLD {
        frame.prepend(NEW - OLD)?
    } else {
        frame.bytes_mut().get_mut(OLD - NEW..)?
    };
    let (new, _) = Headers::<NEW>::mut_from_prefix(bytes).ok()?;
    write_l2(&mut new.l2, hop, header.ether_type());
    let _ = header.write(&mut new.ip); // which is as long
    change.apply(&mut new.transport);
    if OLD > NEW {
        frame.trim_front(OLD - NEW);
    }
    frame.truncate(ethernet::HEADER_BYTES + NEW + segment_len);
    Some(())
}
