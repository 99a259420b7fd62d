//! Unmet conditions as text, for explanations of routing. The evaluation itself is in `matcher` alone.

use std::fmt;

use crate::request::RequestView;
use crate::subnet::Subnet;

use super::connection::{Connection, ConnectionMatch, UnmetByConnection};
use super::matcher::{HeaderMatch, Unmet, UriMatch};
use crate::re2::unanchored;
use crate::string_match::StringMatch;

impl Unmet<'_> {
    /// The actual and the required value: `header x-user: "a" is not exact "b"`.
    pub fn in_words(&self, req: &RequestView<'_>) -> String {
        match self {
            Unmet::Uri(wanted) => format!("path {:?} is not {wanted}", req.path()),
            Unmet::Method(wanted) => format!("method {:?} is not {wanted}", req.method.as_str()),
            Unmet::Authority(wanted) => format!("authority {:?} is not {wanted}", req.authority),
            Unmet::Scheme(wanted) => format!("scheme {:?} is not {wanted}", req.scheme),
            Unmet::Port(wanted) => format!("port {} is not {wanted}", req.local.port()),
            Unmet::Header(name, wanted) => {
                let values: Vec<String> =
                    req.header_values(name).map(|value| format!("{:?}", String::from_utf8_lossy(value))).collect();
                let has = values.join(", ");
                match wanted {
                    HeaderMatch::Value(wanted) if values.is_empty() => {
                        format!("header {name} is missing: {wanted} is wanted")
                    }
                    HeaderMatch::Value(wanted) => format!("header {name}: {has} is not {wanted}"),
                    HeaderMatch::Absent => format!("header {name}: {has} must be absent"),
                    HeaderMatch::Without(unwanted) => format!("header {name}: {has} must not be {unwanted}"),
                }
            }
            Unmet::Pseudo(name, wanted) => {
                let (name, has) = (name.name(), name.of(req));
                match wanted {
                    HeaderMatch::Value(wanted) => format!("{name} {has:?} is not {wanted}"),
                    HeaderMatch::Absent => format!("{name} must be absent"),
                    HeaderMatch::Without(unwanted) => format!("{name} {has:?} must not be {unwanted}"),
                }
            }
            Unmet::QueryParam(name, wanted) => match req.query_param(name) {
                None => format!("query parameter {name} is missing: {wanted} is wanted"),
                Some(value) => format!("query parameter {name}: {value:?} is not {wanted}"),
            },
        }
    }
}

impl UnmetByConnection {
    /// The actual value and the one that `wanted` requires.
    pub fn in_words(self, wanted: &ConnectionMatch, connection: &Connection<'_>) -> String {
        match (self, connection.server_name) {
            (UnmetByConnection::ServerName, None) => {
                format!("there is no server name: {} is wanted", wanted.server_names.join(" or "))
            }
            (UnmetByConnection::ServerName, Some(name)) => {
                format!("server name {name:?} is not {}", wanted.server_names.join(" or "))
            }
            (UnmetByConnection::Destination, _) => {
                let subnets: Vec<String> = wanted.destinations.iter().map(Subnet::to_string).collect();
                format!("destination {} is not in {}", connection.destination.ip(), subnets.join(" or "))
            }
            (UnmetByConnection::Source, _) => {
                let subnet = wanted.source.as_ref().map(Subnet::to_string).unwrap_or_default();
                format!("source {} is not in {subnet}", connection.source.ip())
            }
        }
    }
}

