//! Reads of the registry for the agents' Consul API, with Consul's blocking queries.
//!
//! A query names the index that it has seen and is answered when the service's own index passes it: a change to one
//! service wakes nobody who waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use weft_proto::v1::catalog_server::Catalog;
use weft_proto::v1::{
    Block, CatalogInstance, InstancesAnswer, InstancesQuery, ServiceTags, ServicesAnswer, ServicesQuery,
};

use crate::mesh::{Mesh, Topic, wire};
use crate::peer::Peer;
use crate::world::{Instance, World, fqdn};

/// Consul's default and longest wait.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The catalog service.
pub struct CatalogService {
    /// What is registered.
    pub mesh: Arc<Mesh>,
}

#[tonic::async_trait]
impl Catalog for CatalogService {
    async fn instances(&self, request: Request<InstancesQuery>) -> Result<Response<InstancesAnswer>, Status> {
        let client = Peer::of(&request)?.certified()?.id.namespace().to_owned();
        let query = request.into_inner();
        let service = query.service;
        // The caller's namespace first, then "default"; a change in either may change the answer.
        let index =
            |world: &World| world.service_index(&client, &service).max(world.service_index("default", &service));
        let topics = [client.as_str(), "default"].map(|namespace| Topic::Service(fqdn(&service, namespace)));
        self.block(query.block.as_ref(), &topics, index).await;
        let answer = self.mesh.read(|world| {
            let own = world.service_instances(&client, &service).next().is_some();
            let namespace = if own { &client } else { "default" };
            let found = world.service_instances(namespace, &service);
            InstancesAnswer { index: index(world), instances: found.map(|i| catalog_instance(i)).collect() }
        });
        let answer = self.mesh.read_nodes(|nodes| {
            let mut answer = answer;
            for instance in &mut answer.instances {
                if let Some(node) = nodes.get(&instance.node) {
                    instance.node_address = node.address.to_string();
                    instance.node_checks = node.checks.values().cloned().collect();
                }
            }
            answer
        });
        Ok(Response::new(answer))
    }

    async fn services(&self, request: Request<ServicesQuery>) -> Result<Response<ServicesAnswer>, Status> {
        let client = Peer::of(&request)?.certified()?.id.namespace().to_owned();
        self.block(request.get_ref().block.as_ref(), &[Topic::Catalog], World::catalog_index).await;
        let answer = self.mesh.read(|world| {
            let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for instance in world.instances().filter(|i| i.namespace == client || i.namespace == "default") {
                tags.entry(&instance.service).or_default().extend(instance.tags.iter().map(String::as_str));
            }
            let services = tags.into_iter().map(|(name, tags)| ServiceTags {
                name: name.to_owned(),
                tags: tags.into_iter().map(str::to_owned).collect(),
            });
            ServicesAnswer { index: world.catalog_index(), services: services.collect() }
        });
        Ok(Response::new(answer))
    }
}

impl CatalogService {
    async fn block(&self, block: Option<&Block>, topics: &[Topic], index: impl Fn(&World) -> u64) {
        let Some(block) = block.filter(|b| b.index > 0) else { return };
        let wait = if block.wait_ms == 0 { DEFAULT_WAIT } else { Duration::from_millis(block.wait_ms).min(MAX_WAIT) };
        self.mesh.wait_past(topics, block.index, wait, index).await;
    }
}

fn catalog_instance(instance: &Instance) -> CatalogInstance {
    CatalogInstance {
        instance: Some(wire(instance)),
        node: instance.node.clone(),
        node_address: instance.address.to_string(),
        namespace: instance.namespace.clone(),
        identity: instance.identity.clone(),
        create_index: instance.create_index,
        modify_index: instance.modify_index,
        node_checks: Vec::new(),
    }
}
