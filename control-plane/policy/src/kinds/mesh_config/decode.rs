//! The fields of an IstioOperator, most of which install Istio.
//!
//! A field that does not concern traffic is left out with a warning. An unsupported field that does is an error:
//! leaving it out would change the destinations of requests or the callers that may send them.

use weft_proto::v1;

use super::MeshConfig;
use crate::decode::{
    connection_pool,
    fields::{Fields, Shape, not_yet, object, read, refused, skipped},
};
use crate::kinds::{
    Manifest,
    destination_rule::{self, load_balancer},
    sidecar,
    virtual_service::response,
};
use crate::{Code, ROOT_NAMESPACE, Severity, export, is_root};

/// Fields of `spec`.
pub(super) const SHAPE: Shape = &[
    object("meshConfig", MESH_CONFIG),
    skipped("profile"),
    skipped("installPackagePath"),
    skipped("hub"),
    skipped("tag"),
    skipped("namespace"),
    skipped("revision"),
    skipped("defaultRevision"),
    skipped("compatibilityVersion"),
    skipped("components"),
    // Skipped, except for one of its fields.
    read("values"),
    skipped("unvalidatedValues"),
];

const COMMAND_LINE: &str = "it is set on the command line of each sidecar";
const NO_DEFAULT: &str = "a default policy may have `connectionPool` and `outlierDetection` only";

const MESH_CONFIG: Shape = &[
    object(
        "defaultTrafficPolicy",
        &[
            object("connectionPool", connection_pool::SHAPE),
            object("outlierDetection", destination_rule::OUTLIER_DETECTION),
            refused("loadBalancer", NO_DEFAULT),
            refused("tls", NO_DEFAULT),
            refused("portLevelSettings", NO_DEFAULT),
            refused("tunnel", NO_DEFAULT),
            refused("proxyProtocol", NO_DEFAULT),
            refused("retryBudget", NO_DEFAULT),
        ],
    ),
    object("outboundTrafficPolicy", &[read("mode")]),
    object("localityLbSetting", load_balancer::LOCALITY),
    read("connectTimeout"),
    object("tcpKeepalive", connection_pool::KEEPALIVE),
    read("h2UpgradePolicy"),
    object("defaultHttpRetryPolicy", response::RETRIES),
    read("defaultServiceExportTo"),
    read("defaultVirtualServiceExportTo"),
    read("defaultDestinationRuleExportTo"),
    read("enableAutoMtls"),
    read("trustDomain"),
    read("rootNamespace"),
    object("pathNormalization", &[read("normalization")]),
    object("inboundTrafficPolicy", &[read("mode")]),
    object("defaultConfig", PROXY_CONFIG),
    skipped("ingressClass"),
    skipped("ingressService"),
    skipped("ingressControllerMode"),
    skipped("ingressSelector"),
    skipped("enableTracing"),
    skipped("accessLogFile"),
    skipped("accessLogFormat"),
    skipped("accessLogEncoding"),
    skipped("enableEnvoyAccessLogService"),
    skipped("disableEnvoyListenerLog"),
    skipped("inboundClusterStatName"),
    skipped("outboundClusterStatName"),
    skipped("certificates"),
    skipped("enablePrometheusMerge"),
    skipped("extensionProviders"),
    skipped("defaultProviders"),
    refused("proxyListenPort", COMMAND_LINE),
    refused("proxyInboundListenPort", COMMAND_LINE),
    refused("dnsRefreshRate", "a name is resolved again when its records expire"),
    refused(
        "configSources",
        "policies come from the policy folder, from the followed Kubernetes cluster and from `weftctl apply`",
    ),
    refused("ca", "the control plane signs identities"),
    refused("verifyCertificateAtClient", "a DestinationRule sets it with `tls.insecureSkipVerify`"),
    not_yet("proxyHttpPort"),
    not_yet("protocolDetectionTimeout"),
    not_yet("trustDomainAliases"),
    not_yet("caCertificates"),
    not_yet("serviceSettings"),
    not_yet("serviceScopeConfigs"),
    not_yet("discoverySelectors"),
    not_yet("meshMTLS"),
    not_yet("tlsDefaults"),
    not_yet("compliancePolicy"),
];

const PROXY_CONFIG: Shape = &[
    skipped("configPath"),
    skipped("binaryPath"),
    skipped("serviceCluster"),
    skipped("tracingServiceName"),
    skipped("drainDuration"),
    skipped("parentShutdownDuration"),
    skipped("discoveryAddress"),
    skipped("discoveryRefreshDelay"),
    skipped("zipkinAddress"),
    skipped("statsdUdpAddress"),
    skipped("envoyMetricsServiceAddress"),
    skipped("proxyAdminPort"),
    skipped("availabilityZone"),
    skipped("controlPlaneAuthPolicy"),
    skipped("customConfigFile"),
    skipped("statNameLength"),
    skipped("concurrency"),
    skipped("proxyBootstrapTemplatePath"),
    skipped("tracing"),
    skipped("sds"),
    skipped("envoyAccessLogService"),
    skipped("envoyMetricsService"),
    skipped("proxyMetadata"),
    skipped("statusPort"),
    skipped("extraStatTags"),
    skipped("meshId"),
    skipped("proxyStatsMatcher"),
    skipped("statsCompression"),
    skipped("holdApplicationUntilProxyStarts"),
    skipped("image"),
    skipped("privateKeyProvider"),
    skipped("fileFlushInterval"),
    skipped("fileFlushMinSizeKb"),
    read("terminationDrainDuration"),
    refused("readinessProbe", COMMAND_LINE),
    not_yet("interceptionMode"),
    not_yet("runtimeValues"),
    not_yet("gatewayTopology"),
    not_yet("proxyHeaders"),
    not_yet("caCertificatesPem"),
];

