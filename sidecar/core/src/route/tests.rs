use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::matcher::{HeaderMatch, UriMatch};

use super::*;
use crate::request::tests::view;
use crate::string_match::StringMatch;

pub(super) fn forward(weights: &[u32]) -> Forward {
    let destination = |(cluster, weight): (usize, &u32)| Destination {
        cluster,
        weight: *weight,
        headers: vec![],
        authority: None,
        sends_original_host: false,
    };
    let total_weight = if weights.len() == 1 { 1 } else { weights.iter().map(|weight| u64::from(*weight)).sum() };
    Forward {
        destinations: weights.iter().enumerate().map(destination).collect(),
        total_weight,
        timeout: None,
        rewrite: None,
        retry_selection: RetrySelection::default(),
        mirrors: vec![],
        retry: RetryPolicy::default(),
        hash: vec![],
        undefined_status: StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn route(name: &str, matcher: Matcher) -> Arc<Route> {
    let action = Arc::new(Action::Forward(forward(&[1])));
    Arc::new(Route { name: name.into(), matcher, action, headers: HeaderOps::default(), filters: Arc::default() })
}

fn uri(uri: UriMatch) -> Matcher {
    Matcher { uri: Some(uri), ..Matcher::default() }
}

fn exact(path: &str, ignore_case: bool) -> Matcher {
    uri(UriMatch::Exact { path: path.into(), ignore_case })
}

fn prefix(path: &str, ignore_case: bool) -> Matcher {
    uri(UriMatch::Prefix { path: path.into(), ignore_case })
}

fn regex(pattern: &str) -> Matcher {
    uri(UriMatch::Regex(crate::re2::whole(pattern).unwrap()))
}

#[test]
fn path_conditions_match() {
    let headers = HeaderMap::new();
    for (matcher, path, expected) in [
        (exact("/a", false), "/a?x=1", true),
        (exact("/a", false), "/a/", false),
        (exact("/a", false), "/A", false),
        (exact("/a", true), "/A", true),
        (prefix("/foo", false), "/foobar", true),
        (prefix("/foo", false), "/fo", false),
        (prefix("/foo", true), "/FOO/x", true),
        (prefix("", false), "/", true),
        (prefix("/\u{e9}", true), "/a", false),
        (regex("/a|/b"), "/b?c", true),
        (regex("/a|/b"), "/bc", false),
        (regex("/[0-9]+"), "/12?a", true),
        (regex("/x"), "/x\n", false),
        (Matcher::default(), "*", true),
    ] {
        assert_eq!(matcher.matches(&view(path, "h", &headers)), expected, "{matcher:?} {path}");
    }
}

#[test]
fn header_query_method_and_authority_conditions_match() {
    let mut headers = HeaderMap::new();
    headers.append("x-user", HeaderValue::from_static("a"));
    headers.append("x-user", HeaderValue::from_static("b"));
    let req = view("/?v=1&v=2&flag", "Order:80", &headers);
    let text = |text: &str| StringMatch::Exact(text.into());
    let start = |text: &str| StringMatch::Prefix(text.into());
    let whole = |text: &str| StringMatch::Regex(crate::re2::whole(text).unwrap());
    let header = |name: &'static str, condition| Matcher {
        headers: vec![(HeaderName::from_static(name), condition)],
        ..Matcher::default()
    };
    let query = |name: &str, condition| Matcher { query_params: vec![(name.into(), condition)], ..Matcher::default() };
    let method = |condition| Matcher { method: Some(condition), ..Matcher::default() };
    let authority = |condition| Matcher { authority: Some(condition), ..Matcher::default() };
    for (matcher, expected) in [
        (header("x-user", HeaderMatch::Value(text("a,b"))), false),
        (header("x-user", HeaderMatch::Value(text("a"))), true),
        (header("x-user", HeaderMatch::Value(text("b"))), true),
        (header("x-user", HeaderMatch::Value(start("b"))), true),
        (header("x-user", HeaderMatch::Value(whole("[ab]"))), true),
        (header("x-user", HeaderMatch::Value(whole("a,."))), false),
        (header("x-user", HeaderMatch::Without(text("b"))), false),
        (header("x-user", HeaderMatch::Without(text("c"))), true),
        (header("x-user", HeaderMatch::Value(StringMatch::Any)), true),
        (header("x-user", HeaderMatch::Absent), false),
        (header("x-none", HeaderMatch::Value(StringMatch::Any)), false),
        (header("x-none", HeaderMatch::Absent), true),
        (header("host", HeaderMatch::Value(text("Order:80"))), true),
        (query("v", text("1")), true),
        (query("v", text("2")), false),
        (query("flag", StringMatch::Any), true),
        (query("flag", text("")), true),
        (query("none", StringMatch::Any), false),
        (method(text("GET")), true),
        (method(text("get")), false),
        (method(whole("GET|POST")), true),
        (authority(text("Order:80")), true),
        (authority(text("order")), false),
        (authority(start("Order")), true),
    ] {
        assert_eq!(matcher.matches(&req), expected, "{matcher:?}");
    }
}

#[test]
fn the_first_matching_route_wins() {
    let headers = HeaderMap::new();
    let table = RouteTable::new(vec![
        route("one", exact("/a", false)),
        route("two", prefix("/a", false)),
        route("three", Matcher { method: Some(StringMatch::Exact("POST".into())), ..Matcher::default() }),
    ]);
    let find = |path| table.find(&view(path, "h", &headers)).map(|route| route.name.to_string());
    assert_eq!(find("/a").as_deref(), Some("one"));
    assert_eq!(find("/ab").as_deref(), Some("two"));
    assert_eq!(find("/b"), None);
    let post = RequestView { method: &Method::POST, ..view("/b", "h", &headers) };
    assert_eq!(&*table.find(&post).unwrap().name, "three");
}

#[test]
fn catch_all_matches_are_detected() {
    assert!(Matcher::default().is_catch_all() && prefix("/", false).is_catch_all());
    assert!(!prefix("/a", false).is_catch_all() && !exact("/", false).is_catch_all());
}

#[test]
fn weights_divide_requests() {
    let shares = |weights: &[u32]| {
        let forward = forward(weights);
        let mut counts = vec![0; weights.len()];
        for i in 0..1000u64 {
            counts[forward.choose((u64::MAX / 1000 + 1) * i).cluster] += 1;
        }
        counts
    };
    assert_eq!(shares(&[0]), [1000]);
    assert_eq!(shares(&[90, 0, 10]), [900, 0, 100]);
    assert_eq!(shares(&[1, 3]), [250, 750]);
    assert_eq!(shares(&[0, 5]), [0, 1000]);
    assert_eq!(forward(&[0, 1]).choose(u64::MAX).cluster, 1);
}

#[test]
fn paths_are_rewritten() {
    let headers = HeaderMap::new();
    for (matcher, rewrite, path, expected) in [
        (prefix("/v1", false), "/v2", "/v1/a?b=c", "/v2/a?b=c"),
        (prefix("/V1", true), "/v2", "/v1/a", "/v2/a"),
        (prefix("/v1/", false), "/", "/v1/a", "/a"),
        (prefix("/", false), "/foo/", "/a", "/foo/a"),
        (prefix("/v1", false), "", "/v1/a", "/a"),
        (prefix("/v1/", false), "", "/v1/a", "/a"),
        (exact("/a", false), "/b", "/a?x", "/b?x"),
        (regex("/a.*"), "/b", "/abc?x", "/b?x"),
        (Matcher::default(), "/foo", "/bar", "/foobar"),
    ] {
        let forward = Forward { rewrite: Some(Rewrite::Matched(rewrite.into())), ..forward(&[1]) };
        let route = route("r", matcher);
        let req = view(path, "h", &headers);
        assert_eq!(route.rewritten_path(&forward, &req).as_deref(), Some(expected), "{path} {rewrite}");
        assert_eq!(route.rewritten_path(&super::tests::forward(&[1]), &req), None);
    }
}

#[test]
fn redirect_locations_are_built() {
    let none = || Redirect {
        path: RedirectPath::Keep,
        authority: None,
        scheme: None,
        port: RedirectPort::Keep,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    let to_uri = |uri: &str| Redirect { path: RedirectPath::Uri(uri.into()), ..none() };
    let to_prefix = |prefix: &str| Redirect { path: RedirectPath::Matched(prefix.into()), ..none() };
    let to_scheme = |scheme: &str| Redirect { scheme: Some(scheme.into()), ..none() };
    let to_host = |host: &str| Redirect { authority: Some(host.into()), ..none() };
    let to_port = |port| Redirect { port, ..none() };
    let headers = HeaderMap::new();
    for (redirect, authority, expected) in [
        (to_uri("/b"), "order:8080", "http://order:8080/b?q=1"),
        (to_uri("/b?x"), "order", "http://order/b?x"),
        (to_prefix("/b"), "order", "http://order/b/c?q=1"),
        (to_scheme("https"), "order:80", "https://order/a/c?q=1"),
        (to_scheme("https"), "order:8080", "https://order:8080/a/c?q=1"),
        (to_scheme("https"), "[::1]:80", "https://[::1]/a/c?q=1"),
        (to_scheme("http"), "order:80", "http://order:80/a/c?q=1"),
        (to_host("pay"), "order:80", "http://pay/a/c?q=1"),
        (to_port(RedirectPort::Number(81)), "order:80", "http://order:81/a/c?q=1"),
        (to_port(RedirectPort::FromRequest), "order", "http://order:8080/a/c?q=1"),
        // The default port of a scheme is omitted.
        (to_port(RedirectPort::Number(80)), "order", "http://order/a/c?q=1"),
        (to_port(RedirectPort::Number(80)), "order:8080", "http://order/a/c?q=1"),
        (to_port(RedirectPort::Number(443)), "order", "http://order:443/a/c?q=1"),
        (Redirect { port: RedirectPort::Number(443), ..to_scheme("https") }, "order", "https://order/a/c?q=1"),
    ] {
        assert_eq!(
            redirect.location(&prefix("/a", false), &view("/a/c?q=1", authority, &headers), "http", 8080),
            expected
        );
    }
}

/// A simple model of a generated matcher.
fn model(kind: u8, pattern: &str, ignore_case: bool, path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap().to_owned();
    let (path, pattern) = match ignore_case {
        true => (path.to_ascii_lowercase(), pattern.to_ascii_lowercase()),
        false => (path, pattern.to_owned()),
    };
    match kind {
        0 => path == pattern,
        1 => path.len() >= pattern.len() && path.chars().zip(pattern.chars()).all(|(a, b)| a == b),
        _ => true,
    }
}

proptest! {
    #[test]
    fn tables_agree_with_the_model(
        rules in proptest::collection::vec((0u8..3, "/[abAB]{0,2}", any::<bool>(), any::<bool>()), 0..6),
        path in "/[abAB]{0,3}(\\?[ab]{0,2})?",
        is_post: bool,
    ) {
        let routes = rules.iter().enumerate().map(|(i, (kind, pattern, ignore_case, posts_only))| {
            let mut matcher = match kind {
                0 => exact(pattern, *ignore_case),
                1 => prefix(pattern, *ignore_case),
                _ => Matcher::default(),
            };
            matcher.method = posts_only.then(|| StringMatch::Exact("POST".into()));
            route(&i.to_string(), matcher)
        });
        let table = RouteTable::new(routes.collect());
        let headers = HeaderMap::new();
        let method = if is_post { Method::POST } else { Method::GET };
        let req = RequestView { method: &method, ..view(&path, "h", &headers) };
        let expected = rules.iter().position(|(kind, pattern, ignore_case, posts_only)| {
            model(*kind, pattern, *ignore_case, &path) && (is_post || !posts_only)
        });
        let found = table.find(&req).map(|route| route.name.parse::<usize>().unwrap());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_destination_without_weight_gets_nothing(weights in proptest::collection::vec(0u32..4, 2..6), random: u64) {
        let forward = forward(&weights);
        prop_assume!(forward.total_weight > 0);
        prop_assert!(forward.choose(random).weight > 0);
    }
}

#[test]
fn a_missing_header_counts_as_empty_for_a_negated_condition() {
    let whole = |pattern: &str| StringMatch::Regex(crate::re2::whole(pattern).unwrap());
    let mut with = HeaderMap::new();
    with.insert("x-a", "b".parse().unwrap());
    let without = HeaderMap::new();
    for (condition, missing, present) in [
        (StringMatch::Any, true, false),
        (whole(".*"), false, false),
        (whole("c?"), false, true),
        (whole("c+"), true, true),
        (StringMatch::Exact(String::new()), false, true),
        (StringMatch::Exact("b".into()), true, false),
    ] {
        let matcher =
            Matcher { headers: vec![("x-a".parse().unwrap(), HeaderMatch::Without(condition))], ..Matcher::default() };
        let holds = (matcher.matches(&view("/", "h", &without)), matcher.matches(&view("/", "h", &with)));
        assert_eq!(holds, (missing, present), "{matcher:?}");
    }
}

#[test]
fn absence_scheme_and_port_conditions_match() {
    use super::matcher::HeaderMatch;
    use crate::string_match::StringMatch;
    let name = http::HeaderName::from_static("x-a");
    let without =
        |condition| Matcher { headers: vec![(name.clone(), HeaderMatch::Without(condition))], ..Matcher::default() };
    let mut headers = HeaderMap::new();
    let cases = |headers: &HeaderMap| {
        let conditions = [StringMatch::Any, StringMatch::Exact("b".into()), StringMatch::Prefix("a".into())];
        conditions.map(|condition| without(condition).matches(&view("/", "h", headers)))
    };
    assert_eq!(cases(&headers), [true, true, true]);
    headers.insert(name.clone(), http::HeaderValue::from_static("abc"));
    assert_eq!(cases(&headers), [false, true, false]);
    let scheme = |scheme: &str| Matcher { scheme: Some(StringMatch::Exact(scheme.into())), ..Matcher::default() };
    assert!(scheme("http").matches(&view("/", "h", &headers)) && !scheme("https").matches(&view("/", "h", &headers)));
    let port = |port| Matcher { port: Some(port), ..Matcher::default() };
    assert!(port(80).matches(&view("/", "h", &headers)) && !port(81).matches(&view("/", "h", &headers)));
    assert!(!port(80).is_catch_all() && !scheme("http").is_catch_all() && !without(StringMatch::Any).is_catch_all());
}
