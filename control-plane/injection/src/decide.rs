//! Whether a pod has a sidecar, by the labels of its namespace and its own, with Istio's precedence.
//!
//! Each label has two names, Weft's and Istio's; Weft's is used where both are set. In order:
//!
//! 1. Never: system namespaces, the control plane's, pods in the node's network, Windows.
//! 2. A namespace with `istio-injection` (or `weft.dev/inject`): `disabled` means never, `enabled` all pods but those that decline.
//! 3. A namespace with `istio.io/rev`: its revision injects all pods but those that decline.
//! 4. Otherwise a pod asks for it: `sidecar.istio.io/inject: "true"`, or `istio.io/rev` with the revision.
//!
//! The pod's label takes precedence over its annotation of the same name; values other than `true` and `false` count as
//! absent. The selectors of the configuration decide about pods that have neither.

use serde_json::{Map, Value};

use crate::ISTIO_STATUS;
use crate::config::{Config, DEFAULT_REVISION};

/// Namespaces of Kubernetes itself.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Weft's label and Istio's.
const NAMESPACE_INJECT: [&str; 2] = ["weft.dev/inject", "istio-injection"];
const POD_INJECT: [&str; 2] = ["weft.dev/inject", "sidecar.istio.io/inject"];
const REVISION: [&str; 2] = ["weft.dev/rev", "istio.io/rev"];

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Map<String, Value>,
}

impl Namespace {
    /// A namespace of a revision: its pods are injected unless they decline.
    pub fn of_revision(name: &str, revision: &str) -> Self {
        let labels = [(REVISION[0].to_owned(), revision.into())].into_iter().collect();
        Self { name: name.to_owned(), labels }
    }
}

impl Namespace {
    /// Reads a Namespace; `None`: it is another object.
    pub(crate) fn read(object: &Value) -> Option<Self> {
        let is = object.get("kind")?.as_str()? == "Namespace" && object.get("apiVersion")?.as_str()? == "v1";
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
        is.then_some(Self { name: object.pointer("/metadata/name")?.as_str()?.to_owned(), labels })
    }

    /// Whether it has a label that decides about sidecars.
    pub(crate) fn decides(&self, config: &Config) -> bool {
        let known = NAMESPACE_INJECT.into_iter().zip(REVISION).take(names(config));
        known
            .into_iter()
            .any(|(inject, revision)| [inject, revision].iter().any(|name| self.labels.contains_key(*name)))
    }
}

/// How many names of each label are understood.
fn names(config: &Config) -> usize {
    if config.istio_labels { 2 } else { 1 }
}

/// Whether a pod is injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is.
    Inject,
    /// It is not, as the user or the configuration wants.
    Skip(String),
    /// It is not, and that may be a surprise: the labels ask for it.
    Unable(String),
}

/// The text of an entry.
pub(crate) fn text<'v>(value: &'v Value, map: &str, key: &str) -> Option<&'v str> {
    value.get("metadata")?.get(map)?.get(key)?.as_str()
}

/// Decides about a pod (its `metadata` and `spec`).
pub fn decide(config: &Config, namespace: &Namespace, pod: &Value) -> Decision {
    let wanted = by_labels(config, namespace, pod);
    if let Decision::Skip(_) = wanted {
        return wanted;
    }
    if SYSTEM.contains(&&*namespace.name) || namespace.name == config.namespace {
        return Decision::Unable(format!("pods of the namespace {} are never injected", namespace.name));
    }
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Decision::Unable("`hostNetwork`: the redirection would change the node's network".to_owned());
    }
    if spec.pointer("/os/name").and_then(Value::as_str) == Some("windows") {
        return Decision::Unable("`os.name: windows`: the proxy needs Linux".to_owned());
    }
    if text(pod, "annotations", ISTIO_STATUS).is_some() {
        return Decision::Unable(format!("it has a sidecar of Istio (annotation {ISTIO_STATUS})"));
    }
    wanted
}

