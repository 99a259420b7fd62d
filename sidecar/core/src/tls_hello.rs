//! The ClientHello of TLS: its server name and ALPN protocols.
//!
//! Inbound looks for the mesh's ALPN here, outbound for the host of the application's own TLS. All reads are
//! bounds-checked and limited to 16 KiB; a ClientHello may be split into several records, and arrive in several reads.

use std::borrow::Cow;

/// Result of parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Incomplete: read on.
    NeedMore,
    /// Not a ClientHello, or an invalid or oversized one.
    NotTls,
    /// `sni` in lower case; `alpn` in the client's order.
    ClientHello { sni: Option<String>, alpn: Vec<Vec<u8>> },
}

/// Maximum number of record bytes that are parsed.
pub const MAX_HELLO: usize = 16 * 1024;

const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// Parses the first bytes of a connection; bytes after the ClientHello are ignored.
pub fn client_hello(bytes: &[u8]) -> Hello {
    let limited = &bytes[..bytes.len().min(MAX_HELLO)];
    match message(limited) {
        Ok(body) => parse(&body).unwrap_or(Hello::NotTls),
        Err(Incomplete::NeedMore) if bytes.len() < MAX_HELLO => Hello::NeedMore,
        Err(_) => Hello::NotTls,
    }
}

enum Incomplete {
    NeedMore,
    NotTls,
}

/// The body of the ClientHello message, joined from its records.
fn message(mut bytes: &[u8]) -> Result<Cow<'_, [u8]>, Incomplete> {
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        // The available part of a record header must be valid, complete or not.
        match bytes {
            [kind, ..] if *kind != HANDSHAKE => return Err(Incomplete::NotTls),
            [_, major, ..] if *major != 3 => return Err(Incomplete::NotTls),
            _ => {}
        }
        let Some((head, rest)) = bytes.split_first_chunk::<5>() else { return Err(Incomplete::NeedMore) };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 {
            return Err(Incomplete::NotTls);
        }
        let (fragment, after) = rest.split_at(length.min(rest.len()));
        if joined.is_empty() {
            joined = Cow::Borrowed(fragment);
        } else {
            joined.to_mut().extend_from_slice(fragment);
        }
        if joined.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Incomplete::NotTls);
        }
        if let Some((head, body)) = joined.split_first_chunk::<4>() {
            let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if length > MAX_HELLO {
                return Err(Incomplete::NotTls);
            }
            if body.len() >= length {
                return Ok(match joined {
                    Cow::Borrowed(joined) => Cow::Borrowed(&joined[4..4 + length]),
                    Cow::Owned(joined) => Cow::Owned(joined[4..4 + length].to_vec()),
                });
            }
        }
        if fragment.len() < length {
            return Err(Incomplete::NeedMore);
        }
        bytes = after;
    }
}

/// Forward reader; `None` past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector with a length of two bytes.
    fn vector(&mut self) -> Option<Reader<'a>> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Reader)
    }
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version, random
    let session = reader.u8()?;
    reader.take(session)?;
    reader.vector()?; // cipher suites
    let compression = reader.u8()?;
    reader.take(compression)?;
    let (mut sni, mut alpn) = (None, Vec::new());
    if !reader.0.is_empty() {
        let mut extensions = reader.vector()?;
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vector()?;
            match kind {
                EXTENSION_SERVER_NAME => sni = server_name(data)?,
                EXTENSION_ALPN => alpn = protocols(data)?,
                _ => {}
            }
        }
    }
    Some(Hello::ClientHello { sni, alpn })
}

fn server_name(mut data: Reader<'_>) -> Option<Option<String>> {
    let mut names = data.vector()?;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector()?;
        if kind == 0 {
            let name = std::str::from_utf8(name.0).ok()?;
            return Some((!name.is_empty()).then(|| name.to_ascii_lowercase()));
        }
    }
    Some(None)
}

fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut names = data.vector()?;
    let mut alpn = Vec::new();
    while !names.0.is_empty() {
        let length = names.u8()?;
        alpn.push(names.take(length)?.to_vec());
    }
    Some(alpn)
}

#[cfg(test)]
mod tests;
