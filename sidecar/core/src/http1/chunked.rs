//! Parsing of bodies: which input bytes belong to the body, and where it ends.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Framing, Limits};

/// Maximum size of the chunk extensions in one body, and of its trailers.
const MAX_EXTRA: usize = 16 * 1024;

/// State of a body being read.
#[derive(Debug)]
pub enum Body {
    /// Number of remaining bytes; 0: the body has ended.
    Length(u64),
    /// In chunks.
    Chunked(Chunks),
    /// Until the connection ends.
    UntilClose,
}

/// Position within the chunks.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    /// Remaining bytes of the current chunk's data.
    left: u64,
    /// Number of digits in the current chunk's size.
    digits: u8,
    /// Bytes of chunk extensions so far.
    extra: usize,
    trailers: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    Trailers,
}

/// Result of a decoding step.
#[derive(Debug)]
pub enum Decoded {
    /// Bytes of the body.
    Data(Bytes),
    /// Trailers, at the end of the body.
    Trailers(HeaderMap),
    /// No complete element yet.
    NeedMore,
    /// The end.
    End,
}

/// An invalid body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(&'static str);

impl BodyError {
    /// The violated rule.
    pub fn rule(self) -> &'static str {
        self.0
    }
}

impl Body {
    /// A body with this framing.
    pub fn new(framing: Framing) -> Body {
        match framing {
            Framing::None => Body::Length(0),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::default()),
            Framing::UntilClose => Body::UntilClose,
        }
    }

    /// Whether the body was read completely.
    pub fn has_ended(&self) -> bool {
        matches!(self, Body::Length(0))
    }

    /// Number of remaining bytes, if known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Body::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// Number of body bytes that follow without other elements between them: as many may be read at once.
    pub fn expected(&self) -> u64 {
        match self {
            Body::Length(left) => *left,
            Body::Chunked(chunks) => chunks.left,
            Body::UntilClose => u64::MAX,
        }
    }

    /// Takes the bytes of the body from `input`.
    ///
    /// # Errors
    /// If the body violates the framing; its end is unknown then.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Decoded, BodyError> {
        let step = match self {
            Body::Length(0) => return Ok(Decoded::End),
            _ if input.is_empty() => return Ok(Decoded::NeedMore),
            Body::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= n as u64;
                return Ok(Decoded::Data(input.split_to(n)));
            }
            Body::UntilClose => return Ok(Decoded::Data(std::mem::take(input))),
            Body::Chunked(chunks) => chunks.decode(input)?,
        };
        if matches!(step, Decoded::End | Decoded::Trailers(_)) {
            *self = Body::Length(0);
        }
        Ok(step)
    }
}

impl Chunks {
    fn decode(&mut self, input: &mut Bytes) -> Result<Decoded, BodyError> {
        while let Some(&byte) = input.first() {
            match self.state {
                State::Data => {
                    let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.state = State::DataReturn;
                    }
                    return Ok(Decoded::Data(input.split_to(n)));
                }
                State::Trailers => {
                    self.trailers.push(byte);
                    if self.trailers == b"\r\n" {
                        input.advance(1);
                        return Ok(Decoded::End);
                    }
                    if self.trailers.ends_with(b"\r\n\r\n") {
                        input.advance(1);
                        return self.parse_trailers();
                    }
                    if self.trailers.len() > MAX_EXTRA {
                        return Err(BodyError("the trailers are too large"));
                    }
                }
                State::Size => match (byte as char).to_digit(16) {
                    Some(digit) => {
                        self.digits += 1;
                        if self.digits > 15 {
                            return Err(BodyError("a chunk is too large"));
                        }
                        self.left = self.left * 16 + u64::from(digit);
                    }
                    None if self.digits == 0 => return Err(BodyError("a chunk without a size")),
                    None if byte == b'\r' => self.state = State::SizeEnd,
                    None if matches!(byte, b';' | b' ' | b'\t') => self.state = State::Extension,
                    None => return Err(BodyError("an invalid chunk size")),
                },
                State::Extension => {
                    self.extra += 1;
                    match byte {
                        b'\r' => self.state = State::SizeEnd,
                        b'\n' => return Err(BodyError("an invalid chunk extension")),
                        _ if self.extra > MAX_EXTRA => return Err(BodyError("chunk extensions are too large")),
                        _ => {}
                    }
                }
                State::SizeEnd => {
                    if byte != b'\n' {
                        return Err(BodyError("an invalid end of a chunk's size"));
                    }
                    self.digits = 0;
                    self.state = if self.left == 0 { State::Trailers } else { State::Data };
                }
                State::DataReturn if byte == b'\r' => self.state = State::DataEnd,
                State::DataEnd if byte == b'\n' => self.state = State::Size,
                State::DataReturn | State::DataEnd => return Err(BodyError("a chunk is longer than its size")),
            }
            input.advance(1);
        }
        Ok(Decoded::NeedMore)
    }

    fn parse_trailers(&self) -> Result<Decoded, BodyError> {
        let mut space = [httparse::EMPTY_HEADER; Limits::OUTSIDE.headers];
        let invalid = BodyError("invalid trailers");
        let parsed = match httparse::parse_headers(&self.trailers, &mut space) {
            Ok(httparse::Status::Complete((_, parsed))) => parsed,
            _ => return Err(invalid),
        };
        let mut trailers = HeaderMap::with_capacity(parsed.len());
        for header in parsed {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| invalid)?;
            trailers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| invalid)?);
        }
        Ok(Decoded::Trailers(trailers))
    }
}