fn by_labels(config: &Config, namespace: &Namespace, pod: &Value) -> Decision {
    let names = |both: [&'static str; 2]| both.into_iter().take(names(config));
    let of_namespace = |both| names(both).find_map(|name| Some((name, namespace.labels.get(name)?.as_str()?)));
    let skip = |text: String| Decision::Skip(text);
    let switch = names(POD_INJECT)
        .find_map(|name| Some((name, boolean(text(pod, "labels", name))?)))
        .or_else(|| names(POD_INJECT).find_map(|name| Some((name, boolean(text(pod, "annotations", name))?))));
    let declines = || match switch {
        Some((name, false)) => Some(skip(format!("the pod has {name}: \"false\""))),
        Some((_, true)) => None,
        None => by_selector(config, pod),
    };
    let inject = of_namespace(NAMESPACE_INJECT).and_then(|(name, value)| match value {
        "enabled" | "true" => Some((name, true)),
        "disabled" | "false" => Some((name, false)),
        _ => None,
    });
    match inject {
        Some((name, false)) => return skip(format!("its namespace {} has {name}: disabled", namespace.name)),
        Some((name, true)) if config.revision != DEFAULT_REVISION => {
            let (ns, own) = (&namespace.name, &config.revision);
            return skip(format!(
                "its namespace {ns} has {name}: enabled, which is for the revision default, not {own}"
            ));
        }
        Some((_, true)) => return declines().unwrap_or(Decision::Inject),
        None => {}
    }
    if let Some((name, revision)) = of_namespace(REVISION) {
        if revision != config.revision {
            let (ns, own) = (&namespace.name, &config.revision);
            return skip(format!("its namespace {ns} has {name}: {revision}, not {own}"));
        }
        return declines().unwrap_or(Decision::Inject);
    }
    let revision = names(REVISION).find_map(|name| Some((name, text(pod, "labels", name)?)));
    match (revision, switch) {
        (_, Some((name, false))) => skip(format!("the pod has {name}: \"false\"")),
        (Some((_, revision)), _) if revision == config.revision => declines().unwrap_or(Decision::Inject),
        (Some((name, revision)), _) => skip(format!("the pod has {name}: {revision}, not {}", config.revision)),
        (None, Some((_, true))) if config.revision == DEFAULT_REVISION => Decision::Inject,
        _ => {
            let name = POD_INJECT[0];
            skip(format!("neither the pod nor its namespace {} has a label for it ({name})", namespace.name))
        }
    }
}

fn boolean(value: Option<&str>) -> Option<bool> {
    match value? {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Why the configuration declines a pod that does not decide itself.
fn by_selector(config: &Config, pod: &Value) -> Option<Decision> {
    let empty = Map::new();
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&empty);
    if config.never_inject_selector.iter().any(|selector| selector.matches(labels)) {
        return Some(Decision::Skip("neverInjectSelector selects the pod".to_owned()));
    }
    if config.enabled_by_default || config.always_inject_selector.iter().any(|selector| selector.matches(labels)) {
        return None;
    }
    Some(Decision::Skip("enabledByDefault is false, and the pod has no label of its own".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `+`: injected; `!`: unable; else a part of the reason.
    fn check(config: &Config, namespace: &str, labels: Value, pod: Value, expected: &str) {
        let given = format!("{namespace} {labels} {pod}");
        let labels = labels.as_object().unwrap().clone();
        let decision = decide(config, &Namespace { name: namespace.to_owned(), labels }, &pod);
        let fits = match &decision {
            Decision::Inject => expected == "+",
            Decision::Skip(reason) => reason.contains(expected),
            Decision::Unable(reason) => expected.strip_prefix('!').is_some_and(|expected| reason.contains(expected)),
        };
        assert!(fits, "{given}: {decision:?}, not {expected}");
    }

    #[test]
    fn labels_decide_with_the_precedence_of_istio() {
        let none = json!({});
        let pod = |labels: Value| json!({ "metadata": { "labels": labels } });
        let on = json!({ "istio-injection": "enabled" });
        let cases = [
            (none.clone(), pod(none.clone()), "neither the pod nor its namespace"),
            (none.clone(), pod(json!({ "sidecar.istio.io/inject": "true" })), "+"),
            (none.clone(), pod(json!({ "weft.dev/inject": "true" })), "+"),
            (none.clone(), pod(json!({ "istio.io/rev": "default" })), "+"),
            (none.clone(), pod(json!({ "istio.io/rev": "b" })), "istio.io/rev: b, not default"),
            (none.clone(), pod(json!({ "istio.io/rev": "b", "sidecar.istio.io/inject": "true" })), "b, not default"),
            (none.clone(), pod(json!({ "istio.io/rev": "default", "sidecar.istio.io/inject": "false" })), "\"false\""),
            (on.clone(), pod(none.clone()), "+"),
            (on.clone(), pod(json!({ "sidecar.istio.io/inject": "false" })), "sidecar.istio.io/inject: \"false\""),
            (on.clone(), pod(json!({ "sidecar.istio.io/inject": "no" })), "+"),
            (on.clone(), json!({ "metadata": { "annotations": { "sidecar.istio.io/inject": "false" } } }), "\"false\""),
            (
                on.clone(),
                json!({ "metadata": {
                    "labels": { "sidecar.istio.io/inject": "true" },
                    "annotations": { "sidecar.istio.io/inject": "false" },
                } }),
                "+",
            ),
            (json!({ "istio-injection": "disabled" }), pod(json!({ "sidecar.istio.io/inject": "true" })), "disabled"),
            (json!({ "istio-injection": "perhaps" }), pod(none.clone()), "neither"),
            (json!({ "istio-injection": "enabled", "istio.io/rev": "b" }), pod(none.clone()), "+"),
            (json!({ "weft.dev/inject": "disabled", "istio-injection": "enabled" }), pod(none.clone()), "disabled"),
            (json!({ "istio.io/rev": "default" }), pod(none.clone()), "+"),
            (json!({ "weft.dev/rev": "b" }), pod(none.clone()), "weft.dev/rev: b, not default"),
            (json!({ "istio.io/rev": "b" }), pod(json!({ "sidecar.istio.io/inject": "true" })), "b, not default"),
        ];
        let config = Config::default();
        for (namespace, pod, expected) in cases {
            check(&config, "shop", namespace, pod, expected);
        }
        let other = Config { revision: "b".into(), ..Config::default() };
        check(&other, "shop", json!({ "istio.io/rev": "b" }), pod(none.clone()), "+");
        check(&other, "shop", on.clone(), pod(none.clone()), "for the revision default, not b");
        check(&other, "shop", none.clone(), pod(json!({ "sidecar.istio.io/inject": "true" })), "neither");
        let own = Config { istio_labels: false, ..Config::default() };
        check(&own, "shop", on.clone(), pod(none.clone()), "neither");
        check(
            &own,
            "shop",
            json!({ "weft.dev/inject": "enabled" }),
            pod(json!({ "sidecar.istio.io/inject": "false" })),
            "+",
        );
    }

    #[test]
    fn selectors_decide_about_pods_that_do_not() {
        let on = json!({ "istio-injection": "enabled" });
        let config = Config::parse(
            "neverInjectSelector: [{matchLabels: {app: never}}]\nalwaysInjectSelector: [{matchLabels: {app: always}}]\n\
             enabledByDefault: false",
        )
        .unwrap();
        for (labels, expected) in [
            (json!({ "app": "never" }), "neverInjectSelector"),
            (json!({ "app": "never", "weft.dev/inject": "true" }), "+"),
            (json!({ "app": "always" }), "+"),
            (json!({ "app": "other" }), "enabledByDefault is false"),
        ] {
            check(&config, "shop", on.clone(), json!({ "metadata": { "labels": labels } }), expected);
        }
    }

    #[test]
    fn some_pods_are_never_injected() {
        let on = json!({ "istio-injection": "enabled" });
        let config = Config::default();
        for namespace in ["kube-system", "kube-public", "kube-node-lease", "weft-system"] {
            check(&config, namespace, on.clone(), json!({}), "!never injected");
        }
        check(&config, "shop", on.clone(), json!({ "spec": { "hostNetwork": true } }), "!the node's network");
        check(&config, "shop", on, json!({ "spec": { "os": { "name": "windows" } } }), "!Linux");
        let other = json!({ "metadata": { "annotations": { ISTIO_STATUS: "{}" } } });
        check(&config, "shop", json!({ "istio-injection": "enabled" }), other, "!a sidecar of Istio");
        // A pod that does not ask for it is no surprise.
        check(&config, "shop", json!({}), json!({ "spec": { "hostNetwork": true } }), "neither");
    }
}
