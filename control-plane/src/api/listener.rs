//! The listener for programs without a sidecar: Consul's API and Eureka's, at the control plane itself.
//!
//! A token identifies the caller. Without one a program on this machine can read the services that the namespace
//! "default" sees, as with DNS; a remote one is denied. Connections over a network are TLS, with a certificate that the
//! root of the mesh signs: the control plane has no other, and clients need that root in any case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, StatusCode, request};
use rcgen::KeyPair;
use weft_identity::provider;
use weft_listen::page::Names;
use weft_listen::server::{self, Answers, Bounds};
use weft_registry_api::error::ApiError;
use weft_registry_api::eureka::route::{self as eureka, Endpoint};
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::access;
use crate::api::consul::{self, Consul};
use crate::api::dns::listen::Listen;
use crate::api::eureka::Eureka;
use crate::identity::ca::Ca;
use crate::identity::caller::{Caller, Rights};
use crate::identity::peer::OwnCertificate;
use crate::identity::token::Tokens;
use crate::registry::external::Externals;
use crate::sockets;
use crate::telemetry::{self, Telemetry};

/// On loopback, and not Consul's usual port: the sidecar, which may run on the same machine, uses that.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8501);
/// Namespace of unidentified callers.
const NAMESPACE: &str = "default";
/// The root certificate in the data folder, for clients outside the mesh.
pub const ROOT_FILE: &str = "root.pem";

/// Settings of the listeners for programs without a sidecar.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses.
    pub listen: Vec<Listen>,
    /// Further names and addresses in the certificate.
    pub names: Vec<String>,
    /// Concurrent requests of one client, blocking queries and others counted separately.
    pub per_client: usize,
}

/// The parts that serve requests.
#[derive(Clone)]
pub struct HttpApi {
    /// Serves Consul's API.
    pub consul: Arc<Consul>,
    /// Serves Eureka's API.
    pub eureka: Arc<Eureka>,
    /// Serves the API of agents.
    pub externals: Arc<Externals>,
    /// Verifies tokens.
    pub tokens: Arc<Tokens>,
    /// Serves probes and Prometheus.
    pub telemetry: Telemetry,
}

/// One listener.
struct Listener {
    api: HttpApi,
    /// Whether it can be reached from elsewhere: then every request needs a token.
    remote: bool,
    /// Allowed host names, if it cannot.
    names: Names,
}

