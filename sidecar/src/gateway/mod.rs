//! `weft-sidecar gateway`: a load balancer for downstreams without a sidecar.
//!
//! Its listeners come with the inbound policy, as servers of Istio's Gateways; a host leads to a `Service` like any other, found
//! when the first request for it arrives. From there a request takes the same way as one of an application (`outbound`):
//! routes, limits, balancing, mTLS inwards. Headers that sidecars trust are removed from requests here.

mod certificate;
mod choice;
mod handshake;
mod ports;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_core::gateway::{
    MeshServerName, Server, ServerProtocol, by_server_name, mesh_server, reachable_servers, service,
};
use weft_core::http1::Limits;
use weft_core::proxy_protocol::ConnectionAddresses;
use weft_core::request::RequestView;
use weft_core::route::Action;
use weft_core::sniff::Sniff;

use crate::control::directory::Lookup;
use crate::exchange::tcp::{self, First, To};
use crate::http::http1::{Service, Unread};
use crate::http::incoming::Incoming;
use crate::http::{FORWARDED_PROTO, serve_http1, serve_http2};
use crate::net::connect::MARK_UPSTREAM;
use crate::net::stream::{MaybeSocket, Rewind};
use crate::outbound::{self, Downstream, Entrance};
use crate::proxy::Proxy;
use crate::tls::client_hello::{ClientHello, hello};
use crate::upstream::cluster::ClusterView;
pub use ports::{Doors, Ports, keep, serve, shared};

/// A client that has not sent its first bytes by then is disconnected.
const PATIENCE: Duration = Duration::from_secs(10);
/// The client's address, as proxies forward it.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Prefixes of headers that sidecars and applications trust; clients from outside may not send them.
const INTERNAL: [&str; 2] = ["x-envoy-", "x-weft-"];

/// A connection from outside.
struct Caller {
    proxy: Arc<Proxy>,
    worker: u16,
    peer: SocketAddr,
    local: SocketAddr,
}

/// Serves one connection.
async fn connection(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr, worker: u16, doors: Arc<Doors>) {
    // A socket that cannot be set up is gone already.
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let caller = Caller { proxy, worker, peer: canonical(peer), local: canonical(local) };
    match doors.protocol() {
        Some(ServerProtocol::Http) => Box::pin(caller.plain(stream, &doors)).await,
        Some(ServerProtocol::Https | ServerProtocol::Tls) => Box::pin(caller.tls(stream, &doors)).await,
        Some(ServerProtocol::Tcp) => {
            let found = service(&doors.servers, "");
            Box::pin(caller.bytes(stream, Bytes::new(), found.map(|(_, service)| &**service), "")).await;
        }
        None => {}
    }
}

impl Caller {
    fn ends(&self) -> ConnectionAddresses {
        ConnectionAddresses { source: self.peer, destination: self.local }
    }

    async fn plain(&self, mut stream: TcpStream, doors: &Doors) {
        let first = tokio::time::timeout(PATIENCE, tcp::first(&mut stream, BytesMut::new(), None));
        let first = self.proxy.idle.enter(self.peer.ip()).until(first).await;
        let Some(Ok(Ok(First::Bytes(bytes, kind @ (Sniff::Http1 | Sniff::Http2))))) = first else { return };
        let stream = Rewind::new(bytes.freeze(), stream);
        let entrance = Entrance { servers: doors.servers.clone(), scheme: "http", tls: None };
        self.http(stream, kind == Sniff::Http2, entrance, Limits::OUTSIDE, None).await;
    }

