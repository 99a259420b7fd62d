//! Kinds of Kubernetes' Gateway API, and the references that they have in common.

pub(crate) mod backend_tls_policy;
pub(crate) mod gateway;
pub(crate) mod gateway_class;
pub(crate) mod grpc_route;
pub(crate) mod http_route;
pub(crate) mod namespace;
pub(crate) mod reference_grant;
pub(crate) mod tcp_route;
pub(crate) mod tls_route;

use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, explicit, read};
use crate::yaml::Place;
use crate::{Code, Object, Severity, names};

/// Its API group.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// An object that another one names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// API group; empty: Kubernetes' core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Written, or that of the document.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectRef {
    /// Whether it is a Service of Kubernetes.
    pub fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }

    /// Whether it is a Gateway of this API.
    pub fn is_gateway(&self) -> bool {
        self.group == GROUP && self.kind == "Gateway"
    }
}

/// One entry of `parentRefs`.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentRef {
    /// The parent.
    pub object: ObjectRef,
    /// The name of a listener, or of a Service's port; empty: all.
    pub section: String,
    /// The port of a listener or of a Service; `None`: all.
    pub port: Option<u32>,
    /// Its place in the file.
    pub place: Place,
}

/// One entry of `backendRefs`, or the backend of a mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    /// The backend.
    pub object: ObjectRef,
    /// Port of the Service.
    pub port: Option<u32>,
    /// Share of the requests.
    pub weight: u32,
    /// Header operations of this backend.
    pub headers: Option<v1::HeaderOperations>,
    /// Its place in the file.
    pub place: Place,
}

impl Object {
    /// The parents of a route of the Gateway API; other objects have none.
    pub fn parents(&self) -> &[ParentRef] {
        match self {
            Object::HTTPRoute(route) | Object::GRPCRoute(route) => &route.parents,
            Object::TLSRoute(route) | Object::TCPRoute(route) => &route.parents,
            _ => &[],
        }
    }

    /// The backends of a route of the Gateway API, with the place of each in `spec`.
    pub fn backends(&self) -> Vec<(String, &BackendRef)> {
        match self {
            Object::HTTPRoute(route) | Object::GRPCRoute(route) => route.backends().collect(),
            Object::TLSRoute(route) | Object::TCPRoute(route) => {
                let backends = route.backends.iter().enumerate();
                backends.map(|(at, backend)| (format!("rules[0].backendRefs[{at}]"), backend)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Fields of a `parentRefs`.
const PARENT: Shape =
    &[explicit("group"), read("kind"), read("namespace"), read("name"), read("sectionName"), read("port")];

/// Reads `parentRefs`.
fn parents(spec: &Fields<'_>, namespace: &str) -> Vec<ParentRef> {
    let one = |fields: &Fields<'_>| {
        let object = object_ref(fields, namespace, GROUP, "Gateway");
        if !object.is_service() && !object.is_gateway() {
            let hint = if object.kind == "Service" { ": the group of a Service is written `group: \"\"`" } else { "" };
            let text =
                format!("`{}` of group `{}` is no parent in this mesh: skipped{hint}", object.kind, object.group);
            fields.report(Severity::Warning, Code::Ineffective, fields.place, "kind", text);
        }
        let section = fields.string("sectionName").unwrap_or_default();
        ParentRef { object, section, port: fields.port("port"), place: fields.place }
    };
    spec.objects("parentRefs").iter().map(one).collect()
}

/// Reads the fields `group`, `kind`, `namespace` and `name`.
fn object_ref(fields: &Fields<'_>, namespace: &str, group: &str, kind: &str) -> ObjectRef {
    // Some references are to objects of the own namespace only.
    let written = if fields.knows("namespace") { fields.string("namespace") } else { None };
    if let Some(written) = written.as_deref().filter(|written| !names::is_label(written)) {
        fields.error("namespace", format!("`{written}` is not a namespace: lower-case letters, digits and hyphens"));
    }
    ObjectRef {
        group: fields.string("group").unwrap_or_else(|| group.to_owned()),
        kind: fields.string("kind").unwrap_or_else(|| kind.to_owned()),
        namespace: written.unwrap_or_else(|| namespace.to_owned()),
        name: fields.required_string("name"),
    }
}

/// Reads a backend without its weight and filters.
fn backend(fields: &Fields<'_>, namespace: &str) -> BackendRef {
    let object = object_ref(fields, namespace, "", "Service");
    let port = fields.port("port");
    if object.is_service() && port.is_none() {
        fields.require("port");
    }
    BackendRef { object, port, weight: 1, headers: None, place: fields.place }
}

/// Reads `hostnames`: host names, or `*.suffix`.
fn hostnames(spec: &Fields<'_>) -> Vec<String> {
    let one = |(name, place): (String, Place)| {
        check_hostname(spec, &name, place);
        name.to_ascii_lowercase()
    };
    spec.strings("hostnames").into_iter().map(one).collect()
}

fn check_hostname(fields: &Fields<'_>, name: &str, place: Place) {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if !names::is_host(rest) || rest.contains('*') || name.parse::<std::net::IpAddr>().is_ok() {
        fields.error_at(place, format!("`{name}` is not a host name or *.suffix"));
    }
}

/// A duration of the Gateway API: up to four numbers of up to five digits with `h`, `m`, `s` or `ms`.
fn duration(fields: &Fields<'_>, name: &'static str) -> Option<u64> {
    let text = fields.string(name)?;
    let mut rest = text.as_str();
    let mut parts = 0;
    while !rest.is_empty() && parts < 5 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = ["ms", "h", "m", "s"].into_iter().find(|unit| rest[digits..].starts_with(unit));
        let Some(unit) = unit.filter(|_| (1..=5).contains(&digits)) else { break };
        rest = &rest[digits + unit.len()..];
        parts += 1;
    }
    if !rest.is_empty() || !(1..=4).contains(&parts) {
        let path = fields.path_of(name);
        fields.error(name, format!("`{path}`: `{text}` is not a duration such as 10s, 500ms or 1h30m"));
        return None;
    }
    fields.duration(name, 0)
}

#[cfg(test)]
mod tests;
