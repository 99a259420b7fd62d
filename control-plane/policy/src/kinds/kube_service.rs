//! Kubernetes' Service: names the ports of a registered service.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use weft_proto::v1;

use super::{Content, Descriptor, Manifest, Object};
use crate::decode::{
    fields::{Fields, Shape, not_yet, object, read},
    protocol,
};
use crate::{
    export::{self, Export},
    names,
};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: "",
    versions: &["v1"],
    plural: "services",
    short_names: &["svc"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[export::ANNOTATION],
    decode: |manifest| Object::Service(decode(manifest)),
};

/// A Service's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeService {
    /// Of the annotation `networking.istio.io/exportTo`.
    pub export: Export,
    /// TCP ports, by unique number.
    pub ports: Vec<KubePort>,
    /// Labels of further instances of the namespace that belong to it, whatever service they registered as.
    pub selector: BTreeMap<String, String>,
    /// `clusterIP`, a virtual IP beside the allocated one, or in its place.
    pub cluster_ip: Option<IpAddr>,
    /// Whether it is an object of the cluster around the mesh, where `cluster_ip` reaches the service without a sidecar too:
    /// excluded traffic must not be given another address.
    pub is_of_cluster: bool,
    /// `clusterIP: None`: it has no virtual IP; clients choose an endpoint and connect to it.
    pub headless: bool,
    /// `externalName`: it is an alias of this host, and has neither ports nor endpoints. Lower case, without trailing
    /// dot.
    pub alias: Option<String>,
    /// `publishNotReadyAddresses`: its endpoints count as healthy, whatever the results of their checks.
    pub publishes_not_ready: bool,
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq)]
pub struct KubePort {
    /// The port for callers.
    pub number: u32,
    /// Name; may be empty if it is the only port.
    pub name: String,
    /// From `appProtocol`, else from the name.
    pub protocol: v1::Protocol,
    /// Port of the instances.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetPort {
    /// A number.
    Number(u32),
    /// A name: the port that the instance registered.
    Name(String),
}

/// Fields of `spec`. The fields for access from outside the cluster and for address families do not concern calls
/// within the mesh: they are accepted and change nothing, as in Istio.
const SHAPE: Shape = &[
    object(
        "ports",
        &[read("name"), read("port"), read("targetPort"), read("protocol"), read("appProtocol"), read("nodePort")],
    ),
    read("selector"),
    read("clusterIP"),
    read("clusterIPs"),
    read("type"),
    read("sessionAffinity"),
    read("ipFamilies"),
    read("ipFamilyPolicy"),
    read("internalTrafficPolicy"),
    read("externalTrafficPolicy"),
    read("externalIPs"),
    read("loadBalancerIP"),
    read("loadBalancerClass"),
    read("loadBalancerSourceRanges"),
    read("allocateLoadBalancerNodePorts"),
    read("healthCheckNodePort"),
    read("externalName"),
    read("publishNotReadyAddresses"),
    not_yet("sessionAffinityConfig"),
    not_yet("trafficDistribution"),
];

impl Content for KubeService {
    fn export(&self) -> Option<&Export> {
        Some(&self.export)
    }
}

/// Reads `spec`, and the `exportTo` of the metadata.
fn decode(manifest: &Manifest<'_>) -> KubeService {
    let spec = &manifest.spec;
    let refused = [("sessionAffinity", "ClientIP"), ("internalTrafficPolicy", "Local")];
    for (name, value) in refused {
        if spec.string(name).as_deref() == Some(value) {
            spec.error(name, format!("`{name}: {value}` is not supported yet"));
        }
    }
    let cluster_ip = spec.string("clusterIP").filter(|text| !text.is_empty() && text != "None").and_then(|text| {
        let address = text.parse().ok();
        if address.is_none() {
            spec.error("clusterIP", format!("`clusterIP`: `{text}` is not an IP address"));
        }
        address
    });
    let headless = spec.string("clusterIP").as_deref() == Some("None");
    let alias = alias(spec);
    if headless && let Some(kind @ ("NodePort" | "LoadBalancer")) = spec.string("type").as_deref() {
        spec.error("clusterIP", format!("`clusterIP: None` needs `type: ClusterIP`: a {kind} has a cluster IP"));
    }
    let ports = ports(spec);
    if ports.is_empty() && spec.objects("ports").is_empty() && !headless && alias.is_none() {
        spec.error("ports", "`ports` must name at least one port");
    }
    KubeService {
        export: export::decode_annotation(manifest),
        ports,
        selector: spec.labels("selector"),
        cluster_ip,
        is_of_cluster: false,
        headless,
        alias,
        publishes_not_ready: spec.boolean("publishNotReadyAddresses").unwrap_or_default(),
    }
}

