//! `catalog/register` and `catalog/deregister` of the caller's own node.

use bytes::Bytes;
use http::request;
use weft_agent::answer::{self, Answered};
use weft_agent::catalog;
use weft_agent::checks::target::Own;
use weft_agent::query::Query;
use weft_agent::refused::Refused;

use super::{Externals, NO_CHECKS, node_name, reachable};
use crate::identity::caller::Caller;

impl Externals {
    /// Handles a write to the caller's own node; `None`: it concerns another node.
    pub async fn catalog(&self, caller: &Caller, head: &request::Parts, body: &Bytes) -> Option<Answered> {
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let name = node_name(caller.address, &caller.namespace);
        let datacenter = self.mesh.read(|world| world.datacenter().to_owned());
        let own = Own::At(caller.address);
        let answered = match catalog::written(head.uri.path(), body, &name, &datacenter, own) {
            Ok(None) => return None,
            Ok(Some(written)) => self.write_catalog(caller, written, &query).await,
            Err(refused) => Err(refused),
        };
        Some(answered.unwrap_or_else(|refused| answer::refusal(&refused, false, &query)))
    }

    async fn write_catalog(
        &self,
        caller: &Caller,
        written: catalog::Written,
        query: &Query,
    ) -> Result<Answered, Refused> {
        reachable(caller)?;
        if let catalog::Written::Register { service: Some(service), .. } = &written {
            caller.register(&service.service)?;
        }
        let node = self.node(caller.address, &caller.namespace)?;
        let local = &node.agent.local;
        let service_of = |id: &str| local.service(id).ok().map(|service| service.service);
        let of_check = |id: &str| local.checks().into_iter().find(|check| check.check_id == id).map(|c| c.service_id);
        let mut touched = Vec::new();
        match &written {
            catalog::Written::Register { service, checks } => {
                touched.extend(service.iter().filter_map(|service| service_of(&service.service_id)));
                for check in checks {
                    if check.definition.service_id.is_empty() {
                        return Err(Refused::bad(NO_CHECKS));
                    }
                    touched.extend(service_of(&check.definition.service_id));
                    touched.extend(of_check(&check.definition.id).and_then(|held| service_of(&held)));
                }
            }
            catalog::Written::Service(id) => touched.extend(service_of(id)),
            catalog::Written::Check(id) => touched.extend(of_check(id).and_then(|held| service_of(&held))),
        }
        touched.iter().try_for_each(|service| caller.register(service))?;
        catalog::write(&node.agent, written, query).await
    }
}
