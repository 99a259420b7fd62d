//! The kinds of documents: the list of them, and a module for each with its type, shape, decoder and [`Descriptor`].

pub(crate) mod destination_rule;
pub(crate) mod gateway;
pub(crate) mod gateway_api;
pub(crate) mod kube_service;
pub mod mesh_config;
pub(crate) mod peer_authentication;
pub(crate) mod service_entry;
pub(crate) mod service_export;
pub(crate) mod sidecar;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;
pub(crate) mod workload_group;

use std::fmt;

use self::{
    destination_rule::DestinationRule,
    gateway::Gateway,
    gateway_api::{
        backend_tls_policy, backend_tls_policy::BackendTlsPolicy, gateway as kube_gateway, gateway::KubernetesGateway,
        gateway_class, gateway_class::GatewayClass, grpc_route, http_route, http_route::HttpRoute, namespace,
        namespace::Namespace, reference_grant, reference_grant::ReferenceGrant, tcp_route, tcp_route::StreamRoute,
        tls_route,
    },
    kube_service::KubeService,
    mesh_config::MeshConfig,
    peer_authentication::PeerAuthentication,
    service_entry::ServiceEntry,
    service_export::ServiceExport,
    sidecar::Sidecar,
    virtual_service::VirtualService,
    workload_entry::WorkloadEntry,
    workload_group::WorkloadGroup,
};
use crate::decode::fields::{Fields, Shape};
use crate::{Export, nearest};

/// Makes [`Kind`] and [`Object`] of the list: each row is a kind's name, the type of its content, and its module.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($content:ty) in $module:ident,)*) => {
        /// Kinds that Weft reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name, which no other kind has.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)*
                }
            }

            /// Its place in the Kubernetes API, its names, and its decoder.
            pub fn descriptor(self) -> &'static Descriptor {
                match self {
                    $(Self::$kind => &$module::DESCRIPTOR,)*
                }
            }
        }

        /// The content of a document.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $($(#[$doc])* $kind($content),)*
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// The hosts that it applies to, as written; empty if its kind has none.
            pub fn hosts(&self) -> &[String] {
                match self {
                    $(Self::$kind(content) => content.hosts(),)*
                }
            }

            /// The namespaces whose clients see it; `None`: its kind has no such field.
            pub fn export(&self) -> Option<&Export> {
                match self {
                    $(Self::$kind(content) => content.export(),)*
                }
            }
        }
    };
}

kinds! {
    /// Traffic policy for the callers of a host.
    DestinationRule(Box<DestinationRule>) in destination_rule,
    /// Routes of the requests to a host.
    VirtualService(VirtualService) in virtual_service,
    /// Listeners for callers outside the mesh.
    Gateway(Gateway) in gateway,
    /// A host outside the registry.
    ServiceEntry(ServiceEntry) in service_entry,
    /// An address behind ServiceEntries.
    WorkloadEntry(WorkloadEntry) in workload_entry,
    /// The template of the workloads that join by it.
    WorkloadGroup(Box<WorkloadGroup>) in workload_group,
    /// Whether plaintext is accepted.
    PeerAuthentication(PeerAuthentication) in peer_authentication,
    /// Kubernetes' Service: ports of a registered service.
    Service(KubeService) in kube_service,
    /// Exports the service of this name to other data centres.
    ServiceExport(ServiceExport) in service_export,
    /// The hosts that a workload's proxy can reach, and its settings for inbound traffic.
    Sidecar(Box<Sidecar>) in sidecar,
    /// Routes of the requests to Services, and to the listeners of Gateways.
    HTTPRoute(Box<HttpRoute>) in http_route,
    /// Routes of gRPC calls.
    GRPCRoute(Box<HttpRoute>) in grpc_route,
    /// Connections with TLS of their own, by server name.
    TLSRoute(Box<StreamRoute>) in tls_route,
    /// Connections.
    TCPRoute(Box<StreamRoute>) in tcp_route,
    /// TLS of the connections to a Service.
    BackendTLSPolicy(Box<BackendTlsPolicy>) in backend_tls_policy,
    /// The Gateway API's Gateway: listeners for callers outside the mesh.
    KubernetesGateway(Box<KubernetesGateway>) in kube_gateway,
    /// The controller of Gateways.
    GatewayClass(GatewayClass) in gateway_class,
    /// Kubernetes' Namespace: its labels.
    Namespace(Namespace) in namespace,
    /// Permits references between namespaces.
    ReferenceGrant(ReferenceGrant) in reference_grant,
    /// Settings of the whole mesh; `None`: the document has none that concern traffic.
    IstioOperator(Option<Box<MeshConfig>>) in mesh_config,
}

impl Kind {
    /// Its name in `kind:`: two kinds of different API groups have the same.
    pub fn written(self) -> &'static str {
        if self == Kind::KubernetesGateway { "Gateway" } else { self.name() }
    }
}

/// Kinds of Istio that are known and not supported yet, by API group.
pub(crate) const NOT_YET: &[(&str, &str)] = &[
    (NETWORKING, "EnvoyFilter"),
    (NETWORKING, "ProxyConfig"),
    (SECURITY, "AuthorizationPolicy"),
    (SECURITY, "RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
    ("extensions.istio.io", "WasmPlugin"),
    ("extensions.istio.io", "TrafficExtension"),
];

/// API group of Istio's traffic policies.
const NETWORKING: &str = "networking.istio.io";
/// Versions of the kinds of [`NETWORKING`].
const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
/// API group of Istio's security policies.
const SECURITY: &str = "security.istio.io";

/// The facts about a kind that hold for all its documents. They suffice for a CustomResourceDefinition of Kubernetes;
/// all kinds are namespaced.
pub struct Descriptor {
    /// API group; empty: Kubernetes' core.
    pub group: &'static str,
    /// Known versions of `group`, the newest first.
    pub versions: &'static [&'static str],
    /// The plural of its name, in lower case.
    pub plural: &'static str,
    /// Its abbreviations on a command line.
    pub short_names: &'static [&'static str],
    /// Fields of `spec`.
    pub(crate) spec: Shape,
    /// Whether `spec` must be there.
    pub(crate) requires_spec: bool,
    /// Namespace and name of a document without them; `None`: "default", and the name is required.
    pub(crate) identity: Option<(&'static str, &'static str)>,
    /// The annotations of Istio that the decoder reads.
    pub(crate) annotations: &'static [&'static str],
    /// Makes the content of a document.
    pub(crate) decode: fn(&Manifest<'_>) -> Object,
}

/// A document whose kind, namespace and name are known, and whose content is to be decoded.
pub(crate) struct Manifest<'a> {
    /// The whole document.
    pub(crate) document: Fields<'a>,
    /// `metadata`, if present.
    pub(crate) metadata: Option<Fields<'a>>,
    /// Namespace, written or assumed.
    pub(crate) namespace: String,
    /// Name, written or assumed.
    pub(crate) name: String,
    /// `spec`. Paths of its fields are reported without `spec.`: shorter, and as in Istio's documentation.
    pub(crate) spec: Fields<'a>,
}

/// The type of a kind's content.
trait Content {
    /// The hosts that it applies to, as written.
    fn hosts(&self) -> &[String] {
        &[]
    }

    /// The namespaces whose clients see it.
    fn export(&self) -> Option<&Export> {
        None
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The hint for a word that is no kind, as the end of a sentence.
pub fn nearest_kind(word: &str) -> String {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    nearest::suggest(word, &names, "kinds are")
}

#[cfg(test)]
mod tests;
