//! One destination: the policy for calls to it, its endpoints, and the endpoint that this request's hash selects.

use std::sync::Arc;
use std::time::Instant;

use weft_core::balance::{Balancer, Inputs};
use weft_core::compile::CompileError;
use weft_core::endpoint::{self, Address, Health};
use weft_core::hash::{HashOutcome, HashPolicy, connection_hash, request_hash};
use weft_core::policy::{Cluster, Tls};
use weft_core::reply::Reason;
use weft_core::request::RequestView;
use weft_core::target;

use super::dispatch::Candidate;
use super::report::{Destination, Elsewhere, Endpoint, Hash, Level, Verdict};
use super::{Client, refused, settings};
use weft_policy::MESH_SUFFIX;

/// The sender, and the time of the request.
pub(super) struct Sender<'a> {
    pub(super) client: &'a Client,
    /// Whether all registrations are known.
    pub(super) complete: bool,
    pub(super) now: Instant,
    pub(super) view: RequestView<'a>,
}

impl Sender<'_> {
    /// A cluster of the service. `hash`: the request properties that the route hashes; `None`: it is a connection.
    /// `name`: the authority or server name with which it reaches the cluster.
    pub(super) fn destination(
        &self,
        candidate: &Candidate<'_>,
        cluster: usize,
        percent: f64,
        hash: Option<&[HashPolicy]>,
        name: &str,
    ) -> Result<Destination, CompileError> {
        let cluster = candidate.service.cluster(cluster);
        let endpoints = candidate.endpoints(cluster)?;
        let names = &candidate.service.names;
        if let Some(chosen) = target::headless_endpoint(cluster, &endpoints, Some(self.view.local), name, names) {
            return Ok(Destination { percent, ..self.pinned(candidate, cluster, chosen)? });
        }
        for endpoint in endpoints.iter().filter(|endpoint| self.has_ejected(cluster, endpoint)) {
            endpoint.state.ejection.adopt();
        }
        let inputs = Inputs { location: &self.client.location, now: self.now };
        let balancer = Balancer::new(cluster, &endpoints, inputs, None);
        let mut destination = policy(cluster, percent);
        destination.levels =
            balancer.levels().map(|level| Level { number: level.number, percent: level.percent }).collect();
        destination.elsewhere = elsewhere(&endpoints, &balancer);
        destination.endpoints =
            endpoints.iter().map(|endpoint| endpoint_report(candidate, cluster, endpoint, &balancer)).collect();
        if !cluster.load_balancer.hash_policies().is_empty() {
            let policies = hash.unwrap_or(cluster.load_balancer.hash_policies());
            destination.hash = Some(self.hash(policies, hash.is_none(), &balancer, &endpoints));
        }
        destination.verdict = self.verdict(cluster, &endpoints, &balancer, name);
        Ok(destination)
    }

    /// An endpoint that the caller dials directly.
    pub(super) fn pinned(
        &self,
        candidate: &Candidate<'_>,
        cluster: &Arc<Cluster>,
        chosen: &Arc<endpoint::Endpoint>,
    ) -> Result<Destination, CompileError> {
        let endpoints = candidate.endpoints(cluster)?;
        let balancer =
            Balancer::new(cluster, &endpoints, Inputs { location: &self.client.location, now: self.now }, None);
        let mut destination = policy(cluster, 100.0);
        destination.balancer = "none: passthrough to the original destination".to_owned();
        destination.locality.clear();
        destination.endpoints = vec![endpoint_report(candidate, cluster, chosen, &balancer)];
        destination.verdict = match &cluster.tls {
            Tls::IstioMutual if chosen.identities().is_empty() => {
                refused(&Reason::PeerWithoutIdentity, &cluster.policy)
            }
            _ => Verdict::Served,
        };
        Ok(destination)
    }

    /// Whether the caller's sidecar has ejected an endpoint, and the ejection is within its limit.
    fn has_ejected(&self, cluster: &Cluster, endpoint: &endpoint::Endpoint) -> bool {
        let may = cluster.outlier.is_some() || endpoint.remote.is_some();
        may && self.client.ejected.contains(&(cluster.host.to_string(), endpoint.key.to_string()))
    }

    fn verdict(
        &self,
        cluster: &Cluster,
        endpoints: &[Arc<endpoint::Endpoint>],
        balancer: &Balancer,
        name: &str,
    ) -> Verdict {
        let may_register = || !self.complete && endpoints.is_empty() && cluster.host.ends_with(MESH_SUFFIX);
        if cluster.undefined {
            return refused(&Reason::ClusterUndefined(http::StatusCode::SERVICE_UNAVAILABLE), &cluster.policy);
        }
        if cluster.original_destination {
            return Verdict::Served;
        }
        if cluster.dynamic_dns {
            return match (cluster.dynamic_host(name), &cluster.tls) {
                (None, _) => refused(&Reason::UnknownHost, ""),
                (Some(_), Tls::IstioMutual) => refused(&Reason::PeerWithoutIdentity, &cluster.policy),
                (Some(_), _) => Verdict::Served,
            };
        }
        let Some(_) = balancer.pick(None, &mut || 0, 0) else {
            let absent = || refused(&Reason::NoHealthyUpstream, &cluster.policy);
            return if may_register() { Verdict::Unregistered } else { absent() };
        };
        let mut usable = balancer.hosts().chain(balancer.elsewhere().into_iter().flat_map(|(_, gateways)| gateways));
        if cluster.tls == Tls::IstioMutual && usable.all(|endpoint| endpoint.identities().is_empty()) {
            return refused(&Reason::PeerWithoutIdentity, &cluster.policy);
        }
        Verdict::Served
    }

    /// The endpoint that the hash of the request, or of a connection, selects.
    fn hash(
        &self,
        policies: &[HashPolicy],
        is_connection: bool,
        balancer: &Balancer,
        endpoints: &[Arc<endpoint::Endpoint>],
    ) -> Hash {
        let mut by: Vec<String> = policies.iter().map(settings::hash_policy).collect();
        // Destinations mostly have the same key.
        by.dedup();
        let by = by.join(" and ");
        let unknown = |because: String| Hash { by: by.clone(), endpoint: None, because };
        let outcome = if is_connection {
            HashOutcome { hash: connection_hash(policies, self.view.source), set_cookie: None }
        } else {
            request_hash(policies, &self.view)
        };
        let by_address = policies.contains(&HashPolicy::SourceIp);
        if outcome.set_cookie.is_some() {
            return unknown(
                "the cookie is missing: the response sets one, which later requests are hashed by".to_owned(),
            );
        }
        let Some(hash) = outcome.hash else {
            return unknown("the request has no hash key: any endpoint".to_owned());
        };
        if by_address && self.client.address.is_none() {
            return unknown("the caller's address is unknown here".to_owned());
        }
        if endpoints.iter().any(|endpoint| matches!(endpoint.config.address, Address::EachOf(_))) {
            return unknown("only the sidecar has the resolved addresses, by which it hashes".to_owned());
        }
        match balancer.pick(Some(hash), &mut || 0, 0) {
            None => unknown("there is no endpoint".to_owned()),
            // The hash does not select between the gateways of another data centre.
            Some(gateway) if gateway.remote.is_some() => unknown("it goes to another data centre".to_owned()),
            Some(picked) => Hash { by, endpoint: Some(picked.key.to_string()), because: String::new() },
        }
    }
}

