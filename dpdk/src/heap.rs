//! The heap in huge pages.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Where glibc is told how its heap is to be.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Huge pages are asked for where memory is mapped (glibc 2.35; GNU C Library manual, "Memory Allocation
/// Tunables").
const HUGE: &str = "glibc.malloc.hugetlb";
/// They are asked for 2 MiB at a time: so all threads share the one heap that grows by as much, and a
/// service's table, of 8 KiB to 1 MiB, is a part of it, not mapped by itself. It grows by 16 MiB, so that threads
/// seldom wait for each other while the kernel makes room.
const ONE_HEAP: &str = concat!(
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33554432",
    ":glibc.malloc.top_pad=16777216",
);

/// Lets the kernel put the heap into huge pages, where it has some: what is looked up at random in large
/// tables then waits for half as much memory. glibc is told when a process starts, so the program begins
/// anew, as the same process; call this first. It returns when glibc has been told; and if the program
/// cannot begin anew: the heap is then in small pages.
pub fn ask_for_huge_pages() {
    let told = env::var(TUNABLES).unwrap_or_default();
    if told.contains(HUGE) {
        return; // whatever it is: somebody has chosen
    }
    let separator = if told.is_empty() { "" } else { ":" };
    let mut arguments = env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let tunables = format!("{told}{separator}{HUGE}=1:{ONE_HEAP}");
    let _ = again.args(arguments).env(TUNABLES, tunables).exec();
}
