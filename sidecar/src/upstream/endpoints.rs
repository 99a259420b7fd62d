//! Endpoints that no registry lists.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::endpoint::{Address, Endpoint, EndpointConfig, EndpointState, Health, Target, key_of};

/// The original destination of a connection, as an endpoint.
pub fn passthrough(address: SocketAddr) -> Arc<Endpoint> {
    unregistered(Address::Ip(address.ip()), address.port(), Target::Socket(address))
}

/// A Unix socket of the application.
pub fn unix_socket(path: &Arc<str>) -> Arc<Endpoint> {
    unregistered(Address::Unix(path.clone()), 0, Target::Unix(path.clone()))
}

/// An endpoint that no registry lists.
pub fn unregistered(address: Address, port: u16, target: Target) -> Arc<Endpoint> {
    let none: Arc<str> = "".into();
    let key = key_of(&target);
    Arc::new(Endpoint {
        config: Arc::new(EndpointConfig {
            address,
            port,
            ports: Default::default(),
            labels: Default::default(),
            weight: 1,
            health: Health::Healthy,
            identity: None,
            id: none.clone(),
            workload: none.clone(),
            namespace: none.clone(),
            locality: none,
            hostnames: Vec::new(),
            remote: None,
        }),
        target,
        key,
        state: Arc::new(EndpointState::default()),
        remote: None,
    })
}
