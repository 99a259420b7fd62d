//! Routes against a simple model of Istio's rules: both select the same route. Bytes are
//! drawn from small alphabets, so that matches are frequent.
#![no_main]

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::arbitrary::{self, Unstructured};
use libfuzzer_sys::fuzz_target;
use weft_core::compile;
use weft_core::request::RequestView;
use weft_proto::v1::{self, string_match::Kind};

const HEADERS: [&str; 3] = ["x-a", "x-b", "host"];
const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/A", "/ab", "/b", "/a%2Fb"];
const TEXTS: [&str; 6] = ["", "a", "b", "ab", "A", "a,b"];
/// The meaning of an expression, without a regular expression.
type Meaning = fn(&str) -> bool;
const REGEXES: [(&str, Meaning); 4] = [
    (".*", |_| true),
    ("a.*", |text| text.starts_with('a')),
    ("/a(/.*)?", |text| text == "/a" || text.starts_with("/a/")),
    ("[ab]", |text| text == "a" || text == "b"),
];

fuzz_target!(|data: &[u8]| {
    // Too few bytes for a request.
    let _ = compare(&mut Unstructured::new(data));
});

fn compare(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let routes = (0..bytes.int_in_range(1..=4)?).map(|_| route(bytes)).collect::<Result<Vec<_>, _>>()?;
    let port = v1::Port { number: 80, routes: routes.clone(), ..v1::Port::default() };
    let cluster = v1::Cluster { name: "c".into(), host: "h".into(), ..v1::Cluster::default() };
    let service =
        v1::Service { host: "h".into(), ports: vec![port], clusters: vec![cluster], ..v1::Service::default() };
    let service = compile::service(&service).unwrap_or_else(|e| panic!("{e}: {routes:?}"));
    let mut headers = HeaderMap::new();
    for _ in 0..bytes.int_in_range(0..=3)? {
        let name = HeaderName::from_static(bytes.choose(&["x-a", "x-b"])?);
        headers.append(name, HeaderValue::from_static(bytes.choose(&TEXTS)?));
    }
    let query = bytes.choose(&["", "?", "?q=a", "?q=a&q=b", "?q", "?r=q"])?;
    let path = format!("{}{query}", bytes.choose(&PATHS)?);
    let request = RequestView {
        method: if bytes.arbitrary()? { &Method::GET } else { &Method::POST },
        path_and_query: &path,
        authority: bytes.choose(&["a", "b", "h:80"])?,
        scheme: bytes.choose(&["http", "https"])?,
        headers: &headers,
        source: SocketAddr::from(([10, 0, 0, 1], 4000)),
        local: SocketAddr::from(([240, 240, 0, 1], *bytes.choose(&[80, 8080])?)),
    };
    let found = service.port(80).and_then(|port| port.routes.find(&request));
    let found = found.map(|route| route.name.to_string());
    let wanted = routes
        .iter()
        .enumerate()
        .find(|(_, route)| route.matches.is_empty() || route.matches.iter().any(|one| matches(one, &request)));
    let wanted = wanted.map(|(n, _)| routes[n].name.clone());
    assert_eq!(found, wanted, "{request:?} {routes:#?}");
    Ok(())
}

fn route(bytes: &mut Unstructured<'_>) -> arbitrary::Result<v1::HttpRoute> {
    let matches = (0..bytes.int_in_range(0..=2)?).map(|_| condition(bytes)).collect::<Result<Vec<_>, _>>()?;
    let forward = v1::Forward {
        destinations: vec![v1::WeightedCluster { cluster: 0, weight: 1, headers: None }],
        ..v1::Forward::default()
    };
    let action = Some(v1::http_route::Action::Forward(forward));
    // Identified by the messages that they were compiled from.
    let name = format!("VirtualService/default/{}", bytes.len());
    Ok(v1::HttpRoute { name, matches, action, ..v1::HttpRoute::default() })
}

