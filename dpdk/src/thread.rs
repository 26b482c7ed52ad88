//! Threads of the application that work with frames.

use std::marker::PhantomData;

use dpdk_sys as sys;
use thiserror::Error;

use crate::{eal::Eal, error::CallError};

/// The calling thread is known to EAL, until this is dropped.
///
/// It then has a cache of its own in every pool: without it, each allocation and each release goes
/// through the pool's shared ring. That is all; everything works, slower, without it.
#[derive(Debug)]
pub struct ThreadRegistration {
    _not_send: PhantomData<*const ()>,
}

/// A thread cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ThreadError {
    /// It is registered, or it is the one that started EAL.
    #[error("this thread is known to DPDK already")]
    RegisteredBefore,
    /// EAL says no: there are at most 128 such threads.
    #[error(transparent)]
    Register(#[from] CallError),
}

impl Eal {
    /// Makes the calling thread known to EAL. The thread that started EAL is, already.
    ///
    /// # Errors
    ///
    /// [`ThreadError`], if it is registered, or if there are too many.
    pub fn register_thread(&self) -> Result<ThreadRegistration, ThreadError> {
        // SAFETY: reads a thread-local variable.
        let lcore = unsafe { sys::shim_lcore_id() };
        if lcore != sys::SHIM_LCORE_NONE {
            return Err(ThreadError::RegisteredBefore);
        }
        let call = self.call("rte_thread_register");
        // SAFETY: EAL runs, and the thread has no lcore id that would be lost.
        let ret = unsafe { sys::rte_thread_register() };
        call.rte_errno(ret)?;
        Ok(ThreadRegistration { _not_send: PhantomData })
    }
}

impl Drop for ThreadRegistration {
    fn drop(&mut self) {
        // SAFETY: this is the thread that was registered, as the type is not `Send`.
        unsafe { sys::rte_thread_unregister() };
    }
}
