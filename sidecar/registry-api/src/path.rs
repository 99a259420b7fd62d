//! Path normalisation of Go's ServeMux: Consul's clients join segments with duplicate slashes, and are redirected.

use http::{HeaderMap, StatusCode};

use crate::eureka;
use crate::query::unescape;
use crate::reply::{self, Reply};

/// Removes empty segments, `.` and `..`; a trailing slash stays. Escapes stay too: `%2F` is not a separator.
pub fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// The response to a path that is not normal: a redirect, as ServeMux sends it; and to one with non-printable
/// characters, which Consul refuses. `None`: the request proceeds. Eureka's servers accept empty segments.
pub fn redirect_or_refusal(path: &str, query: Option<&str>) -> Option<Reply> {
    if eureka::route::is_eureka_path(path) {
        return None;
    }
    let cleaned = clean(path);
    if cleaned != path {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let mut moved = reply::text(format!("Moved Permanently: {cleaned}{query}\n"));
        *moved.status_mut() = StatusCode::MOVED_PERMANENTLY;
        reply::set(&mut moved, "location", &format!("{cleaned}{query}"));
        return Some(moved);
    }
    unescape(path, false).chars().any(char::is_control).then(|| {
        let mut refused = reply::text("Bad Request: the path has characters that cannot be printed");
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        refused
    })
}

/// Converts a response to the format of Eureka's client, if the path belongs to that API.
pub fn in_format(path: &str, headers: &HeaderMap, reply: Reply) -> Reply {
    if eureka::route::is_eureka_path(path) { eureka::documents::in_format(reply, headers) } else { reply }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, cleaned) in [
            ("/v1/kv/a", "/v1/kv/a"),
            ("/v1/kv/", "/v1/kv/"),
            ("/v1/kv//a", "/v1/kv/a"),
            ("//v1///kv//a//", "/v1/kv/a/"),
            ("/v1/kv/./a/../b", "/v1/kv/b"),
            ("/v1/kv/a/.", "/v1/kv/a"),
            ("/../../v1", "/v1"),
            ("/", "/"),
            ("//", "/"),
            ("", "/"),
            ("/v1/kv/a%2F%2Fb", "/v1/kv/a%2F%2Fb"),
            ("/v1/kv/..a/...", "/v1/kv/..a/..."),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
            assert_eq!(clean(cleaned), cleaned, "{path}");
        }
    }

    #[test]
    fn unclean_paths_are_redirected_and_control_characters_refused() {
        let moved = redirect_or_refusal("/v1/kv//a", Some("raw&dc=x")).unwrap();
        assert_eq!(
            (moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()),
            (301, "/v1/kv/a?raw&dc=x")
        );
        assert_eq!(redirect_or_refusal("/v1/kv//a", None).unwrap().headers()["location"], "/v1/kv/a");
        assert_eq!(redirect_or_refusal("/v1/kv/a%00b", None).unwrap().status(), 400);
        assert!(redirect_or_refusal("/v1/kv/a%20b%C3%A4", Some("x//y")).is_none());
        assert!(redirect_or_refusal("/eureka//apps", None).is_none());
    }
}
