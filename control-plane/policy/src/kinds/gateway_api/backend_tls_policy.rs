//! BackendTLSPolicy: TLS of the connections to a Service.

use weft_proto::v1;

use super::{GROUP, ObjectRef, object_ref};
use crate::decode::fields::{Fields, Shape, explicit, not_yet, object, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};
use crate::names;

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1alpha3"],
    plural: "backendtlspolicies",
    short_names: &["btlspolicy"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::BackendTLSPolicy(Box::new(decode(manifest))),
};

/// A BackendTLSPolicy's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendTlsPolicy {
    /// The Services, and the name of a port of each; empty: all.
    pub targets: Vec<(ObjectRef, String)>,
    /// The server name, which the certificate must have unless there are other names.
    pub hostname: String,
    /// `subjectAltNames`.
    pub names: Vec<String>,
    /// `caCertificateRefs`; empty: the system's roots.
    pub authorities: Vec<ObjectRef>,
}

impl BackendTlsPolicy {
    /// The authority that is used; `None`: no reference is to a ConfigMap.
    pub fn authority(&self) -> Option<&ObjectRef> {
        self.authorities.iter().find(|of| of.group.is_empty() && of.kind == "ConfigMap")
    }

    /// The settings of TLS. `authority` is a folder of the proxy's credentials; `None`: the system's roots.
    pub fn origination(&self, authority: Option<&str>) -> v1::TlsOrigination {
        v1::TlsOrigination {
            sni: self.hostname.clone(),
            subject_alt_names: self.names.clone(),
            credential_name: authority.unwrap_or_default().to_owned(),
            ..v1::TlsOrigination::default()
        }
    }
}

/// Fields of `spec`.
const SHAPE: Shape = &[
    object("targetRefs", &[explicit("group"), read("kind"), read("name"), read("sectionName")]),
    object(
        "validation",
        &[
            object("caCertificateRefs", &[explicit("group"), read("kind"), read("name")]),
            read("wellKnownCACertificates"),
            read("hostname"),
            object("subjectAltNames", &[read("type"), read("hostname"), read("uri")]),
        ],
    ),
    not_yet("options"),
];

impl Content for Box<BackendTlsPolicy> {}

fn decode(manifest: &Manifest<'_>) -> BackendTlsPolicy {
    let (spec, namespace) = (&manifest.spec, manifest.namespace.as_str());
    spec.require("targetRefs");
    spec.require("validation");
    let target = |fields: &Fields<'_>| {
        let section = fields.string("sectionName").unwrap_or_default();
        (object_ref(fields, namespace, "", "Service"), section)
    };
    let targets = spec.objects("targetRefs").iter().map(target).collect();
    let Some(validation) = spec.object("validation") else {
        return BackendTlsPolicy { targets, hostname: String::new(), names: Vec::new(), authorities: Vec::new() };
    };
    let hostname = validation.required_string("hostname");
    if !hostname.is_empty() && !names::is_host(&hostname) {
        validation.error("hostname", format!("`{hostname}` is not a host name"));
    }
    let authority = |fields: &Fields<'_>| object_ref(fields, namespace, "", "ConfigMap");
    let authorities: Vec<ObjectRef> = validation.objects("caCertificateRefs").iter().map(authority).collect();
    let system = validation.one_of("wellKnownCACertificates", &[("System", true)]).unwrap_or_default();
    if system != authorities.is_empty() {
        let text = "one of `caCertificateRefs` and `wellKnownCACertificates: System` is required";
        validation.error("caCertificateRefs", text);
    }
    let name = |fields: &Fields<'_>| match fields.one_of("type", &[("Hostname", "hostname"), ("URI", "uri")]) {
        Some(field) => fields.required_string(field),
        None => {
            fields.require("type");
            String::new()
        }
    };
    let names = validation.objects("subjectAltNames").iter().map(name).collect();
    BackendTlsPolicy { targets, hostname, names, authorities }
}
