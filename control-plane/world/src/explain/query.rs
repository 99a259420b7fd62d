//! The request to explain, as curl would send it, and its client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft_core::locality::Location;
use weft_core::names::normalise;
use weft_core::path::{self, Normalisation};
use weft_core::request::RequestView;

use weft_policy::is_host;

/// No proxy accepts more headers.
const MAX_HEADERS: usize = 200;

/// A hypothetical request.
#[derive(Clone, Debug)]
pub struct Query {
    /// The URL's host, which is dialed.
    pub(super) host: String,
    /// The port that is dialed.
    pub(super) port: u16,
    /// The server name of the client's own TLS; `None`: it speaks plaintext.
    pub(super) server_name: Option<String>,
    pub(super) method: Method,
    /// The URL's authority, or the `host` header.
    pub(super) authority: String,
    /// In its normal form, if it has one.
    pub(super) path_and_query: String,
    /// Whether it has a normal form; the request is refused otherwise.
    pub(super) has_path: bool,
    /// As given: scheme, host, and a port other than the scheme's default.
    pub(super) origin: String,
    pub(super) headers: HeaderMap,
}

/// The client that sends the request.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Name of the workload; empty: any.
    pub workload: String,
    /// Node of its sidecar; empty: no connected sidecar.
    pub node: String,
    /// Its namespace.
    pub namespace: String,
    /// Namespace and name of the Gateway through which its requests arrive; `None`: it has a sidecar of its own.
    pub gateway: Option<(String, String)>,
    /// All labels that policies may select it by.
    pub labels: BTreeMap<String, String>,
    /// The location of its proxy, and the labels that the proxy was started with.
    pub location: Location,
    /// Its own address; `None`: unknown.
    pub address: Option<IpAddr>,
    /// Endpoints that its sidecar has ejected, by host and address.
    pub ejected: BTreeSet<(String, String)>,
}

impl Query {
    /// A request of a URL (`[http[s]://]HOST[:PORT][/PATH]`), a method, and headers by name and value, of which `host`
    /// is the authority as with curl. `server_name`: the client speaks TLS of its own and sends this name.
    ///
    /// # Errors
    /// If an argument is invalid; the error names it and its form.
    pub fn new(
        url: &str,
        method: &str,
        headers: &[(String, String)],
        server_name: Option<&str>,
    ) -> Result<Query, String> {
        let (is_tls, rest) = match url.split_once("://") {
            None => (server_name.is_some(), url),
            Some(("http", rest)) => (server_name.is_some(), rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("{url:?}: the scheme is http or https, not {scheme:?}")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = host_and_port(authority).map_err(|problem| format!("{url:?}: {problem}"))?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if path.parse::<PathAndQuery>().is_err() {
            return Err(format!("{url:?}: {path:?} is not a path; a space is %20"));
        }
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("--method: {method:?} is not one"))?;
        let default_port = if is_tls { 443 } else { 80 };
        // The default port is left out, as curl does.
        let shown = port.filter(|port| *port != default_port).map(|port| format!(":{port}")).unwrap_or_default();
        let authority = if host.contains(':') { format!("[{host}]{shown}") } else { format!("{host}{shown}") };
        let normal = path::normalise(&path);
        let mut query = Query {
            origin: format!("{}://{authority}", if is_tls { "https" } else { "http" }),
            authority,
            port: port.unwrap_or(default_port),
            server_name: is_tls.then(|| normalise(server_name.unwrap_or(&host)).into_owned()),
            method,
            has_path: normal != Normalisation::Invalid,
            path_and_query: if let Normalisation::Changed(normal) = normal { normal } else { path },
            headers: HeaderMap::new(),
            host,
        };
        if let Some(name) =
            query.server_name.as_deref().filter(|name| name.parse::<IpAddr>().is_err() && !is_host(name))
        {
            return Err(format!("--sni: {name:?} is not a host name"));
        }
        query.add_headers(headers)?;
        Ok(query)
    }

    fn add_headers(&mut self, headers: &[(String, String)]) -> Result<(), String> {
        if headers.len() > MAX_HEADERS {
            return Err(format!("-H: more than {MAX_HEADERS} headers"));
        }
        let mut hosts = 0;
        for (name, value) in headers {
            let (name, value) = (name.trim(), value.trim());
            let wrong = |problem: &str| format!("-H: \"{name}: {value}\": {problem}");
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("that is not a header name"))?;
            let bytes = HeaderValue::from_str(value).map_err(|_| wrong("that is not a header value"))?;
            if header == HOST {
                hosts += 1;
                host_and_port(value).map_err(|problem| wrong(&problem))?;
                self.authority = value.to_owned();
            } else {
                self.headers.append(header, bytes);
            }
        }
        if hosts > 1 {
            return Err("-H: host is given twice".to_owned());
        }
        Ok(())
    }

    /// For a request through a gateway: the address and the server name of TLS are those of a URL, whichever gateway
    /// listens there.
    pub(super) fn scheme(&self) -> &'static str {
        if self.server_name.is_some() { "https" } else { "http" }
    }

    /// The request's properties for routes: from `source`, dialed to `local`.
    pub(super) fn view(&self, source: SocketAddr, local: SocketAddr) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            path_and_query: &self.path_and_query,
            authority: &self.authority,
            scheme: "http",
            headers: &self.headers,
            source,
            local,
        }
    }
}

impl Client {
    /// A client of a namespace, without further properties.
    pub fn of(namespace: &str) -> Client {
        Client { namespace: namespace.to_owned(), ..Client::default() }
    }

    /// A client without a sidecar, whose requests arrive through a Gateway.
    pub fn at_gateway(namespace: &str, name: &str) -> Client {
        Client { gateway: Some((namespace.to_owned(), name.to_owned())), ..Client::of(namespace) }
    }

    /// `name`, of namespace default, or `namespace/name`; empty: none.
    ///
    /// # Errors
    /// If one of the two is empty.
    pub fn gateway(text: &str) -> Result<Option<(String, String)>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(format!("--gateway: {text:?} is not NAME or NAMESPACE/NAME"));
        }
        Ok(Some((namespace.to_owned(), name.to_owned())))
    }

    /// The source address of its connections, as far as it is known, with the unassigned port 0.
    pub(super) fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0)
    }
}

/// Host and port of a URL or a host header.
fn host_and_port(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or("] must be followed by :PORT")?)),
        None if authority.parse::<IpAddr>().is_ok() => (authority, None),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("it names no host: HOST[:PORT]/PATH".to_owned());
    }
    if host.parse::<IpAddr>().is_err() && !is_host(host) {
        return Err(format!("{host:?} is not a host name"));
    }
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && !text.starts_with('+') => Ok(port),
        _ => Err(format!("{text:?} is not a port (1 to 65535)")),
    };
    Ok((host.to_owned(), port.map(number).transpose()?))
}
