use std::collections::HashSet;

use super::*;
use crate::parse;

/// The `spec` without which a kind's document is an error.
fn minimal_spec(kind: Kind) -> &'static str {
    match kind {
        Kind::DestinationRule => "{host: a}",
        Kind::VirtualService => "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}",
        Kind::Gateway => "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}",
        Kind::ServiceEntry => "{hosts: [a.example.com], ports: [{number: 80, name: http}], resolution: DNS}",
        Kind::WorkloadEntry => "{address: 192.0.2.1}",
        Kind::WorkloadGroup => "{template: {}}",
        Kind::Service => "{ports: [{port: 80}]}",
        Kind::HTTPRoute | Kind::GRPCRoute => "{parentRefs: [{group: '', kind: Service, name: a}]}",
        Kind::TLSRoute | Kind::TCPRoute => "{parentRefs: [{name: a}], rules: [{backendRefs: [{name: a, port: 80}]}]}",
        Kind::BackendTLSPolicy => {
            "{targetRefs: [{name: a}], validation: {wellKnownCACertificates: System, hostname: a.b}}"
        }
        Kind::KubernetesGateway => "{gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}",
        Kind::GatewayClass => "{controllerName: weft.dev/gateway-controller}",
        Kind::ReferenceGrant => {
            "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: b}], to: [{group: '', kind: Service}]}"
        }
        Kind::Sidecar => "{egress: [{hosts: ['*/*']}]}",
        Kind::PeerAuthentication | Kind::Namespace | Kind::ServiceExport | Kind::IstioOperator => "",
    }
}

#[test]
fn each_version_of_each_kind_is_parsed_from_its_minimal_document() {
    for kind in Kind::ALL {
        let Descriptor { group, versions, requires_spec, identity, .. } = kind.descriptor();
        let prefix = if group.is_empty() { String::new() } else { format!("{group}/") };
        let metadata = if identity.is_some() { "{}" } else { "{name: a}" };
        let spec = minimal_spec(*kind);
        assert_eq!(spec.is_empty(), !requires_spec, "{kind}");
        for version in *versions {
            let head = format!("apiVersion: {prefix}{version}\nkind: {}\nmetadata: {metadata}\n", kind.written());
            let parsed = parse("f.yaml", &format!("{head}spec: {spec}\n"));
            assert_eq!(parsed.problems, [], "{kind}");
            let [document] = &parsed.documents[..] else { panic!("{kind}: {parsed:?}") };
            let (namespace, name) = identity.unwrap_or(("default", "a"));
            assert_eq!(document.reference(), format!("{kind}/{namespace}/{name}"));

            let parsed = parse("f.yaml", &head);
            let is_refused = parsed.problems.iter().any(|problem| problem.text == "`spec` is required");
            assert_eq!((is_refused, parsed.documents.is_empty()), (*requires_spec, *requires_spec), "{kind}");
        }
    }
}

#[test]
fn a_word_on_a_command_line_means_one_kind() {
    let mut words = HashSet::new();
    for kind in Kind::ALL {
        let Descriptor { plural, short_names, .. } = kind.descriptor();
        let name = kind.name().to_ascii_lowercase();
        let written = kind.written().to_ascii_lowercase();
        assert!(
            plural.starts_with(written.trim_end_matches('y').trim_end_matches("sx"))
                && *plural == plural.to_ascii_lowercase(),
            "{plural}"
        );
        // Of two kinds with one written name, the API group tells which is meant.
        let plural = Some(*plural).filter(|_| written == name);
        for word in short_names.iter().copied().chain([name.as_str()]).chain(plural) {
            assert!(words.insert(word.to_owned()), "{kind}: `{word}` is another kind's too");
        }
    }
}

#[test]
fn a_kind_is_supported_or_refused() {
    for kind in Kind::ALL {
        assert!(!NOT_YET.contains(&(kind.descriptor().group, kind.name())), "{kind}");
    }
}
