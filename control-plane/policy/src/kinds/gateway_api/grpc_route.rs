//! GRPCRoute: routes of the gRPC calls to Services and to the listeners of Gateways. A call is a request whose path is
//! `/service/method`, so its content is an HTTPRoute's.

use super::http_route::matching::{self, RankedMatch};
use super::http_route::{BACKEND, HttpRoute, HttpRule, backends, filters, with_filters};
use super::{GROUP, PARENT, hostnames, parents};
use crate::decode::fields::{Fields, Shape, not_yet, object, read};
use crate::kinds::{Descriptor, Manifest, Object};

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1alpha2"],
    plural: "grpcroutes",
    short_names: &[],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::GRPCRoute(Box::new(decode(manifest))),
};

/// Fields of `spec`.
const SHAPE: Shape = &[
    object("parentRefs", PARENT),
    read("hostnames"),
    not_yet("useDefaultGateways"),
    object(
        "rules",
        &[
            read("name"),
            object("matches", matching::GRPC),
            object("filters", filters::GRPC),
            object("backendRefs", BACKEND),
            not_yet("sessionPersistence"),
        ],
    ),
];

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> HttpRoute {
    let (spec, namespace) = (&manifest.spec, manifest.namespace.as_str());
    let rules = spec.objects("rules").iter().map(|fields| rule(fields, namespace)).collect();
    HttpRoute { parents: parents(spec, namespace), hostnames: hostnames(spec), rules }
}

fn rule(fields: &Fields<'_>, namespace: &str) -> HttpRule {
    let mut matches: Vec<RankedMatch> = fields.objects("matches").iter().map(matching::grpc).collect();
    if matches.is_empty() {
        matches.push(RankedMatch::default());
    }
    with_filters(
        filters::decode(fields, namespace),
        HttpRule {
            name: fields.string("name").unwrap_or_default(),
            matches,
            backends: backends(fields, namespace),
            place: fields.place,
            ..HttpRule::default()
        },
    )
}
