//! Endpoints that requests name: with `resolution: DYNAMIC_DNS` every host under a wildcard is an endpoint of its own, from the
//! first request that names it, so that its connections are kept for the next one.
//!
//! A client can name any number of hosts. Their number is bounded; beyond that the least recently used host is evicted, with
//! its idle connections, unless it has requests in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use weft_core::endpoint::{Address, Endpoint, Target};
use weft_core::pool::EndpointId;

use crate::upstream::endpoints::unregistered;

/// Hosts that are kept.
const MOST: usize = 4096;

/// Those of one cluster.
#[derive(Default)]
pub struct DynamicHosts(Mutex<State>);

#[derive(Default)]
struct State {
    known: HashMap<Arc<str>, Known>,
    /// Grows with every request.
    clock: u64,
}

struct Known {
    endpoint: Arc<Endpoint>,
    last_use: u64,
}

impl Known {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.endpoint) == 1 && self.endpoint.state.in_flight() == 0
    }
}

impl DynamicHosts {
    /// The endpoint of `host`, dialed at `port`; `None`: too many others are in use. The second is an evicted endpoint, whose
    /// connections have to be closed.
    pub fn endpoint(&self, host: &str, port: u16) -> (Option<Arc<Endpoint>>, Option<EndpointId>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        if let Some(known) = state.known.get_mut(host)
            && known.endpoint.config.port == port
        {
            known.last_use = now;
            return (Some(known.endpoint.clone()), None);
        }
        let gone = match state.known.remove(host) {
            // The policy has another port by now.
            Some(old) => Some(old),
            None if state.known.len() < MOST => None,
            None => {
                let idle = state.known.iter().filter(|(_, known)| known.is_idle());
                let oldest = idle.min_by_key(|(_, known)| known.last_use).map(|(host, _)| host.clone());
                let Some(oldest) = oldest else { return (None, None) };
                state.known.remove(&oldest)
            }
        };
        let host: Arc<str> = host.into();
        let endpoint = unregistered(Address::Name(host.clone()), port, Target::RequestHost(host.clone(), port));
        state.known.insert(host, Known { endpoint: endpoint.clone(), last_use: now });
        (Some(endpoint), gone.map(|gone| gone.endpoint.state.id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_hosts_have_one_endpoint_each() {
        let hosts = DynamicHosts::default();
        let first = hosts.endpoint("a.test", 80).0.unwrap();
        assert_eq!((&*first.key, &first.target), ("a.test:80", &Target::RequestHost("a.test".into(), 80)));
        assert!(Arc::ptr_eq(&first, &hosts.endpoint("a.test", 80).0.unwrap()));
        let (second, gone) = hosts.endpoint("a.test", 8080);
        assert_eq!((&*second.unwrap().key, gone), ("a.test:8080", Some(first.state.id())));
    }

    #[test]
    fn the_least_recently_used_idle_host_is_evicted() {
        let hosts = DynamicHosts::default();
        let held = hosts.endpoint("n0.test", 80).0.unwrap();
        let second = hosts.endpoint("n1.test", 80).0.unwrap().state.id();
        let flight = hosts.endpoint("n2.test", 80).0.unwrap().state.enter();
        let fourth = hosts.endpoint("n3.test", 80).0.unwrap().state.id();
        (4..MOST).for_each(|n| assert!(hosts.endpoint(&format!("n{n}.test"), 80).1.is_none()));
        assert_eq!(hosts.endpoint("more.test", 80).1, Some(second));
        assert_eq!(hosts.endpoint("again.test", 80).1, Some(fourth));
        assert!(Arc::ptr_eq(&held, &hosts.endpoint("n0.test", 80).0.unwrap()));
        assert_eq!(hosts.0.lock().unwrap().known.len(), MOST);
        drop(flight);
        assert!(hosts.endpoint("last.test", 80).0.is_some());
    }

    #[test]
    fn hosts_in_use_are_not_evicted() {
        let hosts = DynamicHosts::default();
        let all: Vec<_> = (0..MOST).map(|n| hosts.endpoint(&format!("n{n}.test"), 80).0.unwrap()).collect();
        assert!(hosts.endpoint("more.test", 80).0.is_none());
        drop(all);
        assert!(hosts.endpoint("more.test", 80).0.is_some());
    }
}
