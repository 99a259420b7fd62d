//! Parsing of a formatter: its name, argument and length.

use http::HeaderName;

use super::super::refusal::refusal;
use super::super::request_line::Line;
use super::super::start_time::Format;
use super::super::tls::{Field, Name};
use super::{Named, Part, Piece, Side};

impl Part {
    /// Parses the text between two percent signs.
    ///
    /// # Errors
    /// Names the formatter, and the reason why it cannot be used.
    pub(super) fn parse(text: &str, side: Side) -> Result<Part, String> {
        let (name, argument, most) = split(text).ok_or_else(|| format!("%{text}% is not a formatter: {FORM}"))?;
        let plain = |part: Part| match (argument, most) {
            (None, None) => Ok(part),
            _ => Err(format!("%{text}%: {name} has no argument and no length")),
        };
        let of_answer = |part: Part| match side {
            Side::Response => plain(part),
            Side::Request => Err(unknown_yet(text)),
        };
        let length = most.unwrap_or(usize::MAX);
        let required = || argument.ok_or_else(|| format!("%{text}%: {name} needs an argument, as in %{name}(x)%"));
        let time = || Format::parse(argument.unwrap_or_default()).map_err(|e| format!("%{text}%: {e}"));
        if let Some(field) = Field::plain(name) {
            return plain(Part::Tls(field));
        }
        if let Some(part) = Part::parse_target_or_tls(text, name, argument, most) {
            return part;
        }
        match name {
            "HOSTNAME" => plain(Part::Hostname),
            "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => plain(Part::Remote(Piece::Whole)),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
                plain(Part::Remote(Piece::Ip))
            }
            "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT" => plain(Part::Remote(Piece::Port)),
            "DOWNSTREAM_LOCAL_ADDRESS" => plain(Part::Local(Piece::Whole)),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => plain(Part::Local(Piece::Ip)),
            "DOWNSTREAM_LOCAL_PORT" => plain(Part::Local(Piece::Port)),
            "PROTOCOL" => plain(Part::Protocol),
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => plain(Part::Cluster),
            "ROUTE_NAME" => plain(Part::Route),
            "UNIQUE_ID" => plain(Part::Unique),
            "STREAM_ID" => plain(Part::Request(vec![Named::Header(REQUEST_ID)], usize::MAX)),
            "START_TIME" if most.is_none() => time().map(Part::StartTime),
            "REQ" | "REQUEST_HEADER" => {
                let names = names(text, required()?, Named::parse)?;
                Ok(Part::Request(names, length))
            }
            "ENVIRONMENT" => match required()? {
                "" => Err(format!("%{text}% names no variable")),
                own if own.starts_with("WEFT_") => {
                    Err(format!("%{text}%: variables with this prefix are the proxy's own settings, including tokens"))
                }
                variable => Ok(Part::Environment(variable.to_owned(), length)),
            },
            "RESP" | "RESPONSE_HEADER" if side == Side::Request => Err(unknown_yet(text)),
            "RESP" | "RESPONSE_HEADER" => {
                let header = |name: &str| HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok();
                Ok(Part::Response(names(text, required()?, header)?, length))
            }
            "RESPONSE_CODE" => of_answer(Part::Code),
            "RESPONSE_CODE_DETAILS" => of_answer(Part::CodeDetails),
            "RESPONSE_FLAGS" => of_answer(Part::Flags),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => of_answer(Part::Attempts),
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => of_answer(Part::Upstream(Piece::Whole)),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => of_answer(Part::Upstream(Piece::Ip)),
            "UPSTREAM_REMOTE_PORT" => of_answer(Part::Upstream(Piece::Port)),
            _ => Err(format!("%{text}% is not supported: {}", refusal(name))),
        }
    }

    /// Formatters with arguments of the request's target and of TLS; `None`: another formatter.
    fn parse_target_or_tls(
        text: &str,
        name: &str,
        argument: Option<&str>,
        most: Option<usize>,
    ) -> Option<Result<Part, String>> {
        let length = most.unwrap_or(usize::MAX);
        let time = || Format::parse(argument.unwrap_or_default()).map_err(|e| format!("%{text}%: {e}"));
        Some(match name {
            "PATH" => {
                let line = Line::path(argument.unwrap_or_default()).map(|line| Part::Line(line, length));
                line.ok_or_else(|| format!("%{text}%: write WQ or NQ, with `:ORIG`, `:PATH` or `:ORIG_OR_PATH`"))
            }
            "QUERY_PARAM" => match argument.unwrap_or_default() {
                "" => Err(format!("%{text}% names no parameter")),
                parameter => Ok(Part::Line(Line::Parameter(parameter.to_owned()), length)),
            },
            "QUERY_PARAMS" => match argument {
                None | Some("" | "ORIG") => Ok(Part::Line(Line::Query, length)),
                Some(_) => Err(format!(
                    "%{text}%: the query is always the original one: leave the argument out, or write ORIG"
                )),
            },
            "REQUESTED_SERVER_NAME" | "DOWNSTREAM_PEER_CERT_V_START" | "DOWNSTREAM_PEER_CERT_V_END"
                if most.is_some() =>
            {
                Err(format!("%{text}%: {name} has no length"))
            }
            "REQUESTED_SERVER_NAME" => {
                let part = Name::parse(argument.unwrap_or_default()).map(|name| Part::Tls(Field::ServerName(name)));
                part.ok_or_else(|| {
                    format!(
                        "%{text}%: write SNI_ONLY, SNI_FIRST or HOST_FIRST, with `:ORIG`, `:HOST` or `:ORIG_OR_HOST`"
                    )
                })
            }
            "DOWNSTREAM_PEER_CERT_V_START" => time().map(Field::Start).map(Part::Tls),
            "DOWNSTREAM_PEER_CERT_V_END" => time().map(Field::End).map(Part::Tls),
            _ => return None,
        })
    }
}

const FORM: &str = "write %NAME%, %NAME(argument)% or %NAME(argument):LENGTH%, and %% for a percent sign";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Splits `NAME(argument):LENGTH`.
fn split(text: &str) -> Option<(&str, Option<&str>, Option<usize>)> {
    let (before, most) = match text.rsplit_once(':') {
        Some((before, length)) if !length.contains(')') => (before, Some(length.parse().ok()?)),
        _ => (text, None),
    };
    let (name, argument) = match before.split_once('(') {
        Some((name, rest)) => (name, Some(rest.strip_suffix(')')?)),
        None => (before, None),
    };
    let fine = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    (!name.is_empty() && name.bytes().all(fine)).then_some((name, argument, most))
}

/// Parses `name?other`; as in Envoy there is at most one alternative.
fn names<T>(text: &str, argument: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let parsed: Option<Vec<T>> = argument.split('?').take(3).map(parse).collect();
    let parsed = parsed.filter(|parsed| parsed.len() <= 2);
    parsed.ok_or_else(|| format!("%{text}%: write the name of a header, or two as in name?other"))
}

fn unknown_yet(text: &str) -> String {
    format!("%{text}% can be used in `response` alone: its value is unknown when request headers are changed")
}
