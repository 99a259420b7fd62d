//! Colours of what `weftctl` prints. They are always written: the stream that it prints to leaves them out where it is no
//! terminal, or where `NO_COLOR` is set.

/// As what is well.
pub(super) fn good(text: &str) -> String {
    format!("\x1b[32m{text}\x1b[0m")
}

/// As what needs a look.
pub(super) fn odd(text: &str) -> String {
    format!("\x1b[33m{text}\x1b[0m")
}

/// As what is broken.
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
