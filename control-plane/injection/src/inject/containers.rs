//! The containers and volumes that a patch adds.

use serde_json::{Value, json};

use crate::config::{Amounts, Config, Resources};
use crate::settings::Settings;
use crate::{AUDIENCE, INIT, PROXY, ROOT_FILE, ROOT_MAP};

/// Where the service account's token is mounted, and its name there.
const TOKEN: (&str, &str) = ("/var/run/secrets/tokens", "weft-token");
/// Its life. The kubelet renews it in time.
const TOKEN_LIFE_S: u32 = 43_200;
/// Where the root certificate is mounted.
const ROOT: &str = "/var/run/secrets/weft";
const DATA: &str = "/var/lib/weft-sidecar";
/// Readiness, and metrics and probes of the application.
const READY_PORT: u16 = 15021;
/// See above.
pub(crate) const METRICS_PORT: u16 = 15020;
/// Ports of the proxy, which an application cannot have.
pub(crate) const PORTS: [u16; 6] = [15000, 15001, 15006, METRICS_PORT, READY_PORT, 15053];
/// Most labels that the control plane accepts of a sidecar.
pub(crate) const MOST_LABELS: usize = 128;
/// Between the proxy's last moment and the end of the pod's grace period.
const BEFORE_KILL_S: u64 = 2;

/// Names of the added volumes.
pub(crate) const VOLUMES: [&str; 3] = ["weft-token", "weft-root", "weft-data"];

/// The init container that installs the redirection, unless nothing is captured.
pub(crate) fn init(config: &Config, settings: &Settings) -> Option<Value> {
    let capture = settings.capture.as_ref()?;
    let uid = config.proxy_uid.to_string();
    let mut arguments =
        ["redirect", "install", "--force", "--own-namespace", "--proxy-uid", &uid].map(str::to_owned).to_vec();
    arguments.extend(capture.iter().cloned());
    let mut container = json!({
        "name": INIT,
        "image": settings.image,
        "command": ["weft-sidecar"],
        "args": arguments,
        // Kubernetes gives a user other than root no capability.
        "securityContext": security(0, &["NET_ADMIN"]),
    });
    complete(&mut container, config, &settings.resources);
    Some(container)
}

/// The proxy of a pod with its labels. `grace_s`: its `terminationGracePeriodSeconds`.
pub(crate) fn proxy(config: &Config, settings: &Settings, pod: &Value, grace_s: u64) -> Value {
    let ready = json!({ "path": "/healthz/ready", "port": READY_PORT });
    let mut mounts = vec![
        json!({ "name": VOLUMES[0], "mountPath": TOKEN.0, "readOnly": true }),
        json!({ "name": VOLUMES[1], "mountPath": ROOT, "readOnly": true }),
        json!({ "name": VOLUMES[2], "mountPath": DATA }),
    ];
    mounts.extend(settings.mounts.iter().cloned());
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let mut container = json!({
        "name": PROXY,
        "image": settings.image,
        "command": ["weft-sidecar"],
        "args": arguments(config, settings, pod, grace_s),
        "env": [
            { "name": "POD_NAME", "valueFrom": field("metadata.name") },
            { "name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace") },
            // The control plane knows the pod by this name.
            { "name": "WEFT_NODE_NAME", "value": "$(POD_NAME).$(POD_NAMESPACE)" },
            { "name": "INSTANCE_IP", "valueFrom": field("status.podIP") },
            { "name": "WEFT_LOG", "value": settings.log_level },
        ],
        "ports": [{ "name": "weft-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" }],
        "securityContext": security(config.proxy_uid, &[]),
        "volumeMounts": mounts,
        "readinessProbe": {
            "httpGet": ready,
            "initialDelaySeconds": settings.readiness.initial_delay_seconds,
            "periodSeconds": settings.readiness.period_seconds,
            "failureThreshold": settings.readiness.failure_threshold,
            "timeoutSeconds": 3,
        },
        // The containers that follow a native sidecar start after this one's success.
        "startupProbe": { "httpGet": ready, "periodSeconds": 1, "failureThreshold": 600, "timeoutSeconds": 3 },
    });
    if settings.native {
        container["restartPolicy"] = "Always".into();
    } else if settings.hold {
        // The kubelet starts the next container when this has ended.
        container["lifecycle"] = json!({ "postStart": { "exec": { "command": ["weft-sidecar", "wait"] } } });
    }
    complete(&mut container, config, &settings.resources);
    container
}

fn arguments(config: &Config, settings: &Settings, pod: &Value, grace_s: u64) -> Vec<String> {
    let mut arguments = vec!["run".to_owned()];
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("--control-plane", config.control_plane());
    option("--service-account-token", format!("{}/{}", TOKEN.0, TOKEN.1));
    option("--root-certificate", format!("{ROOT}/{ROOT_FILE}"));
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let labels = labels.into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_str()?)));
    for (name, value) in labels.take(MOST_LABELS) {
        if name == super::metadata::NAME {
            option("--workload", value.to_owned());
        }
        // Policies select workloads by labels.
        option("--label", format!("{name}={value}"));
    }
    if let Some(workers) = settings.workers {
        option("--workers", workers.to_string());
    }
    let limit = grace_s.saturating_sub(BEFORE_KILL_S).max(1);
    // A native sidecar is stopped after the application: there is nothing to stay for.
    if let Some(least) = settings.drain_min_s.or(settings.native.then_some(0)) {
        option("--drain-min", least.min(limit).to_string());
    }
    option("--drain-limit", limit.to_string());
    arguments
}

/// The volumes of the proxy.
pub(crate) fn volumes(settings: &Settings) -> Vec<Value> {
    let token = json!({ "audience": AUDIENCE, "expirationSeconds": TOKEN_LIFE_S, "path": TOKEN.1 });
    let mut volumes = vec![
        json!({ "name": VOLUMES[0], "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": VOLUMES[1], "configMap": { "name": ROOT_MAP } }),
        json!({ "name": VOLUMES[2], "emptyDir": {} }),
    ];
    volumes.extend(settings.volumes.iter().cloned());
    volumes
}

fn security(uid: u32, capabilities: &[&str]) -> Value {
    let mut rights = json!({ "drop": ["ALL"] });
    if !capabilities.is_empty() {
        rights["add"] = json!(capabilities);
    }
    json!({
        "runAsUser": uid,
        "runAsGroup": uid,
        "runAsNonRoot": uid != 0,
        "allowPrivilegeEscalation": false,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "capabilities": rights,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn complete(container: &mut Value, config: &Config, resources: &Resources) {
    if !config.image_pull_policy.is_empty() {
        container["imagePullPolicy"] = config.image_pull_policy.clone().into();
    }
    for (group, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        let Amounts { cpu, memory } = amounts;
        for (name, value) in [("cpu", cpu), ("memory", memory)] {
            if !value.is_empty() {
                container["resources"][group][name] = value.clone().into();
            }
        }
    }
}
