//! A cluster of one node in namespaces of its own, with Weft installed by its chart.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_tests::{binary, feed, helm, repository, run, tests_dir, wait_for};

/// Longest wait for pods to be ready.
pub(crate) const READY: Duration = Duration::from_secs(90);
/// Cluster IP of the control plane's Service, which the cluster's DNS has.
const CONTROL_PLANE: &str = "10.96.0.15";
/// Namespace of the control plane.
pub(crate) const SPACE: &str = "weft-system";

/// The node.
pub(crate) struct Node {
    folder: tempfile::TempDir,
}

/// What containerd, the network plugins and kubelet would leave on the machine: the entries of the folders that they write to.
pub(crate) fn traces() -> BTreeMap<&'static str, Option<BTreeSet<OsString>>> {
    const FOLDERS: [&str; 6] =
        ["/run/netns", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers"];
    let entries = |folder: &str| {
        let all = std::fs::read_dir(folder).ok()?;
        Some(all.flatten().map(|entry| entry.file_name()).collect())
    };
    FOLDERS.into_iter().map(|folder| (folder, entries(folder))).collect()
}

fn script(name: &str) -> PathBuf {
    tests_dir().join("kubernetes").join(name)
}

/// The image of the applications: busybox, whose `httpd` runs the scripts of /www/cgi-bin.
fn application(folder: &Path) -> Result<()> {
    let root = folder.join("app");
    let busybox = wait_program("busybox")?;
    for dir in ["bin", "www/cgi-bin", "tmp"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    let of_shell = ["sh", "httpd", "wget", "sleep", "cat", "env", "echo", "date", "touch", "seq", "grep", "nc"];
    for name in of_shell {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    // Answers with the name of the pod and the identity of the client.
    let page =
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$HOSTNAME $HTTP_X_FORWARDED_CLIENT_CERT\"\n";
    std::fs::write(root.join("www/cgi-bin/name"), page)?;
    run("chmod", &["755", &root.join("www/cgi-bin/name").to_string_lossy()])?;
    archive(&root, "localhost/app:test", &folder.join("app.tar"), "0:0")
}

fn wait_program(name: &str) -> Result<String> {
    Ok(run("sh", &["-c", &format!("command -v {name}")])?.trim().to_owned())
}

/// The image of Weft with the programs of this build, as deploy/docker makes it.
fn weft(folder: &Path) -> Result<()> {
    let programs = folder.join("programs");
    std::fs::create_dir_all(&programs)?;
    for name in ["weft-sidecar", "weft-control-plane", "weftctl"] {
        let (from, to) = (binary(name)?, programs.join(name));
        run("strip", &["-o", &to.to_string_lossy(), &from.to_string_lossy()])?;
    }
    let root = folder.join("weft");
    let rootfs = repository().join("deploy/docker/rootfs.sh");
    run(&rootfs.to_string_lossy(), &[&programs.to_string_lossy(), &root.to_string_lossy()])?;
    archive(&root, "localhost/weft:test", &folder.join("weft.tar"), "1337:1337")
}

fn archive(root: &Path, name: &str, out: &Path, user: &str) -> Result<()> {
    let image = script("image.sh");
    run(&image.to_string_lossy(), &[&root.to_string_lossy(), name, &out.to_string_lossy(), user]).map(drop)
}

impl Node {
    /// Starts the node, and installs the chart.
    ///
    /// # Errors
    /// If a part does not start.
    pub(crate) fn start() -> Result<Node> {
        let folder = tempfile::tempdir()?;
        application(folder.path())?;
        weft(folder.path())?;
        let node = Node { folder };
        let images = ["app.tar", "weft.tar"].map(|name| node.folder.path().join(name));
        let names = format!("weft-control-plane.{SPACE}.svc.cluster.local={CONTROL_PLANE}");
        let mut command = Command::new(script("node.sh"));
        let started = command.arg("start").arg(node.path()).args(images).env("DNS_NAMES", names).output()?;
        ensure!(started.status.success(), "the node: {}", String::from_utf8_lossy(&started.stderr));
        node.install(&[]).map_err(|e| e.context(node.report()))?;
        Ok(node)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    /// Installs or upgrades the chart with these arguments.
    ///
    /// # Errors
    /// If Helm fails, or the control plane does not become ready.
    pub(crate) fn install(&self, args: &[&str]) -> Result<()> {
        let chart = repository().join("deploy/helm/weft").to_string_lossy().into_owned();
        let address = format!("service.clusterIP={CONTROL_PLANE}");
        let own = ["upgrade", "--install", "weft", &chart, "-n", SPACE, "--create-namespace", "--set", &address];
        let image = "image.repository=localhost/weft,image.tag=test,image.pullPolicy=Never,replicaCount=1";
        self.exec(&[&[&*helm()?.to_string_lossy()], &own[..], &["--set", image], args].concat(), "")?;
        self.rolled_out(SPACE, "weft-control-plane")
    }

    /// The output of a command in the node's namespaces.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn exec(&self, command: &[&str], input: &str) -> Result<String> {
        let mut node = Command::new(script("node.sh"));
        let output = feed(node.arg("exec").arg(self.path()).args(command).env("HOME", self.folder.path()), input);
        output.map(|(text, _)| text)
    }

    /// The output of kubectl.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.exec(&[&["kubectl"], args].concat(), "")
    }

    /// Applies objects.
    ///
    /// # Errors
    /// If kubectl fails.
    pub(crate) fn apply(&self, namespace: &str, objects: &str) -> Result<()> {
        self.exec(&["kubectl", "-n", namespace, "apply", "-f", "-"], objects).map(drop)
    }

    /// An object.
    ///
    /// # Errors
    /// If it does not exist.
    pub(crate) fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"])?)?)
    }

    /// Waits for the rollout of a Deployment or, with its kind, of another workload.
    ///
    /// # Errors
    /// If it is not ready in time.
    pub(crate) fn rolled_out(&self, namespace: &str, name: &str) -> Result<()> {
        let name = if name.contains('/') { name.to_owned() } else { format!("deployment/{name}") };
        let limit = format!("--timeout={}s", READY.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", &name, &limit]).map(drop)
    }

    /// A namespace whose pods are injected.
    ///
    /// # Errors
    /// If kubectl fails.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        self.kubectl(&["label", "namespace", name, "istio-injection=enabled"])?;
        wait_for("the namespace's service account", READY, || self.get(name, "serviceaccount", "default").map(drop))
    }

    /// The output of a command in a container of a Deployment's pod.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn in_pod(&self, namespace: &str, workload: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["-n", namespace, "exec", workload, "--"], command].concat())
    }

    /// Pods, events and logs, for a failure.
    pub(crate) fn report(&self) -> String {
        let text = |args: &[&str]| self.kubectl(args).unwrap_or_else(|e| e.to_string());
        let pods = text(&["get", "pods,endpointslices", "-A", "-o", "wide"]);
        let events = text(&["get", "events", "-A", "--field-selector", "type=Warning"]);
        let log = text(&["-n", SPACE, "logs", "deployment/weft-control-plane", "--tail=40"]);
        let of_node = |name: &str| std::fs::read_to_string(self.path().join(name)).unwrap_or_default();
        let last = |text: String| text.lines().rev().take(20).map(str::to_owned).collect::<Vec<_>>().join("\n");
        let (proxy, script) = (last(of_node("proxy.log")), last(of_node("node.log")));
        format!("{pods}\n{events}\n{log}\nkube-proxy:\n{proxy}\nthe script:\n{script}")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new(script("node.sh")).arg("stop").arg(self.path()).status();
    }
}
