//! The table of all fields in the README, and the test that each of them has.
//!
//! Both follow from the decoders' shapes: the table is written by `make fields`, and `tests/fields.txt` says of each field in
//! which file a test shows what it does. A field without a line there, a line without a field, a file that does not mention
//! the field and a table that is out of date fail the build.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use weft_policy::{Row, field_table, refused_kinds};

const BEGIN: &str = "<!-- fields: written by `make fields` -->\n";
const END: &str = "<!-- end of fields -->\n";
/// Places of an object that are told; it has more where it stands in each of many others.
const PLACES: usize = 3;

/// `readme` with the table of today.
///
/// # Errors
/// When it has no place for it.
pub fn with_table(readme: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("the README has no line that begins the table")?;
    let (_, after) = rest.split_once(END).context("the README has no line that ends the table")?;
    Ok([before, BEGIN, &table(), END, after].concat())
}

fn table() -> String {
    let mut text = String::new();
    let mut kind = "";
    for row in field_table() {
        if row.kind != kind {
            kind = row.kind;
            let _ = write!(text, "\n| {kind} | |\n|---|---|\n");
        }
        let _ = writeln!(text, "| {} | {} |", places(&row), fields(&row));
    }
    let refused: Vec<String> = refused_kinds().map(|kind| format!("`{kind}`")).collect();
    let _ = writeln!(text, "\nKinds of Istio that are refused so far: {}.", refused.join(", "));
    text
}

fn places(row: &Row) -> String {
    let name = |path: &String| if path.is_empty() { "`spec`".to_owned() } else { format!("`{path}`") };
    let mut told: Vec<String> = row.paths.iter().take(PLACES).map(name).collect();
    if row.paths.len() > PLACES {
        told.push(format!("and {} more", row.paths.len() - PLACES));
    }
    told.join(", ")
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
        parts.push(format!("left out with a warning: {}", quoted(&row.skipped)));
    }
    parts.join("; ")
}

/// What is wrong with `proofs`: lines of a kind and an object's place, and below each, indented, fields and at the end of the
/// line the file that tests them. `read` gives a file's text.
///
/// # Errors
/// When a line cannot be read.
pub fn unproved(proofs: &str, read: impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
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
        let mut proved = given.remove(&(row.kind.to_owned(), first.clone())).unwrap_or_default();
        for field in &row.supported {
            let at = format!("{} {first}: `{field}`", row.kind);
            let Some(file) = proved.remove(field) else {
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
        wrong.extend(proved.keys().map(|field| format!("{} {first}: `{field}` is no supported field", row.kind)));
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
    fn the_readme_has_the_table_of_today() {
        let readme = at("README.md").unwrap();
        assert!(with_table(&readme).unwrap() == readme, "the table of fields is out of date: run `make fields`");
    }

    #[test]
    fn every_field_has_a_test() {
        let wrong = unproved(&at("tests/fields.txt").unwrap(), at).unwrap();
        assert!(wrong.is_empty(), "tests/fields.txt:\n{}", wrong.join("\n"));
    }

    #[test]
    fn what_is_missing_is_told() {
        let read = |_: &str| Ok("a test of hosts and of addressesX".to_owned());
        let wrong = unproved("ServiceEntry\n hosts addresses nothing a.rs\nServiceEntry nowhere\n x a.rs\n", read);
        let wrong = wrong.unwrap();
        let told = |what: &str| wrong.iter().filter(|line| line.contains(what)).count();
        assert_eq!(told("ServiceEntry : `hosts`"), 0, "{wrong:#?}");
        assert_eq!(told("ServiceEntry : `addresses`: a.rs does not mention it"), 1);
        assert_eq!(told("ServiceEntry : `ports` has no test"), 1);
        assert_eq!(told("`nothing` is no supported field"), 1);
        assert_eq!(told("ServiceEntry nowhere: there is no such object"), 1);
        assert!(unproved(" x a.rs", read).is_err() && unproved("A\n x", read).is_err());
    }
}
