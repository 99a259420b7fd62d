//! Compiles the conditions of routes.

use regex::{Regex, RegexBuilder};
use weft_proto::v1;

use crate::route::matcher::{HeaderMatch, Matcher, StringMatch, UriMatch, anchored};

use super::{At, Result, error, header_name, port_number};

/// Istio's bound for a regex, in bytes.
const MAX_REGEX: usize = 1024;
/// Of a compiled regex, in bytes.
const MAX_REGEX_PROGRAM: usize = 2 << 20;

/// What counts of a request.
pub(super) fn matcher(message: &v1::HttpMatch) -> Result<Matcher> {
    let mut headers = Vec::with_capacity(message.headers.len());
    for (i, item) in message.headers.iter().enumerate() {
        let at = format_args!("headers[{i}]").to_string();
        let name = header_name(&item.name).at("name").at(&at)?;
        let absent = matches!(kind(item.value.as_ref()), Some(v1::string_match::Kind::Present(false)));
        let condition = match absent {
            true => HeaderMatch::Absent,
            false => HeaderMatch::Value(string_match(item.value.as_ref()).at("value").at(&at)?),
        };
        headers.push((name, condition));
    }
    for (i, item) in message.without_headers.iter().enumerate() {
        let at = format_args!("without_headers[{i}]").to_string();
        let name = header_name(&item.name).at("name").at(&at)?;
        headers.push((name, HeaderMatch::Without(string_match(item.value.as_ref()).at("value").at(&at)?)));
    }
    let mut query_params = Vec::with_capacity(message.query_params.len());
    for (i, item) in message.query_params.iter().enumerate() {
        let condition = string_match(item.value.as_ref()).at("value").at(format_args!("query_params[{i}]"))?;
        query_params.push((item.name.clone(), condition));
    }
    let optional = |message: Option<&v1::StringMatch>| message.map(|message| string_match(Some(message))).transpose();
    Ok(Matcher {
        uri: uri_match(message.uri.as_ref(), message.ignore_uri_case).at("uri")?,
        method: optional(message.method.as_ref()).at("method")?,
        authority: optional(message.authority.as_ref()).at("authority")?,
        headers,
        query_params,
        scheme: optional(message.scheme.as_ref()).at("scheme")?,
        port: (message.port != 0).then(|| port_number(message.port)).transpose().at("port")?,
    })
}

fn kind(message: Option<&v1::StringMatch>) -> Option<&v1::string_match::Kind> {
    message.and_then(|message| message.kind.as_ref())
}

fn uri_match(message: Option<&v1::StringMatch>, ignore_case: bool) -> Result<Option<UriMatch>> {
    use v1::string_match::Kind;
    Ok(match kind(message) {
        Some(Kind::Exact(path)) => Some(UriMatch::Exact { path: path.clone(), ignore_case }),
        Some(Kind::Prefix(path)) => Some(UriMatch::Prefix { path: path.clone(), ignore_case }),
        Some(Kind::Regex(pattern)) if pattern == "*" => None,
        Some(Kind::Regex(pattern)) => Some(UriMatch::Regex(whole(pattern).at("regex")?)),
        Some(Kind::Present(false)) => return error("present", "a request always has a path"),
        Some(Kind::Present(true)) | None => None,
    })
}

/// A condition on a text; none is given: anything.
pub(super) fn string_match(message: Option<&v1::StringMatch>) -> Result<StringMatch> {
    use v1::string_match::Kind;
    Ok(match kind(message) {
        Some(Kind::Exact(text)) => StringMatch::Exact(text.clone()),
        Some(Kind::Prefix(text)) => StringMatch::Prefix(text.clone()),
        // Istio's way to write presence.
        Some(Kind::Regex(pattern)) if pattern == "*" => StringMatch::Any,
        Some(Kind::Regex(pattern)) => StringMatch::Regex(bytes_regex(pattern).at("regex")?),
        Some(Kind::Present(false)) => return error("present", "absence can be asked of headers only"),
        Some(Kind::Present(true)) | None => StringMatch::Any,
    })
}

/// A regex that matches the whole text.
fn whole(pattern: &str) -> std::result::Result<Regex, String> {
    // Alone first: `a)|(b` would become valid by what is put around it, and no longer be anchored.
    searched(pattern)?;
    searched(&anchored(pattern))
}

/// One that is looked for in a text.
pub(super) fn searched(pattern: &str) -> std::result::Result<Regex, String> {
    if pattern.len() > MAX_REGEX {
        return Err(format!("is longer than {MAX_REGEX} bytes"));
    }
    let built = RegexBuilder::new(pattern).size_limit(MAX_REGEX_PROGRAM).build();
    built.map_err(|e| format!("{pattern:?} is not a usable regex: {e}"))
}

/// The same for header values, which need not be UTF-8.
fn bytes_regex(pattern: &str) -> std::result::Result<regex::bytes::Regex, String> {
    whole(pattern)?;
    let built = regex::bytes::RegexBuilder::new(&anchored(pattern)).size_limit(MAX_REGEX_PROGRAM).build();
    built.map_err(|e| format!("{pattern:?} is not a usable regex: {e}"))
}
