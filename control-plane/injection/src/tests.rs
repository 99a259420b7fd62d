//! Golden files, and laws of patches.
//!
//! Each `goldens/NAME.yaml` is injected twice, with native sidecars and without; the results are in the folders `native`
//! and `classic`, with the notes and errors as comments at the end. `WEFT_GOLDENS=write cargo test -p weft-injection`
//! writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::manifest::{Manifest, Namespaces, add_sidecars};
use crate::patch::tests::apply;
use crate::{Config, Owner, STATUS, inject};

fn config(native: bool) -> Config {
    Config { native_sidecar: native, image_pull_secrets: vec!["registry".into()], ..Config::default() }
}

fn goldens() -> (PathBuf, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    (folder, names)
}

fn add_to(config: &Config, text: &str) -> Manifest {
    add_sidecars(config, &Namespaces::of("default", [text].into_iter()), text)
}

fn with_notes(manifest: &Manifest) -> String {
    let notes = manifest.notes.iter().map(|note| format!("# note: {note}\n"));
    let errors = manifest.errors.iter().map(|error| format!("# error: {error}\n"));
    manifest.text.clone() + &notes.chain(errors).collect::<String>()
}

#[test]
fn files_get_the_sidecars_of_the_goldens() {
    let (folder, names) = goldens();
    for name in names {
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        for (kind, native) in [("native", true), ("classic", false)] {
            let got = with_notes(&add_to(&config(native), &text));
            let file = folder.join(kind).join(&name);
            if std::env::var_os("WEFT_GOLDENS").is_some() {
                fs::create_dir_all(folder.join(kind)).unwrap();
                fs::write(&file, &got).unwrap();
            }
            let expected = fs::read_to_string(&file).unwrap();
            assert!(got == expected, "{} differs:\n{got}", file.display());
        }
    }
}

/// What the types of Kubernetes drop of an object is at a wrong place, or has a wrong name.
#[test]
fn pods_with_sidecars_have_no_field_that_kubernetes_does_not_know() {
    let (folder, names) = goldens();
    let mut pods = 0;
    for name in names {
        for kind in ["native", "classic"] {
            let text = fs::read_to_string(folder.join(kind).join(&name)).unwrap();
            for document in weft_policy::yaml::parse(&text).0 {
                let object = document.root.to_json();
                let template = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec", "/spec"];
                let Some(spec) =
                    template.iter().find_map(|at| object.pointer(at)).filter(|spec| spec["volumes"].is_array())
                else {
                    continue;
                };
                let mut spec = spec.clone();
                spec.as_object_mut().unwrap().remove("futureField");
                let typed: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(spec.clone())
                    .unwrap_or_else(|error| panic!("{kind}/{name}: {error}\n{spec:#}"));
                assert_eq!(serde_json::to_value(typed).unwrap(), spec, "{kind}/{name}");
                pods += 1;
            }
        }
    }
    assert!(pods >= 10, "{pods} pods");
}

#[test]
fn a_file_with_sidecars_stays_as_it_is() {
    let (folder, names) = goldens();
    for name in names {
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        for native in [true, false] {
            let once = add_to(&config(native), &text);
            let twice = add_to(&config(native), &once.text);
            assert_eq!(once.text, twice.text, "{name}");
        }
    }
}

