//! Rules for names: hosts, labels, header names.

/// A DNS label with Kubernetes' rule: `a-z0-9`, inner hyphens, at most 63.
pub fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// A name of an object: dotted words with the rule of [`is_label`], at most 253 characters altogether. Unlike a label
/// in DNS a word may be longer than 63, as in Kubernetes.
pub(crate) fn is_subdomain(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let word =
        |word: &str| !word.is_empty() && word.chars().all(inner) && !word.starts_with('-') && !word.ends_with('-');
    name.len() <= 253 && name.split('.').all(word)
}

/// The name of a Kubernetes label: `[prefix/]name`.
pub(crate) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// The value of a Kubernetes label; it may be empty.
pub(crate) fn is_label_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.len() <= 63
        && value.chars().all(inner)
        && (value.is_empty() || value.starts_with(edge) && value.ends_with(edge))
}

/// The rule of [`is_label`], as the end of an error.
pub(crate) const LABEL_RULE: &str = "must be lower-case letters, digits and inner hyphens, at most 63";

/// The error for a short name in a Gateway or a Sidecar, where its namespace would be unknown.
pub(crate) const NOT_SHORT: &str =
    "is a short name, which is not allowed here: write the full name, such as a.default.svc.cluster.local";

/// The name of a header of an HTTP probe; Kubernetes accepts fewer characters than HTTP.
pub(crate) fn is_probe_header(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// A host that requests may name: dotted words of letters, digits, `-` and `_`, whatever the case.
pub fn is_host(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let word = |word: &str| {
        !word.is_empty() && word.len() <= 63 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    name.len() <= 253 && name.split('.').all(word)
}

/// A host, or a wildcard: a host in which `*` stands for the first label or for its beginning, as in `*.suffix`,
/// `*-suffix` and `*suffix.example`.
pub(crate) fn is_host_or_wildcard(name: &str) -> bool {
    let Some(rest) = name.strip_prefix('*') else { return is_host(name) };
    is_host(rest.strip_prefix(['.', '-']).unwrap_or(rest))
}

/// The problem of a host of a Gateway or a Sidecar, which accept no wildcards other than `*` and `*.suffix`, and no
/// short names: as the end of an error; `None`: the host is valid.
pub(crate) fn wrong_import(host: &str) -> Option<&'static str> {
    if host == "*" {
        None
    } else if !is_host_or_wildcard(host) {
        Some("is not a host name, *.suffix or *")
    } else if weft_core::names::is_partial_wildcard(host) {
        Some("stands for a part of a label, which as in Istio is not allowed here: write *.suffix or *")
    } else if !host.contains('.') {
        Some(NOT_SHORT)
    } else {
        None
    }
}

/// Prefix of the address of a Unix socket, as in Istio.
pub(crate) const UNIX_PREFIX: &str = "unix://";

/// The problem of `path`, the text after [`UNIX_PREFIX`]; `None`: it names a Unix socket.
pub(crate) fn unix_problem(path: &str) -> Option<&'static str> {
    match path.strip_prefix('@') {
        Some("") => Some("needs a name after `@`"),
        None if !path.starts_with('/') || path.ends_with('/') => {
            Some("must be the absolute path of a socket's file, such as `unix:///run/app.sock`, or `unix://@NAME`")
        }
        _ if path.len() > 107 || path.contains(char::is_control) => {
            Some("must have 107 bytes at most, and no control characters")
        }
        _ => None,
    }
}

/// A token of RFC 9110, which header names are.
pub(crate) fn is_header(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

/// Suffix of the canonical name of every service.
pub const MESH_SUFFIX: &str = ".svc.cluster.local";

/// Bound on the length of a chain of Services of type ExternalName.
pub const MOST_ALIASES: usize = 8;

/// "<service>.<namespace>.svc.cluster.local".
pub fn fqdn(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}{MESH_SUFFIX}").to_ascii_lowercase()
}

/// `name` as a host of the mesh: a name without a dot is a service of `namespace`. As in Istio, a name with a dot is
/// full.
pub fn canonical(name: &str, namespace: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if name.contains('.') || name == "*" { name } else { fqdn(&name, namespace) }
}