/// Reads `spec`; `None`: it has no setting of the mesh.
pub(super) fn decode(manifest: &Manifest<'_>) -> Option<Box<MeshConfig>> {
    let Manifest { document, spec, .. } = manifest;
    if !is_root(&manifest.namespace) {
        let text = format!("no effect on the mesh: its settings are in namespace {ROOT_NAMESPACE} or istio-system");
        document.report(Severity::Warning, Code::Ineffective, document.place, "metadata", text);
    }
    if spec.has("values") {
        match spec.map("values").iter().find(|(key, _)| key.name == "meshConfig") {
            Some((key, _)) => spec.error_at(key.place, "write `values.meshConfig` as `meshConfig` of `spec`"),
            None => spec.skip("values", spec.place_of("values")),
        }
    }
    spec.object("meshConfig").map(|fields| Box::new(mesh_config(&fields)))
}

fn mesh_config(fields: &Fields<'_>) -> MeshConfig {
    const UPGRADES: &[(&str, v1::H2Upgrade)] =
        &[("DO_NOT_UPGRADE", v1::H2Upgrade::H2Default), ("UPGRADE", v1::H2Upgrade::Upgrade)];
    only(fields, "pathNormalization", "normalization", &[("BASE", true), ("DEFAULT", true)], PATHS);
    only(fields, "inboundTrafficPolicy", "mode", &[("PASSTHROUGH", true)], &[("LOCALHOST", false)]);
    if let Some(namespace) = fields.string("rootNamespace").filter(|name| !is_root(name)) {
        let text =
            format!("`rootNamespace` is {ROOT_NAMESPACE} here, or istio-system, not `{namespace}`: leave it out");
        fields.error("rootNamespace", text);
    }
    let traffic = fields.object("defaultTrafficPolicy");
    let traffic = traffic.as_ref();
    if traffic.is_some_and(|traffic| traffic.written() == 0) {
        fields.error("defaultTrafficPolicy", "`meshConfig.defaultTrafficPolicy` must have at least one field");
    }
    MeshConfig {
        connection_pool: traffic.and_then(|t| t.object("connectionPool")).map(|pool| connection_pool::decode(&pool)),
        outlier_detection: traffic
            .and_then(|traffic| traffic.object("outlierDetection"))
            .map(|detection| destination_rule::outlier_detection(&detection)),
        connect_timeout_ms: fields.duration("connectTimeout", 1).unwrap_or_default(),
        tcp_keepalive: fields.object("tcpKeepalive").map(|keepalive| connection_pool::keepalive(&keepalive)),
        h2_upgrade: fields.one_of("h2UpgradePolicy", UPGRADES).unwrap_or_default(),
        locality: fields.object("localityLbSetting").map(|locality| load_balancer::locality(&locality)),
        retry: fields.object("defaultHttpRetryPolicy").map(|retries| response::retry(&retries)),
        outbound: fields.object("outboundTrafficPolicy").map(|policy| outbound(&policy)).unwrap_or_default(),
        no_auto_mtls: fields.boolean("enableAutoMtls") == Some(false),
        service_export: export::decode_field(fields, "defaultServiceExportTo"),
        virtual_service_export: export::decode_field(fields, "defaultVirtualServiceExportTo"),
        destination_rule_export: export::decode_field(fields, "defaultDestinationRuleExportTo"),
        // The other fields of the block are skipped or refused.
        termination_drain_ms: fields
            .object("defaultConfig")
            .and_then(|config| config.duration("terminationDrainDuration", 0)),
        trust_domain: fields.string("trustDomain").filter(|domain| !domain.is_empty()),
    }
}

/// Unlike in a Sidecar, Istio's default here is the weaker mode, and a block without a mode is easily confused with an
/// absent one.
fn outbound(fields: &Fields<'_>) -> v1::OutboundPolicy {
    fields.require("mode");
    fields.one_of("mode", sidecar::OUTBOUND_MODES).unwrap_or_default()
}

/// Istio's values beside the path normalisation in effect here.
const PATHS: &[(&str, bool)] = &[("NONE", false), ("MERGE_SLASHES", false), ("DECODE_AND_MERGE_SLASHES", false)];

/// Reports a value of `block.name` that differs from the one in effect here.
fn only(fields: &Fields<'_>, block: &'static str, name: &'static str, ours: &[(&str, bool)], others: &[(&str, bool)]) {
    let Some(block) = fields.object(block) else { return };
    if block.one_of(name, &[ours, others].concat()) == Some(false) {
        let (path, value) = (block.path_of(name), block.string(name).unwrap_or_default());
        block.error(name, format!("`{path}: {value}` is not supported yet: it is {} here", ours[0].0));
    }
}
