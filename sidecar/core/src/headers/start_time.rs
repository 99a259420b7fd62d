//! `%START_TIME(FORMAT)%`: strftime's conversions, and Envoy's for fractions of a second.

use std::fmt::Write;
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::{OwnedFormatItem, parse_strftime_owned};

/// Envoy's default format.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3SZ";

/// A format. Times are UTC.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Format(Vec<Piece>);

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    /// Conversions of strftime.
    Time(OwnedFormatItem),
    /// This number of digits of the second's fraction.
    Fraction(usize),
    /// The second, a point and this number of digits.
    Second(usize),
}

impl Format {
    /// Parses a format.
    ///
    /// # Errors
    /// Names the conversion that is invalid or not supported.
    pub(super) fn parse(text: &str) -> Result<Format, String> {
        let text = if text.is_empty() { DEFAULT } else { text };
        let mut pieces = Vec::new();
        let mut usual = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            usual.push_str(&rest[..at]);
            let (piece, length) = own(&rest[at..]);
            match piece {
                Some(piece) => {
                    pieces.extend(usual_piece(&usual)?);
                    usual.clear();
                    pieces.push(piece);
                }
                None => usual.push_str(&rest[at..at + length]),
            }
            rest = &rest[at + length..];
        }
        usual.push_str(rest);
        pieces.extend(usual_piece(&usual)?);
        Ok(Format(pieces))
    }

    /// Formats a time.
    pub(super) fn text(&self, time: SystemTime) -> String {
        let time = OffsetDateTime::from(time);
        let mut text = String::new();
        for piece in &self.0 {
            // Writing to a string does not fail, and an `OffsetDateTime` has every component.
            let _ = match piece {
                Piece::Time(format) => write!(text, "{}", time.format(format).unwrap_or_default()),
                Piece::Fraction(digits) => write!(text, "{}", fraction(time, *digits)),
                Piece::Second(digits) => write!(text, "{:02}.{}", time.second(), fraction(time, *digits)),
            };
        }
        text
    }
}

fn fraction(time: OffsetDateTime, digits: usize) -> String {
    let mut text = format!("{:09}", time.nanosecond());
    text.truncate(digits);
    text
}

fn usual_piece(text: &str) -> Result<Option<Piece>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = parse_strftime_owned(text).map_err(|e| format!("{text:?} is not a format of times: {e}"))?;
    Ok(Some(Piece::Time(parsed)))
}

/// A conversion of Envoy's own at the beginning of `text` (`%f`, `%3f`, `%E3S`), and the length of the conversion
/// there.
fn own(text: &str) -> (Option<Piece>, usize) {
    let digits = |at: usize| match text.as_bytes().get(at) {
        Some(digit @ b'1'..=b'9') => Some(usize::from(digit - b'0')),
        _ => None,
    };
    match text.as_bytes() {
        [b'%', b'f', ..] => (Some(Piece::Fraction(9)), 2),
        [b'%', _, b'f', ..] if let Some(digits) = digits(1) => (Some(Piece::Fraction(digits)), 3),
        [b'%', b'E', _, b'S', ..] if let Some(digits) = digits(2) => (Some(Piece::Second(digits)), 4),
        // One character after the percent sign, whichever it is.
        _ => (None, 1 + text[1..].chars().next().map_or(0, char::len_utf8)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_formatted_with_strftime_and_envoy_conversions() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_527_590_590, 528_007_009);
        for (format, expected) in [
            ("", "2018-05-29T10:43:10.528Z"),
            ("%s", "1527590590"),
            ("%s.%3f", "1527590590.528"),
            ("%s.%6f", "1527590590.528007"),
            ("%f", "528007009"),
            ("%Y/%m/%dT%H:%M:%S%z", "2018/05/29T10:43:10+0000"),
            ("%E6S", "10.528007"),
            ("at %b %e, %y", "at May 29, 18"),
            ("plain", "plain"),
        ] {
            assert_eq!(Format::parse(format).unwrap().text(time), expected, "{format}");
        }
        for wrong in ["%", "%Q", "%0f", "%E0S"] {
            assert!(Format::parse(wrong).is_err(), "{wrong}");
        }
    }
}
