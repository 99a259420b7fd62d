//! GatewayClass: the controller of the Gateways that name it. It belongs to no namespace.

use super::GROUP;
use crate::decode::fields::{Shape, not_yet, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};

/// `controllerName` of the classes whose Gateways this mesh serves.
pub const CONTROLLER: &str = "weft.dev/gateway-controller";

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1beta1", "v1alpha2"],
    plural: "gatewayclasses",
    short_names: &["gc"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::GatewayClass(decode(manifest)),
};

/// A GatewayClass's `spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayClass {
    /// `controllerName`.
    pub controller: String,
}

/// Fields of `spec`.
const SHAPE: Shape = &[read("controllerName"), read("description"), not_yet("parametersRef")];

impl Content for GatewayClass {}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> GatewayClass {
    if let Some(metadata) = manifest.metadata.as_ref().filter(|metadata| metadata.has("namespace")) {
        metadata.error("namespace", "a GatewayClass belongs to no namespace: leave it out");
    }
    GatewayClass { controller: manifest.spec.required_string("controllerName") }
}
