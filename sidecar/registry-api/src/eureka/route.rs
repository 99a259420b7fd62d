//! Routing of requests to Eureka's endpoints. Netflix's server has its API under `/eureka/v2`, Spring's under
//! `/eureka`; some clients end paths with a slash.

use http::{Method, StatusCode};

use crate::error::ApiError;
use crate::query::unescape;

/// An endpoint with its arguments. The name of the application precedes the instance's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Answered by the agent of the instance's pod.
    Write(Write),
    /// Answered for the whole mesh.
    Read(Read),
}

/// A change of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// `POST apps/:app`
    Register(String),
    /// `PUT apps/:app/:id`
    Renew(String, String),
    /// `DELETE apps/:app/:id`
    Cancel(String, String),
    /// `PUT apps/:app/:id/status`
    Override(String, String),
    /// `DELETE apps/:app/:id/status`
    EndOverride(String, String),
    /// `PUT apps/:app/:id/metadata`
    Metadata(String, String),
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// `apps`
    Apps,
    /// `apps/delta`
    Delta,
    /// `apps/:app`
    App(String),
    /// `apps/:app/:id`
    InstanceOf(String, String),
    /// `instances/:id`
    Instance(String),
    /// `vips/:address`
    Vip(String),
    /// `svips/:address`
    SecureVip(String),
}

/// Reason why a request has no endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// The path supports other methods: these, comma-separated.
    Method(&'static str),
    /// There is no such endpoint.
    NoEndpoint(ApiError),
}

/// Whether a path belongs to Eureka's API.
pub fn is_eureka_path(path: &str) -> bool {
    below(path).is_some()
}

fn below(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/eureka")?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    match rest.strip_prefix("v2") {
        Some("") => Some(""),
        Some(short) => Some(short.strip_prefix('/').unwrap_or(rest)),
        None => Some(rest),
    }
}

