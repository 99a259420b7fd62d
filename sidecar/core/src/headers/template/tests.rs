use std::sync::LazyLock;
use std::time::Duration;

use super::*;

static PROXY: LazyLock<ProxyContext> = LazyLock::new(|| ProxyContext {
    hostname: "pod-1".to_owned(),
    time: |_| SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
    random: || u128::MAX,
    environment: |name| (name == "ZONE").then(|| "eu-1".to_owned()),
});
static START: LazyLock<Instant> = LazyLock::new(crate::outlier::tests::now);
static ENDS: LazyLock<ConnectionAddresses> = LazyLock::new(|| ConnectionAddresses {
    source: SocketAddr::from(([10, 0, 0, 1], 4000)),
    destination: SocketAddr::from(([240, 240, 0, 7], 80)),
});

pub(in crate::headers) fn context() -> Context<'static> {
    Context {
        proxy: &PROXY,
        ends: &ENDS,
        tls: None,
        version: Version::HTTP_11,
        start: &START,
        method: "GET",
        authority: "order",
        path_and_query: "/a?b",
        cluster: "outbound|80||order",
        route: "VirtualService/default/order/v2",
    }
}

pub(in crate::headers) fn response_context() -> ResponseContext<'static> {
    ResponseContext {
        status: StatusCode::NOT_FOUND,
        details: ResponseContext::UPSTREAM,
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
    let (headers, response_context) = (headers(), response_context());
    let answered = (side == Side::Response).then_some((&response_context, &headers));
    let value = Template::parse(text, side).unwrap().render(&headers, &context(), answered)?;
    Some(value.to_str().unwrap().to_owned())
}

