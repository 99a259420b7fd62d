//! Links, anchors and paths of the pages exist.

use std::collections::{BTreeMap, HashMap};

use super::{Page, pages, root};

/// A path in backticks with one of these prefixes is a path of the repository.
const ROOMS: [&str; 6] = ["sidecar/", "control-plane/", "docs/", "tests/", "deploy/", "proto/"];

/// The anchors of a page's headings, by GitHub's rule.
fn anchors(page: &Page) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let headings = page.prose().into_iter().filter_map(|(_, line)| {
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        ((1..=6).contains(&level) && text.starts_with(' ')).then(|| slug(text.trim()))
    });
    let mut all = Vec::new();
    for slug in headings {
        let before = seen.entry(slug.clone()).or_default();
        all.push(if *before == 0 { slug } else { format!("{slug}-{before}") });
        *before += 1;
    }
    all
}

/// A heading's anchor: its text without links, in lower case, without punctuation, hyphens for spaces.
fn slug(heading: &str) -> String {
    let mut text = heading.to_owned();
    while let Some((whole, label, _)) = links(&text).into_iter().next() {
        text = text.replace(&whole, &label);
    }
    let text = text.to_lowercase();
    let text = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    text.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Inline links of a line: as written, label and target.
fn links(line: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        let Some(end) = after.find(')') else { break };
        if let Some(begin) = before.rfind('[') {
            let (label, target) = (&before[begin + 1..], &after[..end]);
            found.push((format!("[{label}]({target})"), label.to_owned(), target.to_owned()));
        }
        rest = &after[end..];
    }
    found
}

/// A line without its inline code, and that code.
fn split_code(line: &str) -> (String, Vec<&str>) {
    let (mut prose, mut code) = (String::new(), Vec::new());
    for (at, part) in line.split('`').enumerate() {
        if at % 2 == 0 {
            prose.push_str(part);
        } else {
            code.push(part);
        }
    }
    (prose, code)
}

/// The path that inline code names; `None`: it names none, or a pattern.
fn repository_path(code: &str) -> Option<&str> {
    let path = code.split(':').next().unwrap_or(code);
    let fine = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@".contains(&byte));
    (fine && ROOMS.iter().any(|room| path.starts_with(room))).then_some(path)
}

/// The problems of all pages, `file:line: text`.
fn problems(pages: &[Page], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let known: BTreeMap<&str, Vec<String>> = pages.iter().map(|page| (page.path.as_str(), anchors(page))).collect();
    let mut wrong = Vec::new();
    for page in pages {
        for (line, text) in page.prose() {
            let (prose, code) = split_code(text);
            for path in code.into_iter().filter_map(repository_path).filter(|path| !exists(path)) {
                wrong.push(format!("{}:{line}: there is no `{path}`", page.path));
            }
            for (_, _, target) in links(&prose) {
                if let Some(problem) = broken(page, &target, &known, &exists) {
                    wrong.push(format!("{}:{line}: {problem}", page.path));
                }
            }
        }
    }
    wrong
}

/// The problem of a link of a page.
fn broken(
    page: &Page,
    target: &str,
    known: &BTreeMap<&str, Vec<String>>,
    exists: impl Fn(&str) -> bool,
) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { Some(page.path.clone()) } else { resolve(&page.path, file) };
    let Some(path) = path else { return Some(format!("the link {target} leads out of the repository")) };
    if !exists(&path) {
        return Some(format!("the link {target} leads to {path}, which does not exist"));
    }
    let anchors = known.get(path.as_str());
    let found = anchor.is_empty() || anchors.is_some_and(|anchors| anchors.iter().any(|known| known == anchor));
    (!found).then(|| format!("the link {target}: {path} has no heading #{anchor}"))
}

/// The path below the repository of a link in a page; `None`: it is outside.
fn resolve(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[test]
fn links_anchors_and_paths_exist() {
    let wrong = problems(&pages().unwrap(), |path| root().join(path).exists());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_page_is_in_the_index() {
    let index = super::page("docs/README.md").unwrap();
    let lines = index.prose();
    let linked: Vec<String> = lines.iter().flat_map(|(_, line)| links(line)).map(|(_, _, target)| target).collect();
    for page in pages().unwrap() {
        let Some(path) = page.path.strip_prefix("docs/").filter(|path| *path != "README.md") else { continue };
        assert!(linked.iter().any(|target| target == path), "docs/README.md does not link {path}");
    }
}

#[test]
fn broken_links_are_reported_with_file_and_line() {
    let page = |path: &str, text: &str| Page { path: path.into(), text: text.into() };
    let pages = [
        page("a.md", "# One `x`: two\n# Same\n# Same\n[fine](docs/b.md#over-there) [same](#same-1) [x](#one-x-two)\n"),
        page(
            "docs/b.md",
            "## Over there\n[up](../a.md) [gone](c.md)\n`[no](link)` [bad](../a.md#none)\n[out](../../x)\n",
        ),
        page("c.md", "`docs/b.md:3` `tests/*.rs` `docs/gone.md`\n```\n[code](none)\n```\n[web](https://x.example/)\n"),
    ];
    let exists = |path: &str| pages.iter().any(|page| page.path == path);
    let expected = [
        "docs/b.md:2: the link c.md leads to docs/c.md, which does not exist",
        "docs/b.md:3: the link ../a.md#none: a.md has no heading #none",
        "docs/b.md:4: the link ../../x leads out of the repository",
        "c.md:1: there is no `docs/gone.md`",
    ];
    assert_eq!(problems(&pages, exists), expected);
}
