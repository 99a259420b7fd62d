//! Hot restart, as Envoy's: a sidecar starts its successor, hands it the listening sockets, and finishes its connections while
//! the successor accepts all new ones.
//!
//! The successor's standard input is a Unix socket to its predecessor. The listening sockets and the claims on ports come over it
//! (SCM_RIGHTS, unix(7)); then the successor reports that it is prepared, and the predecessor gives up the duties of one process
//! alone ([`crate::commands::run::Sidecar::hand_over`]) and lets it serve. If the successor fails before that, nothing changes.
//!
//! systemd learns the new main process by sd_notify(3). Other supervisors know the first process by its id: that process stays;
//! after its connections have ended it passes signals on and exits as its successors did ([`follow`]). The socket stays
//! open as long as the first process lives, so that a successor does not outlive it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, WaitOptions};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use crate::host::children;
use crate::host::claim;
use crate::host::notify;
use crate::net::pod;
use crate::net::sockets::{self, Shared};

/// Longest time in which a successor must be prepared.
const PREPARATION: Duration = Duration::from_secs(20);
/// Longest time in which a message of the other side must come that it sends at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Messages to a successor, one byte before each descriptor.
mod tag {
    pub(super) const SOCKET: u8 = b's';
    /// A socket that the supervisor keeps too.
    pub(super) const KEPT: u8 = b'k';
    pub(super) const CLAIM: u8 = b'c';
    pub(super) const LIFELINE: u8 = b'l';
    pub(super) const END: u8 = b'e';
    /// No descriptor: the successor serves from now on.
    pub(super) const GO: u8 = b'g';
    /// Of the successor: it is prepared.
    pub(super) const PREPARED: u8 = b'p';
}

/// The way to the predecessor, until it has handed over.
static PREDECESSOR: Mutex<Option<UnixStream>> = Mutex::new(None);
/// Ends with the first process of the line.
static LIFELINE: Mutex<Option<UnixStream>> = Mutex::new(None);

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process was started by a predecessor.
fn is_successor() -> bool {
    // The variable alone could be inherited by any descendant.
    std::env::var(sockets::HOT_RESTART).is_ok_and(|id| id.parse() == Ok(parent_id())) || lock(&LIFELINE).is_some()
}

/// Whether sockets and duties are still those of a predecessor.
pub fn has_predecessor() -> bool {
    lock(&PREDECESSOR).is_some()
}

/// Takes the sockets that a predecessor hands over, where there is one. To be called before any socket is opened.
///
/// # Errors
/// When the predecessor ends meanwhile.
pub fn take_over() -> Result<()> {
    if !is_successor() {
        return Ok(());
    }
    let inherited = io::stdin().as_fd().try_clone_to_owned().context("no standard input")?;
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot replace the standard input")?;
    let mut stream = UnixStream::from(inherited);
    stream.set_read_timeout(Some(AT_ONCE))?;
    let context = "the predecessor handed over less than it promised";
    loop {
        let mut tag = [0];
        stream.read_exact(&mut tag).context(context)?;
        if tag[0] == tag::END {
            break;
        }
        let descriptor = pod::receive(&stream).context(context)?.context(context)?;
        match tag[0] {
            tag::SOCKET => sockets::adopt_shared(descriptor, false)?,
            tag::KEPT => sockets::adopt_shared(descriptor, true)?,
            tag::CLAIM => claim::adopt(UnixListener::from(descriptor)),
            tag::LIFELINE => *lock(&LIFELINE) = Some(descriptor.into()),
            other => bail!("the predecessor has another version: unknown message {other}"),
        }
    }
    lock(&LIFELINE).get_or_insert(stream.try_clone()?);
    *lock(&PREDECESSOR) = Some(stream);
    sockets::wait_for_turn();
    Ok(())
}

/// Reports to the predecessor that this process is prepared, and waits until it has given up its duties.
///
/// # Errors
/// If the predecessor ends meanwhile or keeps serving.
pub async fn succeed() -> Result<()> {
    let Some(stream) = lock(&PREDECESSOR).take() else { return Ok(()) };
    let exchange = move || -> io::Result<u8> {
        let mut answer = [0];
        (&stream).write_all(&[tag::PREPARED])?;
        (&stream).read_exact(&mut answer)?;
        Ok(answer[0])
    };
    let answer = tokio::task::spawn_blocking(exchange).await?.context("the predecessor did not hand over")?;
    ensure!(answer == tag::GO, "the predecessor has another version: unknown message {answer}");
    if !notify::is_supervised() {
        end_with_first()?;
    }
    Ok(())
}

/// Ends this process when the first of its line is killed: its supervisor takes the whole line for dead then.
fn end_with_first() -> Result<()> {
    let Some(lifeline) = lock(&LIFELINE).as_ref().map(UnixStream::try_clone).transpose()? else { return Ok(()) };
    lifeline.set_nonblocking(true)?;
    let mut lifeline = tokio::net::UnixStream::from_std(lifeline)?;
    tokio::spawn(async move {
        // Nothing is ever sent.
        let _ = lifeline.read(&mut [0]).await;
        eprintln!("weft-sidecar: the process that the supervisor started was killed, and its successor ends with it");
        std::process::exit(1);
    });
    Ok(())
}

/// A sidecar that was started in the place of this one.
#[derive(Debug)]
pub struct Successor {
    process: Child,
    /// Open as long as this process lives.
    stream: UnixStream,
}

