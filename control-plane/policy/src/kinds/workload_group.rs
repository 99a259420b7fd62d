//! WorkloadGroup: the template of the WorkloadEntry of each sidecar that joins by it, and the probe of the sidecars.

use std::collections::BTreeMap;

use http::{HeaderValue, Uri};
use weft_proto::v1::{self, probe::Kind};

use super::{Content, Descriptor, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::fields::{Fields, Shape, object, read, refused};
use crate::kinds::workload_entry;
use crate::{WorkloadEntry, names};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "workloadgroups",
    short_names: &["wg"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::WorkloadGroup(Box::new(decode(&manifest.spec))),
};

/// A WorkloadGroup's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadGroup {
    /// The entry without its address; its labels are those of `template` and, with precedence, of `metadata`.
    pub template: WorkloadEntry,
    /// The health check of a workload; absent: it is assumed to be healthy.
    pub probe: Option<v1::Probe>,
}

/// Service account if `template` has none.
const DEFAULT_ACCOUNT: &str = "default";

/// Fields of `spec`.
const SHAPE: Shape = &[
    object("metadata", &[read("labels"), read("annotations")]),
    object(
        "template",
        &[
            refused("address", "an entry's address is the one that its sidecar connects from"),
            read("ports"),
            read("labels"),
            read("weight"),
            read("locality"),
            read("serviceAccount"),
            refused("network", workload_entry::NETWORK),
        ],
    ),
    object("probe", PROBE),
];

const PROBE: Shape = &[
    read("initialDelaySeconds"),
    read("timeoutSeconds"),
    read("periodSeconds"),
    read("successThreshold"),
    read("failureThreshold"),
    object(
        "httpGet",
        &[
            read("path"),
            read("port"),
            read("host"),
            read("scheme"),
            object("httpHeaders", &[read("name"), read("value")]),
        ],
    ),
    object("tcpSocket", &[read("host"), read("port")]),
    object("exec", &[read("command")]),
    object("grpc", &[read("port"), read("service")]),
];

/// The kinds of a probe.
const KINDS: [&str; 4] = ["httpGet", "tcpSocket", "exec", "grpc"];

impl Content for WorkloadGroup {}

/// Reads `spec`.
fn decode(spec: &Fields<'_>) -> WorkloadGroup {
    spec.require("template");
    let mut template = spec.object("template").map(|fields| workload_entry::template(&fields)).unwrap_or_default();
    if template.service_account.is_empty() {
        DEFAULT_ACCOUNT.clone_into(&mut template.service_account);
    }
    if let Some(metadata) = spec.object("metadata") {
        template.labels.extend(metadata.labels("labels"));
        // Metadata of Istio's own WorkloadEntry object, which does not exist here.
        let _: BTreeMap<String, String> = metadata.string_map("annotations");
    }
    WorkloadGroup { template, probe: spec.object("probe").map(|fields| probe(&fields)) }
}

fn probe(fields: &Fields<'_>) -> v1::Probe {
    // As in Istio, 0 means the default.
    let number = |name, default| fields.limit(name).filter(|n| *n > 0).unwrap_or(default);
    let written = KINDS.into_iter().filter(|kind| fields.has(kind)).count();
    if written != 1 && !KINDS.into_iter().any(|kind| fields.misspelled(kind)) {
        let text = format!("`{}` must have exactly one of {}", fields.path, KINDS.join(", "));
        fields.error_at(fields.place, text);
    }
    let http = fields.object("httpGet").map(|given| Kind::Http(http_get(&given)));
    let tcp = fields.object("tcpSocket").map(|given| {
        Kind::Tcp(v1::TcpProbe { host: given.string("host").unwrap_or_default(), port: required_port(&given) })
    });
    let exec = fields.object("exec").map(|given| {
        let command: Vec<String> = given.strings("command").into_iter().map(|(argument, _)| argument).collect();
        if command.is_empty() && !given.misspelled("command") {
            given.error("command", format!("`{}` must name a program", given.path_of("command")));
        }
        Kind::Exec(v1::ExecProbe { command })
    });
    let grpc = fields.object("grpc").map(|given| {
        Kind::Grpc(v1::GrpcProbe { port: required_port(&given), service: given.string("service").unwrap_or_default() })
    });
    v1::Probe {
        initial_delay_s: fields.limit("initialDelaySeconds").unwrap_or_default(),
        timeout_s: number("timeoutSeconds", 1),
        period_s: number("periodSeconds", 10),
        success_threshold: number("successThreshold", 1),
        failure_threshold: number("failureThreshold", 3),
        kind: http.or(tcp).or(exec).or(grpc),
    }
}

fn required_port(fields: &Fields<'_>) -> u32 {
    fields.require("port");
    fields.port("port").unwrap_or_default()
}

fn http_get(fields: &Fields<'_>) -> v1::HttpProbe {
    let path = fields.string("path").filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || path.parse::<Uri>().is_err() {
        fields.error("path", format!("`{path}` is not a path: it begins with /"));
    }
    let host = fields.string("host").unwrap_or_default();
    if !host.is_empty() && host.parse::<std::net::IpAddr>().is_err() && !names::is_host(&host) {
        fields.error("host", format!("`{host}` is neither an IP address nor a host name"));
    }
    let header = |given: Fields<'_>| {
        let (name, value) = (given.required_string("name"), given.string("value").unwrap_or_default());
        if !name.is_empty() && !names::is_probe_header(&name) {
            given.error("name", format!("`{name}` is not a header name: letters, digits and hyphens"));
        }
        if HeaderValue::try_from(&value).is_err() {
            given.error("value", format!("`{value}` is not a value of a header"));
        }
        v1::ProbeHeader { name, value }
    };
    v1::HttpProbe {
        host,
        port: required_port(fields),
        path,
        tls: fields.one_of("scheme", &[("HTTP", false), ("HTTPS", true)]).unwrap_or_default(),
        headers: fields.objects("httpHeaders").into_iter().map(header).collect(),
    }
}

#[cfg(test)]
mod tests;
