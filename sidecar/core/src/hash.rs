//! Hash input of consistent balancing: header, cookie, source address or query parameter.
//!
//! Bit-compatible with Envoy (XXH64, seed 0), so that a mesh can be migrated endpoint by endpoint without moving
//! sessions.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::request::RequestView;

/// One input of the hash.
#[derive(Debug, Clone, PartialEq)]
pub enum HashPolicy {
    /// All values of a header.
    Header(HeaderName),
    /// A cookie, generated if it has a TTL and the request lacks it.
    Cookie(Cookie),
    /// The downstream's address without port.
    SourceIp,
    /// The first value of a query parameter, not decoded.
    QueryParam(String),
}

/// A cookie to hash by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// A valid cookie name.
    pub name: String,
    /// `Path` of a generated cookie; empty: none.
    pub path: String,
    /// `None`: never generated. Zero: a session cookie. Sub-second parts are cut off.
    pub ttl: Option<Duration>,
    /// Further attributes of a generated cookie, name and (maybe empty) value.
    pub attributes: Vec<(String, String)>,
}

/// Result of hashing a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashOutcome {
    /// `None`: no hash input; any endpoint is acceptable.
    pub hash: Option<u64>,
    /// Value of `set-cookie` for the response.
    pub set_cookie: Option<HeaderValue>,
}

/// Hashes a request by all policies, combined in order as `rotl1(old) ^ new`.
pub fn request_hash(policies: &[HashPolicy], req: &RequestView<'_>) -> HashOutcome {
    let mut outcome = HashOutcome::default();
    for policy in policies {
        let new = match policy {
            HashPolicy::Header(name) => header_hash(name, req),
            HashPolicy::Cookie(cookie) => match cookie_value(req.headers, &cookie.name) {
                Some(value) => Some(xxh64(value, 0)),
                None => cookie.ttl.map(|ttl| {
                    let value = generated_value(req.source, req.local);
                    // The last generated cookie wins; more than one cookie policy per route is unusual.
                    outcome.set_cookie = set_cookie(cookie, ttl, &value);
                    xxh64(value.as_bytes(), 0)
                }),
            },
            HashPolicy::SourceIp => Some(source_hash(req.source)),
            HashPolicy::QueryParam(name) => req.query_param(name).map(|value| xxh64(value.as_bytes(), 0)),
        };
        if let Some(new) = new {
            outcome.hash = Some(outcome.hash.map_or(new, |old| old.rotate_left(1) ^ new));
        }
    }
    outcome
}

/// Hashes a TCP connection, of which only the source address is available.
pub fn connection_hash(policies: &[HashPolicy], source: SocketAddr) -> Option<u64> {
    policies.iter().any(|policy| matches!(policy, HashPolicy::SourceIp)).then(|| source_hash(source))
}

/// XXH64 of host keys for the ring and the Maglev table.
pub(crate) fn key_hash(key: &[u8], seed: u64) -> u64 {
    xxh64(key, seed)
}

fn header_hash(name: &HeaderName, req: &RequestView<'_>) -> Option<u64> {
    let mut values: SmallVec<[&[u8]; 4]> = req.header_values(name).collect();
    if values.is_empty() {
        return None;
    }
    values.sort_unstable();
    // A single value is hashed plainly; each further one with the hash so far as the seed.
    Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn source_hash(source: SocketAddr) -> u64 {
    let mut text = SmallText::default();
    // Writing to a SmallText cannot fail.
    let _ = write!(text, "{}", source.ip());
    xxh64(&text.0, 0)
}

/// Text of an IP address, without allocation.
#[derive(Default)]
struct SmallText(SmallVec<[u8; 48]>);

impl Write for SmallText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// The first cookie with this name, without surrounding quotes.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).into_iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    for pair in pairs {
        let pair = pair.trim_ascii();
        let Some(split) = pair.iter().position(|b| *b == b'=') else { continue };
        if &pair[..split] == name.as_bytes() {
            let value = &pair[split + 1..];
            let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            return Some(unquoted.unwrap_or(value));
        }
    }
    None
}

fn generated_value(source: SocketAddr, local: SocketAddr) -> String {
    format!("{:016x}", xxh64(format!("{source}{local}").as_bytes(), 0))
}

