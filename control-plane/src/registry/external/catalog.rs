//! `catalog/register` and `catalog/deregister` of the caller's own node.

use bytes::Bytes;
use http::request;
use weft_agent::catalog;
use weft_agent::checks::target::Own;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::{Externals, NO_CHECKS, node_name, reachable};
use crate::identity::caller::Caller;

impl Externals {
    /// Handles a write to the caller's own node; `None`: the request is none.
    pub async fn catalog(&self, caller: &Caller, head: &request::Parts, body: &Bytes) -> Option<Reply> {
        if !catalog::is_write(head) {
            return None;
        }
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let name = node_name(caller.address, &caller.namespace);
        let datacenter = self.mesh.read(|world| world.datacenter().to_owned());
        let own = Own::At(caller.address);
        let reply = match catalog::parse(head.uri.path(), body, &name, &datacenter, own) {
            Ok(None) => return None,
            Ok(Some(write)) => self.write_catalog(caller, write, &query).await,
            Err(error) => Err(error),
        };
        Some(reply.unwrap_or_else(|error| reply::error(&error, false, &query)))
    }

    async fn write_catalog(&self, caller: &Caller, write: catalog::Write, query: &Query) -> Result<Reply, ApiError> {
        reachable(caller)?;
        if let catalog::Write::Register { service: Some(service), .. } = &write {
            caller.register(&service.service)?;
        }
        let node = self.node(caller.address, &caller.namespace)?;
        let local = &node.agent.local;
        let service_of = |id: &str| local.service(id).ok().map(|service| service.service);
        let of_check = |id: &str| local.checks().into_iter().find(|check| check.check_id == id).map(|c| c.service_id);
        let mut touched = Vec::new();
        match &write {
            catalog::Write::Register { service, checks } => {
                touched.extend(service.iter().filter_map(|service| service_of(&service.service_id)));
                for check in checks {
                    if check.definition.service_id.is_empty() {
                        return Err(ApiError::bad_request(NO_CHECKS));
                    }
                    touched.extend(service_of(&check.definition.service_id));
                    touched.extend(of_check(&check.definition.id).and_then(|held| service_of(&held)));
                }
            }
            catalog::Write::Service(id) => touched.extend(service_of(id)),
            catalog::Write::Check(id) => touched.extend(of_check(id).and_then(|held| service_of(&held))),
        }
        touched.iter().try_for_each(|service| caller.register(service))?;
        catalog::apply(&node.agent, write, query).await
    }
}
