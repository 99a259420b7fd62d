//! The Helm chart, with the real Helm.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{feed, helm, repository, wait_for};

use crate::Scenario;
use crate::cluster::{Cluster, SOON};

pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("generated_files_of_the_chart_are_current", generated_files_are_current as Scenario),
        ("the_chart_installs_upgrades_and_uninstalls_its_objects", the_chart_installs_and_uninstalls),
        ("the_chart_grants_what_the_control_plane_needs_and_no_more", the_chart_grants_what_is_needed),
    ]
}

const SPACE: &str = "weft-system";

fn chart() -> String {
    repository().join("deploy/helm/weft").to_string_lossy().into_owned()
}

/// The output of Helm.
fn run(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let mut command: Command = cluster.mesh.center.command(helm()?);
    let folder = cluster.mesh.center.folder("helm");
    command.args(args).env("KUBECONFIG", cluster.kubeconfig());
    for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(name, &folder);
    }
    feed(&mut command, "").map(|(text, _)| text)
}

fn install(cluster: &Cluster, args: &[&str]) -> Result<()> {
    run(cluster, &[&["install", "weft", &chart(), "-n", SPACE, "--create-namespace"], args].concat()).map(drop)
}

fn uninstall(cluster: &Cluster) -> Result<()> {
    run(cluster, &["uninstall", "weft", "-n", SPACE]).map(drop)
}

