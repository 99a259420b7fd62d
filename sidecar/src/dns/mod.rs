//! The application's name look-ups: names of the mesh resolve to virtual IPs, all others to their usual answers.
//!
//! Queries arrive redirected (or because `resolv.conf` names the sidecar). The usual name server is queried only after the control
//! plane answered that a name is not the mesh's, or was silent for a moment: it sees no name of the mesh. Names under the
//! mesh's own suffixes never leave: no other server can answer them. [`answer`] decides, without sockets;
//! [`crate::resolve::forward`] queries name servers, and [`consul`] the control plane for Consul's names.
//!
//! The same is served a second time at the address that Consul's clients use: there a service's name has the real addresses of
//! its instances, as they expect, where the captured queries' answer is the virtual IP that leads through the mesh.
//!
//! The listener must be on loopback: behind a redirect, one on all addresses would answer from the wrong one.

pub mod answer;
pub mod consul;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_agent::datacenter::Datacenter;
use weft_core::dns::is_failure;
use weft_core::endpoint::{Endpoint, Target};
use weft_core::names::{CONSUL_SUFFIX, SERVICE_SUFFIX, is_of_mesh};
use weft_core::target;
use weft_listen::idle::{Connection, IdleLimit};

use crate::control::directory::{Directory, Lookup, ServiceView};
use crate::dns::answer::{Packet, Place, Query, Say};
use crate::dns::consul::Consul;
use crate::resolve::forward::{Forwarder, Transport};
use crate::resolve::framing::{read_framed, write_framed};

/// Queries in progress; beyond that they are dropped, and clients repeat them.
const IN_FLIGHT: usize = 1024;
/// A connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// No query is longer.
const MAX_QUERY: usize = 4096;
/// How long an address may be kept: the mesh's do not change in a day, but which names there are does.
const TTL: u32 = 30;
/// The same while the control plane is away.
const TTL_DISCONNECTED: u32 = 5;
/// The same of a headless service, whose endpoints change often.
const TTL_HEADLESS: u32 = 5;
/// Longest wait for the control plane's answer about a name that may be outside the mesh. It answers in a round trip; a name
/// outside the mesh must not depend on it for longer.
const SILENCE: Duration = Duration::from_millis(100);

/// Answers queries.
pub struct Dns {
    directory: Arc<Directory>,
    forwarder: Forwarder,
    /// Names that are never the mesh's: the control plane's own, which is resolved before it can be queried.
    outside: Vec<String>,
    consul: Arc<Consul>,
    serves: Serves,
    datacenter: Datacenter,
    permits: Arc<Semaphore>,
}

/// The clients of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// Applications that look up a host, to connect to it.
    Captured,
    /// Clients of Consul's DNS.
    ConsulClients,
}

impl Dns {
    /// `outside`: host names that are never looked for in the mesh.
    pub fn new(
        serves: Serves,
        directory: Arc<Directory>,
        consul: Arc<Consul>,
        forwarder: Forwarder,
        outside: Vec<String>,
        datacenter: Datacenter,
    ) -> Dns {
        Dns { directory, forwarder, outside, consul, serves, datacenter, permits: Arc::new(Semaphore::new(IN_FLIGHT)) }
    }

    /// The answer to a packet, unless it deserves none.
    pub async fn handle(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match answer::parse(packet) {
            Packet::Nothing => return None,
            Packet::Refused(reply) => return Some(reply),
            Packet::Query(query) => query,
        };
        let say = match self.choose(&query, packet, transport).await {
            Ok(say) => say,
            Err(forwarded) => return Some(forwarded),
        };
        query.reply(&say, transport)
    }

    /// The answer's content; or, as the error, another server's answer.
    async fn choose(&self, query: &Query, packet: &[u8], transport: Transport) -> Result<Say, Vec<u8>> {
        if self.is_outside(query.name()) {
            return self.forward(packet, transport).await;
        }
        if query.is_of_consul() {
            return self.of_consul(query, transport).await;
        }
        if query.is_reverse()
            && let Some(said) = self.of_address(query, transport).await
        {
            return said;
        }
        self.decide(query, packet, transport).await
    }

