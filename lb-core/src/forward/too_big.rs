//! Packets that do not fit their way: answered, or sent in pieces.

use zerocopy::FromBytes;

use super::answer::{self, Refusal};
use super::split;
use crate::burst::{Exit, Meta};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::state::State;
use crate::tables::HopEntry;
use crate::tables::next_hop::{Port, PortId};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6;

/// A way that a packet does not fit.
#[derive(Clone, Copy, Debug)]
pub struct Narrow<'a> {
    /// Where it would leave.
    pub hop: &'a HopEntry,
    /// The largest packet, as it came, that fits; in bytes.
    pub mtu: u16,
    /// What can be cut so that it fits.
    pub cut: Cut,
}

/// What of a packet on its way can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing: it leaves as it came.
    Nothing,
    /// The packet that it travels in.
    Outer,
    /// What it is translated to.
    Translated,
}

/// Does with a packet what has to be done if it is too big for its way. `place` is the frame's in the
/// burst; `whole` gives it the form that it leaves in, whatever its size.
///
/// A packet that may not be cut is answered (RFC 1191, RFC 8201) with the MTU that its sender has;
/// others are cut: inside a tunnel the outer packet (RFC 2003 §3.1, RFC 2473 §7.2), else what it has
/// been translated to (RFC 791 §3.2, RFC 7915 §4): also an IPv6 packet, whose source is ours then (RFC
/// 8200 §4.5), and whose sender cannot be asked for less than every link carries.
///
/// # Errors
/// [`DropReason::TooBig`], if nobody may be told, or too many are; [`DropReason::NoBuffer`];
/// [`DropReason::NoHeadroom`].
#[cold]
pub fn handle<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    way: Narrow<'_>,
    (place, came_by, port): (usize, PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
    whole: impl FnOnce(&mut F, &HopEntry) -> Result<(), DropReason>,
) -> Result<(), Exit> {
    let Narrow { hop, mut mtu, cut } = way;
    let (may_be_cut, can_be_cut) = if meta.tuple.is_ipv6 {
        mtu = mtu.max(ipv6::MTU_MIN); // less is never asked for
        let has_extensions =
            usize::from(meta.l4_offset) != usize::from(meta.l3_offset) + ipv6::HEADER_BYTES;
        let can_be_cut = match cut {
            Cut::Nothing => false,
            Cut::Outer => true,
            // What has grown, by a PROXY header. Extension headers stand before or behind that of a
            // fragment, by their kind: nobody sends them.
            Cut::Translated => !has_extensions,
        };
        (meta.packet_len <= ipv6::MTU_MIN, can_be_cut)
    } else {
        let packet = frame.bytes().get(meta.l3_offset.into()..).ok_or(DropReason::Truncated)?;
        let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let can_be_cut = match cut {
            Cut::Nothing => false,
            Cut::Outer => true,
            // Options would have to be copied, or not, by their kind: nobody sends them.
            Cut::Translated => ip.header_len() == ipv4::HEADER_BYTES,
        };
        (ip.fragment.get() & ipv4::DONT_FRAGMENT == 0, can_be_cut)
    };
    if !may_be_cut {
        let refusal = Refusal::TooBig(mtu);
        return Err(answer::tell(frame, meta, refusal, (came_by, port), (state, counters)));
    }
    if !can_be_cut {
        return Err(DropReason::TooBig.into());
    }
    // No NIC ever sees the whole.
    whole(frame, &HopEntry { mtu: u16::MAX, udp_checksums: false, ..*hop })?;
    Ok(split::split(frame, hop, place, state, counters)?)
}
