//! The application's probes and lifecycle hooks, sent through the proxy.
//!
//! The kubelet has no certificate of the mesh, so STRICT would refuse its probes; and a TCP probe would always succeed,
//! because the proxy accepts the connection. Each probe becomes a GET to a page of the proxy, which makes the original
//! probe. Their list is the environment variable [`PROBES_VARIABLE`] of the proxy: nothing else can be probed by it.

use serde_json::{Map, Value, json};

use super::containers::METRICS_PORT;
use super::{containers, name};
use crate::patch::{Patch, WrongType};
use crate::settings::Report;
use crate::{INIT, PROXY};

/// The proxy's environment variable with the original probes: a JSON object with a member for each page.
pub const PROBES_VARIABLE: &str = "WEFT_APP_PROBES";

/// A probe or hook: its path in a container, and the page of the proxy.
const HANDLERS: [(&[&str], &str, &str); 5] = [
    (&["livenessProbe"], "app-health", "livez"),
    (&["readinessProbe"], "app-health", "readyz"),
    (&["startupProbe"], "app-health", "startupz"),
    (&["lifecycle", "preStop"], "app-lifecycle", "prestopz"),
    (&["lifecycle", "postStart"], "app-lifecycle", "poststartz"),
];

/// A probe to be replaced.
struct Found {
    /// Its container's list, index and the path there.
    at: Vec<String>,
    /// The handler that is replaced: `httpGet`, `tcpSocket` or `grpc`.
    kind: &'static str,
    page: String,
    /// The original.
    original: Value,
}

/// Replaces all probes that the proxy can make.
pub(crate) fn rewrite(patch: &mut Patch, grace_s: u64, report: &mut Report) -> Result<(), WrongType> {
    let found = find(patch.document(), grace_s, report);
    let mut pages = self::pages(patch.document());
    for probe in found {
        let mut at: Vec<&str> = at(&probe.at);
        if probe.kind != "httpGet" {
            let handler: Vec<&str> = at.iter().copied().chain([probe.kind]).collect();
            patch.remove(&handler);
        }
        at.push("httpGet");
        patch.set(&at, json!({ "path": probe.page, "port": METRICS_PORT }))?;
        pages.insert(probe.page.clone(), probe.original);
    }
    if pages.is_empty() { Ok(()) } else { set_variable(patch, PROBES_VARIABLE, &Value::Object(pages)) }
}

fn at(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

fn find(pod: &Value, grace_s: u64, report: &mut Report) -> Vec<Found> {
    let mut found = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in containers(pod, list).iter().enumerate() {
            let name = name(container);
            if name == PROXY || name == INIT {
                continue;
            }
            for (path, group, page) in HANDLERS {
                let Some(probe) = path.iter().try_fold(container, |value, part| value.get(part)) else { continue };
                let page = format!("/{group}/{name}/{page}");
                let place = format!("container {name}, {}", path.join("."));
                match original(container, probe, &page) {
                    Ok(None) => {}
                    Ok(Some((kind, mut original))) => {
                        // A hook may take as long as the pod's end.
                        let limit = probe.get("timeoutSeconds").and_then(Value::as_u64);
                        let default = if group == "app-health" { 1 } else { grace_s };
                        original["timeoutSeconds"] = limit.unwrap_or(default).max(1).into();
                        let start = [list.to_owned(), index.to_string()];
                        let at =
                            ["spec".to_owned()].into_iter().chain(start).chain(path.iter().map(|s| (*s).to_owned()));
                        found.push(Found { at: at.collect(), kind, page, original });
                    }
                    Err(why) => report.warnings.push(format!("{place} is left as it is: {why}")),
                }
            }
        }
    }
    found
}

/// The kind of a probe, and what the proxy has to do; `None`: it is not the proxy's to do, or done.
fn original(container: &Value, probe: &Value, page: &str) -> Result<Option<(&'static str, Value)>, String> {
    let Some(kind) =
        ["httpGet", "tcpSocket", "grpc"].into_iter().find(|kind| probe.get(kind).is_some_and(Value::is_object))
    else {
        return Ok(None);
    };
    let handler = &probe[kind];
    let port = port(container, handler.get("port"))?;
    let member = |name: &str| handler.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if kind == "httpGet" && port == METRICS_PORT && member("path") == Some(page) {
        return Ok(None);
    }
    if let Some(host) = member("host") {
        return Err(format!("it names the host {host}, to which STRICT mutual TLS may apply"));
    }
    let done = match kind {
        "httpGet" => {
            let mut get = json!({ "port": port, "path": member("path").unwrap_or("/") });
            if member("scheme").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
                get["scheme"] = "HTTPS".into();
            }
            if let Some(headers) = handler.get("httpHeaders").filter(|headers| headers.is_array()) {
                get["httpHeaders"] = headers.clone();
            }
            get
        }
        "grpc" => json!({ "port": port, "service": member("service").unwrap_or_default() }),
        _ => json!({ "port": port }),
    };
    Ok(Some((kind, json!({ kind: done }))))
}

/// The number of a port that may be the name of a port of the same container.
fn port(container: &Value, port: Option<&Value>) -> Result<u16, String> {
    let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    let given = port.ok_or("it has no port")?;
    if let Some(port) = number(given).or_else(|| given.as_str()?.parse().ok().filter(|port| *port > 0)) {
        return Ok(port);
    }
    let name = given.as_str().ok_or("its port is neither a number nor a name")?;
    let ports = container.get("ports").and_then(Value::as_array);
    let named = ports.into_iter().flatten().find(|one| one.get("name").and_then(Value::as_str) == Some(name));
    named
        .and_then(|one| number(one.get("containerPort")?))
        .ok_or_else(|| format!("the container has no port named {name}"))
}

/// List and index of the proxy.
fn proxy(pod: &Value) -> Option<(&'static str, usize)> {
    ["initContainers", "containers"]
        .into_iter()
        .find_map(|list| Some((list, containers(pod, list).iter().position(|one| name(one) == PROXY)?)))
}

/// The pages that the proxy has already.
fn pages(pod: &Value) -> Map<String, Value> {
    let recorded = || {
        let (list, index) = proxy(pod)?;
        let variables = containers(pod, list)[index].get("env")?.as_array()?;
        let variable = variables.iter().find(|one| name(one) == PROBES_VARIABLE)?;
        serde_json::from_str(&variable.get("value")?.as_str()?.replace("$$", "$")).ok()
    };
    recorded().unwrap_or_default()
}

/// Sets a variable of the proxy to a JSON text.
pub(crate) fn set_variable(patch: &mut Patch, variable: &str, value: &Value) -> Result<(), WrongType> {
    // The kubelet replaces $(NAME), and $$ by $.
    let entry = json!({ "name": variable, "value": value.to_string().replace('$', "$$") });
    let Some((list, index)) = proxy(patch.document()) else { return Ok(()) };
    let variables = containers(patch.document(), list)[index].get("env").and_then(Value::as_array);
    let known = variables.into_iter().flatten().position(|one| name(one) == variable);
    let index = index.to_string();
    match known {
        Some(at) => patch.set(&["spec", list, &index, "env", &at.to_string(), "value"], entry["value"].clone()),
        None => patch.insert(&["spec", list, &index, "env"], None, entry),
    }
}
