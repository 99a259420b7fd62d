//! Allowed imports between the parts of a crate: each list names the parts of a crate from the lowest to the highest, and a part may
//! import only those before it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::tests_dir;

/// Each crate of several parts, and its parts from the lowest to the highest.
const CRATES: &[(&str, &[&str])] = &[
    ("sidecar/core/src", CORE),
    ("sidecar/src", SIDECAR),
    ("control-plane/src", CONTROL_PLANE),
    ("control-plane/world/src", &["world", "attach", "translate", "explain"]),
];

const CORE: &[&str] = &[
    "backoff",
    "clock",
    "dns",
    "failover",
    "first_bytes",
    "flag",
    "hex",
    "http1",
    "identity",
    "locality",
    "names",
    "outcome",
    "path",
    "proxy_protocol",
    "re2",
    "renewal",
    "request",
    "sniff",
    "string_match",
    "subnet",
    "tls_hello",
    "windowed_count",
    "hash",
    "headers",
    "retry",
    "tunnel",
    "policy",
    "gateway",
    "limits",
    "protocol",
    "inbound",
    "pool",
    "reply",
    "filter",
    "endpoint",
    "balance",
    "outlier",
    "route",
    "service",
    "compile",
    "target",
];

const SIDECAR: &[&str] = &[
    "net",
    "tls",
    "resolve",
    "telemetry",
    "host",
    "http",
    "upstream",
    "control",
    "dns",
    "proxy",
    "exchange",
    "outbound",
    "inbound",
    "gateway",
    "commands",
];

const CONTROL_PLANE: &[&str] = &[
    "clock",
    "sockets",
    "sources",
    "store",
    "telemetry",
    "identity",
    "state",
    "kubernetes",
    "discovery",
    "registry",
    "api",
    "federation",
    "admin",
    "webhook",
    "server",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// The first segments of paths that begin with `crate::`, outside tests.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let group = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let names = group.map_or(rest.lines().next().unwrap_or_default(), |(names, _)| names);
        let heads = if group.is_some() { names.split(',').collect() } else { vec![names] };
        for head in heads {
            let name: String = head.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            // A name in lower case is a module; others belong to the crate's root.
            if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                found.insert(name);
            }
        }
    }
    found
}

/// Whether the crate has a module of this name; other names in lower case are functions of the crate's root.
fn is_module(source: &Path, name: &str) -> bool {
    source.join(name).is_dir() || source.join(format!("{name}.rs")).is_file()
}

/// Imports that are against the order, one a line.
fn violations(folder: &str, order: &[&str]) -> Vec<String> {
    let source = tests_dir().join("..").join(folder);
    let mut files = Vec::new();
    sources(&source, &mut files);
    assert!(!files.is_empty(), "{folder} has no sources");
    let place = |part: &str| order.iter().position(|name| *name == part);
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(&source).unwrap();
        let part = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if matches!(&*part, "main" | "lib" | "bin" | "testing") {
            continue;
        }
        let Some(own) = place(&part) else {
            wrong.push(format!("{folder}/{} is of no part in the list", path.display()));
            continue;
        };
        for import in imports(&std::fs::read_to_string(&file).unwrap()).iter().filter(|import| **import != part) {
            if place(import).is_none() && !is_module(&source, import) {
                continue;
            }
            match place(import) {
                Some(at) if at < own => {}
                Some(_) => wrong.push(format!("{folder}/{}: {part} must not import {import}", path.display())),
                None => wrong.push(format!("{folder}/{}: {import} is of no part in the list", path.display())),
            }
        }
    }
    wrong
}

#[test]
fn parts_of_a_crate_import_only_those_below_them() {
    for (folder, order) in CRATES {
        assert_eq!(violations(folder, order), Vec::<String>::new());
    }
}

/// Folders of which only a part may import a crate: the folder, the crate, and the part.
const LIMITED: &[(&str, &str, &str)] = &[
    // The control plane runs agents for programs without a sidecar, and shares forms and guards with them elsewhere.
    ("control-plane/src", "weft_agent", "registry/external"),
];

#[test]
fn a_crate_is_imported_only_where_it_belongs() {
    for (folder, name, part) in LIMITED {
        let source = tests_dir().join("..").join(folder);
        let mut files = Vec::new();
        sources(&source, &mut files);
        let imports = |file: &PathBuf| std::fs::read_to_string(file).unwrap().contains(&format!("{name}::"));
        let (inside, outside): (Vec<_>, Vec<_>) =
            files.into_iter().filter(imports).partition(|file| file.starts_with(source.join(part)));
        assert!(!inside.is_empty(), "{folder}/{part} does not import {name}");
        assert_eq!(outside, Vec::<PathBuf>::new(), "{name} belongs to {folder}/{part}");
    }
}

#[test]
fn imports_are_found_in_paths_and_groups_and_not_in_tests() {
    let text = "use crate::net::connect;\nuse crate::{tls, http::body};\nlet x = crate::dns::answer();\n// crate::gateway\n\
                #[cfg(test)]\nmod tests {\n    use crate::commands;\n}\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["dns", "http", "net", "tls"]);
}
