//! Values of header formatters for terminated TLS: the connection's, and the client certificate's in Envoy's form.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, ServerConnection};
use rustls_pki_types::CertificateDer;
use weft_core::gateway::CIPHER_SUITES;
use weft_core::headers::{Certificate, Peer, Tls};
use weft_core::hex;
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{ASN1Time, X509Certificate, X509Name, parse_x509_certificate};

/// Of the characters of a PEM, these are encoded: all but the dashes of its first and last line.
const OF_PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');

/// The properties of a connection after its handshake. `server_name`: the client's.
pub(super) fn tls(connection: &ServerConnection, server_name: &str, leaf: Option<&CertificateDer<'_>>) -> Tls {
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    };
    Tls {
        server_name: server_name.to_owned(),
        version,
        cipher: connection.negotiated_cipher_suite().map(|suite| cipher(suite.suite())).unwrap_or_default(),
        group: connection.negotiated_key_exchange_group().map(|group| self::group(group.name())).unwrap_or_default(),
        peer: leaf.map(|leaf| Peer { der: leaf.as_ref().into(), read, certificate: OnceLock::new() }),
    }
}

/// A suite by OpenSSL's name, which for TLS 1.3 is IANA's.
fn cipher(suite: CipherSuite) -> Cow<'static, str> {
    let number = u16::from(suite);
    match CIPHER_SUITES.iter().find(|(_, of)| *of == number) {
        Some((name, _)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("{suite:?}").replacen("TLS13_", "TLS_", 1)),
    }
}

/// A group by BoringSSL's name.
fn group(group: NamedGroup) -> Cow<'static, str> {
    match group {
        NamedGroup::secp256r1 => Cow::Borrowed("P-256"),
        NamedGroup::secp384r1 => Cow::Borrowed("P-384"),
        NamedGroup::secp521r1 => Cow::Borrowed("P-521"),
        other => Cow::Owned(format!("{other:?}")),
    }
}

/// Reads a certificate's DER; `None`: it cannot be read.
fn read(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = parse_x509_certificate(der).ok()?;
    let digest = |algorithm| hex::encode(digest::digest(algorithm, der).as_ref());
    let line_feeds = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let pem = pem::encode_config(&pem::Pem::new("CERTIFICATE", der), line_feeds);
    let mut certificate = Certificate {
        subject: distinguished_name(parsed.subject()),
        issuer: distinguished_name(parsed.issuer()),
        uris: Vec::new(),
        names: Vec::new(),
        addresses: Vec::new(),
        mails: Vec::new(),
        sha256: digest(&digest::SHA256),
        sha1: digest(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        serial: serial(&parsed),
        pem: utf8_percent_encode(&pem, OF_PEM).to_string(),
        start: time(parsed.validity().not_before),
        end: time(parsed.validity().not_after),
    };
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) => certificate.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => certificate.names.push((*name).to_owned()),
            GeneralName::RFC822Name(mail) => certificate.mails.push((*mail).to_owned()),
            GeneralName::IPAddress(bytes) => certificate.addresses.extend(address(bytes).map(|ip| ip.to_string())),
            _ => {}
        }
    }
    Some(certificate)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    let leading = bytes.iter().take_while(|byte| **byte == 0).count();
    let text = hex::encode(&bytes[leading..]);
    if text.is_empty() { "0".to_owned() } else { text }
}

/// A time; one before 1970 is 1970.
fn time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// A distinguished name in the form of RFC 2253: the last part first.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts = name.iter_rdn().map(|part| {
        let attributes = part.iter().map(|attribute| {
            let kind = match oid2abbrev(attribute.attr_type(), oid_registry()) {
                Ok(short) => short.to_owned(),
                Err(_) => attribute.attr_type().to_id_string(),
            };
            format!("{kind}={}", value(attribute.attr_value()))
        });
        attributes.collect::<Vec<_>>().join("+")
    });
    let mut parts: Vec<String> = parts.collect();
    parts.reverse();
    parts.join(",")
}

/// The value of an attribute, escaped (RFC 2253, 2.4); bytes over 0x7f too, as OpenSSL does. Of other types, the bytes.
fn value(any: &Any<'_>) -> String {
    let Ok(text) = std::str::from_utf8(any.data) else { return format!("#{}", hex::encode(any.data)) };
    let mut escaped = String::new();
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let at_end = byte == b' ' && (at == 0 || at == last) || byte == b'#' && at == 0;
        // Writing to a string does not fail.
        let _ = match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => write!(escaped, "\\{}", char::from(byte)),
            _ if at_end => write!(escaped, "\\{}", char::from(byte)),
            0x20..0x7f => write!(escaped, "{}", char::from(byte)),
            _ => write!(escaped, "\\{byte:02X}"),
        };
    }
    escaped
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};
    use weft_identity::certificate::fingerprint;

    use super::*;

    #[test]
    fn a_client_certificate_is_formatted_as_by_envoy() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["one.test".to_owned(), "two.test".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "Ac, \"me\" ü");
        params.distinguished_name.push(DnType::CommonName, " bob");
        params.subject_alt_names.push(SanType::URI("spiffe://mesh/ns/a/sa/bob".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::from([10, 1, 2, 3])));
        params.subject_alt_names.push(SanType::IpAddress("fd00::1".parse().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().unwrap()));
        params.serial_number = Some(SerialNumber::from_slice(&[0, 0x0a, 0xff]));
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2027, 1, 2);
        let made = params.self_signed(&key).unwrap();
        let found = read(made.der()).unwrap();
        assert_eq!(found.subject, "CN=\\ bob,O=Ac\\, \\\"me\\\" \\C3\\BC,C=DE");
        assert_eq!(found.issuer, found.subject);
        assert_eq!(
            (found.names.join(","), found.uris.join(",")),
            ("one.test,two.test".into(), "spiffe://mesh/ns/a/sa/bob".into())
        );
        assert_eq!((found.addresses.join(","), found.mails.join(",")), ("10.1.2.3,fd00::1".into(), "a@b.c".into()));
        assert_eq!(found.serial, "0aff");
        assert_eq!((found.sha256, found.sha1.len()), (hex::encode(&fingerprint(made.der())), 40));
        assert_eq!(found.start, SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_312_000));
        assert!(found.pem.starts_with("-----BEGIN%20CERTIFICATE-----%0AMII"), "{}", found.pem);
        assert!(found.pem.ends_with("-----END%20CERTIFICATE-----%0A"), "{}", found.pem);
        assert!(read(b"none").is_none());
    }

    #[test]
    fn suites_and_groups_have_the_names_of_boringssl() {
        assert_eq!(cipher(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384), "ECDHE-RSA-AES256-GCM-SHA384");
        assert_eq!(cipher(CipherSuite::TLS13_AES_256_GCM_SHA384), "TLS_AES_256_GCM_SHA384");
        assert_eq!((group(NamedGroup::X25519), group(NamedGroup::secp256r1)), ("X25519".into(), "P-256".into()));
        assert_eq!(group(NamedGroup::X25519MLKEM768), "X25519MLKEM768");
    }
}
