//! The documentation for its tests: Markdown pages, their fenced blocks, headings and links.

pub mod commands;
#[cfg(test)]
mod links;
#[cfg(test)]
mod policies;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders without pages of the repository.
const SKIPPED: [&str; 3] = ["target", "node_modules", ".git"];

/// A Markdown file.
#[derive(Debug)]
pub struct Page {
    /// Path below the repository, for messages.
    pub path: String,
    text: String,
}

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Line of the opening fence, from 1.
    pub line: usize,
    /// The words after the fence: a language, then marks for the tests.
    pub info: Vec<String>,
    /// The text between the fences.
    pub text: String,
}

impl Block {
    /// Whether the fence names this language, and each of these marks.
    pub fn is(&self, language: &str, marks: &[&str]) -> bool {
        let (first, rest) = self.info.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        first == language && marks.iter().all(|mark| rest.iter().any(|word| word == mark))
    }
}

impl Block {
    /// Whether the lines of the block are among those of `output`, in this order; `…` in the block is any text. In a block
    /// marked `like` words with digits (addresses, versions, times) match each other.
    pub fn is_printed_in(&self, output: &str) -> bool {
        let like = self.info.iter().any(|word| word == "like");
        let form = |line: &str| if like { without_figures(line) } else { line.to_owned() };
        let mut lines = output.lines().map(form);
        self.text.lines().all(|expected| lines.any(|line| matches(&line, &form(expected))))
    }
}

/// A line whose words with digits are all the same, and whose spaces are single.
fn without_figures(line: &str) -> String {
    let words =
        line.split_whitespace().map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "0" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn matches(line: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let mut last = "";
    let is_exact = !expected.contains('…');
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = part;
    }
    // The last part stands at the end.
    if is_exact { rest.is_empty() } else { line.ends_with(last) }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    crate::tests_dir().join("..")
}

/// All Markdown files of the repository.
///
/// # Errors
/// When a folder or a file cannot be read.
pub fn pages() -> Result<Vec<Page>> {
    let mut found = Vec::new();
    collect(&root(), "", &mut found)?;
    found.sort_by(|one: &Page, other| one.path.cmp(&other.path));
    Ok(found)
}

fn collect(folder: &Path, below: &str, found: &mut Vec<Page>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{below}{name}");
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(&entry.path(), &format!("{path}/"), found)?;
            }
        } else if name.ends_with(".md") {
            found.push(page(&path)?);
        }
    }
    Ok(())
}

/// One page; `path` is below the repository.
///
/// # Errors
/// When it cannot be read.
pub fn page(path: &str) -> Result<Page> {
    let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
    Ok(Page { path: path.to_owned(), text })
}

impl Page {
    /// Lines outside of fenced blocks, with their numbers.
    #[cfg(test)]
    fn prose(&self) -> Vec<(usize, &str)> {
        let mut fence = None;
        let mut prose = Vec::new();
        for (line, text) in self.numbered() {
            match (fence, opening(text)) {
                (None, None) => prose.push((line, text)),
                (None, Some((mark, _))) => fence = Some(mark),
                (Some(mark), _) if text.trim() == mark => fence = None,
                (Some(_), _) => {}
            }
        }
        prose
    }

    /// All fenced blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut fence = None;
        for (line, text) in self.numbered() {
            match (fence, opening(text)) {
                (None, Some((mark, info))) => {
                    fence = Some(mark);
                    let info = info.split_whitespace().map(str::to_owned).collect();
                    blocks.push(Block { line, info, text: String::new() });
                }
                (Some(mark), _) if text.trim() == mark => fence = None,
                (Some(_), _) => {
                    if let Some(block) = blocks.last_mut() {
                        block.text.push_str(text);
                        block.text.push('\n');
                    }
                }
                (None, None) => {}
            }
        }
        blocks
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, text)| (at + 1, text))
    }
}

/// The fence that a line opens, and its info string.
fn opening(line: &str) -> Option<(&str, &str)> {
    let text = line.trim_start();
    let length = text.bytes().take_while(|byte| *byte == b'`').count();
    let (mark, info) = text.split_at(length);
    (length >= 3 && !info.contains('`')).then_some((mark, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fenced_blocks_have_their_language_marks_and_text() {
        let text = "a\n```sh test\necho\n\n```\nb\n````md\n```\n````\nc\n".to_owned();
        let page = Page { path: "a.md".into(), text };
        let [one, two] = &page.blocks()[..] else { panic!("{page:?}") };
        assert!(one.is("sh", &["test"]) && !one.is("sh", &["wrong"]) && !one.is("yaml", &[]));
        assert_eq!((one.line, one.text.as_str(), two.text.as_str()), (2, "echo\n\n", "```\n"));
        assert_eq!(page.prose(), [(1, "a"), (6, "b"), (10, "c")]);
    }

    #[test]
    fn expected_output_has_wildcards_and_an_order() {
        let block = |text: &str| Block { line: 1, info: Vec::new(), text: text.into() };
        let output = "one\n  127.0.0.1:80   healthy on vm-1\nversion 7 of x\n";
        for expected in ["one\n", "  127.…:80 … healthy on …\nversion … of x\n", "one\nversion … x\n", ""] {
            assert!(block(expected).is_printed_in(output), "{expected}");
        }
        let like = |text: &str| Block { info: vec!["text".into(), "like".into()], ..block(text) };
        assert!(like("  10.0.0.1:443 healthy on vm-9\nversion 8 of x\n").is_printed_in(output));
        assert!(!like("  10.0.0.1:443 unhealthy on vm-9\n").is_printed_in(output));
        for wrong in ["on\n", "two\n", "version … of y\n", "version …\none\n", "one…two\n"] {
            assert!(!block(wrong).is_printed_in(output), "{wrong}");
        }
    }
}
