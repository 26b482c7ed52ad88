//! One frame. The only file that knows what an `rte_mbuf` looks like.

use std::{fmt, mem::offset_of, ptr::NonNull, slice};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

/// The first cache line of an `rte_mbuf`, by the names that DPDK gives its fields.
#[repr(C)]
struct Header {
    buf_addr: *mut u8,
    buf_iova: u64,
    data_off: u16,
    refcnt: u16,
    nb_segs: u16,
    port: u16,
    ol_flags: u64,
    packet_type: u32,
    pkt_len: u32,
    data_len: u16,
    vlan_tci: u16,
    hash_rss: u32,
    hash_hi: u32,
    vlan_tci_outer: u16,
    buf_len: u16,
    pool: *mut sys::rte_mempool,
}

// They have been there since DPDK 18, and drivers rely on it; a release that moves one does not
// compile.
const _: () = {
    assert!(offset_of!(Header, buf_addr) == sys::SHIM_MBUF_BUF_ADDR as usize);
    assert!(offset_of!(Header, data_off) == sys::SHIM_MBUF_DATA_OFF as usize);
    assert!(offset_of!(Header, refcnt) == sys::SHIM_MBUF_REFCNT as usize);
    assert!(offset_of!(Header, nb_segs) == sys::SHIM_MBUF_NB_SEGS as usize);
    assert!(offset_of!(Header, port) == sys::SHIM_MBUF_PORT as usize);
    assert!(offset_of!(Header, ol_flags) == sys::SHIM_MBUF_OL_FLAGS as usize);
    assert!(offset_of!(Header, packet_type) == sys::SHIM_MBUF_PACKET_TYPE as usize);
    assert!(offset_of!(Header, pkt_len) == sys::SHIM_MBUF_PKT_LEN as usize);
    assert!(offset_of!(Header, data_len) == sys::SHIM_MBUF_DATA_LEN as usize);
    assert!(offset_of!(Header, vlan_tci) == sys::SHIM_MBUF_VLAN_TCI as usize);
    assert!(offset_of!(Header, hash_rss) == sys::SHIM_MBUF_RSS as usize);
    assert!(offset_of!(Header, buf_len) == sys::SHIM_MBUF_BUF_LEN as usize);
    assert!(offset_of!(Header, pool) == sys::SHIM_MBUF_POOL as usize);
    assert!((sys::SHIM_MBUF_TX_OFFLOAD as usize).is_multiple_of(align_of::<u64>()));
    assert!(size_of::<Header>() == 64);
    assert!(size_of::<Mbuf>() == size_of::<*mut sys::rte_mbuf>());
};

const UDP_HEADER_BYTES: u16 = 8;

/// What the device says about the checksum of the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpChecksum {
    /// Nothing: it did not look, or was not asked to, or looked inside a tunnel, or it is not IPv4.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
}

/// What a device says about checksums of IPv4 headers.
pub(crate) const CHECKED_IP: u64 =
    sys::SHIM_MBUF_RX_IP_CKSUM_MASK | sys::SHIM_MBUF_RX_OUTER_IP_CKSUM_BAD;

