//! ReferenceGrant: the references from other namespaces to objects of its own namespace that are permitted.

use super::{GROUP, ObjectRef};
use crate::decode::fields::{Fields, Shape, explicit, object, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1beta1", "v1alpha2"],
    plural: "referencegrants",
    short_names: &["refgrant"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::ReferenceGrant(decode(manifest)),
};

/// A ReferenceGrant's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceGrant {
    /// Group, kind and namespace of the objects that may refer.
    pub from: Vec<(String, String, String)>,
    /// Group, kind and name (`None`: any) of the objects that they may refer to.
    pub to: Vec<(String, String, Option<String>)>,
}

impl ReferenceGrant {
    /// Whether an object of this group and kind in `namespace` may refer to `target`, an object of the grant's namespace.
    pub fn permits(&self, group: &str, kind: &str, namespace: &str, target: &ObjectRef) -> bool {
        let from = |(g, k, n): &(String, String, String)| g == group && k == kind && n == namespace;
        let to = |(g, k, n): &(String, String, Option<String>)| {
            *g == target.group && *k == target.kind && n.as_ref().is_none_or(|name| *name == target.name)
        };
        self.from.iter().any(from) && self.to.iter().any(to)
    }
}

/// Fields of `spec`.
const SHAPE: Shape = &[
    object("from", &[explicit("group"), read("kind"), read("namespace")]),
    object("to", &[explicit("group"), read("kind"), read("name")]),
];

impl Content for ReferenceGrant {}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> ReferenceGrant {
    let spec = &manifest.spec;
    spec.require("from");
    spec.require("to");
    let group = |fields: &Fields<'_>| fields.string("group").unwrap_or_default();
    let from =
        |fields: &Fields<'_>| (group(fields), fields.required_string("kind"), fields.required_string("namespace"));
    let to = |fields: &Fields<'_>| (group(fields), fields.required_string("kind"), fields.string("name"));
    ReferenceGrant {
        from: spec.objects("from").iter().map(from).collect(),
        to: spec.objects("to").iter().map(to).collect(),
    }
}
