//! The crate's only `unsafe`: asking for memory before it is needed.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{_MM_HINT_T0 as FIRST_CACHE, _MM_HINT_T1 as SECOND_CACHE};

#[cfg(not(target_arch = "x86_64"))]
const FIRST_CACHE: i32 = 0;
#[cfg(not(target_arch = "x86_64"))]
const SECOND_CACHE: i32 = 0;

/// Asks for the cache line of `*place`, to be read soon. A hint: it changes nothing but time.
#[inline(always)]
pub fn prefetch<T: ?Sized>(place: &T) {
    ask::<FIRST_CACHE, T>(place);
}

/// As [`prefetch`], where hardly any line is in a cache. It comes as near as the second cache: the first can
/// wait for few lines at a time (24 on Zen 4, 16 on recent Intel cores), and while they are on their way from
/// memory, lines that are near wait behind them.
#[inline(always)]
pub fn prefetch_far<T: ?Sized>(place: &T) {
    ask::<SECOND_CACHE, T>(place);
}

#[inline(always)]
fn ask<const HINT: i32, T: ?Sized>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not read, write or fault, whatever the address; SSE is part of x86-64.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<HINT>(core::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
