//! The configured peers: a name, an address, and the root certificate of each.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use weft_core::identity::SCHEME;
use weft_world::Peering;

/// A peer in the form `NAME=HOST:PORT,ROOT.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Name of the data centre.
    pub datacenter: String,
    /// `host:port` of its control plane's listener for other data centres.
    pub address: String,
    /// Its root certificate, PEM.
    pub root: PathBuf,
}

/// Whether Consul accepts this name of a data centre.
pub fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    // Names with another meaning in DNS could not be queried.
    let taken = ["dc", "ns", "service", "connect", "virtual", "ingress", "node", "query", "addr"].contains(&text);
    !text.is_empty() && text.len() <= 63 && text.bytes().all(plain) && !text.starts_with(['-', '_']) && !taken
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerAddress, String> {
        let wanted = "NAME=HOST:PORT,ROOT.pem, such as dc2=10.2.0.1:15022,/etc/weft/dc2.pem";
        let (datacenter, rest) = text.split_once('=').ok_or_else(|| format!("must be {wanted}"))?;
        let (address, root) = rest.split_once(',').ok_or_else(|| format!("must be {wanted}"))?;
        if !is_name(datacenter) {
            return Err(format!("{datacenter:?} is not a name of a data centre: lower-case letters, digits, - and _"));
        }
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(format!("{address:?} is not HOST:PORT; must be {wanted}"));
        }
        Ok(PeerAddress { datacenter: datacenter.into(), address: address.into(), root: root.into() })
    }
}

/// The peers with their roots.
///
/// # Errors
/// If a root cannot be read, or a name or trust domain is already in use: the trust domain alone decides the data
/// centre of an identity. The error names the peer.
pub fn read(datacenter: &str, trust_domain: &str, peers: &[PeerAddress]) -> Result<Vec<(Peering, String)>> {
    ensure!(is_name(datacenter), "{datacenter:?} is not a name of a data centre: lower-case letters, digits, - and _");
    let mut taken = vec![(datacenter.to_owned(), trust_domain.to_owned())];
    let mut result = Vec::new();
    for peer in peers {
        let name = &peer.datacenter;
        let peering = with_root(peer).with_context(|| format!("the peer {name}"))?;
        if let Some((other, _)) = taken.iter().find(|(taken, _)| taken == name) {
            bail!("the peer {name}: the name {other} is in use");
        }
        if let Some((other, domain)) = taken.iter().find(|(_, taken)| *taken == peering.trust_domain) {
            bail!(
                "the peer {name}: its trust domain {domain} is that of {other} too; every data centre needs one of its own \
                 (--trust-domain, before its first start)"
            );
        }
        taken.push((name.clone(), peering.trust_domain.clone()));
        result.push((peering, peer.address.clone()));
    }
    Ok(result)
}

fn with_root(peer: &PeerAddress) -> Result<Peering> {
    let file = peer.root.display();
    let root = CertificateDer::from_pem_file(&peer.root);
    let root = root.with_context(|| format!("cannot read the root certificate in {file}"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&root).with_context(|| format!("{file} is damaged"))?;
    let names = parsed.subject_alternative_name()?.map(|names| names.value.general_names.clone()).unwrap_or_default();
    let domains: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        })
        .collect();
    let [domain] = domains[..] else { bail!("{file} is not the root of a mesh (root.pem of its data folder)") };
    ensure!(parsed.is_ca() && !domain.contains('/'), "{file} is not the root of a mesh (root.pem of its data folder)");
    Ok(Peering { datacenter: peer.datacenter.clone(), trust_domain: domain.to_owned(), root_der: root.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::ca::Ca;

    #[test]
    fn peers_are_given_by_name_address_and_root() {
        let given: PeerAddress = "dc2=[fd00::1]:15022,/a,b.pem".parse().unwrap();
        assert_eq!((given.address.as_str(), given.root), ("[fd00::1]:15022", "/a,b.pem".into()));
        for (text, want) in [
            ("dc2", "must be NAME=HOST:PORT,ROOT.pem"),
            ("dc2=host:1", "must be"),
            ("DC2=host:1,a", "\"DC2\" is not a name of a data centre"),
            ("node=host:1,a", "\"node\" is not a name"),
            ("dc2=host,a", "\"host\" is not HOST:PORT"),
            ("dc2=host:0,a", "\"host:0\" is not HOST:PORT"),
            ("dc2=:1,a", "\":1\" is not HOST:PORT"),
        ] {
            let error = text.parse::<PeerAddress>().unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_trust_domains_of_peers_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let root = |domain: &str| {
            let (ca, _) = Ca::create(domain, SystemTime::now()).unwrap();
            let file = dir.path().join(format!("{domain}.pem"));
            std::fs::write(&file, ca.root_pem()).unwrap();
            file
        };
        let peer = |name: &str, root| PeerAddress { datacenter: name.into(), address: "a:1".into(), root };
        let (two, three) = (root("two.example"), root("three.example"));
        let found = read("dc1", "one.example", &[peer("dc2", two.clone()), peer("dc3", three)]).unwrap();
        assert_eq!(found[0].0.trust_domain, "two.example");
        let leaf = dir.path().join("leaf.pem");
        std::fs::write(&leaf, rcgen::generate_simple_self_signed(vec!["a".into()]).unwrap().cert.pem()).unwrap();
        for (own, domain, peers, want) in [
            ("dc2", "one.example", vec![peer("dc2", two.clone())], "the name dc2 is in use"),
            ("dc1", "two.example", vec![peer("dc2", two.clone())], "its trust domain two.example is that of dc1 too"),
            ("dc1", "a", vec![peer("dc2", two.clone()), peer("dc3", two.clone())], "is that of dc2 too"),
            ("dc1", "a", vec![peer("dc2", "/nowhere".into())], "the peer dc2"),
            ("dc1", "a", vec![peer("dc2", leaf)], "is not the root of a mesh"),
            ("Dc1", "a", vec![], "\"Dc1\" is not a name"),
        ] {
            let error = format!("{:#}", read(own, domain, &peers).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
