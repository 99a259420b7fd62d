//! Requests under way, by client: one that sends too many gets 429, and others are served.
//!
//! As Consul's `http_max_conns_per_client` does, but what is counted are requests. In a pod every program has the same
//! address, and those that wait for news must not keep another from registering or from reporting its health: blocking queries
//! have a bound of their own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode, request};

use crate::query::Query;
use crate::quiet::source;
use crate::refused::Refused;

/// Requests of one client at once, of each kind: Consul's own default.
pub const PER_CLIENT: usize = 200;
/// Requests of all clients at once, of each kind, as a multiple.
const CLIENTS: usize = 20;

/// Reads such a number from a command line.
///
/// # Errors
/// Says what it should be.
pub fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "it should be a number, 1 or more".into())
}

/// What a request may hold up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A blocking query, which may take ten minutes.
    Blocking,
    /// Any other, which is answered in a moment: reads, registrations, reports of health.
    Prompt,
}

impl Kind {
    /// That of a request.
    pub fn of(head: &request::Parts) -> Kind {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let waits = |name| query.value(name).is_some_and(|value| !value.is_empty() && value != "0");
        let blocking = head.method == Method::GET && (waits("index") || waits("hash"));
        if blocking { Kind::Blocking } else { Kind::Prompt }
    }
}

/// Requests under way, of all clients of a listener.
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
    /// At most so many requests of one client, of each kind; 1 or more.
    pub fn new(per_client: usize) -> Clients {
        Clients { per_client, state: Mutex::default() }
    }

    /// Counts a request for as long as the result is held.
    ///
    /// # Errors
    /// 429 when the client, or all together, have too many.
    pub fn admit(self: &Arc<Clients>, from: IpAddr, kind: Kind) -> Result<Admitted, Refused> {
        let (client, at) = (source(from), kind as usize);
        let mut state = self.lock();
        let of_client = state.of_client.get(&client).map_or(0, |counts| counts[at]);
        let what = match kind {
            Kind::Blocking => "blocking queries",
            Kind::Prompt => "requests",
        };
        let most = self.per_client;
        if of_client >= most {
            let text = format!(
                "Too Many Requests: {of_client} {what} of {client} are under way, and {most} may be \
                 (--http-max-conns-per-client)"
            );
            return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        if state.total[at] >= most.saturating_mul(CLIENTS) {
            let text = format!("Too Many Requests: {} {what} are under way", state.total[at]);
            return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        state.of_client.entry(client).or_default()[at] += 1;
        state.total[at] += 1;
        Ok(Admitted { clients: self.clone(), client, at })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
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
    fn blocking_queries_leave_room_for_everything_else() {
        let clients = Arc::new(Clients::new(2));
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let admit = |from, kind| clients.admit(from, kind);
        let blocking = [admit(one, Kind::Blocking).ok().unwrap(), admit(one, Kind::Blocking).ok().unwrap()];
        let refused = admit(one, Kind::Blocking).err().unwrap();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.text.contains("2 blocking queries of 10.0.0.1"), "{}", refused.text);
        let _prompt = admit(one, Kind::Prompt).ok().unwrap();
        let _others = admit(other, Kind::Blocking).ok().unwrap();
        drop(blocking);
        assert!(admit(one, Kind::Blocking).is_ok());
        drop((_prompt, _others));
        assert!(clients.lock().of_client.is_empty() && clients.lock().total == [0, 0]);
    }

    #[test]
    fn clients_together_have_a_bound_too() {
        let clients = Arc::new(Clients::new(1));
        let from = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let held: Vec<_> = (0..CLIENTS).map(|n| clients.admit(from(n), Kind::Prompt).ok().unwrap()).collect();
        assert!(clients.admit(from(CLIENTS), Kind::Prompt).is_err());
        assert!(clients.admit(from(CLIENTS), Kind::Blocking).is_ok());
        drop(held);
        assert!(clients.admit(from(CLIENTS), Kind::Prompt).is_ok());
    }

    #[test]
    fn kind_of_a_request() {
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