#[test]
fn texts_stay_texts_in_yaml() {
    let texts = [
        "yes",
        "NO",
        "on",
        "y",
        "~",
        "null",
        "",
        "0123",
        "0x1F",
        "0o17",
        "1_000",
        "1e3",
        ".5",
        "12:30:45",
        "2001-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "a #b",
        "'",
        "\"",
        "\\",
        "{{ .x }}",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a`",
        " a ",
        "a\n",
        "\na\n\n",
        "\ta",
        "é\u{1}\u{85}\u{2028}",
        "---",
        "...",
        "? a",
        "true",
        ".inf",
        ".NaN",
        "1.",
        "+1",
        "a\r\nb",
        "1h",
        "50m",
    ];
    let before = json!({ "a": texts.to_vec(), "n": [1, -2, 1.5, 1e30, true, null, {}, []], "m": texts.map(|t| json!({ t: t })).to_vec() });
    let yaml = crate::manifest::to_yaml(&before).unwrap();
    let (documents, errors) = weft_policy::yaml::parse(&yaml);
    assert!(errors.is_empty(), "{errors:?}\n{yaml}");
    assert_eq!(documents[0].root.to_json(), before, "{yaml}");
    // YAML 1.1 takes more words for booleans and numbers.
    for text in ["yes", "NO", "on", "y", "0123", "1_000", "12:30:45", "2001-01-01", "=", "<<"] {
        assert!(!yaml.contains(&format!("\n- {text}\n")), "{text} is not quoted in\n{yaml}");
    }
}

#[test]
fn a_container_that_comes_later_has_its_probes_sent_too() {
    let pod = json!({ "spec": { "containers": [
        { "name": "a", "livenessProbe": { "httpGet": { "path": "/a?x=$(HOME)&y=$$(HOME)", "port": 80 } } },
    ] } });
    for native in [true, false] {
        let mut injected = inject(&config(native), None, &pod).unwrap().pod;
        let late = json!({ "name": "b", "readinessProbe": { "tcpSocket": { "port": 81 } } });
        injected["spec"]["containers"].as_array_mut().unwrap().insert(0, late);
        let again = inject(&config(native), None, &injected).unwrap();
        assert_eq!(again.patch.len(), 3, "{:?}", again.patch);
        assert_eq!(apply(injected, &again.patch), again.pod);
        let list = if native { "initContainers" } else { "containers" };
        let containers = again.pod["spec"][list].as_array().unwrap();
        let proxy = containers.iter().find(|one| one["name"] == crate::PROXY).unwrap();
        let variables = proxy["env"].as_array().unwrap();
        let probes = variables.iter().find(|one| one["name"] == crate::PROBES_VARIABLE).unwrap();
        let probes = probes["value"].as_str().unwrap();
        assert!(probes.contains("/a?x=$$(HOME)&y=$$$$(HOME)"), "the kubelet replaces variables: {probes}");
        let probes: Value = serde_json::from_str(probes).unwrap();
        let pages: Vec<&String> = probes.as_object().unwrap().keys().collect();
        assert_eq!(pages, ["/app-health/a/livez", "/app-health/b/readyz"]);
    }
}

#[test]
fn the_owner_of_a_pod_names_its_workload() {
    let owner = |kind: &str, name: &str| {
        let pod = json!({ "metadata": {
            "labels": { "pod-template-hash": "6d4b" },
            "ownerReferences": [{ "kind": "Node", "name": "n" }, { "kind": kind, "name": name, "controller": true }],
        } });
        Owner::of(&pod).map(|owner| owner.name)
    };
    assert_eq!(owner("ReplicaSet", "order-v1-6d4b").as_deref(), Some("order-v1"));
    assert_eq!(owner("ReplicaSet", "order-v1").as_deref(), Some("order-v1"));
    assert_eq!(owner("Job", "report-29012345").as_deref(), Some("report"));
    assert_eq!(owner("StatefulSet", "db-0").as_deref(), Some("db-0"));
    assert_eq!(Owner::of(&json!({})), None);
}

/// Any JSON, with the names that the code looks for.
fn anything() -> impl Strategy<Value = Value> {
    let word = || {
        prop::sample::select(vec![
            "metadata",
            "labels",
            "annotations",
            "spec",
            "containers",
            "initContainers",
            "volumes",
            "name",
            "httpGet",
            "tcpSocket",
            "port",
            "path",
            "livenessProbe",
            "lifecycle",
            "preStop",
            "ports",
            "containerPort",
            "env",
            "imagePullSecrets",
            "securityContext",
            "weft-proxy",
            STATUS,
            "app",
            "prometheus.io/scrape",
            "true",
            "80",
        ])
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..6).prop_map(|members| {
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
            }),
        ]
    })
}

fn probe() -> impl Strategy<Value = Option<Value>> {
    let port = prop_oneof![(1u16..9000).prop_map(Value::from), Just(Value::from("http")), Just(Value::from("none"))];
    let handler = (0..4, port).prop_map(|(kind, port)| match kind {
        0 => json!({ "httpGet": { "path": "/live", "port": port }, "periodSeconds": 3 }),
        1 => json!({ "tcpSocket": { "port": port } }),
        2 => json!({ "grpc": { "port": port } }),
        _ => json!({ "exec": { "command": ["true"] } }),
    });
    prop::option::of(handler)
}

fn container(name: String) -> impl Strategy<Value = Value> {
    (probe(), probe(), probe(), anything()).prop_map(move |(live, ready, stop, extra)| {
        let mut one = json!({ "name": name, "ports": [{ "name": "http", "containerPort": 8080 }], "unknown": extra });
        for (field, probe) in [("livenessProbe", live), ("readinessProbe", ready)] {
            if let Some(probe) = probe {
                one[field] = probe;
            }
        }
        if let Some(stop) = stop {
            one["lifecycle"] = json!({ "preStop": stop });
        }
        one
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let containers = |prefix: &'static str, least| {
        prop::collection::vec(any::<()>(), least..4).prop_flat_map(move |each| {
            each.iter().enumerate().map(|(n, ())| container(format!("{prefix}{n}"))).collect::<Vec<_>>()
        })
    };
    let words = prop::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..3);
    let order = prop::option::of(prop::sample::select(vec!["last"]));
    (containers("app", 1), containers("init", 0), words.clone(), words, order, anything()).prop_map(
        |(containers, inits, labels, mut annotations, order, extra)| {
            if let Some(order) = order {
                annotations.insert("weft.dev/init-order".into(), order.into());
            }
            json!({
                "metadata": { "labels": labels, "annotations": annotations, "unknown": extra.clone() },
                "spec": { "containers": containers, "initContainers": inits, "unknown": extra },
            })
        },
    )
}

/// The pod without all that a patch adds or replaces.
fn without_sidecar(mut pod: Value, original: &Value) -> Value {
    for map in ["labels", "annotations"] {
        let known = original["metadata"][map].as_object().unwrap();
        pod["metadata"][map].as_object_mut().unwrap().retain(|name, _| known.contains_key(name));
    }
    for list in ["containers", "initContainers"] {
        let items = pod["spec"][list].as_array_mut().unwrap();
        items.retain(|one| one["name"] != crate::PROXY && one["name"] != crate::INIT);
    }
    for field in ["volumes", "imagePullSecrets"] {
        pod["spec"].as_object_mut().unwrap().remove(field);
    }
    pod
}

/// A probe without its handler.
fn without_handlers(mut pod: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for one in pod["spec"][list].as_array_mut().unwrap() {
            for path in ["/livenessProbe", "/readinessProbe", "/lifecycle/preStop"] {
                if let Some(Value::Object(probe)) = one.pointer_mut(path) {
                    probe.retain(|name, _| !["httpGet", "tcpSocket", "grpc"].contains(&&**name));
                }
            }
        }
    }
    pod
}

proptest! {
    #[test]
    fn a_patch_applies_once_and_loses_nothing(pod in pod(), native in any::<bool>(), hold in any::<bool>()) {
        let config = Config { hold_application_until_proxy_starts: hold, ..config(native) };
        let injection = inject(&config, None, &pod).unwrap();
        prop_assert_eq!(&apply(pod.clone(), &injection.patch), &injection.pod);
        let again = inject(&config, None, &injection.pod).unwrap();
        prop_assert_eq!(&again.patch, &Vec::<Value>::new());
        let rest = without_sidecar(injection.pod, &pod);
        prop_assert_eq!(without_handlers(rest), without_handlers(pod));
    }

    #[test]
    fn any_object_is_patched_or_refused(object in anything(), native in any::<bool>()) {
        if let Ok(injection) = inject(&config(native), Owner::of(&object).as_ref(), &object) {
            prop_assert_eq!(apply(object, &injection.patch), injection.pod);
        }
    }
}
