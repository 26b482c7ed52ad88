//! What nobody thought of.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

/// Are all checksums true? `None`: there is none that can be told.
fn is_true(frame: &[u8]) -> Option<bool> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let transport = sliced.transport?;
    match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let (src, dst) = (ip.header().source_addr(), ip.header().destination_addr());
            if ip.header().to_header().calc_header_checksum() != ip.header().header_checksum() {
                return Some(false);
            }
            let (found, expect) = match transport {
                TransportSlice::Tcp(tcp) => {
                    (tcp.checksum(), tcp.calc_checksum_ipv4(src.octets(), dst.octets()).ok()?)
                }
                TransportSlice::Udp(udp) if udp.checksum() == 0 => return Some(true),
                TransportSlice::Udp(udp) => {
                    let (src, dst) = (src.octets(), dst.octets());
                    let sum =
                        udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()).ok()?;
                    (udp.checksum(), sum)
                }
                TransportSlice::Icmpv4(icmp) => {
                    (icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()))
                }
                _ => return None,
            };
            Some(found == expect)
        }
        NetSlice::Ipv6(ip) => {
            let (src, dst) = (ip.header().source_addr(), ip.header().destination_addr());
            let (src, dst) = (src.octets(), dst.octets());
            let (found, expect) = match transport {
                TransportSlice::Tcp(tcp) => {
                    (tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).ok()?)
                }
                TransportSlice::Udp(udp) if udp.checksum() == 0 => return None,
                TransportSlice::Udp(udp) => {
                    let sum =
                        udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).ok()?;
                    (udp.checksum(), sum)
                }
                TransportSlice::Icmpv6(icmp) => {
                    return Some(icmp.is_checksum_valid(src, dst));
                }
                _ => return None,
            };
            Some(found == expect)
        }
        NetSlice::Arp(_) => None,
    }
}

/// Frames to begin with, of a family.
fn seeds(family: usize) -> Vec<Vec<u8>> {
    let tcp = packet(true, FLOW[family], PAYLOAD);
    let udp = packet(false, FLOW[family], PAYLOAD);
    let sctp = sctp(FLOW[family], PAYLOAD);
    let quote = as_ours(&quoted(family, false), 0);
    let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
    let packets = [
        tcp.clone(),
        udp.clone(),
        udp.clone().with(|p| p.payload[6..8].fill(0)),
        udp.clone().with(|p| p.fragment = Some((0, true))),
        sctp.clone(),
        sctp.with(|p| p.fragment = Some((0, true))),
        tcp.clone().with(|p| p.fragment = Some((3, false))),
        tcp.with(|p| (p.options, p.extensions) = (vec![1; 12], vec![options.clone(); 2])),
        udp.with(|p| (p.extensions, p.fragment) = (vec![options], Some((0, false)))),
        error(family, PORT_UNREACHABLE[family], &quote),
        error(family, [[3, 4, 0, 0, 0, 0, 5, 0], [2, 0, 0, 0, 0, 0, 5, 0]][family], &quote),
        error(family, [[12, 0, 0, 0, 8, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 7]][family], &quote),
    ];
    packets.iter().map(Packet::frame).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever the bytes are, and whatever is thought of them.
    #[test]
    fn nothing_harms(
        family in 0..2_usize,
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        (thinks_other, is_error, is_plain) in (prop::bool::weighted(0.1), any::<bool>(), any::<bool>()),
        mtu in 0..2000_u16,
    ) {
        let mut frame = seed.get(&seeds(family)).clone();
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        for (at, byte) in changes {
            if frame.len() > 14 {
                let at = 14 + at.index(frame.len() - 14);
                frame[at] = byte;
            }
        }
        let is_ipv6 = (family == 1) != thinks_other;
        let meta = Meta {
            tuple: Tuple { is_ipv6, ..Default::default() },
            l3_offset: 14,
            l4_offset: if is_plain { 54 } else { 62 },
            packet_len: u16::try_from(frame.len().saturating_sub(14)).unwrap(),
            rule: if is_error { Rule::IcmpError } else { Rule::Flow },
            ..Default::default()
        };
        let ends = ends(FLOW[usize::from(!is_ipv6)]);
        let mut sim = SimFrame::new(&frame);
        let hop = hop(0, None, if mtu < 1000 { mtu } else { 1500 });
        let result = forward(&mut sim, &meta, &hop, LAN, ends);
        if !is_error {
            let mut as_any = SimFrame::new(&frame);
            prop_assert_eq!(result, forward_any(&mut as_any, &meta, &hop, LAN, ends));
            prop_assert_eq!(sim.bytes(), as_any.bytes(), "at one look, it is the same");
        }
        if result.is_err() {
            prop_assert_eq!(sim.bytes(), frame);
            return Ok(());
        }
        prop_assert!(sim.bytes().len() <= 14 + usize::from(hop.mtu));
        let told = if is_ipv6 {
            usize::from(u16::from_be_bytes([sim.bytes()[16], sim.bytes()[17]]))
        } else {
            40 + usize::from(u16::from_be_bytes([sim.bytes()[18], sim.bytes()[19]]))
        };
        prop_assert_eq!(told, sim.bytes().len() - 14);
        if is_true(&frame) == Some(true) {
            prop_assert_ne!(is_true(sim.bytes()), Some(false));
        }
    }
}
