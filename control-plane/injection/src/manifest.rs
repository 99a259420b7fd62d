//! Files of objects, as `weftctl inject` reads and writes them: YAML in, YAML out.

use serde_json::Value;
use weft_policy::yaml;

use crate::config::Config;
use crate::decide::{Decision, Namespace, decide};
use crate::inject::{Owner, inject};

/// The kinds that have pods: their API group, and where their pod is. Other groups have kinds of the same names.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &[]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("", "ReplicationController", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
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
        let declared = documents.filter_map(|document| Namespace::read(&to_json(&document.root)));
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
        let object = to_json(&document.root);
        let changed = inject_object(config, namespaces, &object, &mut manifest);
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

/// A value as kubectl reads it, by YAML 1.1: `0644` is octal, and `yes` is a boolean.
fn to_json(node: &yaml::Node) -> Value {
    match &node.value {
        yaml::Value::Seq(items) => items.iter().map(to_json).collect(),
        yaml::Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), to_json(node))).collect(),
        yaml::Value::Scalar { text, plain: true } => old_scalar(text).unwrap_or_else(|| node.to_json()),
        _ => node.to_json(),
    }
}

/// The value of a plain scalar that YAML 1.2 reads in another way.
fn old_scalar(text: &str) -> Option<Value> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(true.into()),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(false.into()),
        _ => {}
    }
    let (sign, digits) = text.strip_prefix('-').map_or((1, text.trim_start_matches('+')), |digits| (-1, digits));
    let digits = digits.replace('_', "");
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        [b'1'..=b'9', ..] => (10, &*digits),
        _ => return None,
    };
    let number = digits.chars().all(|digit| digit.is_digit(base)).then(|| i64::from_str_radix(digits, base).ok())??;
    Some((sign * number).into())
}

/// The object with sidecars; `None`: it is as it was.
fn inject_object(config: &Config, namespaces: &Namespaces, object: &Value, manifest: &mut Manifest) -> Option<Value> {
    let kind = object.get("kind")?.as_str()?;
    let group = object.get("apiVersion")?.as_str()?.split_once('/').map_or("", |(group, _)| group);
    if (group, kind) == ("", "List") {
        let items = object.get("items")?.as_array()?;
        let changed: Vec<Option<Value>> =
            items.iter().map(|item| inject_object(config, namespaces, item, manifest)).collect();
        if changed.iter().all(Option::is_none) {
            return None;
        }
        let mut list = object.clone();
        list["items"] = changed.into_iter().zip(items).map(|(new, old)| new.unwrap_or_else(|| old.clone())).collect();
        return Some(list);
    }
    let (_, _, path) = WORKLOADS.iter().find(|(of, known, _)| (*of, *known) == (group, kind))?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_mean_what_they_mean_to_kubectl() {
        for (text, expected) in [
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("-010", json!(-8)),
            ("0x1f", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("+7", json!(7)),
            ("0", json!(0)),
            ("42", json!(42)),
            ("0.5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("true", json!(true)),
            ("~", json!(null)),
            ("'yes'", json!("yes")),
            ("'0644'", json!("0644")),
            ("0899", json!(899)),
            ("12:30", json!("12:30")),
            ("1.2.3", json!("1.2.3")),
            ("-", json!([null])),
            ("500m", json!("500m")),
        ] {
            let (documents, errors) = yaml::parse(text);
            assert!(errors.is_empty(), "{text}: {errors:?}");
            assert_eq!(to_json(&documents[0].root), expected, "{text}");
        }
    }

    #[test]
    fn kinds_of_other_groups_pass_through() {
        let text = "# of another group\napiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: a}\n";
        let manifest = add_sidecars(&Config::default(), &Namespaces::of("default", std::iter::empty()), text);
        assert_eq!(manifest, Manifest { text: text.to_owned(), ..Manifest::default() });
    }
}
