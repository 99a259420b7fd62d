//! Parsing of heads.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, request, response};
use httparse::Status;
use std::mem::MaybeUninit;

use super::target::{Form, is_authority, is_visible};
use super::{Framing, Limits};

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version and headers.
    pub parts: request::Parts,
    /// Framing of the body.
    pub framing: Framing,
    /// The client keeps the connection open for another request.
    pub keep_alive: bool,
    /// The client waits for "100 Continue" before it sends the body.
    pub expects_continue: bool,
    /// Whether its Connection header includes `upgrade`.
    pub names_upgrade: bool,
    /// The received head.
    pub origin: Bytes,
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, version and headers.
    pub parts: response::Parts,
    /// Framing of the body.
    pub framing: Framing,
    /// The server keeps the connection open for another request.
    pub keep_alive: bool,
    /// The received head.
    pub origin: Bytes,
}

/// Reason for refusing a head; the text names the violated rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More bytes or headers than the [`Limits`] allow.
    #[error("the head is too large")]
    TooLarge,
    /// Not HTTP/1, or ambiguous: the end of a body must be unambiguous (RFC 9112, 6.3).
    #[error("{0}")]
    Invalid(&'static str),
    /// Another version of HTTP than 1.0 and 1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// Another transfer coding than chunked, or chunked more than once: the received values, escaped.
    #[error("transfer-encoding \"{0}\"")]
    Coding(String),
}

impl From<httparse::Error> for HeadError {
    fn from(e: httparse::Error) -> Self {
        match e {
            httparse::Error::TooManyHeaders => HeadError::TooLarge,
            httparse::Error::Version => HeadError::Version,
            httparse::Error::HeaderName => HeadError::Invalid("invalid header name"),
            httparse::Error::HeaderValue => HeadError::Invalid("invalid header value"),
            httparse::Error::Status => HeadError::Invalid("invalid status"),
            _ => HeadError::Invalid("invalid start line"),
        }
    }
}

/// A head with its length; `None`: incomplete.
pub type Reading<T> = Result<Option<(T, usize)>, HeadError>;

/// Parses a request's head at the beginning of `input`. An absolute-form target replaces the Host header (RFC 9112,
/// 3.2.2), so that all parts of the head agree on the authority.
///
/// # Errors
/// If the input can never become a valid head; the connection must be closed then.
pub fn parse_request(input: &[u8], limits: Limits) -> Reading<RequestHead> {
    let mut space = [const { MaybeUninit::uninit() }; Limits::MESH.headers];
    let space = &mut space[..limits.headers.min(Limits::MESH.headers)];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(input, space).map_err(|e| match e {
        // An unencoded space in the target looks like a wrong version.
        httparse::Error::Version if !names_version(input) => HeadError::Invalid("invalid start line"),
        e => e.into(),
    })?;
    let Some(origin) = whole(status, input, limits)? else { return Ok(None) };
    let slice = |part: &[u8]| within(&origin, input, part);
    let version = version(parsed.version);
    let (headers, about) = headers(parsed.headers, &slice, version)?;
    let framing = match (about.coded, about.length) {
        (Some(_), Some(_)) => return Err(HeadError::Invalid("both content-length and transfer-encoding")),
        (Some(_), _) if version == Version::HTTP_10 => {
            return Err(HeadError::Invalid("transfer-encoding in HTTP/1.0"));
        }
        (Some(true), None) => Framing::Chunked,
        (Some(false), None) => return Err(coding(&headers)),
        (None, Some(0) | None) => Framing::None,
        (None, Some(length)) => Framing::Length(length),
    };
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = parsed
        .method
        .and_then(|m| Method::from_bytes(m.as_bytes()).ok())
        .ok_or(HeadError::Invalid("invalid method"))?;
    (parts.version, parts.headers) = (version, headers);
    let target = parsed.path.unwrap_or_default().as_bytes();
    // Fast path of almost all requests: an origin-form target that `http::Uri` accepts unchanged.
    let usual = target.starts_with(b"/") && is_visible(target) && parts.method != Method::CONNECT;
    let mut absolute = false;
    match usual.then(|| Uri::from_maybe_shared(slice(target))) {
        Some(Ok(uri)) => parts.uri = uri,
        _ => {
            let form = Form::parse(&parts.method, slice(target))?;
            absolute = matches!(form, Form::Absolute(..));
            place(form, &mut parts)?;
        }
    }
    // RFC 9112, 3.2.
    if about.hosts > 1 || (about.hosts == 0 && version == Version::HTTP_11 && !absolute) {
        return Err(HeadError::Invalid("exactly one Host header is required"));
    }
    let (keep_alive, expects_continue) = (about.keep_alive, about.expects && version == Version::HTTP_11);
    let (names_upgrade, length) = (about.names_upgrade, origin.len());
    Ok(Some((RequestHead { parts, framing, keep_alive, expects_continue, names_upgrade, origin }, length)))
}

