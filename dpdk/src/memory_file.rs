//! Memory that outlives the process: a file, mapped and shared.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use nix::fcntl::posix_fallocate;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// Maps a file's first `words * 8` bytes for good; the file is made that long, and what is new of it
/// is zero. Other processes may map it as well.
///
/// Nobody may make the file shorter afterwards: who then touches what is gone gets a SIGBUS, which
/// ends the process. That is why such a file belongs into a directory that is ours alone.
///
/// # Errors
/// What the kernel says: there may be no room for it, above all.
pub fn map_words(file: &File, words: usize) -> io::Result<&'static [AtomicU64]> {
    let bytes = words.checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new);
    let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
    let length = i64::try_from(bytes.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Room for all of it now: where the file system has none later, a write ends the process.
    posix_fallocate(file, 0, length)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let place = reserve(bytes)?;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    // SAFETY: what is mapped there has been reserved for this, and nobody knows of it.
    let start = unsafe { mmap(Some(place), bytes, protection, flags, file, 0) }?;
    // What is looked up at random waits half as long for memory in huge pages. Where there can be none,
    // because of the file system or the kernel (before 6.1), it is as good without.
    // SAFETY: the mapping is ours, and its content stays as it is.
    let _ = unsafe { libc::madvise(start.as_ptr(), bytes.get(), libc::MADV_COLLAPSE) };
    // SAFETY: the mapping has `words` words, begins on a page, so it is aligned, and is never taken
    // away. Every bit pattern is an `AtomicU64`, which may be shared and changed, by other processes
    // as well: nobody in safe code has the memory as anything else.
    Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<AtomicU64>(), words) })
}

/// Addresses for so many bytes, which begin where a huge page can.
fn reserve(bytes: NonZeroUsize) -> io::Result<NonZeroUsize> {
    const HUGE_PAGE: NonZeroUsize = NonZeroUsize::new(2 << 20).unwrap();
    let more = bytes.checked_add(HUGE_PAGE.get()).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing that is ours.
    let start = unsafe { mmap_anonymous(None, more, ProtFlags::PROT_NONE, flags) }?;
    let aligned = start.addr().get().next_multiple_of(HUGE_PAGE.get());
    Ok(NonZeroUsize::new(aligned).ok_or(io::ErrorKind::OutOfMemory)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_writes_another_reads() {
        let file = tempfile::tempfile().unwrap();
        let one = map_words(&file, 1000).unwrap();
        assert!(one.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        one[999].store(7, Ordering::Relaxed);
        let other = map_words(&file, 1000).unwrap();
        assert_ne!(one.as_ptr(), other.as_ptr());
        assert_eq!(other[999].load(Ordering::Relaxed), 7);
        assert_eq!(file.metadata().unwrap().len(), 8000);
        assert!(map_words(&file, 0).is_err());
        let read_only = File::open("/etc/hostname").unwrap();
        assert!(map_words(&read_only, 1).is_err());
    }

    #[test]
    fn it_begins_where_a_huge_page_can() {
        const WORDS: usize = 1 << 20;
        for words in [1, WORDS, WORDS + 7] {
            let memory = map_words(&tempfile::tempfile().unwrap(), words).unwrap();
            assert_eq!(memory.as_ptr().addr() % (2 << 20), 0);
            memory.last().unwrap().store(7, Ordering::Relaxed);
        }
    }
}
