//! Programs that the sidecar runs for itself. Under `exec` it also buries orphans, and must not bury these: whoever waits
//! for one would never learn how it ended.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

static OURS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<u32>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that is waited for; until this is dropped.
#[derive(Debug)]
pub struct Ours(Option<u32>);

impl Drop for Ours {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            ours().remove(&pid);
        }
    }
}

/// Starts a process of our own.
///
/// # Errors
/// When it cannot be started.
pub fn spawn<T>(spawn: impl FnOnce() -> io::Result<T>, id: impl FnOnce(&T) -> Option<u32>) -> io::Result<(T, Ours)> {
    // Held over both: one that ends at once is ours too.
    let mut all = ours();
    let child = spawn()?;
    let pid = id(&child);
    all.extend(pid);
    Ok((child, Ours(pid)))
}

/// Does something to those of `pids` that are not ours, while none becomes so.
pub fn others(pids: impl Iterator<Item = u32>, mut act: impl FnMut(u32)) {
    let all = ours();
    pids.filter(|pid| !all.contains(pid)).for_each(&mut act);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_left_alone_until_they_have_been_waited_for() {
        let (pid, ours) = spawn(|| Ok(4_000_000_001), |pid| Some(*pid)).unwrap();
        let seen = || {
            let mut seen = Vec::new();
            others([pid, 4_000_000_002].into_iter(), |pid| seen.push(pid));
            seen
        };
        assert_eq!(seen(), [4_000_000_002]);
        drop(ours);
        assert_eq!(seen(), [4_000_000_001, 4_000_000_002]);
    }
}
