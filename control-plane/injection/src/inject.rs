//! The patch of a pod.
//!
//! Native sidecars are init containers that stay: first the redirection, then the proxy, then the pod's own init
//! containers, which are in the mesh. Without them the redirection comes after the pod's own init containers, which are
//! not: no proxy runs yet. A webhook that runs later may add containers, and the API server asks again then. A pod that
//! has its sidecar gets a patch for the probes of such containers alone.

mod containers;
mod metadata;
mod probes;

use serde_json::{Value, json};

use crate::config::Config;
use crate::patch::{Patch, WrongType};
use crate::settings::{Report, Settings, annotations};
use crate::{INIT, PROXY, STATUS};
use containers::{PORTS, VOLUMES};
pub use metadata::METRICS_VARIABLE;
pub use probes::PROBES_VARIABLE;

/// `terminationGracePeriodSeconds` of a pod without one.
const GRACE_S: u64 = 30;

/// The name of a container.
pub(crate) fn name(container: &Value) -> &str {
    container.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The containers of a list of `spec`.
pub(crate) fn containers<'p>(pod: &'p Value, list: &str) -> &'p [Value] {
    pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The result for a pod that gets a sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    /// The operations of a JSON Patch; none: the pod is injected already.
    pub patch: Vec<Value>,
    /// The pod as it is with them.
    pub pod: Value,
    /// What has no effect, or may be a surprise.
    pub warnings: Vec<String>,
}

/// The reasons why a pod cannot have a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each with its place and remedy.
    pub errors: Vec<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.errors.join("; "))
    }
}

impl From<WrongType> for Refusal {
    fn from(wrong: WrongType) -> Self {
        Self { errors: vec![format!("{} has another type than in a Pod", wrong.0)] }
    }
}

/// The object that made a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `Deployment`, `Job`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Owner {
    /// The owner that the references of a pod name; a ReplicaSet stands for its Deployment, a Job for its CronJob.
    pub fn of(pod: &Value) -> Option<Self> {
        let references = pod.pointer("/metadata/ownerReferences")?.as_array()?;
        let owner = references.iter().find(|one| one.get("controller").and_then(Value::as_bool) == Some(true))?;
        let (kind, name) = (owner.get("kind")?.as_str()?, owner.get("name")?.as_str()?);
        let hash = crate::decide::text(pod, "labels", "pod-template-hash");
        let parent = name.rsplit_once('-').filter(|(_, end)| match kind {
            "ReplicaSet" => hash == Some(end),
            "Job" => end.len() >= 8 && end.bytes().all(|b| b.is_ascii_digit()),
            _ => false,
        });
        Some(Self { kind: kind.to_owned(), name: parent.map_or(name, |(parent, _)| parent).to_owned() })
    }
}

/// Makes the patch that adds the sidecar. Whether the pod has one is for [`crate::decide()`] to say.
///
/// # Errors
/// If an annotation is malformed, or the pod and a sidecar exclude each other.
pub fn inject(config: &Config, owner: Option<&Owner>, pod: &Value) -> Result<Injection, Refusal> {
    let mut report = Report::default();
    annotations::check(pod, &mut report);
    let settings = Settings::of(config, pod, &mut report);
    check(config, pod, &mut report);
    if !report.errors.is_empty() {
        return Err(Refusal { errors: report.errors });
    }
    let grace_s = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE_S);
    let mut patch = Patch::of(pod.clone());
    let application = default_container(pod);
    if !is_injected(pod) {
        warn(pod, owner, &settings, &mut report);
        let status = add(&mut patch, config, &settings, grace_s)?;
        metadata::add(&mut patch, owner, &settings, &application, &status)?;
        metadata::prometheus(&mut patch, &settings, &mut report)?;
    }
    if settings.rewrite_probes {
        probes::rewrite(&mut patch, grace_s, &mut report)?;
    }
    let (patch, pod) = patch.finish();
    Ok(Injection { patch, pod, warnings: report.warnings })
}

/// Whether the pod has a sidecar of Weft.
fn is_injected(pod: &Value) -> bool {
    let names = |list| containers(pod, list).iter().any(|one| name(one) == PROXY);
    crate::decide::text(pod, "annotations", STATUS).is_some() && (names("containers") || names("initContainers"))
}

/// The container that `kubectl logs` and `exec` use: the application's first.
fn default_container(pod: &Value) -> String {
    name(containers(pod, "containers").first().unwrap_or(&Value::Null)).to_owned()
}

