//! Conflicts between Gateways: servers that cannot share a port, two servers for one host, one certificate in two
//! places.
//!
//! Only Gateways that one workload may have count: their selectors require no label with two different values. Of very
//! many on one port only the first are compared, so that the time stays linear.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use weft_proto::v1::{GatewayCertificate, GatewayProtocol};

use crate::{Code, Document, Finding, Gateway, Object, Server};

/// Bound on the servers that a server is compared with.
const MOST: usize = 50;

/// Findings of this module; `documents` are sorted by age.
pub(super) fn check<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    let mut ports: HashMap<u32, Vec<At<'a>>> = HashMap::new();
    let mut hosts: HashMap<(Option<IpAddr>, u32, &str), Vec<At<'a>>> = HashMap::new();
    let mut certificates: HashMap<String, Vec<At<'a>>> = HashMap::new();
    for document in documents {
        let Object::Gateway(gateway) = &document.object else { continue };
        for (n, server) in gateway.servers.iter().enumerate() {
            let at = At { document, gateway, server, n };
            let of_port = ports.entry(server.port).or_default();
            let conflict = at.cannot_share_with(of_port);
            remember(of_port, at);
            if let Some(text) = conflict {
                findings.push(Finding::error(document, format!("servers[{n}].port"), Code::ConflictingGateways, text));
                continue;
            }
            for (m, (namespace, host)) in server.hosts.iter().enumerate() {
                let of_host = hosts.entry((server.bind, server.port, host)).or_default();
                let same = |other: &At<'_>| {
                    other
                        .server
                        .hosts
                        .iter()
                        .any(|(ns, name)| name == host && (ns == namespace || ns.is_none() || namespace.is_none()))
                };
                if let Some(other) = at.conflict(of_host, same) {
                    let text =
                        format!("host `{host}` of port {} is that of {} already", server.port, other.reference());
                    let path = format!("servers[{n}].hosts[{m}]");
                    // Routes of plaintext servers are joined; TLS is terminated in one way only.
                    findings.push(match at.spoken() {
                        "HTTP" => Finding::warning(document, path, Code::ConflictingGateways, text),
                        _ => Finding::error(document, path, Code::ConflictingGateways, text),
                    });
                }
                remember(of_host, at);
            }
            same_certificate(at, &mut certificates, &mut findings);
        }
    }
    findings
}

/// Finds other servers that present a certificate of this one.
fn same_certificate<'a>(at: At<'a>, all: &mut HashMap<String, Vec<At<'a>>>, findings: &mut Vec<Finding<'a>>) {
    for (field, certificate) in named_certificates(at.server) {
        let of_certificate = all.entry(certificate).or_default();
        if let Some(other) = at.conflict(of_certificate, |_| true) {
            let text = format!(
                "the certificate is that of {} too: clients that keep an HTTP/2 connection may use it for both, and be \
                 answered 404 or 421",
                other.reference()
            );
            let path = format!("servers[{}].tls.{field}", at.n);
            findings.push(Finding::warning(at.document, path, Code::DuplicateCertificate, text));
        }
        remember(of_certificate, at);
    }
}

/// Whether two sockets of one port exclude each other though their addresses differ: one would take the other's
/// connections.
fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    let takes = |one: Option<IpAddr>, other: Option<IpAddr>| match (one, other) {
        (None, _) => true,
        (Some(one), Some(other)) => one.is_unspecified() && one.is_ipv4() == other.is_ipv4(),
        (Some(_), None) => false,
    };
    one != other && (takes(one, other) || takes(other, one))
}

fn remember<'a>(others: &mut Vec<At<'a>>, at: At<'a>) {
    if others.len() < MOST {
        others.push(at);
    }
}

/// The fields that name a server's certificates, and their values.
fn named_certificates(server: &Server) -> Vec<(&'static str, String)> {
    let all = server.tls.as_ref().map(|tls| tls.certificates.as_slice()).unwrap_or_default();
    let several = all.len() > 1;
    let one = |certificate: &GatewayCertificate| match &*certificate.credential {
        "" => {
            let field = if several { "tlsCertificates" } else { "serverCertificate" };
            (field, format!("file {}", certificate.certificate))
        }
        name => (if several { "credentialNames" } else { "credentialName" }, format!("credential {name}")),
    };
    all.iter().map(one).collect()
}

/// A server and its place.
#[derive(Clone, Copy)]
struct At<'a> {
    document: &'a Document,
    gateway: &'a Gateway,
    server: &'a Server,
    n: usize,
}

impl<'a> At<'a> {
    /// The first of the other servers that a workload may have beside it and for which `wrong` holds.
    fn conflict<'o>(&self, others: &'o [At<'a>], wrong: impl Fn(&At<'a>) -> bool) -> Option<&'o At<'a>> {
        others
            .iter()
            .find(|other| meet(&self.gateway.selector, &other.gateway.selector) && !self.is(other) && wrong(other))
    }

    /// The reason why it cannot share its port number with another server.
    fn cannot_share_with(&self, others: &[At<'a>]) -> Option<String> {
        let (port, bind) = (self.server.port, self.server.bind);
        if let Some(other) = self.conflict(others, |at| at.server.bind == bind && at.spoken() != self.spoken()) {
            let (here, there, reference) = (self.spoken(), other.spoken(), other.reference());
            return Some(format!(
                "port {port} speaks {here} here and {there} at {reference}: the younger is not served"
            ));
        }
        let other = self.conflict(others, |at| overlap(at.server.bind, bind))?;
        Some(format!(
            "port {port} cannot be opened at all addresses and at one of them, as {} has it: the younger is not served",
            other.reference()
        ))
    }

    /// Whether both are the same server: two versions of one object are reported as duplicates elsewhere.
    fn is(&self, other: &At<'_>) -> bool {
        let key = |at: &At<'a>| (at.document.namespace.clone(), at.document.name.clone());
        !std::ptr::eq(self.document, other.document)
            && key(self) == (other.document.namespace.clone(), other.document.name.clone())
    }

    /// The group of protocols that exclude others on a port.
    fn spoken(&self) -> &'static str {
        match self.server.protocol {
            GatewayProtocol::GatewayHttp => "HTTP",
            // Server names distinguish terminated from passed-through connections.
            GatewayProtocol::GatewayHttps | GatewayProtocol::GatewayTls => "TLS",
            GatewayProtocol::GatewayTcp => "TCP",
        }
    }

    fn reference(&self) -> String {
        format!("`servers[{}]` of {}", self.n, self.document.reference())
    }
}

/// Whether a workload can have all labels of both.
fn meet(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> bool {
    one.iter().all(|(name, value)| other.get(name).is_none_or(|other| other == value))
}
