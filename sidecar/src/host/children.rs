//! Child processes of the sidecar. Under `exec` the sidecar reaps orphaned processes; it must not reap the programs that it
//! runs for itself, because their exit status would be lost to the code that waits for it.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;
use rustix::thread::{self, CapabilitySet};

static OURS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<u32>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that is waited for; until this is dropped.
#[derive(Debug)]
pub struct ChildGuard(Option<u32>);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            ours().remove(&pid);
        }
    }
}

/// Starts a process that belongs to the sidecar.
///
/// # Errors
/// If it cannot be started.
pub fn spawn<T>(
    spawn: impl FnOnce() -> io::Result<T>,
    id: impl FnOnce(&T) -> Option<u32>,
) -> io::Result<(T, ChildGuard)> {
    // Held over both steps: a process that exits at once is registered before it is reaped.
    let mut all = ours();
    let child = spawn()?;
    let pid = id(&child);
    all.extend(pid);
    Ok((child, ChildGuard(pid)))
}

/// Applies `act` to those of `pids` that do not belong to the sidecar; none is registered meanwhile.
pub fn others(pids: impl Iterator<Item = u32>, mut act: impl FnMut(u32)) {
    let all = ours();
    pids.filter(|pid| !all.contains(pid)).for_each(&mut act);
}

/// The child processes, as the kernel lists them. Waiting for any child instead would take the exit status of a command from
/// the code that waits for that command.
pub fn all() -> impl Iterator<Item = Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let all: Vec<Pid> = lists
        .flat_map(|list| list.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect();
    all.into_iter()
}

/// Runs `act` without ambient capabilities, which a program keeps through execve(2) without being root (capabilities(7)).
/// The proxy has CAP_NET_ADMIN to mark its sockets; an application with it could mark its own and bypass every policy.
pub fn without_ambient_capabilities<T>(act: impl FnOnce() -> T) -> T {
    let ours = CapabilitySet::all().iter().filter(|one| thread::capability_is_in_ambient_set(*one) == Ok(true));
    let ours: Vec<CapabilitySet> = ours.collect();
    if let Err(e) = thread::clear_ambient_capability_set() {
        // Kernels before 4.3 have no ambient capabilities.
        tracing::debug!("ambient capabilities stay: {e}");
    }
    let done = act();
    // The proxy needs them again: it runs `nft`.
    for one in ours {
        if let Err(e) = thread::configure_capability_in_ambient_set(one, true) {
            tracing::warn!("lost the ambient capability {one:?}: {e}");
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_child_processes_are_not_reaped_as_orphans() {
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
