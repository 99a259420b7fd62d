//! `exportTo`: the namespaces whose clients see a document.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
};

use crate::decode::fields::Fields;
use crate::kinds::Manifest;
use crate::names;
use crate::yaml::Place;

/// The namespaces whose clients see a document; all by default.
///
/// Two with the same namespaces are equal, whether written or not: the difference matters only to the mesh's own
/// defaults.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// `None`: all.
    namespaces: Option<BTreeSet<String>>,
    is_explicit: bool,
}

impl PartialEq for Export {
    fn eq(&self, other: &Self) -> bool {
        self.namespaces == other.namespaces
    }
}

impl Eq for Export {}

impl Hash for Export {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.namespaces.hash(state);
    }
}

/// The annotation of a Kubernetes Service that is equivalent to the field.
pub(crate) const ANNOTATION: &str = "networking.istio.io/exportTo";

impl Export {
    /// Whether clients of `client` see a document of `own`.
    pub fn reaches(&self, own: &str, client: &str) -> bool {
        self.namespaces
            .as_ref()
            .is_none_or(|namespaces| namespaces.contains(client) || self.is_private() && own == client)
    }

    /// Whether all namespaces see it.
    pub fn is_public(&self) -> bool {
        self.namespaces.is_none()
    }

    /// Whether only its own namespace, named by a dot, sees it.
    pub fn is_private(&self) -> bool {
        self.namespaces.as_ref().is_some_and(|namespaces| namespaces.contains("."))
    }

    /// The namespaces as written; `None`: all.
    pub fn namespaces(&self) -> Option<impl Iterator<Item = &str>> {
        self.namespaces.as_ref().map(|namespaces| namespaces.iter().map(String::as_str))
    }

    /// The problem if it has `namespace`, its own, by a dot and by name.
    fn repetition(&self, namespace: &str) -> Option<String> {
        let repeats = self.is_private() && self.namespaces()?.any(|name| name == namespace);
        repeats.then(|| format!("`.` and `{namespace}` are the same namespace: give only one of them"))
    }

    /// That of a Service of Kubernetes, by its annotations. Names that are no namespaces select none.
    pub fn of_annotations(annotations: &std::collections::BTreeMap<String, String>) -> Export {
        let Some(text) = annotations.get(ANNOTATION) else { return Export::default() };
        let names: BTreeSet<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        Export { is_explicit: true, namespaces: (!names.contains("*")).then_some(names) }
    }

    /// Whether the document has the field.
    pub fn is_written(&self) -> bool {
        self.is_explicit
    }
}

/// Reads the field of a `spec` in `namespace`.
pub(crate) fn decode(spec: &Fields<'_>, namespace: &str) -> Export {
    let export = decode_field(spec, "exportTo");
    if let Some(text) = export.repetition(namespace) {
        spec.error("exportTo", text);
    }
    export
}

/// Reads the field under another name.
pub(crate) fn decode_field(fields: &Fields<'_>, name: &'static str) -> Export {
    of(fields, name, &fields.strings(name))
}

/// Reads the annotation of a Kubernetes Service, a list with commas.
pub(crate) fn decode_annotation(manifest: &Manifest<'_>) -> Export {
    let Some(metadata) = &manifest.metadata else { return Export::default() };
    let annotations = metadata.string_map("annotations");
    let Some(text) = annotations.get(ANNOTATION) else { return Export::default() };
    let place = metadata.place_of("annotations");
    let names: Vec<(String, Place)> = text.split(',').map(|name| (name.trim().to_owned(), place)).collect();
    let export = of(metadata, "annotations", &names);
    if let Some(text) = export.repetition(&manifest.namespace) {
        metadata.error("annotations", text);
    }
    export
}

fn of(fields: &Fields<'_>, field: &str, names: &[(String, Place)]) -> Export {
    let mut namespaces = BTreeSet::new();
    let mut all = false;
    for (name, place) in names {
        match name.as_str() {
            "*" => all = true,
            // A set without a namespace: no client sees it.
            "." | "~" => {}
            name if names::is_label(name) => {}
            name => fields.error_at(*place, format!("`{name}` is not a namespace, nor one of `.`, `*` and `~`")),
        }
        if !namespaces.insert(name.clone()) {
            fields.error_at(*place, format!("`{name}` is there twice"));
        }
    }
    for alone in ["*", "~"].into_iter().filter(|alone| namespaces.contains(*alone) && namespaces.len() > 1) {
        fields.error(field, format!("`{alone}` stands alone in `{field}`"));
    }
    Export { is_explicit: !namespaces.is_empty(), namespaces: (!all && !namespaces.is_empty()).then_some(namespaces) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn export(namespaces: &[&str]) -> Export {
        Export { namespaces: Some(namespaces.iter().map(|name| name.to_string()).collect()), is_explicit: true }
    }

    #[test]
    fn an_annotation_that_repeats_its_namespace_is_an_error_at_its_place() {
        let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    networking.istio.io/exportTo: ., default\n\
                    spec: {ports: [{port: 80}]}\n";
        let problems: Vec<String> = parse("f.yaml", text).problems.iter().map(ToString::to_string).collect();
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.contains(":6:5: error: ") && problem.contains("the same namespace"), "{problem}");
    }

    #[test]
    fn export_to_selects_the_namespaces() {
        for (export, own, client, sees) in [
            (Export::default(), "a", "b", true),
            (export(&["."]), "a", "a", true),
            (export(&["."]), "a", "b", false),
            (export(&["b", "c"]), "a", "b", true),
            (export(&["b", "c"]), "a", "a", false),
            (export(&[".", "b"]), "a", "a", true),
            (export(&["~"]), "a", "a", false),
        ] {
            assert_eq!(export.reaches(own, client), sees, "{export:?} {own} {client}");
        }
    }
}
