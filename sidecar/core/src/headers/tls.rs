//! `%REQUESTED_SERVER_NAME%`, `%DOWNSTREAM_TLS_...%` and `%DOWNSTREAM_PEER_...%`: the TLS that a gateway terminated.
//! They are empty for requests without TLS (from an application to its own sidecar, or at a plaintext port), as in
//! Envoy.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::start_time::Format;
use super::template::Context;

/// The client's original authority, set by an earlier proxy that rewrote it.
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");

/// TLS terminated by this proxy.
#[derive(Debug)]
pub struct Tls {
    /// The server name in the ClientHello; may be empty.
    pub server_name: String,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by OpenSSL's name.
    pub cipher: Cow<'static, str>,
    /// The group of the key exchange by BoringSSL's name.
    pub group: Cow<'static, str>,
    /// The client's certificate, if it presented one and it was verified.
    pub peer: Option<Peer>,
}

/// A client's certificate, parsed on first use: at most once per connection.
#[derive(Debug)]
pub struct Peer {
    /// DER of the certificate.
    pub der: Box<[u8]>,
    /// Parser; `None`: the certificate is malformed.
    pub read: fn(&[u8]) -> Option<Certificate>,
    /// Cached result of the parser.
    pub certificate: OnceLock<Option<Certificate>>,
}

/// Properties of a certificate for formatters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The subject in the form of RFC 2253.
    pub subject: String,
    /// The issuer in the same form.
    pub issuer: String,
    /// Alternative names of the kind URI.
    pub uris: Vec<String>,
    /// Alternative names of the kind DNS.
    pub names: Vec<String>,
    /// Alternative names of the kind IP.
    pub addresses: Vec<String>,
    /// Alternative names of the kind email.
    pub mails: Vec<String>,
    /// SHA-256 of the DER in lower-case hexadecimal.
    pub sha256: String,
    /// SHA-1 of the DER in lower-case hexadecimal.
    pub sha1: String,
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// The PEM, percent-encoded.
    pub pem: String,
    /// Start of the validity.
    pub start: SystemTime,
    /// End of the validity.
    pub end: SystemTime,
}

/// A property of the downstream's TLS.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Field {
    ServerName(Name),
    Version,
    Cipher,
    Group,
    Subject,
    Issuer,
    Uris,
    Names,
    Addresses,
    Mails,
    Sha256,
    Sha1,
    Serial,
    Pem,
    Start(Format),
    End(Format),
}

/// The order of `REQUESTED_SERVER_NAME(order:host)`, and the source of the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Name {
    Only,
    First(Host),
    Last(Host),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Host {
    Original,
    Authority,
    OriginalOrAuthority,
}

impl Field {
    /// A formatter with neither argument nor length.
    pub(super) fn plain(name: &str) -> Option<Field> {
        Some(match name {
            "DOWNSTREAM_TLS_VERSION" => Field::Version,
            "DOWNSTREAM_TLS_CIPHER" => Field::Cipher,
            "DOWNSTREAM_TLS_GROUP" => Field::Group,
            "DOWNSTREAM_PEER_SUBJECT" => Field::Subject,
            "DOWNSTREAM_PEER_ISSUER" => Field::Issuer,
            "DOWNSTREAM_PEER_URI_SAN" => Field::Uris,
            "DOWNSTREAM_PEER_DNS_SAN" => Field::Names,
            "DOWNSTREAM_PEER_IP_SAN" => Field::Addresses,
            "DOWNSTREAM_PEER_EMAIL_SAN" => Field::Mails,
            "DOWNSTREAM_PEER_FINGERPRINT_256" => Field::Sha256,
            "DOWNSTREAM_PEER_FINGERPRINT_1" => Field::Sha1,
            "DOWNSTREAM_PEER_SERIAL" => Field::Serial,
            "DOWNSTREAM_PEER_CERT" => Field::Pem,
            _ => return None,
        })
    }

