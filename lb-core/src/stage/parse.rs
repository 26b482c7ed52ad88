//! Bytes → what the other stages need to know.

use crate::burst::{Burst, Exit, Meta};
use crate::drop_reason::DropReason;
use crate::frame::{Checked, Frame};
use crate::tables::next_hop::Port;
use crate::tuple::{Tuple, mapped};
use crate::wire::checksum::Checksum;
use crate::wire::ethernet;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::ports::Ports;
use crate::wire::{TCP, UDP};

/// Reads the headers of each frame. Writes `meta.tuple`, `meta.l3_offset`, `meta.packet_len`.
///
/// Punts what no service can be meant by: groups, other `EtherType`s, other protocols. A fragment
/// has `meta.is_fragment`, and zero for its ports.
///
/// Drops: [`DropReason::MultiSegment`], [`DropReason::NotOurs`] (another station's MAC), and what is
/// not a good header.
#[inline(always)]
pub fn parse<F: Frame>(burst: &mut Burst<F>, port: &Port) {
    burst.for_each_live(|frame, meta| {
        if !frame.is_contiguous() {
            return Err(DropReason::MultiSegment.into());
        }
        let checked = frame.ipv4_checked();
        let bytes = frame.bytes();
        let (ethernet, payload) = ethernet::parse(bytes)?;
        if ethernet.dst != port.mac {
            return Err(foreign(ethernet));
        }
        let packet = bytes.get(payload.offset..).ok_or(DropReason::Truncated)?;
        #[expect(clippy::cast_possible_truncation, reason = "14, 18 or 22")]
        {
            meta.l3_offset = payload.offset as u16;
        }
        match payload.ether_type {
            ethernet::IPV4 => ipv4(packet, checked, meta),
            ethernet::IPV6 => ipv6(packet, meta),
            _ => Err(Exit::Punt),
        }
    });
}

/// The kernel decides about groups; what is for another station should not be here.
#[cold]
fn foreign(ethernet: &ethernet::Ethernet) -> Exit {
    if ethernet.dst.is_group() { Exit::Punt } else { DropReason::NotOurs.into() }
}

#[inline(always)]
fn ipv4(packet: &[u8], checked: Checked, meta: &mut Meta) -> Result<(), Exit> {
    let ip = Ipv4::parse(packet)?;
    let header = packet.get(..ip.header_len()).ok_or(DropReason::Truncated)?;
    let is_true = match checked {
        Checked::Unknown => Checksum::of(header) == Checksum::ZERO,
        Checked::Good => true,
        Checked::Bad => false,
    };
    if !is_true {
        return Err(DropReason::BadChecksum.into());
    }
    // RFC 1122 §3.2.1.3: this network, loopback, multicast, reserved and broadcast.
    if matches!(ip.src, [0 | 127 | 224.., ..]) {
        return Err(DropReason::BadSource.into());
    }
    if ip.src == ip.dst {
        return Err(DropReason::SameSource.into());
    }
    meta.packet_len = ip.total_len.get();
    let segment =
        packet.get(ip.header_len()..usize::from(meta.packet_len)).ok_or(DropReason::Truncated)?;
    meta.tuple = Tuple {
        src: mapped(ip.src),
        dst: mapped(ip.dst),
        ports: [0; 4],
        protocol: ip.protocol,
        is_ipv6: false,
    };
    meta.is_fragment = ip.is_fragment();
    ports(segment, meta)
}

#[inline(always)]
fn ipv6(packet: &[u8], meta: &mut Meta) -> Result<(), Exit> {
    let ip = Ipv6::parse(packet)?;
    // RFC 4291 §2.5.2, §2.5.3, §2.7: unspecified, loopback, multicast.
    if ip.src[0] == 0xff || (ip.src[..15] == [0; 15] && ip.src[15] <= 1) {
        return Err(DropReason::BadSource.into());
    }
    if ip.src == ip.dst {
        return Err(DropReason::SameSource.into());
    }
    let packet = packet.get(..ip.total_len()).ok_or(DropReason::Truncated)?;
    meta.packet_len = u16::try_from(packet.len()).map_err(|_| DropReason::TooBig)?;
    let upper = ip.upper_layer(packet)?;
    meta.tuple =
        Tuple { src: ip.src, dst: ip.dst, ports: [0; 4], protocol: upper.protocol, is_ipv6: true };
    let segment = packet.get(upper.offset..).ok_or(DropReason::Truncated)?;
    meta.is_fragment = upper.is_fragment;
    ports(segment, meta)
}

/// Fills the ports in, where there are any.
#[inline(always)]
fn ports(segment: &[u8], meta: &mut Meta) -> Result<(), Exit> {
    let tuple = &mut meta.tuple;
    if tuple.protocol != TCP && tuple.protocol != UDP {
        return Err(Exit::Punt);
    }
    if !meta.is_fragment {
        let ports = Ports::parse(tuple.protocol, segment)?;
        let ([a, b], [c, d]) = (ports.src.to_bytes(), ports.dst.to_bytes());
        tuple.ports = [a, b, c, d];
    }
    Ok(())
}
