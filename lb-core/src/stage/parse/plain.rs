//! The frames that almost all are, taken in at one look: no tags, no options, no extension headers,
//! no fragments; TCP, UDP or SCTP, and nothing wrong. What it takes for such a frame it understands as
//! [`super::general`] does, which reads step by step and says what is wrong.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::burst::{Meta, Rule};
use crate::frame::Checked;
use crate::tuple::{Tuple, mapped};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, MacAddr};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ports::{TCP_HEADER_BYTES, header_bytes};

/// The headers as they lie on the wire. Smaller frames can be good ones, but are rare.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Headers<Ip> {
    dst_mac_and_more: [u8; 8],
    src_mac_rest: [u8; 4],
    ether_type: U16,
    ip: Ip,
    ports: [u8; 4],
    rest: [u8; TCP_HEADER_BYTES - 4],
}

/// A MAC as half of a word, in which it is compared fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mac(u64);

impl Mac {
    pub(super) fn new(MacAddr(mac): MacAddr) -> Self {
        let mut word = [0; 8];
        word[..6].copy_from_slice(&mac);
        Self(u64::from_le_bytes(word) << 16)
    }

    /// Is it what a frame begins with?
    #[inline(always)]
    fn is_at(self, word: [u8; 8]) -> bool {
        u64::from_le_bytes(word) << 16 == self.0
    }
}

/// Reads the frame, if it is such a one; else it has written nothing that counts.
#[inline(always)]
#[must_use]
pub(super) fn parse(frame: &[u8], checked: Checked, mac: Mac, meta: &mut Meta) -> bool {
    ipv4(frame, checked, mac, meta) || ipv6(frame, mac, meta)
}

#[inline(always)]
fn ipv4(frame: &[u8], checked: Checked, mac: Mac, meta: &mut Meta) -> bool {
    /// Version and header length in words.
    const NO_OPTIONS: u8 = 0x45;
    let Ok((Headers::<Ipv4> { dst_mac_and_more, ether_type, ip, ports, .. }, _)) =
        Headers::ref_from_prefix(frame)
    else {
        return false;
    };
    if *ether_type != ethernet::IPV4
        || !mac.is_at(*dst_mac_and_more)
        || ip.version_ihl != NO_OPTIONS
    {
        return false;
    }
    let Some(segment_min) = header_bytes(ip.protocol) else { return false };
    let packet_len = ip.total_len.get();
    let is_true = checked == Checked::Good
        || checked == Checked::Unknown && Sum::default().plus(ip.as_bytes()).is_true();
    if usize::from(packet_len) > frame.len() - ethernet::HEADER_BYTES
        || usize::from(packet_len) < ipv4::HEADER_BYTES + segment_min
        || ip.is_fragment()
        || !is_true
        || !Ipv4::is_source(ip.src)
        || ip.src == ip.dst
    {
        return false;
    }
    let (src, dst) = (mapped(ip.src), mapped(ip.dst));
    meta.tuple = Tuple { src, dst, ports: *ports, protocol: ip.protocol, is_ipv6: false };
    found::<Ipv4>(packet_len, meta)
}

#[inline(always)]
fn ipv6(frame: &[u8], mac: Mac, meta: &mut Meta) -> bool {
    let Ok((Headers::<Ipv6> { dst_mac_and_more, ether_type, ip, ports, .. }, _)) =
        Headers::ref_from_prefix(frame)
    else {
        return false;
    };
    if *ether_type != ethernet::IPV6 || !mac.is_at(*dst_mac_and_more) || !ip.has_version() {
        return false;
    }
    let Some(segment_min) = header_bytes(ip.next_header) else { return false };
    let payload_len = usize::from(ip.payload_len.get());
    let Ok(packet_len) = u16::try_from(ipv6::HEADER_BYTES + payload_len) else { return false };
    if usize::from(packet_len) > frame.len() - ethernet::HEADER_BYTES
        || payload_len < segment_min
        || !Ipv6::is_source(ip.src)
        || ip.src == ip.dst
    {
        return false;
    }
    let (src, dst) = (ip.src, ip.dst);
    meta.tuple = Tuple { src, dst, ports: *ports, protocol: ip.next_header, is_ipv6: true };
    found::<Ipv6>(packet_len, meta)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "14, and 34 or 54")]
fn found<Ip>(packet_len: u16, meta: &mut Meta) -> bool {
    meta.packet_len = packet_len;
    meta.l3_offset = ethernet::HEADER_BYTES as u8;
    meta.l4_offset = (ethernet::HEADER_BYTES + size_of::<Ip>()) as u16;
    (meta.is_fragment, meta.rule) = (false, Rule::Flow);
    true
}