/// `externalName` of a Service of that `type`. As in Kubernetes, such a Service has no cluster IP.
fn alias(spec: &Fields<'_>) -> Option<String> {
    if spec.string("type").as_deref() != Some("ExternalName") {
        if spec.has("externalName") {
            spec.error("externalName", "`externalName` needs `type: ExternalName`");
        }
        return None;
    }
    if spec.string("clusterIP").is_some_and(|text| !text.is_empty()) {
        spec.error("clusterIP", "`type: ExternalName` has no `clusterIP`: it stands for another host");
    }
    let written = spec.required_string("externalName").to_ascii_lowercase();
    let name = written.strip_suffix('.').unwrap_or(&written);
    if name.parse::<IpAddr>().is_ok() {
        let text = format!("`externalName`: `{name}` is an IP address; a ServiceEntry gives a host an address");
        spec.error("externalName", text);
    } else if !name.is_empty() && !names::is_host(name) {
        spec.error("externalName", format!("`externalName`: `{name}` is not a host name"));
    }
    Some(name.to_owned())
}

fn ports(spec: &Fields<'_>) -> Vec<KubePort> {
    let mut ports: Vec<KubePort> = Vec::new();
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    let written = spec.objects("ports");
    for fields in &written {
        let Some(port) = port(fields, written.len() > 1) else { continue };
        if !numbers.insert(port.number) {
            fields.error("port", format!("port {} is given twice", port.number));
        }
        if !port.name.is_empty() && !names.insert(port.name.clone()) {
            fields.error("name", format!("port name `{}` is given twice", port.name));
        }
        ports.push(port);
    }
    ports.sort_by_key(|port| port.number);
    ports
}

