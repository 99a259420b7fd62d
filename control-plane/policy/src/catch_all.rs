//! Routes and matches that take every request: later ones are unreachable.

use weft_proto::v1;

use super::Route;

/// Whether a route with these matches takes every request, so that later routes are unreachable.
pub fn is_catch_all(matches: &[v1::HttpMatch]) -> bool {
    matches.is_empty() || matches.iter().any(is_unconditional)
}

/// Whether a match takes every request.
pub fn is_unconditional(one: &v1::HttpMatch) -> bool {
    use v1::string_match::Kind;
    let uri = match one.uri.as_ref().and_then(|uri| uri.kind.as_ref()) {
        None | Some(Kind::Present(_)) => true,
        Some(Kind::Prefix(prefix)) => prefix.is_empty() || prefix == "/",
        Some(Kind::Regex(regex)) => regex == ".*",
        Some(Kind::Exact(_)) => false,
    };
    let segments = one.path_separated_prefix.trim_end_matches('/').is_empty();
    let rest = v1::HttpMatch { uri: None, ignore_uri_case: false, path_separated_prefix: String::new(), ..one.clone() };
    uri && segments && rest == v1::HttpMatch::default()
}

/// Whether a route takes every request of every client.
pub fn takes_all(route: &Route) -> bool {
    let of_all = route.matches.iter().filter(|one| !one.is_of_some()).map(|one| one.http.clone());
    let of_all: Vec<v1::HttpMatch> = of_all.collect();
    route.matches.is_empty() || (!of_all.is_empty() && is_catch_all(&of_all))
}