/// Serves in the background, at all of these addresses.
///
/// # Errors
/// If an address is unavailable, unless it is the usual one, or the certificate cannot be created.
pub async fn serve(api: HttpApi, settings: &Settings, ca: &Arc<Ca>) -> Result<()> {
    for place in &settings.listen {
        let address = match place {
            Listen::Off => continue,
            Listen::Usual => USUAL,
            Listen::At(address) => *address,
        };
        let listener = match sockets::listen(address) {
            Err(e) if *place == Listen::Usual => {
                let text = "no HTTP API for programs without a sidecar";
                tracing::warn!("{text}: cannot listen on {address}: {e} (--http-listen takes another address, or off)");
                continue;
            }
            bound => bound.with_context(|| format!("cannot listen on {address} for HTTP (--http-listen)"))?,
        };
        let remote = !address.ip().to_canonical().is_loopback();
        let names = Names::new(&own_name(), &settings.names);
        let answers = Arc::new(Listener { api: api.clone(), remote, names });
        let scheme = if remote { "https" } else { "http" };
        tracing::info!("serving Consul's API for programs without a sidecar at {scheme}://{address}");
        if remote {
            let names = certified(address.ip(), &own_name(), &settings.names);
            let tls = server_config(ca.clone(), names, "--http-name")?;
            tokio::spawn(server::serve_tls(answers, listener, tls, Bounds::new(settings.per_client)));
        } else {
            tokio::spawn(server::serve(answers, listener, Bounds::new(settings.per_client)));
        }
    }
    Ok(())
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Names and addresses in the certificate of a listener.
fn certified(listener: IpAddr, host: &str, more: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
    if !listener.is_unspecified() {
        names.push(listener.to_canonical().to_string());
    }
    names.extend(Some(host.to_owned()).filter(|host| !host.is_empty() && host.is_ascii()));
    names.extend(more.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// TLS of a listener for clients outside the mesh, with a certificate of these names; `option` sets them.
///
/// # Errors
/// If a name is invalid in a certificate.
pub(crate) fn server_config(ca: Arc<Ca>, names: Vec<String>, option: &str) -> Result<Arc<rustls::ServerConfig>> {
    let shown = names.join(", ");
    let sign = move |ca: &Ca, key: &KeyPair, lifetime| ca.sign_server(key, &names, SystemTime::now(), lifetime);
    let own = OwnCertificate::renewing(ca, sign, std::future::pending())
        .with_context(|| format!("no certificate for {shown} ({option})"))?;
    let provider = provider();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Writes the root certificate in the form for clients and other data centres. It is not secret.
///
/// # Errors
/// If the data folder cannot be written.
pub fn write_root(ca: &Ca, data_dir: &Path) -> Result<()> {
    let path = data_dir.join(ROOT_FILE);
    std::fs::write(&path, ca.root_pem()).with_context(|| format!("cannot write {}", path.display()))
}

impl Answers for Listener {
    fn turned_away(&self, head: &request::Parts) -> Option<Reply> {
        // On loopback no token is needed: a web page must not be mistaken for a program.
        let page = || self.names.refuses(&head.method, &head.uri, &head.headers, "--http-name");
        let page = if self.remote { None } else { page() };
        // The body of a request is read only for an authenticated caller.
        page.or_else(|| self.rights(head).err()).map(|error| refusal(&error, head))
    }

    async fn answer(&self, from: SocketAddr, request: Request<Bytes>) -> Reply {
        let (head, body) = request.into_parts();
        let rights = match self.rights(&head) {
            Ok(rights) => rights,
            Err(error) => return refusal(&error, &head),
        };
        if head.method == Method::GET
            && let Some(reply) = self.api.telemetry.answer(head.uri.path())
        {
            return reply;
        }
        let namespace = match &rights {
            Rights::Token(claims) => claims.namespace.clone(),
            Rights::All | Rights::Read | Rights::Peer(_) => NAMESPACE.to_owned(),
        };
        let caller = Caller { namespace, identity: String::new(), address: from.ip().to_canonical(), rights };
        let path = head.uri.path();
        if eureka::is_eureka_path(path) {
            return match eureka::route(&head.method, path) {
                Ok(Endpoint::Write(write)) => self.api.externals.eureka(&caller, &write, &head, body).await,
                _ => self.api.eureka.answer(&caller, Request::from_parts(head, body)),
            };
        }
        if let Some(reply) = self.api.externals.catalog(&caller, &head, &body).await {
            return reply;
        }
        // The mesh's certificates are not an agent's.
        let of_agent = path == "/v1/agent" || path.starts_with("/v1/agent/");
        if of_agent && !path.starts_with("/v1/agent/connect/") {
            return self.api.externals.answer(&caller, &head, body).await;
        }
        consul::answer(&self.api.consul, &caller, Request::from_parts(head, body)).await
    }
}

impl Listener {
    fn rights(&self, head: &request::Parts) -> Result<Rights, ApiError> {
        // Whatever the token is.
        if consul::route::is_public(&head.method, head.uri.path()) || head.uri.path() == telemetry::READY {
            return Ok(Rights::Read);
        }
        match access::claims(&self.api.tokens, head)? {
            Some(claims) => Ok(Rights::Token(claims)),
            None if self.remote => {
                let text = "Permission denied: this address is answered with a token only (X-Consul-Token or \
                            Authorization: Bearer; made by weftctl token create --api)";
                Err(ApiError::new(StatusCode::FORBIDDEN, text))
            }
            None => Ok(Rights::Read),
        }
    }
}

fn refusal(error: &ApiError, head: &request::Parts) -> Reply {
    if weft_registry_api::eureka::route::is_eureka_path(head.uri.path()) {
        return weft_registry_api::eureka::error_reply(error);
    }
    let query = Query::parse(head.uri.query().unwrap_or_default());
    reply::error(error, head.method == Method::GET, &query)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls_pki_types::ServerName;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use weft_proto::v1;

    use super::*;
    use crate::api::consul::connect::Roots;
    use crate::discovery::Discovery;
    use crate::identity::token::ApiClaims;
    use crate::state::{Mesh, Node};
    use crate::store::embedded::Embedded;

    async fn api(dir: &Path) -> HttpApi {
        let store = Arc::new(Embedded::open(dir).unwrap());
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        for (number, namespace, service) in [(1, "default", "order"), (2, "default", "payment"), (3, "shop", "cart")] {
            let (name, node) = (format!("n{number}"), Node::of_test(namespace, number));
            let session = mesh.begin_session(&name, node).await.unwrap();
            let (service_id, service) = (format!("{service}-1"), service.to_owned());
            let instance = v1::Instance { service_id, service, port: 80, ..Default::default() };
            mesh.register(&name, session, instance).await.unwrap();
        }
        mesh.put_pair("default", "conf/a", b"1", 0, crate::state::pairs::Only::Always).await.unwrap();
        mesh.put_pair("default", "other", b"2", 0, crate::state::pairs::Only::Always).await.unwrap();
        let roots = Roots::of(&Ca::create("cluster.local", SystemTime::now()).unwrap().0);
        HttpApi {
            consul: Arc::new(Consul {
                mesh: mesh.clone(),
                address: ([10, 0, 0, 9], 15012).into(),
                roots,
                federation: crate::api::remote::Alone::shared(),
                allow_external: false,
            }),
            eureka: Arc::new(Eureka::new(mesh.clone())),
            externals: Externals::open(mesh.clone(), Discovery::new(mesh, 0), None).await.unwrap(),
            tokens: Arc::new(Tokens::new(&[7; 32])),
            telemetry: Telemetry::default(),
        }
    }

    fn token(api: &HttpApi, namespace: &str, read: &[&str], keys: &[&str]) -> String {
        let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        api.tokens.create_api(&ApiClaims {
            trust_domain: "cluster.local".into(),
            namespace: namespace.into(),
            services: Vec::new(),
            read: list(read),
            keys: list(keys),
            expires: crate::clock::unix_now() + 60,
        })
    }

    async fn ask(listener: &Listener, method: &str, uri: &str, token: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(uri).header("x-consul-token", token);
        let (head, body) = request.body(Bytes::new()).unwrap().into_parts();
        let reply = match listener.turned_away(&head) {
            Some(away) => away,
            None => listener.answer(([127, 0, 0, 1], 9).into(), Request::from_parts(head, body)).await,
        };
        (reply.status().as_u16(), String::from_utf8(reply.body().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_token_restricts_reads_and_writes() {
        let dir = tempfile::tempdir().unwrap();
        let api = api(dir.path()).await;
        let (here, remote) =
            [false, true].map(|remote| Listener { api: api.clone(), remote, names: Names::default() }).into();
        let all = token(&api, "default", &[], &[]);
        let narrow = token(&api, "default", &["pay*"], &["conf/"]);
        let shop = token(&api, "shop", &[], &[]);
        let services = "/v1/catalog/services";
        for (listener, token, method, uri, status, body) in [
            (&here, "", "GET", services, 200, r#"{"order":[],"payment":[]}"#),
            (&here, &*narrow, "GET", services, 200, r#"{"payment":[]}"#),
            (&here, &shop, "GET", services, 200, r#"{"cart":[],"order":[],"payment":[]}"#),
            (&here, &narrow, "GET", "/v1/catalog/service/order", 200, "[]"),
            (&here, &narrow, "GET", "/v1/catalog/node/n1", 200, "null"),
            (&here, "", "PUT", "/v1/kv/conf/a", 403, "a request without a token (X-Consul-Token) lacks permission"),
            (&here, "", "PUT", "/v1/session/create", 403, "session:write"),
            (&here, "", "GET", "/v1/kv/other?raw", 200, "2"),
            (&here, &all, "PUT", "/v1/kv/conf/a", 403, r#"'key:write' on "conf/a""#),
            (&here, &all, "GET", "/v1/kv/conf/a?raw", 403, "key:read"),
            (&here, &narrow, "PUT", "/v1/kv/conf/b", 200, "true"),
            (&here, &narrow, "PUT", "/v1/kv/other", 403, "Permission denied"),
            (&here, &narrow, "DELETE", "/v1/kv/?recurse", 403, "Permission denied"),
            (&here, &narrow, "GET", "/v1/kv/?keys", 200, r#"["conf/a","conf/b"]"#),
            (&here, &narrow, "GET", "/v1/kv/other", 403, "Permission denied"),
            (&here, &narrow, "GET", "/v1/session/list", 200, "[]"),
            (&here, &all, "PUT", "/v1/session/create", 403, "session:write"),
            (&here, "weftapi1.x.y", "GET", services, 403, "ACL not found"),
            (&here, "0123", "GET", "/eureka/apps", 403, "ACL not found"),
            (&here, "", "PUT", "/v1/agent/service/register", 400, "from loopback"),
            (&here, "", "GET", "/v1/agent/services", 200, "{}"),
            (&remote, "", "GET", "/v1/agent/self", 403, "Permission denied"),
            (&remote, "", "GET", services, 403, "Permission denied: this address is answered with a token only"),
            (&remote, "", "GET", "/healthz/ready", 200, "ready"),
            (&remote, "", "GET", "/metrics", 403, "Permission denied"),
            (&here, "", "GET", "/metrics", 200, "weft_store_writable 1"),
            (&remote, "", "GET", "/v1/status/leader", 200, "10.0.0.9:15012"),
            (&remote, "", "GET", "/v1/status/peers", 200, "[\"10.0.0.9:15012\"]"),
            (&remote, "weftapi1.x.y", "GET", "/v1/catalog/datacenters", 200, "[\"dc1\"]"),
            (&remote, "", "PUT", "/v1/status/leader", 403, "Permission denied"),
            (&remote, "", "GET", "/eureka/apps", 403, "Permission denied"),
            (&remote, &narrow, "GET", services, 200, r#"{"payment":[]}"#),
        ] {
            let (got, text) = ask(listener, method, uri, token).await;
            assert!(got == status && text.contains(body), "{method} {uri} with {token:.20}: {got} {text}");
        }
        let nodes: Value = serde_json::from_str(&ask(&here, "GET", "/v1/catalog/nodes", &narrow).await.1).unwrap();
        assert_eq!(nodes.as_array().unwrap().iter().map(|n| &n["Node"]).collect::<Vec<_>>(), [&json!("n2")]);
        for (token, seen) in [("", true), (narrow.as_str(), false), ("", true)] {
            let apps = ask(&here, "GET", "/eureka/apps", token).await.1;
            assert_eq!(apps.contains("ORDER"), seen, "{token:.20}: responses for a token are not cached for another");
            assert!(apps.contains("PAYMENT"));
        }
    }

    #[tokio::test]
    async fn a_remote_listener_has_a_certificate_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let api = api(dir.path()).await;
        let token = token(&api, "default", &[], &[]);
        let ca = Arc::new(Ca::create("cluster.local", SystemTime::now()).unwrap().0);
        let tls =
            server_config(ca.clone(), certified([10, 0, 0, 9].into(), "cp", &["consul.example".into()]), "").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(server::serve_tls(
            Arc::new(Listener { api, remote: true, names: Names::default() }),
            listener,
            tls,
            Bounds::new(200),
        ));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.root().clone()).unwrap();
        let provider = provider();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        for (name, known) in
            [("10.0.0.9", true), ("127.0.0.1", true), ("consul.example", true), ("cp", true), ("10.0.0.8", false)]
        {
            let stream = TcpStream::connect(at).await.unwrap();
            let name = ServerName::try_from(name).unwrap();
            let connected = connector.connect(name.clone(), stream).await;
            assert_eq!(connected.is_ok(), known, "{name:?}");
            let Ok(mut stream) = connected else { continue };
            let request = format!(
                "GET /v1/catalog/datacenters HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
                 Connection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"["dc1"]"#), "{answer}");
        }
        write_root(&ca, dir.path()).unwrap();
        let pem = std::fs::read(dir.path().join(ROOT_FILE)).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        assert_eq!(pem.contents, ca.root().to_vec());
    }

    #[test]
    fn unspecified_addresses_are_not_in_certificates() {
        let list = certified([0, 0, 0, 0].into(), "cp", &["10.1.1.1".into(), "cp".into()]);
        assert_eq!(list, ["10.1.1.1", "127.0.0.1", "cp", "localhost"]);
    }
}
