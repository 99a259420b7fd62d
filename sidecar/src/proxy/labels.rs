//! Source and destination: the labels of requests and connections, as [`crate::telemetry::labels`] has them.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::endpoint::Endpoint;
use weft_core::identity::SpiffeId;
use weft_core::inbound::Inbound;
use weft_core::names;

use crate::control::directory::ServiceView;
use crate::proxy::Proxy;
use crate::telemetry::labels::{Pair, Workload};
use crate::upstream::cluster::ClusterView;

/// Labels of calls to an endpoint of a cluster; `None`: no endpoint is chosen yet.
pub fn to_cluster(proxy: &Proxy, cluster: &ClusterView, endpoint: Option<&Arc<Endpoint>>) -> Arc<Pair> {
    cluster.pair(endpoint, || proxy.metrics.pair(outbound(proxy, cluster, endpoint)))
}

fn outbound(proxy: &Proxy, cluster: &ClusterView, endpoint: Option<&Arc<Endpoint>>) -> Pair {
    let config = &cluster.config;
    let destination = match endpoint {
        Some(endpoint) if !endpoint.config.workload.is_empty() => {
            let label = |name: &str| endpoint.config.labels.get(name).map(|v| Arc::from(v.as_str()));
            let principal = endpoint.identities().first().map(|id| Arc::from(id.as_str()));
            let name = endpoint.config.workload.clone();
            Workload {
                app: label("app").unwrap_or_else(|| name.clone()),
                version: label("version").unwrap_or_else(|| "latest".into()),
                namespace: endpoint.config.namespace.clone(),
                principal: principal.unwrap_or_else(|| "unknown".into()),
                name,
            }
        }
        _ => Workload::unknown(),
    };
    let (name, namespace) = names::parse_fqdn(&config.host).unwrap_or((&config.host, "unknown"));
    Pair {
        reporter: "source",
        source: proxy.own(),
        mtls: endpoint.is_some_and(|e| !e.identities().is_empty()),
        usual: Default::default(),
        destination,
        service: config.host.clone(),
        service_name: name.into(),
        service_namespace: namespace.into(),
    }
}

/// Labels of a call to a service that has no cluster for it.
pub fn service(proxy: &Proxy, view: &ServiceView) -> Pair {
    let host = &view.service.host;
    let name = names::parse_fqdn(host).map_or(&**host, |(name, _)| name);
    Pair {
        service: host.clone(),
        service_name: name.into(),
        service_namespace: view.service.namespace.clone(),
        ..unknown(proxy)
    }
}

/// Labels of a call to an unknown destination.
pub fn unknown(proxy: &Proxy) -> Pair {
    let unknown: Arc<str> = "unknown".into();
    Pair {
        reporter: "source",
        source: proxy.own(),
        destination: Workload::unknown(),
        service: unknown.clone(),
        service_name: unknown.clone(),
        service_namespace: unknown,
        mtls: false,
        usual: Default::default(),
    }
}

/// Labels of a call to a port of the application.
pub fn inbound(proxy: &Proxy, policy: &Inbound, to: SocketAddr, id: Option<&SpiffeId>) -> Pair {
    let unknown: Arc<str> = "unknown".into();
    let (host, namespace) = match policy.service(to.port()) {
        Some(service) => (service.host.clone(), service.namespace.clone()),
        None => (unknown.clone(), unknown),
    };
    let name = names::parse_fqdn(&host).map_or(&*host, |(name, _)| name);
    let source = workload_of(id);
    Pair {
        reporter: "destination",
        source: Workload { ..source },
        destination: proxy.own(),
        service_name: name.into(),
        service_namespace: namespace,
        service: host.clone(),
        mtls: id.is_some(),
        usual: Default::default(),
    }
}

/// A peer's side of a pair of workloads, by its identity.
pub fn workload_of(id: Option<&SpiffeId>) -> Workload {
    let Some(id) = id else { return Workload::unknown() };
    Workload {
        name: id.service_account().into(),
        namespace: id.namespace().into(),
        principal: id.as_str().into(),
        app: id.service_account().into(),
        ..Workload::unknown()
    }
}
