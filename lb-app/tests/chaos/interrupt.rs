//! Ctrl-C and SIGTERM end a run early, but not without cleaning up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::process::runtime;

/// The run is to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupted;

static WANTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// From now on a signal only asks for the end.
pub(crate) fn watch() {
    thread::spawn(|| {
        runtime().block_on(async {
            let mut interrupts = signal(SignalKind::interrupt()).expect("can be handled");
            let mut terminates = signal(SignalKind::terminate()).expect("can be handled");
            loop {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminates.recv() => {}
                }
                WANTED.store(true, Ordering::Relaxed);
            }
        });
    });
}

pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Sleeps for milliseconds, unless the run is to end.
pub(crate) fn pause(milliseconds: u64) -> Result<(), Interrupted> {
    sleep(Duration::from_millis(milliseconds))
}

/// Sleeps, unless the run is to end.
pub(crate) fn sleep(duration: Duration) -> Result<(), Interrupted> {
    let end = Instant::now() + duration;
    loop {
        if is_wanted() {
            return Err(Interrupted);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(LOOK));
    }
}
