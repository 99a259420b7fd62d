//! `%PATH%`, `%QUERY_PARAM%` and `%QUERY_PARAMS%`: parts of the request's target, in Envoy's terms.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use super::template::Context;

/// The client's original path, set by an earlier proxy that rewrote it.
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// A part of the target.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    /// `PATH(query:source)`.
    Path { query: bool, source: Source },
    /// The first value of a parameter, percent-decoded.
    Parameter(String),
    /// Everything after the question mark.
    Query,
}

/// Source of the path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source {
    Original,
    Path,
    OriginalOrPath,
}

impl Line {
    /// Parses the argument of `PATH`.
    pub(super) fn path(argument: &str) -> Option<Line> {
        let (query, source) = argument.split_once(':').unwrap_or((argument, ""));
        let query = match query {
            "" | "WQ" => true,
            "NQ" => false,
            _ => return None,
        };
        let source = match source {
            "" | "ORIG_OR_PATH" => Source::OriginalOrPath,
            "ORIG" => Source::Original,
            "PATH" => Source::Path,
            _ => return None,
        };
        Some(Line::Path { query, source })
    }

    /// Whether the value may come from a request header.
    pub(super) fn reads_headers(&self) -> bool {
        !matches!(self, Line::Path { source: Source::Path, .. } | Line::Parameter(_) | Line::Query)
    }

    /// The text; empty if the request has no such part.
    pub(super) fn of<'a>(&self, headers: &'a HeaderMap, context: &Context<'a>) -> Cow<'a, [u8]> {
        let parameters = context.path_and_query.split_once('?').map_or("", |(_, query)| query);
        match self {
            Line::Query => Cow::Borrowed(parameters.as_bytes()),
            Line::Parameter(name) => {
                let pairs = parameters.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                let mut values = pairs.filter(|(key, _)| percent_decode_str(key).eq(name.bytes()));
                values.next().map(|(_, value)| percent_decode_str(value).into()).unwrap_or_default()
            }
            Line::Path { query, source } => {
                let original = headers.get(ORIGINAL_PATH).map(http::HeaderValue::as_bytes);
                let found = match source {
                    Source::Original => original.unwrap_or_default(),
                    Source::Path => context.path_and_query.as_bytes(),
                    Source::OriginalOrPath => original.unwrap_or(context.path_and_query.as_bytes()),
                };
                let end = found.iter().position(|byte| *byte == b'?').filter(|_| !query);
                Cow::Borrowed(&found[..end.unwrap_or(found.len())])
            }
        }
    }
}
