//! `tls`: the mesh's own, none, or TLS to a service outside the mesh.

use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, read};
use crate::names;

/// Its fields.
pub(super) const SHAPE: Shape = &[
    read("mode"),
    read("sni"),
    read("subjectAltNames"),
    read("caCertificates"),
    read("clientCertificate"),
    read("privateKey"),
    read("insecureSkipVerify"),
    read("credentialName"),
    read("caCrl"),
];

/// How connections are secured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientTls {
    /// The mode.
    pub mode: v1::Tls,
    /// Settings of [`v1::Tls::Originate`].
    pub origination: Option<v1::TlsOrigination>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Disable,
    IstioMutual,
    Simple,
    Mutual,
}

/// Reads it. `selected`: the rule has a `workloadSelector`.
pub(super) fn decode(fields: &Fields<'_>, selected: bool) -> ClientTls {
    const MODES: &[(&str, Mode)] = &[
        ("DISABLE", Mode::Disable),
        ("ISTIO_MUTUAL", Mode::IstioMutual),
        ("SIMPLE", Mode::Simple),
        ("MUTUAL", Mode::Mutual),
    ];
    // The enum's first value, as in Istio: a block without a mode switches TLS off.
    let mode = fields.one_of("mode", MODES).unwrap_or(Mode::Disable);
    let of_client = ["clientCertificate", "privateKey"];
    let of_server = ["sni", "subjectAltNames", "caCertificates", "caCrl", "credentialName", "insecureSkipVerify"];
    let credential = fields.has("credentialName");
    match mode {
        Mode::Mutual | Mode::Simple if credential => of_credential(fields, selected),
        Mode::Mutual => of_client.into_iter().for_each(|name| fields.require(name)),
        Mode::Simple => useless(fields, &of_client, "SIMPLE presents no certificate: write MUTUAL"),
        Mode::IstioMutual => {
            for name in of_client
                .into_iter()
                .chain(["caCertificates", "caCrl", "credentialName"])
                .filter(|name| fields.has(name))
            {
                fields.error(name, format!("`{name}` excludes ISTIO_MUTUAL, which has the mesh's own certificates"));
            }
            useless(
                fields,
                &["sni", "subjectAltNames", "insecureSkipVerify"],
                "ISTIO_MUTUAL verifies the mesh's identities",
            );
        }
        Mode::Disable => useless(fields, &[of_server.as_slice(), &of_client].concat(), "the mode is DISABLE"),
    }
    let origination = match mode {
        Mode::Simple => Some(simple(fields)),
        Mode::Mutual if credential => Some(v1::TlsOrigination { show_credential: true, ..simple(fields) }),
        Mode::Mutual => Some(v1::TlsOrigination {
            client_certificate: fields.string("clientCertificate").unwrap_or_default(),
            private_key: fields.string("privateKey").unwrap_or_default(),
            ..simple(fields)
        }),
        Mode::Disable | Mode::IstioMutual => None,
    };
    if origination.as_ref().is_some_and(|tls| tls.insecure_skip_verify && !tls.show_credential) {
        useless(fields, &["credentialName"], "`insecureSkipVerify` accepts any certificate");
    }
    let mode = match mode {
        Mode::Disable => v1::Tls::Disable,
        Mode::IstioMutual => v1::Tls::IstioMutual,
        Mode::Simple | Mode::Mutual => v1::Tls::Originate,
    };
    ClientTls { mode, origination }
}

/// Reads a credential, which replaces the files and has the same rules as a gateway's.
fn of_credential(fields: &Fields<'_>, selected: bool) {
    let files = ["clientCertificate", "privateKey", "caCertificates", "caCrl"];
    for name in files.into_iter().filter(|name| fields.has(name)) {
        fields.error(name, format!("`{name}` and `credentialName` exclude each other: a credential has its own files"));
    }
    let name = fields.node("credentialName").and_then(|node| node.as_str());
    if name.is_some_and(|name| name.contains(['/', '\\']) || matches!(name, "" | "." | "..")) {
        fields.error("credentialName", "`credentialName` is the name of a folder in the sidecar's --credentials");
    }
    if !selected {
        let text = "`credentialName` needs a `workloadSelector` in the rule, as in Istio: a credential is on the disk of certain \
                    workloads";
        fields.error("credentialName", text);
    }
}

fn useless(fields: &Fields<'_>, names: &[&'static str], why: &str) {
    for name in names.iter().filter(|name| fields.has(name)) {
        fields.warn(name, format!("`{name}` has no effect: {why}"));
    }
}

/// The fields that SIMPLE and MUTUAL have in common.
fn simple(fields: &Fields<'_>) -> v1::TlsOrigination {
    let sni = fields.string("sni").unwrap_or_default();
    if !sni.is_empty() && !names::is_host(&sni) {
        fields.error("sni", format!("`{sni}` is not a host name"));
    }
    let skip = fields.boolean("insecureSkipVerify").unwrap_or_default();
    if skip {
        useless(
            fields,
            &["caCertificates", "caCrl", "subjectAltNames"],
            "`insecureSkipVerify` accepts any certificate",
        );
    }
    v1::TlsOrigination {
        sni,
        subject_alt_names: fields.strings("subjectAltNames").into_iter().map(|(name, _)| name).collect(),
        // Istio's name for the system's roots, which are the default.
        ca_certificates: fields.string("caCertificates").filter(|file| file != "system").unwrap_or_default(),
        insecure_skip_verify: skip,
        ca_crl: fields.string("caCrl").unwrap_or_default(),
        credential_name: fields.string("credentialName").unwrap_or_default(),
        ..v1::TlsOrigination::default()
    }
}