/// `several`: the Service has more ports than this one, each of which then needs a name.
fn port(fields: &Fields<'_>, several: bool) -> Option<KubePort> {
    fields.require("port");
    let number = fields.port("port").unwrap_or_default();
    let name = fields.string("name").unwrap_or_default();
    if several && name.is_empty() {
        fields.error("name", format!("port {number} needs a `name`: only a Service's single port may be without one"));
    }
    if !name.is_empty() && !names::is_label(&name) {
        fields.error("name", format!("port name `{name}` {}", names::LABEL_RULE));
    }
    let transport = fields.one_of("protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)]);
    if transport == Some(false) {
        fields.warn("protocol", format!("port {number} is left out: the mesh carries TCP only"));
        return None;
    }
    let protocol = match fields.string("appProtocol") {
        Some(app) => protocol::from_name(&app),
        None => protocol::from_port_name(&name),
    };
    let protocol = if protocol == v1::Protocol::Unknown { protocol::of_well_known_port(number) } else { protocol };
    Some(KubePort { number, name, protocol, target: target(fields, number) })
}

fn target(fields: &Fields<'_>, number: u32) -> TargetPort {
    match fields.node("targetPort").map(|node| (node, node.as_str())) {
        None => TargetPort::Number(number),
        Some((_, Some(name))) if names::is_label(name) && name.len() <= 15 => TargetPort::Name(name.to_owned()),
        Some((_, Some(name))) => {
            fields.error("targetPort", format!("`targetPort`: `{name}` is neither a port number nor a port's name"));
            TargetPort::Number(number)
        }
        Some(_) => TargetPort::Number(fields.port("targetPort").unwrap_or(number)),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Object, parse};

    /// As written by `kubectl get -o yaml`.
    #[test]
    fn a_service_written_by_a_cluster_is_accepted_unless_it_changes_traffic() {
        let spec = "type: LoadBalancer, clusterIP: 10.1.2.3, clusterIPs: [10.1.2.3], ipFamilies: [IPv4], \
                    ipFamilyPolicy: SingleStack, sessionAffinity: None, internalTrafficPolicy: Cluster, \
                    externalTrafficPolicy: Local, externalIPs: [192.0.2.1], loadBalancerIP: 192.0.2.2, loadBalancerClass: a/b, \
                    loadBalancerSourceRanges: [192.0.2.0/24], allocateLoadBalancerNodePorts: true, healthCheckNodePort: 30001";
        let ports =
            "ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30000, protocol: TCP, appProtocol: http}]";
        let of = |spec: &str| {
            let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{spec}, {ports}}}\n");
            parse("f.yaml", &text)
        };
        let parsed = of(spec);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let [Object::Service(service)] = &parsed.documents.iter().map(|d| d.object.clone()).collect::<Vec<_>>()[..]
        else {
            panic!("{parsed:?}")
        };
        assert_eq!(service.cluster_ip, Some([10, 1, 2, 3].into()));
        for (was, is) in [
            ("sessionAffinity: None", "sessionAffinity: ClientIP"),
            ("internalTrafficPolicy: Cluster", "internalTrafficPolicy: Local"),
            ("type: LoadBalancer", "trafficDistribution: PreferClose"),
        ] {
            let problems = of(&spec.replace(was, is)).problems;
            assert!(problems.len() == 1 && problems[0].to_string().contains("not supported yet"), "{is}: {problems:?}");
        }
    }

    fn read(spec: &str) -> Result<super::KubeService, Vec<String>> {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
        let parsed = parse("f.yaml", &text);
        match &parsed.documents[..] {
            [document] if parsed.problems.is_empty() => match &document.object {
                Object::Service(service) => Ok(service.clone()),
                other => panic!("{other:?}"),
            },
            _ => Err(parsed.problems.iter().map(|problem| problem.text.clone()).collect()),
        }
    }

    #[test]
    fn headless_services_and_aliases_are_read() {
        let headless =
            read("clusterIP: None, ports: [{name: http, port: 80}], publishNotReadyAddresses: true").unwrap();
        assert!(headless.headless && headless.publishes_not_ready && headless.cluster_ip.is_none());
        assert!(read("clusterIP: None, selector: {app: a}").unwrap().ports.is_empty(), "ports may be absent");
        let alias = read("type: ExternalName, externalName: API.Example.com.").unwrap();
        assert_eq!((alias.alias.as_deref(), alias.headless), (Some("api.example.com"), false));
        for (spec, text) in [
            ("type: ExternalName", "externalName` is required"),
            ("type: ExternalName, externalName: 10.0.0.1", "is an IP address"),
            ("type: ExternalName, externalName: a b", "is not a host name"),
            ("type: ExternalName, externalName: a.b, clusterIP: 10.0.0.1", "has no `clusterIP`"),
            ("externalName: a.b, ports: [{port: 80}]", "`externalName` needs `type: ExternalName`"),
            ("clusterIP: None, type: NodePort, ports: [{port: 80}]", "`clusterIP: None` needs `type: ClusterIP`"),
            ("selector: {app: a}", "`ports` must name at least one port"),
        ] {
            let problems = read(spec).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(text), "{spec}: {problems:?}");
        }
    }

    /// Kubernetes: a port may be without a name only if it is the only port.
    #[test]
    fn a_port_without_a_name_is_accepted_alone() {
        let alone = read("ports: [{port: 80, targetPort: 8080}]").unwrap();
        assert_eq!(alone.ports[0].name, "");
        assert_eq!(read("ports: [{port: 80, name: ''}]").unwrap().ports.len(), 1);
        let problems = read("ports: [{port: 80}, {port: 81}]").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("only a Service's single port may be without one"), "{problems:?}");
    }
}
