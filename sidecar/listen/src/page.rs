//! Protection against requests that a web page makes through a browser. An API on loopback is open to all programs of
//! the pod, and so to a browser: a page whose domain resolves to 127.0.0.1 (DNS rebinding) could read and write the
//! registry, and any page can send requests without reading the response.

use http::{HeaderMap, Method, StatusCode, Uri, header};
use weft_core::names::normalise;
use weft_registry_api::error::ApiError;

/// Accepted host names of an API on loopback, besides addresses and `localhost`: a page cannot use an address as its
/// domain.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// `host`: the machine's own name, whose first label is accepted too. `allowed`: further names.
    pub fn new(host: &str, allowed: &[String]) -> Names {
        let own = [host, host.split('.').next().unwrap_or_default()];
        let own = own.into_iter().filter(|name| !name.is_empty()).map(str::to_owned);
        Names(own.chain(allowed.iter().cloned()).collect())
    }

    /// The reason for refusing a request that may come from a page; `option`: the option that allows a name.
    pub fn refuses(&self, method: &Method, uri: &Uri, headers: &HeaderMap, option: &str) -> Option<ApiError> {
        let authority = requested_authority(uri, headers);
        let host = normalise(authority);
        if !self.has(&host) {
            let text = format!(
                "this API is for programs of this pod, and {host:?} is neither an address, localhost nor a name of the pod: \
                 requests for other names may come from a web page (DNS rebinding). If the name is intended, allow it with \
                 {option} {host}"
            );
            return Some(ApiError::new(StatusCode::MISDIRECTED_REQUEST, text));
        }
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        (!reads && is_of_another_page(headers, authority))
            .then(|| ApiError::new(StatusCode::FORBIDDEN, "web pages of other origins may not write here"))
    }

    /// `host`: normalised.
    fn has(&self, host: &str) -> bool {
        // HTTP/1.0 clients send no Host header, and no browser uses HTTP/1.0.
        host.is_empty()
            || host.parse::<std::net::IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// The authority of a request.
fn requested_authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    match uri.authority() {
        Some(authority) => authority.as_str(),
        // An invalid header value matches no name.
        None => headers.get(header::HOST).map_or("", |host| host.to_str().unwrap_or("?")),
    }
}

/// Whether a browser marks the request as coming from another origin (Fetch, 3.1 and Fetch Metadata).
fn is_of_another_page(headers: &HeaderMap, authority: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let origin = text("origin").map(|origin| origin.split_once("://").map_or(origin, |(_, origin)| origin));
    origin.is_some_and(|origin| !origin.eq_ignore_ascii_case(authority))
        || text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn refused(method: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let names = Names::new("web-1.example.internal", &["consul.test".to_owned()]);
        let mut request = Request::builder().method(method).uri("/v1/kv/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        names.refuses(&head.method, &head.uri, &head.headers, "--api-host").map(|error| error.status.as_u16())
    }

    #[test]
    fn foreign_host_names_are_misdirected() {
        for host in [
            "127.0.0.1:8500",
            "localhost",
            "localhost:8500",
            "LOCALHOST.",
            "a.localhost",
            "[::1]:8500",
            "[::1]",
            "10.0.0.7:1",
            "web-1",
            "WEB-1.example.internal:8500",
            "consul.test",
            "",
        ] {
            assert_eq!(refused("PUT", &[("host", host)]), None, "{host}");
        }
        assert_eq!(refused("GET", &[]), None);
        for host in [
            "evil.example",
            "evil.example:8500",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "web-2",
            "consul.test.evil",
        ] {
            assert_eq!(refused("GET", &[("host", host)]), Some(421), "{host}");
        }
    }

    #[test]
    fn writes_of_other_origins_are_refused() {
        let host = ("host", "localhost:8500");
        assert_eq!(refused("PUT", &[host, ("origin", "http://localhost:8500")]), None);
        for origin in ["https://evil.example", "http://localhost:3000", "null"] {
            assert_eq!(refused("PUT", &[host, ("origin", origin)]), Some(403), "{origin}");
            assert_eq!(refused("GET", &[host, ("origin", origin)]), None, "the browser withholds the response");
        }
        assert_eq!(refused("POST", &[host, ("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(refused("POST", &[host, ("sec-fetch-site", "same-site")]), Some(403));
        assert_eq!(refused("POST", &[host, ("sec-fetch-site", "none")]), None);
    }
}
