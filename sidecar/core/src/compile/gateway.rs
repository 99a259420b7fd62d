//! Compiles the servers of a gateway.

use std::sync::Arc;

use weft_proto::v1;

use super::{At, Result, error, port_number, unknown_number};
use crate::gateway::{
    Authority, CIPHER_SUITES, Certificate, Server, ServerCertificate, ServerProtocol, Termination, TlsTermination,
    Versions,
};

/// Compiles the servers of an inbound policy.
///
/// # Errors
/// If one of them cannot be served.
pub fn gateway_servers(messages: &[v1::GatewayServer]) -> Result<Vec<Arc<Server>>> {
    servers(messages).at("servers")
}

pub(super) fn servers(messages: &[v1::GatewayServer]) -> Result<Vec<Arc<Server>>> {
    let mut compiled = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        compiled.push(Arc::new(server(message).at(format_args!("servers[{i}]"))?));
    }
    Ok(compiled)
}

fn server(message: &v1::GatewayServer) -> Result<Server> {
    let protocol = match v1::GatewayProtocol::try_from(message.protocol) {
        Ok(v1::GatewayProtocol::GatewayHttp) => ServerProtocol::Http,
        Ok(v1::GatewayProtocol::GatewayHttps) => ServerProtocol::Https,
        Ok(v1::GatewayProtocol::GatewayTls) => ServerProtocol::Tls,
        Ok(v1::GatewayProtocol::GatewayTcp) => ServerProtocol::Tcp,
        Err(_) => return error("protocol", unknown_number(message.protocol)),
    };
    let tls = message.tls.as_ref().map(tls_termination).transpose().at("tls")?;
    if protocol == ServerProtocol::Https && tls.is_none() {
        return error("tls", "is missing");
    }
    let bind = match message.bind.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("`{text}` is not an IP address")).at("bind")?),
    };
    Ok(Server {
        name: message.name.as_str().into(),
        bind,
        port: port_number(message.port).at("port")?,
        protocol,
        tls,
        https_redirect: message.https_redirect,
        hosts: message.hosts.iter().map(|host| host.as_str().into()).collect(),
        virtual_hosts: message
            .virtual_hosts
            .iter()
            .map(|host| (Arc::from(host.domain.to_ascii_lowercase()), Arc::from(host.service.as_str())))
            .collect(),
        auto_passthrough: message.auto_passthrough && protocol == ServerProtocol::Tls,
        hosts_elsewhere: message.hosts_elsewhere.iter().map(|host| host.as_str().into()).collect(),
    })
}

fn tls_termination(message: &v1::GatewayTls) -> Result<TlsTermination> {
    let certificate =
        if message.mesh { ServerCertificate::Mesh } else { ServerCertificate::Files(termination(message)?) };
    Ok(TlsTermination { certificate, client_names: message.subject_alt_names.clone() })
}

fn termination(message: &v1::GatewayTls) -> Result<Termination> {
    if message.certificates.is_empty() {
        return error("certificates", "is empty");
    }
    let versions = match (message.tls12_only, message.tls13_only) {
        (false, false) => Versions::Both,
        (true, false) => Versions::Only12,
        (false, true) => Versions::Only13,
        (true, true) => return error("tls12_only", "excludes tls13_only"),
    };
    let mut cipher_suites = Vec::with_capacity(message.cipher_suites.len());
    for (i, name) in message.cipher_suites.iter().enumerate() {
        let Some((_, number)) = CIPHER_SUITES.iter().find(|(known, _)| known == name) else {
            return error(format_args!("cipher_suites[{i}]"), format!("`{name}` is not supported"));
        };
        cipher_suites.push(*number);
    }
    Ok(Termination {
        certificates: message.certificates.iter().map(certificate).collect(),
        authority: message.mutual.then(|| authority(message)),
        versions,
        cipher_suites,
    })
}

fn certificate(message: &v1::GatewayCertificate) -> Certificate {
    match message.credential.as_str() {
        "" => Certificate::Files {
            certificate: message.certificate.as_str().into(),
            key: message.private_key.as_str().into(),
        },
        name => Certificate::Credential(name.into()),
    }
}

fn authority(message: &v1::GatewayTls) -> Authority {
    match message.ca_credential.as_str() {
        "" => Authority::Files {
            ca: message.ca_certificates.as_str().into(),
            crl: (!message.ca_crl.is_empty()).then(|| message.ca_crl.as_str().into()),
        },
        name => Authority::Credential(name.into()),
    }
}
