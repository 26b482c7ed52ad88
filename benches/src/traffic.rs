//! Frames: how they are made, and those in memory that become others in place.

use std::sync::Arc;

use lb_core::frame::Frame;
use lb_core::tuple::{is_ipv6, mapped};
use lb_core::wire::checksum::{Checksum, Sum};
use lb_core::wire::ethernet::MacAddr;
use lb_core::wire::{TCP, UDP, tcp, udp};
use zerocopy::IntoBytes;

/// Room in front, as in DPDK's buffers.
const HEADROOM: usize = 128;
/// The largest frame.
const BYTES_MAX: usize = 256;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Port of the service.
pub const VIP_PORT: u16 = 80;

/// Who sends a packet to whom; IPv4 as mapped.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Its sender.
    pub src: [u8; 16],
    /// Whom it is for.
    pub dst: [u8; 16],
    /// Of both.
    pub ports: [u16; 2],
}

impl Flow {
    /// Of which family?
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        is_ipv6(&self.dst)
    }
}

/// Flows by number.
#[derive(Clone, Debug)]
pub enum Flows {
    /// Each of another client, to a VIP.
    ToVip([u8; 16]),
    /// Each of another client, to one of so many IPv4 VIPs, of which this is the first.
    ToVips([u8; 4], u32),
    /// These.
    Listed(Arc<[Flow]>),
}

impl Flows {
    /// The one with this number.
    #[must_use]
    pub fn get(&self, number: u32) -> Flow {
        match self {
            Self::ToVip(vip) => to_vip(*vip, number),
            Self::ToVips(first, count) => {
                // Not one client after the other to one VIP after the other.
                let place = number.wrapping_mul(0x9e37_79b1) % count;
                let vip = u32::from_be_bytes(*first) + place;
                to_vip(mapped(vip.to_be_bytes()), number)
            }
            Self::Listed(flows) => flows[number as usize % flows.len()],
        }
    }
}

/// Of client number `number` to a VIP.
#[must_use]
pub fn to_vip(vip: [u8; 16], number: u32) -> Flow {
    let (address, port) = client(number);
    let mut src = vip;
    if is_ipv6(&vip) {
        src = [0; 16];
        src[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        src[12] = 1;
    } else {
        src[12] = 11;
    }
    src[13..].copy_from_slice(&address);
    Flow { src, dst: vip, ports: [u16::from_be_bytes(port), VIP_PORT] }
}

/// What clients differ in: the last three bytes of the address, and the port.
#[inline]
#[must_use]
pub fn client(number: u32) -> ([u8; 3], [u8; 2]) {
    let [high, mid, low, last] = number.to_be_bytes();
    ([high, mid, low], [0x80 | last >> 1, last])
}

/// A frame whose bytes end where the buffer does, so that they are found as fast as those of DPDK's.
#[derive(Debug)]
pub struct BenchFrame {
    buffer: Vec<u8>,
    start: usize,
}

impl Frame for BenchFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    #[inline]
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(self.bytes_mut())
    }

    #[inline]
    fn trim_front(&mut self, len: usize) {
        self.start = (self.start + len).min(self.buffer.len());
    }

    #[inline]
    fn truncate(&mut self, len: usize) {
        self.buffer.truncate(self.start + len);
    }

    fn sibling(&self, front: &[u8], back: &[u8]) -> Option<Self> {
        Some(Self { buffer: [&[0; HEADROOM], front, back].concat(), start: HEADROOM })
    }

    #[inline]
    fn prefetch(&self) {}
}

impl Default for BenchFrame {
    fn default() -> Self {
        Self { buffer: vec![0; HEADROOM + BYTES_MAX], start: HEADROOM }
    }
}

impl BenchFrame {
    /// Room for a frame of `len` bytes, as it would come from the wire.
    pub fn restart(&mut self, len: usize) -> &mut [u8] {
        self.start = HEADROOM;
        self.buffer.resize(HEADROOM + len, 0);
        self.bytes_mut()
    }

    /// Makes it a TCP segment of a flow, with these flags and 6 bytes of payload; checksums are true.
    pub fn reset(&mut self, dst: MacAddr, flow: &Flow, flags: u8) {
        const SEGMENT: u16 = 26;
        let l4 = ETHERNET + if flow.is_ipv6() { 40 } else { 20 };
        let bytes = self.restart(l4 + usize::from(SEGMENT));
        headers(bytes, dst, flow, (TCP, SEGMENT));
        segment(&mut bytes[l4..], flow, flags);
    }
}

/// The number of the client that a datagram for [`to_vip`] is from; `frame` is IPv4 and has no tag.
#[must_use]
pub fn client_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[27], frame[28], frame[29], frame[35]])
}

/// Ethernet and IP header.
pub fn headers(bytes: &mut [u8], mac: MacAddr, flow: &Flow, (protocol, len): (u8, u16)) {
    bytes[..6].copy_from_slice(mac.as_bytes());
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    let (ether_type, ip) = bytes[12..].split_at_mut(2);
    if flow.is_ipv6() {
        ether_type.copy_from_slice(&[0x86, 0xdd]);
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        ip[4..6].copy_from_slice(&len.to_be_bytes());
        ip[6..8].copy_from_slice(&[protocol, 64]);
        ip[8..24].copy_from_slice(&flow.src);
        ip[24..40].copy_from_slice(&flow.dst);
    } else {
        ether_type.copy_from_slice(&[0x08, 0x00]);
        ip[..2].copy_from_slice(&[0x45, 0]);
        ip[2..4].copy_from_slice(&(len + 20).to_be_bytes());
        ip[4..12].copy_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
        ip[12..16].copy_from_slice(&flow.src[12..]);
        ip[16..20].copy_from_slice(&flow.dst[12..]);
        repair(ip);
    }
}

/// Makes an IPv4 header's checksum true.
pub fn repair(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let checksum = Checksum::of(&ip[..20]);
    ip[10..12].copy_from_slice(checksum.as_bytes());
}

/// Makes an IPv4 header that of a fragment, with this number, and these flags and offset.
pub fn cut(ip: &mut [u8], number: u16, place: u16) {
    let ([a, b], [c, d]) = (number.to_be_bytes(), place.to_be_bytes());
    ip[4..8].copy_from_slice(&[a, b, c, d]);
    repair(ip);
}

/// A TCP header, and zeros behind it.
pub fn segment(segment: &mut [u8], flow: &Flow, flags: u8) {
    segment.fill(0);
    segment[..4].copy_from_slice(flow.ports.map(u16::to_be_bytes).as_bytes());
    segment[12..14].copy_from_slice(&[5 << 4, flags]);
    let checksum = pseudo_header(flow, segment.len(), TCP).plus(segment).checksum();
    segment[tcp::CHECKSUM].copy_from_slice(checksum.as_bytes());
}

/// A UDP header, and zeros behind it.
pub fn datagram(datagram: &mut [u8], flow: &Flow) {
    let len = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
    datagram.fill(0);
    datagram[..4].copy_from_slice(flow.ports.map(u16::to_be_bytes).as_bytes());
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    let checksum = pseudo_header(flow, datagram.len(), UDP).plus(datagram).checksum();
    datagram[udp::CHECKSUM].copy_from_slice(checksum.never_zero().as_bytes());
}

fn pseudo_header(flow: &Flow, len: usize, protocol: u8) -> Sum {
    let ends = if flow.is_ipv6() { 0 } else { 12 };
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    Sum::default().pseudo_header(&flow.src[ends..], &flow.dst[ends..], len, protocol)
}
