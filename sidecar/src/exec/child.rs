//! The command as a process: what it is not to inherit, and what it leaves behind.

use std::ffi::OsStr;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions};
use rustix::thread::{self, CapabilitySet};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::{children, sockets};

/// Starts the command as it would have started without us.
pub(super) fn spawn(command: &[impl AsRef<OsStr>], limit: Rlimit) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    // A group of its own: control-C in a terminal goes to a whole group, and the command would stop before the drain.
    command.args(arguments).process_group(0);
    // They name this process, and sockets that the command does not have.
    for variable in sockets::VARIABLES {
        command.env_remove(variable);
    }
    adopt_orphans();
    let child = without_ambient_capabilities(|| command.spawn())?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        // The proxy takes all the descriptors it may have; the application gets what it would have had without us.
        if let Err(e) = rustix::process::prlimit(Some(pid), Resource::Nofile, limit) {
            tracing::debug!("the command's limit of open files stays raised: {e}");
        }
        bury_orphans(pid);
    }
    Ok(child)
}

/// Ambient capabilities are what a program keeps through execve(2) without being root (capabilities(7)): they were given
/// to the proxy, CAP_NET_ADMIN so that it marks its sockets. An application that had it could mark its own, and go past
/// every policy.
pub(crate) fn without_ambient_capabilities<T>(act: impl FnOnce() -> T) -> T {
    let ours = CapabilitySet::all().iter().filter(|one| thread::capability_is_in_ambient_set(*one) == Ok(true));
    let ours: Vec<CapabilitySet> = ours.collect();
    if let Err(e) = thread::clear_ambient_capability_set() {
        // A kernel before 4.3 has none.
        tracing::debug!("ambient capabilities stay: {e}");
    }
    let done = act();
    // We need them again: `nft` is a program that we run.
    for one in ours {
        if let Err(e) = thread::configure_capability_in_ambient_set(one, true) {
            tracing::warn!("lost the ambient capability {one:?}: {e}");
        }
    }
    done
}

/// Whatever the command's children leave behind becomes ours: elsewhere it would be the machine's. To be called before
/// there is a command, whose first children may be orphans at once.
fn adopt_orphans() {
    // Any process id means "yes" (PR_SET_CHILD_SUBREAPER).
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!("orphans go elsewhere: {e}");
    }
}

/// Waits for orphans that have ended, which as process 1 of a container is our duty.
fn bury_orphans(command: Pid) {
    let Ok(mut ended) = signal(SignalKind::child()) else { return };
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            let orphans = children().filter(|child| *child != command);
            children::others(orphans.filter_map(|orphan| u32::try_from(orphan.as_raw_pid()).ok()), |orphan| {
                // One that still runs is asked about again when it has ended.
                let pid = i32::try_from(orphan).ok().and_then(Pid::from_raw);
                let _ = rustix::process::waitpid(pid, WaitOptions::NOHANG);
            });
        }
    });
}

/// Our children, as the kernel lists them. A wait for any child would take the command's status from who waits for it.
pub(crate) fn children() -> impl Iterator<Item = Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let all: Vec<Pid> = lists
        .flat_map(|list| list.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect();
    all.into_iter()
}