/// The endpoint of `method` and `path`.
///
/// # Errors
/// If there is none.
pub fn route(method: &Method, path: &str) -> Result<Endpoint, Missed> {
    let short = below(path).unwrap_or_default();
    let short = short.strip_suffix('/').unwrap_or(short);
    // Netflix's server ignores empty segments, which occur when a URL ends with a slash and the path begins with one.
    let short = short.trim_start_matches('/');
    let parts: Vec<String> = short.split('/').map(|part| unescape(part, false)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let name = |name: &str| name.to_owned();
    // Python's client does not escape slashes in an id.
    let id = |parts: &[&str]| parts.join("/");
    let read = match parts.as_slice() {
        ["apps"] => Read::Apps,
        ["apps", "delta"] => Read::Delta,
        ["apps", app] if *method == Method::POST => return Ok(Endpoint::Write(Write::Register(name(app)))),
        ["apps", app] if *method == Method::GET => Read::App(name(app)),
        ["apps", _] => return Err(Missed::Method("GET,POST")),
        ["apps", app, of @ .., "status"] if !of.is_empty() => {
            return write(method, "DELETE,PUT", |put| {
                if put { Write::Override(name(app), id(of)) } else { Write::EndOverride(name(app), id(of)) }
            });
        }
        ["apps", app, of @ .., "metadata"] if !of.is_empty() => {
            let write = Endpoint::Write(Write::Metadata(name(app), id(of)));
            return if *method == Method::PUT { Ok(write) } else { Err(Missed::Method("PUT")) };
        }
        ["apps", app, of @ ..] if *method == Method::GET => Read::InstanceOf(name(app), id(of)),
        ["apps", app, of @ ..] => {
            return write(method, "DELETE,GET,PUT", |put| {
                if put { Write::Renew(name(app), id(of)) } else { Write::Cancel(name(app), id(of)) }
            });
        }
        ["instances", of @ ..] if !of.is_empty() => Read::Instance(id(of)),
        ["vips", of @ ..] if !of.is_empty() => Read::Vip(id(of)),
        ["svips", of @ ..] if !of.is_empty() => Read::SecureVip(id(of)),
        _ => {
            let text = format!("{path} of Eureka's API is not supported by this mesh");
            return Err(Missed::NoEndpoint(ApiError::new(StatusCode::NOT_IMPLEMENTED, text)));
        }
    };
    if *method == Method::GET { Ok(Endpoint::Read(read)) } else { Err(Missed::Method("GET")) }
}

fn write(method: &Method, allowed: &'static str, make: impl Fn(bool) -> Write) -> Result<Endpoint, Missed> {
    match method.as_str() {
        "PUT" => Ok(Endpoint::Write(make(true))),
        "DELETE" => Ok(Endpoint::Write(make(false))),
        _ => Err(Missed::Method(allowed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_endpoints_exist_under_both_prefixes() {
        let (a, i) = (|| "A".to_owned(), || "h:a:1".to_owned());
        for (method, path, endpoint) in [
            ("GET", "apps", Endpoint::Read(Read::Apps)),
            ("GET", "apps/delta", Endpoint::Read(Read::Delta)),
            ("GET", "apps/A", Endpoint::Read(Read::App(a()))),
            ("GET", "apps/A/h%3Aa:1", Endpoint::Read(Read::InstanceOf(a(), i()))),
            ("GET", "instances/h%3Aa%3A1", Endpoint::Read(Read::Instance(i()))),
            ("GET", "vips/A", Endpoint::Read(Read::Vip(a()))),
            ("GET", "svips/A", Endpoint::Read(Read::SecureVip(a()))),
            ("POST", "apps/A", Endpoint::Write(Write::Register(a()))),
            ("PUT", "apps/A/h:a:1", Endpoint::Write(Write::Renew(a(), i()))),
            ("DELETE", "apps/A/h:a:1", Endpoint::Write(Write::Cancel(a(), i()))),
            ("PUT", "apps/A/h:a:1/status", Endpoint::Write(Write::Override(a(), i()))),
            ("DELETE", "apps/A/h:a:1/status", Endpoint::Write(Write::EndOverride(a(), i()))),
            ("PUT", "apps/A/h:a:1/metadata", Endpoint::Write(Write::Metadata(a(), i()))),
            ("PUT", "apps/A/x/y", Endpoint::Write(Write::Renew(a(), "x/y".into()))),
            ("PUT", "apps/A/status", Endpoint::Write(Write::Renew(a(), "status".into()))),
        ] {
            for path in [format!("/eureka/{path}"), format!("/eureka/v2/{path}"), format!("/eureka/{path}/")] {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                assert!(is_eureka_path(&path));
                assert_eq!(route(&method, &path), Ok(endpoint.clone()), "{method} {path}");
            }
        }
    }

    #[test]
    fn unknown_paths_and_methods_are_refused() {
        for (path, is_eureka) in
            [("/eureka", true), ("/eureka/v2", true), ("/eurekas", false), ("/v1/agent/self", false)]
        {
            assert_eq!(is_eureka_path(path), is_eureka, "{path}");
        }
        for (method, path, allowed) in [
            (Method::POST, "/eureka/apps", "GET"),
            (Method::PUT, "/eureka/apps/A", "GET,POST"),
            (Method::POST, "/eureka/apps/A/i", "DELETE,GET,PUT"),
            (Method::GET, "/eureka/apps/A/i/status", "DELETE,PUT"),
            (Method::GET, "/eureka/apps/A/i/metadata", "PUT"),
        ] {
            assert_eq!(route(&method, path), Err(Missed::Method(allowed)), "{method} {path}");
        }
        for path in ["/eureka", "/eureka/peerreplication/batch", "/eureka/vips", "/eureka/v2/asg/a/status"] {
            let Err(Missed::NoEndpoint(error)) = route(&Method::GET, path) else { panic!("{path}") };
            assert_eq!(error.status, 501);
            assert!(error.text.starts_with(path), "{}", error.text);
        }
    }
}
