//! Instances and documents for unit tests.

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
        port,
        warning_weight: 1,
        health: weft_proto::v1::Health::Healthy,
        ..Instance::at(address.parse().unwrap())
    }
}

/// Documents of a text that must have no errors.
pub(crate) fn documents(text: &str) -> Vec<Arc<Document>> {
    let parsed = parse_policies("test.yaml", text);
    assert!(!parsed.has_errors(), "{:#?}", parsed.problems);
    parsed.documents.into_iter().map(Arc::new).collect()
}
