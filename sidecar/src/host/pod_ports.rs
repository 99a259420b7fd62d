//! The ports of a pod in the machine's network, for a pod whose network is not the sidecar's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::net::sockets;

/// Serves a connection that a listener accepted: the stream, its peer and the address of the listener.
pub type Serve = Arc<dyn Fn(TcpStream, SocketAddr, SocketAddr) + Send + Sync>;

/// The listeners of a pod in the machine's network: each is opened when a service is registered with its port.
pub struct PodPorts {
    serve: Serve,
    address: IpAddr,
    open: Mutex<BTreeSet<u16>>,
}

impl PodPorts {
    /// No listener yet. `address`: the pod's in the machine's network.
    pub fn new(address: IpAddr, serve: Serve) -> PodPorts {
        PodPorts { serve, address, open: Mutex::default() }
    }

    /// Listens at a port of the pod's address; port 0 stands for no port.
    ///
    /// # Errors
    /// If the port cannot be bound, for example because a program of this machine holds it.
    pub fn open(&self, port: u16) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if port == 0 || open.contains(&port) {
            return Ok(());
        }
        let at = SocketAddr::new(self.address, port);
        let listener = sockets::tcp(at).and_then(|listener| Ok(TcpListener::from_std(listener)?)).map_err(|e| {
            format!(
                "others cannot reach the service at {at}: {e:#}. The port must be free on this machine too: choose another \
                 one for the service, or run it as root with --netns=ADDRESS/PREFIX"
            )
        })?;
        open.insert(port);
        let serve = self.serve.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let _ = stream.set_nodelay(true);
                        serve(stream, peer, at);
                    }
                    Err(e) => {
                        // Most likely no file descriptor is left: waiting is all that helps.
                        tracing::warn!("cannot accept a connection: {e}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        tracing::info!(address = %at, "listening for others");
        Ok(())
    }
}
