//! The labels and annotations that a patch adds to a pod.

use serde_json::{Value, json};

use super::containers::METRICS_PORT;
use super::{Owner, probes};
use crate::decide::text;
use crate::patch::{Patch, WrongType};
use crate::settings::{Report, Settings};
use crate::{MUTUAL, STATUS, TLS_MODE};

/// The proxy's environment variable with the application's own metrics: port and path.
pub const METRICS_VARIABLE: &str = "WEFT_APP_METRICS";
/// Number of labels that are added.
pub(super) const LABELS: usize = 3;
/// Label with the workload's name.
pub(super) const NAME: &str = "service.istio.io/canonical-name";
/// Longest value of a label.
const MAX_LABEL: usize = 63;
/// Page of the proxy with its metrics and those of the application.
const METRICS_PAGE: &str = "/stats/prometheus";

/// Marks the pod as one that takes mutual TLS, if its proxy receives that, and names its workload.
pub(crate) fn labels(patch: &mut Patch, owner: Option<&Owner>, settings: &Settings) -> Result<(), WrongType> {
    let pod = patch.document();
    let label = |names: &[&str]| names.iter().find_map(|name| text(pod, "labels", name).map(str::to_owned));
    let name = label(&["app.kubernetes.io/name", "app"])
        .or_else(|| owner.map(|owner| owner.name.clone()))
        .or_else(|| pod.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned))
        .map(|name| name.chars().take(MAX_LABEL).collect::<String>())
        // A label ends with a letter or a digit, also where the name was cut.
        .map(|name| name.trim_end_matches(|end: char| !end.is_ascii_alphanumeric()).to_owned());
    let version = label(&["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".to_owned());
    let mode = if settings.captures_inbound { MUTUAL } else { "disabled" };
    patch.set(&["metadata", "labels", TLS_MODE], mode.into())?;
    if let Some(name) = name {
        patch.set_default(&["metadata", "labels", NAME], name.into())?;
    }
    patch.set_default(&["metadata", "labels", "service.istio.io/canonical-revision"], version.into())
}

/// Records what was added, and keeps `kubectl logs` and `exec` at the application.
pub(crate) fn annotations(patch: &mut Patch, application: &str, status: &Value) -> Result<(), WrongType> {
    for name in ["kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"] {
        patch.set_default(&["metadata", "annotations", name], application.into())?;
    }
    patch.set(&["metadata", "annotations", STATUS], status.to_string().into())
}

/// Sends Prometheus to the proxy, whose page has the application's metrics too.
pub(crate) fn prometheus(patch: &mut Patch, settings: &Settings, report: &mut Report) -> Result<(), WrongType> {
    let annotation =
        |name: &str| text(patch.document(), "annotations", &format!("prometheus.io/{name}")).map(str::to_owned);
    let (scrape, port, path, scheme) =
        (annotation("scrape"), annotation("port"), annotation("path"), annotation("scheme"));
    if !settings.merge_prometheus || scrape.as_deref().is_some_and(|scrape| scrape != "true") {
        return Ok(());
    }
    if scrape.is_some() {
        // Without a port each declared one is scraped, the proxy's too.
        let Some(port) = port else { return Ok(()) };
        let number = port.parse::<u16>().ok().filter(|port| *port > 0 && *port != METRICS_PORT);
        let (Some(number), None | Some("http")) = (number, scheme.as_deref()) else {
            let text = "the annotations prometheus.io/... stay as they are: only metrics over plain HTTP at the number of a \
                        port are merged with the proxy's; scrape the port weft-metrics for those";
            report.warnings.push(text.to_owned());
            return Ok(());
        };
        let page = json!({ "port": number, "path": path.unwrap_or_else(|| "/metrics".to_owned()) });
        probes::set_variable(patch, METRICS_VARIABLE, &page)?;
    }
    let values = [("scrape", "true"), ("port", &*METRICS_PORT.to_string()), ("path", METRICS_PAGE)];
    for (name, value) in values {
        patch.set(&["metadata", "annotations", &format!("prometheus.io/{name}")], value.into())?;
    }
    Ok(())
}
