//! Faults on demand, so that tests see what a broken barfit does to a guest. Debug builds only: in a release build
//! nothing of it is there.
//!
//! `/run/barfit/fault` holds one line `WHERE WHAT`: WHERE is an operation of the hook, or `shim`; WHAT is `panic`,
//! `abort` (ended by a signal) or `hang` (waits for a minute, as a read of a dead device would).

use std::path::Path;

/// Where it is, below the root directory.
#[cfg(debug_assertions)]
const FILE: &str = "run/barfit/fault";

/// Whether there is such a file: what then fails does so under the hook's watch, as what really blocks would.
#[cfg(debug_assertions)]
pub(super) fn is_asked_for(root: &Path) -> bool {
    root.join(FILE).exists()
}

#[cfg(not(debug_assertions))]
pub(super) fn is_asked_for(_: &Path) -> bool {
    false
}

/// Fails as the file says, if it speaks of this place.
#[cfg(debug_assertions)]
pub(super) fn inject(root: &Path, place: &str) {
    let line = std::fs::read_to_string(root.join(FILE)).unwrap_or_default();
    match line.trim().split_once(' ') {
        Some((at, "panic")) if at == place => panic!("a fault was asked for at {place}"),
        Some((at, "abort")) if at == place => std::process::abort(),
        Some((at, "hang")) if at == place => std::thread::sleep(std::time::Duration::from_secs(60)),
        _ => {}
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn inject(_: &Path, _: &str) {}
