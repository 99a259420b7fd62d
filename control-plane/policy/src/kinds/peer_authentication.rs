//! PeerAuthentication: whether a workload accepts plaintext.

use std::collections::BTreeMap;

use weft_proto::v1;

use super::{Content, Descriptor, Object, SECURITY};
use crate::decode::fields::{Fields, Shape, object, read};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: SECURITY,
    versions: &["v1", "v1beta1"],
    plural: "peerauthentications",
    short_names: &["pa"],
    spec: SHAPE,
    requires_spec: false,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::PeerAuthentication(decode(&manifest.spec)),
};

/// A PeerAuthentication's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Labels of the workloads; empty: all of the namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`; `None`: inherited.
    pub mode: Option<v1::MtlsMode>,
    /// `portLevelMtls`, by port of the workload; `None`: `mode`.
    pub ports: BTreeMap<u32, Option<v1::MtlsMode>>,
}

const MTLS: Shape = &[read("mode")];
/// Fields of `spec`.
const SHAPE: Shape = &[object("selector", &[read("matchLabels")]), object("mtls", MTLS), object("portLevelMtls", MTLS)];

impl Content for PeerAuthentication {}

/// Reads `spec`.
fn decode(spec: &Fields<'_>) -> PeerAuthentication {
    let selector = spec.object("selector").map(|selector| selector.labels("matchLabels")).unwrap_or_default();
    let mut ports = BTreeMap::new();
    for (key, fields) in spec.object_map("portLevelMtls") {
        match key.name.parse::<u32>() {
            Ok(port) if (1..=65535).contains(&port) => {
                ports.insert(port, mode(&fields));
            }
            _ => spec.error_at(key.place, format!("`{}` is not a port number from 1 to 65535", key.name)),
        }
    }
    if spec.written_node("portLevelMtls").is_some() && ports.is_empty() && spec.map("portLevelMtls").is_empty() {
        spec.error("portLevelMtls", "`portLevelMtls` must have at least one port: leave it out");
    }
    if selector.is_empty() && !ports.is_empty() {
        let text = "`portLevelMtls` needs a `selector`: ports are those of the selected workloads";
        spec.error("portLevelMtls", text);
    }
    PeerAuthentication { selector, mode: spec.object("mtls").and_then(|fields| mode(&fields)), ports }
}

fn mode(fields: &Fields<'_>) -> Option<v1::MtlsMode> {
    const MODES: &[(&str, Option<v1::MtlsMode>)] = &[
        ("UNSET", None),
        ("DISABLE", Some(v1::MtlsMode::MtlsDisable)),
        ("PERMISSIVE", Some(v1::MtlsMode::Permissive)),
        ("STRICT", Some(v1::MtlsMode::Strict)),
    ];
    fields.one_of("mode", MODES).flatten()
}
