//! Gateway: the ports on which a gateway accepts callers outside the mesh, and their hosts.

mod tls;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use weft_proto::v1;

use super::{Content, Descriptor, Manifest, NETWORKING, NETWORKING_VERSIONS, Object};
use crate::decode::fields::{Fields, Shape, object, read, refused};
use crate::{Code, Severity, names};
use tls::{CERTIFICATES, Mode, mode, termination};

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    plural: "gateways",
    short_names: &["gw"],
    spec: SHAPE,
    requires_spec: true,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::Gateway(decode(manifest)),
};

/// A Gateway's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Labels of the gateways that this applies to; empty: all.
    pub selector: BTreeMap<String, String>,
    /// At least one.
    pub servers: Vec<Server>,
}

/// One entry of `servers`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Empty: none.
    pub name: String,
    /// The address that it listens at; `None`: all.
    pub bind: Option<IpAddr>,
    /// `port.number`.
    pub port: u32,
    /// `port.protocol`, as refined by `tls.mode`.
    pub protocol: v1::GatewayProtocol,
    /// Settings of TLS that is terminated here.
    pub tls: Option<v1::GatewayTls>,
    /// `tls.httpsRedirect`.
    pub https_redirect: bool,
    /// `tls.mode: AUTO_PASSTHROUGH`: the server name selects the exported service.
    pub auto_passthrough: bool,
    /// Namespace (`None`: any) and host: exact, `*.suffix` or `*`.
    pub hosts: Vec<(Option<String>, String)>,
}

/// Fields of `spec`.
const SHAPE: Shape = &[
    read("selector"),
    object(
        "servers",
        &[
            read("name"),
            object(
                "port",
                &[
                    read("number"),
                    read("name"),
                    read("protocol"),
                    refused("targetPort", "nor by Istio: it has no effect on Gateways, which listen on `number`"),
                ],
            ),
            read("hosts"),
            object("tls", tls::SHAPE),
            read("bind"),
            refused("defaultEndpoint", "nor implemented by Istio: a VirtualService with `gateways` has the routes"),
        ],
    ),
];

impl Content for Gateway {}

/// Reads `spec`.
fn decode(manifest: &Manifest<'_>) -> Gateway {
    let spec = &manifest.spec;
    if !names::is_label(&manifest.name) {
        let (document, text) = (&manifest.document, format!("the name of a Gateway {}", names::LABEL_RULE));
        document.report(Severity::Error, Code::InvalidValue, document.place, "metadata.name", text);
    }
    let selector = spec.labels("selector");
    let servers: Vec<Server> = spec.objects("servers").iter().map(server).collect();
    if servers.is_empty() {
        spec.error("servers", "`servers` must have at least one server");
    }
    let mut names = HashSet::new();
    for port in spec.objects("servers").iter().filter_map(|server| server.object("port")) {
        if let Some(name) = port.string("name").filter(|name| !names.insert(name.clone())) {
            port.error("name", format!("port name `{name}` is given twice: each server's port has a name of its own"));
        }
    }
    Gateway { selector, servers }
}

