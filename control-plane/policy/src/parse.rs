//! Text -> documents: finds each document's kind, reads its metadata, and hands the rest to the kind's decoder.

use crate::decode::{
    annotations,
    fields::{Decoder, Fields, Shape, not_yet, object, read},
};
use crate::kinds::{Descriptor, Kind, Manifest, NOT_YET};
use crate::yaml::{self, Key, Node, Place, Value, YamlDocument};
use crate::{Code, Document, Parsed, Severity, names, nearest::suggest};

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

/// A document. `spec` is decoded by the shape of its kind.
const DOCUMENT: Shape =
    &[read("apiVersion"), read("kind"), object("metadata", METADATA), object("spec", &[]), read("status")];

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
    let descriptor = kind.descriptor();
    let null = Node { value: Value::Null, place: root.place };
    let document = decoder.fields(&root, String::new(), DOCUMENT);
    let metadata = document.object("metadata");
    if let Some(metadata) = &metadata {
        annotations::check(metadata, kind);
    } else if descriptor.identity.is_none() {
        decoder.report(Severity::Error, Code::Required, document.place, "metadata", "`metadata.name` is required");
    }
    let (namespace, name, created) = identity(metadata.as_ref(), descriptor);
    let spec = document.node("spec").unwrap_or(&null);
    if spec.value == Value::Null && descriptor.requires_spec {
        decoder.report(Severity::Error, Code::Required, document.place, "spec", "`spec` is required");
        return None;
    }
    let spec = decoder.fields(spec, String::new(), descriptor.spec);
    let manifest = Manifest { document, metadata, namespace, name, spec };
    let object = (descriptor.decode)(&manifest);
    let Manifest { namespace, name, .. } = manifest;
    Some(Document { namespace, name, object, yaml: text, file: file.to_owned(), line: root.place.line, created })
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
    if let Some(kind) =
        Kind::ALL.iter().copied().find(|kind| kind.written() == name && kind.descriptor().group == group)
    {
        if kind.descriptor().versions.contains(&version) {
            return Some(kind);
        }
        let prefix = if group.is_empty() { String::new() } else { format!("{group}/") };
        let known: Vec<String> =
            kind.descriptor().versions.iter().map(|version| format!("{prefix}{version}")).collect();
        let text = format!("unknown `apiVersion: {api}` of {name}; known are {}", known.join(", "));
        decoder.report(Severity::Error, Code::UnknownKind, api_place, "apiVersion", text);
    } else if NOT_YET.contains(&(group, name)) {
        let text = format!("kind {name} is not supported yet");
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if GATEWAY_API.contains(&group) {
        let text = format!(
            "kind {name} of Kubernetes' Gateway API ({group}) is not supported yet: write an HTTPRoute, or a Gateway and a \
             VirtualService of networking.istio.io"
        );
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if group == "multicluster.x-k8s.io" {
        let text = format!("kind {name} of {group} is not supported yet; known is ServiceExport");
        decoder.report(Severity::Error, Code::NotSupported, kind_place, "kind", text);
    } else if group.ends_with("istio.io") {
        let ours = Kind::ALL
            .iter()
            .filter(|kind| !kind.descriptor().group.is_empty())
            .map(|kind| (kind.descriptor().group, kind.written()));
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
fn identity(metadata: Option<&Fields<'_>>, descriptor: &Descriptor) -> (String, String, u64) {
    let (default_namespace, default_name) = descriptor.identity.unwrap_or(("default", ""));
    let Some(metadata) = metadata else { return (default_namespace.to_owned(), default_name.to_owned(), 0) };
    if descriptor.identity.is_none() {
        metadata.require("name");
    }
    let name = metadata.string("name").filter(|name| !name.is_empty()).unwrap_or_else(|| default_name.to_owned());
    if !name.is_empty() && !names::is_subdomain(&name) {
        metadata.error("name", format!("`{name}` is not a name: lower-case letters, digits, hyphens and dots"));
    }
    let namespace = metadata.string("namespace").filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| default_namespace.to_owned());
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
