//! Files of objects, as `weftctl inject` reads and writes them: YAML in, YAML out.

use serde_json::Value;
use weft_policy::yaml;

use crate::config::Config;
use crate::decide::{Decision, Namespace, decide};
use crate::inject::{Owner, inject};

/// The kinds that have pods, and where their pod is.
const WORKLOADS: &[(&str, &[&str])] = &[
    ("Pod", &[]),
    ("Deployment", &["spec", "template"]),
    ("StatefulSet", &["spec", "template"]),
    ("DaemonSet", &["spec", "template"]),
    ("ReplicaSet", &["spec", "template"]),
    ("ReplicationController", &["spec", "template"]),
    ("Job", &["spec", "template"]),
    ("CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// A file with sidecars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// YAML. A document without a sidecar is as it was, byte for byte.
    pub text: String,
    /// What is said about its objects: why one has no sidecar, and warnings.
    pub notes: Vec<String>,
    /// They refuse the file.
    pub errors: Vec<String>,
}

/// The namespaces of the objects.
#[derive(Debug, Clone)]
pub struct Namespaces {
    default: String,
    declared: Vec<Namespace>,
}

impl Namespaces {
    /// `default`: the namespace of objects that name none. Of the Namespaces in the texts those count whose labels decide about
    /// sidecars; pods of others are injected unless they decline.
    pub fn of<'t>(default: &str, texts: impl Iterator<Item = &'t str>) -> Self {
        let documents = texts.flat_map(|text| yaml::parse(text).0);
        let declared = documents.filter_map(|document| Namespace::read(&document.root.to_json()));
        Self { default: default.to_owned(), declared: declared.collect() }
    }

    fn get(&self, config: &Config, name: &str) -> Namespace {
        let declared = self.declared.iter().find(|one| one.name == name && one.decides(config));
        declared.cloned().unwrap_or_else(|| Namespace::of_revision(name, &config.revision))
    }
}

/// Adds sidecars to the pods of a file.
pub fn add_sidecars(config: &Config, namespaces: &Namespaces, text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    let (documents, errors) = yaml::parse(text);
    manifest.errors.extend(errors.iter().map(|e| format!("line {}: {}", e.place.line, e.text)));
    for (index, document) in documents.iter().enumerate() {
        let object = document.root.to_json();
        let changed = object_with(config, namespaces, &object, &mut manifest);
        let text = match changed {
            None => document.text.clone(),
            Some(changed) => to_yaml(&changed).unwrap_or_else(|error| {
                manifest.errors.push(error);
                String::new()
            }),
        };
        if index > 0 || documents.len() > 1 {
            manifest.text.push_str("---\n");
        }
        manifest.text.push_str(&text);
    }
    manifest
}

/// A value as YAML that parsers of YAML 1.1 and 1.2 read alike.
///
/// # Errors
/// If it is nested too deeply.
pub fn to_yaml(value: &Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

/// The object with sidecars; `None`: it is as it was.
fn object_with(config: &Config, namespaces: &Namespaces, object: &Value, manifest: &mut Manifest) -> Option<Value> {
    let kind = object.get("kind")?.as_str()?;
    if kind == "List" {
        let items = object.get("items")?.as_array()?;
        let changed: Vec<Option<Value>> =
            items.iter().map(|item| object_with(config, namespaces, item, manifest)).collect();
        if changed.iter().all(Option::is_none) {
            return None;
        }
        let mut list = object.clone();
        list["items"] = changed.into_iter().zip(items).map(|(new, old)| new.unwrap_or_else(|| old.clone())).collect();
        return Some(list);
    }
    let (_, path) = WORKLOADS.iter().find(|(known, _)| *known == kind)?;
    let metadata = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    let name = metadata("name").or_else(|| metadata("generateName")).unwrap_or_default();
    let namespace = metadata("namespace").unwrap_or(&namespaces.default);
    let place = format!("{kind} {namespace}/{name}");
    let pod = path.iter().try_fold(object, |value, part| value.get(part));
    let Some(pod) = pod.filter(|pod| pod.is_object()) else {
        manifest.errors.push(format!("{place}: `{}` is missing", path.join(".")));
        return None;
    };
    let owner = Owner { kind: kind.to_owned(), name: name.to_owned() };
    match decide(config, &namespaces.get(config, namespace), pod) {
        Decision::Inject => {}
        Decision::Skip(reason) | Decision::Unable(reason) => {
            manifest.notes.push(format!("{place}: no sidecar: {reason}"));
            return None;
        }
    }
    let injection = match inject(config, Some(&owner), pod) {
        Ok(injection) => injection,
        Err(refusal) => {
            manifest.errors.extend(refusal.errors.iter().map(|error| format!("{place}: {error}")));
            return None;
        }
    };
    manifest.notes.extend(injection.warnings.iter().map(|warning| format!("{place}: {warning}")));
    if injection.patch.is_empty() {
        manifest.notes.push(format!("{place}: it has its sidecar already"));
        return None;
    }
    let mut object = object.clone();
    let pointer: String = path.iter().map(|part| format!("/{part}")).collect();
    *object.pointer_mut(&pointer)? = injection.pod;
    Some(object)
}
