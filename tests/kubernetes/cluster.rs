//! A cluster in the pod of a mesh's control plane.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Mesh, Pod, feed, tests_dir, wait_for};

/// Longest wait for a change of the cluster to reach the mesh.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// The node has no kubelet, whose silence must not make its pods unready.
const NO_KUBELET: &str = "--node-monitor-grace-period=1h --node-startup-grace-period=1h";

/// A mesh with the cluster that its control plane follows.
pub(crate) struct Cluster {
    /// The mesh.
    pub(crate) mesh: Mesh,
    folder: PathBuf,
}

fn script() -> PathBuf {
    tests_dir().join("kubernetes/kube.sh")
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Builds the cluster's programs, unless the cache has them. It needs the network.
///
/// # Errors
/// If they cannot be built.
pub(crate) fn build() -> Result<()> {
    // All programs at once, those of the node too: the sources are unpacked once.
    let names = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
    run(Command::new(script()).arg("build").args(names))
}

impl Cluster {
    /// Starts a cluster, installs the policy kinds, and starts a control plane that follows it.
    ///
    /// # Errors
    /// If a part does not start.
    pub(crate) fn start() -> Result<Cluster> {
        let mesh = Mesh::network(&[])?;
        let folder = mesh.center.folder("kubernetes");
        let mut cluster = Cluster { mesh, folder };
        cluster.script("start")?;
        let definitions = cluster.mesh.weftctl(&["install", "print"])?;
        cluster.apply(&definitions)?;
        let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=20s"];
        cluster.kubectl(&established, "")?;
        let zone = json!({ "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a" });
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1", "labels": zone } });
        cluster.apply(&node.to_string())?;
        let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
        let injection = cluster.folder.join("injection.yaml");
        // This API server has no native sidecars.
        std::fs::write(&injection, "image: weft:test\nnativeSidecar: false\n")?;
        let injection = injection.to_string_lossy().into_owned();
        let address = cluster.mesh.center.ip.clone();
        let of_cluster = ["--kubernetes", "--kubeconfig", &kubeconfig, "--ca-secret", "weft-ca"];
        let webhook = ["--webhook-name", &address, "--injection-config", &injection];
        cluster.mesh.control_plane_args = of_cluster.into_iter().chain(webhook).map(str::to_owned).collect();
        cluster.mesh.start_control_plane()?;
        Ok(cluster)
    }

    fn script(&self, step: &str) -> Result<()> {
        let mut command = self.mesh.center.command(script());
        run(command
            .args([step, &self.folder.to_string_lossy()])
            .env("KUBE_ADDRESS", &self.mesh.center.ip)
            .env("CONTROLLER_FLAGS", NO_KUBELET))
    }

    /// Ends the API server, the controller manager and etcd at once.
    ///
    /// # Errors
    /// If the script fails.
    pub(crate) fn stop_api_server(&self) -> Result<()> {
        self.script("stop")
    }

    /// Starts them again with their data.
    ///
    /// # Errors
    /// If they do not start.
    pub(crate) fn start_api_server(&self) -> Result<()> {
        self.script("start")
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// The output of kubectl.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        Ok(self.kubectl_with_warnings(args, input)?.0)
    }

    /// The output of kubectl, and the warnings of the API server.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn kubectl_with_warnings(&self, args: &[&str], input: &str) -> Result<(String, String)> {
        let mut command = self.mesh.center.command("kubectl");
        command.args(args).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder);
        feed(&mut command, input)
    }

    /// Applies objects.
    ///
    /// # Errors
    /// If kubectl fails.
    pub(crate) fn apply(&self, text: &str) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], text).map(drop)
    }

    /// An object.
    ///
    /// # Errors
    /// If it does not exist.
    pub(crate) fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"], "")?)?)
    }

    /// Creates a namespace for a scenario.
    ///
    /// # Errors
    /// If kubectl fails.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name], "").map(drop)?;
        wait_for("the namespace's service account", SOON, || self.get(name, "serviceaccount", "default").map(drop))
    }

    /// Registers a network namespace as a running pod of the cluster, as a kubelet would.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn register_pod(&self, namespace: &str, pod: &Pod, labels: &Value) -> Result<()> {
        self.register_pod_of(namespace, pod, labels, "default")
    }

    /// The same for a pod with a sidecar, of a service account.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn register_injected_pod(
        &self,
        namespace: &str,
        pod: &Pod,
        labels: &Value,
        account: &str,
    ) -> Result<()> {
        let mut labels = labels.clone();
        labels["security.istio.io/tlsMode"] = json!("istio");
        self.register_pod_of(namespace, pod, &labels, account)
    }

    fn register_pod_of(&self, namespace: &str, pod: &Pod, labels: &Value, account: &str) -> Result<()> {
        let containers = json!([{ "name": "app", "image": "none" }]);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod.name,
                "namespace": namespace,
                "labels": labels,
                "annotations": { "weft.dev/services": "order,stock" },
            },
            "spec": { "nodeName": "node-1", "serviceAccountName": account, "containers": containers },
        });
        self.apply(&object.to_string())?;
        self.set_ready(namespace, pod, true)
    }

    /// A file with a token of a service account, bound to a pod, as the kubelet projects it.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn bound_token(&self, namespace: &str, account: &str, pod: &str, audience: &str) -> Result<PathBuf> {
        let uid = self.get(namespace, "pod", pod)?["metadata"]["uid"].clone();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience],
                "expirationSeconds": 3600,
                "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid },
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let made = self.kubectl(&["create", "--raw", &path, "-f", "-"], &request.to_string())?;
        let made: Value = serde_json::from_str(&made)?;
        let file = self.folder.join(format!("{namespace}-{pod}-{audience}.token"));
        std::fs::write(&file, made["status"]["token"].as_str().context("no token")?)?;
        Ok(file)
    }

    /// A file with the root certificate that pods of a namespace mount.
    ///
    /// # Errors
    /// If the namespace does not have it.
    pub(crate) fn root(&self, namespace: &str) -> Result<PathBuf> {
        let found = self.get(namespace, "configmap", "weft-ca-root-cert")?;
        let file = self.folder.join(format!("{namespace}-root-cert.pem"));
        std::fs::write(&file, found["data"]["root-cert.pem"].as_str().context("no certificate")?)?;
        Ok(file)
    }

    /// Sets the readiness of a pod's endpoints.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn set_ready(&self, namespace: &str, pod: &Pod, ready: bool) -> Result<()> {
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": pod.ip,
            "podIPs": [{ "ip": pod.ip }],
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        }});
        self.patch_status(&format!("/api/v1/namespaces/{namespace}/pods/{}/status", pod.name), &status)
    }

    fn patch_status(&self, path: &str, status: &Value) -> Result<()> {
        let file = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let url = format!("https://{}:16443{path}", self.mesh.center.ip);
        let body = status.to_string();
        let (ca, cert, key) = (file("ca.crt"), file("admin.crt"), file("admin.key"));
        let kind = "content-type: application/merge-patch+json";
        let args =
            ["-f", "--cacert", &ca, "--cert", &cert, "--key", &key, "-X", "PATCH", "-H", kind, "-d", &body, &url];
        self.mesh.center.curl(&args).map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.script("stop");
    }
}
