//! Packets that do not fit their way: answered, or sent in pieces.

use zerocopy::FromBytes;

use super::answer::{self, Refusal};
use super::{mss, split, tunnel};
use crate::burst::Meta;
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::MssClamp;
use crate::state::State;
use crate::tables::next_hop::{Port, PortId};
use crate::tables::{HopEntry, Path};
use crate::wire::ipv4::{self, Ipv4};

/// What every IPv6 link carries (RFC 8200 §5): less is never asked for.
const IPV6_MTU_MIN: u16 = 1280;

/// Does with a packet what has to be done if it is too big for `hop` in the clothes of `path`. `place`
/// is the frame's in the burst.
///
/// A packet that may not be cut is answered (RFC 1191, RFC 8201) with the MTU that its sender has;
/// of those that may, the outer packet is cut (RFC 2003 §3.1, RFC 2473 §7.2).
///
/// # Errors
/// [`DropReason::TooBig`], if nobody may be told, or too many are; [`DropReason::NoBuffer`];
/// [`DropReason::NoHeadroom`].
#[cold]
pub fn handle<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    (hop, path, segments): (&HopEntry, &Path, MssClamp),
    (place, came_by, port): (usize, PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), DropReason> {
    let overhead = u16::try_from(path.overhead()).unwrap_or(u16::MAX);
    let mut mtu = hop.mtu.saturating_sub(overhead);
    let mut may_be_cut = false;
    if meta.tuple.is_ipv6 {
        mtu = mtu.max(IPV6_MTU_MIN);
        may_be_cut = meta.packet_len <= IPV6_MTU_MIN;
    } else {
        let packet = frame.bytes().get(meta.l3_offset.into()..).ok_or(DropReason::Truncated)?;
        let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let fragment = ip.fragment.get();
        may_be_cut |= fragment & ipv4::DONT_FRAGMENT == 0;
    }
    if may_be_cut {
        let Path::Tunnel(kind, ends) = path else { return Err(DropReason::TooBig) };
        mss::clamp(frame, meta, segments, usize::from(hop.mtu).saturating_sub(path.overhead()));
        let whole = HopEntry { mtu: u16::MAX, ..*hop };
        tunnel(frame, meta, &whole, came_by, (*kind, ends))?;
        return split::split(frame, hop, place, state, counters);
    }
    answer::tell(frame, meta, Refusal::TooBig(mtu), (came_by, port), (state, counters))
}
