//! Pools of frame buffers.

use std::{
    ffi::{CString, c_int},
    ptr::NonNull,
    sync::PoisonError,
};

use arrayvec::ArrayVec;
use dpdk_sys as sys;
use thiserror::Error;

use crate::{eal::Eal, error::CallError, mbuf::Mbuf};

/// How many bytes are free in front of a frame that was just received or allocated.
pub const HEADROOM_BYTES: u16 = sys::SHIM_HEADROOM;

/// What a pool is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Unique in the process; at most 25 bytes.
    pub name: String,
    /// Buffers in it. 2ⁿ − 1 wastes no memory.
    pub count: u32,
    /// Buffers that each thread keeps to itself: at most 512, and at most two thirds of `count`.
    pub cache: u32,
    /// Bytes a buffer, [`HEADROOM_BYTES`] included.
    pub data_room: u16,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { name: "frames".to_owned(), count: 16_383, cache: 256, data_room: 2048 + 128 }
    }
}

/// A pool cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The name cannot be a C string.
    #[error("the pool name {0:?} contains a zero byte")]
    Name(String),
    /// A port with fast free is in use, which allows for one pool only.
    #[error("there can be no second pool, because a port uses fast free")]
    OnlyOne,
    /// EAL says no.
    #[error("pool {name:?} of {count} buffers: {error}")]
    Create {
        /// The pool's name.
        name: String,
        /// The buffers asked for.
        count: u32,
        /// Why not.
        error: CallError,
    },
}

/// Keeps the promise that a port with fast free makes to its driver: all frames are of one pool.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    made: u32,
    only_one: bool,
}

impl Pools {
    fn may_grow(&self) -> bool {
        self.made == 0 || !self.only_one
    }

    /// Allows for one pool at most from now on. False, if there are more already.
    pub(crate) fn keep_to_one(&mut self) -> bool {
        self.only_one |= self.made <= 1;
        self.only_one
    }
}

/// A pool of frame buffers, in the memory that EAL reserved.
///
/// A handle: copies are the same pool. A pool is there until the process ends, so that no
/// [`Mbuf`] can outlive its own; make few.
#[derive(Clone, Copy, Debug)]
pub struct MbufPool {
    raw: NonNull<sys::rte_mempool>,
    capacity: u32,
    data_room: u16,
}

// SAFETY: a mempool's operations may be called from any thread at any time (rte_mempool.h); its
// per-thread caches are used by threads that are known to EAL, each its own.
unsafe impl Send for MbufPool {}
// SAFETY: as above.
unsafe impl Sync for MbufPool {}

impl MbufPool {
    /// Makes a pool.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: most likely there is too little memory for it (`ENOMEM`, `ENOBUFS`), or the name is
    /// taken (`EEXIST`).
    pub fn create(eal: Eal, config: &PoolConfig) -> Result<Self, PoolError> {
        let name = CString::new(&*config.name).map_err(|_| PoolError::Name(config.name.clone()))?;
        let mut pools = eal.shared().pools.lock().unwrap_or_else(PoisonError::into_inner);
        if !pools.may_grow() {
            return Err(PoolError::OnlyOne);
        }
        let call = eal.call("rte_pktmbuf_pool_create");
        // SAFETY: `name` ends in a zero, and is copied.
        let raw = unsafe {
            sys::rte_pktmbuf_pool_create(
                name.as_ptr(),
                config.count,
                config.cache,
                0,
                config.data_room,
                sys::SOCKET_ID_ANY as c_int,
            )
        };
        let raw = call.non_null(raw).map_err(|error| PoolError::Create {
            name: config.name.clone(),
            count: config.count,
            error,
        })?;
        pools.made += 1;
        Ok(Self { raw, capacity: config.count, data_room: config.data_room })
    }

    /// An empty frame, with [`HEADROOM_BYTES`] in front. `None`, if the pool has none left.
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is never freed.
        let raw = unsafe { sys::shim_mbuf_alloc(self.raw.as_ptr()) };
        // SAFETY: the allocator's only reference, if there is one, is ours now.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Appends `count` empty frames to `burst`, or as many as fit; none at all if the pool has
    /// fewer left. Returns how many. One call.
    pub fn alloc_bulk<const N: usize>(&self, count: usize, burst: &mut ArrayVec<Mbuf, N>) -> usize {
        let had = burst.len();
        let count = u16::try_from(count.min(burst.remaining_capacity())).unwrap_or(u16::MAX);
        // SAFETY: `had` is within the buffer's capacity.
        let spare = unsafe { burst.as_mut_ptr().add(had) };
        // SAFETY:
        // - The pool is never freed.
        // - `spare` has room for `count` pointers: an `Mbuf` is one.
        let ret =
            unsafe { sys::shim_mbuf_alloc_bulk(self.raw.as_ptr(), spare.cast(), u32::from(count)) };
        if ret != 0 {
            return 0;
        }
        // SAFETY: the first `count` slots were written with non-null buffers whose only references
        // are ours.
        unsafe { burst.set_len(had + usize::from(count)) };
        usize::from(count)
    }

    /// Buffers that nobody holds. Exact when no other thread allocates or frees meanwhile.
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is never freed.
        unsafe { sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// Buffers in all.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes a buffer, [`HEADROOM_BYTES`] included.
    #[must_use]
    pub fn data_room(&self) -> u16 {
        self.data_room
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::Pools;

    #[test]
    fn one_pool_stays_one() {
        let mut pools = Pools::default();
        assert!(pools.keep_to_one() && pools.may_grow());
        pools.made = 1;
        assert!(pools.keep_to_one() && !pools.may_grow());
    }

    #[test]
    fn several_pools_stay_several() {
        let mut pools = Pools { made: 2, ..Pools::default() };
        assert!(!pools.keep_to_one() && pools.may_grow());
    }
}
