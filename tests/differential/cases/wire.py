"""Messages as bytes: targets, authorities, framing, upgrades. Envoy refuses the same messages."""
from case import Ask, Case

SEEN = ("status", "seen", "flags")
FLAGS = ("status", "flags")


def raw(line, *headers, host="HOST", body=b""):
    """A request with these lines; `host`: None for none."""
    lines = [line, *([f"Host: {host}"] if host is not None else []), "x-request-id: ID", "x-do: 200", *headers]
    return Ask(raw="\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def sent(name, ask, same=("status",), **more):
    return Case(f"wire: {name}", asks=[ask], same=same, **more)


def answered(name, head, body="ok", same=FLAGS, **more):
    """A response of these bytes."""
    text = f"{head}\r\nx-port: 7001\r\n\r\n{body}".encode("latin-1")
    return Case(f"wire: a response with {name}", asks=[Ask(do=f"answer:{text.hex()}")], same=same, **more)


OK = "HTTP/1.1 200 OK\r\n"
CHUNKS = "2\r\nok\r\n0\r\n\r\n"

CASES = [sent(f"{byte!r} in a query", Ask(f"/q?a={byte}b"), SEEN) for byte in "\"<>{}|\\^`[]'!$&()*+,;=~:@%"]
CASES += [sent(f"{byte!r} in a path", Ask(f"/a{byte}b"), SEEN) for byte in "<>`"]
CASES += [sent(f"{byte!r} in a {where}", raw(f"GET {target} HTTP/1.1"))
          for byte in "\x01\t\x0c\x7f\x80\xe9\xff" for where, target in (("path", f"/a{byte}b"), ("query", f"/a?{byte}b"))]
CASES += [sent("a fragment", Ask("/a#b")), sent("a space", raw("GET /a b HTTP/1.1"))]

# Two authorities in a head.
CASES += [
    sent("absolute-form and the same Host", raw("GET http://HOST/x?y HTTP/1.1"), SEEN),
    sent("absolute-form and another Host", raw("GET http://HOST/x HTTP/1.1", host="other.test"), SEEN),
    sent("absolute-form without Host", raw("GET http://HOST/x HTTP/1.1", host=None), SEEN),
    sent("absolute-form without a path", raw("GET http://HOST HTTP/1.1"), SEEN),
    sent("absolute-form with an upper-case scheme", raw("GET HTTP://HOST/x HTTP/1.1"), SEEN),
    sent("absolute-form of another scheme", raw("GET ftp://HOST/x HTTP/1.1")),
    sent("authority-form of a GET", raw("GET HOST:80 HTTP/1.1")),
    sent("a target without a slash", raw("GET x HTTP/1.1")),
    sent("* of a GET", raw("GET * HTTP/1.1")),
    sent("no Host", raw("GET /x HTTP/1.1", host=None)),
    sent("userinfo in the target", raw("GET http://u:p@HOST/x HTTP/1.1"), (), check=lambda w, e: (w[0]["status"], e[0]["status"]) == (400, 200),
         differs="RFC 9110, 4.2.4, has recipients take userinfo for an error; Envoy removes it"),
    sent("userinfo in Host", raw("GET /x HTTP/1.1", host="u@HOST"), (), check=lambda w, e: w[0]["status"] == 400,
         differs="a Host header has no userinfo (RFC 9112, 3.2); Envoy has a host of that name"),
    sent("Host twice", raw("GET /x HTTP/1.1", "Host: HOST"), (), check=lambda w, e: w[0]["status"] == 400,
         differs="RFC 9112, 3.2, asks for 400; Envoy joins them to one name"),
]
CASES += [sent(f"{host!r} as Host", raw("GET /x HTTP/1.1", host=host))
          for host in ("a b", "a/b", "a?b", "a#b", "a\\b", "<a>", "a\"b")]

# The end of a request's body.
POST = "POST /x HTTP/1.1"
CASES += [
    sent("transfer-encoding: gzip, chunked", raw(POST, "transfer-encoding: gzip, chunked", body=CHUNKS.encode())),
    sent("transfer-encoding: identity", raw(POST, "transfer-encoding: identity")),
    sent("transfer-encoding: chunked, twice", raw(POST, *["transfer-encoding: chunked"] * 2, body=CHUNKS.encode())),
    sent("transfer-encoding: chunked, chunked", raw(POST, "transfer-encoding: chunked, chunked", body=CHUNKS.encode())),
    sent("transfer-encoding: Chunked", raw(POST, "transfer-encoding: Chunked", body=CHUNKS.encode()), SEEN),
    sent("chunked and a length", raw(POST, "transfer-encoding: chunked", "content-length: 2", body=CHUNKS.encode())),
    sent("a length twice", raw(POST, *["content-length: 2"] * 2, body=b"ok")),
    sent("a list of lengths", raw(POST, "content-length: 2, 2", body=b"ok")),
    sent("a signed length", raw(POST, "content-length: +2", body=b"ok")),
    sent("a length with letters", raw(POST, "content-length: 2x", body=b"ok")),
    sent("a chunk without a size", raw(POST, "transfer-encoding: chunked", body=b"zz\r\nok\r\n")),
    sent("a space in a header's name", raw("GET /x HTTP/1.1", "bad name: x")),
    sent("a space before the colon", raw("GET /x HTTP/1.1", "name : x")),
    sent("a control character in a value", raw("GET /x HTTP/1.1", "x: a\x01b")),
    sent("a hundred headers", raw("GET /x HTTP/1.1", *[f"x-{n}: {n}" for n in range(97)]), SEEN),
    sent("more than a hundred headers", raw("GET /x HTTP/1.1", *[f"x-{n}: {n}" for n in range(101)])),
    sent("a head of 70 kB", raw("GET /x HTTP/1.1", "x: " + "y" * 70000)),
    sent("a target of 70 kB", raw("GET /" + "y" * 70000 + " HTTP/1.1")),
    sent("TE: trailers, deflate", raw("GET /x HTTP/1.1", "TE: trailers, deflate"), SEEN),
    sent("TE: deflate", raw("GET /x HTTP/1.1", "TE: deflate"), SEEN),
]

# Upgrades.
UPGRADE = "Connection: Upgrade"
CASES += [
    sent("Upgrade: h2c", raw("GET /x HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), SEEN),
    sent("Upgrade without Connection", raw("GET /x HTTP/1.1", "Upgrade: foo"), SEEN),
    sent("CONNECT", raw("CONNECT HOST:80 HTTP/1.1"), FLAGS),
]
CASES += [sent(f"Upgrade: {token}", raw("GET /x HTTP/1.1", UPGRADE, f"Upgrade: {token}"), FLAGS)
          for token in ("foo", "TLS/1.0", "h2c, websocket", "websocket, foo")]
CASES += [Case("wire: Upgrade: WebSocket", asks=[Ask(headers={"Connection": "Upgrade", "Upgrade": "WebSocket"}, do="upgrade")], same=("status",))]

# Responses with ambiguous framing.
CASES += [
    answered("gzip, chunked", OK + "transfer-encoding: gzip, chunked", CHUNKS),
    answered("chunked, chunked", OK + "transfer-encoding: chunked, chunked", CHUNKS),
    answered("chunked twice", OK + "transfer-encoding: chunked\r\ntransfer-encoding: chunked", CHUNKS),
    answered("identity", OK + "transfer-encoding: identity"),
    answered("identity and a length", OK + "transfer-encoding: identity\r\ncontent-length: 2"),
    answered("chunked in another case", OK + "transfer-encoding: cHUNKED", CHUNKS),
    answered("a length twice", OK + "content-length: 2\r\ncontent-length: 2"),
    answered("two lengths", OK + "content-length: 2\r\ncontent-length: 3"),
    answered("a list of lengths", OK + "content-length: 2, 2"),
    answered("a signed length", OK + "content-length: +2"),
    answered("a space in a header's name", OK + "bad name: x\r\ncontent-length: 2"),
    answered("a control character in a value", OK + "x: a\x01b\r\ncontent-length: 2"),
    answered("a status of two digits", "HTTP/1.1 99 No\r\ncontent-length: 2"),
    answered("a status of 600", "HTTP/1.1 600 Odd\r\ncontent-length: 2"),
    answered("more than a hundred headers", OK + "".join(f"x-{n}: {n}\r\n" for n in range(101)) + "content-length: 2"),
    answered("204 and a length", "HTTP/1.1 204 No\r\ncontent-length: 2", "", (),
             check=lambda w, e: (w[0]["status"], e[0]["status"]) == (204, 502),
             differs="where the response ends is beyond doubt: the length is removed; Envoy refuses it"),
    answered("304 and a length", "HTTP/1.1 304 No\r\ncontent-length: 2", "", ("status", "flags")),
    answered("103 before it", "HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n" + OK + "content-length: 2", same=("status",),
             check=lambda w, e: (w[0]["interim"], e[0]["interim"]) == ([103], []),
             differs="interim responses are passed on (RFC 9110, 15.2); Envoy drops them"),
    answered("20 interim ones before it", "HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n" * 20 + OK + "content-length: 2", same=("status",),
             check=lambda w, e: w[0]["interim"] == [103] * 16,
             differs="sixteen are passed on, and none is an error; Envoy drops them"),
    answered("101 to no upgrade", "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade", "", (),
             check=lambda w, e: w[0]["status"] == 502, differs="it answers no request; Envoy passes it on"),
]