fn server(fields: &Fields<'_>) -> Server {
    fields.require("port");
    fields.require("hosts");
    let (mut port, mut protocol) = (0, None);
    if let Some(given) = fields.object("port") {
        for name in ["number", "protocol", "name"] {
            given.require(name);
        }
        port = given.port("number").unwrap_or_default();
        protocol = given.string("protocol").map(|text| text.to_ascii_uppercase());
        let known = ["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP"];
        if let Some(text) = protocol.as_deref().filter(|text| !known.contains(text)) {
            let hint = crate::nearest::suggest(text, &known, "known are");
            given.error("protocol", format!("unknown protocol `{text}`{hint}"));
        }
    }
    let tls = fields.object("tls");
    let mode = tls.as_ref().and_then(|tls| mode(tls)).unwrap_or_default();
    let terminates = tls.as_ref().is_some_and(|_| mode.terminates());
    let https_redirect = tls.as_ref().and_then(|tls| tls.boolean("httpsRedirect")).unwrap_or(false);
    let protocol = match protocol.as_deref().unwrap_or("HTTP") {
        "HTTPS" | "TLS" if tls.is_none() => {
            fields.error_at(fields.place, "`tls` is required for the protocols HTTPS and TLS");
            v1::GatewayProtocol::GatewayTls
        }
        "HTTPS" if matches!(mode, Mode::Passthrough | Mode::AutoPassthrough) => v1::GatewayProtocol::GatewayTls,
        "HTTPS" => v1::GatewayProtocol::GatewayHttps,
        "TLS" if terminates => {
            let text = "terminated TLS without HTTP inside is not supported yet: `protocol: HTTPS` has HTTP inside";
            fields.error("tls", text);
            v1::GatewayProtocol::GatewayTls
        }
        "TLS" => v1::GatewayProtocol::GatewayTls,
        "TCP" => v1::GatewayProtocol::GatewayTcp,
        _ => v1::GatewayProtocol::GatewayHttp,
    };
    let plain = matches!(protocol, v1::GatewayProtocol::GatewayHttp | v1::GatewayProtocol::GatewayTcp);
    if let Some(tls) = tls.as_ref().filter(|_| plain)
        && (!https_redirect || CERTIFICATES.iter().any(|name| tls.has(name)))
    {
        fields.error("tls", "`tls` of a plaintext server may only have `httpsRedirect: true`");
    }
    if https_redirect && protocol != v1::GatewayProtocol::GatewayHttp {
        fields.warn("tls", "`httpsRedirect` has an effect only on servers of the protocol HTTP");
    }
    if let Some(tls) = tls.as_ref().filter(|_| protocol == v1::GatewayProtocol::GatewayTls) {
        let of_end = ["subjectAltNames", "minProtocolVersion", "maxProtocolVersion", "cipherSuites"];
        for name in CERTIFICATES.into_iter().chain(of_end).filter(|name| tls.has(name)) {
            let text =
                format!("`{name}` has no effect: without `mode: SIMPLE` or MUTUAL the gateway passes TLS through");
            tls.warn(name, text);
        }
    }
    let tls = tls.filter(|_| protocol == v1::GatewayProtocol::GatewayHttps).map(|tls| termination(&tls, mode));
    let mut hosts = Vec::new();
    for (text, place) in fields.strings("hosts") {
        let (namespace, host) = match text.split_once('/') {
            None | Some(("*", _)) => (None, text.trim_start_matches("*/").to_owned()),
            Some((namespace, host)) => (Some(namespace.to_owned()), host.to_owned()),
        };
        let is_name = namespace.as_deref().is_none_or(|namespace| namespace == "." || names::is_label(namespace));
        if !is_name {
            fields.error_at(place, format!("`{text}` is not a host: [namespace/]name, *.suffix or *"));
        } else if let Some(wrong) = names::wrong_import(&host) {
            fields.error_at(place, format!("`{text}`: `{host}` {wrong}"));
        }
        hosts.push((namespace, host.to_ascii_lowercase()));
    }
    let auto_passthrough = protocol == v1::GatewayProtocol::GatewayTls && mode == Mode::AutoPassthrough;
    let name = fields.string("name").unwrap_or_default();
    let https_redirect = https_redirect && protocol == v1::GatewayProtocol::GatewayHttp;
    Server { name, bind: bind(fields), port, protocol, tls, https_redirect, auto_passthrough, hosts }
}