fn condition(bytes: &mut Unstructured<'_>) -> arbitrary::Result<v1::HttpMatch> {
    let optional = |bytes: &mut Unstructured<'_>, texts: &[&str]| {
        if bytes.arbitrary()? { string_match(bytes, texts).map(Some) } else { Ok(None) }
    };
    let named = |bytes: &mut Unstructured<'_>, names: &[&str]| {
        let one = |bytes: &mut Unstructured<'_>| {
            let name = (*bytes.choose(names)?).to_owned();
            Ok(v1::NamedMatch { name, value: Some(string_match(bytes, &TEXTS)?) })
        };
        (0..bytes.int_in_range(0..=1)?).map(|_| one(bytes)).collect::<Result<Vec<_>, _>>()
    };
    let uri = optional(bytes, &PATHS)?;
    let segments = if uri.is_none() { *bytes.choose(&["", "/", "/a", "/a/"])? } else { "" };
    Ok(v1::HttpMatch {
        path_separated_prefix: segments.to_owned(),
        uri,
        ignore_uri_case: bytes.arbitrary()?,
        method: optional(bytes, &["GET", "POST"])?,
        authority: optional(bytes, &["a", "h"])?,
        headers: named(bytes, &HEADERS)?,
        without_headers: named(bytes, &HEADERS)?,
        query_params: named(bytes, &["q", "r"])?,
        scheme: optional(bytes, &["http", "https"])?,
        port: *bytes.choose(&[0, 80, 8080])?,
    })
}

fn string_match(bytes: &mut Unstructured<'_>, texts: &[&str]) -> arbitrary::Result<v1::StringMatch> {
    let text = (*bytes.choose(texts)?).to_owned();
    let kind = match bytes.int_in_range(0..=3)? {
        0 => Kind::Exact(text),
        1 => Kind::Prefix(text),
        2 => Kind::Regex(bytes.choose(&REGEXES)?.0.to_owned()),
        _ => Kind::Present(true),
    };
    Ok(v1::StringMatch { kind: Some(kind) })
}

/// Istio's rules for one `match`.
fn matches(one: &v1::HttpMatch, request: &RequestView<'_>) -> bool {
    let is = |condition: &Option<v1::StringMatch>, text: &str, ignore_case| {
        condition.as_ref().is_none_or(|condition| holds(condition, text, ignore_case))
    };
    let values = |name: &str| -> Vec<String> {
        if name == "host" {
            return vec![request.authority.to_owned()];
        }
        let all = request.headers.get_all(name).iter();
        all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let any = |named: &v1::NamedMatch| {
        let condition = named.value.clone().unwrap_or_default();
        values(&named.name).iter().any(|value| holds(&condition, value, false))
    };
    // Without a header is without an empty one, too (Envoy's `treat_missing_header_as_empty`), unless the match is on presence.
    let absent = |named: &v1::NamedMatch| {
        let condition = named.value.clone().unwrap_or_default();
        let by_text = !matches!(condition.kind, Some(Kind::Present(_)) | None);
        let missing = values(&named.name).is_empty() && by_text && holds(&condition, "", false);
        !any(named) && !missing
    };
    let path = request.path_and_query.split('?').next().unwrap_or_default();
    let query = request.path_and_query.split_once('?').map_or("", |(_, query)| query);
    let parameter = |name: &str| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let segments = one.path_separated_prefix.trim_end_matches('/');
    is(&one.uri, path, one.ignore_uri_case)
        && (segments.is_empty() || path == segments || path.starts_with(&format!("{segments}/")))
        && is(&one.method, request.method.as_str(), false)
        && is(&one.authority, request.authority, false)
        && is(&one.scheme, request.scheme, false)
        && (one.port == 0 || one.port == u32::from(request.local.port()))
        && one.headers.iter().all(any)
        && one.without_headers.iter().all(absent)
        && one.query_params.iter().all(|named| {
            let condition = named.value.clone().unwrap_or_default();
            request.query().is_some() && parameter(&named.name).is_some_and(|value| holds(&condition, value, false))
        })
}

fn holds(condition: &v1::StringMatch, text: &str, ignore_case: bool) -> bool {
    let folded = |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    match &condition.kind {
        Some(Kind::Exact(exact)) => folded(text) == folded(exact),
        Some(Kind::Prefix(prefix)) => folded(text).starts_with(&folded(prefix)),
        Some(Kind::Regex(regex)) => REGEXES.iter().any(|(pattern, matches)| pattern == regex && matches(text)),
        Some(Kind::Present(_)) | None => true,
    }
}
