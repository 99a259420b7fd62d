//! Text -> documents: finds each document's kind, reads its metadata, and hands `spec` to the kind's decoder.

use crate::decode::{
    annotations,
    fields::{self, Decoder, Fields, Shape, not_yet, object, read},
};
use crate::kinds::{
    destination_rule, gateway, kube_service, mesh_config, peer_authentication, service_entry, sidecar, virtual_service,
    workload_entry, workload_group,
};
use crate::yaml::{self, Key, Node, Place, Value, YamlDocument};
use crate::{Code, Document, Kind, Object, Parsed, ROOT_NAMESPACE, Severity, export, names, nearest::suggest};

/// Kinds of Istio that are known and not supported yet, by API group.
pub(crate) const NOT_YET: &[(&str, &str)] = &[
    ("networking.istio.io", "EnvoyFilter"),
    ("networking.istio.io", "ProxyConfig"),
    ("security.istio.io", "AuthorizationPolicy"),
    ("security.istio.io", "RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
    ("extensions.istio.io", "WasmPlugin"),
    ("extensions.istio.io", "TrafficExtension"),
];

/// API groups of Kubernetes' Gateway API: all their kinds concern routing.
const GATEWAY_API: &[&str] = &[
    "gateway.networking.k8s.io",
    "gateway.networking.x-k8s.io",
    "inference.networking.k8s.io",
    "inference.networking.x-k8s.io",
];

/// Kubernetes' metadata of an object. Name, namespace, annotations and creation time are used; the rest is bookkeeping
/// that `kubectl get -o yaml` writes, and such files must work unchanged.
const METADATA: Shape = &[
    read("name"),
    read("namespace"),
    read("labels"),
    read("annotations"),
    read("creationTimestamp"),
    read("resourceVersion"),
    read("uid"),
    read("generation"),
    read("managedFields"),
    read("ownerReferences"),
    read("finalizers"),
    read("selfLink"),
    read("deletionTimestamp"),
    read("deletionGracePeriodSeconds"),
    not_yet("generateName"),
];

/// Fields of a ServiceExport's `spec`: only its name is used.
const SERVICE_EXPORT: Shape = &[not_yet("exportedLabels"), not_yet("exportedAnnotations")];

impl Kind {
    fn group(self) -> &'static str {
        match self {
            Self::PeerAuthentication => "security.istio.io",
            Self::Service => "",
            Self::ServiceExport => "multicluster.x-k8s.io",
            Self::IstioOperator => "install.istio.io",
            _ => "networking.istio.io",
        }
    }

    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["v1"],
            Self::ServiceExport => &["v1beta1", "v1alpha1"],
            Self::PeerAuthentication => &["v1", "v1beta1"],
            Self::IstioOperator => &["v1alpha1"],
            _ => &["v1", "v1beta1", "v1alpha3"],
        }
    }

    /// The namespace of a document without one.
    fn namespace(self) -> &'static str {
        if self == Self::IstioOperator { ROOT_NAMESPACE } else { "default" }
    }

    /// Name of a document that may omit it; empty: the name is required.
    fn own_name(self) -> &'static str {
        if self == Self::IstioOperator { "mesh" } else { "" }
    }

    pub(crate) fn spec(self) -> Shape {
        match self {
            Self::DestinationRule => destination_rule::SHAPE,
            Self::VirtualService => virtual_service::SHAPE,
            Self::Gateway => gateway::SHAPE,
            Self::ServiceEntry => service_entry::SHAPE,
            Self::WorkloadEntry => workload_entry::SHAPE,
            Self::WorkloadGroup => workload_group::SHAPE,
            Self::PeerAuthentication => peer_authentication::SHAPE,
            Self::Service => kube_service::SHAPE,
            Self::ServiceExport => SERVICE_EXPORT,
            Self::Sidecar => sidecar::SHAPE,
            Self::IstioOperator => mesh_config::SHAPE,
        }
    }

    fn top(self) -> Shape {
        const fn top(spec: Shape) -> [fields::Field; 5] {
            [read("apiVersion"), read("kind"), object("metadata", METADATA), object("spec", spec), read("status")]
        }
        match self {
            Self::DestinationRule => const { &top(destination_rule::SHAPE) },
            Self::VirtualService => const { &top(virtual_service::SHAPE) },
            Self::Gateway => const { &top(gateway::SHAPE) },
            Self::ServiceEntry => const { &top(service_entry::SHAPE) },
            Self::WorkloadEntry => const { &top(workload_entry::SHAPE) },
            Self::WorkloadGroup => const { &top(workload_group::SHAPE) },
            Self::PeerAuthentication => const { &top(peer_authentication::SHAPE) },
            Self::Service => const { &top(kube_service::SHAPE) },
            Self::ServiceExport => const { &top(SERVICE_EXPORT) },
            Self::Sidecar => const { &top(sidecar::SHAPE) },
            Self::IstioOperator => const { &top(mesh_config::SHAPE) },
        }
    }
}

