//! The mesh's roots, in the form of Consul's `connect/ca/roots`: for programs that verify certificates themselves.
//!
//! The mesh's identities (`spiffe://<trust domain>/ns/<namespace>/sa/<account>`) differ from those that Consul's
//! connect clients expect (`.../ns/<namespace>/dc/<datacenter>/svc/<service>`).

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::identity::ca::Ca;

/// The public part of the authority.
pub struct Roots {
    trust_domain: String,
    root: Value,
    id: String,
}

impl Roots {
    /// The roots of this authority.
    pub fn of(ca: &Ca) -> Roots {
        let root = ca.root();
        let id = hex(&ca.fingerprint(), ":");
        Roots { trust_domain: ca.trust_domain().to_owned(), root: shape(root, ca.root_pem(), &id), id }
    }

    /// `connect/ca/roots`. They do not change while the control plane runs: a blocking query always waits for its whole
    /// time.
    pub(super) async fn answer(&self, query: &Query) -> Result<Reply, weft_registry_api::error::ApiError> {
        if let Some((1, wait)) = query.block().map_err(weft_registry_api::error::ApiError::bad_request)? {
            tokio::time::sleep(wait).await;
        }
        let body = json!({ "ActiveRootID": self.id, "TrustDomain": self.trust_domain, "Roots": [self.root] });
        let pem = query.has("pem").then(|| self.root["RootCert"].as_str().unwrap_or_default().to_owned());
        let mut reply = match pem {
            Some(pem) => {
                let mut reply = reply::text(pem);
                reply::set(&mut reply, "content-type", "application/pem-certificate-chain");
                reply
            }
            None => reply::json(&body, query),
        };
        reply::index_headers(&mut reply, 1, query);
        Ok(reply)
    }
}

fn shape(root: &CertificateDer<'_>, pem: String, id: &str) -> Value {
    let parsed = x509_parser::parse_x509_certificate(root).ok().map(|(_, parsed)| parsed);
    let time = |at: x509_parser::time::ASN1Time| {
        let format = time::format_description::well_known::Rfc3339;
        at.to_datetime().format(&format).unwrap_or_default()
    };
    // A number that JavaScript can represent; Consul's clients only display it.
    let digits = parsed.as_ref().and_then(|parsed| parsed.tbs_certificate.serial.iter_u64_digits().next());
    let serial = digits.unwrap_or_default() & ((1 << 53) - 1);
    let validity = parsed.as_ref().map(|parsed| parsed.validity());
    json!({
        "ID": id,
        "Name": "Weft root",
        "SerialNumber": serial,
        "SigningKeyID": "",
        "ExternalTrustDomain": "",
        "NotBefore": validity.map(|v| time(v.not_before)),
        "NotAfter": validity.map(|v| time(v.not_after)),
        "RootCert": pem,
        "IntermediateCerts": null,
        "Active": true,
        "PrivateKeyType": "ec",
        "PrivateKeyBits": 256,
        "CreateIndex": 1,
        "ModifyIndex": 1,
    })
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn the_root_is_returned_unchanged() {
        let (ca, _) = Ca::create("cluster.local", std::time::SystemTime::now()).unwrap();
        let roots = Roots::of(&ca);
        let text = roots.root["RootCert"].as_str().unwrap();
        assert_eq!(&CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), ca.root());
        assert!(roots.root["NotAfter"].as_str().unwrap().ends_with('Z'), "{}", roots.root);
        assert_eq!(roots.id.len(), 32 * 3 - 1);
    }
}
