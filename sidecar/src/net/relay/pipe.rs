//! Pipes for splice(2), by which the kernel moves bytes between two sockets without copying them to user space.
//!
//! A pipe of 1 MiB halves the cost of the default 64 KiB, but an ordinary user's pipes may hold 64 MiB in all (pipe(7),
//! `pipe-user-pages-soft`), shared with all processes of that user. So a flow holds a pipe only while bytes are in it, few
//! pipes are large and are reused first, and where no pipe is available bytes are copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

const LARGE: usize = 1024 * 1024;
const USUAL: usize = 64 * 1024;
/// Large pipes of this process: a quarter of its user's limit.
const MAX_LARGE: usize = 16;
/// All pipes of this process.
const MAX_PIPES: usize = 256;
/// Empty pipes that a worker keeps.
const MAX_SPARE: usize = 16;
/// How long no pipe is tried for after the system gave a shrunk one.
const QUOTA_PAUSE_S: u64 = 10;

static ALL_PIPES: AtomicUsize = AtomicUsize::new(0);
static LARGE_PIPES: AtomicUsize = AtomicUsize::new(0);
/// Unix seconds until which the user's quota is taken to be used up.
static QUOTA_USED_UNTIL: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Large ones at the end.
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe whose two ends belong to this process.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
    filled: usize,
}

impl Pipe {
    /// An empty pipe; `None`: there are enough, or the system gives no more.
    pub(super) fn take() -> Option<Pipe> {
        SPARE.with_borrow_mut(Vec::pop).or_else(Pipe::make)
    }

    /// Empty ones that this thread keeps.
    #[cfg(test)]
    pub(super) fn spare() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    fn make() -> Option<Pipe> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if QUOTA_USED_UNTIL.load(Relaxed) > now {
            return None;
        }
        if ALL_PIPES.fetch_add(1, Relaxed) >= MAX_PIPES {
            ALL_PIPES.fetch_sub(1, Relaxed);
            return None;
        }
        let made = Pipe::sized();
        if made.is_none() {
            ALL_PIPES.fetch_sub(1, Relaxed);
            QUOTA_USED_UNTIL.store(now + QUOTA_PAUSE_S, Relaxed);
        }
        made
    }

    fn sized() -> Option<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let mut size = fcntl_getpipe_size(&write).ok()?;
        // Beyond the quota pipes come with one page or two.
        if size < USUAL {
            return None;
        }
        if LARGE_PIPES.fetch_add(1, Relaxed) < MAX_LARGE && fcntl_setpipe_size(&write, LARGE).is_ok() {
            size = LARGE;
        } else {
            LARGE_PIPES.fetch_sub(1, Relaxed);
        }
        Some(Pipe { read, write, size, filled: 0 })
    }

    /// Bytes in it.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves the bytes that are ready from `from` into this pipe, which is empty. 0: the end.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing yet.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        self.filled = splice(from, None, &self.write, None, self.size, flags)?;
        Ok(self.filled)
    }

    /// Moves bytes from this pipe to `to`.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none now.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let n = splice(&self.read, None, to, None, self.filled, flags)?;
        self.filled -= n.min(self.filled);
        Ok(n)
    }

    /// Keeps an empty pipe for the next flow of this thread.
    pub(super) fn give_back(self) {
        if self.filled > 0 {
            return;
        }
        SPARE.with_borrow_mut(|spare| {
            if spare.len() >= MAX_SPARE {
                return;
            }
            match self.size {
                LARGE => spare.push(self),
                _ => spare.insert(0, self),
            }
        });
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        ALL_PIPES.fetch_sub(1, Relaxed);
        if self.size == LARGE {
            LARGE_PIPES.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pipe_is_reused_after_a_transfer() {
        let (mut a, from) = UnixStream::pair().unwrap();
        let (to, mut b) = UnixStream::pair().unwrap();
        a.write_all(b"hello").unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 5);
        assert_eq!((pipe.drain(&to).unwrap(), pipe.filled()), (5, 0));
        let mut got = [0; 5];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        pipe.give_back();
        assert_eq!(Pipe::spare(), 1);
        drop(a);
        assert_eq!(Pipe::take().unwrap().fill(&from).unwrap(), 0);
    }

    #[test]
    fn a_pipe_with_bytes_is_not_kept() {
        let (mut a, from) = UnixStream::pair().unwrap();
        a.write_all(b"secret").unwrap();
        let mut pipe = Pipe::take().unwrap();
        pipe.fill(&from).unwrap();
        pipe.give_back();
        assert_eq!(Pipe::spare(), 0);
    }
}