    async fn forward(&self, packet: &[u8], transport: Transport) -> Result<Say, Vec<u8>> {
        self.forwarder.ask(packet, transport).await.map_or(Ok(Say::ServerFailure), Err)
    }

    async fn of_consul(&self, query: &Query, transport: Transport) -> Result<Say, Vec<u8>> {
        let mut unknown = Say::ServerFailure;
        if self.serves == Serves::Captured
            && query.leads_to_address()
            && is_service(query.name(), &self.datacenter.name())
        {
            let lookup = self.directory.lookup(query.name()).await;
            if let Some(say) = self.of_service(query, &lookup, true) {
                return Ok(say);
            }
            if matches!(lookup, Lookup::Absent) {
                unknown = Say::NoSuchName;
            }
        }
        self.consul.answer(query, transport).await.map_or(Ok(unknown), Err)
    }

    /// The answer for an address of the mesh: a virtual IP's service, else the control plane's answer for an instance or a node
    /// there. `None`: it is not the mesh's.
    async fn of_address(&self, query: &Query, transport: Transport) -> Option<Result<Say, Vec<u8>>> {
        let address = query.address()?;
        if target::is_virtual(address) {
            return Some(Ok(match self.directory.lookup(&address.to_string()).await {
                Lookup::Service(view) => Say::Name(view.service.host.to_string(), TTL),
                Lookup::Absent => Say::NoSuchName,
                Lookup::Unknown => Say::ServerFailure,
            }));
        }
        let limit = if self.serves == Serves::ConsulClients { Duration::MAX } else { SILENCE };
        let answer = tokio::time::timeout(limit, self.consul.answer(query, transport)).await.ok()??;
        (!is_failure(&answer)).then_some(Err(answer))
    }

    /// The answer for a name that is not Consul's; or, as the error, the name server's answer.
    async fn decide(&self, query: &Query, packet: &[u8], transport: Transport) -> Result<Say, Vec<u8>> {
        let of_mesh = is_of_mesh(query.name());
        let Some(name) = query.host().filter(|name| !is_searched(name)) else {
            // A name of no service, under a suffix that no other server answers for.
            return if of_mesh || is_searched(query.name()) {
                Ok(Say::NoSuchName)
            } else {
                self.forward(packet, transport).await
            };
        };
        if let Some((port, service)) = query.port_of_service()
            && let Some(say) = self.of_port(port, service).await
        {
            return Ok(say);
        }
        let lookup = self.look_up(name).await;
        if let Some(target) = stands_for(query.name(), &lookup) {
            return self.of_alias(query, &target, transport).await;
        }
        match (self.of_service(query, &lookup, of_mesh), lookup) {
            (Some(say), _) => Ok(say),
            (None, _) if !of_mesh => self.forward(packet, transport).await,
            (None, Lookup::Unknown) => Ok(Say::ServerFailure),
            (None, _) => Ok(Say::NoSuchName),
        }
    }

    /// The meaning of a name in the mesh. A silent control plane delays no name that another server may know.
    async fn look_up(&self, name: &str) -> Lookup {
        let limit = if is_of_mesh(name) { Duration::MAX } else { SILENCE };
        tokio::time::timeout(limit, self.directory.lookup(name)).await.unwrap_or(Lookup::Unknown)
    }

    /// The mesh's answer for a name; `None`: it has none.
    fn of_service(&self, query: &Query, lookup: &Lookup, of_mesh: bool) -> Option<Say> {
        let Lookup::Service(view) = lookup else { return None };
        if let Some(at) = view.service.headless() {
            return Some(Say::Addresses(self.of_endpoints(query, view, at), TTL_HEADLESS));
        }
        let addresses = &view.service.addresses;
        // A host outside, without a virtual IP: the mesh has a policy for it, but its address is its own. Other records, such as its
        // mail servers, are not the mesh's either. Clients of Consul get its location.
        let its_own = || self.serves == Serves::ConsulClients || !query.leads_to_address();
        if !of_mesh && (addresses.is_empty() || (view.service.external && its_own())) {
            return None;
        }
        let ttl = if self.directory.connected() { TTL } else { TTL_DISCONNECTED };
        Some(Say::Addresses(addresses.clone(), ttl))
    }

