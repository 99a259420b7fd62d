//! TCPRoute: the connections to Services and to the listeners of Gateways.

use super::http_route::backends;
use super::{BackendRef, GROUP, PARENT, ParentRef, hostnames, parents};
use crate::decode::fields::{Fields, Shape, explicit, not_yet, object, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1alpha2"],
    plural: "tcproutes",
    short_names: &[],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::TCPRoute(Box::new(decode(manifest))),
};

/// The `spec` of a TCPRoute or a TLSRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRoute {
    /// Services, and Gateways.
    pub parents: Vec<ParentRef>,
    /// Server names of TLS; empty: any.
    pub hostnames: Vec<String>,
    /// The backends of its rule. Connections are closed if it is empty.
    pub backends: Vec<BackendRef>,
}

/// Fields of `rules`. Connections have no properties by which several rules could be told apart, so there is one.
pub(super) const RULES: Shape = &[
    read("name"),
    object(
        "backendRefs",
        &[explicit("group"), read("kind"), read("namespace"), read("name"), read("port"), explicit("weight")],
    ),
];
/// Fields of `spec`.
const SHAPE: Shape = &[object("parentRefs", PARENT), not_yet("useDefaultGateways"), object("rules", RULES)];

impl Content for Box<StreamRoute> {
    fn hosts(&self) -> &[String] {
        &self.hostnames
    }
}

fn decode(manifest: &Manifest<'_>) -> StreamRoute {
    let (spec, namespace) = (&manifest.spec, manifest.namespace.as_str());
    StreamRoute { parents: parents(spec, namespace), hostnames: Vec::new(), backends: rule(spec, namespace) }
}

/// Reads a TLSRoute's `spec`.
pub(super) fn decode_tls(manifest: &Manifest<'_>) -> StreamRoute {
    StreamRoute { hostnames: hostnames(&manifest.spec), ..decode(manifest) }
}

fn rule(spec: &Fields<'_>, namespace: &str) -> Vec<BackendRef> {
    spec.require("rules");
    let rules = spec.objects("rules");
    if rules.len() > 1 {
        spec.error("rules", "`rules` has one rule: every connection would take the first");
    }
    rules.first().map(|rule| backends(rule, namespace)).unwrap_or_default()
}
