//! `/inject`: the sidecar of a new pod.

use std::sync::atomic::Ordering;

use weft_injection::{Config, Decision, Namespace, Owner, decide, inject};

use super::review::{Request, Verdict};
use crate::telemetry::Admissions;

/// Injects a pod, or says why not. A pod that cannot have its sidecar is refused: without it, it would run outside the mesh.
pub(super) fn judge(config: &Config, counts: &Admissions, request: &Request<'_>) -> Verdict {
    let (pod, namespace) = (request.object(), request.text("/namespace"));
    if request.text("/kind/kind") != "Pod" || request.text("/operation") != "CREATE" {
        return Verdict::default();
    }
    let place = format!("Pod {namespace}/{}", request.name());
    // The labels of the namespace are the selectors' matter.
    match decide(config, &Namespace::of_revision(namespace, &config.revision), pod) {
        Decision::Inject => {}
        Decision::Skip(reason) => {
            counts.skipped.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{place}: no sidecar: {reason}");
            return Verdict::default();
        }
        Decision::Unable(reason) => {
            counts.skipped.fetch_add(1, Ordering::Relaxed);
            tracing::info!("{place}: no sidecar: {reason}");
            return Verdict { warnings: vec![format!("no sidecar of Weft: {reason}")], ..Verdict::default() };
        }
    }
    match inject(config, Owner::of(pod).as_ref(), pod) {
        Ok(injection) => {
            counts.injected.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{place}: injected");
            Verdict { patch: injection.patch, warnings: injection.warnings, refusal: None }
        }
        Err(refusal) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            let message = format!("no sidecar of Weft can be added: {refusal}");
            tracing::warn!("{place}: {message}");
            Verdict { refusal: Some(message), ..Verdict::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_injected_skipped_or_refused() {
        let counts = Admissions::default();
        let judge = |metadata: Value, spec: Value| {
            let request = json!({
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "operation": "CREATE",
                "namespace": "shop",
                "object": { "metadata": metadata, "spec": spec },
            });
            judge(&Config::default(), &counts, &Request(&request))
        };
        let spec = json!({ "containers": [{ "name": "app" }] });
        let plain = judge(json!({ "generateName": "order-" }), spec.clone());
        assert!(plain.refusal.is_none() && !plain.patch.is_empty() && plain.warnings.is_empty(), "{plain:?}");
        let declines = judge(json!({ "labels": { "sidecar.istio.io/inject": "false" } }), spec.clone());
        assert_eq!(declines, Verdict::default());
        let node = judge(json!({}), json!({ "hostNetwork": true, "containers": [{ "name": "app" }] }));
        assert!(node.patch.is_empty() && node.warnings[0].contains("hostNetwork"), "{node:?}");
        let annotations = json!({ "traffic.sidecar.istio.io/excludeInboundPorts": "all" });
        let refused = judge(json!({ "annotations": annotations }), spec);
        assert!(refused.refusal.unwrap().contains("\"all\" is not a port"), "a pod with a malformed annotation");
        assert!(judge(json!(null), json!(null)).refusal.unwrap().contains("spec.containers is empty"));
        let numbers = [&counts.injected, &counts.skipped, &counts.refused].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(numbers, [1, 2, 2]);
    }
}
