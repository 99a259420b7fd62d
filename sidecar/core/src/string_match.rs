//! Conditions on strings.

use regex::bytes::Regex;

/// A condition on a string.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// A match of the whole string.
    Regex(Regex),
    /// Anything.
    Any,
}

impl StringMatch {
    /// Whether a text matches.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            StringMatch::Exact(exact) => text == exact.as_bytes(),
            StringMatch::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            StringMatch::Regex(regex) => regex.is_match(text),
            StringMatch::Any => true,
        }
    }
}
