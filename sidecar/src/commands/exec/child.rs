//! The command as a process: the descriptors and limits that it inherits, and the orphans that it leaves behind.

use std::ffi::OsStr;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::host::children;
use crate::net::sockets;

/// Starts the command as it would have started without the sidecar.
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
    let child = children::without_ambient_capabilities(|| command.spawn())?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        // The proxy raises its own limit of descriptors; the application gets the limit that it would have had.
        if let Err(e) = rustix::process::prlimit(Some(pid), Resource::Nofile, limit) {
            tracing::debug!("the command's limit of open files stays raised: {e}");
        }
        reap_orphans(pid);
    }
    Ok(child)
}

/// Adopts orphaned descendants of the command: otherwise the machine's init would. To be called before there is a command,
/// whose first children may be orphans at once.
fn adopt_orphans() {
    // Any process id means "yes" (PR_SET_CHILD_SUBREAPER).
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!("orphans go elsewhere: {e}");
    }
}

/// Reaps orphaned processes, which is the duty of process 1 of a container.
fn reap_orphans(command: Pid) {
    let Ok(mut ended) = signal(SignalKind::child()) else { return };
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            let orphans = children::all().filter(|child| *child != command);
            children::others(orphans.filter_map(|orphan| u32::try_from(orphan.as_raw_pid()).ok()), |orphan| {
                // A process that still runs is reaped when it has ended.
                let pid = i32::try_from(orphan).ok().and_then(Pid::from_raw);
                let _ = rustix::process::waitpid(pid, WaitOptions::NOHANG);
            });
        }
    });
}
