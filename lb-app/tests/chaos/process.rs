//! What processes with thousands of connections need.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;

/// On the thread that it is used on.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll")
}

/// Each connection is an open file.
pub(crate) fn allow_open_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("is known");
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).expect("may be raised so far");
}
