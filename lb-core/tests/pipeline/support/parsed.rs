//! What has to be true of one frame that was parsed: the body of the fuzz target `parse`.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_core::burst::{Burst, Fate, Meta, Rule};
use lb_core::frame::Checked;
use lb_core::sim::SimFrame;
use lb_core::stage::parse::parse;
use lb_core::tables::next_hop::{Port, PortId};
use lb_core::tuple::address_bytes;
use lb_core::wire::ethernet::MacAddr;

use super::model::quoted;
use super::packet::BALANCER;

/// Parses a frame whose first byte says what the NIC thinks of its checksum (0: nothing, else:
/// that it is true).
///
/// # Panics
/// The parser does, or believes a length that is not there, or reads something else than
/// `etherparse` does.
pub(crate) fn check(input: &[u8]) {
    let Some((&checked, bytes)) = input.split_first() else { return };
    let mut frame = SimFrame::new(bytes);
    frame.ipv4_checked = if checked == 0 { Checked::Unknown } else { Checked::Good };
    let port = Port {
        name: "port0".into(),
        mac: MacAddr(BALANCER),
        mtu: 1500,
        addresses: Vec::new(),
        kernel: true,
        udp_checksums: false,
    };
    let mut burst = Burst::default();
    burst.refill(PortId(0), |frames| frames.push(frame));
    parse(&mut burst, &port);

    let (live, punted) = burst.live_and_punted();
    let dropped: u16 = burst.drops().iter().sum();
    assert_eq!(live + punted + u32::from(dropped), 1);
    if let Fate::Send(_) = burst.fate(0) {
        check_meta(bytes, burst.meta(0));
    }
}

fn check_meta(bytes: &[u8], meta: &Meta) {
    assert!(matches!(meta.l3_offset, 14 | 18 | 22));
    let end = usize::from(meta.l3_offset) + usize::from(meta.packet_len);
    assert!(end <= bytes.len(), "{meta:?}: {} bytes", bytes.len());
    if meta.rule == Rule::IcmpError {
        return assert_eq!(Some(meta.tuple), quoted(bytes));
    }
    // What `etherparse` refuses is stricter: it looks into TCP's options and UDP's length.
    let Ok(sliced) = SlicedPacket::from_ethernet(bytes) else { return };
    let (src, dst, fragmented): (IpAddr, IpAddr, bool) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.total_len(), meta.packet_len);
            let fragmented = header.is_fragmenting_payload();
            (header.source_addr().into(), header.destination_addr().into(), fragmented)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!(usize::from(header.payload_length()) + 40, usize::from(meta.packet_len));
            let fragmented = ip.is_payload_fragmented();
            (header.source_addr().into(), header.destination_addr().into(), fragmented)
        }
        NetSlice::Arp(_) => panic!("ARP went through"),
    };
    let tuple = &meta.tuple;
    assert_eq!((tuple.src, tuple.dst), (address_bytes(src), address_bytes(dst)));
    assert_eq!(tuple.is_ipv6, dst.is_ipv6());
    // Headers that `etherparse` looks behind, and Weir does not: authentication; of IPv6 also mobility,
    // HIP, shim6.
    if tuple.protocol == 51
        || tuple.is_ipv6 && matches!(tuple.protocol, 135 | 139 | 140 | 253 | 254)
    {
        return;
    }
    assert_eq!(meta.is_fragment, fragmented);
    let [a, b, c, d] = tuple.ports;
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) if !fragmented => {
            assert_eq!(tuple.protocol, 6);
            assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
        }
        Some(TransportSlice::Udp(udp)) if !fragmented => {
            assert_eq!(tuple.protocol, 17);
            assert_eq!(ports, (udp.source_port(), udp.destination_port()));
        }
        _ if meta.is_fragment || !matches!(tuple.protocol, 6 | 17 | 132) => {
            assert_eq!(ports, (0, 0), "{tuple:?}");
        }
        _ => assert_eq!(tuple.protocol, 132, "{tuple:?} without a header"),
    }
}
