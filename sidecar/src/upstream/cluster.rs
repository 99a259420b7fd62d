//! A cluster at work: its policy and endpoints as of one snapshot, and the state that outlives snapshots.
//!
//! Limits, connections and ejections belong to the cluster's name and survive policy changes (`Shared`); the view is
//! made anew with each snapshot. A request keeps the view that it began with.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use weft_core::balance::{Balancer, Inputs};
use weft_core::endpoint::{Endpoint, EndpointConfig, for_cluster};
use weft_core::limits::ClusterLimits;
use weft_core::locality::Location;
use weft_core::outcome::Outcome;
use weft_core::outlier::Detector;
use weft_core::policy::{Cluster, ConnectionPool, OutlierDetection, TargetPort};
use weft_core::pool::EndpointId;
use weft_core::reply::Reason;

use crate::telemetry::labels::Pair;
use crate::tls::identity::Identity;
use crate::upstream::dial::Dialer;
use crate::upstream::dynamic_hosts::DynamicHosts;
use crate::upstream::pool::ClusterPool;

/// State that survives a new snapshot.
pub struct Shared {
    /// Connections.
    pub pool: Arc<ClusterPool>,
    /// Requests and retries in flight.
    pub limits: ClusterLimits,
    /// Endpoints that requests named.
    dynamic_hosts: DynamicHosts,
}

/// One cluster as of one snapshot.
pub struct ClusterView {
    /// Its policy.
    pub config: Arc<Cluster>,
    /// All its endpoints, the unhealthy too.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Limits and connections.
    pub shared: Arc<Shared>,
    /// Generation of the connection settings when the view was made; see [`crate::upstream::pool`].
    pub generation: u32,
    /// Where this proxy is.
    location: Arc<Location>,
    balancer: ArcSwap<Balancer>,
    detector: Option<Detector>,
    /// Of those endpoints that are gateways of other data centres.
    gateways: Option<Detector>,
    /// Labels of calls to each endpoint, and to none; made when first needed.
    pairs: HashMap<EndpointId, OnceLock<Arc<Pair>>>,
    no_pair: OnceLock<Arc<Pair>>,
}

impl ClusterView {
    /// The view of `config` with `endpoints` for a proxy at `place`; it takes over the lasting state of `previous`.
    pub fn new(
        config: Arc<Cluster>,
        endpoints: &[Arc<EndpointConfig>],
        location: &Arc<Location>,
        previous: Option<&ClusterView>,
    ) -> ClusterView {
        let old = previous.map(|p| p.endpoints.as_slice()).unwrap_or_default();
        let endpoints = for_cluster(&config, endpoints, old);
        let shared = match previous {
            Some(previous) => {
                let shared = previous.shared.clone();
                shared.pool.set_policy(&config.pool);
                let old = &previous.config;
                if (&old.tls, old.pool.tcp_keepalive, old.proxy_protocol)
                    != (&config.tls, config.pool.tcp_keepalive, config.proxy_protocol)
                {
                    // Open connections were opened under the old settings: without TLS, for example.
                    shared.pool.renew();
                }
                shared
            }
            None => Arc::new(Shared {
                pool: ClusterPool::new(&config.pool),
                limits: ClusterLimits::new(),
                dynamic_hosts: DynamicHosts::default(),
            }),
        };
        if !config.original_destination && !config.dynamic_dns {
            shared.pool.set_live(endpoints.iter().filter(|e| e.is_eligible()).map(|e| e.state.id()));
        } else {
            shared.pool.set_all_live();
        }
        let (remote, here): (Vec<_>, Vec<_>) = endpoints.iter().cloned().partition(|e| e.remote.is_some());
        let gateways = (!remote.is_empty()).then(|| {
            // Looked at together with the others.
            let own = OutlierDetection::of_gateways();
            let interval = config.outlier.as_ref().map_or(own.interval, |policy| policy.interval);
            let policy = OutlierDetection { interval, ..own };
            Detector::new(policy, remote, previous.and_then(|p| p.gateways.as_ref()))
        });
        let detector = config
            .outlier
            .clone()
            .map(|policy| Detector::new(policy, here, previous.and_then(|p| p.detector.as_ref())));
        let before = previous.map(|p| p.balancer.load_full());
        let inputs = Inputs { location, now: Instant::now() };
        let balancer = ArcSwap::from_pointee(Balancer::new(&config, &endpoints, inputs, before.as_deref()));
        let pairs = endpoints.iter().map(|endpoint| (endpoint.state.id(), OnceLock::new())).collect();
        ClusterView {
            config,
            endpoints,
            location: location.clone(),
            generation: shared.pool.generation(),
            shared,
            balancer,
            detector,
            gateways,
            pairs,
            no_pair: OnceLock::new(),
        }
    }

