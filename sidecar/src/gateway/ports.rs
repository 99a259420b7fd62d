//! The ports of a gateway: opened and closed as the policy demands, the same for all workers.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_core::gateway::{Server, ServerCertificate, ServerProtocol, Termination};
use weft_core::inbound::Inbound;

use super::{connection, tls, together};
use crate::net::sockets::{self, Shared};
use crate::proxy::Proxy;

/// How often certificates are looked at again, and ports that could not be opened tried again.
const LOOK: Duration = Duration::from_secs(5);
/// How long a port that is to be closed accepts connections whose handshake has begun.
const LAST: Duration = Duration::from_millis(100);

/// The servers behind a port at one moment.
#[derive(Default)]
pub struct Doors {
    /// Its servers, oldest first.
    pub servers: Vec<Arc<Server>>,
    /// TLS configurations of the servers.
    pub terminations: HashMap<Termination, Arc<rustls::ServerConfig>>,
}

impl Doors {
    /// The protocol of the port.
    pub fn protocol(&self) -> Option<ServerProtocol> {
        self.servers.first().map(|server| server.protocol)
    }
}

/// An open port.
pub struct Port {
    socket: TcpListener,
    /// The supervisor keeps it for the next gateway, which accepts the connections that come meanwhile.
    kept: bool,
    now: ArcSwap<Doors>,
}

/// Open ports by address.
pub type Ports = BTreeMap<SocketAddr, Arc<Port>>;

/// Opens and closes ports as the policy demands, and closes all of them at the `end`. `credentials`: the folder of named
/// certificates.
pub async fn keep(
    proxy: Arc<Proxy>,
    credentials: PathBuf,
    ports: watch::Sender<Arc<Ports>>,
    end: impl Future<Output = ()>,
) {
    tokio::select! {
        () = follow(&proxy, credentials, &ports) => {}
        () = end => close(&ports).await,
        // The successor has them.
        () = sockets::turn_over() => drop(ports.send_replace(Arc::default())),
    }
}

/// The sockets of open ports, for a successor.
///
/// # Errors
/// When the system has no descriptor left.
pub fn shared(ports: &Ports) -> std::io::Result<Vec<Shared>> {
    let again = |port: &Arc<Port>| Ok(Shared { socket: port.socket.try_clone()?.into(), kept: port.kept });
    ports.values().map(again).collect()
}

/// Closes all ports without cutting off connections in the accept queue.
async fn close(ports: &watch::Sender<Arc<Ports>>) {
    let open = ports.borrow().clone();
    for (address, port) in open.iter().filter(|(_, port)| !port.kept) {
        if let Err(e) = sockets::stop_new_connections(&port.socket) {
            tracing::warn!(%address, "connections of this moment may be cut off: {e}");
        }
    }
    drop(open);
    tokio::time::sleep(LAST).await;
    ports.send_replace(Arc::default());
}

async fn follow(proxy: &Proxy, credentials: PathBuf, ports: &watch::Sender<Arc<Ports>>) {
    let mut policy = proxy.directory.inbound();
    let mut keeper = tls::Keeper::new(credentials);
    let mut said = BTreeMap::new();
    loop {
        let inbound = policy.borrow_and_update().clone();
        if let Some(inbound) = inbound {
            let open = ports.borrow().clone();
            let wanted = opened(&inbound, &open, &mut keeper, &mut said);
            if !wanted.keys().eq(open.keys()) {
                ports.send_replace(Arc::new(wanted));
            }
        }
        tokio::select! {
            changed = policy.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn opened(inbound: &Inbound, open: &Ports, keeper: &mut tls::Keeper, said: &mut BTreeMap<SocketAddr, String>) -> Ports {
    // The oldest first: where an address excludes all addresses, it has the port.
    let mut by_address: Vec<(SocketAddr, Vec<Arc<Server>>)> = Vec::new();
    for server in &inbound.servers {
        match by_address.iter_mut().find(|(address, _)| *address == server.address()) {
            Some((_, servers)) => servers.push(server.clone()),
            None => by_address.push((server.address(), vec![server.clone()])),
        }
    }
    let mut wanted = Ports::new();
    for (address, servers) in by_address {
        let (servers, others) = together(&servers);
        let mut problem = String::new();
        for other in others {
            problem =
                format!("{} speaks something else than an older server of this port, and is not served", other.name);
        }
        let mut terminations = HashMap::new();
        for server in &servers {
            let Some(ServerCertificate::Files(termination)) = server.tls.as_ref().map(|tls| &tls.certificate) else {
                continue;
            };
            match keeper.config(termination) {
                Ok(config) => drop(terminations.insert(termination.clone(), config)),
                Err(e) => problem = format!("{}: {e:#}", server.name),
            }
        }
        let doors = Arc::new(Doors { servers, terminations });
        let port = match open.get(&address) {
            Some(port) => {
                port.now.store(doors);
                Some(port.clone())
            }
            None => {
                let socket = match address.ip() {
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED) => sockets::closable_any(address.port()),
                    _ => sockets::closable(address),
                };
                match socket {
                    Ok((socket, kept)) => {
                        tracing::info!(%address, "the gateway listens");
                        Some(Arc::new(Port { socket, kept, now: ArcSwap::new(doors) }))
                    }
                    Err(e) => {
                        problem = format!("cannot be opened: {e:#}");
                        None
                    }
                }
            }
        };
        wanted.extend(port.map(|port| (address, port)));
        // Once for each thing that is wrong, not every few seconds.
        if said.get(&address).is_none_or(|before| *before != problem) {
            if !problem.is_empty() {
                tracing::error!(%address, "{problem}");
            }
            said.insert(address, problem);
        }
    }
    for address in open.keys().filter(|address| !wanted.contains_key(address)) {
        tracing::info!(%address, "listener closed");
    }
    wanted
}

/// Accepts at the ports that are open, for ever; on a worker's runtime.
pub async fn serve(proxy: Arc<Proxy>, mut ports: watch::Receiver<Arc<Ports>>, worker: u16) {
    let mut accepting: BTreeMap<SocketAddr, tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let now = ports.borrow_and_update().clone();
        accepting.retain(|address, task| {
            let stays = now.contains_key(address);
            if !stays {
                task.abort();
            }
            stays
        });
        for (address, port) in now.iter() {
            accepting.entry(*address).or_insert_with(|| tokio::spawn(accept(proxy.clone(), port.clone(), worker)));
        }
        if ports.changed().await.is_err() {
            return;
        }
    }
}

async fn accept(proxy: Arc<Proxy>, port: Arc<Port>, worker: u16) {
    let listener = match port.socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("worker {worker} cannot listen: {e}"),
    };
    sockets::our_turn().await;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (proxy, doors) = (proxy.clone(), port.now.load_full());
                tokio::spawn(connection(proxy, stream, peer, worker, doors));
            }
            Err(e) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
