//! Which service it is that a request or a connection means, and whether it is looked into: the first phase, as
//! `sidecar/src/dialed.rs` and `sidecar/src/outbound/plan.rs` have it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::compile::{self, CompileError};
use weft_core::endpoint::{Endpoint, find, for_cluster};
use weft_core::names::normalise;
use weft_core::policy::{Cluster, Port, Protocol, Service};

use super::Asked;
use super::facts::{Facts, Meant};
use crate::translate::Meaning;

/// A host that may be meant, as the sidecar has it.
pub(super) struct Candidate<'a> {
    pub(super) meant: &'a Meant,
    pub(super) service: Service,
}

/// The hosts that a request's names and address mean.
pub(super) struct Candidates<'a> {
    by_address: Option<Candidate<'a>>,
    by_authority: Option<Candidate<'a>>,
    by_server_name: Option<Candidate<'a>>,
}

/// Where it goes.
pub(super) enum Way<'a> {
    /// By the routes of a service for requests.
    Request(&'a Candidate<'a>),
    /// By its routes for connections, with the server name where that is looked at.
    Connection(&'a Candidate<'a>, &'a Port, Option<String>),
    /// To an endpoint that was dialed itself.
    Pinned(&'a Candidate<'a>, &'a Arc<Cluster>, Arc<Endpoint>),
    /// To where it is addressed, or nowhere.
    Foreign,
}

impl<'a> Candidate<'a> {
    fn of(meant: Option<&'a Meant>) -> Result<Option<Candidate<'a>>, CompileError> {
        meant.map(|meant| Ok(Candidate { meant, service: compile::service(&meant.host.service)? })).transpose()
    }

    /// The endpoints of one of its clusters, of which nothing is known from traffic.
    pub(super) fn endpoints(&self, cluster: &Cluster) -> Result<Vec<Arc<Endpoint>>, CompileError> {
        let configs =
            self.meant.host.endpoints.get(&*cluster.host).map(compile::endpoints).transpose()?.unwrap_or_default();
        Ok(for_cluster(cluster, &configs, &[]))
    }

    /// The endpoint at an address, if that is no virtual IP of the service's.
    fn dialed(&'a self, address: SocketAddr, subsets: bool) -> Option<Way<'a>> {
        if self.service.addresses.contains(&address.ip()) {
            return None;
        }
        self.service.clusters.iter().filter(|cluster| subsets || cluster.subset.is_empty()).find_map(|cluster| {
            let endpoints = self.endpoints(cluster).ok()?;
            Some(Way::Pinned(self, cluster, find(&endpoints, address)?.clone()))
        })
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

    /// The way of what is asked, which is dialed to `address`.
    pub(super) fn way(&'a self, asked: &Asked, address: SocketAddr) -> Way<'a> {
        let port = self.by_address.as_ref().and_then(|candidate| candidate.service.port(asked.port));
        let by_name = self.by_address.is_none() || port.is_some_and(|port| port.connection_routes.wants_server_name());
        let name = |name: &str| Some(normalise(name).into_owned()).filter(|name| name.parse::<IpAddr>().is_err());
        match (port.map_or(Protocol::Unknown, |port| port.protocol), &asked.server_name) {
            (Protocol::Tcp, _) => self.connection(asked, address, None),
            (_, Some(server_name)) => self.connection(asked, address, name(server_name).filter(|_| by_name)),
            // Whoever calls it speaks TLS, and mostly to the host that he dials.
            (Protocol::Tls, None) => self.connection(asked, address, name(&asked.host).filter(|_| by_name)),
            _ => self.request(asked, address),
        }
    }

    fn request(&'a self, asked: &Asked, address: SocketAddr) -> Way<'a> {
        if let Some(candidate) = &self.by_authority
            && candidate.service.port(asked.port).is_some()
        {
            return Way::Request(candidate);
        }
        match &self.by_address {
            Some(candidate) if candidate.service.addresses.contains(&address.ip()) => Way::Request(candidate),
            Some(candidate) => candidate.dialed(address, false).unwrap_or(Way::Foreign),
            None => Way::Foreign,
        }
    }

    fn connection(&'a self, asked: &Asked, address: SocketAddr, server_name: Option<String>) -> Way<'a> {
        if let Some(way) = self.by_address.as_ref().and_then(|candidate| candidate.dialed(address, true)) {
            return way;
        }
        let named = || self.by_server_name.as_ref().filter(|_| server_name.is_some());
        let candidate = self.by_address.as_ref().or_else(named);
        match candidate.and_then(|candidate| Some((candidate, candidate.service.port(asked.port)?))) {
            Some((candidate, port)) => Way::Connection(candidate, port, server_name),
            None => Way::Foreign,
        }
    }
}

/// Why a name means a host.
pub(super) fn in_words(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Own => "its own name",
        Meaning::OwnNamespace => "a service of the caller's namespace",
        Meaning::DefaultNamespace => "a service of namespace default: the caller's own has none of this name",
        Meaning::WithNamespace => "a service's name with its namespace",
        Meaning::Consul => "a name of Consul's",
        Meaning::Wildcard => "a wildcard that covers it",
        Meaning::Address => "its virtual IP, or an address that a document declares",
        Meaning::Endpoint => "the address of one of its endpoints",
    }
}
