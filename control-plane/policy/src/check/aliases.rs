//! Services of type ExternalName: chains without an end, and policies for a host that is only an alias of another.

use std::collections::HashMap;

use crate::{Code, Document, Finding, Object, canonical};
use crate::{MOST_ALIASES, fqdn};

/// Findings of this module; `documents` are sorted by age.
pub(super) fn check<'a>(documents: &[&'a Document]) -> Vec<Finding<'a>> {
    let aliases: HashMap<String, (&Document, &str)> =
        documents.iter().filter_map(|document| Some((host(document), (*document, target(document)?)))).collect();
    let mut findings = Vec::new();
    if aliases.is_empty() {
        return findings;
    }
    for document in documents {
        if target(document).is_some() {
            findings.extend(endless(document, &aliases));
            continue;
        }
        let written: Vec<(String, &str)> = match &document.object {
            Object::DestinationRule(rule) => vec![("host".to_owned(), rule.host.as_str())],
            Object::VirtualService(service) if service.of_mesh() => {
                service.hosts.iter().enumerate().map(|(n, host)| (format!("hosts[{n}]"), host.as_str())).collect()
            }
            _ => continue,
        };
        for (path, name) in written {
            if let Some((alias, target)) = aliases.get(&canonical(name, &document.namespace)) {
                let text = format!(
                    "`{name}` stands for `{target}` ({}), whose policies apply: this has no effect on it",
                    alias.reference()
                );
                findings.push(Finding::warning(document, path, Code::Ineffective, text));
            }
        }
    }
    findings
}

fn host(document: &Document) -> String {
    fqdn(&document.name, &document.namespace)
}

fn target(document: &Document) -> Option<&str> {
    match &document.object {
        Object::Service(service) => service.alias.as_deref(),
        _ => None,
    }
}

/// A chain that is a loop, or longer than the limit.
fn endless<'a>(document: &'a Document, aliases: &HashMap<String, (&Document, &str)>) -> Option<Finding<'a>> {
    let mut chain = vec![host(document)];
    while let Some((_, target)) = chain.last().and_then(|last| aliases.get(last)) {
        let back = chain.iter().any(|host| host == target);
        chain.push((*target).to_owned());
        let text = match () {
            () if back => "which is a loop: it must end at a host that is not an ExternalName Service",
            () if chain.len() > MOST_ALIASES + 1 => "which is longer than the limit of 8 steps",
            () => continue,
        };
        let text = format!("`externalName` leads from {}, {text}", chain.join(" to "));
        return Some(Finding::error(document, "externalName", Code::AliasLoop, text));
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::{Severity, check, parse};

    fn alias(name: &str, target: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {target}}}\n---\n"
        )
    }

    fn problems(text: &str) -> Vec<(Severity, String)> {
        let parsed = parse("f.yaml", text);
        assert!(!parsed.has_errors(), "{:?}", parsed.problems);
        let documents: Vec<_> = parsed.documents.iter().collect();
        check(&documents).into_iter().map(|problem| (problem.severity, problem.text)).collect()
    }

    #[test]
    fn external_names_that_loop_or_never_end_are_errors() {
        let host = |name: &str| format!("{name}.default.svc.cluster.local");
        assert_eq!(problems(&[alias("a", &host("b")), alias("b", "api.example.com")].concat()), []);
        let found = problems(&[alias("a", &host("b")), alias("b", &host("a"))].concat());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|(severity, text)| *severity == Severity::Error && text.contains("which is a loop")));
        let long: String = (0..9).map(|n| alias(&format!("a{n}"), &host(&format!("a{}", n + 1)))).collect();
        let found = problems(&long);
        assert!(found.len() == 1 && found[0].1.contains("longer than the limit"), "{found:?}");
    }

    #[test]
    fn policies_for_an_alias_have_no_effect() {
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}}\n";
        let found = problems(&[alias("a", "b.default.svc.cluster.local"), rule.to_owned()].concat());
        assert!(found.len() == 1 && found[0].1.contains("`a` stands for `b.default.svc.cluster.local`"), "{found:?}");
    }
}
