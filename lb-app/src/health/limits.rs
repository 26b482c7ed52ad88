//! How many checks may be under way.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Checks under way, at most: 10,000 backends that do not answer, with the usual times, are 5,000.
const UNDER_WAY_MAX: u64 = 8192;
/// Open files that are for everything else.
const OTHER_FILES: u64 = 512;

/// The limit that open files allow, after that was raised as far as it may be. systemd starts
/// services with 1024, which is for programs that use `select`, and a hard limit far above.
pub(super) fn checks_under_way_max() -> usize {
    let wanted = UNDER_WAY_MAX + OTHER_FILES;
    let files = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < wanted && hard > soft => {
            let raised = wanted.min(hard);
            match setrlimit(Resource::RLIMIT_NOFILE, raised, hard) {
                Ok(()) => raised,
                Err(_) => soft,
            }
        }
        Ok((soft, _)) => soft,
        Err(_) => OTHER_FILES,
    };
    if files < wanted {
        warn!(
            "at most {files} open files are allowed (`ulimit -Hn`): fewer checks can be under way"
        );
    }
    usize::try_from(of_files(files)).unwrap_or(usize::MAX)
}

fn of_files(files: u64) -> u64 {
    files.saturating_sub(OTHER_FILES).max(files / 4).clamp(1, UNDER_WAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_left_for_others() {
        assert_eq!(of_files(1 << 20), UNDER_WAY_MAX);
        assert_eq!(of_files(1024), 512);
        assert_eq!(of_files(512), 128);
        assert_eq!(of_files(0), 1);
    }
}
