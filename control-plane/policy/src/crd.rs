//! CustomResourceDefinitions of the kinds, for a Kubernetes cluster, made from their descriptors.
//!
//! The schema accepts every field, so that the API server keeps a field with a typing error and its status can say "did you
//! mean"; the control plane is the one place that knows the fields.

use serde_json::{Value, json};

use crate::Kind;

/// The definition of a kind; `None`: it is no custom resource. Services and Namespaces are Kubernetes' own, the Gateway
/// API has definitions of its own, and the settings of the mesh are no object of a cluster.
pub fn definition(kind: Kind) -> Option<Value> {
    let descriptor = kind.descriptor();
    if matches!(kind, Kind::Service | Kind::Namespace | Kind::IstioOperator) || descriptor.group == crate::GATEWAY_API {
        return None;
    }
    let version = |(n, name): (usize, &&str)| {
        json!({
            "name": name,
            "served": true,
            "storage": n == 0,
            "subresources": { "status": {} },
            "schema": { "openAPIV3Schema": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                    "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                },
            }},
            "additionalPrinterColumns": [
                {
                    "name": "Accepted",
                    "type": "string",
                    "jsonPath": ".status.conditions[?(@.type=='weft.dev/Accepted')].status",
                },
                { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
            ],
        })
    };
    let name = kind.name();
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", descriptor.plural, descriptor.group),
            "labels": { "app.kubernetes.io/managed-by": "weft" },
        },
        "spec": {
            "group": descriptor.group,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": format!("{name}List"),
                "plural": descriptor.plural,
                "singular": name.to_ascii_lowercase(),
                "shortNames": descriptor.short_names,
                "categories": ["istio-io"],
            },
            "versions": descriptor.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_custom_kind_has_a_definition_with_one_stored_version() {
        let definitions: Vec<Value> = Kind::ALL.iter().filter_map(|kind| definition(*kind)).collect();
        let of_gateway_api = Kind::ALL.iter().filter(|kind| kind.descriptor().group == crate::GATEWAY_API).count();
        assert_eq!(definitions.len(), Kind::ALL.len() - 3 - of_gateway_api);
        for definition in &definitions {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1, "{definition}");
        }
        let rule = definition(Kind::DestinationRule).unwrap();
        assert_eq!(rule["metadata"]["name"], "destinationrules.networking.istio.io");
        assert_eq!(rule["spec"]["names"]["shortNames"], json!(["dr"]));
        let served: Vec<&str> =
            rule["spec"]["versions"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(served, ["v1", "v1beta1", "v1alpha3"]);
    }
}