    async fn tls(&self, mut stream: TcpStream, doors: &Doors) {
        let said = tokio::time::timeout(PATIENCE, hello(&mut stream, BytesMut::new()));
        let said = self.proxy.idle.enter(self.peer.ip()).until(said).await;
        let Some(Ok(Ok(ClientHello { bytes, name, mesh }))) = said else {
            return;
        };
        let found = by_server_name(&doors.servers, &name).or_else(|| mesh_server(&doors.servers, &name));
        let Some(server) = found else {
            tracing::debug!(peer = %self.peer, name, "no server of this port is for this name");
            return;
        };
        if server.auto_passthrough {
            if !mesh {
                return tracing::debug!(peer = %self.peer, name, "this is not the mesh's own TLS: not passed on");
            }
            return self.pass_on(stream, bytes.freeze(), &name).await;
        }
        if server.protocol == ServerProtocol::Tls {
            let passing = doors.servers.iter().filter(|server| server.protocol == ServerProtocol::Tls);
            let found = service(passing, &name).map(|(_, service)| service.clone());
            return self.bytes(stream, bytes.freeze(), found.as_deref(), &name).await;
        }
        let Some(ending) = &server.tls else { return };
        let stream = Rewind::new(bytes.freeze(), stream);
        let ended = match handshake::accept(&self.proxy, ending, &doors.terminations, stream).await {
            Ok(ended) => ended,
            Err(e) => {
                self.proxy.metrics.handshakes_failed.inc();
                return tracing::debug!(peer = %self.peer, server = %server.name, "TLS handshake failed: {e:#}");
            }
        };
        let mut servers = reachable_servers(&doors.servers, server, &name);
        servers.retain(|server| server.tls.as_ref().is_some_and(|ending| ended.is_let_in(ending)));
        if servers.is_empty() {
            self.proxy.metrics.handshakes_failed.inc();
            return tracing::debug!(peer = %self.peer, server = %server.name, "none of the names of the caller's certificate is let in");
        }
        // The client's sidecar has added headers to the request of its application.
        let limits = if server.is_of_mesh() { Limits::MESH } else { Limits::OUTSIDE };
        let entrance = Entrance { servers, scheme: "https", tls: Some(ended.tls(&name)) };
        self.http(ended.stream, ended.http2, entrance, limits, ended.certificate).await;
    }

    async fn http<S>(
        &self,
        stream: S,
        http2: bool,
        entrance: Entrance,
        limits: Limits,
        certificate: Option<HeaderValue>,
    ) where
        S: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
    {
        let scheme = HeaderValue::from_static(entrance.scheme);
        let down = Arc::new(Downstream {
            proxy: self.proxy.clone(),
            worker: self.worker,
            ends: self.ends(),
            original: None,
            gateway: Some(Arc::new(entrance)),
            passthrough: Default::default(),
        });
        let refused = down.clone();
        let answer = move |request: Request<Incoming>| {
            let (down, scheme, certificate) = (down.clone(), scheme.clone(), certificate.clone());
            async move {
                let (mut parts, body) = request.into_parts();
                from_outside(&mut parts, down.ends.source, scheme, certificate);
                let mut response = outbound::serve(&down, Request::from_parts(parts, body)).await;
                if !http2 {
                    down.proxy.set_connection_close(&mut response);
                }
                response
            }
        };
        if http2 {
            let proxy = self.proxy.clone();
            Box::pin(serve_http2(stream, proxy.leaving.wait(), answer)).await;
        } else {
            let refuse = move |unread: Unread| outbound::refuse(&refused, &unread);
            serve_http1(stream, Service { limits, answer, refuse }).await;
        }
    }

    /// Passes the mesh's own TLS on from another data centre to an instance: it is terminated by the sidecar there, which verifies
    /// the client. The gateway holds no key of a workload.
    async fn pass_on(&self, stream: TcpStream, seen: Bytes, name: &str) {
        let peer = self.peer;
        let Some(inside) = MeshServerName::parse(name) else {
            return tracing::debug!(%peer, name, "the server name names no service: not passed on");
        };
        let Lookup::Service(view) = self.proxy.directory.lookup(inside.host).await else {
            return tracing::warn!(%peer, name, "no such service here (yet): not passed on");
        };
        if !view.service.exported {
            return tracing::warn!(%peer, name, "the service is not exported (ServiceExport): not passed on");
        }
        let cluster = inside.cluster(&view.service.clusters).and_then(|at| view.clusters.get(at));
        let Some(cluster) = cluster else {
            return tracing::warn!(%peer, name, "the service has no such port or subset: not passed on");
        };
        self.flow(stream, seen, cluster, To::Through).await;
    }

    async fn flow(&self, stream: TcpStream, seen: Bytes, cluster: &Arc<ClusterView>, to: To<'_>) {
        let ends = self.ends();
        let Ok(flow) = tcp::open(&self.proxy, cluster, to, &ends, MARK_UPSTREAM, None).await else { return };
        let client = Rewind::new(seen, stream);
        tcp::run(&self.proxy, &self.proxy.outbound, client, flow, Bytes::new(), std::future::pending()).await;
    }