fn bind(fields: &Fields<'_>) -> Option<IpAddr> {
    let text = fields.string("bind")?;
    match text.parse() {
        // A server without `bind` listens at this address.
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => None,
        Ok(address) => Some(address),
        Err(_) if text.starts_with("unix:") => {
            fields.error("bind", "`bind` is an IP address: a gateway accepts TCP connections only, not Unix sockets");
            None
        }
        Err(_) => {
            fields.error("bind", format!("`{text}` is not an IP address"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Object, Parsed, parse};

    fn read(servers: &str) -> Parsed {
        let head =
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {istio: g}\n";
        parse("f.yaml", &format!("{head}  servers:\n{servers}"))
    }

    #[test]
    fn the_gateway_protocol_follows_from_protocol_and_mode() {
        for (port, tls, want) in [
            ("HTTP", "", v1::GatewayProtocol::GatewayHttp),
            ("http2", "", v1::GatewayProtocol::GatewayHttp),
            ("HTTP", "tls: {httpsRedirect: true}", v1::GatewayProtocol::GatewayHttp),
            ("HTTPS", "tls: {mode: SIMPLE, credentialName: c}", v1::GatewayProtocol::GatewayHttps),
            ("HTTPS", "tls: {mode: PASSTHROUGH}", v1::GatewayProtocol::GatewayTls),
            ("TLS", "tls: {mode: PASSTHROUGH}", v1::GatewayProtocol::GatewayTls),
            ("HTTPS", "tls: {}", v1::GatewayProtocol::GatewayTls),
            ("TLS", "tls: {}", v1::GatewayProtocol::GatewayTls),
            ("TLS", "tls: {mode: AUTO_PASSTHROUGH}", v1::GatewayProtocol::GatewayTls),
            ("TCP", "", v1::GatewayProtocol::GatewayTcp),
        ] {
            let text = format!(
                "  - port: {{number: 1, name: a, protocol: {port}}}\n    hosts: ['./a.b', '*/*', x/*.c]\n    {tls}\n"
            );
            let mut parsed = read(&text);
            assert_eq!(parsed.problems, [], "{text}");
            let Object::Gateway(gateway) = parsed.documents.remove(0).object else { panic!("{text}") };
            let server = &gateway.servers[0];
            assert_eq!(server.protocol, want, "{text}");
            assert_eq!(server.auto_passthrough, tls.contains("AUTO"), "{text}");
            let host = |namespace: Option<&str>, host: &str| (namespace.map(str::to_owned), host.to_owned());
            assert_eq!(server.hosts, [host(Some("."), "a.b"), host(None, "*"), host(Some("x"), "*.c")]);
        }
    }

    #[test]
    fn invalid_servers_are_reported() {
        let port = "port: {number: 1, name: a, protocol: HTTPS}";
        for (server, want) in [
            ("hosts: [a]".to_owned(), "`servers[0].port` is required"),
            ("port: {number: 1, protocol: HTTPX}, hosts: [a]".to_owned(), "unknown protocol `HTTPX`, did you mean"),
            (format!("{port}, hosts: [a]"), "`tls` is required for the protocols HTTPS and TLS"),
            (format!("{port}, hosts: [a], tls: {{mode: SIMPLE}}"), "a certificate is needed"),
            (
                format!("{port}, hosts: [a], tls: {{mode: MUTUAL, serverCertificate: c, privateKey: k}}"),
                "`caCertificates`",
            ),
            (format!("{port}, hosts: [a], tls: {{mode: SIMPLE, credentialName: ../a}}"), "is the name of a folder"),
            (
                format!("{port}, hosts: [a], tls: {{mode: OPTIONAL_MUTUAL}}"),
                "mode OPTIONAL_MUTUAL is not supported yet",
            ),
            (format!("{port}, hosts: [a b], tls: {{credentialName: a}}"), "`a b` is not a host"),
            (format!("{port}, hosts: [], tls: {{credentialName: a}}"), "hosts` is required and must not be empty"),
            ("port: {number: 1, protocol: HTTP}, hosts: [a], tls: {credentialName: c}".to_owned(), "plaintext server"),
            ("port: {number: 1, protocol: HTTP}, hosts: [a], bind: 1.2.3".to_owned(), "`1.2.3` is not an IP address"),
            (
                "port: {number: 1, protocol: HTTP}, hosts: [a], bind: 'unix:///a'".to_owned(),
                "accepts TCP connections only",
            ),
            ("port: {number: 1, protocol: HTTP, targetPort: 2}, hosts: [a]".to_owned(), "it has no effect on Gateways"),
            (
                "port: {number: 1, protocol: HTTP}, hosts: [a], defaultEndpoint: '127.0.0.1:1'".to_owned(),
                "a VirtualService",
            ),
        ] {
            let problems = read(&format!("  - {{{server}}}\n")).problems;
            let found = problems.iter().any(|problem| problem.to_string().contains(want));
            assert!(found, "{server}: {problems:#?}");
        }
    }

    fn tls(text: &str) -> (Vec<String>, Option<v1::GatewayTls>) {
        let head = "  - port: {number: 1, name: a, protocol: HTTPS}\n    hosts: [a.b]\n";
        let mut parsed = read(&format!("{head}    tls: {{{text}}}\n"));
        let problems = parsed.problems.iter().map(ToString::to_string).collect();
        let found = parsed.documents.pop().and_then(|document| match document.object {
            Object::Gateway(mut gateway) => gateway.servers.pop().and_then(|server| server.tls),
            _ => None,
        });
        (problems, found)
    }

    #[test]
    fn tls_is_terminated_with_the_given_versions_suites_and_certificates() {
        let file = |n: u8| v1::GatewayCertificate {
            certificate: format!("c{n}"),
            private_key: format!("k{n}"),
            credential: String::new(),
        };
        let certificates =
            |name: &str| v1::GatewayCertificate { credential: name.into(), ..v1::GatewayCertificate::default() };
        let text = "mode: MUTUAL, tlsCertificates: [{serverCertificate: c1, privateKey: k1}, {serverCertificate: c2, privateKey: k2}], \
                    caCertificates: ca, caCrl: crl, subjectAltNames: [a.example.com], maxProtocolVersion: TLSV1_2, \
                    cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]";
        let expected = v1::GatewayTls {
            mutual: true,
            certificates: vec![file(1), file(2)],
            ca_certificates: "ca".into(),
            ca_crl: "crl".into(),
            subject_alt_names: vec!["a.example.com".into()],
            tls12_only: true,
            cipher_suites: vec!["ECDHE-RSA-AES128-GCM-SHA256".into()],
            ..v1::GatewayTls::default()
        };
        assert_eq!(tls(text), (Vec::new(), Some(expected)));
        let expected = v1::GatewayTls {
            mutual: true,
            certificates: vec![certificates("rsa"), certificates("ecdsa")],
            ca_credential: "rsa".into(),
            ..v1::GatewayTls::default()
        };
        let text = "mode: MUTUAL, credentialNames: [rsa, ecdsa]";
        assert_eq!(tls(text), (Vec::new(), Some(expected.clone())), "the first one's CA, as in Istio");
        let expected = v1::GatewayTls { ca_credential: "callers".into(), ..expected };
        assert_eq!(tls(&format!("{text}, caCertCredentialName: callers")), (Vec::new(), Some(expected)));
        let id = "spiffe://mesh/ns/default/sa/front";
        let expected = v1::GatewayTls {
            mutual: true,
            mesh: true,
            subject_alt_names: vec![id.into()],
            ..v1::GatewayTls::default()
        };
        assert_eq!(tls(&format!("mode: ISTIO_MUTUAL, subjectAltNames: ['{id}']")), (Vec::new(), Some(expected)));
    }

    #[test]
    fn invalid_combinations_of_tls_settings_are_refused() {
        for (text, want) in [
            ("mode: SIMPLE, credentialName: a, maxProtocolVersion: TLSV1_1", "TLSV1_1 is not supported"),
            ("mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_0", "write TLSV1_2"),
            ("mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2", "is below"),
            (
                "mode: SIMPLE, credentialName: a, cipherSuites: [AES128-SHA]",
                "cipher suite `AES128-SHA` is not supported",
            ),
            ("mode: SIMPLE, credentialName: a, cipherSuites: [TLS_AES_128_GCM_SHA256]", "TLS 1.3 are always on"),
            ("mode: SIMPLE, credentialName: a, credentialNames: [b]", "exclude each other"),
            (
                "mode: SIMPLE, credentialName: a, tlsCertificates: [{serverCertificate: c, privateKey: k}]",
                "exclude each other",
            ),
            ("mode: SIMPLE, tlsCertificates: [{serverCertificate: c}]", "privateKey` is required"),
            ("mode: SIMPLE, credentialNames: [a, ../b]", "names of folders"),
            ("mode: MUTUAL, credentialName: a, caCertCredentialName: ..", "is the name of a folder"),
            ("mode: MUTUAL, credentialName: a, caCrl: crl", "its file ca.crl"),
            ("mode: SIMPLE, serverCertificate: c, privateKey: k, caCrl: crl", "excludes SIMPLE"),
            ("mode: MUTUAL, credentialName: a, subjectAltNames: [a@b.c]", "not as mail addresses"),
            ("mode: ISTIO_MUTUAL, credentialName: a", "excludes ISTIO_MUTUAL"),
            ("mode: ISTIO_MUTUAL, caCrl: a", "excludes ISTIO_MUTUAL"),
            ("mode: ISTIO_MUTUAL, maxProtocolVersion: TLSV1_2", "is TLS 1.3"),
            ("mode: ISTIO_MUTUAL, subjectAltNames: [front]", "never the name of a workload"),
        ] {
            let (problems, _) = tls(text);
            assert!(problems.iter().any(|problem| problem.contains(want)), "{text}: {problems:#?}");
        }
    }
}
