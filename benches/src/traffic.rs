//! Frames in memory whose flow can be changed in place.

use lb_core::frame::Frame;
use lb_core::wire::checksum::Checksum;
use lb_core::wire::ethernet::MacAddr;
use zerocopy::IntoBytes as _;

/// Room in front, as in DPDK's buffers.
const HEADROOM: usize = 128;
const ETHERNET: usize = 14;

/// A kind of traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) is_ipv6: bool,
    pub(crate) protocol: u8,
}

/// A frame whose bytes stay where they are.
#[derive(Debug)]
pub(crate) struct BenchFrame {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Frame for BenchFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    #[inline]
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(self.bytes_mut())
    }

    #[inline]
    fn trim_front(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    #[inline]
    fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    fn sibling(&self, front: &[u8], back: &[u8]) -> Option<Self> {
        let bytes = [&[0; HEADROOM], front, back].concat();
        let end = bytes.len();
        Some(Self { buffer: bytes.into(), start: HEADROOM, end })
    }

    #[inline]
    fn prefetch(&self) {}
}

impl BenchFrame {
    /// A frame of `len` bytes from a client to `vip`.
    pub(crate) fn new(kind: Kind, dst: MacAddr, vip: [u8; 16], len: usize) -> Self {
        let mut buffer = vec![0; HEADROOM + len].into_boxed_slice();
        let ip = &mut buffer[HEADROOM + ETHERNET..];
        let ip_len = u16::try_from(ip.len()).unwrap_or(u16::MAX);
        if kind.is_ipv6 {
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(ip_len - 40).to_be_bytes());
            ip[6..8].copy_from_slice(&[kind.protocol, 64]);
            ip[8..12].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            ip[24..40].copy_from_slice(&vip);
            ip[42..44].copy_from_slice(&80_u16.to_be_bytes());
        } else {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
            ip[8..10].copy_from_slice(&[64, kind.protocol]);
            ip[16..20].copy_from_slice(&vip[12..]);
            ip[22..24].copy_from_slice(&80_u16.to_be_bytes());
        }
        let mut frame = Self { buffer, start: HEADROOM, end: HEADROOM + len };
        frame.reset(kind, dst, len, 0);
        frame
    }

    /// Makes it the next frame of flow number `flow`, as it came from the wire.
    pub(crate) fn reset(&mut self, kind: Kind, dst: MacAddr, len: usize, flow: u32) {
        (self.start, self.end) = (HEADROOM, HEADROOM + len);
        let bytes = self.bytes_mut();
        bytes[..6].copy_from_slice(dst.as_bytes());
        bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        let ether_type: [u8; 2] = if kind.is_ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        bytes[12..14].copy_from_slice(&ether_type);
        let [high, mid, low, last] = flow.to_be_bytes();
        let ip = &mut bytes[ETHERNET..];
        if kind.is_ipv6 {
            ip[20..24].copy_from_slice(&[1, high, mid, low]);
            ip[40..42].copy_from_slice(&[0x80 | last >> 1, last]);
        } else {
            ip[12..16].copy_from_slice(&[11, high, mid, low]);
            ip[20..22].copy_from_slice(&[0x80 | last >> 1, last]);
            ip[10..12].fill(0);
            let checksum = Checksum::of(&ip[..20]);
            ip[10..12].copy_from_slice(checksum.as_bytes());
        }
    }
}
