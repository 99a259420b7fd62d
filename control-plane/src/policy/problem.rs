//! What is wrong with a file, in the one form that the CLI, the API and the logs show.

use std::fmt;

use crate::yaml::Place;

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
    /// Field, such as `trafficPolicy.loadBalancer.simple`; empty: the document.
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