    /// Where the named port of a headless service is: at each of its endpoints. `None`: the mesh has no such service, or another
    /// server may know such a port.
    async fn of_port(&self, port: &str, service: &str) -> Option<Say> {
        let Lookup::Service(view) = self.look_up(service).await else { return None };
        let found = &view.service;
        // A name of one of its endpoints is no service.
        if found.headless().is_none() || !found.names.iter().any(|name| **name == *service) {
            return None;
        }
        let Some(port) = found.ports.iter().find(|own| !own.name.is_empty() && own.name.eq_ignore_ascii_case(port))
        else {
            return is_of_mesh(service).then_some(Say::NoSuchName);
        };
        Some(Say::Places(places(&view, port.cluster, service), TTL_HEADLESS))
    }

    /// The addresses of a headless service's endpoints that are ready, in any order, or of those that the query names.
    fn of_endpoints(&self, query: &Query, view: &ServiceView, cluster: usize) -> Vec<IpAddr> {
        let endpoints = &view.clusters[cluster].endpoints;
        let of = |endpoint: &Arc<Endpoint>| endpoint.ip().filter(|_| endpoint.is_eligible());
        let mut one_by_one = target::endpoints_by_hostname(endpoints, query.name(), &view.service.names).peekable();
        let found: BTreeSet<IpAddr> = match one_by_one.peek() {
            Some(_) => one_by_one.filter_map(of).collect(),
            None => endpoints.iter().filter_map(of).collect(),
        };
        let mut found: Vec<IpAddr> = found.into_iter().collect();
        found.shuffle(&mut rand::rng());
        found
    }

    /// The answer for an alias of `target`, which is not of the mesh: from the usual name server.
    async fn of_alias(&self, query: &Query, target: &str, transport: Transport) -> Result<Say, Vec<u8>> {
        if is_of_mesh(target) || target.ends_with(".consul") {
            return Ok(Say::NoSuchName);
        }
        let Some(packet) = query.to_ask_for(target) else { return Ok(Say::ServerFailure) };
        let answer = self.forwarder.ask(&packet, transport).await;
        match answer.and_then(|answer| query.adopt_alias(target, &answer, transport)) {
            Some(answer) => Err(answer),
            None => Ok(Say::ServerFailure),
        }
    }

