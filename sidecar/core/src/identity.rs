//! SPIFFE identities of workloads: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//!
//! Parsed and checked once, where an identity enters (a certificate, a message), so that all other code compares
//! identities and never strings. Stored as one shared string with two offsets: an endpoint costs one pointer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The identity of a workload. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    // Byte offsets in `uri`: the trust domain ends where "/ns/" starts.
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Reason why a string is not an identity of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identity of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>: {0}")]
pub struct IdentityError(&'static str);

/// Begin of every SPIFFE ID. A trust domain alone is its root's identity.
pub const SCHEME: &str = "spiffe://";
/// Namespace and service account of the control plane.
const CONTROL_PLANE: (&str, &str) = ("weft-system", "weft-control-plane");
/// Maximum length of an identity in the SPIFFE specification, in bytes.
const MAX_LENGTH: usize = 2048;

/// The text of an identity with these parts, not checked.
pub fn uri(trust_domain: &str, namespace: &str, service_account: &str) -> String {
    format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")
}

impl SpiffeId {
    /// Composes an identity from its parts; fails as [`FromStr`] does.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        uri(trust_domain, namespace, service_account).parse()
    }

    /// The identity of the control plane of a trust domain; fails as [`FromStr`] does.
    pub fn control_plane(trust_domain: &str) -> Result<Self, IdentityError> {
        SpiffeId::new(trust_domain, CONTROL_PLANE.0, CONTROL_PLANE.1)
    }

    /// The whole identity, as in the URI SAN of a certificate.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// For example `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The workload's namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.trust_domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    /// The workload's service account.
    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_LENGTH {
            return Err(IdentityError("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError("it does not start with spiffe://"))?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdentityError("it has no path"))?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(IdentityError("the path is not /ns/<namespace>/sa/<service-account>"));
        };
        let is_domain_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if trust_domain.is_empty() || trust_domain.len() > 255 || !trust_domain.bytes().all(is_domain_byte) {
            return Err(IdentityError("the trust domain may have a-z, 0-9, '.', '-' and '_' only"));
        }
        for segment in [namespace, service_account] {
            let is_segment_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(is_segment_byte) {
                return Err(IdentityError(
                    "a namespace or service account may have letters, digits, '.', '-' and '_' only",
                ));
            }
        }
        // The casts are lossless: the text is at most 2048 bytes long.
        let trust_domain_end = (SCHEME.len() + trust_domain.len()) as u16;
        let namespace_end = trust_domain_end + ("/ns/".len() + namespace.len()) as u16;
        Ok(SpiffeId { uri: text.into(), trust_domain_end, namespace_end })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identity_is_split_into_its_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "order"));
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "order").unwrap());
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/order");
    }

    #[test]
    fn malformed_identities_are_refused() {
        for text in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://cluster.local/ns/a%2f/sa/b",
            "spiffe://cluster.local/sa/b/ns/a",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
        assert!(SpiffeId::new("a", &"n".repeat(2048), "b").is_err());
    }

    proptest! {
        #[test]
        fn accepted_identities_are_displayed_unchanged(text in "(spiffe://)?[a-z./-]{0,40}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).unwrap(), id);
            }
        }
    }
}
