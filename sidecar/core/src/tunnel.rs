//! TCP tunnels through an HTTP proxy: the request, and the meaning of its response (DestinationRule's `tunnel`; RFC
//! 9110, 9.3.6; Envoy's `TcpProxy.TunnelingConfig`).
//!
//! After CONNECT, the rest of the connection is opaque bytes. For proxies that do not support it there is POST: the
//! bytes are the bodies of a request and of its response, which are in progress at the same time. The sidecar's
//! `tunnel` moves them.

use std::sync::Arc;

use http::{Method, StatusCode};

use crate::http1::{Framing, HeadError, Limits, parse_response};

/// Configuration of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// POST instead of CONNECT.
    pub post: bool,
    /// `host:port` that the proxy connects to.
    pub authority: Arc<str>,
}

/// An open tunnel over HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTunnel {
    /// Length of the response's head; the bytes after it came through the tunnel.
    pub head: usize,
    /// Framing of the bytes from the tunnel; none with CONNECT.
    pub framing: Framing,
}

/// Reason why the tunnel was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The proxy refused.
    #[error("the proxy answered {0}")]
    Status(StatusCode),
    /// The response is not HTTP.
    #[error("the proxy's response is invalid: {0}")]
    Head(#[from] HeadError),
}

impl Tunnel {
    /// The method of the request.
    pub fn method(&self) -> Method {
        if self.post { Method::POST } else { Method::CONNECT }
    }

    /// The request's head in HTTP/1.1. The body of a POST follows in chunks.
    pub fn request(&self) -> Vec<u8> {
        let authority = &self.authority;
        match self.post {
            false => format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n"),
            true => format!("POST / HTTP/1.1\r\nhost: {authority}\r\ntransfer-encoding: chunked\r\n\r\n"),
        }
        .into_bytes()
    }

    /// Parses the beginning of a response in HTTP/1; `None`: incomplete. Only status 200 opens a tunnel, as in Envoy.
    ///
    /// # Errors
    /// The reason why the tunnel was not opened.
    pub fn answer(&self, input: &[u8]) -> Result<Option<OpenTunnel>, TunnelError> {
        let mut at = 0;
        while let Some((answer, length)) = parse_response(&input[at..], &self.method(), Limits::OUTSIDE)? {
            at += length;
            match answer.parts.status {
                StatusCode::OK => return Ok(Some(OpenTunnel { head: at, framing: answer.framing })),
                // "100 Continue" and other interim responses.
                status if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS => {}
                status => return Err(TunnelError::Status(status)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(post: bool) -> Tunnel {
        Tunnel { post, authority: "db.example.com:5432".into() }
    }

    #[test]
    fn tunnel_requests_use_connect_or_post() {
        let connect = b"CONNECT db.example.com:5432 HTTP/1.1\r\nhost: db.example.com:5432\r\n\r\n";
        assert_eq!(tunnel(false).request(), connect);
        let post = b"POST / HTTP/1.1\r\nhost: db.example.com:5432\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(tunnel(true).request(), post);
    }

    #[test]
    fn only_status_200_opens_a_tunnel() {
        let answer = |text: &str| tunnel(false).answer(text.as_bytes());
        let open = |head| Ok(Some(OpenTunnel { head, framing: Framing::None }));
        assert_eq!(answer("HTTP/1.1 200 Connection established\r\n\r\n220 ready"), open(39));
        // RFC 9110, 9.3.6: a Content-Length in the response to CONNECT is ignored.
        assert_eq!(answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), open(38));
        assert_eq!(answer("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), open(44));
        for unfinished in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"] {
            assert_eq!(answer(unfinished), Ok(None), "{unfinished}");
        }
        for status in [101, 204, 302, 403, 407, 502] {
            let refused = answer(&format!("HTTP/1.1 {status} X\r\n\r\n")).unwrap_err();
            assert_eq!(refused, TunnelError::Status(StatusCode::from_u16(status).unwrap()));
        }
        assert!(matches!(answer("SSH-2.0-OpenSSH\r\n"), Err(TunnelError::Head(_))));
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(Limits::OUTSIDE.bytes));
        assert_eq!(answer(&endless), Err(TunnelError::Head(HeadError::TooLarge)));
    }

    #[test]
    fn bytes_through_a_post_tunnel_are_a_response_body() {
        let answer = |more: &str| tunnel(true).answer(format!("HTTP/1.1 200 OK\r\n{more}\r\n").as_bytes());
        let framing = |more| answer(more).unwrap().unwrap().framing;
        assert_eq!(framing("transfer-encoding: chunked\r\n"), Framing::Chunked);
        assert_eq!(framing("content-length: 3\r\n"), Framing::Length(3));
        assert_eq!(framing(""), Framing::UntilClose);
    }
}
