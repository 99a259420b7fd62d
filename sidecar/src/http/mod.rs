//! HTTP on both sides of the proxy: serving a connection, and preparing messages for the next hop.

pub mod body;
pub mod date;
pub mod http1;
pub mod http2;
pub mod incoming;
pub mod outcome;

use http::header::{CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use rand::Rng;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::http1::{Limits, Target, is_authority, may_be_trailer, path_and_query};
use weft_core::path::{self, Normalisation};
use weft_core::reply::{LocalReply, Reason};

use crate::http::body::ResponseBody;
use crate::http::http1::{Service, Unread};
use crate::http::incoming::Incoming;
use crate::net::stream::MaybeSocket;

/// About the connection, not about the message; framing is decided anew for each hop.
const HOP: [HeaderName; 6] = [CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE, TE, UPGRADE, PROXY_CONNECTION];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Traces a request through the mesh.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Which attempt this is, from 1, as Envoy counts.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// Between sidecars: the request came as HTTP/1 and was upgraded for the way; the application is to see HTTP/1.
pub const HTTP1_CLIENT: HeaderName = HeaderName::from_static("x-weft-http1-client");
/// Between sidecars: this answer is the sidecar's own, and the application has seen nothing of the request.
pub const UNDELIVERED: HeaderName = HeaderName::from_static("x-weft-undelivered");
/// How the client called.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Serves one HTTP/1 connection to its end.
pub async fn serve_http1<I, F, R, Fut>(io: I, service: Service<F, R>)
where
    I: AsyncRead + AsyncWrite + MaybeSocket + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    R: Fn(Unread) -> Response<ResponseBody>,
    Fut: Future<Output = Response<ResponseBody>>,
{
    if let Err(e) = http1::serve(io, service).await {
        tracing::debug!("HTTP/1 connection from a client ended: {e}");
    }
}

/// Serves one HTTP/2 connection to its end. GOAWAY is sent when `drain` is over.
pub async fn serve_http2<I, F, Fut>(io: I, drain: impl Future<Output = ()>, handle: F)
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    if let Err(e) = http2::serve(io, drain, handle).await {
        tracing::debug!("HTTP/2 connection from a client ended: {e}");
    }
}

/// The authority that a request names, with its port.
pub fn authority(parts: &Parts) -> &str {
    match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or(""),
    }
}

/// What a request wants besides a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    Nothing,
    /// Another protocol on its connection, which is allowed here.
    Upgrade,
    /// A tunnel to its authority (RFC 9110, 9.3.6).
    Connect,
}

/// Whether an HTTP/1 request wants to leave HTTP: by an upgrade or CONNECT. `named`: its Connection header names `upgrade`.
/// `Upgrade: h2c` is ignored as in Envoy (RFC 9110, 7.8, allows it): routes and logs could not see the requests after it.
pub fn may_upgrade(parts: &Parts, in_connection: bool) -> bool {
    let is_h2c = |token: &HeaderValue| token.as_bytes().eq_ignore_ascii_case(b"h2c");
    parts.method == Method::CONNECT || (in_connection && !parts.headers.get_all(UPGRADE).iter().all(is_h2c))
}

/// Normalises a request's head, whichever protocol it came by, and finds what it wants besides a response.
/// `may_upgrade`: it wants to leave HTTP ([`may_upgrade`]). `upgrades`: the protocols that may be tunnelled, in lower case.
///
/// # Errors
/// The reason of the refusal.
pub fn admit(parts: &mut Parts, limits: Limits, may_upgrade: bool, upgrades: &[String]) -> Result<Asks, Reason> {
    if parts.version == Version::HTTP_2 {
        check_http2(parts, limits)?;
    }
    if !normalise_path(parts) {
        return Err(Reason::BadRequest { detail: NO_PATH });
    }
    if parts.method == Method::CONNECT {
        return Ok(Asks::Connect);
    }
    if !may_upgrade {
        return Ok(Asks::Nothing);
    }
    let mut tokens = parts.headers.get_all(UPGRADE).iter();
    let token = tokens.next().map(HeaderValue::as_bytes).unwrap_or_default();
    let allowed = upgrades.iter().any(|known| token.eq_ignore_ascii_case(known.as_bytes()));
    if allowed && tokens.next().is_none() {
        return Ok(Asks::Upgrade);
    }
    Err(Reason::UpgradeRefused { token: token[..token.len().min(MAX_TOKEN)].escape_ascii().to_string() })
}

