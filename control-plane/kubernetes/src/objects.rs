//! Kubernetes' objects, reduced to the fields that concern the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::api::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_injection::{ISTIO_STATUS, MUTUAL, TLS_MODE};

/// Label by which an EndpointSlice names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of an object; the namespace is empty for one of the whole cluster.
pub type Key = (String, String);

/// The key of an object.
pub fn key(object: &DynamicObject) -> Key {
    (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default())
}

/// Unix seconds of an object's creation; 0: unknown.
pub fn created(object: &DynamicObject) -> u64 {
    let time = object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    time.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default()
}

/// Reads a part of an object. A value of another form than Kubernetes' counts as absent.
fn part<T: DeserializeOwned + Default>(data: &Value, name: &str) -> T {
    data.get(name).and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
}

/// A Service's `spec`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub r#type: String,
    /// The first cluster IP, or `None` for a headless Service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The target of an ExternalName.
    pub external_name: String,
    /// Families of its addresses, the first one preferred.
    pub ip_families: Vec<String>,
    /// See [`weft_policy::KubeService::publishes_not_ready`].
    pub publish_not_ready_addresses: bool,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; may be empty if it is the only one.
    pub name: String,
    /// The port for callers.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`; empty: TCP.
    pub protocol: String,
    /// The application's protocol.
    pub app_protocol: String,
}

/// A Service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its `spec`.
    pub spec: ServiceSpec,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Unix seconds of its creation.
    pub created: u64,
}

impl Service {
    /// Reads a Service.
    pub fn of(object: &DynamicObject) -> Service {
        let annotations = object.metadata.annotations.clone().unwrap_or_default();
        Service { spec: part(&object.data, "spec"), annotations, created: created(object) }
    }
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Its addresses; all are those of one pod, and the first one counts.
    pub addresses: Vec<String>,
    /// Readiness.
    pub conditions: Conditions,
    /// Host name, of a pod with a `subdomain`.
    pub hostname: Option<String>,
    /// Node that it runs on.
    pub node_name: Option<String>,
    /// Zone that it runs in.
    pub zone: Option<String>,
    /// The pod behind it.
    pub target_ref: Option<TargetRef>,
}

/// Conditions of an endpoint (KEP-1672).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Absent: true.
    pub ready: Option<bool>,
    /// Whether it serves although it may be about to end; absent: as `ready`.
    pub serving: Option<bool>,
    /// Whether it is about to end.
    pub terminating: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// `Pod`, if it is one.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: an address is reused at once, a UID never.
    pub uid: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Its Service's name; empty: it belongs to none.
    pub service: String,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub family: String,
    /// TCP ports by name. They are resolved: a `targetPort` by name may differ between pods.
    pub ports: BTreeMap<String, u16>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl Slice {
    /// Reads an EndpointSlice.
    pub fn of(object: &DynamicObject) -> Slice {
        let labels = object.metadata.labels.as_ref();
        let ports: Vec<SlicePort> = part(&object.data, "ports");
        let tcp = ports.into_iter().filter(|port| port.protocol.as_deref().is_none_or(|one| one == "TCP"));
        Slice {
            service: labels.and_then(|labels| labels.get(SERVICE_NAME)).cloned().unwrap_or_default(),
            family: part(&object.data, "addressType"),
            ports: tcp.filter_map(|port| Some((port.name.unwrap_or_default(), port.port?))).collect(),
            endpoints: part(&object.data, "endpoints"),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    node_name: String,
    host_network: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
    /// Node that it is scheduled to; empty: none yet.
    pub node: String,
    /// Whether it shares its node's address.
    pub host_network: bool,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether it has a sidecar.
    pub injected: bool,
    /// Name of the workload, for metrics.
    pub workload: String,
}

/// Labels with a workload's name, in Istio's order.
const WORKLOAD_NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];

impl Pod {
    /// Reads a pod; `None`: it has failed, and serves nothing any more.
    pub fn of(object: &DynamicObject) -> Option<Pod> {
        let (spec, status): (PodSpec, PodStatus) = (part(&object.data, "spec"), part(&object.data, "status"));
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let is_of_istio = object.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ISTIO_STATUS));
        let labelled = labels.get(TLS_MODE).is_some_and(|mode| mode == MUTUAL);
        let own = || object.metadata.name.clone().unwrap_or_default();
        let workload = WORKLOAD_NAMES.iter().find_map(|label| labels.get(*label)).cloned().unwrap_or_else(own);
        let pod = Pod {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            service_account: spec.service_account_name,
            node: spec.node_name,
            host_network: spec.host_network,
            deleting: object.metadata.deletion_timestamp.is_some(),
            injected: labelled && !is_of_istio,
            labels,
            workload,
        };
        (status.phase != "Failed").then_some(pod)
    }

    /// `region/zone/subzone` of the label `istio-locality`, which has dots for slashes; `None`: that of its node.
    pub fn locality(&self) -> Option<String> {
        self.labels.get("istio-locality").map(|text| text.replace('.', "/"))
    }
}

/// `region/zone/subzone` of a node, from its labels; empty: none of them is there.
pub fn node_locality(object: &DynamicObject) -> String {
    let label = |names: [&str; 2]| {
        let labels = object.metadata.labels.as_ref();
        names.iter().find_map(|name| labels?.get(*name)).cloned().unwrap_or_default()
    };
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    let subzone = label(["topology.istio.io/subzone", ""]);
    format!("{region}/{zone}/{subzone}").trim_end_matches('/').to_owned()
}

/// The labels of a namespace; `None`: it is about to end.
pub fn namespace_labels(object: &DynamicObject) -> Option<BTreeMap<String, String>> {
    let labels = object.metadata.labels.clone().unwrap_or_default();
    object.metadata.deletion_timestamp.is_none().then_some(labels)
}

/// The first address of an endpoint that is one.
pub fn address(endpoint: &SliceEndpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}
