//! Compiles the routes of TCP and TLS connections.

use std::sync::Arc;

use weft_proto::v1;

use crate::headers::HeaderOps;
use crate::policy::Cluster;
use crate::route::{ConnectionMatch, ConnectionRoute, ConnectionRoutes};
use crate::subnet::Subnet;

use super::route::forward;
use super::{At, Result, host_name};

/// The connection routes of a port.
pub(super) fn table(messages: &[v1::ConnectionRoute], clusters: &[Arc<Cluster>]) -> Result<ConnectionRoutes> {
    let mut routes = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        routes.push(route(message, clusters).at(format_args!("connection_routes[{i}]"))?);
    }
    Ok(ConnectionRoutes::new(routes))
}

fn route(message: &v1::ConnectionRoute, clusters: &[Arc<Cluster>]) -> Result<ConnectionRoute> {
    let mut matches = Vec::with_capacity(message.matches.len());
    for (i, item) in message.matches.iter().enumerate() {
        matches.push(one(item).at(format_args!("matches[{i}]"))?);
    }
    let all = v1::Forward { destinations: message.destinations.clone(), ..v1::Forward::default() };
    let forward = forward(&all, clusters, &HeaderOps::default(), None)?;
    Ok(ConnectionRoute { name: message.name.as_str().into(), matches, forward: Arc::new(forward) })
}

fn one(message: &v1::ConnectionMatch) -> Result<ConnectionMatch> {
    let mut server_names = Vec::with_capacity(message.server_names.len());
    for (i, name) in message.server_names.iter().enumerate() {
        server_names.push(host_name(name).at(format_args!("server_names[{i}]"))?.to_string());
    }
    let subnet =
        |text: &str| Subnet::parse(text).ok_or_else(|| format!("{text:?} is neither an IP address nor a CIDR range"));
    let mut destinations = Vec::with_capacity(message.destination_subnets.len());
    for (i, text) in message.destination_subnets.iter().enumerate() {
        destinations.push(subnet(text).at(format_args!("destination_subnets[{i}]"))?);
    }
    let source = match message.source_subnet.as_str() {
        "" => None,
        text => Some(subnet(text).at("source_subnet")?),
    };
    Ok(ConnectionMatch { server_names, destinations, source })
}