/// Of a path that has no normal form.
const NO_PATH: &str = "the path holds an encoded NUL, or is too long";
/// Bytes of an upgrade's name that are shown.
const MAX_TOKEN: usize = 64;

/// The checks that the parser of HTTP/1 makes: the size of a head, and that it names one authority (RFC 9113, 8.3.1).
fn check_http2(parts: &mut Parts, limits: Limits) -> Result<(), Reason> {
    if parts.headers.len() > limits.headers || head_size(&parts.headers) > limits.bytes as u64 {
        return Err(Reason::HeaderTooLarge);
    }
    match parts.uri.authority() {
        Some(authority) if is_authority(authority.as_str().as_bytes()) => {
            // `:authority` is the one that counts.
            parts.headers.remove(HOST);
        }
        Some(_) => return Err(Reason::BadRequest { detail: ":authority is not host:port" }),
        None => {
            let mut hosts = parts.headers.get_all(HOST).iter();
            if hosts.next().is_some_and(|host| !is_authority(host.as_bytes())) || hosts.next().is_some() {
                return Err(Reason::BadRequest { detail: "the Host header is not host:port" });
            }
        }
    }
    if parts.uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(Reason::BadRequest { detail: "* is a target of OPTIONS only" });
    }
    Ok(())
}

/// Bytes of a head: as it came (`origin`), or, where it did not come by HTTP/1, of its fields in HTTP/1.
pub fn head_bytes(origin: &[u8], headers: &HeaderMap) -> u64 {
    if origin.is_empty() { head_size(headers) } else { origin.len() as u64 }
}

/// Bytes that header fields take in HTTP/1.
fn head_size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + ": \r\n".len()) as u64).sum()
}

/// Removes from trailers fields that have a meaning in a head only, or that sidecars and applications trust in a head: a program
/// that merges trailers into the headers would trust them too.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let removed: SmallVec<[HeaderName; 4]> = trailers.keys().filter(|name| !may_be_trailer(name)).cloned().collect();
    for name in removed {
        trailers.remove(name);
    }
}

/// Removes the headers that are about the connection they came by (RFC 9110, 7.6.1). An upgrade is about the next one
/// too, and stays.
pub fn remove_hop_headers(headers: &mut HeaderMap, keep_upgrade: bool) {
    // Looking through the few that there are costs less than asking for each by name.
    let found: SmallVec<[HeaderName; 4]> = headers.keys().filter(|name| HOP.contains(name)).cloned().collect();
    if found.contains(&CONNECTION) {
        // The usual values name no header.
        let values = headers.get_all(CONNECTION).iter().filter(|v| *v != "keep-alive" && *v != "close");
        let values = values.filter_map(|v| v.to_str().ok());
        let in_connection: SmallVec<[HeaderName; 4]> =
            values.flat_map(|v| v.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
        for name in in_connection.into_iter().filter(|name| !HOP.contains(name)) {
            headers.remove(name);
        }
    }
    for name in found {
        match name {
            UPGRADE if keep_upgrade => {}
            // The one of its values that concerns the endpoint too: gRPC needs it.
            TE if takes_trailers(headers) => drop(headers.insert(TE, HeaderValue::from_static("trailers"))),
            name => drop(headers.remove(name)),
        }
    }
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TE).iter().filter_map(|te| te.to_str().ok()).flat_map(|te| te.split(','));
    values.any(|value| value.trim().eq_ignore_ascii_case("trailers"))
}

/// Gives a request's path its normal form. `false`: it has none.
#[must_use]
fn normalise_path(parts: &mut Parts) -> bool {
    match path::normalise(path_and_query(parts)) {
        Normalisation::Unchanged => true,
        Normalisation::Invalid => false,
        // It may be too long in that form: then it has none, and the other one is not to be seen by anything.
        Normalisation::Changed(path) => Target::parse(path.into()).map(|target| target.replace(parts)).is_ok(),
    }
}

/// The form of the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// HTTP/1 to an origin server.
    Origin,
    /// HTTP/1 in absolute-form, where the request came in it: to a proxy that the application chose itself, or to its original
    /// destination.
    AsItCame,
    /// HTTP/2.
    Http2,
}

