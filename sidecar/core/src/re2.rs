//! Regular expressions of policies: RE2's semantics, compiled by the `regex` crate.
//!
//! Both have the same syntax except for a few corners. If RE2 interprets an expression differently or rejects it (set
//! operations in a class, flags of this crate alone), it is refused. As in RE2, `\d`, `\w`, `\s` and `\b` are ASCII.
//! Bytes are matched, not characters: paths are ASCII, header values arbitrary bytes. That also keeps automata small: a
//! policy's author may write thousands of expressions, and every sidecar compiles them.
//! <https://github.com/google/re2/wiki/Syntax>

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, Visitor};

/// Istio's maximum for an expression, in bytes.
const MAX_LENGTH: usize = 1024;
/// Maximum size of a compiled expression, in bytes: enough for the longest expression, or for the highest repetition
/// that RE2 allows.
const MAX_COMPILED: usize = 64 << 10;
/// RE2's maximum for a counted repetition.
const MAX_REPEAT: u32 = 1000;

/// Compiles an expression that is searched for in a text.
///
/// # Errors
/// The mistake in `pattern`.
pub fn searched(pattern: &str) -> Result<Regex, String> {
    check(pattern)?;
    compiled(pattern)
}

/// Compiles an expression that must match a whole text.
///
/// # Errors
/// The mistake in `pattern`.
pub fn whole(pattern: &str) -> Result<Regex, String> {
    // Checked before it is wrapped: `a)|(b` would become valid inside the anchoring group and escape the anchors.
    check(pattern)?;
    compiled(&format!("^(?:{pattern})$"))
}

/// The pattern that [`whole`] compiled, without anchors.
pub fn unanchored(regex: &Regex) -> &str {
    let pattern = regex.as_str();
    pattern.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(pattern)
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).unicode(false).size_limit(MAX_COMPILED).build();
    built.map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "it is too large once its repetitions are written out".into(),
        // The last line has the cause; the lines before it draw the pattern.
        e => e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

/// Checks `pattern` without compiling it, which would cost a hundred times as much; an expression that is too large is
/// detected by compilation only.
///
/// # Errors
/// The mistake in `pattern`.
pub fn check(pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!("it is longer than {MAX_LENGTH} bytes"));
    }
    let tree = ast::parse::Parser::new().parse(pattern).map_err(|e| e.kind().to_string())?;
    ast::visit(&tree, Dialect)
}

/// Rejects syntax that RE2 lacks or interprets differently.
struct Dialect;

impl Visitor for Dialect {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), String> {
        match node {
            Ast::Flags(flags) => check_flags(&flags.flags),
            Ast::Group(group) => group.flags().map_or(Ok(()), check_flags),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::EndText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("RE2 supports the boundaries \\b and \\B only".into()),
            },
            Ast::ClassUnicode(_) => Err(UNICODE.into()),
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) if largest(range) > MAX_REPEAT => {
                    Err(format!("RE2 allows at most {MAX_REPEAT} repetitions"))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), String> {
        match item {
            ast::ClassSetItem::Bracketed(_) => Err("a [ within a class must be written \\[ in RE2".into()),
            ast::ClassSetItem::Unicode(_) => Err(UNICODE.into()),
            ast::ClassSetItem::Literal(literal) if !literal.c.is_ascii() => Err(UNICODE.into()),
            ast::ClassSetItem::Range(range) if !range.end.c.is_ascii() => Err(UNICODE.into()),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), String> {
        Err("a class has no operations (&&, --, ~~) in RE2".into())
    }
}

const UNICODE: &str = "classes of characters beyond ASCII are not supported: write alternatives, (?:é|è)";

/// RE2's flags are i, m, s and U.
fn check_flags(flags: &ast::Flags) -> Result<(), String> {
    use ast::{Flag::*, FlagsItemKind};
    let unsupported =
        flags.items.iter().any(|item| matches!(item.kind, FlagsItemKind::Flag(Unicode | IgnoreWhitespace | CRLF)));
    if unsupported { Err("RE2 supports the flags i, m, s and U only".into()) } else { Ok(()) }
}

fn largest(range: &ast::RepetitionRange) -> u32 {
    match *range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => n,
        ast::RepetitionRange::Bounded(_, most) => most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_as_in_re2() {
        for (pattern, text, is_whole, is_found) in [
            ("a.c", "abc", true, true),
            ("b", "abc", false, true),
            ("a|b", "ab", false, true),
            ("", "", true, true),
            // RE2's classes are ASCII.
            (r"\d", "٣", false, false),
            (r"\w+", "abc_1", true, true),
            (r"\s", "\u{a0}", false, false),
            ("é+", "éé", true, true),
            ("(?i)ABC", "abc", true, true),
            (".*", "é", true, true),
            (".", "\n", false, false),
            ("[^/]+", "a/b", false, true),
            ("(?P<name>a)b", "ab", true, true),
            ("^a$", "a", true, true),
            ("[[:alpha:]]+", "ab", true, true),
        ] {
            assert_eq!(whole(pattern).unwrap().is_match(text.as_bytes()), is_whole, "{pattern} {text}");
            assert_eq!(searched(pattern).unwrap().is_match(text.as_bytes()), is_found, "{pattern} {text}");
        }
        assert!(whole("a.b").unwrap().is_match(b"a\xffb"), "a header's value is any bytes");
    }

    #[test]
    fn expressions_that_re2_reads_differently_are_refused() {
        for (pattern, why) in [
            ("(", "unclosed group"),
            ("a)|(b", "unopened group"),
            ("[a&&b]", "no operations"),
            ("[[a]b]", "within a class"),
            ("(?x)a", "flags"),
            ("(?u:a)", "flags"),
            (r"\pL", "beyond ASCII"),
            ("[é]", "beyond ASCII"),
            ("[a-é]", "beyond ASCII"),
            (r"\b{start}", "boundaries"),
            ("a{1001}", "1000 repetitions"),
            ("(a{900}){900}", "too large"),
            (r"(a)\1", "backreferences are not supported"),
            ("(?=a)", "look-around"),
        ] {
            let found = whole(pattern).unwrap_err();
            assert!(found.contains(why), "{pattern}: {found}");
            assert_eq!(searched(pattern).unwrap_err(), found, "{pattern}");
        }
        assert!(whole(&"a".repeat(1024)).is_ok());
        assert!(whole(&"a".repeat(1025)).unwrap_err().contains("longer than 1024 bytes"));
        assert!(searched("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?){3}").is_ok());
    }
}
