//! Gateway of the Gateway API: the ports on which gateways accept callers outside the mesh.

use std::collections::{BTreeMap, HashSet};

use weft_core::names::is_within;
use weft_proto::v1;

use super::{GROUP, ObjectRef, check_hostname, object_ref};
use crate::decode::fields::{Fields, Shape, explicit, not_yet, object, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};
use crate::names;
use crate::yaml::Place;

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: GROUP,
    versions: &["v1", "v1beta1", "v1alpha2"],
    plural: "gateways",
    short_names: &["gtw"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::KubernetesGateway(Box::new(decode(manifest))),
};

/// A Gateway's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesGateway {
    /// `gatewayClassName`.
    pub class: String,
    /// By unique name.
    pub listeners: Vec<Listener>,
}

/// One entry of `listeners`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Name.
    pub name: String,
    /// Port.
    pub port: u32,
    /// Protocol as written.
    pub protocol: String,
    /// Lower case; empty: any.
    pub hostname: String,
    /// `tls.certificateRefs`.
    pub certificates: Vec<ObjectRef>,
    /// `tls.mode: Passthrough`.
    pub passthrough: bool,
    /// `allowedRoutes.kinds`, group and kind; empty: those of the protocol.
    pub kinds: Vec<(String, String)>,
    /// `allowedRoutes.namespaces`.
    pub namespaces: AllowedNamespaces,
    /// Its place in the file.
    pub place: Place,
}

impl Listener {
    /// The hostnames of a route here: of each of its own and the listener's the more specific one; `*`: any. None: they have
    /// none in common.
    pub fn hostnames(&self, of_route: &[String]) -> Vec<String> {
        let own = if self.hostname.is_empty() { "*" } else { &self.hostname };
        let common = |host: &String| {
            if own == "*" || is_within(host, own) {
                Some(host.clone())
            } else {
                is_within(own, host).then(|| own.to_owned())
            }
        };
        match of_route.is_empty() {
            true => vec![own.to_owned()],
            false => of_route.iter().filter_map(common).collect(),
        }
    }
}

/// The namespaces whose routes may attach.
#[derive(Clone, Debug, PartialEq)]
pub enum AllowedNamespaces {
    /// The Gateway's own.
    Same,
    /// All.
    All,
    /// Those with labels.
    Selector(LabelSelector),
}

/// Kubernetes' selector by labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelSelector {
    labels: BTreeMap<String, String>,
    /// Key, whether the value must be among the values (`None`: it must exist or not), values.
    expressions: Vec<(String, Operator, Vec<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether it selects an object with `labels`.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        let meets = |(key, operator, values): &(String, Operator, Vec<String>)| match (operator, labels.get(key)) {
            (Operator::In, value) => value.is_some_and(|value| values.contains(value)),
            (Operator::NotIn, value) => value.is_none_or(|value| !values.contains(value)),
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
        };
        self.labels.iter().all(has) && self.expressions.iter().all(meets)
    }
}

const SELECTOR: Shape =
    &[read("matchLabels"), object("matchExpressions", &[read("key"), read("operator"), read("values")])];
const LISTENER: Shape = &[
    read("name"),
    read("hostname"),
    read("port"),
    read("protocol"),
    object(
        "tls",
        &[
            read("mode"),
            object("certificateRefs", &[explicit("group"), read("kind"), read("namespace"), read("name")]),
            not_yet("frontendValidation"),
            not_yet("options"),
        ],
    ),
    object(
        "allowedRoutes",
        &[
            object("namespaces", &[read("from"), object("selector", SELECTOR)]),
            object("kinds", &[explicit("group"), read("kind")]),
        ],
    ),
];
/// Fields of `spec`.
const SHAPE: Shape = &[
    read("gatewayClassName"),
    object("listeners", LISTENER),
    not_yet("addresses"),
    not_yet("infrastructure"),
    not_yet("allowedListeners"),
    not_yet("tls"),
    not_yet("defaultScope"),
];