/// The share for another data centre, as in the balancer.
fn elsewhere(endpoints: &[Arc<endpoint::Endpoint>], balancer: &Balancer) -> Option<Elsewhere> {
    let (percent, gateways) = balancer.elsewhere().filter(|(percent, _)| *percent > 0)?;
    let datacenter = gateways.iter().find_map(|gateway| gateway.remote.as_ref())?.datacenter.to_string();
    let here = || endpoints.iter().filter(|endpoint| endpoint.remote.is_none());
    let serves = |endpoint: &&Arc<endpoint::Endpoint>| {
        !endpoint.is_ejected() && matches!(endpoint.config.health, Health::Healthy | Health::Unknown)
    };
    let (serving, all) = (here().filter(serves).count(), here().count());
    Some(Elsewhere {
        percent,
        datacenter,
        gateways: gateways.iter().map(|gateway| gateway.key.to_string()).collect(),
        because: format!("{serving} of {all} endpoints here are available"),
    })
}

/// The destination with the settings of its policy.
fn policy(cluster: &Cluster, percent: f64) -> Destination {
    Destination {
        percent,
        host: cluster.host.to_string(),
        port: cluster.port,
        subset: cluster.subset.to_string(),
        labels: cluster.labels.clone(),
        policy: cluster.policy.to_string(),
        balancer: settings::balancer(cluster),
        locality: settings::locality(&cluster.locality),
        limits: settings::limits(&cluster.pool),
        outlier_detection: cluster.outlier.as_ref().map(settings::outlier).unwrap_or_default(),
        tls: settings::connection(cluster),
        ..Destination::default()
    }
}

fn endpoint_report(
    candidate: &Candidate<'_>,
    cluster: &Cluster,
    endpoint: &Arc<endpoint::Endpoint>,
    balancer: &Balancer,
) -> Endpoint {
    let level = balancer.levels().find(|level| level.hosts.iter().any(|host| host.is_same(endpoint)));
    let config = &endpoint.config;
    Endpoint {
        address: endpoint.key.to_string(),
        weight: config.weight,
        health: match config.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Draining => "draining",
            Health::Unknown => "unknown",
        }
        .to_owned(),
        ejected: endpoint.is_ejected(),
        locality: config.locality.to_string(),
        level: level.map(|level| level.number),
        labels: config.labels.clone(),
        identity: config.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        transport: settings::transport(&cluster.tls, !endpoint.identities().is_empty()).to_owned(),
        accepts: candidate.accepts(cluster, &endpoint.key),
        workload: config.workload.to_string(),
        datacenter: endpoint.remote.as_ref().map(|remote| remote.datacenter.to_string()).unwrap_or_default(),
        fails_over: balancer
            .elsewhere()
            .is_some_and(|(percent, gateways)| percent > 0 && gateways.iter().any(|gateway| gateway.is_same(endpoint))),
    }
}
