//! View of a request for all decisions: borrowed, independent of any HTTP library's body type.

use std::net::SocketAddr;

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A request's head and its connection's addresses. Cheap to copy; made once per request by the sidecar.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path with query as received, for example `/a?b=c`; `*` for `OPTIONS *`.
    pub path_and_query: &'a str,
    /// `:authority`, or `host` of HTTP/1, as the client wrote it, with its port.
    pub authority: &'a str,
    /// The downstream's scheme, `http` or `https`.
    pub scheme: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The downstream's remote address: the application (outbound) or the calling sidecar (inbound).
    pub source: SocketAddr,
    /// The downstream connection's local address; on outbound, the original destination.
    pub local: SocketAddr,
}

impl<'a> RequestView<'a> {
    /// The path, without query and fragment.
    pub fn path(&self) -> &'a str {
        self.path_and_query.split(['?', '#']).next().unwrap_or("")
    }

    /// The query without its `?`; `None` if there is no `?`.
    pub fn query(&self) -> Option<&'a str> {
        let text = self.path_and_query.split('#').next().unwrap_or("");
        text.split_once('?').map(|(_, query)| query)
    }

    /// The first value of a query parameter, not decoded (as Envoy compares and hashes it). For `?a&b=1`, `a` is empty.
    pub fn query_param(&self, name: &str) -> Option<&'a str> {
        let pairs = self.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// All values of a header. `host` is the authority, also on HTTP/2, which has no such header.
    pub fn header_values(&self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let authority = (name == HOST && !self.authority.is_empty()).then_some(self.authority.as_bytes());
        let values = if authority.is_some() { None } else { Some(self.headers.get_all(name)) };
        authority.into_iter().chain(values.into_iter().flatten().map(HeaderValue::as_bytes))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A `GET` from 10.0.0.1:4000 to 10.0.0.2:80.
    pub(crate) fn view<'a>(path_and_query: &'a str, authority: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView {
            method: &Method::GET,
            path_and_query,
            authority,
            scheme: "http",
            headers,
            source: SocketAddr::from(([10, 0, 0, 1], 4000)),
            local: SocketAddr::from(([10, 0, 0, 2], 80)),
        }
    }

    #[test]
    fn path_and_query_are_split() {
        let headers = HeaderMap::new();
        for (text, path, query) in [
            ("/a?b=c", "/a", Some("b=c")),
            ("/a", "/a", None),
            ("/a?", "/a", Some("")),
            ("/a?b?c", "/a", Some("b?c")),
            ("/a#f?x", "/a", None),
            ("*", "*", None),
        ] {
            let view = view(text, "x", &headers);
            assert_eq!((view.path(), view.query()), (path, query), "{text}");
        }
    }

    #[test]
    fn query_param_returns_the_first_raw_value() {
        let headers = HeaderMap::new();
        let view = view("/?a=1&a=2&b&c=%20&d=x=y", "x", &headers);
        let values = ["a", "b", "c", "d", "e"].map(|name| view.query_param(name));
        assert_eq!(values, [Some("1"), Some(""), Some("%20"), Some("x=y"), None]);
    }

    #[test]
    fn host_is_the_authority() {
        let mut headers = HeaderMap::new();
        headers.append("x", HeaderValue::from_static("1"));
        headers.append("x", HeaderValue::from_static("2"));
        let view = view("/", "order", &headers);
        assert_eq!(view.header_values(&HOST).collect::<Vec<_>>(), [b"order"]);
        assert_eq!(view.header_values(&HeaderName::from_static("x")).collect::<Vec<_>>(), [b"1", b"2"]);
    }
}