impl Content for Box<KubernetesGateway> {}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> KubernetesGateway {
    let (spec, namespace) = (&manifest.spec, manifest.namespace.as_str());
    spec.require("listeners");
    let mut seen = HashSet::new();
    let one = |fields: &Fields<'_>| {
        let listener = listener(fields, namespace);
        if !seen.insert(listener.name.clone()) {
            fields.error("name", format!("listener `{}` is there twice", listener.name));
        }
        listener
    };
    let listeners = spec.objects("listeners").iter().map(one).collect();
    KubernetesGateway { class: spec.required_string("gatewayClassName"), listeners }
}

fn listener(fields: &Fields<'_>, namespace: &str) -> Listener {
    let name = fields.required_string("name");
    if !name.is_empty() && !names::is_subdomain(&name) {
        fields.error("name", format!("`{name}` is not a name: lower-case letters, digits, hyphens and dots"));
    }
    fields.require("port");
    let hostname = fields.string("hostname").unwrap_or_default();
    if !hostname.is_empty() {
        check_hostname(fields, &hostname, fields.place_of("hostname"));
    }
    let tls = fields.object("tls");
    let passthrough = tls.as_ref().and_then(|tls| tls.one_of("mode", &[("Terminate", false), ("Passthrough", true)]));
    let certificates = tls.as_ref().map(|tls| tls.objects("certificateRefs")).unwrap_or_default();
    let certificates = certificates.iter().map(|of| object_ref(of, namespace, "", "Secret")).collect();
    let allowed = fields.object("allowedRoutes");
    let kinds = allowed.as_ref().map(|allowed| allowed.objects("kinds")).unwrap_or_default();
    let kind = |of: &Fields<'_>| (of.string("group").unwrap_or_else(|| GROUP.to_owned()), of.required_string("kind"));
    Listener {
        name,
        port: fields.port("port").unwrap_or_default(),
        protocol: fields.required_string("protocol"),
        hostname: hostname.to_ascii_lowercase(),
        certificates,
        passthrough: passthrough.unwrap_or_default(),
        kinds: kinds.iter().map(kind).collect(),
        namespaces: allowed.and_then(|allowed| namespaces(&allowed)).unwrap_or(AllowedNamespaces::Same),
        place: fields.place,
    }
}

fn namespaces(allowed: &Fields<'_>) -> Option<AllowedNamespaces> {
    let of = allowed.object("namespaces")?;
    let from = of.one_of("from", &[("Same", 0), ("All", 1), ("Selector", 2)])?;
    if from == 2 {
        of.require("selector");
    }
    Some(match from {
        1 => AllowedNamespaces::All,
        2 => AllowedNamespaces::Selector(of.object("selector").map(|of| selector(&of)).unwrap_or_default()),
        _ => AllowedNamespaces::Same,
    })
}

fn selector(fields: &Fields<'_>) -> LabelSelector {
    const OPERATORS: &[(&str, Operator)] = &[
        ("In", Operator::In),
        ("NotIn", Operator::NotIn),
        ("Exists", Operator::Exists),
        ("DoesNotExist", Operator::DoesNotExist),
    ];
    let expression = |of: &Fields<'_>| {
        of.require("operator");
        let operator = of.one_of("operator", OPERATORS).unwrap_or(Operator::Exists);
        let values: Vec<String> = of.strings("values").into_iter().map(|(value, _)| value).collect();
        if matches!(operator, Operator::In | Operator::NotIn) == values.is_empty() {
            of.error("values", "`values` belongs to the operators In and NotIn, which need it");
        }
        (of.required_string("key"), operator, values)
    };
    let expressions = fields.objects("matchExpressions").iter().map(expression).collect();
    LabelSelector { labels: fields.labels("matchLabels"), expressions }
}

/// The protocol of a gateway's server for a listener; `None`: it is not supported.
pub fn protocol_of(listener: &Listener) -> Option<v1::GatewayProtocol> {
    match listener.protocol.as_str() {
        "HTTP" => Some(v1::GatewayProtocol::GatewayHttp),
        "HTTPS" => Some(v1::GatewayProtocol::GatewayHttps),
        "TLS" => Some(v1::GatewayProtocol::GatewayTls),
        "TCP" => Some(v1::GatewayProtocol::GatewayTcp),
        _ => None,
    }
}