/// Sets the target of a request.
fn place(form: Form, parts: &mut request::Parts) -> Result<(), HeadError> {
    let mut uri = http::uri::Parts::default();
    let target = match form {
        Form::Origin(target) => Some(target),
        Form::Absolute(scheme, authority, target) => {
            if parts.headers.get(HOST).is_none_or(|host| host.as_bytes() != authority.as_str().as_bytes()) {
                let host = HeaderValue::from_str(authority.as_str());
                parts.headers.insert(HOST, host.map_err(|_| HeadError::Invalid("invalid authority"))?);
            }
            (uri.scheme, uri.authority) = (Some(scheme), Some(authority));
            uri.path_and_query = Some(PathAndQuery::from_static("/"));
            Some(target)
        }
        Form::Authority(authority) => {
            uri.authority = Some(authority);
            None
        }
        Form::Asterisk => {
            uri.path_and_query = Some(PathAndQuery::from_static("*"));
            None
        }
    };
    parts.uri = Uri::from_parts(uri).map_err(|_| HeadError::Invalid("invalid request target"))?;
    if let Some(target) = target {
        target.replace(parts);
    }
    Ok(())
}

/// Parses a response's head at the beginning of `input`. `method`: that of the request.
///
/// # Errors
/// If the input can never become a valid head; the connection must be closed then.
pub fn parse_response(input: &[u8], method: &Method, limits: Limits) -> Reading<ResponseHead> {
    let mut space = [const { MaybeUninit::uninit() }; Limits::MESH.headers];
    let space = &mut space[..limits.headers.min(Limits::MESH.headers)];
    let mut parsed = httparse::Response::new(&mut []);
    let mut lenient = httparse::ParserConfig::default();
    // Some servers send these, and browsers accept them.
    lenient.allow_multiple_spaces_in_response_status_delimiters(true);
    let status = lenient.parse_response_with_uninit_headers(&mut parsed, input, space)?;
    let Some(origin) = whole(status, input, limits)? else { return Ok(None) };
    let slice = |part: &[u8]| within(&origin, input, part);
    let version = version(parsed.version);
    let (mut headers, about) = headers(parsed.headers, &slice, version)?;
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| HeadError::Invalid("invalid status"))?;
    let never_has_content =
        status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if never_has_content {
        // Some servers send a Content-Length anyway, and a client that trusts it waits for a body, or resets the
        // stream.
        headers.remove(CONTENT_LENGTH);
    }
    let bodiless = never_has_content || *method == Method::HEAD || (*method == Method::CONNECT && status.is_success());
    let framing = match (about.coded, about.length) {
        _ if bodiless => Framing::None,
        (Some(false), _) => return Err(coding(&headers)),
        (Some(true), length) => {
            // The transfer coding takes precedence (RFC 9112, 6.1).
            if length.is_some() {
                headers.remove(CONTENT_LENGTH);
            }
            Framing::Chunked
        }
        (None, Some(0)) => Framing::None,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    };
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.version, parts.headers) = (status, version, headers);
    let keep_alive = about.keep_alive && framing != Framing::UntilClose;
    let length = origin.len();
    Ok(Some((ResponseHead { parts, framing, keep_alive, origin }, length)))
}

