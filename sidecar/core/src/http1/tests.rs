use super::*;
use crate::reply::{LocalReply, Reason};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

fn request(text: &str) -> RequestHead {
    let (head, length) = parse_request(text.as_bytes(), Limits::OUTSIDE).unwrap().unwrap();
    assert_eq!(length, text.find("\r\n\r\n").unwrap() + 4);
    head
}

fn response(text: &str, method: Method) -> ResponseHead {
    parse_response(text.as_bytes(), &method, Limits::OUTSIDE).unwrap().unwrap().0
}

/// The status of the response to a request that is refused.
fn refused(text: &[u8]) -> u16 {
    let error = parse_request(text, Limits::OUTSIDE).unwrap_err();
    LocalReply::new(&Reason::from(&error), "").status.as_u16()
}

#[test]
fn request_heads_are_parsed() {
    let head = request("POST /a?b=c HTTP/1.1\r\nHost: order\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello");
    assert_eq!((head.parts.method.as_str(), head.parts.uri.to_string().as_str()), ("POST", "/a?b=c"));
    assert_eq!((head.framing, head.keep_alive, head.expects_continue), (Framing::Length(5), true, true));
    assert_eq!(head.parts.headers["host"], "order");
    assert_eq!(request("GET / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n").framing, Framing::Chunked);
    assert_eq!(request("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").parts.uri, "*");
    assert_eq!(request("CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n").parts.uri, "a:443");
    assert_eq!(request("GET http://a/b HTTP/1.1\r\nhost: a\r\n\r\n").parts.uri, "http://a/b");
}

#[test]
fn keep_alive_follows_version_and_connection_header() {
    let keeps_alive =
        |line: &str, header: &str| request(&format!("GET / {line}\r\nHost: a\r\n{header}\r\n\r\n")).keep_alive;
    assert!(keeps_alive("HTTP/1.1", "a: b"));
    assert!(!keeps_alive("HTTP/1.1", "Connection: x, Close"));
    assert!(!keeps_alive("HTTP/1.0", "a: b"));
    assert!(keeps_alive("HTTP/1.0", "Connection: Keep-Alive"));
}

