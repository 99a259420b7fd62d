//! Gateway: where a load balancer for callers outside the mesh listens, and for which hosts.

use std::collections::{BTreeMap, HashSet};

use weft_proto::v1;

use super::fields::{Fields, Shape, not_yet, object, read};
use super::names;

/// A Gateway's `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Labels of the gateways that this is for; empty: all.
    pub selector: BTreeMap<String, String>,
    /// At least one.
    pub servers: Vec<Server>,
}

/// One entry of `servers`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Empty: none.
    pub name: String,
    /// `port.number`.
    pub port: u32,
    /// `port.protocol`, with what `tls.mode` makes of it.
    pub protocol: v1::GatewayProtocol,
    /// Where TLS ends here.
    pub tls: Option<v1::GatewayTls>,
    /// `tls.httpsRedirect`.
    pub https_redirect: bool,
    /// `tls.mode: AUTO_PASSTHROUGH`: the server name says which exported service is meant.
    pub auto_passthrough: bool,
    /// Namespace (`None`: any) and host: exact, `*.suffix` or `*`.
    pub hosts: Vec<(Option<String>, String)>,
}

const TLS: Shape = &[
    read("mode"),
    read("httpsRedirect"),
    read("serverCertificate"),
    read("privateKey"),
    read("caCertificates"),
    read("credentialName"),
    read("minProtocolVersion"),
    not_yet("maxProtocolVersion"),
    not_yet("credentialNames"),
    not_yet("tlsCertificates"),
    not_yet("caCertCredentialName"),
    not_yet("caCrl"),
    not_yet("subjectAltNames"),
    not_yet("verifyCertificateSpki"),
    not_yet("verifyCertificateHash"),
    not_yet("cipherSuites"),
];
/// Fields of `spec`.
pub(crate) const SHAPE: Shape = &[
    read("selector"),
    object(
        "servers",
        &[
            read("name"),
            object("port", &[read("number"), read("name"), read("protocol"), not_yet("targetPort")]),
            read("hosts"),
            object("tls", TLS),
            not_yet("bind"),
            not_yet("defaultEndpoint"),
        ],
    ),
];

