//! `tls` of a Gateway's server: the certificates with which TLS is terminated, and the callers that are accepted.

use weft_core::gateway::CIPHER_SUITES;
use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, not_yet, object, read};

/// Its fields.
pub(super) const SHAPE: Shape = &[
    read("mode"),
    read("httpsRedirect"),
    read("serverCertificate"),
    read("privateKey"),
    read("caCertificates"),
    read("caCrl"),
    read("credentialName"),
    read("credentialNames"),
    object("tlsCertificates", &[read("serverCertificate"), read("privateKey")]),
    read("caCertCredentialName"),
    read("subjectAltNames"),
    read("minProtocolVersion"),
    read("maxProtocolVersion"),
    read("cipherSuites"),
    not_yet("verifyCertificateSpki"),
    not_yet("verifyCertificateHash"),
];
/// Fields that name certificates, valid only if TLS is terminated with the gateway's own files.
pub(super) const CERTIFICATES: [&str; 8] = [
    "credentialName",
    "credentialNames",
    "tlsCertificates",
    "serverCertificate",
    "privateKey",
    "caCertificates",
    "caCertCredentialName",
    "caCrl",
];
/// The alternatives for a server's certificate, of which exactly one is given.
const SOURCES: [&str; 4] = ["serverCertificate", "tlsCertificates", "credentialName", "credentialNames"];

/// The handling of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    Simple,
    Mutual,
    /// The mesh's own certificates on both sides.
    IstioMutual,
    /// The enum's first value in Istio: the meaning of a block without a mode.
    #[default]
    Passthrough,
    AutoPassthrough,
}

impl Mode {
    /// Whether TLS is terminated at the gateway.
    pub(super) fn terminates(self) -> bool {
        matches!(self, Mode::Simple | Mode::Mutual | Mode::IstioMutual)
    }
}

pub(super) fn mode(tls: &Fields<'_>) -> Option<Mode> {
    if tls.string("mode").as_deref() == Some("OPTIONAL_MUTUAL") {
        tls.error("mode", "mode OPTIONAL_MUTUAL is not supported yet");
        return None;
    }
    const MODES: &[(&str, Mode)] = &[
        ("SIMPLE", Mode::Simple),
        ("MUTUAL", Mode::Mutual),
        ("ISTIO_MUTUAL", Mode::IstioMutual),
        ("PASSTHROUGH", Mode::Passthrough),
        ("AUTO_PASSTHROUGH", Mode::AutoPassthrough),
    ];
    tls.one_of("mode", MODES)
}

/// The termination of TLS at a server of the protocol HTTPS.
pub(super) fn termination(tls: &Fields<'_>, mode: Mode) -> v1::GatewayTls {
    let (least, most) = (version(tls, "minProtocolVersion"), version(tls, "maxProtocolVersion"));
    if mode == Mode::IstioMutual {
        return of_mesh(tls, most);
    }
    let (tls13_only, tls12_only) = (least == Some(Version::Tls13), most == Some(Version::Tls12));
    if tls13_only && tls12_only {
        tls.error("maxProtocolVersion", "`maxProtocolVersion` is below `minProtocolVersion`");
    }
    if tls13_only && tls.has("cipherSuites") {
        tls.warn("cipherSuites", "`cipherSuites` has no effect: it is of TLS 1.2, and `minProtocolVersion` is TLSV1_3");
    }
    let text = |name: &'static str| tls.string(name).unwrap_or_default();
    let certificates = certificates(tls);
    let mutual = mode == Mode::Mutual;
    if !mutual {
        not_simple(tls);
    }
    let by_name = certificates.first().is_some_and(|first| !first.credential.is_empty());
    let ca_credential = credential(tls, "caCertCredentialName");
    if by_name && tls.has("caCertificates") {
        tls.warn("caCertificates", "`caCertificates` has no effect: the CA is the credential's ca.crt");
    }
    if (by_name || ca_credential.is_some()) && tls.has("caCrl") {
        tls.error("caCrl", "`caCrl` excludes a credential, which has a list of its own: its file ca.crl");
    }
    if mutual && !by_name && ca_credential.is_none() && !tls.has("caCertificates") {
        tls.error_at(tls.place, "mode MUTUAL needs `caCertificates`, the CA of the callers' certificates");
    }
    let of_certificate = || certificates.first().map(|first| first.credential.clone()).unwrap_or_default();
    v1::GatewayTls {
        mutual,
        ca_certificates: text("caCertificates"),
        tls13_only,
        tls12_only: tls12_only && !tls13_only,
        cipher_suites: cipher_suites(tls),
        ca_crl: text("caCrl"),
        ca_credential: ca_credential.unwrap_or_else(of_certificate),
        subject_alt_names: if mutual { caller_names(tls, false) } else { Vec::new() },
        mesh: false,
        certificates,
    }
}

/// ISTIO_MUTUAL.
fn of_mesh(tls: &Fields<'_>, most: Option<Version>) -> v1::GatewayTls {
    for name in CERTIFICATES.into_iter().filter(|name| tls.has(name)) {
        tls.error(name, format!("`{name}` excludes ISTIO_MUTUAL, which has the mesh's own certificates"));
    }
    if most == Some(Version::Tls12) {
        tls.error("maxProtocolVersion", "ISTIO_MUTUAL is TLS 1.3, the only version in the mesh");
    }
    if tls.has("cipherSuites") {
        tls.warn("cipherSuites", "`cipherSuites` has no effect: it is of TLS 1.2, and ISTIO_MUTUAL is TLS 1.3");
    }
    v1::GatewayTls { mutual: true, mesh: true, subject_alt_names: caller_names(tls, true), ..v1::GatewayTls::default() }
}

