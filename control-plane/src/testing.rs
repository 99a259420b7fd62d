//! Instances and documents for unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_policy::Document;
use weft_world::{Instance, parse_policies};

/// An instance of `service` in "default", its node named after its id.
pub(crate) fn instance(service: &str, id: &str, address: &str, port: u16) -> Instance {
    Instance {
        namespace: "default".to_owned(),
        node: format!("node-{id}"),
        service_id: id.to_owned(),
        service: service.to_owned(),
        group: String::new(),
        address: address.parse().unwrap(),
        port,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        labels: BTreeMap::new(),
        weight: 0,
        tagged_addresses: BTreeMap::new(),
        warning_weight: 1,
        eureka: String::new(),
        enable_tag_override: false,
        health: weft_proto::v1::Health::Healthy,
        identity: String::new(),
        workload: String::new(),
        locality: String::new(),
        draining: false,
        create_index: 0,
        modify_index: 0,
        checks: Vec::new(),
    }
}

/// Documents of a text that must have no errors.
pub(crate) fn documents(text: &str) -> Vec<Arc<Document>> {
    let parsed = parse_policies("test.yaml", text);
    assert!(!parsed.has_errors(), "{:#?}", parsed.problems);
    parsed.documents.into_iter().map(Arc::new).collect()
}
