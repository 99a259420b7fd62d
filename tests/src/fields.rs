//! `docs/fields.md`, and the test of each field.
//!
//! Both follow from the decoders' shapes: the page is written by `make fields`, and `tests/fields.txt` names for each field the
//! file with its test. A field without a line there, a line without a field, a file that does not mention the field and a page
//! that is out of date fail the build.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use weft_policy::{Row, field_table, refused_kinds};

/// The page, below the repository.
pub const PAGE: &str = "docs/fields.md";
const HEADER: &str = "\
# Policy fields

<!-- Written by `make fields`. Do not edit. -->

For authors of policies: every kind and field that Weft reads. A refused field is an error that names it, never ignored. A field or kind that
neither Istio nor Weft has is an error with the nearest known name. An object that occurs in several places is listed once, under
the first. What the fields do beyond Istio's reference is in [traffic-policy.md](traffic-policy.md).
";
/// Places that are listed for an object; more are counted.
const PLACES: usize = 3;

/// The text of the page.
pub fn page() -> String {
    [HEADER, &table()].concat()
}

fn table() -> String {
    let mut text = String::new();
    let mut kind = "";
    for row in field_table() {
        if row.kind != kind {
            kind = row.kind;
            let _ = write!(text, "\n## {kind}\n\n| Object | Fields |\n|---|---|\n");
        }
        let _ = writeln!(text, "| {} | {} |", places(&row), fields(&row));
    }
    let refused: Vec<String> = refused_kinds().map(|kind| format!("`{kind}`")).collect();
    let _ = writeln!(text, "\n## Refused kinds\n\nKinds of Istio that are not supported yet: {}.", refused.join(", "));
    text
}

fn places(row: &Row) -> String {
    let name = |path: &String| if path.is_empty() { "`spec`".to_owned() } else { format!("`{path}`") };
    let mut places: Vec<String> = row.paths.iter().take(PLACES).map(name).collect();
    if row.paths.len() > PLACES {
        places.push(format!("and {} more", row.paths.len() - PLACES));
    }
    places.join(", ")
}

fn fields(row: &Row) -> String {
    if let Some((kind, path)) = &row.like {
        return if path.is_empty() { format!("as a {kind}") } else { format!("as `{path}` of a {kind}") };
    }
    let quoted = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    if !row.supported.is_empty() {
        parts.push(quoted(&row.supported));
    }
    for alike in row.refused.chunk_by(|one, other| one.1 == other.1) {
        let names: Vec<&str> = alike.iter().map(|(name, _)| *name).collect();
        let why = alike.first().map(|(_, why)| *why).filter(|why| !why.is_empty()).unwrap_or("not yet");
        parts.push(format!("refused: {} ({why})", quoted(&names)));
    }
    if !row.skipped.is_empty() {
        parts.push(format!("skipped with a warning: {}", quoted(&row.skipped)));
    }
    parts.join("; ")
}

/// The problems of `proofs`: lines with a kind and an object's place, and below each, indented, its fields and at the end of
/// the line the file that tests them. `read` returns the text of a file.
///
/// # Errors
/// When a line cannot be read.
pub fn untested(proofs: &str, read: impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
    let mut given: BTreeMap<(String, String), BTreeMap<&str, &str>> = BTreeMap::new();
    let mut object = None;
    for line in proofs.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if !line.starts_with(char::is_whitespace) {
            let (kind, path) = line.split_once(' ').unwrap_or((line, ""));
            object = Some((kind.to_owned(), path.trim().to_owned()));
            continue;
        }
        let object = object.clone().with_context(|| format!("`{line}` stands below no object"))?;
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let Some(file) = words.pop().filter(|_| !words.is_empty()) else { bail!("`{line}` needs fields and a file") };
        for word in words {
            let twice = given.entry(object.clone()).or_default().insert(word, file);
            ensure!(twice.is_none(), "{object:?}: `{word}` is there twice");
        }
    }
    let mut wrong = Vec::new();
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for row in field_table() {
        let first = row.paths.first().cloned().unwrap_or_default();
        let mut tested = given.remove(&(row.kind.to_owned(), first.clone())).unwrap_or_default();
        for field in &row.supported {
            let at = format!("{} {first}: `{field}`", row.kind);
            let Some(file) = tested.remove(field) else {
                wrong.push(format!("{at} has no test"));
                continue;
            };
            if !texts.contains_key(file) {
                texts.insert(file, read(file).with_context(|| format!("{at}: {file}"))?);
            }
            // Many objects have a `name`: the file mentions the object too.
            let object = first.rsplit('.').next().unwrap_or_default();
            if !texts.get(file).is_some_and(|text| mentions(text, field) && mentions(text, object)) {
                wrong.push(format!("{at}: {file} does not mention it"));
            }
        }
        wrong.extend(tested.keys().map(|field| format!("{} {first}: `{field}` is no supported field", row.kind)));
    }
    wrong.extend(given.keys().map(|(kind, path)| format!("{kind} {path}: there is no such object")));
    Ok(wrong)
}

/// Whether `word`, unless it is empty, stands in `text` as a word of its own.
fn mentions(text: &str, word: &str) -> bool {
    if word.is_empty() {
        return true;
    }
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(part) && !after.starts_with(part)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn at(path: &str) -> Result<String> {
        Ok(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path))?)
    }

    #[test]
    fn the_page_of_fields_is_up_to_date() {
        assert!(at(PAGE).unwrap() == page(), "{PAGE} is out of date: run `make fields`");
    }

    #[test]
    fn every_field_has_a_test() {
        let wrong = untested(&at("tests/fields.txt").unwrap(), at).unwrap();
        assert!(wrong.is_empty(), "tests/fields.txt:\n{}", wrong.join("\n"));
    }

    #[test]
    fn missing_and_unknown_fields_are_reported() {
        let read = |_: &str| Ok("a test of hosts and of addressesX".to_owned());
        let wrong = untested("ServiceEntry\n hosts addresses nothing a.rs\nServiceEntry nowhere\n x a.rs\n", read);
        let wrong = wrong.unwrap();
        let count = |text: &str| wrong.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("ServiceEntry : `hosts`"), 0, "{wrong:#?}");
        assert_eq!(count("ServiceEntry : `addresses`: a.rs does not mention it"), 1);
        assert_eq!(count("ServiceEntry : `ports` has no test"), 1);
        assert_eq!(count("`nothing` is no supported field"), 1);
        assert_eq!(count("ServiceEntry nowhere: there is no such object"), 1);
        assert!(untested(" x a.rs", read).is_err() && untested("A\n x", read).is_err());
    }
}