    /// Whether the value may come from a request header.
    pub(super) fn reads_headers(&self) -> bool {
        let of_header = |host: &Host| *host != Host::Authority;
        matches!(self, Field::ServerName(Name::First(host) | Name::Last(host)) if of_header(host))
    }

    /// The text; empty if there is none.
    pub(super) fn of<'a>(&self, headers: &'a HeaderMap, context: &Context<'a>) -> Cow<'a, [u8]> {
        let tls = context.tls;
        let name = || tls.map_or(&b""[..], |tls| tls.server_name.as_bytes());
        match self {
            Field::ServerName(Name::Only) => return Cow::Borrowed(name()),
            Field::ServerName(Name::First(host)) => return Cow::Borrowed(first(name(), host.of(headers, context))),
            Field::ServerName(Name::Last(host)) => return Cow::Borrowed(first(host.of(headers, context), name())),
            _ => {}
        }
        tls.map_or_else(Default::default, |tls| self.of_tls(tls))
    }

    fn of_tls<'a>(&self, tls: &'a Tls) -> Cow<'a, [u8]> {
        let of_connection = match self {
            Field::Version => Some(tls.version),
            Field::Cipher => Some(&*tls.cipher),
            Field::Group => Some(&*tls.group),
            _ => None,
        };
        if let Some(text) = of_connection {
            return Cow::Borrowed(text.as_bytes());
        }
        let Some(peer) = tls.peer.as_ref().and_then(Peer::certificate) else { return Cow::default() };
        let text = match self {
            Field::Subject => &peer.subject,
            Field::Issuer => &peer.issuer,
            Field::Sha256 => &peer.sha256,
            Field::Sha1 => &peer.sha1,
            Field::Serial => &peer.serial,
            Field::Pem => &peer.pem,
            Field::Uris => return Cow::Owned(peer.uris.join(",").into_bytes()),
            Field::Names => return Cow::Owned(peer.names.join(",").into_bytes()),
            Field::Addresses => return Cow::Owned(peer.addresses.join(",").into_bytes()),
            Field::Mails => return Cow::Owned(peer.mails.join(",").into_bytes()),
            Field::Start(format) => return Cow::Owned(format.text(peer.start).into_bytes()),
            Field::End(format) => return Cow::Owned(format.text(peer.end).into_bytes()),
            Field::ServerName(_) | Field::Version | Field::Cipher | Field::Group => return Cow::default(),
        };
        Cow::Borrowed(text.as_bytes())
    }
}

fn first<'a>(one: &'a [u8], other: &'a [u8]) -> &'a [u8] {
    if one.is_empty() { other } else { one }
}

impl Name {
    /// Parses the argument of `REQUESTED_SERVER_NAME`.
    pub(super) fn parse(argument: &str) -> Option<Name> {
        let (order, host) = argument.split_once(':').unwrap_or((argument, ""));
        let host = match host {
            "" | "ORIG_OR_HOST" => Host::OriginalOrAuthority,
            "ORIG" => Host::Original,
            "HOST" => Host::Authority,
            _ => return None,
        };
        match order {
            "" | "SNI_ONLY" => Some(Name::Only),
            "SNI_FIRST" => Some(Name::First(host)),
            "HOST_FIRST" => Some(Name::Last(host)),
            _ => None,
        }
    }
}

impl Host {
    fn of<'a>(self, headers: &'a HeaderMap, context: &Context<'a>) -> &'a [u8] {
        let original = headers.get(ORIGINAL_HOST).map(HeaderValue::as_bytes);
        match self {
            Host::Original => original.unwrap_or_default(),
            Host::Authority => context.authority.as_bytes(),
            Host::OriginalOrAuthority => original.unwrap_or(context.authority.as_bytes()),
        }
    }
}

impl Peer {
    fn certificate(&self) -> Option<&Certificate> {
        self.certificate.get_or_init(|| (self.read)(&self.der)).as_ref()
    }
}