/// Gives a request the form of the next hop's protocol. `authority`: the one that the upstream sees.
pub fn address_request(parts: &mut Parts, authority: &str, form: Form) {
    let http2 = form == Form::Http2;
    if parts.method == Method::CONNECT && !http2 {
        return;
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    if form == Form::AsItCame
        && parts.version != Version::HTTP_2
        && let Some(scheme) = parts.uri.scheme()
    {
        // Without an authority there is no absolute-form.
        uri.authority = authority.parse().ok();
        uri.scheme = uri.authority.is_some().then(|| scheme.clone());
    }
    if http2 {
        parts.version = Version::HTTP_2;
        parts.headers.remove(HOST);
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = authority.parse::<Authority>().ok();
        if uri.authority.is_none() {
            uri.authority = Some(Authority::from_static("localhost"));
        }
    } else {
        if parts.version == Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        parts.version = Version::HTTP_11;
        let unchanged = parts.headers.get(HOST).is_some_and(|h| h.as_bytes() == authority.as_bytes());
        if !unchanged && let Ok(value) = HeaderValue::from_str(authority) {
            parts.headers.insert(HOST, value);
        }
    }
    uri.path_and_query = Some(path);
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
}

/// Values that are another one in each request. As entries of HPACK's table they would push out those that come again, and
/// each request would be compared with all of them.
const UNIQUE: [HeaderName; 7] = [
    REQUEST_ID,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-parentspanid"),
];

/// Keeps values that never come again out of HPACK's table (RFC 7541, 6.2.3).
pub fn index_no_unique_values(headers: &mut HeaderMap) {
    for (_, value) in headers.iter_mut().filter(|(name, _)| UNIQUE.contains(name)) {
        value.set_sensitive(true);
    }
}

/// HTTP/2 may send cookies one by one; an HTTP/1 server looks at one header (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let joined = {
        let all: SmallVec<[&[u8]; 8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        (all.len() > 1).then(|| HeaderValue::from_bytes(&all.join(&b"; "[..])))
    };
    if let Some(Ok(joined)) = joined {
        headers.insert(COOKIE, joined);
    }
}

