//! TLSRoute: the connections with the application's own TLS, by server name.

use super::tcp_route::{RULES, decode_tls};
use super::{GROUP, PARENT};
use crate::decode::fields::{Shape, not_yet, object, read};
use crate::kinds::{Descriptor, Object};

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1alpha3", "v1alpha2"],
    plural: "tlsroutes",
    short_names: &[],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::TLSRoute(Box::new(decode_tls(manifest))),
};

/// Fields of `spec`.
const SHAPE: Shape =
    &[object("parentRefs", PARENT), read("hostnames"), not_yet("useDefaultGateways"), object("rules", RULES)];