    /// Passes bytes on to a service's endpoint. `name`: the server name that they ask for.
    async fn bytes(&self, stream: TcpStream, seen: Bytes, service: Option<&str>, name: &str) {
        let Some(service) = service else { return };
        let Lookup::Service(view) = self.proxy.directory.lookup(service).await else {
            return tracing::debug!(service, "not known (yet)");
        };
        let none = HeaderMap::new();
        let request = RequestView {
            method: &Method::GET,
            path_and_query: "/",
            authority: "",
            scheme: "",
            headers: &none,
            source: self.peer,
            local: self.local,
        };
        let route = view.service.port(0).and_then(|port| port.routes.find(&request));
        let cluster: Option<&Arc<ClusterView>> = route.and_then(|route| match &*route.action {
            Action::Forward(forward) => view.clusters.get(forward.choose(rand::rng().next_u64()).cluster),
            _ => None,
        });
        let Some(cluster) = cluster else { return };
        if !cluster.config.dynamic_dns {
            return self.flow(stream, seen, cluster, To::Any).await;
        }
        match cluster.dynamic_endpoint(name) {
            Ok(endpoint) => self.flow(stream, seen, cluster, To::Fixed(&endpoint)).await,
            Err(_) => {
                tracing::debug!(peer = %self.peer, name, "the server name is none of the hosts that may be called")
            }
        }
    }
}

/// Removes headers that only the mesh may set from a request, and adds its origin.
fn from_outside(parts: &mut Parts, peer: SocketAddr, scheme: HeaderValue, certificate: Option<HeaderValue>) {
    let headers = &mut parts.headers;
    let internal: Vec<HeaderName> = headers
        .keys()
        .filter(|name| INTERNAL.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for name in internal {
        headers.remove(name);
    }
    headers.remove(CLIENT_CERTIFICATE);
    if let Some(certificate) = certificate {
        headers.insert(CLIENT_CERTIFICATE, certificate);
    }
    headers.insert(FORWARDED_PROTO, scheme);
    let address = peer.ip().to_string();
    let before: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let all = before.into_iter().chain([address.as_str()]).collect::<Vec<_>>().join(",");
    // An address is a valid header value, and so is a list of valid values.
    if let (Ok(all), Ok(address)) = (HeaderValue::try_from(all), HeaderValue::try_from(&address)) {
        headers.insert(FORWARDED_FOR, all);
        headers.insert(EXTERNAL_ADDRESS, address);
    }
}

/// Servers of one port that can be served together: those that speak as the oldest does.
fn together(servers: &[Arc<Server>]) -> (Vec<Arc<Server>>, Vec<Arc<Server>>) {
    let kind = |server: &Server| match server.protocol {
        ServerProtocol::Https | ServerProtocol::Tls => ServerProtocol::Tls,
        other => other,
    };
    let first = servers.first().map(|server| kind(server));
    servers.iter().cloned().partition(|server| Some(kind(server)) == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_mesh_are_removed_from_requests_from_outside() {
        let request = Request::builder()
            .header("X-Envoy-Max-Retries", "9")
            .header("x-weft-http1-client", "1")
            .header("x-forwarded-client-cert", "By=me")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-for", "10.0.0.1")
            .header("x-forwarded-for", "10.0.0.2")
            .header("x-user", "a")
            .body(())
            .unwrap();
        let (mut parts, ()) = request.into_parts();
        from_outside(&mut parts, ([192, 0, 2, 7], 4000).into(), HeaderValue::from_static("http"), None);
        let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("x-envoy-max-retries"), None);
        assert_eq!((header("x-weft-http1-client"), header("x-forwarded-client-cert")), (None, None));
        assert_eq!((header("x-forwarded-proto"), header("x-user")), (Some("http"), Some("a")));
        assert_eq!(header("x-forwarded-for"), Some("10.0.0.1,10.0.0.2,192.0.2.7"));
        assert_eq!(header("x-envoy-external-address"), Some("192.0.2.7"));
    }
}