/// Reads every document of a text. Problems are reported under the name `file`.
///
/// Sidecars compile the resources that they receive, and may refuse a document that parses:
/// `weft_world::parse_policies` finds that too.
pub fn parse(file: &str, text: &str) -> Parsed {
    let (found, errors) = yaml::parse(text);
    let decoder = Decoder::new(file);
    for error in errors {
        decoder.report(Severity::Error, Code::NotYaml, error.place, "", error.text);
    }
    let documents = found.into_iter().filter_map(|found| {
        let before = decoder.errors();
        let document = document(&decoder, file, found)?;
        (decoder.errors() == before).then_some(document)
    });
    let documents = documents.collect();
    let mut parsed = Parsed { documents, problems: decoder.into_problems() };
    parsed.sort_problems();
    parsed
}

fn document(decoder: &Decoder<'_>, file: &str, found: YamlDocument) -> Option<Document> {
    let YamlDocument { root, text } = found;
    let entries = match &root.value {
        Value::Null => return None,
        Value::Map(entries) => entries,
        _ => {
            let text = format!("a document must be a map with `apiVersion` and `kind`, not {}", root.describe());
            decoder.report(Severity::Error, Code::UnknownKind, root.place, "", text);
            return None;
        }
    };
    let kind = kind(decoder, root.place, entries)?;
    let null = Node { value: Value::Null, place: root.place };
    let top = decoder.fields(&root, String::new(), kind.top());
    let spec_node = top.node("spec").unwrap_or(&null);
    let metadata = top.object("metadata");
    if metadata.is_none() && kind != Kind::IstioOperator {
        decoder.report(Severity::Error, Code::Required, top.place, "metadata", "`metadata.name` is required");
    }
    if let Some(metadata) = &metadata {
        annotations::check(metadata, kind);
    }
    let exported = metadata.as_ref().filter(|_| kind == Kind::Service).map(export::annotated).unwrap_or_default();
    let (namespace, name, created) = match &metadata {
        Some(metadata) => identity(metadata, kind),
        None => (kind.namespace().to_owned(), kind.own_name().to_owned(), 0),
    };
    let may_be_empty = matches!(kind, Kind::PeerAuthentication | Kind::ServiceExport | Kind::IstioOperator);
    if spec_node.value == Value::Null && !may_be_empty {
        decoder.report(Severity::Error, Code::Required, top.place, "spec", "`spec` is required");
        return None;
    }
    // Paths of a spec's fields are reported without `spec.`: shorter, and as in Istio's documentation.
    let spec = decoder.fields(spec_node, String::new(), kind.spec());
    let object = match kind {
        Kind::DestinationRule => Object::DestinationRule(Box::new(destination_rule::decode(&spec))),
        Kind::VirtualService => Object::VirtualService(virtual_service::decode(&spec)),
        Kind::Gateway => Object::Gateway(gateway::decode(&spec)),
        Kind::ServiceEntry => Object::ServiceEntry(service_entry::decode(&spec)),
        Kind::WorkloadEntry => Object::WorkloadEntry(workload_entry::decode(&spec)),
        Kind::WorkloadGroup => Object::WorkloadGroup(Box::new(workload_group::decode(&spec))),
        Kind::PeerAuthentication => Object::PeerAuthentication(peer_authentication::decode(&spec)),
        Kind::Service => Object::Service(kube_service::decode(&spec, exported)),
        Kind::ServiceExport => Object::ServiceExport,
        Kind::Sidecar => Object::Sidecar(Box::new(sidecar::decode(&spec))),
        Kind::IstioOperator => Object::IstioOperator(mesh_config::decode(&spec)),
    };
    if kind == Kind::IstioOperator && !crate::is_root(&namespace) {
        let text = format!("no effect on the mesh: its settings are in namespace {ROOT_NAMESPACE} or istio-system");
        decoder.report(Severity::Warning, Code::Ineffective, top.place, "metadata", text);
    }
    check_names(&top, &spec, kind, (&namespace, &name), &object);
    let line = root.place.line;
    Some(Document { kind, namespace, name, object, yaml: text, file: file.to_owned(), line, created })
}

/// Checks of fields that depend on the object's own namespace and name.
fn check_names(top: &Fields<'_>, spec: &Fields<'_>, kind: Kind, (namespace, name): (&str, &str), object: &Object) {
    if let Some(export) = object.export()
        && export.is_private()
        && export.namespaces().into_iter().flatten().any(|name| name == namespace)
    {
        let text = format!("`.` and `{namespace}` are the same namespace: give only one of them");
        match kind {
            Kind::Service => top.report(Severity::Error, Code::InvalidValue, top.place, "metadata.annotations", text),
            _ => spec.error("exportTo", text),
        }
    }
    if kind == Kind::Gateway && !names::is_label(name) {
        let text = format!("the name of a Gateway {}", names::LABEL_RULE);
        top.report(Severity::Error, Code::InvalidValue, top.place, "metadata.name", text);
    }
}

