//! `meshConfig` of an IstioOperator: defaults of the whole mesh.
//!
//! Only the oldest document of the root namespace applies. Its `default...ExportTo` are written into the documents
//! without an `exportTo` before any other step reads them ([`exported`]); all other defaults are applied in the
//! translation.

mod decode;

use std::borrow::Cow;

use weft_proto::v1;

use super::{Content, Descriptor, Object};
use crate::{Document, Export, ROOT_NAMESPACE, is_root};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: "install.istio.io",
    versions: &["v1alpha1"],
    plural: "istiooperators",
    short_names: &["iop"],
    spec: decode::SHAPE,
    requires_spec: false,
    identity: Some((ROOT_NAMESPACE, "mesh")),
    annotations: &[],
    decode: |manifest| Object::IstioOperator(decode::decode(manifest)),
};

/// The supported fields of `meshConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshConfig {
    /// `defaultTrafficPolicy.connectionPool`: as a whole, for hosts without one in a rule.
    pub connection_pool: Option<v1::ConnectionPool>,
    /// `defaultTrafficPolicy.outlierDetection`: likewise.
    pub outlier_detection: Option<v1::OutlierDetection>,
    /// Milliseconds; 0: unset. For connection pools without a value of their own.
    pub connect_timeout_ms: u64,
    /// Likewise.
    pub tcp_keepalive: Option<v1::TcpKeepalive>,
    /// Likewise, for ports that are declared as HTTP.
    pub h2_upgrade: v1::H2Upgrade,
    /// `localityLbSetting`, for load balancers without one.
    pub locality: Option<v1::LocalityLb>,
    /// `defaultHttpRetryPolicy`, for requests without a route, or whose route has no retry policy.
    pub retry: Option<v1::RetryPolicy>,
    /// `outboundTrafficPolicy.mode`, unless a Sidecar sets it.
    pub outbound: v1::OutboundPolicy,
    /// `enableAutoMtls: false`: callers speak plaintext unless a rule sets another mode.
    pub no_auto_mtls: bool,
    /// `defaultServiceExportTo`: for services and ServiceEntries.
    pub service_export: Export,
    /// `defaultVirtualServiceExportTo`.
    pub virtual_service_export: Export,
    /// `defaultDestinationRuleExportTo`.
    pub destination_rule_export: Export,
    /// `defaultConfig.terminationDrainDuration`, milliseconds: the minimum time that proxies continue after SIGTERM.
    pub termination_drain_ms: Option<u64>,
    /// `trustDomain`; must be the mesh's.
    pub trust_domain: Option<String>,
}

impl Content for Option<Box<MeshConfig>> {}

/// The mesh's settings in a document, if it has them.
pub fn of(document: &Document) -> Option<&MeshConfig> {
    match &document.object {
        Object::IstioOperator(config) if is_root(&document.namespace) => config.as_deref(),
        _ => None,
    }
}

/// The one document that applies.
pub fn in_force<'a>(documents: impl Iterator<Item = &'a Document>) -> Option<(&'a Document, &'a MeshConfig)> {
    let all = documents.filter_map(|document| Some((document, of(document)?)));
    all.min_by_key(|(document, _)| (document.created, &document.namespace, &document.name))
}

/// The documents, with the mesh's `exportTo` in those without one.
pub(crate) fn exported<'a>(documents: &[&'a Document]) -> Vec<Cow<'a, Document>> {
    let config = in_force(documents.iter().copied()).map(|(_, config)| config);
    let one = |document: &&'a Document| {
        let changed = config.and_then(|config| config.export(document));
        changed.map_or(Cow::Borrowed(*document), Cow::Owned)
    };
    documents.iter().map(one).collect()
}

impl MeshConfig {
    /// `document` with the mesh's `exportTo`; `None`: it has its own, or the mesh has none.
    pub fn export(&self, document: &Document) -> Option<Document> {
        let default = match &document.object {
            Object::ServiceEntry(_) | Object::Service(_) => &self.service_export,
            Object::VirtualService(_) => &self.virtual_service_export,
            Object::DestinationRule(_) => &self.destination_rule_export,
            _ => return None,
        };
        if !default.is_written() || document.object.export().is_none_or(Export::is_written) {
            return None;
        }
        let mut document = document.clone();
        match &mut document.object {
            Object::ServiceEntry(entry) => entry.export.clone_from(default),
            Object::Service(service) => service.export.clone_from(default),
            Object::VirtualService(service) => service.export.clone_from(default),
            Object::DestinationRule(rule) => rule.export.clone_from(default),
            _ => {}
        }
        Some(document)
    }
}

#[cfg(test)]
mod tests;
