use std::sync::LazyLock;
use std::time::Duration;

use super::*;

static SURROUNDINGS: LazyLock<Surroundings> = LazyLock::new(|| Surroundings {
    hostname: "pod-1".to_owned(),
    time: |_| SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
    random: || u128::MAX,
    environment: |name| (name == "ZONE").then(|| "eu-1".to_owned()),
});
static START: LazyLock<Instant> = LazyLock::new(crate::outlier::tests::now);
static ENDS: LazyLock<Ends> = LazyLock::new(|| Ends {
    source: SocketAddr::from(([10, 0, 0, 1], 4000)),
    destination: SocketAddr::from(([240, 240, 0, 7], 80)),
});

pub(in crate::headers) fn context() -> Context<'static> {
    Context {
        surroundings: &SURROUNDINGS,
        ends: &ENDS,
        version: Version::HTTP_11,
        start: &START,
        method: "GET",
        authority: "order",
        path_and_query: "/a?b",
        cluster: "outbound|80||order",
        route: "VirtualService/default/order/v2",
    }
}

pub(in crate::headers) fn answer() -> Answer<'static> {
    Answer {
        status: StatusCode::NOT_FOUND,
        details: Answer::UPSTREAM,
        flags: ResponseFlags::NONE,
        upstream: Some("10.0.0.9:8080"),
        attempts: 2,
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from_static("alice"));
    headers.insert("x-request-id", HeaderValue::from_static("7"));
    headers
}

fn render(text: &str, side: Side) -> Option<String> {
    let (headers, answer) = (headers(), answer());
    let answered = (side == Side::Response).then_some((&answer, &headers));
    let value = Template::parse(text, side).unwrap().render(&headers, &context(), answered)?;
    Some(value.to_str().unwrap().to_owned())
}

#[test]
fn placeholders_that_requests_and_responses_may_have() {
    for (text, expected) in [
        ("plain", Some("plain")),
        ("", Some("")),
        ("100%%", Some("100%")),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.0.0.1:4000")),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", Some("10.0.0.1")),
        ("ip=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;", Some("ip=10.0.0.1;")),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", Some("240.240.0.7:80")),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%", Some("240.240.0.7 80")),
        ("%REQ(X-User)%/%REQ(:path)%", Some("alice//a?b")),
        ("%REQ(:method)% %REQ(:authority)% %PROTOCOL%", Some("GET order HTTP/1.1")),
        ("%REQ(missing)%", None),
        ("a%REQ(missing)%", Some("a")),
        ("%REQ(missing?x-user)%", Some("alice")),
        ("%REQ(X-User?:path):3%", Some("ali")),
        ("%REQ(:path):2%", Some("/a")),
        ("%DOWNSTREAM_REMOTE_PORT%", Some("4000")),
        ("at %HOSTNAME%", Some("at pod-1")),
        ("%START_TIME%", Some("1970-01-01T00:00:01.500Z")),
        ("%START_TIME(%s.%3f)%!", Some("1.500!")),
        ("%UPSTREAM_CLUSTER%", Some("outbound|80||order")),
        ("%ROUTE_NAME%", Some("v2")),
        ("%STREAM_ID%", Some("7")),
        ("%UNIQUE_ID%", Some("ffffffff-ffff-4fff-bfff-ffffffffffff")),
        ("%ENVIRONMENT(ZONE)%", Some("eu-1")),
        ("%ENVIRONMENT(ZONE):2%", Some("eu")),
        ("%ENVIRONMENT(NONE)%", Some("-")),
    ] {
        for side in [Side::Request, Side::Response] {
            assert_eq!(render(text, side).as_deref(), expected, "{text} {side:?}");
        }
    }
}

#[test]
fn placeholders_that_responses_alone_may_have() {
    for (text, expected) in [
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", "404 via_upstream -"),
        ("%RESP(missing?X-User):3%", "ali"),
        ("%UPSTREAM_HOST%", "10.0.0.9:8080"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%UPSTREAM_REMOTE_PORT%", "10.0.0.9|8080"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "2"),
    ] {
        assert_eq!(render(text, Side::Response).as_deref(), Some(expected), "{text}");
        let error = Template::parse(text, Side::Request).unwrap_err();
        assert!(error.contains("can be used in `response` alone"), "{text}: {error}");
    }
    let pieces = |key| [Piece::Whole, Piece::Ip, Piece::Port].map(|piece| piece.of_endpoint(key));
    assert_eq!(pieces("[::1]:80"), ["[::1]:80", "::1", "80"]);
    assert_eq!(pieces("/run/a:b.sock"), ["/run/a:b.sock", "/run/a:b.sock", ""]);
    assert_eq!(pieces("db.test:80"), ["db.test:80", "db.test", "80"]);
}

#[test]
fn the_route_is_called_as_the_virtual_service_calls_it() {
    for (name, expected) in [("VirtualService/a/b/c", "c"), ("VirtualService/a/b", ""), ("default", "default")] {
        assert_eq!(route_text(name), expected);
    }
}

#[test]
fn a_template_is_shown_as_it_is_written() {
    for text in ["plain", "100%%", "%REQ(x-a?:path):3% of %PROTOCOL%", "%START_TIME(%s)%"] {
        assert_eq!(Template::parse(text, Side::Request).unwrap().to_string(), text);
    }
}

/// What Envoy has and a sidecar does not know, with the reason.
#[test]
fn what_is_not_known_is_refused_by_name() {
    for (text, reason) in [
        ("a %DURATION% b", "known when the response has ended"),
        ("%BYTES_SENT%", "known when the response has ended"),
        ("%DOWNSTREAM_WIRE_BYTES_SENT%", "known when the response has ended"),
        ("%TRAILER(a)%", "known when the response has ended"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "`x-forwarded-client-cert` tells who calls"),
        ("%REQUESTED_SERVER_NAME%", "without TLS"),
        ("%UPSTREAM_TLS_VERSION%", "its address is kept alone"),
        ("%DYNAMIC_METADATA(a:b)%", "Envoy's own configuration"),
        ("%VIRTUAL_CLUSTER_NAME%", "Envoy's own configuration"),
        ("%START_TIME_LOCAL%", "times are UTC"),
        ("%CONNECTION_ID%", "connections have no numbers"),
        ("%TRACE_ID%", "makes no traces"),
        ("%NONSENSE%", "supported are HOSTNAME"),
        ("%ENVIRONMENT(WEFT_TOKEN)%", "the proxy's own settings"),
    ] {
        let error = Template::parse(text, Side::Response).unwrap_err();
        assert!(error.contains(reason) && error.starts_with('%'), "{text}: {error}");
    }
    assert!(Template::parse("50% off", Side::Request).unwrap_err().contains("%%"));
    for wrong in [
        "%REQ(a b)%",
        "%REQ(a?b?c)%",
        "%REQ(a):x%",
        "%REQ(a)x%",
        "%REQ(a)",
        "%REQ%",
        "%REQ()%",
        "%HOSTNAME(a)%",
        "%host%",
        "%START_TIME(%Q)%",
        "%START_TIME(%s):3%",
        "%PROTOCOL:3%",
        "%ENVIRONMENT()%",
        "%(a)%",
    ] {
        assert!(Template::parse(wrong, Side::Response).is_err(), "{wrong}");
    }
    assert!(Template::parse("a\nb", Side::Request).is_err());
}
