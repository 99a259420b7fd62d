//! Identities of pods, and the root certificate and authority that the cluster keeps.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_policy::Kind;
use weft_tests::{Pod, Process, document, wait_for};

use crate::Scenario;
use crate::cluster::{Cluster, SOON};
use crate::source::{serve, service};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("pods_join_by_the_token_of_their_service_account", pods_join_by_their_token as Scenario),
        ("every_namespace_has_the_root_certificate_whatever_happens_to_it", every_namespace_has_the_root_certificate),
        ("the_authority_in_a_secret_is_shared_and_outlives_stores", the_authority_in_a_secret_is_shared),
    ]
}

/// The longest pause after refusals, and a write.
const LATE: Duration = Duration::from_secs(45);

/// Starts the sidecar of a pod with the token of another pod, mostly the same.
fn sidecar(cluster: &Cluster, pod: &Pod, namespace: &str, account: &str, of: &str, audience: &str) -> Result<Process> {
    let token = cluster.bound_token(namespace, account, of, audience)?;
    let root = cluster.root(namespace)?;
    let (token, root) = (token.to_string_lossy(), root.to_string_lossy());
    let node = format!("{of}.{namespace}");
    let args =
        ["--service-account-token", &token, "--root-certificate", &root, "--node-name", &node, "--workload", account];
    cluster.mesh.sidecar_unready(pod, account, &args)
}

fn pods_join_by_their_token(cluster: &Cluster) -> Result<()> {
    let mesh = &cluster.mesh;
    cluster.namespace("bank")?;
    let (front, order) = (mesh.pod("bank-front")?, mesh.pod("bank-order")?);
    let _app = order.serve(8080, "bank-order")?;
    cluster.apply(&service("order", "bank"))?;
    let strict = document(Kind::PeerAuthentication, "default", json!({ "mtls": { "mode": "STRICT" } }));
    cluster.kubectl(&["-n", "bank", "apply", "-f", "-"], &strict)?;
    let mut sidecars = Vec::new();
    for (pod, account) in [(&front, "front"), (&order, "order")] {
        cluster.kubectl(&["-n", "bank", "create", "serviceaccount", account], "")?;
        cluster.register_injected_pod("bank", pod, &json!({ "app": account }), account)?;
        sidecars.push(sidecar(cluster, pod, "bank", account, &pod.name, "weft-ca")?);
        mesh.wait_ready(pod)?;
        mesh.redirect(pod)?;
    }
    serve(&front, "order", &["bank-order"])?;
    let answer = front.curl(&["http://order/"])?;
    ensure!(answer.contains("spiffe://cluster.local/ns/bank/sa/front"), "{answer}");
    // Its labels and the locality of its node come with its pod.
    let route = mesh.weftctl(&["route", "--from", "order.bank", "http://order/"]);
    ensure!(route.is_ok(), "{route:?}");

    // STRICT holds for pods of the cluster.
    let outside = mesh.pod("bank-outside")?;
    wait_for("the refusal of plaintext", SOON, || {
        let plain = outside.curl(&[&format!("http://{}:8080/", order.ip)])?;
        ensure!(plain.contains("mTLS is required here"), "{plain}");
        Ok(())
    })?;

    // Programs of a pod register the names of its annotation, and none that the cluster has.
    let register = |name: &str| {
        let body = json!({ "Name": name, "ID": name, "Port": 9000 }).to_string();
        order.curl(&["-X", "PUT", "-d", &body, "http://127.0.0.1:8500/v1/agent/service/register"])
    };
    for (name, reason) in [("order", "is a Service of the Kubernetes cluster"), ("cart", "cart")] {
        let answer = register(name)?;
        ensure!(answer.contains(reason), "{name}: {answer}");
    }
    ensure!(register("stock")?.is_empty(), "the annotation names it");

    for (pod, of, audience, reason) in [
        (&outside, "bank-order", "weft-ca", "is shown by"),
        (&outside, "bank-order", "api", "is for the audience [\"api\"], not weft-ca"),
    ] {
        let refused = sidecar(cluster, pod, "bank", "order", of, audience)?;
        wait_for("the refusal", SOON, || {
            ensure!(refused.output().contains(reason), "{reason}: {}", refused.output());
            Ok(())
        })?;
    }
    Ok(())
}

fn every_namespace_has_the_root_certificate(cluster: &Cluster) -> Result<()> {
    cluster.namespace("rooted")?;
    let expected = std::fs::read_to_string(cluster.mesh.data_dir().join("root.pem"))?;
    let is_there = || {
        wait_for("the root certificate", SOON, || {
            let found = std::fs::read_to_string(cluster.root("rooted")?)?;
            ensure!(found == expected, "{found:?}");
            Ok(())
        })
    };
    is_there()?;
    // A namespace that takes no ConfigMap keeps the others from nothing.
    let selector = json!({ "matchLabels": { "closed": "true" } });
    let rules = json!([{
        "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
    }]);
    let webhook = json!({
        "name": "closed.example.com",
        "clientConfig": { "url": "https://127.0.0.1:1/" },
        "rules": rules,
        "namespaceSelector": selector,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
        "failurePolicy": "Fail",
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "closed" },
        "webhooks": [webhook],
    });
    cluster.apply(&configuration.to_string())?;
    let labels = json!({ "closed": "true" });
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a-closed", "labels": labels } });
    cluster.apply(&namespace.to_string())?;
    // The API server learns of a webhook a moment later.
    wait_for("the webhook", SOON, || {
        let probe = ["-n", "a-closed", "create", "configmap", "probe", "--dry-run=server"];
        ensure!(cluster.kubectl(&probe, "").is_err(), "the webhook is not asked yet");
        Ok(())
    })?;
    let _ = cluster.kubectl(&["-n", "a-closed", "delete", "configmap", "weft-ca-root-cert"], "");
    cluster.kubectl(&["-n", "rooted", "delete", "configmap", "weft-ca-root-cert"], "")?;
    is_there()?;
    let edit = json!({ "data": { "root-cert.pem": "nonsense" } }).to_string();
    cluster.kubectl(&["-n", "rooted", "patch", "configmap", "weft-ca-root-cert", "-p", &edit], "")?;
    is_there()?;
    ensure!(cluster.root("a-closed").is_err(), "the webhook has let it pass");
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "closed"], "")?;
    wait_for("the root certificate of the namespace that is open again", LATE, || cluster.root("a-closed").map(drop))?;
    cluster.kubectl(&["delete", "namespace", "rooted", "a-closed"], "").map(drop)
}

fn the_authority_in_a_secret_is_shared(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let of_cluster = ["--kubernetes", "--kubeconfig", &kubeconfig, "--ca-secret", "weft-ca", "--webhook-listen", "off"];
    let another = cluster.mesh.another_control_plane(1, &of_cluster)?;
    let root = |folder: std::path::PathBuf| std::fs::read_to_string(folder.join("root.pem"));
    let (own, others) = (root(cluster.mesh.data_dir())?, root(cluster.mesh.data_dir_of(1))?);
    ensure!(own == others, "{own}\n{others}");
    drop(another);
    Ok(())
}
