//! The annotations of a pod that concern its sidecar: which are read, and which have no effect here.

use serde_json::Value;
use weft_policy::nearest::suggest;

use super::Report;

/// The meaning of an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// It is read.
    Read,
    /// Istio's, without effect here: a warning with this text.
    Ineffective(&'static str),
    /// Written by a mesh.
    Written,
}

const NOT_ENVOY: &str = "the proxy is not Envoy";
const NO_INTERFACES: &str = "the redirection does not distinguish interfaces";
const CONFIGURED: &str = "the configuration of injection sets it for the mesh";

/// All annotations that are known.
pub const ANNOTATIONS: &[(&str, Is)] = &[
    ("weft.dev/inject", Is::Read),
    ("weft.dev/init-order", Is::Read),
    ("sidecar.istio.io/inject", Is::Read),
    ("weft.dev/status", Is::Written),
    ("sidecar.istio.io/status", Is::Written),
    ("sidecar.istio.io/interceptionMode", Is::Read),
    ("sidecar.istio.io/logLevel", Is::Read),
    ("sidecar.istio.io/nativeSidecar", Is::Read),
    ("sidecar.istio.io/proxyCPU", Is::Read),
    ("sidecar.istio.io/proxyCPULimit", Is::Read),
    ("sidecar.istio.io/proxyImage", Is::Read),
    ("sidecar.istio.io/proxyMemory", Is::Read),
    ("sidecar.istio.io/proxyMemoryLimit", Is::Read),
    ("sidecar.istio.io/rewriteAppHTTPProbers", Is::Read),
    ("sidecar.istio.io/userVolume", Is::Read),
    ("sidecar.istio.io/userVolumeMount", Is::Read),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Is::Read),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", Is::Read),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Is::Read),
    ("traffic.sidecar.istio.io/includeInboundPorts", Is::Read),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", Is::Read),
    ("readiness.status.sidecar.istio.io/failureThreshold", Is::Read),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", Is::Read),
    ("readiness.status.sidecar.istio.io/periodSeconds", Is::Read),
    ("proxy.istio.io/config", Is::Read),
    ("prometheus.istio.io/merge-metrics", Is::Read),
    ("inject.istio.io/templates", Is::Read),
    (
        "traffic.sidecar.istio.io/includeOutboundPorts",
        Is::Ineffective("destinations are captured with all their ports"),
    ),
    ("traffic.sidecar.istio.io/excludeInterfaces", Is::Ineffective(NO_INTERFACES)),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", Is::Ineffective(NO_INTERFACES)),
    ("istio.io/reroute-virtual-interfaces", Is::Ineffective(NO_INTERFACES)),
    (
        "sidecar.istio.io/agentLogLevel",
        Is::Ineffective("proxy and agent are one program: use sidecar.istio.io/logLevel"),
    ),
    ("sidecar.istio.io/componentLogLevel", Is::Ineffective("use sidecar.istio.io/logLevel")),
    ("sidecar.istio.io/bootstrapOverride", Is::Ineffective(NOT_ENVOY)),
    ("sidecar.istio.io/capNetBindService", Is::Ineffective("the proxy listens on no port below 1024")),
    ("sidecar.istio.io/controlPlaneAuthPolicy", Is::Ineffective("the control plane is always authenticated")),
    ("sidecar.istio.io/discoveryAddress", Is::Ineffective(CONFIGURED)),
    ("sidecar.istio.io/enableCoreDump", Is::Ineffective("the proxy's root file system is read-only")),
    ("sidecar.istio.io/extraStatTags", Is::Ineffective(NOT_ENVOY)),
    ("sidecar.istio.io/proxyImageType", Is::Ineffective("there is one image: use sidecar.istio.io/proxyImage")),
    ("sidecar.istio.io/statsHistogramBuckets", Is::Ineffective(NOT_ENVOY)),
    ("sidecar.istio.io/statsInclusionPrefixes", Is::Ineffective(NOT_ENVOY)),
    ("sidecar.istio.io/statsInclusionRegexps", Is::Ineffective(NOT_ENVOY)),
    ("sidecar.istio.io/statsInclusionSuffixes", Is::Ineffective(NOT_ENVOY)),
    ("status.sidecar.istio.io/port", Is::Ineffective("the proxy's pages are always on the ports 15020 and 15021")),
    ("readiness.status.sidecar.istio.io/applicationPorts", Is::Ineffective("readiness does not depend on ports")),
    ("proxy.istio.io/overrides", Is::Ineffective("containers of the proxy are not customised: use other annotations")),
];

/// Groups all of whose annotations concern injection.
const GROUPS: &[&str] = &[
    "sidecar.istio.io",
    "traffic.sidecar.istio.io",
    "status.sidecar.istio.io",
    "readiness.status.sidecar.istio.io",
    "proxy.istio.io",
    "inject.istio.io",
    "prometheus.istio.io",
];

/// Most warnings of this sort for one pod.
const MOST: usize = 20;

/// Warns of the annotations of a pod that have no effect.
pub(crate) fn check(pod: &Value, report: &mut Report) {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut warned = 0;
    for name in annotations.into_iter().flatten().map(|(name, _)| &**name) {
        let text = match ANNOTATIONS.iter().find(|(known, _)| *known == name) {
            Some((_, Is::Ineffective(why))) => format!("annotation {name} has no effect: {why}"),
            Some(_) => continue,
            None if name.split_once('/').is_some_and(|(group, _)| GROUPS.contains(&group)) => {
                let known: Vec<&str> = ANNOTATIONS.iter().map(|(known, _)| *known).collect();
                format!("unknown annotation {name}{}", suggest(name, &known, "known are"))
            }
            None => continue,
        };
        warned += 1;
        if warned <= MOST {
            report.warnings.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_names_each_annotation_that_is_read() {
        let page = include_str!("../../../../docs/install/kubernetes.md");
        for (name, is) in ANNOTATIONS {
            assert_eq!(page.contains(&format!("`{name}")), matches!(is, Is::Read) || *name == crate::STATUS, "{name}");
        }
    }

    #[test]
    fn annotations_without_effect_are_warned_of() {
        let pod = json!({ "metadata": { "annotations": {
            "sidecar.istio.io/proxyCPU": "1",
            "sidecar.istio.io/proxyCpu": "1",
            "sidecar.istio.io/agentLogLevel": "debug",
            "example.com/a": "b",
            "networking.istio.io/exportTo": "*",
        } } });
        let mut report = Report::default();
        check(&pod, &mut report);
        assert_eq!(
            report.warnings,
            [
                "annotation sidecar.istio.io/agentLogLevel has no effect: proxy and agent are one program: use sidecar.istio.io/logLevel",
                "unknown annotation sidecar.istio.io/proxyCpu, did you mean `sidecar.istio.io/proxyCPU`?",
            ]
        );
        assert!(report.errors.is_empty());
    }
}
