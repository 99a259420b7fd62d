//! Limits of concurrent requests per client: a client over its limit gets 429, and others are served.
//!
//! Like Consul's `http_max_conns_per_client`, but counting requests. In a pod all programs share one address, and
//! blocking queries must not keep another program from registering or reporting its health: they have a limit of their
//! own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode, request};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;

use crate::idle::source;

/// Concurrent requests of one client, per kind: Consul's default.
pub const PER_CLIENT: usize = 200;
/// Concurrent requests of all clients, per kind, as a multiple.
const CLIENTS: usize = 20;

/// Parses such a limit of the command line.
///
/// # Errors
/// If it is not a positive number.
pub fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "must be a positive integer".into())
}

/// Kind of a request, by the time it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A blocking query, which may take ten minutes.
    Blocking,
    /// Any other request, answered quickly: reads, registrations, health reports.
    Prompt,
}

impl Kind {
    /// The kind of a request.
    pub fn of(head: &request::Parts) -> Kind {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let waits = |name| query.value(name).is_some_and(|value| !value.is_empty() && value != "0");
        let blocking = head.method == Method::GET && (waits("index") || waits("hash"));
        if blocking { Kind::Blocking } else { Kind::Prompt }
    }
}

/// Requests in progress of all clients of a listener.
pub struct Clients {
    per_client: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    of_client: HashMap<IpAddr, [usize; 2]>,
    total: [usize; 2],
}

impl Clients {
    /// `per_client`: maximum requests of one client, per kind; at least 1.
    pub fn new(per_client: usize) -> Clients {
        Clients { per_client, state: Mutex::default() }
    }

    /// Counts a request as long as the result is held.
    ///
    /// # Errors
    /// 429 if the client, or all clients together, have too many requests.
    pub fn admit(self: &Arc<Clients>, from: IpAddr, kind: Kind) -> Result<Admitted, ApiError> {
        let (client, at) = (source(from), kind as usize);
        let mut state = self.lock();
        let of_client = state.of_client.get(&client).map_or(0, |counts| counts[at]);
        let kind_name = match kind {
            Kind::Blocking => "blocking queries",
            Kind::Prompt => "requests",
        };
        let most = self.per_client;
        if of_client >= most {
            let text = format!(
                "Too Many Requests: {of_client} {kind_name} of {client} are in progress, the limit is {most} \
                 (--http-max-conns-per-client)"
            );
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        if state.total[at] >= most.saturating_mul(CLIENTS) {
            let text = format!("Too Many Requests: {} {kind_name} are in progress", state.total[at]);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        state.of_client.entry(client).or_default()[at] += 1;
        state.total[at] += 1;
        Ok(Admitted { clients: self.clone(), client, at })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in progress.
pub struct Admitted {
    clients: Arc<Clients>,
    client: IpAddr,
    at: usize,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.clients.lock();
        state.total[self.at] -= 1;
        if let Some(counts) = state.of_client.get_mut(&self.client) {
            counts[self.at] -= 1;
            if *counts == [0, 0] {
                state.of_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocking_queries_do_not_block_other_requests() {
        let clients = Arc::new(Clients::new(2));
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let admit = |from, kind| clients.admit(from, kind);
        let blocking = [admit(one, Kind::Blocking).ok().unwrap(), admit(one, Kind::Blocking).ok().unwrap()];
        let error = admit(one, Kind::Blocking).err().unwrap();
        assert_eq!(error.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(error.text.contains("2 blocking queries of 10.0.0.1"), "{}", error.text);
        let _prompt = admit(one, Kind::Prompt).ok().unwrap();
        let _others = admit(other, Kind::Blocking).ok().unwrap();
        drop(blocking);
        assert!(admit(one, Kind::Blocking).is_ok());
        drop((_prompt, _others));
        assert!(clients.lock().of_client.is_empty() && clients.lock().total == [0, 0]);
    }

    #[test]
    fn requests_of_all_clients_are_limited_too() {
        let clients = Arc::new(Clients::new(1));
        let from = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let permits: Vec<_> = (0..CLIENTS).map(|n| clients.admit(from(n), Kind::Prompt).ok().unwrap()).collect();
        assert!(clients.admit(from(CLIENTS), Kind::Prompt).is_err());
        assert!(clients.admit(from(CLIENTS), Kind::Blocking).is_ok());
        drop(permits);
        assert!(clients.admit(from(CLIENTS), Kind::Prompt).is_ok());
    }

    #[test]
    fn kinds_are_derived_from_the_request() {
        for (method, uri, kind) in [
            ("GET", "/v1/kv/a?index=7&wait=5m", Kind::Blocking),
            ("GET", "/v1/agent/service/a?hash=1", Kind::Blocking),
            ("GET", "/v1/kv/a?wait=5m", Kind::Prompt),
            ("GET", "/v1/kv/a?index=0&hash=", Kind::Prompt),
            ("PUT", "/v1/kv/a?index=7", Kind::Prompt),
        ] {
            let (head, ()) = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            assert_eq!(Kind::of(&head), kind, "{method} {uri}");
        }
    }
}
