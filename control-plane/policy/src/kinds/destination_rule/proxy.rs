//! `tunnel` and `proxyProtocol`: endpoints that are proxies, or are behind one.

use std::net::IpAddr;

use weft_proto::v1;

use super::ClientTls;
use crate::decode::fields::{Fields, Shape, read};
use crate::names;

/// Fields of `tunnel`.
pub(super) const TUNNEL: Shape = &[read("protocol"), read("targetHost"), read("targetPort")];
/// Fields of `proxyProtocol`.
pub(super) const PROXY_PROTOCOL: Shape = &[read("version")];

/// Reads both from a `trafficPolicy` with the given `tls`.
pub(super) fn decode(fields: &Fields<'_>, tls: Option<&ClientTls>) -> (Option<v1::Tunnel>, Option<v1::ProxyProtocol>) {
    let tunnel = fields.object("tunnel").map(|fields| tunnel(&fields));
    let proxy_protocol = fields.object("proxyProtocol").map(|fields| proxy_protocol(&fields));
    if tunnel.is_some() && proxy_protocol.is_some() {
        fields.error("proxyProtocol", "`tunnel` and `proxyProtocol` exclude each other");
    }
    if proxy_protocol.is_some() && tls.is_some_and(|tls| tls.mode == v1::Tls::IstioMutual) {
        let text = "sidecars read no PROXY header before their mTLS: `proxyProtocol` is for endpoints without one";
        fields.warn("proxyProtocol", text);
    }
    (tunnel, proxy_protocol)
}

fn tunnel(fields: &Fields<'_>) -> v1::Tunnel {
    let post = fields.one_of("protocol", &[("CONNECT", false), ("POST", true)]).unwrap_or_default();
    let host = fields.required_string("targetHost");
    if !host.is_empty() && !names::is_host(&host) && host.parse::<IpAddr>().is_err() {
        fields.error("targetHost", format!("`{host}` is neither a host name nor an IP address"));
    }
    fields.require("targetPort");
    v1::Tunnel { post, host, port: fields.port("targetPort").unwrap_or_default() }
}

fn proxy_protocol(fields: &Fields<'_>) -> v1::ProxyProtocol {
    const VERSIONS: &[(&str, v1::ProxyProtocol)] = &[("V1", v1::ProxyProtocol::V1), ("V2", v1::ProxyProtocol::V2)];
    fields.one_of("version", VERSIONS).unwrap_or(v1::ProxyProtocol::V1)
}