/// Finds what a pod with a sidecar cannot have.
fn check(config: &Config, pod: &Value, report: &mut Report) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let mut error = |text: String| report.errors.push(text);
    for list in ["containers", "initContainers", "volumes"] {
        let items = spec.get(list).filter(|items| !items.is_null());
        let fine =
            |items: &Value| items.as_array().is_some_and(|items| items.iter().all(|item| !name(item).is_empty()));
        if items.is_some_and(|items| !fine(items)) {
            error(format!("spec.{list} is not a list of objects with names"));
        }
    }
    if containers(pod, "containers").is_empty() {
        error("spec.containers is empty: a pod has a container".to_owned());
    }
    let user = |value: &Value| value.pointer("/securityContext/runAsUser").and_then(Value::as_u64);
    let taken = |found: Option<u64>| found == Some(config.proxy_uid.into());
    let remedy = "its traffic would bypass the proxy: use another user";
    if taken(user(spec)) {
        error(format!("spec.securityContext.runAsUser {} is the proxy's user: {remedy}", config.proxy_uid));
    }
    if is_injected(pod) {
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in containers(pod, list) {
            let name = name(container);
            if [INIT, PROXY, "istio-proxy", "istio-init"].contains(&name) {
                error(format!(
                    "spec.{list}: the name {name} is that of a sidecar's container: remove or rename it, and use annotations \
                     to change the sidecar"
                ));
            }
            if taken(user(container)) {
                error(format!("container {name}: runAsUser {} is the proxy's user: {remedy}", config.proxy_uid));
            }
            let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
            for port in ports.filter_map(|port| port.get("containerPort")?.as_u64()) {
                if PORTS.iter().any(|own| u64::from(*own) == port) {
                    error(format!("container {name}: the port {port} is the proxy's: use another one"));
                }
            }
        }
    }
    for volume in spec.get("volumes").and_then(Value::as_array).into_iter().flatten() {
        if VOLUMES.contains(&name(volume)) {
            error(format!("spec.volumes: the name {} is that of a sidecar's volume: rename it", name(volume)));
        }
    }
}

fn warn(pod: &Value, owner: Option<&Owner>, settings: &Settings, report: &mut Report) {
    let policy = pod.pointer("/spec/dnsPolicy").and_then(Value::as_str).unwrap_or("ClusterFirst");
    if !policy.starts_with("ClusterFirst") {
        report.warnings.push(format!(
            "dnsPolicy {policy}: the proxy may not find the control plane by its name; use ClusterFirst"
        ));
    }
    if !settings.native && owner.is_some_and(|owner| ["Job", "CronJob"].contains(&&*owner.kind)) {
        let text = "the proxy of a Job runs on when its containers have ended: let the last one call `curl -X POST \
                    http://127.0.0.1:15020/quitquitquit`, or use native sidecars (Kubernetes 1.29)";
        report.warnings.push(text.to_owned());
    }
}

/// Adds containers, volumes and secrets; returns their names.
fn add(patch: &mut Patch, config: &Config, settings: &Settings, grace_s: u64) -> Result<Value, WrongType> {
    let init = containers::init(config, settings);
    let proxy = containers::proxy(config, settings, patch.document(), grace_s);
    let inits: Vec<Value> = init.into_iter().chain(settings.native.then(|| proxy.clone())).collect();
    let mut status = json!({ "revision": config.revision, "initContainers": [], "containers": [], "volumes": [] });
    let mut added = |list: &str, item: &Value| {
        if let Some(names) = status.get_mut(list).and_then(Value::as_array_mut) {
            names.push(name(item).into());
        }
    };
    for (index, container) in inits.into_iter().enumerate() {
        added("initContainers", &container);
        patch.insert(&["spec", "initContainers"], (!settings.init_last).then_some(index), container)?;
    }
    if !settings.native {
        added("containers", &proxy);
        patch.insert(&["spec", "containers"], settings.hold.then_some(0), proxy)?;
    }
    for volume in containers::volumes(settings) {
        added("volumes", &volume);
        patch.insert(&["spec", "volumes"], None, volume)?;
    }
    for secret in &config.image_pull_secrets {
        let secret = json!({ "name": secret });
        let known = patch.document().pointer("/spec/imagePullSecrets").and_then(Value::as_array);
        if !known.is_some_and(|known| known.contains(&secret)) {
            patch.insert(&["spec", "imagePullSecrets"], None, secret)?;
        }
    }
    Ok(status)
}