impl fmt::Display for UriMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, ignore_case) = match self {
            UriMatch::Exact { path, ignore_case } => ("exact", path.as_str(), *ignore_case),
            UriMatch::Prefix { path, ignore_case } => ("prefix", path.as_str(), *ignore_case),
            UriMatch::Segments(path) => {
                ("prefix of segments", if path.is_empty() { "/" } else { path.as_str() }, false)
            }
            UriMatch::Regex(regex) => ("regex", unanchored(regex), false),
        };
        write!(f, "{kind} {path:?}{}", if ignore_case { " in any case" } else { "" })
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StringMatch::Exact(text) => write!(f, "exact {text:?}"),
            StringMatch::Prefix(text) => write!(f, "prefix {text:?}"),
            StringMatch::Regex(regex) => write!(f, "regex {:?}", unanchored(regex)),
            StringMatch::Any => f.write_str("any value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    use super::*;
    use crate::re2;
    use crate::request::tests::view;
    use crate::route::matcher::Matcher;

    fn exact(text: &str) -> StringMatch {
        StringMatch::Exact(text.into())
    }

    fn header(name: &'static str, wanted: HeaderMatch) -> Matcher {
        Matcher { headers: vec![(HeaderName::from_static(name), wanted)], ..Matcher::default() }
    }

    fn uri(uri: UriMatch) -> Matcher {
        Matcher { uri: Some(uri), ..Matcher::default() }
    }

    #[test]
    fn the_first_unmet_condition_is_described() {
        let mut headers = HeaderMap::new();
        for value in ["a", "c"] {
            headers.append("x-user", HeaderValue::from_static(value));
        }
        let post = Method::POST;
        let req = RequestView { method: &post, ..view("/a?kind=x", "Order:80", &headers) };
        let query = |name: &str| Matcher { query_params: vec![(name.into(), exact("y"))], ..Matcher::default() };
        let regex = UriMatch::Regex(re2::whole("/b+").unwrap());
        for (matcher, words) in [
            (
                uri(UriMatch::Prefix { path: "/api".into(), ignore_case: true }),
                "path \"/a\" is not prefix \"/api\" in any case",
            ),
            (uri(UriMatch::Exact { path: "/".into(), ignore_case: false }), "path \"/a\" is not exact \"/\""),
            (uri(regex), "path \"/a\" is not regex \"/b+\""),
            (
                Matcher { method: Some(exact("GET")), port: Some(1), ..Matcher::default() },
                "method \"POST\" is not exact \"GET\"",
            ),
            (
                Matcher { authority: Some(StringMatch::Prefix("x.".into())), ..Matcher::default() },
                "authority \"Order:80\" is not prefix \"x.\"",
            ),
            (Matcher { scheme: Some(exact("https")), ..Matcher::default() }, "scheme \"http\" is not exact \"https\""),
            (Matcher { port: Some(8080), ..Matcher::default() }, "port 80 is not 8080"),
            (header("x-user", HeaderMatch::Value(exact("b"))), "header x-user: \"a\", \"c\" is not exact \"b\""),
            (header("x-none", HeaderMatch::Value(StringMatch::Any)), "header x-none is missing: any value is wanted"),
            (header("x-user", HeaderMatch::Absent), "header x-user: \"a\", \"c\" must be absent"),
            (header("x-user", HeaderMatch::Without(exact("c"))), "header x-user: \"a\", \"c\" must not be exact \"c\""),
            (query("kind"), "query parameter kind: \"x\" is not exact \"y\""),
            (query("none"), "query parameter none is missing: exact \"y\" is wanted"),
        ] {
            assert_eq!(matcher.unmet(&req).map(|unmet| unmet.in_words(&req)).as_deref(), Some(words));
            assert!(!matcher.matches(&req));
        }
        assert!(Matcher::default().unmet(&req).is_none());
    }

    #[test]
    fn the_first_unmet_condition_of_a_connection_is_described() {
        let subnet = Subnet::parse("10.0.0.0/8").unwrap();
        let by_server_name =
            |name: &str| ConnectionMatch { server_names: vec![name.into(), "b".into()], ..Default::default() };
        let connection = Connection {
            server_name: Some("x.y"),
            source: "192.0.2.1:1".parse().unwrap(),
            destination: "192.0.2.2:443".parse().unwrap(),
        };
        let nameless = Connection { server_name: None, ..connection };
        for (wanted, connection, words) in [
            (by_server_name("*.z"), connection, "server name \"x.y\" is not *.z or b"),
            (by_server_name("*"), nameless, "there is no server name: * or b is wanted"),
            (
                ConnectionMatch { destinations: vec![subnet], ..Default::default() },
                connection,
                "destination 192.0.2.2 is not in 10.0.0.0/8",
            ),
            (
                ConnectionMatch { source: Some(subnet), ..by_server_name("*.y") },
                connection,
                "source 192.0.2.1 is not in 10.0.0.0/8",
            ),
        ] {
            let unmet = wanted.unmet(&connection).map(|unmet| unmet.in_words(&wanted, &connection));
            assert_eq!(unmet.as_deref(), Some(words));
        }
        assert_eq!(by_server_name("*.y").unmet(&connection), None);
    }
}