fn not_simple(tls: &Fields<'_>) {
    if tls.has("caCrl") {
        tls.error("caCrl", "`caCrl` excludes SIMPLE, which requests no client certificate: write MUTUAL");
    }
    for name in ["caCertificates", "caCertCredentialName", "subjectAltNames"].into_iter().filter(|name| tls.has(name)) {
        tls.warn(name, format!("`{name}` has no effect: SIMPLE requests no client certificate, MUTUAL does"));
    }
}

fn certificates(tls: &Fields<'_>) -> Vec<v1::GatewayCertificate> {
    let given: Vec<&'static str> = SOURCES
        .into_iter()
        .filter(|name| tls.has(name) || (*name == "serverCertificate" && tls.has("privateKey")))
        .collect();
    if let [first, .., last] = given[..] {
        let text =
            format!("`{first}` and `{last}` exclude each other: the certificates of a server are given in one way");
        tls.error(if tls.has(first) { first } else { "privateKey" }, text);
    }
    let by_credential = |name: String| v1::GatewayCertificate { credential: name, ..v1::GatewayCertificate::default() };
    match given.last() {
        Some(&"credentialName") => credential(tls, "credentialName").into_iter().map(by_credential).collect(),
        Some(&"credentialNames") => {
            let names = tls.strings("credentialNames");
            for (_, place) in names.iter().filter(|(name, _)| !is_folder(name)) {
                tls.error_at(*place, "`credentialNames` has names of folders in the gateway's --credentials");
            }
            names.into_iter().map(|(name, _)| by_credential(name)).collect()
        }
        Some(&"tlsCertificates") => tls.objects("tlsCertificates").iter().map(files).collect(),
        Some(_) if tls.has("serverCertificate") && tls.has("privateKey") => vec![files(tls)],
        _ => {
            let text = "a certificate is needed: `credentialName`, `credentialNames`, `tlsCertificates`, or `serverCertificate` and \
                        `privateKey` (files of the gateway)";
            tls.error_at(tls.place, text);
            Vec::new()
        }
    }
}

fn files(fields: &Fields<'_>) -> v1::GatewayCertificate {
    v1::GatewayCertificate {
        certificate: fields.required_string("serverCertificate"),
        private_key: fields.required_string("privateKey"),
        credential: String::new(),
    }
}

fn is_folder(name: &str) -> bool {
    !name.contains(['/', '\\']) && !matches!(name, "" | "." | "..")
}

fn credential(tls: &Fields<'_>, field: &'static str) -> Option<String> {
    let name = tls.string(field)?;
    if !is_folder(&name) {
        tls.error(field, format!("`{field}` is the name of a folder in the gateway's --credentials"));
    }
    Some(name)
}

/// `subjectAltNames`; `mesh`: of workloads.
fn caller_names(tls: &Fields<'_>, mesh: bool) -> Vec<String> {
    let names = tls.strings("subjectAltNames");
    for (name, place) in &names {
        if mesh && !name.starts_with(weft_core::identity::SCHEME) {
            let text = format!(
                "`{name}` is never the name of a workload, which is spiffe://<trust domain>/ns/<namespace>/sa/<account>"
            );
            tls.error_at(*place, text);
        } else if name.contains('@') && !name.contains("://") {
            tls.error_at(
                *place,
                format!("`{name}`: names of certificates are compared as URIs and hosts, not as mail addresses"),
            );
        }
    }
    names.into_iter().map(|(name, _)| name).collect()
}

/// Versions that may be a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

fn version(tls: &Fields<'_>, field: &'static str) -> Option<Version> {
    const VERSIONS: &[(&str, Option<Version>)] =
        &[("TLS_AUTO", None), ("TLSV1_2", Some(Version::Tls12)), ("TLSV1_3", Some(Version::Tls13))];
    if let Some(old) = tls.string(field).filter(|text| matches!(text.as_str(), "TLSV1_0" | "TLSV1_1")) {
        tls.error(field, format!("{old} is not supported, as it is not secure (RFC 8996): write TLSV1_2 or TLSV1_3"));
        return None;
    }
    tls.one_of(field, VERSIONS).flatten()
}

fn cipher_suites(tls: &Fields<'_>) -> Vec<String> {
    let mut suites: Vec<String> = Vec::new();
    for (name, place) in tls.strings("cipherSuites") {
        if !CIPHER_SUITES.iter().any(|(known, _)| *known == name) {
            let known: Vec<&str> = CIPHER_SUITES.iter().map(|(known, _)| *known).collect();
            let why = match name.starts_with("TLS_") {
                true => "the suites of TLS 1.3 are always on, those of TLS 1.2 have OpenSSL's names",
                false => "only suites with forward secrecy and authenticated encryption are",
            };
            tls.error_at(place, format!("cipher suite `{name}` is not supported: {why} ({})", known.join(", ")));
        } else if suites.contains(&name) {
            tls.warn("cipherSuites", format!("cipher suite `{name}` is there twice"));
        } else {
            suites.push(name);
        }
    }
    suites
}
