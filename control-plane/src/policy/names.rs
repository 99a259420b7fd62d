//! Rules for names: hosts, labels, header names.

/// A DNS label as Kubernetes names things: `a-z0-9`, inner hyphens, at most 63.
pub(crate) fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Dotted labels, at most 253 long.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A host that requests may name: dotted words of letters, digits, `-` and `_`, whatever the case.
pub(crate) fn is_host(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let word = |word: &str| {
        !word.is_empty() && word.len() <= 63 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    name.len() <= 253 && name.split('.').all(word)
}

/// A host, or `*.` and a host.
pub(crate) fn is_host_or_wildcard(name: &str) -> bool {
    is_host(name.strip_prefix("*.").unwrap_or(name))
}

/// A token of RFC 9110, which header names are.
pub(crate) fn is_header(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

/// `name` as a host of the mesh: a name without a dot is a service of `namespace`. As in Istio, a name with a dot is full.
pub fn canonical(name: &str, namespace: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if name.contains('.') || name == "*" { name } else { crate::world::fqdn(&name, namespace) }
}
