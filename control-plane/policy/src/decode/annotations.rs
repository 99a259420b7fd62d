//! Istio's annotations in an object's metadata: an unknown one is probably a typing error, and has no effect in Istio
//! either.

use crate::decode::fields::Fields;
use crate::{
    Kind,
    nearest::nearest,
    problem::{Code, Severity},
};

/// Annotations of Istio (`annotation/annotations.yaml` of istio/api), including those of older versions, which objects
/// may still have, and those that Istio writes itself.
const KNOWN: &[&str] = &[
    "alpha.istio.io/canonical-serviceaccounts",
    "alpha.istio.io/identity",
    "alpha.istio.io/kubernetes-serviceaccounts",
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/dns-capture",
    "ambient.istio.io/redirection",
    "ambient.istio.io/waypoint-inbound-binding",
    "galley.istio.io/analyze-suppress",
    "gateway.istio.io/controller-version",
    "gateway.istio.io/name-override",
    "gateway.istio.io/service-account",
    "inject.istio.io/templates",
    "install.operator.istio.io/chart-owner",
    "install.operator.istio.io/owner-generation",
    "install.operator.istio.io/version",
    "internal.istio.io/gateway-service",
    "internal.istio.io/parents",
    "istio.io/autoRegistrationGroup",
    "istio.io/connect-strategy",
    "istio.io/connectedAt",
    "istio.io/disconnectedAt",
    "istio.io/dry-run",
    "istio.io/reroute-virtual-interfaces",
    "istio.io/rev",
    "istio.io/workloadController",
    "networking.istio.io/address-type",
    "networking.istio.io/exportTo",
    "networking.istio.io/service-type",
    "networking.istio.io/traffic-distribution",
    "prometheus.istio.io/merge-metrics",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "readiness.status.sidecar.istio.io/applicationPorts",
    "readiness.status.sidecar.istio.io/failureThreshold",
    "readiness.status.sidecar.istio.io/initialDelaySeconds",
    "readiness.status.sidecar.istio.io/periodSeconds",
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/componentLogLevel",
    "sidecar.istio.io/controlPlaneAuthPolicy",
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/logLevel",
    "sidecar.istio.io/nativeSidecar",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyCPULimit",
    "sidecar.istio.io/proxyImage",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/proxyMemory",
    "sidecar.istio.io/proxyMemoryLimit",
    "sidecar.istio.io/rewriteAppHTTPProbers",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "sidecar.istio.io/status",
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "status.sidecar.istio.io/port",
    "topology.istio.io/controlPlaneClusters",
    "traffic.istio.io/nodeSelector",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];

/// Warns of unknown annotations of Istio, and mentions those that have no effect here.
pub(crate) fn check(metadata: &Fields<'_>, kind: Kind) {
    for (key, _) in metadata.map("annotations") {
        let Some((group, _)) = key.name.split_once('/') else { continue };
        if group != "istio.io" && !group.ends_with(".istio.io") {
            continue;
        }
        if kind.descriptor().annotations.contains(&key.name.as_str()) {
            continue;
        }
        let path = format!("annotations.{}", key.name);
        if KNOWN.contains(&key.name.as_str()) {
            let text = format!("annotation `{}` has no effect on a {kind} here", key.name);
            metadata.report(Severity::Info, Code::Ineffective, key.place, &path, text);
        } else {
            let hint = nearest(&key.name, KNOWN).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
            let text = format!("unknown annotation `{}`: Istio has none of this name{hint}", key.name);
            metadata.report(Severity::Warning, Code::UnknownAnnotation, key.place, &path, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Severity, parse};

    #[test]
    fn unknown_annotations_of_istio_are_reported_and_others_are_not() {
        for (annotation, want) in [
            ("networking.istio.io/exportTo: '*'", None),
            (
                "networking.istio.io/exportTO: '*'",
                Some((Severity::Warning, "did you mean `networking.istio.io/exportTo`?")),
            ),
            (
                "networking.istio.io/nonsense: a",
                Some((Severity::Warning, "unknown annotation `networking.istio.io/nonsense`")),
            ),
            ("istio.io/rev: canary", Some((Severity::Info, "has no effect on a Service here"))),
            ("sidecar.istio.io/proxyCPU: '1'", Some((Severity::Info, "has no effect on a Service here"))),
            ("istio.io/disconnectedAt: a", Some((Severity::Info, "has no effect on a Service here"))),
            ("traffic.istio.io/nodeSelector: a=b", Some((Severity::Info, "has no effect on a Service here"))),
            ("traffic.sidecar.istio.io/excludeInterfaces: a", Some((Severity::Info, "has no effect"))),
            // A misspelled annotation of a pod, and an unknown TLS option of a listener.
            ("sidecar.istio.io/proxyCpu: '1'", Some((Severity::Warning, "did you mean `sidecar.istio.io/proxyCPU`?"))),
            (
                "gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL",
                Some((Severity::Warning, "unknown annotation `gateway.istio.io/tls-terminate-mode`")),
            ),
            ("example.com/a: b", None),
            ("notistio.io/a: b", None),
        ] {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations: {{{annotation}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            );
            let parsed = parse("f.yaml", &text);
            assert_eq!(parsed.documents.len(), 1, "{annotation}");
            let got = parsed.problems.first().map(|problem| (problem.severity, problem.text.as_str()));
            match want {
                None => assert_eq!(got, None, "{annotation}"),
                Some((severity, text)) => {
                    assert!(got.is_some_and(|(s, t)| s == severity && t.contains(text)), "{annotation}: {got:?}");
                }
            }
        }
    }
}