/// Gives a response the form of the client's connection.
pub fn address_response<B>(response: &mut Response<B>, client: Version, draining: bool) {
    let upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    remove_hop_headers(response.headers_mut(), upgrade);
    *response.version_mut() = if client == Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
    if draining && !upgrade && client != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Sets a request id: the client's, or a new random UUID.
pub fn ensure_request_id(headers: &mut HeaderMap) {
    if headers.contains_key(REQUEST_ID) {
        return;
    }
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [0u8; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text[at] = b'-';
            at += 1;
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(REQUEST_ID, value);
    }
}

/// A response of the proxy itself. `grpc`: the request is gRPC.
pub fn local_reply(reason: &Reason, policy: &str, grpc: bool) -> (LocalReply, Response<ResponseBody>) {
    let reply = LocalReply::new(reason, policy);
    let response = if grpc { reply.grpc() } else { reply.http() };
    (reply, response.map(ResponseBody::full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    /// A path that has no normal form is refused: it would pass by a route that looks at the normal form.
    #[test]
    fn paths_are_normalised_or_refused() {
        let of = |path: String| {
            let mut parts = Request::builder().uri(path).body(()).unwrap().into_parts().0;
            (normalise_path(&mut parts), path_and_query(&parts).to_owned())
        };
        assert_eq!(of("/x/../admin?a=../b".to_owned()), (true, "/admin?a=../b".to_owned()));
        assert!(!of("/a%00b".to_owned()).0);
        // Each of them is three bytes then.
        let (taken, _) = of(format!("/x/../admin/{}", "\"".repeat(22_000)));
        assert!(!taken, "longer than a path can be");
    }

    fn admitted(request: http::request::Builder) -> Result<Asks, Reason> {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let in_connection =
            parts.headers.get_all("connection").iter().any(|value| value.as_bytes().ends_with(b"Upgrade"));
        let leaves = may_upgrade(&parts, in_connection);
        admit(&mut parts, Limits::OUTSIDE, leaves, &["websocket".to_owned()])
    }

    /// As the parser of HTTP/1 does.
    #[test]
    fn a_head_of_http2_names_one_authority_and_has_a_largest_size() {
        let request = |uri: &str| Request::builder().version(Version::HTTP_2).uri(uri);
        assert_eq!(admitted(request("http://a/")), Ok(Asks::Nothing));
        assert!(matches!(admitted(request("http://u@a/")), Err(Reason::BadRequest { .. })));
        assert!(matches!(admitted(request("/").header("host", "u@a")), Err(Reason::BadRequest { .. })));
        assert!(matches!(
            admitted(request("/").header("host", "a").header("host", "b")),
            Err(Reason::BadRequest { .. })
        ));
        let (mut parts, ()) = request("http://a/").header("host", "b").body(()).unwrap().into_parts();
        admit(&mut parts, Limits::OUTSIDE, false, &[]).unwrap();
        assert!(!parts.headers.contains_key("host"), "{parts:?}");
        let with = |count: usize, value: &str| {
            (0..count).fold(request("http://a/"), |request, i| request.header(format!("x-{i}"), value))
        };
        assert_eq!(admitted(with(100, "a")), Ok(Asks::Nothing));
        assert_eq!(admitted(with(101, "a")), Err(Reason::HeaderTooLarge));
        assert_eq!(admitted(with(5, &"y".repeat(15_000))), Err(Reason::HeaderTooLarge));
    }

    #[test]
    fn only_allowed_upgrades_are_admitted() {
        let upgrade = |token: &str| {
            Request::builder().uri("/").header("host", "a").header("connection", "x, Upgrade").header("upgrade", token)
        };
        assert_eq!(admitted(upgrade("WebSocket")), Ok(Asks::Upgrade));
        assert_eq!(admitted(upgrade("h2c")), Ok(Asks::Nothing));
        for token in ["foo", "websocket, foo", "h2c, websocket", ""] {
            assert_eq!(admitted(upgrade(token)), Err(Reason::UpgradeRefused { token: token.to_owned() }));
        }
        assert!(admitted(upgrade("websocket").header("upgrade", "foo")).is_err());
        // Without `upgrade` in its Connection header the field does not count.
        assert_eq!(admitted(Request::builder().uri("/").header("upgrade", "foo")), Ok(Asks::Nothing));
        assert_eq!(admitted(Request::builder().method("CONNECT").uri("a:80")), Ok(Asks::Connect));
    }

    #[test]
    fn trusted_headers_are_removed_from_trailers() {
        let mut trailers = headers(&[
            ("grpc-status", "0"),
            ("x-forwarded-client-cert", "By=me"),
            ("x-envoy-retry-on", "5xx"),
            ("x-weft-undelivered", "1"),
            ("host", "a"),
            ("content-length", "1"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0")]));
    }

    #[test]
    fn hop_by_hop_headers_are_removed() {
        let all = [
            ("connection", "keep-alive"),
            ("connection", "X-Secret, te"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ];
        let mut plain = headers(&all);
        remove_hop_headers(&mut plain, false);
        assert_eq!(plain, headers(&[("te", "trailers"), ("x-kept", "1")]));
        let mut upgrade = headers(&all);
        remove_hop_headers(&mut upgrade, true);
        let kept = [("te", "trailers"), ("upgrade", "websocket"), ("x-kept", "1"), ("connection", "upgrade")];
        assert_eq!(upgrade, headers(&kept));
        for (value, left) in [("gzip", None), ("trailers, deflate", Some("trailers")), ("deflate;q=0.5", None)] {
            let mut te = headers(&[("te", value), ("a", "b")]);
            remove_hop_headers(&mut te, false);
            assert_eq!(
                (te.get("te").map(|te| te.to_str().unwrap()), te.len()),
                (left, 1 + usize::from(left.is_some()))
            );
        }
        // They concern the application and the proxy that it chose.
        let mut proxy = headers(&[("proxy-authenticate", "Basic"), ("proxy-authorization", "Basic x")]);
        remove_hop_headers(&mut proxy, false);
        assert_eq!(proxy.len(), 2);
    }

    #[test]
    fn unique_values_are_not_indexed() {
        let mut all = headers(&[("x-request-id", "1"), ("traceparent", "2"), ("user-agent", "curl")]);
        index_no_unique_values(&mut all);
        let indexed: Vec<_> = all.iter().filter(|(_, value)| !value.is_sensitive()).map(|(name, _)| name).collect();
        assert_eq!(indexed, ["user-agent"]);
    }

    #[test]
    fn cookies_are_joined_for_http1() {
        let request =
            Request::get("http://a/").version(Version::HTTP_2).header("cookie", "a=1").header("cookie", "b=2");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        address_request(&mut parts, "a", Form::Http2);
        assert_eq!(parts.headers.get_all("cookie").iter().count(), 2);
        address_request(&mut parts, "a", Form::Origin);
        assert_eq!(parts.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
