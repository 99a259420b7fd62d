//! Bytes through an HTTP proxy: what is asked of it, and what its answer means (DestinationRule's `tunnel`; RFC 9110,
//! 9.3.6; Envoy's `TcpProxy.TunnelingConfig`).
//!
//! CONNECT makes bytes of the rest of the connection. For proxies that do not know it there is POST: the bytes are the
//! bodies of a request and of its answer, which are under way at the same time. The sidecar's `tunnel` moves them.

use std::sync::Arc;

use http::{Method, StatusCode};

use crate::http1::{Framing, HeadError, Limits, parse_response};

/// Where a tunnel leads, and how it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// POST instead of CONNECT.
    pub post: bool,
    /// `host:port` that the proxy is to reach.
    pub authority: Arc<str>,
}

/// A tunnel by HTTP/1 is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// Bytes of the answer's head: what follows comes through the tunnel.
    pub head: usize,
    /// How what comes is framed; by CONNECT it is not.
    pub framing: Framing,
}

/// There is no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The proxy said so.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// What it said is not HTTP.
    #[error("its answer cannot be read: {0}")]
    Head(#[from] HeadError),
}

impl Tunnel {
    /// The method that asks for it.
    pub fn method(&self) -> Method {
        if self.post { Method::POST } else { Method::CONNECT }
    }

    /// The request's head in HTTP/1.1. What a POST sends follows in chunks.
    pub fn request(&self) -> Vec<u8> {
        let authority = &self.authority;
        match self.post {
            false => format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n"),
            true => format!("POST / HTTP/1.1\r\nhost: {authority}\r\ntransfer-encoding: chunked\r\n\r\n"),
        }
        .into_bytes()
    }

    /// What the answer in HTTP/1 says, from its beginning; `None`: it is not complete. 200 alone opens a tunnel, as in Envoy.
    ///
    /// # Errors
    /// Says why there is no tunnel.
    pub fn answer(&self, input: &[u8]) -> Result<Option<Open>, Refused> {
        let mut at = 0;
        while let Some((answer, length)) = parse_response(&input[at..], &self.method(), Limits::OUTSIDE)? {
            at += length;
            match answer.parts.status {
                StatusCode::OK => return Ok(Some(Open { head: at, framing: answer.framing })),
                // "100 Continue", and what else comes before the answer.
                status if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS => {}
                status => return Err(Refused::Status(status)),
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
    fn it_is_asked_for_by_either_method() {
        let connect = b"CONNECT db.example.com:5432 HTTP/1.1\r\nhost: db.example.com:5432\r\n\r\n";
        assert_eq!(tunnel(false).request(), connect);
        let post = b"POST / HTTP/1.1\r\nhost: db.example.com:5432\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(tunnel(true).request(), post);
    }

    #[test]
    fn two_hundred_opens_it_and_nothing_else() {
        let answer = |text: &str| tunnel(false).answer(text.as_bytes());
        let open = |head| Ok(Some(Open { head, framing: Framing::None }));
        assert_eq!(answer("HTTP/1.1 200 Connection established\r\n\r\n220 ready"), open(39));
        // RFC 9110, 9.3.6: a length in the answer to a CONNECT means nothing.
        assert_eq!(answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), open(38));
        assert_eq!(answer("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), open(44));
        for unfinished in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"] {
            assert_eq!(answer(unfinished), Ok(None), "{unfinished}");
        }
        for status in [101, 204, 302, 403, 407, 502] {
            let refused = answer(&format!("HTTP/1.1 {status} X\r\n\r\n")).unwrap_err();
            assert_eq!(refused, Refused::Status(StatusCode::from_u16(status).unwrap()));
        }
        assert!(matches!(answer("SSH-2.0-OpenSSH\r\n"), Err(Refused::Head(_))));
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(Limits::OUTSIDE.bytes));
        assert_eq!(answer(&endless), Err(Refused::Head(HeadError::TooLarge)));
    }

    #[test]
    fn what_comes_through_a_post_is_a_body() {
        let answer = |more: &str| tunnel(true).answer(format!("HTTP/1.1 200 OK\r\n{more}\r\n").as_bytes());
        let framing = |more| answer(more).unwrap().unwrap().framing;
        assert_eq!(framing("transfer-encoding: chunked\r\n"), Framing::Chunked);
        assert_eq!(framing("content-length: 3\r\n"), Framing::Length(3));
        assert_eq!(framing(""), Framing::UntilClose);
    }
}
