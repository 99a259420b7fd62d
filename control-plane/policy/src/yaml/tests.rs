use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Node {
    let (mut documents, errors) = parse(text);
    assert_eq!(errors, []);
    documents.remove(0).root
}

fn error(text: &str) -> (u32, u32, String) {
    let (_, errors) = parse(text);
    let first = errors.first().cloned().unwrap_or_else(|| panic!("accepted: {text}"));
    (first.place.line, first.place.column, first.text)
}

#[test]
fn every_yaml_value_has_its_place() {
    let root = one("a: 1\r\nb:\r\n  - x\r\n  - {c: \"2\"}\r\n");
    let Value::Map(entries) = root.value else { panic!() };
    assert_eq!(entries[0].1.place, Place { line: 1, column: 4 });
    assert_eq!(entries[1].0.place, Place { line: 2, column: 1 });
    let Value::Seq(items) = &entries[1].1.value else { panic!() };
    assert_eq!(items[0].place, Place { line: 3, column: 5 });
    let Value::Map(inner) = &items[1].value else { panic!() };
    assert_eq!(inner[0].1.place, Place { line: 4, column: 9 });
    assert_eq!(inner[0].1.as_str(), Some("2"));
    assert_eq!(inner[0].1.as_i64(), None);
}

#[test]
fn scalars_resolve_by_the_core_schema() {
    for (text, string, boolean, number) in [
        ("x", true, None, None),
        ("'1'", true, None, None),
        ("1", false, None, Some(1)),
        ("-7", false, None, Some(-7)),
        ("0x10", false, None, Some(16)),
        ("0o10", false, None, Some(8)),
        ("1.5", false, None, None),
        ("1e3", false, None, None),
        (".5", false, None, None),
        ("1.2.3", true, None, None),
        ("1s", true, None, None),
        ("inf", true, None, None),
        ("true", false, Some(true), None),
        ("yes", true, None, None),
        ("null", false, None, None),
    ] {
        let node = one(text);
        assert_eq!(node.as_str().is_some(), string, "{text}");
        assert_eq!(node.as_bool(), boolean, "{text}");
        assert_eq!(node.as_i64(), number, "{text}");
    }
}

#[test]
fn documents_keep_their_text() {
    let (documents, errors) = parse("\u{feff}# first\na: 1\n---\nb: 2 # two\n---\n---\nc: 3\n");
    assert_eq!(errors, []);
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, ["# first\na: 1\n", "b: 2 # two\n", "\n", "c: 3\n"]);
    assert_eq!(documents[2].root.value, Value::Null);
}

#[test]
fn yaml_errors_are_located() {
    assert_eq!(error("a: 1\nb: 2\na: 3\n"), (3, 1, "`a` is given twice".to_owned()));
    let (line, column, _) = error("a:\n\t- b\n");
    assert!(line == 2 && column >= 1, "{line}:{column}");
    assert!(error("a: &x 1\nb: *x\n").2.contains("anchors"));
    assert!(error("a: !!str 1\n").2.contains("tags"));
    assert!(error(&"[".repeat(MAX_DEPTH + 2)).2.contains("nested too deeply"));
    assert_eq!(error(&"[".repeat(10_000)).0, 1);
    assert_eq!(error(&"- ".repeat(10_000)).0, 1);
    assert!(error(&format!("[{}]", "1,".repeat(MAX_NODES + 1))).2.contains("too many values"));
    assert!(error(&" ".repeat(MAX_BYTES + 1)).2.contains("bytes"));
    assert!(error("? [a]\n: b\n").2.contains("key"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        parse(&text);
    }

    #[test]
    fn nothing_that_looks_like_yaml_panics(text in "([a-c:#&*!|>'\"%@`\\-?,\\[\\]{} \t\r\n~\u{feff}é]|---|\\.\\.\\.|: |- ){0,120}") {
        parse(&text);
    }
}