    /// The name itself, and the same with a search domain appended.
    fn is_outside(&self, name: &str) -> bool {
        let after = |host: &String| name.strip_prefix(host.as_str());
        self.outside.iter().filter_map(after).any(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Where the ready endpoints of a headless service are, in any order, each by its own name before that of the service: of its
/// names the first of those that the fewest share, as pods of one machine may have one host name.
fn places(view: &ServiceView, cluster: usize, service: &str) -> Vec<Place> {
    let endpoints = &view.clusters[cluster].endpoints;
    let mut sharing: HashMap<&str, usize> = HashMap::new();
    for name in endpoints.iter().flat_map(|endpoint| &endpoint.config.hostnames) {
        *sharing.entry(name).or_default() += 1;
    }
    let mut found: BTreeMap<(String, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_eligible()) {
        let name = endpoint.config.hostnames.iter().min_by_key(|name| sharing.get(&***name));
        let (Target::Socket(address), Some(name)) = (&endpoint.target, name) else { continue };
        found.entry((format!("{name}.{service}"), address.port())).or_default().insert(address.ip());
    }
    let of = |((target, port), addresses): (_, BTreeSet<IpAddr>)| Place {
        target,
        port,
        addresses: addresses.into_iter().collect(),
    };
    let mut found: Vec<Place> = found.into_iter().map(of).collect();
    found.shuffle(&mut rand::rng());
    found
}

/// The host outside the mesh that `name` stands for (a Service of type ExternalName), where the mesh has no address for it.
fn stands_for(name: &str, lookup: &Lookup) -> Option<Arc<str>> {
    let Lookup::Service(view) = lookup else { return None };
    let service = &view.service;
    let own = || (!is_of_mesh(&service.host)).then(|| service.host.clone());
    let target = service.external_name.clone().or_else(own)?;
    (service.addresses.is_empty() && service.headless().is_none() && *target != *name && !target.starts_with('*'))
        .then_some(target)
}

/// Whether a resolver has appended a search domain to a name of the mesh: no other server knows that either, and it would leak
/// the name.
fn is_searched(name: &str) -> bool {
    let within = |suffix: &str| name.match_indices(suffix).any(|(at, _)| name[at + suffix.len()..].starts_with('.'));
    within(SERVICE_SUFFIX) || within(CONSUL_SUFFIX)
}

/// Whether this is `<name>.service.consul` or the same with the own data centre's name.
fn is_service(name: &str, datacenter: &str) -> bool {
    let here = || name.strip_suffix(".consul")?.strip_suffix(datacenter)?.strip_suffix(".service.");
    let service = name.strip_suffix(CONSUL_SUFFIX).or_else(here);
    service.is_some_and(|service| !service.is_empty() && !service.contains('.'))
}

/// Serves for ever at `address`, and on IPv6's loopback, where that is on IPv4's.
///
/// # Errors
/// If a socket cannot be opened.
pub fn listen(dns: Dns, address: SocketAddr) -> Result<()> {
    let dns = Arc::new(dns);
    anyhow::ensure!(address.ip().is_loopback(), "{address} is not on loopback, where DNS has to be served");
    start(&dns, address)?;
    if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        // A host without IPv6 has no queries there.
        let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), address.port());
        if let Err(e) = start(&dns, v6) {
            tracing::debug!("no DNS on ::1: {e:#}");
        }
    }
    Ok(())
}

fn start(dns: &Arc<Dns>, address: SocketAddr) -> Result<()> {
    let context = || format!("cannot listen on {address} for DNS");
    let udp = crate::net::sockets::udp(address).with_context(context)?;
    udp.set_nonblocking(true).with_context(context)?;
    let udp = UdpSocket::from_std(udp).with_context(context)?;
    let tcp = TcpListener::from_std(crate::net::sockets::tcp(address)?).with_context(context)?;
    tokio::spawn(crate::net::sockets::in_turn(serve_udp(dns.clone(), Arc::new(udp))));
    tokio::spawn(crate::net::sockets::in_turn(serve_tcp(dns.clone(), tcp)));
    Ok(())
}

async fn serve_udp(dns: Arc<Dns>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (n, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(e) => {
                // An answer that could not be delivered is reported here; the next query is not affected.
                tracing::debug!("DNS: {e}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let Ok(permit) = dns.permits.clone().try_acquire_owned() else { continue };
        let (dns, socket, packet) = (dns.clone(), socket.clone(), buffer[..n].to_vec());
        tokio::spawn(async move {
            if let Some(reply) = dns.handle(&packet, Transport::Udp).await {
                // A client that has gone needs no answer.
                let _ = socket.send_to(&reply, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(dns: Arc<Dns>, listener: TcpListener) {
    let idle = Arc::<IdleLimit>::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (dns, held) = (dns.clone(), idle.enter(from.ip()));
                tokio::spawn(async move {
                    tokio::select! {
                        // A client that breaks off is its own affair.
                        _ = connection(&dns, stream, &held) => {}
                        () = held.dismissed() => {}
                    }
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(dns: &Dns, mut stream: TcpStream, held: &Connection) -> io::Result<()> {
    loop {
        held.rest();
        let packet = tokio::time::timeout(IDLE, read_framed(&mut stream, MAX_QUERY)).await??;
        let Ok(_permit) = dns.permits.acquire().await else { return Ok(()) };
        held.work();
        let Some(reply) = dns.handle(&packet, Transport::Tcp).await else { return Ok(()) };
        tokio::time::timeout(IDLE, write_framed(&mut stream, &reply)).await??;
    }
}

#[cfg(test)]
mod tests;
