//! Decoder.
use std::fmt;

/// Where in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing of the file is applied.
    Error,
    /// Applied, and shown.
    Warning,
}

/// One line for the user: where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File as named by the caller.
    pub file: String,
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// Field, such as `spec.trafficPolicy.loadBalancer.simple`; empty: the document.
    pub path: String,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}:{}:{}: {severity}: {}", self.file, self.place.line, self.place.column, self.text)
    }
}
