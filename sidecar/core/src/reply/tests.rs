use super::*;

fn overflow() -> Reason {
    Reason::Overflow(Overflow { field: "http2MaxRequests", limit: 100 })
}

const SHORT: Duration = Duration::from_millis(200);

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

#[test]
fn replies_match_envoys_status_flag_and_body() {
    for (reason, status, flag, body) in [
        (Reason::NoHealthyUpstream, 503, "UH", "no healthy upstream".to_owned()),
        (overflow(), 503, "UO", format!("{RESET}overflow")),
        (Reason::NoRoute, 404, "NR", String::new()),
        (Reason::ClusterUndefined(StatusCode::SERVICE_UNAVAILABLE), 503, "NC", String::new()),
        (Reason::ConnectFailure { detail: String::new() }, 503, "UF", format!("{RESET}remote connection failure")),
        (
            Reason::ConnectFailure { detail: "Connection refused".into() },
            503,
            "UF",
            format!("{RESET}remote connection failure, transport failure reason: Connection refused"),
        ),
        (Reason::ConnectTimeout, 503, "UF", format!("{RESET}connection timeout")),
        (Reason::UpstreamClosed, 503, "UC", format!("{RESET}connection termination")),
        (Reason::UpstreamReset, 503, "UR", format!("{RESET}remote reset")),
        (Reason::UpstreamProtocolError { detail: String::new() }, 502, "UPE", format!("{RESET}protocol error")),
        (Reason::Timeout { after: SHORT }, 504, "UT", "upstream request timeout".to_owned()),
        (Reason::PerTryTimeout { after: SHORT }, 504, "UT", "upstream request timeout".to_owned()),
        (Reason::UnknownHost, 502, "NR", String::new()),
        (Reason::HeaderTooLarge, 431, "DPE", "request header fields too large".to_owned()),
        (Reason::BadRequest { detail: "no host" }, 400, "DPE", "no host".to_owned()),
        (Reason::UnsupportedVersion, 505, "DPE", "the version is neither HTTP/1.0 nor HTTP/1.1".to_owned()),
        (Reason::UpgradeRefused { token: "foo".into() }, 403, "-", String::new()),
        (Reason::ConnectRefused, 404, "NR", String::new()),
        (Reason::Misdirected, 421, "NR", String::new()),
    ] {
        let reply = LocalReply::new(&reason, "");
        let actual = (reply.status.as_u16(), reply.flag.map_or("-", ResponseFlag::as_str), &*reply.body);
        assert_eq!(actual, (status, flag, &*body), "{reason:?}");
        assert!(reply.reason.starts_with(reason.name()));
    }
}

#[test]
fn the_reason_header_names_rule_policy_and_limit() {
    let http = LocalReply::new(&overflow(), "DestinationRule/shop/order").http();
    let reason = "overflow; policy=DestinationRule/shop/order; limit=http2MaxRequests=100";
    assert_eq!(http.headers()[REASON_HEADER], reason);
    assert_eq!(http.headers()[OVERLOADED_HEADER], "true");
    assert_eq!(http.headers()[CONTENT_TYPE], "text/plain");
    let late = LocalReply::new(&Reason::Timeout { after: SHORT }, "VirtualService/shop/order");
    assert_eq!(late.reason, "timeout; policy=VirtualService/shop/order; limit=timeout=200ms");
    let none = LocalReply::new(&Reason::NoRoute, "VirtualService/shop/order").http();
    assert_eq!(none.headers()[REASON_HEADER], "no_route; policy=VirtualService/shop/order");
    assert!(!none.headers().contains_key(OVERLOADED_HEADER) && !none.headers().contains_key(CONTENT_TYPE));
    assert!(none.body().is_empty());
}

/// Includes every error of the parser.
#[test]
fn the_reason_names_the_violated_rule() {
    let coding = HeadError::Coding("gzip, chunked".to_owned());
    let upstream = Outcome::ProtocolError;
    let upstream = Reason::of(&upstream, None, Duration::ZERO, &coding.to_string()).unwrap();
    assert_eq!(
        LocalReply::new(&upstream, "DestinationRule/d/a").reason,
        "upstream_protocol_error: transfer-encoding \"gzip, chunked\"; policy=DestinationRule/d/a"
    );
    for (error, status, reason) in [
        (coding, 501, "unsupported_coding: transfer-encoding \"gzip, chunked\""),
        (HeadError::TooLarge, 431, "header_too_large"),
        (HeadError::Version, 505, "unsupported_version"),
        (HeadError::Invalid("invalid header name"), 400, "bad_request: invalid header name"),
    ] {
        let reply = LocalReply::new(&Reason::from(&error), "");
        assert_eq!((reply.status.as_u16(), &*reply.reason), (status, reason));
        assert_eq!(reply.http().headers()[REASON_HEADER], reason);
    }
}

#[test]
fn replies_to_grpc_carry_a_grpc_status() {
    for (reason, status, message) in [
        (Reason::NoHealthyUpstream, "14", Some("no healthy upstream")),
        (Reason::NoRoute, "12", None),
        (Reason::Timeout { after: SHORT }, "14", Some("upstream request timeout")),
        (Reason::ConnectFailure { detail: "100% \u{e9}\n".into() }, "14", None),
    ] {
        let grpc = LocalReply::new(&reason, "").grpc();
        assert_eq!((grpc.status(), grpc.body().len()), (StatusCode::OK, 0));
        assert_eq!(grpc.headers()["grpc-status"], status, "{reason:?}");
        assert_eq!(grpc.headers()[CONTENT_TYPE], "application/grpc");
        if let Some(message) = message {
            assert_eq!(grpc.headers()["grpc-message"], message);
        }
    }
    assert_eq!(percent_encode("100% \u{e9}\n"), "100%25 %C3%A9%0A");
    assert_eq!(LocalReply::new(&overflow(), "").grpc().headers()[OVERLOADED_HEADER], "true");
}

#[test]
fn grpc_requests_are_detected_by_content_type() {
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        assert_eq!(is_grpc(&headers), expected, "{content_type}");
    }
    assert!(!is_grpc(&HeaderMap::new()));
}

#[test]
fn outcomes_without_an_answer_have_a_reason() {
    let limit = Overflow { field: "maxConnections", limit: 1 };
    for (outcome, name) in [
        (Outcome::ConnectFailure, Some("connect_failure")),
        (Outcome::ConnectTimeout, Some("connect_timeout")),
        (Outcome::IdentityMismatch, Some("peer_identity_mismatch")),
        (Outcome::Reset { request_started: true }, Some("upstream_closed")),
        (Outcome::RemoteReset, Some("upstream_reset")),
        (Outcome::Timeout, Some("timeout")),
        (Outcome::Overflow, Some("overflow")),
        (Outcome::NoHealthyUpstream, Some("no_healthy_upstream")),
        (Outcome::Cancelled, None),
        (Outcome::ResetAfterHeaders, None),
    ] {
        assert_eq!(Reason::of(&outcome, Some(limit), SHORT, "").map(|reason| reason.name()), name, "{outcome:?}");
    }
}
