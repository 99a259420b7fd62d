//! Names in requests (`resolution: DYNAMIC_DNS`): any client chooses the name, and the owner of the domain chooses its address.
//!
//! So the cache of answers is bounded, and addresses that must not be reachable by a foreign name are never dialed: this
//! machine itself, link-local addresses, where clouds serve credentials, and unspecified ones. A policy that needs such an
//! address names it (`resolution: STATIC`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rand::seq::IndexedRandom;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use weft_core::names::{self, CONSUL_SUFFIX};
use weft_core::target::is_virtual;
use weft_listen::address::is_local;

use super::Found;

/// Look-ups in progress at a time.
const AT_ONCE: usize = 64;
/// Answers that are remembered.
const MOST: usize = 4096;
/// How long the absence of a name is cached.
const NONE_FOR: Duration = Duration::from_secs(1);

/// Where to dial `name`.
///
/// # Errors
/// When it has no address, or none that may be dialed.
pub async fn socket_address(name: &str, port: u16) -> io::Result<SocketAddr> {
    if names::is_of_mesh(name) || name.ends_with(CONSUL_SUFFIX) {
        let text = format!("{name} is a name of the mesh, and is not looked up at name servers");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    static ANSWERS: LazyLock<Answers> = LazyLock::new(Answers::default);
    // Names in requests, however many, do not delay those in policies.
    static ASKING: Semaphore = Semaphore::const_new(AT_ONCE);
    let look_up = |name| async move {
        let _turn = ASKING.acquire().await.ok()?;
        super::listed(name).await
    };
    let found = ANSWERS.of(name, look_up).await;
    let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address")))?;
    let outside = found.iter().copied().filter(|address| is_outside(*address) && !is_local(*address));
    let outside: Vec<IpAddr> = outside.collect();
    match outside.choose(&mut rand::rng()) {
        Some(address) => Ok(SocketAddr::new(*address, port)),
        None => {
            let text = format!("{name} is at {}, which no name that a request gives may lead to", found[0]);
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

/// Whether an address may be behind a name outside the mesh.
fn is_outside(address: IpAddr) -> bool {
    /// Where clouds have credentials besides 169.254.169.254: Alibaba, Azure; AWS, Google.
    const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
    const METADATA: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
    match address.to_canonical() {
        IpAddr::V4(ip) => {
            let nowhere = ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast();
            let near = ip.is_loopback() || ip.is_link_local() || METADATA_V4.contains(&ip);
            !(near || nowhere || is_virtual(ip.into()))
        }
        IpAddr::V6(ip) => {
            let nowhere = ip.is_unspecified() || ip.is_multicast();
            let near = ip.is_loopback() || ip.is_unicast_link_local() || METADATA.contains(&ip);
            !(nowhere || near) && translated(ip).is_none_or(|inside| is_outside(inside.into()))
        }
    }
}

/// The IPv4 address that a NAT64 gateway (64:ff9b::/96) makes of it.
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// The cache of answers.
#[derive(Default)]
struct Answers(Mutex<HashMap<Box<str>, Answer>>);

struct Answer {
    /// At least one; `None`: it has no address.
    found: Option<Arc<[IpAddr]>>,
    until: Instant,
}

impl Answers {
    /// The cached answer, else that of `look_up`.
    async fn of<'a, F>(&self, name: &'a str, look_up: impl FnOnce(&'a str) -> F) -> Option<Arc<[IpAddr]>>
    where
        F: Future<Output = Option<Found>>,
    {
        if let Some(known) = self.known(name) {
            return known;
        }
        let (found, ttl) = match look_up(name).await {
            Some((found, ttl)) if !found.is_empty() => (Some(Arc::from(found)), ttl),
            _ => (None, NONE_FOR),
        };
        self.remember(name, Answer { found: found.clone(), until: Instant::now() + ttl });
        found
    }

    fn known(&self, name: &str) -> Option<Option<Arc<[IpAddr]>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|answer| answer.until > Instant::now()).map(|answer| answer.found.clone())
    }

    /// Evicts expired answers, and those that expire next where that is not enough.
    fn remember(&self, name: &str, answer: Answer) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(name) {
            let now = Instant::now();
            known.retain(|_, answer| answer.until > now);
            if known.len() >= MOST {
                let first = known.iter().min_by_key(|(_, answer)| answer.until).map(|(name, _)| name.clone());
                first.map(|first| known.remove(&first));
            }
        }
        known.insert(name.into(), answer);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_in_requests_lead_to_no_local_address() {
        for outside in
            ["93.184.216.34", "10.0.0.1", "192.168.1.1", "100.64.0.1", "2001:db8::1", "fd00::1", "64:ff9b::808:808"]
        {
            assert!(is_outside(ip(outside)), "{outside}");
        }
        for inside in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "168.63.129.16",
            "fd20:ce::254",
            "224.0.0.1",
            "255.255.255.255",
            "240.240.0.7",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
        ] {
            assert!(!is_outside(ip(inside)), "{inside}");
        }
    }

    #[tokio::test]
    async fn names_of_the_mesh_are_not_sent_to_name_servers() {
        for name in ["order.default.svc.cluster.local", "order.service.consul"] {
            let error = socket_address(name, 80).await.unwrap_err();
            assert!(error.to_string().contains("is a name of the mesh"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_cached_for_their_ttl() {
        let (answers, queries) = (Answers::default(), Cell::new(0));
        let ask = |found: Option<Found>| {
            answers.of("a.test", |_| {
                queries.set(queries.get() + 1);
                std::future::ready(found)
            })
        };
        let of = |last: u8| Some((vec![IpAddr::from([10, 0, 0, last])], Duration::from_secs(30)));
        assert_eq!(ask(None).await, None);
        assert_eq!((ask(of(1)).await, queries.get()), (None, 1), "that there is none is remembered too");
        tokio::time::advance(NONE_FOR).await;
        assert_eq!(ask(of(1)).await.unwrap()[..], [ip("10.0.0.1")]);
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!((ask(of(2)).await.unwrap()[0], queries.get()), (ip("10.0.0.1"), 2));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((ask(of(2)).await.unwrap()[0], queries.get()), (ip("10.0.0.2"), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_bounded() {
        let answers = Answers::default();
        for n in 0..MOST as u64 + 10 {
            let found = (vec![ip("10.0.0.1")], Duration::from_secs(100 + n));
            answers.of(&format!("n{n}.test"), |_| std::future::ready(Some(found))).await;
        }
        assert_eq!(answers.0.lock().unwrap().len(), MOST);
        assert!(answers.known("n9.test").is_none() && answers.known("n10.test").is_some());
    }
}