/// Starts a successor, with this process's own command line and environment, and waits until it is prepared.
///
/// # Errors
/// When it is not; it is ended then.
pub async fn start(shared: Vec<Shared>, claims: Vec<OwnedFd>) -> Result<Successor> {
    let (stream, theirs) = UnixStream::pair()?;
    let mut command = tokio::process::Command::new(program()?);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::from(OwnedFd::from(theirs)));
    for variable in sockets::VARIABLES {
        command.env_remove(variable);
    }
    command.env(sockets::HOT_RESTART, std::process::id().to_string());
    let process = command.spawn().context("cannot start the successor")?;
    // It holds the successor's end.
    drop(command);
    tracing::info!(pid = process.id(), "started a successor");
    let mut successor = Successor { process, stream };
    let prepared = async {
        successor.give(shared, claims).context("cannot hand the sockets over")?;
        successor.prepared().await
    };
    let prepared = prepared.await;
    if prepared.is_err() {
        // It may have ended by itself.
        let _ = successor.process.start_kill();
        let _ = successor.process.wait().await;
    }
    prepared.map(|()| successor)
}

/// The program to start: where it was found at first, as an upgrade has put the next version there.
fn program() -> Result<OsString> {
    let first = std::env::args_os().next().unwrap_or_default();
    if first.as_encoded_bytes().contains(&b'/') {
        return Ok(first);
    }
    let running = std::env::current_exe().context("cannot find the program")?;
    let path = running.as_os_str().to_string_lossy();
    // The kernel's suffix for a program whose file was replaced.
    Ok(path.strip_suffix(" (deleted)").map_or_else(|| running.clone(), PathBuf::from).into())
}

impl Successor {
    fn give(&self, shared: Vec<Shared>, claims: Vec<OwnedFd>) -> io::Result<()> {
        let give = |tag: u8, descriptor: OwnedFd| {
            (&self.stream).write_all(&[tag])?;
            pod::send(&self.stream, Some(descriptor.as_fd()))
        };
        for Shared { socket, kept } in shared {
            give(if kept { tag::KEPT } else { tag::SOCKET }, socket.into())?;
        }
        claims.into_iter().try_for_each(|claim| give(tag::CLAIM, claim))?;
        let lifeline = lock(&LIFELINE).as_ref().map(UnixStream::try_clone).transpose()?;
        lifeline.map_or(Ok(()), |lifeline| give(tag::LIFELINE, lifeline.into()))?;
        (&self.stream).write_all(&[tag::END])
    }

    async fn prepared(&mut self) -> Result<()> {
        let stream = self.stream.try_clone()?;
        stream.set_read_timeout(Some(PREPARATION))?;
        let read = move || -> io::Result<u8> {
            let mut answer = [0];
            (&stream).read_exact(&mut answer)?;
            Ok(answer[0])
        };
        tokio::select! {
            read = tokio::task::spawn_blocking(read) => {
                let answer = read?.context("the successor is not prepared (its log has the cause)")?;
                ensure!(answer == tag::PREPARED, "the successor has another version: unknown message {answer}");
                Ok(())
            }
            status = self.process.wait() => bail!("the successor ended: {}", status?),
        }
    }

    /// Lets the successor serve.
    ///
    /// # Errors
    /// If it has ended.
    pub fn go(&self) -> Result<()> {
        (&self.stream).write_all(&[tag::GO]).context("the successor ended in the moment of the hand-over")
    }

    /// Waits until neither it nor a successor of its own runs any more. Gives its exit code.
    pub async fn wait(&mut self) -> ExitCode {
        let code = self.process.wait().await.map_or(1, code_of);
        while children::all().next().is_some() {
            // Those that followed are not this process's to wait for by a handle.
            tokio::time::sleep(Duration::from_secs(1)).await;
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        }
        ExitCode::from(code)
    }

    /// The end of this process after its own connections have ended: it exits under systemd, which knows the successor, and where
    /// a first process follows both; else it becomes the process that the supervisor watches.
    pub fn end(self) -> End {
        if notify::is_supervised() || is_successor() { End::Exit(ExitCode::SUCCESS) } else { End::Follow(self) }
    }

    /// Executes the program again, as `follow`.
    ///
    /// # Errors
    /// If it cannot be executed.
    pub fn become_follower(self) -> Result<ExitCode> {
        rustix::io::fcntl_setfd(&self.stream, rustix::io::FdFlags::empty())?;
        let failed = std::process::Command::new(program()?).arg("follow").exec();
        Err(failed).context("cannot execute the program again")
    }
}

/// How a process ends.
pub enum End {
    /// It exits.
    Exit(ExitCode),
    /// It becomes a follower of this successor ([`Successor::become_follower`]), once its log is written: execve(2) ends the
    /// thread that writes it.
    Follow(Successor),
}

/// Makes later successors children of this process when the one between ends.
pub fn adopt_successors() {
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!("a later successor will not be followed: {e}");
    }
}

/// Passes a signal on to the successor.
pub fn pass_on(signal: Signal) {
    for child in children::all() {
        // A child that has just ended needs no signal.
        let _ = rustix::process::kill_process(child, signal);
    }
}

fn code_of(status: std::process::ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// `weft-sidecar follow`: represents its children to a supervisor that knows this process alone. It passes signals on, and its
/// exit code is that of the child that ends last.
///
/// # Errors
/// If signals cannot be received.
pub async fn follow() -> Result<ExitCode> {
    adopt_successors();
    let mut ended = signal(SignalKind::child())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut last = 1;
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    let signal = status.terminating_signal().map(|signal| 128 + signal);
                    last = status.exit_status().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                }
                Ok(None) => break,
                // No child is left.
                Err(_) => return Ok(ExitCode::from(last)),
            }
        }
        tokio::select! {
            _ = ended.recv() => {}
            _ = term.recv() => pass_on(Signal::TERM),
            _ = interrupt.recv() => pass_on(Signal::INT),
            _ = hangup.recv() => pass_on(Signal::HUP),
        }
    }
}