#[test]
fn placeholders_of_requests_and_responses_are_rendered() {
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
        ("%REQUEST_HEADER(missing?x-user):2%", Some("al")),
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
fn response_placeholders_are_refused_in_requests() {
    for (text, expected) in [
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", "404 via_upstream -"),
        ("%RESP(missing?X-User):3%", "ali"),
        ("%RESPONSE_HEADER(missing?X-User):3%", "ali"),
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
fn route_name_is_that_of_the_virtual_service() {
    for (name, expected) in [("VirtualService/a/b/c", "c"), ("VirtualService/a/b", ""), ("default", "default")] {
        assert_eq!(route_text(name), expected);
    }
}

#[test]
fn a_template_is_displayed_as_its_source_text() {
    for text in ["plain", "100%%", "%REQ(x-a?:path):3% of %PROTOCOL%", "%START_TIME(%s)%"] {
        assert_eq!(Template::parse(text, Side::Request).unwrap().to_string(), text);
    }
}

/// Envoy's formatters that a sidecar does not support, with the reason.
#[test]
fn unsupported_formatters_are_refused_with_a_reason() {
    for (text, reason) in [
        ("a %DURATION% b", "known only when the response has ended"),
        ("%BYTES_SENT%", "known only when the response has ended"),
        ("%DOWNSTREAM_WIRE_BYTES_SENT%", "known only when the response has ended"),
        ("%TRAILER(a)%", "known only when the response has ended"),
        ("%DOWNSTREAM_PEER_CHAIN_SERIALS%", "only the client's own certificate"),
        ("%DOWNSTREAM_LOCAL_URI_SAN%", "is not recorded"),
        ("%DOWNSTREAM_DIRECT_LOCAL_PORT%", "the sidecar's own listener"),
        ("%TLS_JA3_FINGERPRINT%", "are not computed"),
        ("%UPSTREAM_TLS_VERSION%", "only the address of an upstream connection"),
        ("%DYNAMIC_METADATA(a:b)%", "Envoy's own configuration"),
        ("%VIRTUAL_CLUSTER_NAME%", "Envoy's own configuration"),
        ("%START_TIME_LOCAL%", "times are UTC"),
        ("%CONNECTION_ID%", "connections have no ids"),
        ("%TRACE_ID%", "creates no traces"),
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
        "%PATH(ORIG)%",
        "%PATH(WQ:X)%",
        "%QUERY_PARAM%",
        "%QUERY_PARAM()%",
        "%QUERY_PARAMS(DECODED)%",
        "%REQUESTED_SERVER_NAME(X)%",
        "%REQUESTED_SERVER_NAME(SNI_FIRST:X)%",
        "%REQUESTED_SERVER_NAME:3%",
        "%DOWNSTREAM_TLS_VERSION:3%",
        "%DOWNSTREAM_PEER_DNS_SAN(1)%",
        "%DOWNSTREAM_PEER_CERT_V_END(%Q)%",
    ] {
        assert!(Template::parse(wrong, Side::Response).is_err(), "{wrong}");
    }
    assert!(Template::parse("a\nb", Side::Request).is_err());
}

/// Values of Envoy 1.40.
#[test]
fn target_formatters_match_envoy() {
    let target = "/x/y?a=b%20c+d&a=d&e&%62=1";
    let context = Context { path_and_query: target, ..context() };
    let mut original = HeaderMap::new();
    original.insert("x-envoy-original-path", HeaderValue::from_static("/orig?a=o"));
    for (text, plain, rewritten) in [
        ("%PATH%", target, "/orig?a=o"),
        ("%PATH(NQ)%", "/x/y", "/orig"),
        ("%PATH(NQ):3%", "/x/", "/or"),
        ("%PATH(WQ:PATH)%", target, target),
        ("%PATH(NQ:ORIG)%", "", "/orig"),
        ("%QUERY_PARAM(a)%", "b c+d", "b c+d"),
        ("%QUERY_PARAM(a):1%", "b", "b"),
        ("%QUERY_PARAM(b)%", "1", "1"),
        ("%QUERY_PARAM(e)%", "", ""),
        ("%QUERY_PARAM(none)%", "", ""),
        ("%QUERY_PARAMS:3%", "a=b", "a=b"),
    ] {
        let template = Template::parse(&format!("[{text}]"), Side::Request).unwrap();
        for (headers, expected) in [(&HeaderMap::new(), plain), (&original, rewritten)] {
            let value = template.render(headers, &context, None).unwrap();
            assert_eq!(value, &*format!("[{expected}]"), "{text}");
        }
        assert_eq!(template.reads_request_headers(), plain != rewritten, "{text}");
    }
    let context = Context { path_and_query: "/?a=%0d%0a", ..context };
    let injected = Template::parse("%QUERY_PARAM(a)%", Side::Request).unwrap().render(&original, &context, None);
    assert_eq!(injected, None, "no header has a line feed");
}

#[test]
fn tls_formatters_describe_terminated_tls() {
    let certificate = |der: &[u8]| {
        let second = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let list = |kind: &str| vec![format!("{kind}1"), format!("{kind}2")];
        (der == b"der").then(|| crate::headers::Certificate {
            subject: "CN=bob".into(),
            issuer: "CN=ca".into(),
            uris: list("spiffe://mesh/"),
            names: list("name"),
            addresses: list("10.0.0."),
            mails: list("a@"),
            sha256: "ab".into(),
            sha1: "cd".into(),
            serial: "07".into(),
            pem: "-----BEGIN%20".into(),
            start: second(0),
            end: second(86_400),
        })
    };
    let with = |der: Option<&[u8]>| Tls {
        server_name: "sni.test".into(),
        version: "TLSv1.3",
        cipher: "TLS_AES_256_GCM_SHA384".into(),
        group: "X25519".into(),
        peer: der.map(|der| crate::headers::Peer {
            der: der.into(),
            read: certificate,
            certificate: Default::default(),
        }),
    };
    let (mutual, simple, unread) = (with(Some(b"der")), with(None), with(Some(b"?")));
    let render = |text: &str, tls| {
        let template = Template::parse(&format!("[{text}]"), Side::Request).unwrap();
        template.render(&HeaderMap::new(), &Context { tls, ..context() }, None).unwrap()
    };
    for (text, of_mutual, of_simple, of_none) in [
        ("%REQUESTED_SERVER_NAME%", "sni.test", "sni.test", ""),
        ("%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%", "sni.test", "sni.test", "order"),
        ("%REQUESTED_SERVER_NAME(HOST_FIRST)%", "order", "order", "order"),
        ("%REQUESTED_SERVER_NAME(HOST_FIRST:ORIG)%", "sni.test", "sni.test", ""),
        ("%DOWNSTREAM_TLS_VERSION%", "TLSv1.3", "TLSv1.3", ""),
        ("%DOWNSTREAM_TLS_CIPHER%", "TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", ""),
        ("%DOWNSTREAM_TLS_GROUP%", "X25519", "X25519", ""),
        ("%DOWNSTREAM_PEER_SUBJECT%", "CN=bob", "", ""),
        ("%DOWNSTREAM_PEER_ISSUER%", "CN=ca", "", ""),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://mesh/1,spiffe://mesh/2", "", ""),
        ("%DOWNSTREAM_PEER_DNS_SAN%", "name1,name2", "", ""),
        ("%DOWNSTREAM_PEER_IP_SAN%", "10.0.0.1,10.0.0.2", "", ""),
        ("%DOWNSTREAM_PEER_EMAIL_SAN%", "a@1,a@2", "", ""),
        ("%DOWNSTREAM_PEER_FINGERPRINT_256%", "ab", "", ""),
        ("%DOWNSTREAM_PEER_FINGERPRINT_1%", "cd", "", ""),
        ("%DOWNSTREAM_PEER_SERIAL%", "07", "", ""),
        ("%DOWNSTREAM_PEER_CERT%", "-----BEGIN%20", "", ""),
        ("%DOWNSTREAM_PEER_CERT_V_START%", "1970-01-01T00:00:00.000Z", "", ""),
        ("%DOWNSTREAM_PEER_CERT_V_END(%s)%", "86400", "", ""),
    ] {
        for (tls, expected) in [(Some(&mutual), of_mutual), (Some(&simple), of_simple), (None, of_none)] {
            assert_eq!(render(text, tls), &*format!("[{expected}]"), "{text}");
        }
    }
    assert_eq!(render("%DOWNSTREAM_PEER_SUBJECT%", Some(&unread)), "[]");
}

/// All formatters that Envoy 1.40 accepts in a header.
#[test]
fn every_formatter_of_envoy_works_or_is_refused_with_its_own_reason() {
    for name in include_str!("envoy.txt").split_whitespace() {
        for text in [format!("%{name}%"), format!("%{name}(x)%")] {
            if let Err(error) = Template::parse(&text, Side::Response) {
                assert!(!error.contains("supported are"), "{error}");
            }
        }
    }
}