/// Names of the objects that the chart makes.
fn objects(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "deployments,services,serviceaccounts,configmaps,roles,rolebindings,clusterroles,clusterrolebindings,pdb,hpa,\
                 mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let label = "app.kubernetes.io/part-of=weft";
    let text = cluster.kubectl(&["get", kinds, "-A", "-l", label, "-o", "name"], "")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The definitions in the chart are those of `weftctl`, and the manifests for kustomize are those of the chart. With WEFT_GOLDENS
/// they are written.
fn generated_files_are_current(cluster: &Cluster) -> Result<()> {
    let compare = |path: &str, text: &str| {
        let file = repository().join(path);
        if std::env::var_os("WEFT_GOLDENS").is_some() {
            std::fs::write(&file, text)?;
        }
        ensure!(std::fs::read_to_string(&file)? == text, "{path} is out of date: `make chart`");
        Ok(())
    };
    compare("deploy/helm/weft/files/crds.yaml", &cluster.mesh.weftctl(&["install", "print"])?)?;
    let manifests = run(cluster, &["template", "weft", &chart(), "-n", SPACE, "--kube-version", "1.32.0"])?;
    let made = "# `make chart` makes this file of the chart in deploy/helm/weft.\n";
    compare("deploy/kubernetes/weft.yaml", &format!("{made}{manifests}"))?;
    let folder = repository().join("deploy/kubernetes").to_string_lossy().into_owned();
    let applied = cluster.kubectl(&["kustomize", &folder], "")?;
    ensure!(applied.contains("kind: Namespace") && applied.contains("kind: Deployment"), "{applied}");
    Ok(())
}

fn the_chart_installs_and_uninstalls(cluster: &Cluster) -> Result<()> {
    let linted = run(cluster, &["lint", &chart()])?;
    ensure!(linted.contains("0 chart(s) failed"), "{linted}");
    let misspelt = run(cluster, &["template", "weft", &chart(), "--set", "replicaCuont=3"]);
    ensure!(misspelt.is_err_and(|e| e.to_string().contains("replicaCuont")), "a misspelt value is refused");
    install(cluster, &[])?;
    let deployment = || cluster.get(SPACE, "deployment", "weft-control-plane");
    ensure!(deployment()?["spec"]["replicas"] == 2, "the default");
    run(
        cluster,
        &["upgrade", "weft", &chart(), "-n", SPACE, "--set", "replicaCount=3,meshConfig.enablePrometheusMerge=true"],
    )?;
    let upgraded = deployment()?;
    ensure!(upgraded["spec"]["replicas"] == 3, "{upgraded}");
    // A revision beside it, for a canary upgrade.
    run(cluster, &["install", "weft-b", &chart(), "-n", SPACE, "--set", "revision=b"])?;
    cluster.get(SPACE, "deployment", "weft-control-plane-b")?;
    run(cluster, &["uninstall", "weft-b", "-n", SPACE])?;
    ensure!(deployment()?["spec"]["replicas"] == 3, "the other revision stays");
    uninstall(cluster)?;
    wait_for("the end of all objects", SOON, || {
        let left = objects(cluster)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// A kubeconfig of the chart's service account.
fn kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} }).to_string();
    let path = format!("/api/v1/namespaces/{SPACE}/serviceaccounts/weft-control-plane/token");
    let made: Value = serde_json::from_str(&cluster.kubectl(&["create", "--raw", &path, "-f", "-"], &request)?)?;
    let token = made["status"]["token"].as_str().context("no token")?;
    let admin = cluster.kubectl(&["config", "view", "--raw", "-o", "json"], "")?;
    let mut config: Value = serde_json::from_str(&admin)?;
    let (cluster_name, user) = (config["clusters"][0]["name"].clone(), "control-plane");
    config["users"] = json!([{ "name": user, "user": { "token": token } }]);
    config["contexts"] =
        json!([{ "name": "own", "context": { "cluster": cluster_name, "user": user, "namespace": SPACE } }]);
    config["current-context"] = json!("own");
    let file = cluster.mesh.center.folder("control-plane").with_extension("kubeconfig");
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

fn the_chart_grants_what_is_needed(cluster: &Cluster) -> Result<()> {
    let mesh = &cluster.mesh;
    install(cluster, &["--set", "crds.install=false"])?;
    let file = kubeconfig(cluster)?.to_string_lossy().into_owned();
    let args = [
        "--kubernetes",
        "--kubeconfig",
        &file,
        "--ca-secret",
        "weft-ca",
        "--dns-listen",
        "off",
        "--http-listen",
        "off",
        "--webhook-listen",
        "off",
    ];
    let process = mesh.another_control_plane(2, &args)?;
    // A pod joins there.
    cluster.namespace("granted")?;
    let pod = mesh.pod("granted")?;
    cluster.register_injected_pod("granted", &pod, &json!({}), "default")?;
    let token = cluster.bound_token("granted", "default", "granted", "weft-ca")?;
    let root = mesh.data_dir_of(2).join("root.pem");
    let (token, root, at) = (token.to_string_lossy(), root.to_string_lossy(), format!("{}:15014", mesh.center.ip));
    let args = ["--service-account-token", &token, "--root-certificate", &root, "--control-plane", &at];
    let _sidecar = mesh.sidecar(&pod, "default", &[&args[..], &["--node-name", "granted.granted"]].concat())?;
    let output = process.output();
    ensure!(!output.contains("forbidden") && !output.contains("grant "), "{output}");

    let account = format!("--as=system:serviceaccount:{SPACE}:weft-control-plane");
    let may = |verb: &str, what: &str, namespace: &str| {
        let (what, part) = what.split_once(':').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        let answer = cluster.kubectl(&["auth", "can-i", verb, what, &part, "-n", namespace, &account], "");
        answer.is_ok_and(|answer| answer.trim() == "yes")
    };
    for (verb, what, namespace, expected) in [
        ("patch", "destinationrules.networking.istio.io:status", "granted", true),
        ("patch", "configmap/weft-ca-root-cert", "granted", true),
        ("get", "secret/weft-ca", SPACE, true),
        ("patch", "configmap/another", "granted", false),
        ("get", "secret/another", SPACE, false),
        ("get", "secret/weft-ca", "granted", false),
        ("update", "destinationrules.networking.istio.io", "granted", false),
        ("create", "pods:exec", "granted", false),
        ("delete", "pods", "granted", false),
    ] {
        ensure!(may(verb, what, namespace) == expected, "{verb} {what} in {namespace}");
    }
    uninstall(cluster)
}
