//! The service that a request or a connection is for, and whether the connection is inspected: the first phase. Each
//! step is `weft_core::target`'s, as in the sidecar.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::compile::{self, CompileError};
use weft_core::endpoint::{Endpoint, find, for_cluster};
use weft_core::names::normalise;
use weft_core::policy::{Cluster, Protocol};
use weft_core::service::{Port, Service};
use weft_core::target::{self, Address, Inspection};

use super::Query;
use super::facts::{Facts, Referent};
use crate::translate::Meaning;

/// A host that the request may be for, as compiled by the sidecar.
pub(super) struct Candidate<'a> {
    pub(super) meant: &'a Referent,
    pub(super) service: Service,
}

/// The candidates by the request's names and by its address.
pub(super) struct Candidates<'a> {
    by_address: Option<Candidate<'a>>,
    by_authority: Option<Candidate<'a>>,
    by_server_name: Option<Candidate<'a>>,
}

/// The target of a request or connection.
pub(super) enum Dispatch<'a> {
    /// The routes of a service for requests.
    Request(&'a Candidate<'a>),
    /// Its routes for connections, with the server name if it is inspected.
    Connection(&'a Candidate<'a>, &'a Port, Option<String>),
    /// An endpoint that was dialed directly.
    Pinned(&'a Candidate<'a>, &'a Arc<Cluster>, Arc<Endpoint>),
    /// The original destination, or nothing.
    Passthrough,
}

impl<'a> Candidate<'a> {
    pub(super) fn of(meant: Option<&'a Referent>) -> Result<Option<Candidate<'a>>, CompileError> {
        meant.map(|meant| Ok(Candidate { meant, service: compile::service(&meant.host.service)? })).transpose()
    }

    /// The endpoints of one of its clusters, without any results of traffic.
    pub(super) fn endpoints(&self, cluster: &Cluster) -> Result<Vec<Arc<Endpoint>>, CompileError> {
        let configs =
            self.meant.host.endpoints.get(&*cluster.host).map(compile::endpoints).transpose()?.unwrap_or_default();
        Ok(for_cluster(cluster, &configs, &[]))
    }

    /// The mTLS mode of the sidecar of an endpoint; empty: it has none.
    pub(super) fn accepts(&self, cluster: &Cluster, address: &str) -> String {
        self.meant.host.accepts.get(&(cluster.host.to_string(), address.to_owned())).cloned().unwrap_or_default()
    }

    /// The kind of an address for this host.
    fn address(&self, original: SocketAddr, subsets: bool) -> Address {
        let at = |at: usize| {
            let cluster = self.service.cluster(at);
            find(cluster, &self.endpoints(cluster).ok()?, original).cloned()
        };
        target::address(&self.service, original, subsets, at)
    }

    fn pinned(&'a self, at: usize, endpoint: Arc<Endpoint>) -> Dispatch<'a> {
        Dispatch::Pinned(self, self.service.cluster(at), endpoint)
    }
}

impl<'a> Candidates<'a> {
    /// Compiles them, as the sidecar would.
    pub(super) fn of(facts: &'a Facts) -> Result<Candidates<'a>, CompileError> {
        Ok(Candidates {
            by_address: Candidate::of(facts.by_address.as_ref())?,
            by_authority: Candidate::of(facts.by_authority.as_ref())?,
            by_server_name: Candidate::of(facts.by_server_name.as_ref())?,
        })
    }

    /// The dispatch of the query, which is dialed to `address`.
    pub(super) fn way(&'a self, query: &Query, address: SocketAddr) -> Dispatch<'a> {
        let original = self.by_address.as_ref().map(|candidate| &candidate.service);
        let by_name = target::wants_server_name(original, query.port);
        let name =
            |name: &str| Some(normalise(name).into_owned()).filter(|name| by_name && name.parse::<IpAddr>().is_err());
        let is_tls =
            original.and_then(|service| service.port(query.port)).is_some_and(|port| port.protocol == Protocol::Tls);
        match (target::inspection(original, query.port), &query.server_name) {
            // Its caller speaks TLS, and mostly to the host that it dials.
            (Inspection::ServerName | Inspection::Pass, None) if is_tls => {
                self.connection(query, address, name(&query.host))
            }
            (Inspection::Pass, None) => self.connection(query, address, None),
            (Inspection::Pass, Some(_)) if !is_tls => self.connection(query, address, None),
            (_, Some(server_name)) => self.connection(query, address, name(server_name)),
            (Inspection::ServerName, None) => self.connection(query, address, name(&query.host)),
            (Inspection::Http | Inspection::Unknown, None) => self.request(query, address),
        }
    }

    fn request(&'a self, query: &Query, address: SocketAddr) -> Dispatch<'a> {
        if let Some(candidate) = &self.by_authority
            && target::accepts(&candidate.service, query.port, Some(address))
        {
            let dialed = self.by_address.as_ref();
            let preferred = dialed.filter(|it| target::prefers_dialed(&candidate.service, &it.service, address));
            return Dispatch::Request(preferred.unwrap_or(candidate));
        }
        let Some(candidate) = &self.by_address else { return Dispatch::Passthrough };
        match candidate.address(address, false) {
            Address::Service => Dispatch::Request(candidate),
            Address::Endpoint(at, endpoint) => candidate.pinned(at, endpoint),
            Address::Other => Dispatch::Passthrough,
        }
    }

    fn connection(&'a self, query: &Query, address: SocketAddr, server_name: Option<String>) -> Dispatch<'a> {
        let is_routed =
            self.by_address.as_ref().is_some_and(|candidate| target::is_routed(&candidate.service, query.port));
        if let Some(candidate) = self.by_address.as_ref().filter(|_| !is_routed)
            && let Address::Endpoint(at, endpoint) = candidate.address(address, true)
        {
            return candidate.pinned(at, endpoint);
        }
        let by_name_only = || self.by_server_name.as_ref().filter(|_| server_name.is_some());
        let candidate = self.by_address.as_ref().or_else(by_name_only);
        match candidate.and_then(|candidate| Some((candidate, candidate.service.port(query.port)?))) {
            Some((candidate, port)) => Dispatch::Connection(candidate, port, server_name),
            None => Dispatch::Passthrough,
        }
    }
}

/// The reason why a name stands for a host.
pub(super) fn in_words(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Own => "its own name",
        Meaning::OwnNamespace => "a service of the caller's namespace",
        Meaning::DefaultNamespace => "a service of namespace default: the caller's namespace has none of this name",
        Meaning::WithNamespace => "a service's name with its namespace",
        Meaning::Consul => "a name of Consul's DNS",
        Meaning::EndpointName => "the name of one of its endpoints, then its own",
        Meaning::Alias => "a Service of type ExternalName for it",
        Meaning::Wildcard => "a wildcard that covers it",
        Meaning::Address => "its virtual IP, or an address that a document declares",
        Meaning::Endpoint => "the address of one of its endpoints",
    }
}