/// Reads `spec`.
pub(crate) fn decode(spec: &Fields<'_>) -> Gateway {
    let selector = spec.labels("selector");
    let servers: Vec<Server> = spec.objects("servers").iter().map(server).collect();
    if servers.is_empty() {
        spec.error("servers", "`servers` must have at least one server");
    }
    let mut named = HashSet::new();
    for port in spec.objects("servers").iter().filter_map(|server| server.object("port")) {
        if let Some(name) = port.string("name").filter(|name| !named.insert(name.clone())) {
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
            let hint = super::nearest::suggest(text, &known, "known are");
            given.error("protocol", format!("unknown protocol `{text}`{hint}"));
        }
    }
    let tls = fields.object("tls");
    let mode = tls.as_ref().and_then(|tls| mode(tls)).unwrap_or_default();
    let terminates = tls.as_ref().is_some_and(|_| matches!(mode, Mode::Simple | Mode::Mutual));
    let https_redirect = tls.as_ref().and_then(|tls| tls.boolean("httpsRedirect")).unwrap_or(false);
    let protocol = match protocol.as_deref().unwrap_or("HTTP") {
        "HTTPS" | "TLS" if tls.is_none() => {
            fields.error_at(fields.place, "`tls` is required for the protocols HTTPS and TLS");
            v1::GatewayProtocol::GatewayTls
        }
        "HTTPS" if matches!(mode, Mode::Passthrough | Mode::AutoPassthrough) => v1::GatewayProtocol::GatewayTls,
        "HTTPS" => v1::GatewayProtocol::GatewayHttps,
        "TLS" if terminates => {
            let text = "TLS that ends at the gateway with bytes inside is not supported yet: `protocol: HTTPS` has HTTP inside";
            fields.error("tls", text);
            v1::GatewayProtocol::GatewayTls
        }
        "TLS" => v1::GatewayProtocol::GatewayTls,
        "TCP" => v1::GatewayProtocol::GatewayTcp,
        _ => v1::GatewayProtocol::GatewayHttp,
    };
    let plain = matches!(protocol, v1::GatewayProtocol::GatewayHttp | v1::GatewayProtocol::GatewayTcp);
    if let Some(tls) = tls.as_ref().filter(|_| plain)
        && (!https_redirect || ["serverCertificate", "privateKey", "credentialName"].iter().any(|name| tls.has(name)))
    {
        fields.error("tls", "`tls` of a plaintext server may only have `httpsRedirect: true`");
    }
    if https_redirect && protocol != v1::GatewayProtocol::GatewayHttp {
        fields.warn("tls", "`httpsRedirect` has no effect but on servers of the protocol HTTP");
    }
    if let Some(tls) = tls.as_ref().filter(|_| protocol == v1::GatewayProtocol::GatewayTls) {
        let certificates = ["credentialName", "serverCertificate", "privateKey", "caCertificates"];
        for name in certificates.into_iter().filter(|name| tls.has(name)) {
            let text = format!(
                "`{name}` has no effect: without `mode: SIMPLE` or MUTUAL the gateway passes TLS on as it comes"
            );
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
        let named = namespace.as_deref().is_none_or(|namespace| namespace == "." || names::is_label(namespace));
        if !named || (host != "*" && !names::is_host_or_wildcard(&host)) {
            fields.error_at(place, format!("`{text}` is not a host: [namespace/]name, *.suffix or *"));
        } else if host != "*" && !host.contains('.') {
            fields.error_at(place, format!("`{text}`: {}", names::NOT_SHORT));
        }
        hosts.push((namespace, host.to_ascii_lowercase()));
    }
    let auto_passthrough = protocol == v1::GatewayProtocol::GatewayTls && mode == Mode::AutoPassthrough;
    let name = fields.string("name").unwrap_or_default();
    let https_redirect = https_redirect && protocol == v1::GatewayProtocol::GatewayHttp;
    Server { name, port, protocol, tls, https_redirect, auto_passthrough, hosts }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    Simple,
    Mutual,
    /// The enum's first value in Istio: what a block without a mode means.
    #[default]
    Passthrough,
    AutoPassthrough,
}

fn mode(tls: &Fields<'_>) -> Option<Mode> {
    for name in ["ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] {
        if tls.string("mode").as_deref() == Some(name) {
            tls.error("mode", format!("mode {name} is not supported yet"));
            return None;
        }
    }
    const MODES: &[(&str, Mode)] = &[
        ("SIMPLE", Mode::Simple),
        ("MUTUAL", Mode::Mutual),
        ("PASSTHROUGH", Mode::Passthrough),
        ("AUTO_PASSTHROUGH", Mode::AutoPassthrough),
    ];
    tls.one_of("mode", MODES)
}

fn termination(tls: &Fields<'_>, mode: Mode) -> v1::GatewayTls {
    let text = |name: &'static str| tls.string(name).unwrap_or_default();
    let found = v1::GatewayTls {
        mutual: mode == Mode::Mutual,
        server_certificate: text("serverCertificate"),
        private_key: text("privateKey"),
        ca_certificates: text("caCertificates"),
        credential_name: text("credentialName"),
        tls13_only: tls
            .one_of("minProtocolVersion", &[("TLS_AUTO", false), ("TLSV1_2", false), ("TLSV1_3", true)])
            .unwrap_or(false),
    };
    let files = !found.server_certificate.is_empty() && !found.private_key.is_empty();
    if !found.credential_name.is_empty() {
        for name in ["serverCertificate", "privateKey"].into_iter().filter(|name| tls.has(name)) {
            tls.error(
                name,
                format!("`{name}` and `credentialName` exclude each other: a credential has its own files"),
            );
        }
    }
    if found.credential_name.is_empty() && !files {
        let text =
            "a certificate is needed: `credentialName`, or `serverCertificate` and `privateKey` (files of the gateway)";
        tls.error_at(tls.place, text);
    }
    if found.credential_name.contains(['/', '\\']) || found.credential_name == ".." {
        tls.error("credentialName", "`credentialName` is the name of a folder in the gateway's --credentials");
    }
    if found.mutual && found.credential_name.is_empty() && found.ca_certificates.is_empty() {
        tls.error_at(tls.place, "mode MUTUAL needs `caCertificates`, the CA of the callers' certificates");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Object, Parsed, parse};

    fn read(servers: &str) -> Parsed {
        let head =
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {istio: g}\n";
        parse("f.yaml", &format!("{head}  servers:\n{servers}"))
    }

    #[test]
    fn what_is_spoken_follows_from_protocol_and_mode() {
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
    fn what_is_wrong_is_told() {
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
            (format!("{port}, hosts: [a], tls: {{mode: ISTIO_MUTUAL}}"), "mode ISTIO_MUTUAL is not supported yet"),
            (format!("{port}, hosts: [a b], tls: {{credentialName: a}}"), "`a b` is not a host"),
            (format!("{port}, hosts: [], tls: {{credentialName: a}}"), "hosts` is required and must not be empty"),
            ("port: {number: 1, protocol: HTTP}, hosts: [a], tls: {credentialName: c}".to_owned(), "plaintext server"),
            ("port: {number: 1, protocol: HTTP}, hosts: [a], bind: 1.2.3.4".to_owned(), "is not supported yet"),
        ] {
            let problems = read(&format!("  - {{{server}}}\n")).problems;
            let found = problems.iter().any(|problem| problem.to_string().contains(want));
            assert!(found, "{server}: {problems:#?}");
        }
    }
}
