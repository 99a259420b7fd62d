//! Annotations of Istio in an object's metadata: one that Istio does not know is a slip, and does nothing there either.

use super::{
    Kind,
    fields::Fields,
    nearest::nearest,
    problem::{Code, Severity},
};

/// Annotations that Istio knows, of pods and of what it makes itself left out where no kind that is read here has them.
const KNOWN: &[&str] = &[
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/dns-capture",
    "ambient.istio.io/redirection",
    "ambient.istio.io/waypoint-inbound-binding",
    "alpha.istio.io/canonical-serviceaccounts",
    "alpha.istio.io/identity",
    "alpha.istio.io/kubernetes-serviceaccounts",
    "galley.istio.io/analyze-suppress",
    "gateway.istio.io/controller-version",
    "gateway.istio.io/name-override",
    "gateway.istio.io/service-account",
    "gateway.istio.io/tls-terminate-mode",
    "inject.istio.io/templates",
    "install.operator.istio.io/chart-owner",
    "install.operator.istio.io/owner-generation",
    "install.operator.istio.io/version",
    "internal.istio.io/parents",
    "istio.io/autoRegistrationGroup",
    "istio.io/connectedAt",
    "istio.io/dry-run",
    "istio.io/rev",
    "istio.io/workloadController",
    "meshconfig.istio.io/configMapRef",
    "networking.alpha.istio.io/endpointsVersion",
    "networking.alpha.istio.io/notReadyEndpoints",
    "networking.alpha.istio.io/serviceVersion",
    "networking.istio.io/address-type",
    "networking.istio.io/exportTo",
    "networking.istio.io/service-type",
    "networking.istio.io/traffic-distribution",
    "prometheus.istio.io/merge-metrics",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "security.istio.io/autoMTLS",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/status",
    "topology.istio.io/controlPlaneClusters",
];

/// Those that do something here, and in which kind.
const READ: &[(&str, Kind)] = &[("networking.istio.io/exportTo", Kind::Service)];

/// Warns of unknown annotations of Istio, and mentions those that have no effect here.
pub(super) fn check(metadata: &Fields<'_>, kind: Kind) {
    for (key, _) in metadata.map("annotations") {
        let Some((group, _)) = key.name.split_once('/') else { continue };
        if group != "istio.io" && !group.ends_with(".istio.io") {
            continue;
        }
        // A pod's, which has groups of their own.
        let of_pods = group.ends_with("sidecar.istio.io");
        if READ.contains(&(key.name.as_str(), kind)) {
            continue;
        }
        let path = format!("annotations.{}", key.name);
        if of_pods || KNOWN.contains(&key.name.as_str()) {
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
    use crate::policy::{Severity, parse};

    #[test]
    fn unknown_annotations_of_istio_are_told_and_others_are_not() {
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
