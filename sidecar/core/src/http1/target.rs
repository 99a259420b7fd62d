//! Request targets and authorities: allowed bytes, and the representation of targets that `http::Uri` cannot hold.
//!
//! RFC 9112, 3.2, allows fewer bytes than clients send: Prometheus' `?query=up{job="a"}` has quotes. Envoy accepts
//! every visible ASCII byte except `#`, and so does Weft. Such a target is kept unchanged in the request's extensions,
//! and percent-encoded in its URI, the only form that the `h2` crate sends.

use bytes::Bytes;
use http::request::Parts;
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{Method, Uri};

use super::HeadError;

/// A received path and query that `http::Uri` cannot hold. UTF-8.
#[derive(Debug, Clone)]
struct Raw(Bytes);

/// Path and query of a request target.
#[derive(Debug, Clone)]
pub struct Target {
    encoded: PathAndQuery,
    raw: Option<Raw>,
}

/// A whole request target, by form (RFC 9112, 3.2).
#[derive(Debug)]
pub(super) enum Form {
    /// `/path?query`.
    Origin(Target),
    /// `http://host/path?query`.
    Absolute(Scheme, Authority, Target),
    /// `host:port`, for CONNECT.
    Authority(Authority),
    /// `*`, for OPTIONS.
    Asterisk,
}

const CHARACTERS: HeadError = HeadError::Invalid("the request target has bytes other than visible ASCII, or '#'");
const FORM: HeadError = HeadError::Invalid("the request target is neither a path nor an http or https URI");

impl Target {
    /// Parses a path with its query, which begins with `/`; a query alone gets the path `/`.
    ///
    /// # Errors
    /// [`HeadError::Invalid`] for another beginning, spaces, control characters, `#` and invalid UTF-8;
    /// [`HeadError::TooLarge`] for more than `http::Uri` holds (64 KiB).
    pub fn parse(text: Bytes) -> Result<Target, HeadError> {
        let text = match text.first() {
            Some(b'/') => text,
            Some(b'?') => [b"/", &text[..]].concat().into(),
            _ => return Err(FORM),
        };
        if text.iter().any(|byte| byte.is_ascii_control() || matches!(byte, b' ' | b'#')) {
            return Err(CHARACTERS);
        }
        if let Ok(encoded) = PathAndQuery::from_maybe_shared(text.clone()) {
            return Ok(Target { encoded, raw: None });
        }
        let raw = std::str::from_utf8(&text).map_err(|_| CHARACTERS)?;
        Ok(Target { encoded: encode(raw).parse().map_err(too_large)?, raw: Some(Raw(text)) })
    }

    /// Replaces a request's path and query. Scheme and authority of its URI stay.
    pub fn replace(self, parts: &mut Parts) {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(self.encoded);
        parts.uri = Uri::from_parts(uri).unwrap_or_default();
        match self.raw {
            Some(raw) => drop(parts.extensions.insert(raw)),
            None => drop(parts.extensions.remove::<Raw>()),
        }
    }
}

/// The path and query of a request in the sender's spelling; "/" if there is none.
#[inline]
pub fn path_and_query(parts: &Parts) -> &str {
    if let Some(Raw(raw)) = parts.extensions.get() {
        // `Target::parse` has checked that it is UTF-8.
        return std::str::from_utf8(raw).unwrap_or("/");
    }
    parts.uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

/// Whether `text` consists of bytes of an authority: host, port, IP literal (RFC 3986, 3.2); may be empty. Userinfo is
/// not accepted: RFC 9110, 4.2.4, tells recipients to treat it as an error.
pub fn is_authority(text: &[u8]) -> bool {
    text.iter().all(|byte| AUTHORITY[usize::from(*byte)])
}

/// Bytes of an authority. A table, since every request has one.
static AUTHORITY: [bool; 256] = {
    let mut all = [false; 256];
    let (mut byte, others) = (0, b"-._~%!$&'()*+,;=:[]");
    while byte < 128 {
        all[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        all[others[at] as usize] = true;
        at += 1;
    }
    all
};

impl Form {
    /// Parses the target of a request with this method.
    pub(super) fn parse(method: &Method, text: Bytes) -> Result<Form, HeadError> {
        if !is_visible(&text) {
            return Err(CHARACTERS);
        }
        if *method == Method::CONNECT {
            let authority = Authority::from_maybe_shared(text).ok().filter(|a| is_authority(a.as_str().as_bytes()));
            return authority.map(Form::Authority).ok_or(HeadError::Invalid("the target of CONNECT must be host:port"));
        }
        match text.first() {
            Some(b'/') => Target::parse(text).map(Form::Origin),
            Some(b'*') if text.len() == 1 && *method == Method::OPTIONS => Ok(Form::Asterisk),
            Some(b'*') if text.len() == 1 => Err(HeadError::Invalid("* is a target of OPTIONS only")),
            _ => Form::absolute(&text),
        }
    }

    fn absolute(text: &Bytes) -> Result<Form, HeadError> {
        let (scheme, length) = match text {
            _ if starts_with(text, b"http://") => (Scheme::HTTP, 7),
            _ if starts_with(text, b"https://") => (Scheme::HTTPS, 8),
            _ => return Err(FORM),
        };
        let rest = text.slice(length..);
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let target = if end == rest.len() { Bytes::from_static(b"/") } else { rest.slice(end..) };
        let authority = Authority::from_maybe_shared(rest.slice(..end)).ok();
        let authority = authority.filter(|authority| is_authority(authority.as_str().as_bytes()));
        let authority = authority.ok_or(HeadError::Invalid("the authority of the request target is not host:port"))?;
        Ok(Form::Absolute(scheme, authority, Target::parse(target)?))
    }
}

/// Whether a target is visible ASCII without a fragment.
pub(super) fn is_visible(target: &[u8]) -> bool {
    target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn too_large(_: InvalidUri) -> HeadError {
    HeadError::TooLarge
}

/// Percent-encodes the bytes that `http::Uri` does not hold.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'`' | 0x80.. => encoded.push_str(&format!("%{byte:02X}")),
            byte => encoded.push(char::from(byte)),
        }
    }
    encoded
}