/// Request smuggling: a recipient that disagrees about the end of a body would read another request.
#[test]
fn ambiguous_requests_are_refused() {
    for (headers, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length:", 400),
        ("Content-Length: 99999999999999999999", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding: \x0bchunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("A: b\r\n folded: c", 400),
        ("A\0: b", 400),
        ("Host: b", 400),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), status, "{headers:?}");
    }
    assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), 400);
    assert!(parse_request(b"GET / HTTP/1.0\r\n\r\n", Limits::OUTSIDE).is_ok());
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), 400);
    assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), 505);
    assert_eq!(refused(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    assert_eq!(refused(b"\x16\x03\x01 hello\r\n\r\n"), 400);
}

#[test]
fn heads_over_the_limits_are_refused() {
    let with = |count: usize| {
        let headers: String = (0..count).map(|i| format!("h{i}: x\r\n")).collect();
        format!("GET / HTTP/1.0\r\n{headers}\r\n")
    };
    let read = |text: &str, limits| parse_request(text.as_bytes(), limits).map(|head| head.is_some());
    assert_eq!(read(&with(100), Limits::OUTSIDE), Ok(true));
    assert_eq!(read(&with(101), Limits::OUTSIDE), Err(HeadError::TooLarge));
    // Headers that sidecars add do not count against the sender's limit.
    assert_eq!(read(&with(120), Limits::MESH), Ok(true));
    let long = format!("GET / HTTP/1.0\r\nh: {}", "x".repeat(Limits::OUTSIDE.bytes));
    assert_eq!(read(&long, Limits::OUTSIDE), Err(HeadError::TooLarge));
    assert_eq!(read(&format!("{long}\r\n\r\n"), Limits::OUTSIDE), Err(HeadError::TooLarge));
    assert_eq!(read(&format!("{long}\r\n\r\n"), Limits::MESH), Ok(true));
}

/// Accepts and refuses the same targets as Envoy.
#[test]
fn targets_are_limited_to_visible_ascii() {
    for byte in 0u8..=255 {
        for target in [[b"/a?b=".as_slice(), &[byte], b"c"].concat(), [b"/a".as_slice(), &[byte], b"c"].concat()] {
            let text = [b"GET ".as_slice(), &target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            let read = parse_request(&text, Limits::OUTSIDE);
            if byte.is_ascii_graphic() && byte != b'#' {
                let (head, _) = read.unwrap().unwrap();
                assert_eq!(path_and_query(&head.parts).as_bytes(), target);
                let line = written(&head, Framing::None);
                assert!(line.as_bytes().starts_with(&[b"GET ", &target[..], b" HTTP/1.1\r\n"].concat()), "{line}");
            } else {
                assert!(read.is_err(), "{target:?}");
            }
        }
    }
    let odd = request("GET /a?query=up{job=\"a\"} HTTP/1.1\r\nHost: a\r\n\r\n");
    // The percent-encoded form for HTTP/2, whose library does not hold such bytes.
    assert_eq!(odd.parts.uri, "/a?query=up{job=%22a%22}");
    let mut replaced = odd.parts;
    Target::parse("/b".into()).unwrap().replace(&mut replaced);
    assert_eq!((path_and_query(&replaced), replaced.uri.path()), ("/b", "/b"));
}

#[test]
fn absolute_form_replaces_the_host_header() {
    let head = request("GET http://b1:80/x HTTP/1.1\r\nHost: internal.b1\r\n\r\n");
    assert_eq!(head.parts.headers.get_all("host").iter().collect::<Vec<_>>(), ["b1:80"]);
    assert_eq!(head.parts.uri, "http://b1:80/x");
    assert!(written(&head, Framing::None).starts_with("GET http://b1:80/x HTTP/1.1\r\n"));
    let head = request("GET HTTPS://b1?q=\"x\" HTTP/1.1\r\nHost: b1\r\n\r\n");
    assert_eq!((head.parts.uri.scheme_str(), path_and_query(&head.parts)), (Some("https"), "/?q=\"x\""));
    assert!(written(&head, Framing::None).starts_with("GET https://b1/?q=\"x\" HTTP/1.1\r\n"));
    assert_eq!(request("GET http://b1 HTTP/1.1\r\n\r\n").parts.headers["host"], "b1");
}

#[test]
fn requests_with_ambiguous_authorities_are_refused() {
    for text in [
        "GET http://u:p@b1/x HTTP/1.1\r\nHost: b1",
        "GET http://u@b1 HTTP/1.1\r\nHost: b1",
        "GET /x HTTP/1.1\r\nHost: u@b1",
        "GET /x HTTP/1.1\r\nHost: a b",
        "GET /x HTTP/1.1\r\nHost: a/b",
        "GET /x HTTP/1.1\r\nHost: <a>",
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: b",
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: a",
        "GET b1:80 HTTP/1.1\r\nHost: b1",
        "GET ftp://b1/x HTTP/1.1\r\nHost: b1",
        "GET * HTTP/1.1\r\nHost: b1",
        "GET x HTTP/1.1\r\nHost: b1",
        "CONNECT /x HTTP/1.1\r\nHost: b1",
        "CONNECT u@b1:80 HTTP/1.1\r\nHost: b1",
    ] {
        assert_eq!(refused(format!("{text}\r\n\r\n").as_bytes()), 400, "{text}");
    }
    for host in ["", "b1", "b1.:80", "[::1]:80", "a_b", "a%20b"] {
        let head = request(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(head.parts.headers["host"], host);
    }
}

#[test]
fn response_framing_follows_method_and_status() {
    let framing = |head: &str, method: Method| {
        let head = response(&format!("HTTP/1.1 {head}\r\n\r\n"), method);
        (head.framing, head.keep_alive)
    };
    assert_eq!(framing("200 OK\r\nContent-Length: 3", Method::GET), (Framing::Length(3), true));
    assert_eq!(framing("200 OK\r\nContent-Length: 3", Method::HEAD), (Framing::None, true));
    assert_eq!(framing("204 No Content", Method::GET), (Framing::None, true));
    assert_eq!(framing("304 Not Modified\r\nContent-Length: 3", Method::GET), (Framing::None, true));
    assert_eq!(framing("200 OK", Method::CONNECT), (Framing::None, true));
    assert_eq!(framing("200 OK", Method::GET), (Framing::UntilClose, false));
    assert_eq!(framing("200 OK\r\nTransfer-Encoding: chunked", Method::GET), (Framing::Chunked, true));
    assert_eq!(framing("101 Switching Protocols\r\nUpgrade: x", Method::GET), (Framing::None, true));
    for coding in ["gzip, chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked", "identity", ""] {
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
        let error = parse_response(text.as_bytes(), &Method::GET, Limits::OUTSIDE).unwrap_err();
        let combined = coding.replace("\r\nTransfer-Encoding:", ",");
        assert_eq!(error.to_string(), format!("transfer-encoding \"{combined}\""));
    }
    for status in ["204 No Content", "304 Not Modified", "103 Early Hints"] {
        let head = response(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"), Method::GET);
        assert_eq!((head.framing, head.parts.headers.contains_key("content-length")), (Framing::None, false));
    }
    let both = response("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Method::GET);
    assert_eq!((both.framing, both.parts.headers.contains_key("content-length")), (Framing::Chunked, false));
}

fn written(head: &RequestHead, framing: Framing) -> String {
    let mut out = Vec::new();
    write_request(&mut out, &head.parts, &head.origin, framing);
    String::from_utf8(out).unwrap()
}

#[test]
fn header_names_keep_their_spelling() {
    let text = "GET /x HTTP/1.1\r\nHost: a\r\nuser-ID: 7\r\nX-Two: 1\r\nx-two:   2\r\nX-Empty: \r\n\r\n";
    let mut head = request(text);
    // A new value has no original spelling; nor has one that was received under another name.
    head.parts.headers.insert("x-own", HeaderValue::from_static("w"));
    let moved = head.parts.headers["user-id"].clone();
    head.parts.headers.insert("x-moved", moved);
    head.parts.headers.insert("host", HeaderValue::from_static("b"));
    let out = written(&head, Framing::None);
    for line in ["user-ID: 7", "X-Two: 1", "x-two: 2", "x-own: w", "x-moved: 7", "host: b"] {
        assert!(out.contains(&format!("\r\n{line}\r\n")), "{line} in {out}");
    }
    // With another head no spelling is found, and no memory outside it is read.
    head.origin = Bytes::from_static(b"short");
    assert!(written(&head, Framing::None).contains("user-id: 7"));
}

#[test]
fn framing_headers_match_the_sent_framing() {
    let mut head = request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    assert!(written(&head, Framing::Length(5)).contains("\r\nContent-Length: 5\r\n"));
    assert!(written(&head, Framing::Length(6)).ends_with("\r\ncontent-length: 6\r\n\r\n"));
    let chunked = written(&head, Framing::Chunked);
    assert!(!chunked.to_lowercase().contains("content-length") && chunked.contains("transfer-encoding: chunked\r\n"));
    head.parts.headers.append("content-length", HeaderValue::from_static("5"));
    assert_eq!(written(&head, Framing::Length(5)).to_lowercase().matches("content-length").count(), 1);
}

#[test]
fn responses_are_written_in_the_clients_version() {
    let head = response("HTTP/1.1 200 Fine by me\r\nServer: x\r\n\r\n", Method::GET);
    let write = |version, connection, status: StatusCode| {
        let (mut parts, mut out) = (head.parts.clone(), Vec::new());
        parts.status = status;
        write_response(&mut out, &parts, version, &head.origin, Framing::Length(2), connection, b"today");
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(Version::HTTP_11, ConnectionHeader::Close, StatusCode::OK),
        "HTTP/1.1 200 Fine by me\r\nServer: x\r\ncontent-length: 2\r\nconnection: close\r\ndate: today\r\n\r\n"
    );
    let old = write(Version::HTTP_10, ConnectionHeader::KeepAlive, StatusCode::NOT_FOUND);
    assert!(old.starts_with("HTTP/1.0 404 Not Found\r\n") && old.contains("connection: keep-alive\r\n"), "{old}");
}

/// A body's data, its trailers, and the bytes after it.
type Found = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

/// Decodes `wire`, given in pieces of the sizes `cuts`. Returns the bytes after the body.
fn decode(framing: Framing, wire: &[u8], cuts: &[usize]) -> Result<Found, BodyError> {
    let (mut body, mut data, mut trailers) = (Body::new(framing), Vec::new(), None);
    let (mut input, mut rest) = (Bytes::new(), wire);
    let mut cuts = cuts.iter().cycle();
    loop {
        match body.decode(&mut input)? {
            Decoded::Data(more) => data.extend_from_slice(&more),
            Decoded::Trailers(fields) => trailers = Some(fields),
            Decoded::End => break,
            Decoded::NeedMore if rest.is_empty() => break,
            Decoded::NeedMore => {
                let n = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
                input = Bytes::copy_from_slice(&rest[..n]);
                rest = &rest[n..];
            }
        }
    }
    Ok((data, trailers, [&input[..], rest].concat()))
}

#[test]
fn broken_chunks_are_refused() {
    for wire in [
        "5\r\nhelloX\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\nhello\r\n",
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "1000000000000000\r\n",
        "5;a=\n\r\nhello\r\n",
        "0\r\n bad\r\n\r\n",
    ] {
        assert!(decode(Framing::Chunked, wire.as_bytes(), &[3]).is_err(), "{wire:?}");
    }
    let long = format!("5;{}\r\nhello\r\n", "x".repeat(20_000));
    assert!(decode(Framing::Chunked, long.as_bytes(), &[1000]).is_err());
    let trailers = format!("0\r\nt: {}\r\n\r\n", "x".repeat(20_000));
    assert!(decode(Framing::Chunked, trailers.as_bytes(), &[1000]).is_err());
}

#[test]
fn trailers_end_a_body_and_later_bytes_are_left() {
    let wire = b"5;x=y\r\nhello\r\n0\r\nSum: 1\r\nsum: 2\r\n\r\nGET / HTTP/1.1";
    let (data, trailers, rest) = decode(Framing::Chunked, wire, &[4]).unwrap();
    assert_eq!((data.as_slice(), rest.as_slice()), (&b"hello"[..], &b"GET / HTTP/1.1"[..]));
    let sums: Vec<_> = trailers.unwrap().get_all("sum").iter().cloned().collect();
    assert_eq!(sums, ["1", "2"]);
}

#[test]
fn forbidden_trailers_are_dropped() {
    let mut out = Vec::new();
    let trailers: HeaderMap = [("x-sum", "1"), ("content-length", "9")]
        .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), HeaderValue::from_static(v)))
        .into_iter()
        .collect();
    end_of_chunks(&mut out, Some(&trailers));
    assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
}

proptest! {
    #[test]
    fn chunked_bodies_round_trip_in_any_segmentation(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 0..8),
        cuts in prop::collection::vec(1usize..200, 1..6),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            begin_chunk(&mut wire, chunk.len());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(CHUNK_END);
        }
        end_of_chunks(&mut wire, None);
        wire.extend_from_slice(b"next");
        let (data, trailers, rest) = decode(Framing::Chunked, &wire, &cuts).unwrap();
        prop_assert_eq!(data, chunks.concat());
        prop_assert!(trailers.is_none());
        prop_assert_eq!(rest, b"next");
    }

    #[test]
    fn bodies_with_a_length_round_trip(data in prop::collection::vec(any::<u8>(), 0..500), cuts in prop::collection::vec(1usize..90, 1..6)) {
        let wire = [&data[..], b"next"].concat();
        let (body, _, rest) = decode(Framing::Length(data.len() as u64), &wire, &cuts).unwrap();
        prop_assert_eq!((body, rest), (data, b"next".to_vec()));
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(1usize..20, 1..4)) {
        let _ = parse_request(&bytes, Limits::MESH);
        let _ = parse_response(&bytes, &Method::GET, Limits::MESH);
        let _ = decode(Framing::Chunked, &bytes, &cuts);
    }

    /// A written head parses to the same head, and no prefix of it parses as complete.
    #[test]
    fn heads_round_trip(
        path in "/[a-z0-9/?=&]{0,20}",
        headers in prop::collection::vec(("[A-Za-z-]{1,12}", "[!-~]{0,1}([ -~]{0,30}[!-~])?"), 0..12),
    ) {
        let text: String = headers.iter().map(|(name, value)| format!("x-{name}: {value}\r\n")).collect();
        let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{text}\r\n");
        let (head, length) = parse_request(text.as_bytes(), Limits::OUTSIDE).unwrap().unwrap();
        prop_assert_eq!(length, text.len());
        for cut in 0..text.len() {
            prop_assert!(parse_request(&text.as_bytes()[..cut], Limits::OUTSIDE).unwrap().is_none());
        }
        let again = written(&head, Framing::None);
        let (read, _) = parse_request(again.as_bytes(), Limits::OUTSIDE).unwrap().unwrap();
        prop_assert_eq!((&read.parts.uri, &read.parts.headers), (&head.parts.uri, &head.parts.headers));
        // Including the spelling of names; an empty value has no position of its own.
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            let line = format!("\r\nx-{name}: {}\r\n", value.trim());
            prop_assert!(again.contains(&line), "{} in {}", line, again);
        }
    }
}
