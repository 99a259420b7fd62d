//! Colours of `weftctl`'s output. They are always written: the output stream removes them if it is not a terminal, or
//! if `NO_COLOR` is set.

/// A good state.
pub(super) fn good(text: &str) -> String {
    format!("\x1b[32m{text}\x1b[0m")
}

/// An unusual state.
pub(super) fn odd(text: &str) -> String {
    format!("\x1b[33m{text}\x1b[0m")
}

/// A broken state.
pub(super) fn bad(text: &str) -> String {
    format!("\x1b[1;31m{text}\x1b[0m")
}

/// A line of a problem: `file:line:column: error: text`.
pub(super) fn problem(line: &str) -> String {
    for (word, style) in [("error", bad as fn(&str) -> String), ("warning", odd)] {
        if let Some((place, text)) = line.split_once(&format!(": {word}: ")) {
            return format!("{place}: {}: {text}", style(word));
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_text() {
        for line in ["a.yaml:1:2: error: `x`: error: y", "a.yaml:1:2: warning: z", "VirtualService/default/a created"] {
            assert_eq!(anstream::adapter::strip_str(&problem(line)).to_string(), line);
        }
        assert!(problem("a.yaml:1:2: error: x").contains("\x1b[1;31merror\x1b[0m"));
        assert!(!problem("VirtualService/default/a created").contains('\x1b'));
    }
}
