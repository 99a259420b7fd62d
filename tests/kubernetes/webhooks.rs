//! The admission webhooks, called by a real API server.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_policy::{Kind, yaml};
use weft_tests::{document, tests_dir, wait_for};

use crate::Scenario;
use crate::cluster::{Cluster, SOON};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("new_pods_get_a_sidecar_from_the_webhook", new_pods_get_a_sidecar_from_the_webhook as Scenario),
        ("invalid_policies_are_refused_by_the_webhook", invalid_policies_are_refused_by_the_webhook),
    ]
}

/// Installs the configurations of the chart, at the address of the control plane instead of its Service, and
/// waits until they have the root certificate. Policies are checked in the namespace `checked` alone.
fn install(cluster: &Cluster) -> Result<()> {
    let file = tests_dir().join("../deploy/helm/weft/files/webhooks.yaml");
    let (documents, errors) = yaml::parse(&std::fs::read_to_string(file)?);
    ensure!(errors.is_empty() && documents.len() == 2, "{errors:?}");
    for document in documents {
        let mut object = document.root.to_json();
        for webhook in object["webhooks"].as_array_mut().context("no webhooks")? {
            let path = webhook["clientConfig"]["service"]["path"].as_str().context("no path")?;
            let url = format!("https://{}:15017{path}", cluster.mesh.center.ip);
            webhook["clientConfig"] = json!({ "url": url });
            if url.ends_with("/validate") {
                webhook["namespaceSelector"] = json!({ "matchLabels": { "checked": "true" } });
            }
        }
        cluster.apply(&object.to_string())?;
    }
    wait_for("the root certificates", SOON, || {
        for (kind, name) in [
            ("mutatingwebhookconfiguration", "weft-sidecar-injector"),
            ("validatingwebhookconfiguration", "weft-policies"),
        ] {
            let object = cluster.get("default", kind, name)?;
            let webhooks = object["webhooks"].as_array().context("no webhooks")?;
            let has_root =
                |webhook: &Value| webhook["clientConfig"]["caBundle"].as_str().is_some_and(|b| b.len() > 100);
            ensure!(!webhooks.is_empty() && webhooks.iter().all(has_root), "{object}");
        }
        Ok(())
    })
}

fn pod(name: &str, metadata: Value, spec: Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "containers": [{
            "name": "app",
            "image": "none",
            "livenessProbe": { "httpGet": { "path": "/", "port": 8080 } },
        }] },
    });
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        for (field, value) in more.as_object().into_iter().flatten() {
            pod[part][field] = value.clone();
        }
    }
    pod.to_string()
}

fn new_pods_get_a_sidecar_from_the_webhook(cluster: &Cluster) -> Result<()> {
    install(cluster)?;
    cluster.namespace("injected")?;
    cluster.namespace("plain")?;
    cluster.kubectl(&["label", "namespace", "injected", "istio-injection=enabled"], "")?;
    let create = |namespace: &str, pod: &str| {
        cluster.kubectl_with_warnings(&["-n", namespace, "create", "-f", "-", "-o", "json"], pod)
    };
    let containers = |namespace: &str, pod: &str| -> Result<Vec<String>> {
        let created: Value = serde_json::from_str(&create(namespace, pod)?.0)?;
        let list = |list: &str| created["spec"][list].as_array().cloned().unwrap_or_default();
        let names = [list("initContainers"), list("containers")].concat();
        Ok(names.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect())
    };
    // The API server is told of a namespace's labels and of a certificate a moment later.
    wait_for("the webhook", SOON, || {
        let probe = ["-n", "injected", "create", "--dry-run=server", "-f", "-", "-o", "json"];
        let answer = cluster.kubectl(&probe, &pod("probe", json!({}), json!({})))?;
        ensure!(answer.contains("weft-proxy"), "{answer}");
        Ok(())
    })?;
    let all = containers("injected", &pod("one", json!({}), json!({})))?;
    ensure!(all == ["weft-init", "weft-proxy", "app"], "{all:?}");
    let stored = cluster.get("injected", "pod", "one")?;
    let probe = &stored["spec"]["containers"][1]["livenessProbe"]["httpGet"];
    ensure!(probe["path"] == "/app-health/app/livez" && probe["port"] == 15020, "{probe}");
    ensure!(stored["metadata"]["labels"]["security.istio.io/tlsMode"] == "istio", "{stored}");
    let declines = json!({ "labels": { "sidecar.istio.io/inject": "false" } });
    ensure!(containers("injected", &pod("two", declines, json!({})))? == ["app"], "it declines");
    ensure!(containers("plain", &pod("one", json!({}), json!({})))? == ["app"], "no label asks for it");
    let asks = json!({ "labels": { "weft.dev/inject": "true" } });
    ensure!(
        containers("plain", &pod("two", asks, json!({})))?.contains(&"weft-proxy".to_owned()),
        "a label asks for it"
    );
    let (_, warnings) = create("injected", &pod("node", json!({}), json!({ "hostNetwork": true })))?;
    ensure!(warnings.contains("no sidecar of Weft: `hostNetwork`"), "{warnings}");
    let wrong = json!({ "annotations": { "traffic.sidecar.istio.io/excludeInboundPorts": "all" } });
    let refused = create("injected", &pod("wrong", wrong, json!({}))).err().map(|error| error.to_string());
    ensure!(refused.as_ref().is_some_and(|text| text.contains("\"all\" is not a port")), "{refused:?}");
    // An upgrade that takes the certificate away.
    let name = "mutatingwebhookconfiguration/weft-sidecar-injector";
    let reset = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    cluster.kubectl(&["patch", name, "--type=json", "-p", reset], "")?;
    wait_for("the root certificate", SOON, || {
        let object = cluster.get("default", "mutatingwebhookconfiguration", "weft-sidecar-injector")?;
        ensure!(object["webhooks"][0]["clientConfig"]["caBundle"].is_string(), "{object}");
        Ok(())
    })?;
    let metrics = cluster.mesh.center.curl(&["http://127.0.0.1:8501/metrics"])?;
    for line in ["weft_pods_refused_total 1\n", "weft_pods_skipped_total 1\n"] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    Ok(())
}

fn invalid_policies_are_refused_by_the_webhook(cluster: &Cluster) -> Result<()> {
    install(cluster)?;
    cluster.namespace("checked")?;
    cluster.kubectl(&["label", "namespace", "checked", "checked=true"], "")?;
    let apply = |kind: Kind, name: &str, spec: Value| {
        let text = document(kind, name, spec);
        cluster.kubectl_with_warnings(&["-n", "checked", "apply", "-f", "-"], &text)
    };
    let wrong = json!({ "host": "order", "trafficPolicy": { "connectionPool": { "tcp": { "maxConections": 8 } } } });
    wait_for("the webhook", SOON, || {
        let refused = apply(Kind::DestinationRule, "wrong", wrong.clone()).err().context("it is accepted")?.to_string();
        ensure!(refused.contains("did you mean `maxConnections`"), "{refused}");
        Ok(())
    })?;
    let to =
        json!({ "hosts": ["cart"], "http": [{ "route": [{ "destination": { "host": "cart", "subset": "v9" } }] }] });
    let (_, warnings) = apply(Kind::VirtualService, "cart", to)?;
    ensure!(warnings.contains("Warning:") && warnings.contains("v9"), "{warnings}");
    let metrics = cluster.mesh.center.curl(&["http://127.0.0.1:8501/metrics"])?;
    ensure!(metrics.contains("weft_policies_admitted_total 1\n"), "{metrics}");
    Ok(())
}
