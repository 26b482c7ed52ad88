//! Layer-2 direct server return: another destination MAC, and nothing else.

use super::readdress;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::HopEntry;
use crate::tables::next_hop::PortId;

/// Sends the frame to the hop's MAC.
///
/// # Errors
/// [`DropReason::TooBig`] for the port that it leaves by; [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
) -> Result<(), DropReason> {
    if meta.packet_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    readdress(frame, meta, hop, came_by)
}

#[cfg(test)]
mod tests {
    use etherparse::IpNumber;

    use super::*;
    use crate::forward::tests::{LAN, front, hop, tag_cases};
    use crate::sim::SimFrame;
    use crate::sim::packet::{Packet, VLAN};
    use crate::stage::parse::tests::parsed;
    use crate::wire::ethernet::{IPV4, IPV6};

    /// One of each that a change might miss, padding included.
    fn packets() -> [Packet; 4] {
        let (client, client6) = ("198.51.100.7:40000", "[2001:db8::7]:40000");
        let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
        [
            Packet::tcp(client, "10.0.0.100:80").with(|p| p.options = vec![1; 8]),
            Packet::udp(client, "10.0.0.100:80").with(|p| (p.payload, p.padding) = (vec![], 18)),
            Packet::tcp(client6, "[fd00::100]:80").with(|p| p.traffic_class = 0xb9),
            Packet::udp(client6, "[fd00::100]:80").with(|p| p.extensions = vec![options]),
        ]
    }

    #[test]
    fn macs_and_tags_change_and_nothing_else() {
        for packet in packets() {
            let ether_type = if packet.dst.is_ipv4() { IPV4 } else { IPV6 };
            for (tags, hop, expect) in tag_cases() {
                let given = packet.clone().with(|p| p.tags = tags.to_vec());
                let mut frame = SimFrame::new(&given.frame());
                forward(&mut frame, &parsed(&given.frame()), &hop, LAN).unwrap();
                let behind = [given.ip(), vec![0; given.padding]].concat();
                let expect = [front(expect, ether_type), behind].concat();
                assert_eq!(frame.bytes(), expect, "{tags:?} {hop:?} {given:?}");
            }
        }
    }

    #[test]
    fn the_packet_has_to_fit_its_way() {
        let packet = Packet::tcp("198.51.100.7:40000", "10.0.0.100:80").with(|p| p.padding = 9);
        let frame = packet.frame();
        let len = u16::try_from(packet.ip().len()).unwrap();
        for (mtu, expect) in [(len, Ok(())), (len - 1, Err(DropReason::TooBig))] {
            let mut sim = SimFrame::new(&frame);
            assert_eq!(forward(&mut sim, &parsed(&frame), &hop(0, None, mtu), LAN), expect);
        }
    }

    #[test]
    fn only_a_longer_header_needs_headroom() {
        let plain = Packet::tcp("198.51.100.7:40000", "10.0.0.100:80");
        let tagged = plain.clone().with(|p| p.tags = vec![(VLAN, 7)]);
        for (packet, vlan, headroom, expect) in [
            (&plain, None, 0, Ok(())),
            (&tagged, Some(9), 0, Ok(())),
            (&plain, Some(9), 4, Ok(())),
            (&plain, Some(9), 3, Err(DropReason::NoHeadroom)),
        ] {
            let frame = packet.frame();
            let mut sim = SimFrame::with_headroom(&frame, headroom);
            assert_eq!(forward(&mut sim, &parsed(&frame), &hop(0, vlan, 1500), LAN), expect);
        }
    }
}
