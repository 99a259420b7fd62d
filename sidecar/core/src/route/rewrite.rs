//! Path rewrites: the path for the upstream.

use regex::bytes::{Captures, Regex};

use super::matcher::{Matcher, UriMatch};
use crate::request::RequestView;

/// Change of a path.
#[derive(Debug, Clone)]
pub enum Rewrite {
    /// Replaces the matched prefix, or the whole path after an exact or regex match.
    Matched(String),
    /// Replaces the whole path.
    Full(String),
    /// Replaces every match of a regex in the path.
    Regex(RegexRewrite),
}

/// A regex and the substitution for its matches (RE2's `GlobalReplace`).
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    /// Text matched by this group; 0: the whole match.
    Group(usize),
}

impl Rewrite {
    /// The rewritten path of a request that `matcher` matched, with its query.
    pub(super) fn path_and_query(&self, matcher: &Matcher, req: &RequestView<'_>) -> String {
        let path = req.path();
        let query = &req.path_and_query[path.len()..];
        match self {
            Rewrite::Matched(replacement) => [&matched(replacement, matcher, path), query].concat(),
            Rewrite::Full(path) => [path.as_str(), query].concat(),
            Rewrite::Regex(rewrite) => {
                let path =
                    rewrite.regex.replace_all(path.as_bytes(), |found: &Captures<'_>| rewrite.substitution(found));
                // The expression may split a multi-byte character; invalid parts become replacement characters.
                let path = String::from_utf8_lossy(&path);
                let slash = if path.starts_with('/') { "" } else { "/" };
                [slash, &path, query].concat()
            }
        }
    }
}

/// `path` with the part matched by `matcher` replaced.
pub(super) fn matched(replacement: &str, matcher: &Matcher, path: &str) -> String {
    let rest = matcher.after_matched_path(path);
    if matches!(matcher.uri, Some(UriMatch::Segments(_))) {
        // The rest is empty or begins with a slash.
        let path = [replacement.trim_end_matches('/'), rest].concat();
        return if path.is_empty() { "/".to_owned() } else { path };
    }
    let slash =
        if replacement.starts_with('/') || (replacement.is_empty() && rest.starts_with('/')) { "" } else { "/" };
    [slash, replacement, rest].concat()
}

impl RegexRewrite {
    /// `substitution` has RE2's syntax: `\1` stands for the text of the first group, `\\` for a backslash.
    ///
    /// # Errors
    /// The mistake in `substitution`.
    pub fn new(regex: Regex, substitution: &str) -> Result<RegexRewrite, String> {
        let (mut parts, mut text) = (Vec::new(), String::new());
        let mut rest = substitution.chars();
        while let Some(c) = rest.next() {
            if !c.is_ascii_graphic() {
                return Err("may have visible ASCII only".into());
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            match rest.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group >= regex.captures_len() {
                        return Err(format!("\\{group} is no group: the regex has {}", regex.captures_len() - 1));
                    }
                    parts.extend([Part::Text(std::mem::take(&mut text)), Part::Group(group)]);
                }
                _ => return Err("a backslash must be followed by the number of a group or another backslash".into()),
            }
        }
        parts.push(Part::Text(text));
        Ok(RegexRewrite { regex, parts })
    }

    fn substitution(&self, found: &Captures<'_>) -> Vec<u8> {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_bytes(),
            Part::Group(group) => found.get(*group).map_or(&[][..], |found| found.as_bytes()),
        });
        texts.collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::re2;
    use crate::request::tests::view;

    #[test]
    fn regex_rewrites_replace_all_matches_outside_the_query() {
        for (pattern, substitution, path, wanted) in [
            (
                r"^/service/([^/]+)(/.*)$",
                r"\2/instance/\1",
                "/service/foo/v1?x=/service/a",
                "/v1/instance/foo?x=/service/a",
            ),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("nothing", "x", "/a?b", "/a?b"),
            ("^/(a)", r"\0\\\1", "/a", r"/a\a"),
            ("^/v1", "", "/v1", "/"),
            ("(x)?/a", r"/<\1>", "/a", "/<>"),
        ] {
            let rewrite = Rewrite::Regex(RegexRewrite::new(re2::searched(pattern).unwrap(), substitution).unwrap());
            let headers = HeaderMap::new();
            let found = rewrite.path_and_query(&Matcher::default(), &view(path, "h", &headers));
            assert_eq!(found, wanted, "{pattern} {substitution}");
        }
    }

    #[test]
    fn segments_are_replaced_as_a_whole() {
        let headers = HeaderMap::new();
        for (prefix, replacement, path, wanted) in [
            ("/foo", "/xyz", "/foo/bar?a=/foo", "/xyz/bar?a=/foo"),
            ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz", "/foo", "/xyz"),
            ("/foo", "/xyz", "/foo/", "/xyz/"),
            ("/foo", "/", "/foo/bar", "/bar"),
            ("/foo", "/", "/foo/", "/"),
            ("/foo", "/", "/foo", "/"),
            ("", "/xyz", "/bar", "/xyz/bar"),
        ] {
            let matcher = Matcher { uri: Some(UriMatch::Segments(prefix.into())), ..Matcher::default() };
            let found = Rewrite::Matched(replacement.into()).path_and_query(&matcher, &view(path, "h", &headers));
            assert_eq!(found, wanted, "{prefix} {replacement} {path}");
            let full = Rewrite::Full("/all".into()).path_and_query(&matcher, &view(path, "h", &headers));
            assert!(full.starts_with("/all"), "{full}");
        }
    }

    #[test]
    fn substitutions_refer_to_existing_groups_only() {
        let new = |substitution| RegexRewrite::new(re2::searched("a(b)").unwrap(), substitution);
        assert_eq!(new(r"\2").unwrap_err(), r"\2 is no group: the regex has 1");
        assert!(new(r"\x").is_err() && new(r"a\").is_err() && new("a b").is_err());
    }
}
