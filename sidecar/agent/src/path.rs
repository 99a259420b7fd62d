//! Paths as Go's ServeMux takes them: Consul's clients join parts that begin or end with a slash, and are redirected.

use http::{HeaderMap, StatusCode};

use crate::answer::{self, Answered};
use crate::eureka;
use crate::query::unescape;

/// A path without empty segments, `.` and `..`; a slash at its end stays. Escapes stay as they are: `%2F` is no separator.
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

/// The answer to a path that is not clean: a redirect, as ServeMux gives it; and to one that Consul refuses because
/// characters of it cannot be printed. `None`: it goes on. Eureka's servers take empty segments as they come.
pub fn turned_away(path: &str, query: Option<&str>) -> Option<Answered> {
    if eureka::route::is_ours(path) {
        return None;
    }
    let cleaned = clean(path);
    if cleaned != path {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let mut moved = answer::text(format!("Moved Permanently: {cleaned}{query}\n"));
        *moved.status_mut() = StatusCode::MOVED_PERMANENTLY;
        answer::set(&mut moved, "location", &format!("{cleaned}{query}"));
        return Some(moved);
    }
    unescape(path, false).chars().any(char::is_control).then(|| {
        let mut refused = answer::text("Bad Request: the path has characters that cannot be printed");
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        refused
    })
}

/// Whether what is answered is in the format that Eureka's clients ask for, if the path is of that API.
pub fn in_format(path: &str, headers: &HeaderMap, answered: Answered) -> Answered {
    if eureka::route::is_ours(path) { eureka::answers::in_format(answered, headers) } else { answered }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_does() {
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
    fn what_is_not_clean_is_redirected_and_control_characters_are_refused() {
        let moved = turned_away("/v1/kv//a", Some("raw&dc=x")).unwrap();
        assert_eq!(
            (moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()),
            (301, "/v1/kv/a?raw&dc=x")
        );
        assert_eq!(turned_away("/v1/kv//a", None).unwrap().headers()["location"], "/v1/kv/a");
        assert_eq!(turned_away("/v1/kv/a%00b", None).unwrap().status(), 400);
        assert!(turned_away("/v1/kv/a%20b%C3%A4", Some("x//y")).is_none());
        assert!(turned_away("/eureka//apps", None).is_none());
    }
}
