//! Path normalisation (RFC 3986, 6.2.2): `/a/../b` and `/%62` become `/b`, so that routes and rules match the path that
//! the application reads. As in Istio's default (`pathNormalization: BASE`), repeated and encoded slashes stay.

/// Result of normalising a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Normalisation {
    /// The path is normal already.
    Unchanged,
    /// The normal path, with the query.
    Changed(String),
    /// The path has no normal form: it contains an encoded NUL.
    Invalid,
}

/// Bytes that may require normalisation.
fn is_odd(byte: u8) -> bool {
    matches!(byte, b'%' | b'\\' | b'.' | b'"' | b'<' | b'>' | b'{' | b'}' | b'|' | b'^' | b'`')
}

/// Normalises a path; the query stays. A target that does not begin with a slash is left alone.
pub fn normalise(path_and_query: &str) -> Normalisation {
    let path = path_and_query.split('?').next().unwrap_or_default();
    if !path.starts_with('/') || !path.bytes().any(is_odd) {
        return Normalisation::Unchanged;
    }
    let Some(decoded) = decoded(path) else { return Normalisation::Invalid };
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut last_is_dots = false;
    for segment in decoded[1..].split(|byte| *byte == b'/') {
        last_is_dots = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    if last_is_dots {
        segments.push(b"");
    }
    let mut normal = String::with_capacity(path_and_query.len());
    for segment in segments {
        normal.push('/');
        for byte in segment {
            match byte {
                b'"' | b'<' | b'>' | b'{' | b'}' | b'|' | b'^' | b'`' => normal.push_str(&format!("%{byte:02X}")),
                byte if byte.is_ascii() => normal.push(char::from(*byte)),
                byte => normal.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    if normal == path {
        return Normalisation::Unchanged;
    }
    normal.push_str(&path_and_query[path.len()..]);
    Normalisation::Changed(normal)
}

/// Replaces backslashes by slashes and decodes encoded letters, digits and `-._~`. `None`: an encoded NUL.
fn decoded(path: &str) -> Option<Vec<u8>> {
    let bytes = path.as_bytes();
    let digit =
        |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let encoded = if bytes[at] == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        match encoded.map(|(high, low)| high << 4 | low) {
            Some(0) => return None,
            Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                decoded.push(byte);
                at += 2;
            }
            _ if bytes[at] == b'\\' => decoded.push(b'/'),
            _ => decoded.push(bytes[at]),
        }
        at += 1;
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(path: &str) -> String {
        match normalise(path) {
            Normalisation::Unchanged => path.to_owned(),
            Normalisation::Changed(other) => other,
            Normalisation::Invalid => "never".to_owned(),
        }
    }

    #[test]
    fn paths_are_normalised_as_by_envoy() {
        for (path, wanted) in [
            ("/", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/a/.%2e/%2E/b", "/b"),
            ("/a%2Fb%2f", "/a%2Fb%2f"),
            ("/%61%7E%2D", "/a~-"),
            ("/a%20b%zz%", "/a%20b%zz%"),
            (r"/a\..\b", "/b"),
            ("/a%5Cb", "/a%5Cb"),
            ("/\"{|}^", "/%22%7B%7C%7D%5E"),
            ("/a/..?b=../%61", "/?b=../%61"),
            ("/.../a..b/.c", "/.../a..b/.c"),
            ("/a%00", "never"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(text(path), wanted, "{path}");
        }
        assert_eq!(normalise("/a.b/c?d=%61"), Normalisation::Unchanged);
    }

    proptest! {
        #[test]
        fn normalisation_is_idempotent(path in "/[a./%25e\\\\?\"0-9\u{e9}]{0,24}") {
            let once = text(&path);
            // A percent sign produced by decoding is not decoded again.
            prop_assume!(!path.contains("%25"));
            if once != "never" {
                prop_assert!(once.starts_with('/'));
                let decoded_path = once.split('?').next().unwrap();
                prop_assert!(!decoded_path.split('/').any(|segment| matches!(segment, "." | "..")), "{path} {once}");
            }
        }
    }
}