/// The head at the beginning of `input`, if it is complete.
fn whole(status: Status<usize>, input: &[u8], limits: Limits) -> Result<Option<Bytes>, HeadError> {
    match status {
        Status::Complete(length) if length <= limits.bytes => Ok(Some(Bytes::copy_from_slice(&input[..length]))),
        Status::Partial if input.len() < limits.bytes => Ok(None),
        _ => Err(HeadError::TooLarge),
    }
}

/// Whether the first line is a method, a target and some version of HTTP.
fn names_version(input: &[u8]) -> bool {
    let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    words.next().is_some_and(|word| word.starts_with(b"HTTP/")) && words.next().is_none()
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// The slice of `origin` that corresponds to `part` of `input`.
fn within(origin: &Bytes, input: &[u8], part: &[u8]) -> Bytes {
    let start = part.as_ptr() as usize - input.as_ptr() as usize;
    origin.slice(start..start + part.len())
}

/// Properties of the message given by its headers.
struct About {
    length: Option<u64>,
    /// Set if there is a transfer coding: whether it is a single `chunked`.
    coded: Option<bool>,
    keep_alive: bool,
    expects: bool,
    names_upgrade: bool,
    hosts: usize,
}

fn headers(
    parsed: &[httparse::Header<'_>],
    slice: &impl Fn(&[u8]) -> Bytes,
    version: Version,
) -> Result<(HeaderMap, About), HeadError> {
    let mut about = About {
        length: None,
        coded: None,
        keep_alive: version == Version::HTTP_11,
        expects: false,
        names_upgrade: false,
        hosts: 0,
    };
    // Capacity for the headers that the proxy adds.
    let mut headers = HeaderMap::with_capacity(parsed.len() + 6);
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let name = name.map_err(|_| HeadError::Invalid("invalid header name"))?;
        let value = HeaderValue::from_maybe_shared(slice(header.value));
        let value = value.map_err(|_| HeadError::Invalid("invalid header value"))?;
        match name {
            CONTENT_LENGTH => {
                if about.length.is_some() {
                    return Err(HeadError::Invalid("more than one content-length"));
                }
                about.length = Some(length(header.value).ok_or(HeadError::Invalid("invalid content-length"))?);
            }
            TRANSFER_ENCODING => {
                let chunked = header.value.eq_ignore_ascii_case(b"chunked") && about.coded.is_none();
                about.coded = Some(chunked);
            }
            CONNECTION => {
                for token in header.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        about.keep_alive = false;
                    } else if version == Version::HTTP_10 && token.eq_ignore_ascii_case(b"keep-alive") {
                        about.keep_alive = true;
                    } else if token.eq_ignore_ascii_case(b"upgrade") {
                        about.names_upgrade = true;
                    }
                }
            }
            HOST => {
                about.hosts += 1;
                if !is_authority(header.value) {
                    return Err(HeadError::Invalid("the Host header is not host:port"));
                }
            }
            EXPECT => about.expects = header.value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        headers.try_append(name, value).map_err(|_| HeadError::TooLarge)?;
    }
    Ok((headers, about))
}

/// The error for transfer codings other than a single `chunked`.
fn coding(headers: &HeaderMap) -> HeadError {
    /// Maximum length of the quoted values in the error.
    const MOST: usize = 100;
    let all: Vec<&[u8]> = headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes).collect();
    let all = all.join(&b", "[..]);
    HeadError::Coding(all[..all.len().min(MOST)].escape_ascii().to_string())
}

/// Digits only: "+1" and "0x10" are not lengths (RFC 9110, 8.6).
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}
