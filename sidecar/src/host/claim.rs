//! Claims in one network namespace that end with the process, however it ends: names of abstract Unix sockets (unix(7)), which
//! the kernel keeps per network namespace and frees by itself. A lock file would be one for all namespaces and outlive a kill.
//!
//! Two sidecars in one namespace would receive each other's traffic: the redirection knows one pair of ports.
//! [`crate::commands::run`] claims the ports, and [`crate::commands::exec`] looks for their holder.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;

use crate::net::sockets;

/// Something that is claimed until this is dropped.
#[derive(Debug)]
pub struct Claim(UnixListener);

/// The process that holds a claim.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process, where that is in sight.
    pub process: Option<i32>,
    /// Its description of itself; empty: none.
    pub word: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("a process of another container"),
        }
    }
}

/// Claims of the predecessor, until they are claimed again.
static ADOPTED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Takes a claim that a predecessor hands over.
pub fn adopt(claim: UnixListener) {
    ADOPTED.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
}

fn adopted(name: &str) -> Option<UnixListener> {
    let mut all = ADOPTED.lock().unwrap_or_else(PoisonError::into_inner);
    let is = |claim: &UnixListener| {
        claim.local_addr().is_ok_and(|at| at.as_abstract_name().is_some_and(|found| found == name.as_bytes()))
    };
    let at = all.iter().position(is)?;
    Some(all.remove(at))
}

/// Claims `name`; `None`: another process holds it.
///
/// # Errors
/// If the system refuses for another reason.
pub fn claim(name: &str) -> Result<Option<Claim>> {
    if let Some(claim) = adopted(name) {
        return Ok(Some(Claim(claim)));
    }
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(listener) => Ok(Some(Claim(listener))),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot claim {name}")),
    }
}

/// The holder of `name`.
pub fn holder(name: &str) -> Option<Holder> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?;
    let process = rustix::net::sockopt::socket_peercred(&stream).ok().map(|found| found.pid.as_raw_nonzero().get());
    let mut word = String::new();
    // A holder without a description is a holder too.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1))).and_then(|()| stream.read_to_string(&mut word));
    Some(Holder { process, word })
}

impl Claim {
    /// Keeps the claim as long as the process lives, and sends `word` to processes that connect.
    ///
    /// # Errors
    /// If the runtime cannot take the socket.
    pub fn keep(self, word: String) -> Result<()> {
        self.0.set_nonblocking(true)?;
        let again = self.0.try_clone()?;
        let listener = tokio::net::UnixListener::from_std(self.0)?;
        tokio::spawn(sockets::in_turn(async move {
            // A process that asks learns the id of the one that listened last (unix(7), SO_PEERCRED).
            let _ = rustix::net::listen(&again, 16);
            loop {
                match listener.accept().await {
                    // A client that broke off needs no answer.
                    Ok((mut stream, _)) => drop(stream.write_all(word.as_bytes()).await),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }));
        Ok(())
    }

    /// Another handle on it, for a successor.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_has_one_holder_until_it_ends() {
        let name = format!("weft-test-{}", std::process::id());
        assert_eq!(holder(&name), None);
        let held = claim(&name).unwrap().unwrap();
        assert!(claim(&name).unwrap().is_none());
        drop(held);
        claim(&name).unwrap().unwrap().keep("order-service".into()).unwrap();
        let owner = tokio::task::spawn_blocking(move || holder(&name)).await.unwrap().unwrap();
        assert_eq!(owner.word, "order-service");
        assert_eq!(owner.process, i32::try_from(std::process::id()).ok());
    }
}