    /// Whether the view was made for this location.
    pub fn is_at(&self, location: &Arc<Location>) -> bool {
        Arc::ptr_eq(&self.location, location)
    }

    /// The cluster of unknown destinations: dialed at the original destination, without limits. A connection serves at most
    /// `requests`.
    pub fn passthrough(requests: u32) -> ClusterView {
        let pool = ConnectionPool { max_requests_per_connection: requests, ..Default::default() };
        let config = Cluster::original_destination("PassthroughCluster", "PassthroughCluster", pool);
        ClusterView::new(Arc::new(config), &[], &Arc::default(), None)
    }

    /// The endpoint that `authority`, or a server name, stands for, in a cluster whose requests name their endpoints.
    ///
    /// # Errors
    /// If it is no host of the cluster, or too many are in use.
    pub fn dynamic_endpoint(&self, authority: &str) -> Result<Arc<Endpoint>, Reason> {
        let host = self.config.dynamic_host(authority).ok_or(Reason::UnknownHost)?;
        let port = match self.config.target_port {
            TargetPort::Number(port) => port,
            TargetPort::Registered | TargetPort::Named { .. } => self.config.port,
        };
        let (endpoint, gone) = self.shared.dynamic_hosts.endpoint(&host, port);
        if let Some(gone) = gone {
            self.shared.pool.forget(gone);
        }
        endpoint.ok_or(Reason::NoHealthyUpstream)
    }

    /// Labels of calls to one of the endpoints (`None`: no endpoint is chosen yet): `make` is called once for each.
    pub fn pair(&self, endpoint: Option<&Arc<Endpoint>>, make: impl FnOnce() -> Arc<Pair>) -> Arc<Pair> {
        match endpoint.map(|endpoint| self.pairs.get(&endpoint.state.id())) {
            None => self.no_pair.get_or_init(make).clone(),
            Some(Some(made)) => made.get_or_init(make).clone(),
            // A passthrough endpoint, which belongs to one connection.
            Some(None) => make(),
        }
    }

    /// A dialer for one of the endpoints: by HTTP/1, and within the whole connect timeout.
    pub fn dialer<'a>(&'a self, endpoint: &'a Endpoint, identity: &'a Identity, mark: u32) -> Dialer<'a> {
        Dialer {
            cluster: &self.config,
            endpoint,
            identity,
            ends: None,
            multiplex: false,
            mark,
            patience: None,
            generation: self.generation,
        }
    }

    /// Whether there is more than one endpoint that requests go to.
    pub fn has_others(&self) -> bool {
        self.endpoints.iter().filter(|endpoint| endpoint.is_eligible()).nth(1).is_some()
    }

    /// The balancer as ejections have it now.
    pub fn balancer(&self) -> arc_swap::Guard<Arc<Balancer>> {
        self.balancer.load()
    }

    /// Records the outcome of an attempt for outlier detection.
    pub fn record(&self, endpoint: &Endpoint, outcome: &Outcome) {
        let detector = if endpoint.remote.is_some() { &self.gateways } else { &self.detector };
        let Some(detector) = detector else { return };
        if let Some(ejection) = detector.record(endpoint, outcome, Instant::now()) {
            tracing::warn!(
                cluster = %self.config.name,
                endpoint = %endpoint.key,
                seconds = ejection.duration.as_secs_f64(),
                cause = ?ejection.cause,
                "endpoint ejected"
            );
            self.rebalance();
        }
    }

    /// Time between looks at ejected endpoints; `None`: outlier detection is off.
    pub fn outlier_interval(&self) -> Option<Duration> {
        self.detector.as_ref().or(self.gateways.as_ref()).map(Detector::interval)
    }

    /// Looks at ejected endpoints.
    pub fn tick(&self, now: Instant) {
        // Both detectors are ticked, whichever has a change.
        let back = self.detector.iter().chain(&self.gateways).filter(|detector| detector.tick(now)).count();
        if back > 0 {
            tracing::info!(cluster = %self.config.name, "ejected endpoints are back");
            self.rebalance();
        }
    }

    /// Raises the weight of endpoints that are warming up.
    pub fn warm(&self) {
        if self.balancer.load().is_warming() {
            self.rebalance();
        }
    }

    fn rebalance(&self) {
        // Race window: two rebuild at once, and the older result may be stored last. The next ejection or tick mends it;
        // until then one endpoint more or less is in use.
        let old = self.balancer.load_full();
        let inputs = Inputs { location: &self.location, now: Instant::now() };
        self.balancer.store(Arc::new(Balancer::new(&self.config, &self.endpoints, inputs, Some(&old))));
    }
}
