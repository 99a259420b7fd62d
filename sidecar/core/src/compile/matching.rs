//! Compiles the match conditions of routes.

use weft_proto::v1;

use crate::re2;
use crate::route::matcher::{HeaderMatch, Matcher, Pseudo, UriMatch};
use crate::string_match::StringMatch;

use super::{At, Result, error, header_name, port_number};

/// Conditions on a request.
pub(super) fn matcher(message: &v1::HttpMatch) -> Result<Matcher> {
    let mut headers = Vec::with_capacity(message.headers.len());
    let mut pseudo = Vec::new();
    let mut add = |name: &str, condition: HeaderMatch| -> std::result::Result<(), String> {
        match Pseudo::parse(name) {
            Some(known) => pseudo.push((known, condition)),
            None => headers.push((header_name(name)?, condition)),
        }
        Ok(())
    };
    for (i, item) in message.headers.iter().enumerate() {
        let at = format_args!("headers[{i}]").to_string();
        let absent = matches!(kind(item.value.as_ref()), Some(v1::string_match::Kind::Present(false)));
        let condition = match absent {
            true => HeaderMatch::Absent,
            false => HeaderMatch::Value(string_match(item.value.as_ref()).at("value").at(&at)?),
        };
        add(&item.name, condition).at("name").at(&at)?;
    }
    for (i, item) in message.without_headers.iter().enumerate() {
        let at = format_args!("without_headers[{i}]").to_string();
        let condition = HeaderMatch::Without(string_match(item.value.as_ref()).at("value").at(&at)?);
        add(&item.name, condition).at("name").at(&at)?;
    }
    let mut query_params = Vec::with_capacity(message.query_params.len());
    for (i, item) in message.query_params.iter().enumerate() {
        let condition = string_match(item.value.as_ref()).at("value").at(format_args!("query_params[{i}]"))?;
        query_params.push((item.name.clone(), condition));
    }
    let optional = |message: Option<&v1::StringMatch>| message.map(|message| string_match(Some(message))).transpose();
    Ok(Matcher {
        uri: match message.path_separated_prefix.as_str() {
            "" => uri_match(message.uri.as_ref(), message.ignore_uri_case).at("uri")?,
            prefix => Some(segments(message, prefix).at("path_separated_prefix")?),
        },
        method: optional(message.method.as_ref()).at("method")?,
        authority: optional(message.authority.as_ref()).at("authority")?,
        headers,
        pseudo,
        query_params,
        scheme: optional(message.scheme.as_ref()).at("scheme")?,
        port: (message.port != 0).then(|| port_number(message.port)).transpose().at("port")?,
    })
}

fn kind(message: Option<&v1::StringMatch>) -> Option<&v1::string_match::Kind> {
    message.and_then(|message| message.kind.as_ref())
}

fn segments(message: &v1::HttpMatch, prefix: &str) -> std::result::Result<UriMatch, String> {
    match message.uri.is_none() && prefix.starts_with('/') {
        true => Ok(UriMatch::Segments(prefix.trim_end_matches('/').to_owned())),
        false => Err("must begin with '/' and cannot be given together with uri".to_owned()),
    }
}

fn uri_match(message: Option<&v1::StringMatch>, ignore_case: bool) -> Result<Option<UriMatch>> {
    use v1::string_match::Kind;
    Ok(match kind(message) {
        Some(Kind::Exact(path)) => Some(UriMatch::Exact { path: path.clone(), ignore_case }),
        Some(Kind::Prefix(path)) => Some(UriMatch::Prefix { path: path.clone(), ignore_case }),
        Some(Kind::Regex(pattern)) if pattern == "*" => None,
        Some(Kind::Regex(pattern)) => Some(UriMatch::Regex(re2::whole(pattern).at("regex")?)),
        Some(Kind::Present(false)) => return error("present", "a request always has a path"),
        Some(Kind::Present(true)) | None => None,
    })
}

/// A condition on a string; an absent message matches anything.
pub(super) fn string_match(message: Option<&v1::StringMatch>) -> Result<StringMatch> {
    use v1::string_match::Kind;
    Ok(match kind(message) {
        Some(Kind::Exact(text)) => StringMatch::Exact(text.clone()),
        Some(Kind::Prefix(text)) => StringMatch::Prefix(text.clone()),
        // Istio's notation for presence.
        Some(Kind::Regex(pattern)) if pattern == "*" => StringMatch::Any,
        Some(Kind::Regex(pattern)) => StringMatch::Regex(re2::whole(pattern).at("regex")?),
        Some(Kind::Present(false)) => return error("present", "absence can be matched for headers only"),
        Some(Kind::Present(true)) | None => StringMatch::Any,
    })
}