fn set_cookie(cookie: &Cookie, ttl: Duration, value: &str) -> Option<HeaderValue> {
    let mut text = format!("{}=\"{value}\"", cookie.name);
    // Writing to a String cannot fail.
    if ttl.as_secs() != 0 {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if !cookie.path.is_empty() {
        let _ = write!(text, "; Path={}", cookie.path);
    }
    for (name, value) in &cookie.attributes {
        let _ = if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
    }
    text.push_str("; HttpOnly");
    // `compile` has checked that all parts are visible ASCII.
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::view;

    fn header(name: &'static str) -> HashPolicy {
        HashPolicy::Header(HeaderName::from_static(name))
    }

    fn cookie(ttl: Option<Duration>) -> HashPolicy {
        let attributes = vec![("SameSite".into(), "Strict".into()), ("Secure".into(), String::new())];
        HashPolicy::Cookie(Cookie { name: "session".into(), path: "/shop".into(), ttl, attributes })
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn xxh64_matches_reference_values() {
        assert_eq!(key_hash(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(key_hash(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
    }

    #[test]
    fn headers_are_hashed() {
        let one = headers(&[("x-user", "alice")]);
        assert_eq!(request_hash(&[header("x-user")], &view("/", "h", &one)).hash, Some(xxh64(b"alice", 0)));
        assert_eq!(request_hash(&[header("x-none")], &view("/", "h", &one)), HashOutcome::default());
        let mut ba = headers(&[("x-user", "b")]);
        ba.append("x-user", HeaderValue::from_static("a"));
        let chained = xxh64(b"b", xxh64(b"a", 0));
        assert_eq!(request_hash(&[header("x-user")], &view("/", "h", &ba)).hash, Some(chained));
        assert_eq!(request_hash(&[header("host")], &view("/", "h", &ba)).hash, Some(xxh64(b"h", 0)));
    }

    #[test]
    fn source_and_query_are_hashed_and_combined() {
        let none = HeaderMap::new();
        let req = view("/a?user=a%20b&user=c", "h", &none);
        let (ip, query) = (xxh64(b"10.0.0.1", 0), xxh64(b"a%20b", 0));
        assert_eq!(request_hash(&[HashPolicy::SourceIp], &req).hash, Some(ip));
        let param = HashPolicy::QueryParam("user".into());
        assert_eq!(request_hash(std::slice::from_ref(&param), &req).hash, Some(query));
        let all = [header("x-none"), HashPolicy::SourceIp, param];
        assert_eq!(request_hash(&all, &req).hash, Some(ip.rotate_left(1) ^ query));
        assert_eq!(connection_hash(&all, req.source), Some(ip));
        assert_eq!(connection_hash(&[header("x")], req.source), None);
    }

    #[test]
    fn an_existing_cookie_is_used() {
        for text in ["session=abc", "a=b; session=abc; session=x", "a;session=\"abc\""] {
            let mut map = HeaderMap::new();
            map.insert(COOKIE, HeaderValue::from_static(text));
            let outcome = request_hash(&[cookie(Some(Duration::ZERO))], &view("/", "h", &map));
            assert_eq!(outcome, HashOutcome { hash: Some(xxh64(b"abc", 0)), set_cookie: None }, "{text}");
        }
    }

    #[test]
    fn a_missing_cookie_is_generated_if_it_has_a_ttl() {
        let none = headers(&[("cookie", "sessions=1")]);
        let req = view("/", "h", &none);
        assert_eq!(request_hash(&[cookie(None)], &req), HashOutcome::default());
        let value = format!("{:016x}", xxh64(b"10.0.0.1:400010.0.0.2:80", 0));
        for (ttl, age) in [(Duration::ZERO, ""), (Duration::from_millis(5999), "; Max-Age=5")] {
            let outcome = request_hash(&[cookie(Some(ttl))], &req);
            assert_eq!(outcome.hash, Some(xxh64(value.as_bytes(), 0)));
            let text = format!("session=\"{value}\"{age}; Path=/shop; SameSite=Strict; Secure; HttpOnly");
            assert_eq!(outcome.set_cookie.unwrap().to_str().unwrap(), text);
        }
    }
}