/// The kind of a document; if it is not supported, reports it and returns `None`.
fn kind(decoder: &Decoder<'_>, place: Place, entries: &[(Key, Node)]) -> Option<Kind> {
    let text = |name: &str| {
        let node = entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node);
        let text = node.and_then(Node::as_str).filter(|text| !text.is_empty());
        if text.is_none() {
            let place = node.map_or(place, |node| node.place);
            let text = format!("`{name}` is required and must be a string");
            decoder.report(Severity::Error, Code::Required, place, name, text);
        }
        text.zip(node.map(|node| node.place))
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    let ((api, api_place), (name, kind_place)) = (version?, kind?);
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name && kind.group() == group) {
        if kind.versions().contains(&version) {
            return Some(kind);
        }
        let prefix = if group.is_empty() { String::new() } else { format!("{group}/") };
        let known: Vec<String> = kind.versions().iter().map(|version| format!("{prefix}{version}")).collect();
        let text = format!("unknown `apiVersion: {api}` of {name}; known are {}", known.join(", "));
        decoder.report(Severity::Error, Code::UnknownKind, api_place, "apiVersion", text);
    } else if NOT_YET.contains(&(group, name)) {
        let text = format!("kind {name} is not supported yet");
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if GATEWAY_API.contains(&group) {
        let text = format!(
            "kind {name} of Kubernetes' Gateway API ({group}) is not supported yet: write a Gateway and a VirtualService of \
             networking.istio.io"
        );
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if group == "multicluster.x-k8s.io" {
        let text = format!("kind {name} of {group} is not supported yet; known is ServiceExport");
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if group.ends_with("istio.io") {
        let ours = Kind::ALL.iter().filter(|kind| !kind.group().is_empty()).map(|kind| (kind.group(), kind.name()));
        let all: Vec<(&str, &str)> = ours.chain(NOT_YET.iter().copied()).collect();
        let text = match all.iter().find(|(_, known)| *known == name) {
            Some((right, _)) => format!("unknown `apiVersion: {api}` of {name}: its group is {right}"),
            None => {
                let known: Vec<&str> = all.iter().map(|(_, kind)| *kind).collect();
                format!("unknown kind `{name}`{}", suggest(name, &known, "known are"))
            }
        };
        decoder.report(Severity::Error, Code::UnknownKind, kind_place, "kind", text);
    } else if group.is_empty() && name == "List" {
        let text = "kind List is not supported: write its items as documents of their own, separated by ---";
        decoder.report(Severity::Error, Code::UnknownKind, kind_place, "kind", text);
    } else {
        let mut text = format!("kind {name} of {api} does not concern the mesh: skipped");
        let data = entries.iter().find(|(key, _)| key.name == "data").map(|(_, data)| data);
        if group.is_empty() && name == "ConfigMap" && data.is_some_and(|data| data.get("mesh").is_some()) {
            text =
                "the settings in `mesh` are not read from a ConfigMap: write them as `meshConfig` of an IstioOperator \
                    (install.istio.io/v1alpha1)"
                    .to_owned();
        }
        decoder.report(Severity::Warning, Code::ForeignKind, kind_place, "kind", text);
    }
    None
}

/// Namespace, name and age.
fn identity(metadata: &Fields<'_>, kind: Kind) -> (String, String, u64) {
    let name = match kind.own_name() {
        "" => metadata.required_string("name"),
        // The kind's own name, if the metadata have none.
        own => metadata.string("name").filter(|name| !name.is_empty()).unwrap_or_else(|| own.to_owned()),
    };
    if !name.is_empty() && !names::is_subdomain(&name) {
        metadata.error("name", format!("`{name}` is not a name: lower-case letters, digits, hyphens and dots"));
    }
    let namespace = metadata.string("namespace").filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| kind.namespace().to_owned());
    if !names::is_label(&namespace) {
        metadata
            .error("namespace", format!("`{namespace}` is not a namespace: lower-case letters, digits and hyphens"));
    }
    let created = metadata.string("creationTimestamp").map(|text| {
        unix_seconds(&text).unwrap_or_else(|| {
            metadata.error("creationTimestamp", format!("`{text}` is not a time such as 2026-01-31T12:00:00Z"));
            0
        })
    });
    (namespace, name, created.unwrap_or_default())
}

/// "2026-01-31T12:00:00Z", the one form that Kubernetes writes.
fn unix_seconds(text: &str) -> Option<u64> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (date.next()?.parse().ok()?, date.next()?.parse::<u8>().ok()?, date.next()?.parse().ok()?);
    let mut clock = clock.splitn(3, ':');
    let (hour, minute, second) =
        (clock.next()?.parse().ok()?, clock.next()?.parse().ok()?, clock.next()?.parse().ok()?);
    let date = time::Date::from_calendar_date(year, time::Month::try_from(month).ok()?, day).ok()?;
    let time = time::Time::from_hms(hour, minute, second).ok()?;
    u64::try_from(time::PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
mod tests;