/// A frame in a buffer of an [`MbufPool`](crate::MbufPool). Dropping it gives the buffer back; to
/// drop many, [`free_bulk`] is cheaper.
///
/// Having an `Mbuf` tells you: nobody else reads or writes the frame, and the buffer is not freed.
/// It has one segment, unless more was received than fits one buffer: then the bytes here are those of
/// the first, and [`Mbuf::segments`] says so.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: the frame belongs to the `Mbuf` alone, and its buffer may be freed by any thread.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// 1. `raw` is a buffer of a pool that was made by `rte_pktmbuf_pool_create`.
    /// 2. Its reference count is 1, and this reference is the caller's to give away.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    /// The frame, or its first segment.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let header = self.header();
        let start = self.at(header.data_off);
        // SAFETY: `data_len` bytes from `start` are in the buffer, and nobody writes them while
        // `self` is borrowed.
        unsafe { slice::from_raw_parts(start, usize::from(header.data_len)) }
    }

    /// The frame, or its first segment.
    #[inline]
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.header().data_off, self.header().data_len);
        self.slice_mut(start, len)
    }

    /// Grows the frame by `count` bytes at its front and returns them; they hold whatever was
    /// there. `None`, if the headroom is smaller.
    #[inline]
    pub fn prepend(&mut self, count: u16) -> Option<&mut [u8]> {
        let header = self.header_mut();
        let start = header.data_off.checked_sub(count)?;
        header.data_off = start;
        header.data_len += count;
        header.pkt_len += u32::from(count);
        Some(self.slice_mut(start, count))
    }

    /// Takes `count` bytes off the frame's front. False, and nothing has changed, if the first
    /// segment has fewer.
    #[inline]
    #[must_use]
    pub fn trim_front(&mut self, count: u16) -> bool {
        let header = self.header_mut();
        let Some(left) = header.data_len.checked_sub(count) else { return false };
        header.data_off += count;
        header.data_len = left;
        header.pkt_len -= u32::from(count);
        true
    }

    /// Grows the frame by `count` bytes at its end and returns them; they hold whatever was there.
    /// `None`, if the buffer ends before that, or the frame has several segments.
    #[inline]
    pub fn append(&mut self, count: u16) -> Option<&mut [u8]> {
        let tailroom = self.tailroom();
        let header = self.header_mut();
        if count > tailroom || header.nb_segs != 1 {
            return None;
        }
        let start = header.data_off + header.data_len;
        header.data_len += count;
        header.pkt_len += u32::from(count);
        Some(self.slice_mut(start, count))
    }

    /// Shortens the frame to its first `len` bytes. False, and nothing has changed, if it is
    /// shorter than that, or has several segments.
    #[inline]
    #[must_use]
    pub fn truncate(&mut self, len: u16) -> bool {
        let header = self.header_mut();
        if len > header.data_len || header.nb_segs != 1 {
            return false;
        }
        header.data_len = len;
        header.pkt_len = u32::from(len);
        true
    }

    /// An empty frame from the same pool, with headroom. `None`, if the pool has none left.
    #[must_use]
    pub fn sibling(&self) -> Option<Self> {
        // SAFETY: the buffer's pool is never freed.
        let raw = unsafe { sys::shim_mbuf_alloc(self.header().pool) };
        // SAFETY: the allocator's only reference, if there is one, is ours now.
        NonNull::new(raw).map(|raw| unsafe { Self::from_raw(raw) })
    }

    /// How many bytes [`Mbuf::prepend`] could give.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> u16 {
        self.header().data_off
    }

    /// How many bytes [`Mbuf::append`] could give.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> u16 {
        let header = self.header();
        header.buf_len - header.data_off - header.data_len
    }

    /// How many buffers the frame lies in.
    #[inline]
    #[must_use]
    pub fn segments(&self) -> u16 {
        self.header().nb_segs
    }

    /// What the device says about the IPv4 header's checksum.
    #[inline]
    #[must_use]
    pub fn ip_checksum(&self) -> IpChecksum {
        let header = self.header();
        // The flags are then about the packet inside.
        if header.packet_type & sys::SHIM_PTYPE_TUNNEL_MASK != 0 {
            return IpChecksum::Unknown;
        }
        match header.ol_flags & CHECKED_IP {
            sys::SHIM_MBUF_RX_IP_CKSUM_GOOD => IpChecksum::Good,
            sys::SHIM_MBUF_RX_IP_CKSUM_BAD => IpChecksum::Bad,
            _ => IpChecksum::Unknown,
        }
    }

    /// Leaves the checksum of a UDP header over IPv6 to the device; it is `l2_len + l3_len` bytes
    /// behind the frame's beginning, and its checksum is the sum over the pseudo-header, not
    /// complemented. Only for frames that leave by a port that does so, see
    /// [`Port::completes_udp_checksums`](crate::Port::completes_udp_checksums). False, and nothing has
    /// changed, if the header is not in the first segment or is out of the device's reach.
    #[inline]
    #[must_use]
    pub fn leave_udp_checksum(&mut self, l2_len: u16, l3_len: u16) -> bool {
        let header = self.header_mut();
        let end = u32::from(l2_len) + u32::from(l3_len) + u32::from(UDP_HEADER_BYTES);
        if l2_len >> sys::SHIM_MBUF_L2_LEN_BITS != 0
            || l3_len >> sys::SHIM_MBUF_L3_LEN_BITS != 0
            || end > u32::from(header.data_len)
        {
            return false;
        }
        header.ol_flags =
            header.ol_flags & !sys::SHIM_MBUF_TX_ANY | sys::SHIM_MBUF_TX_UDP_OVER_IPV6;
        let lengths = u64::from(l2_len) << sys::SHIM_MBUF_L2_LEN_SHIFT
            | u64::from(l3_len) << sys::SHIM_MBUF_L3_LEN_SHIFT
            | u64::from(UDP_HEADER_BYTES) << sys::SHIM_MBUF_L4_LEN_SHIFT;
        // SAFETY: a field of the mbuf's, 64 bits in all releases, in its second cache line.
        let place = unsafe { self.0.cast::<u64>().byte_add(sys::SHIM_MBUF_TX_OFFLOAD as usize) };
        // SAFETY: as above; and it is ours alone.
        unsafe { place.write(lengths) };
        true
    }

    /// The hash by which the device chose the queue, if it says.
    #[inline]
    #[must_use]
    pub fn rss_hash(&self) -> Option<u32> {
        let header = self.header();
        (header.ol_flags & sys::SHIM_MBUF_RX_RSS_HASH != 0).then_some(header.hash_rss)
    }

    /// Starts loading what all methods here read. A hint; never waits.
    #[inline]
    pub fn prefetch_header(&self) {
        prefetch(self.0.as_ptr().cast());
    }

    /// Starts loading the frame's first 64 bytes. A hint, but reads the header.
    #[inline]
    pub fn prefetch_data(&self) {
        prefetch(self.at(self.header().data_off));
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: an mbuf begins with a `Header`, as asserted above, and is ours alone.
        unsafe { self.0.cast().as_ref() }
    }

    /// Invariant, which every user keeps: `data_off + data_len <= buf_len`.
    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as in `header`.
        unsafe { self.0.cast().as_mut() }
    }

    /// The address of the buffer's byte `offset`, which is at most its length.
    #[inline]
    fn at(&self, offset: u16) -> *mut u8 {
        let header = self.header();
        debug_assert!(offset <= header.buf_len);
        // SAFETY: the buffer is `buf_len` bytes, and every caller's `offset` is within.
        unsafe { header.buf_addr.add(usize::from(offset)) }
    }

    #[inline]
    fn slice_mut(&mut self, start: u16, len: u16) -> &mut [u8] {
        debug_assert!(start + len <= self.header().buf_len);
        let start = self.at(start);
        // SAFETY: `len` bytes from `start` are in the buffer, as every caller has checked, and are
        // borrowed as long as `self` is.
        unsafe { slice::from_raw_parts_mut(start, usize::from(len)) }
    }
}

impl AsRef<[u8]> for Mbuf {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf")
            .field("bytes", &self.bytes().len())
            .field("headroom", &self.headroom())
            .field("segments", &self.segments())
            .finish()
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and nobody uses it after this; pools are never freed.
        unsafe { sys::shim_mbuf_free(self.0.as_ptr()) };
    }
}

/// Frees all frames of `burst`. One call.
#[inline]
pub fn free_bulk<const N: usize>(burst: &mut ArrayVec<Mbuf, N>) {
    #[expect(clippy::cast_possible_truncation, reason = "an `ArrayVec` counts in 32 bits")]
    let count = burst.len() as u32;
    // SAFETY: 0 is within the capacity; what the array held is freed below.
    unsafe { burst.set_len(0) };
    // SAFETY: the first `count` slots hold references that are ours, and that nobody uses after
    // this: the array is empty.
    unsafe { sys::rte_pktmbuf_free_bulk(burst.as_mut_ptr().cast(), count) };
}

#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
