//! The output of the demo, and the count of its claims.

use std::io::IsTerminal;

/// Prints, and counts failed claims.
pub(crate) struct Report {
    step: usize,
    failed: usize,
    passed: usize,
    color: bool,
}

impl Report {
    /// A report without output yet.
    pub(crate) fn new() -> Report {
        Report { step: 0, failed: 0, passed: 0, color: std::io::stdout().is_terminal() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        println!("\n{}", self.paint("1", &format!("== {}. {title}", self.step)));
    }

    /// A claim, and whether it is true.
    pub(crate) fn claim(&mut self, holds: bool, text: &str) {
        if holds {
            self.passed += 1;
            println!("{} {text}", self.paint("32", "ok:"));
        } else {
            self.failed += 1;
            println!("{} {text}", self.paint("31", "FAILED:"));
        }
    }

    /// A table; the first row is its heading.
    pub(crate) fn table(&self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
            println!("  {}", cells.join("   ").trim_end());
        }
    }

    /// Text of another program, indented.
    pub(crate) fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("  | {line}");
        }
    }

    /// The last line; whether all claims are true.
    pub(crate) fn end(&self) -> bool {
        println!("\n{} claims checked, {} failed", self.passed + self.failed, self.failed);
        self.failed == 0
    }
}
