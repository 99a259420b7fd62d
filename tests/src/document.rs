//! Policy documents with parameters. Constant ones are YAML text in the scenario.

use serde_json::{Value, json};
use weft_policy::Kind;

/// One document of the newest version of its kind; `name` is `name` or `namespace/name`. It begins with `---`, so that
/// several are joined by concatenation.
pub fn document(kind: Kind, name: &str, spec: Value) -> String {
    let descriptor = kind.descriptor();
    let version = descriptor.versions[0];
    let api = if descriptor.group.is_empty() { version.to_owned() } else { format!("{}/{version}", descriptor.group) };
    let metadata = match name.split_once('/') {
        Some((namespace, name)) => json!({"name": name, "namespace": namespace}),
        None => json!({"name": name}),
    };
    // JSON is YAML too.
    let document = json!({"apiVersion": api, "kind": kind.written(), "metadata": metadata, "spec": spec});
    format!("---\n{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_documents_are_parsed_as_written() {
        let rule = document(Kind::DestinationRule, "order", json!({"host": "order"}));
        let service = document(Kind::Service, "shop/order", json!({"ports": [{"name": "http", "port": 80}]}));
        let parsed = weft_policy::parse("x.yaml", &(rule + &service));
        let names: Vec<_> = parsed.documents.iter().map(|d| (d.namespace.as_str(), d.name.as_str())).collect();
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        assert_eq!(names, [("default", "order"), ("shop", "order")]);
    }
}
