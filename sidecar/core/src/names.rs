//! Names of services: the service meant by an authority header, and a service's names for a client.

use std::borrow::Cow;

/// Suffix of the canonical names of mesh services, after `<name>.<namespace>`.
pub const SERVICE_SUFFIX: &str = ".svc.cluster.local";
/// Suffix of services in Consul's DNS.
pub const CONSUL_SUFFIX: &str = ".service.consul";

/// Whether a name can be resolved by the mesh only: it is below the mesh's own domain.
pub fn is_of_mesh(name: &str) -> bool {
    name.ends_with(SERVICE_SUFFIX) || name == &SERVICE_SUFFIX[1..]
}

/// Normalises an authority for comparison: lower case, without port, IPv6 brackets and trailing dot.
///
/// Allocates only if it has upper-case letters.
pub fn normalise(authority: &str) -> Cow<'_, str> {
    let (host, _) = split_port(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Splits host and port of an authority. IPv6 brackets are removed; a bare IPv6 address is a host without port; a port
/// that is not a number in 0..=65535 is dropped.
pub fn split_port(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((host, after)) = rest.split_once(']')
    {
        return (host, after.strip_prefix(':').and_then(parse_port));
    }
    match authority.split_once(':') {
        // More than one colon without brackets: a bare IPv6 address.
        Some((_, rest)) if rest.contains(':') => (authority, None),
        Some((host, port)) => (host, parse_port(port)),
        None => (authority, None),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // `u16::parse` would accept a leading plus.
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Whether `pattern` (a host, a wildcard such as `*.suffix` and `*-suffix`, or `*`) covers `host`, which may be a
/// wildcard too. The `*` matches at least one character, including dots, as in the domains of Envoy's virtual hosts.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

/// Whether a policy for `pattern` applies to `host`, which may be a wildcard too: the pattern covers it or equals it.
/// As in Istio (`SubsetOf`), `*foo.example` applies to `foo.example` as well.
pub fn is_within(host: &str, pattern: &str) -> bool {
    covers(pattern, host) || pattern == host || pattern.strip_prefix('*') == Some(host)
}

/// Specificity of `pattern` for `host`, the greater the more specific: the host itself before the longest suffix, and
/// that before `*`, which covers an empty name too. `None`: it does not cover the host.
pub fn specificity(pattern: &str, host: &str) -> Option<usize> {
    match pattern {
        "*" => Some(0),
        _ if pattern == host => Some(usize::MAX),
        _ => covers(pattern, host).then(|| pattern.len() - 1),
    }
}

/// Whether the `*` of a host matches a part of a label only, as in `*-suffix.example`.
pub fn is_partial_wildcard(host: &str) -> bool {
    host.strip_prefix('*').is_some_and(|rest| !rest.is_empty() && !rest.starts_with('.'))
}

/// The hosts under which a policy for `host` may be written (see [`is_within`]), the most specific first: `host`, the
/// wildcards of its suffixes, the longest first, and `*`. With `partial`, wildcards within a label are included: one
/// for each character.
pub fn patterns(host: &str, partial: bool) -> impl Iterator<Item = String> + '_ {
    let suffixes = host.char_indices().skip(usize::from(host.starts_with('*')));
    let suffixes = suffixes.filter(move |(at, char)| partial && *char != '*' || *char == '.' && *at > 0);
    let wildcards = suffixes.map(|(at, _)| format!("*{}", &host[at..])).filter(move |pattern| pattern != host);
    std::iter::once(host.to_owned()).chain(wildcards).chain(std::iter::once("*".to_owned()))
}

/// Canonical name of a host in a policy of `namespace`: a name without a dot is a service of that namespace; all
/// others, IP addresses and `*` stay. Lower case.
pub fn qualify(host: &str, namespace: &str) -> String {
    if host.contains(['.', '*', ':']) || host.is_empty() {
        return host.to_ascii_lowercase();
    }
    fqdn(host, namespace)
}

/// `<name>.<namespace>.svc.cluster.local`, lower case.
pub fn fqdn(name: &str, namespace: &str) -> String {
    let mut fqdn = format!("{name}.{namespace}{SERVICE_SUFFIX}");
    fqdn.make_ascii_lowercase();
    fqdn
}

/// Name and namespace of a canonical name; `None` for any other host.
pub fn parse_fqdn(host: &str) -> Option<(&str, &str)> {
    let (name, namespace) = host.strip_suffix(SERVICE_SUFFIX)?.split_once('.')?;
    (!name.is_empty() && !namespace.is_empty() && !namespace.contains('.')).then_some((name, namespace))
}

/// The names of a host for a client in `client_namespace`, the canonical one first. A host outside `svc.cluster.local`
/// has only its own name.
pub fn names_of(host: &str, client_namespace: &str) -> Vec<String> {
    let host = normalise(host);
    let mut names = vec![host.to_string()];
    if let Some((name, namespace)) = parse_fqdn(&host) {
        names.push(format!("{name}.{namespace}.svc"));
        names.push(format!("{name}.{namespace}"));
        if namespace == client_namespace {
            names.push(name.to_owned());
            names.push(format!("{name}{CONSUL_SUFFIX}"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn authorities_are_normalised() {
        for (authority, host, port) in [
            ("order", "order", None),
            ("Order.Default:8080", "order.default", Some(8080)),
            ("order.default.svc.cluster.local.:80", "order.default.svc.cluster.local", Some(80)),
            ("[::1]:80", "::1", Some(80)),
            ("[FE80::1]", "fe80::1", None),
            ("::1", "::1", None),
            ("10.0.0.1:65536", "10.0.0.1", None),
            ("10.0.0.1:", "10.0.0.1", None),
            ("a:+1", "a", None),
            ("[::1", "[::1", None),
            ("", "", None),
        ] {
            assert_eq!((normalise(authority).as_ref(), split_port(authority).1), (host, port), "{authority}");
        }
        assert!(matches!(normalise("order:80"), Cow::Borrowed(_)));
    }

    #[test]
    fn hosts_are_qualified_by_namespace() {
        for (host, expected) in [
            ("order", "order.shop.svc.cluster.local"),
            ("Order", "order.shop.svc.cluster.local"),
            ("order.prod", "order.prod"),
            ("*", "*"),
            ("*.example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("::1", "::1"),
            ("Example.com", "example.com"),
        ] {
            assert_eq!(qualify(host, "shop"), expected);
        }
    }

    #[test]
    fn short_names_depend_on_the_clients_namespace() {
        let host = "order.shop.svc.cluster.local";
        let far = [host, "order.shop.svc", "order.shop"];
        assert_eq!(names_of(host, "other"), far);
        let near = [&far[..], &["order", "order.service.consul"]].concat();
        assert_eq!(names_of(host, "shop"), near);
        assert_eq!(names_of("api.example.com", "shop"), ["api.example.com"]);
    }

    #[test]
    fn wildcards_cover_hosts_with_their_suffix() {
        for (pattern, host, want) in [
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*-foo.example", "a-foo.example", true),
            ("*-foo.example", "a.b-foo.example", true),
            ("*-foo.example", "-foo.example", false),
            ("*-foo.example", "foo.example", false),
            ("*foo.example", "barfoo.example", true),
            ("*foo.example", "a.foo.example", true),
            ("*foo.example", "foo.example", false),
            ("*foo.example", "*.foo.example", true),
            ("*.foo.example", "*foo.example", false),
            ("*", "a", true),
            ("a", "a", true),
            ("a", "b", false),
        ] {
            assert_eq!(covers(pattern, host), want, "{pattern} {host}");
        }
        let best = |host: &str| {
            let all = ["*", "*.example", "*foo.example", "*-foo.example", "a-foo.example"];
            all.into_iter().max_by_key(|pattern| specificity(pattern, host)).unwrap()
        };
        for (host, want) in [
            ("a-foo.example", "a-foo.example"),
            ("b-foo.example", "*-foo.example"),
            ("bfoo.example", "*foo.example"),
            ("b.example", "*.example"),
            ("b", "*"),
            ("", "*"),
        ] {
            assert_eq!(best(host), want, "{host}");
        }
    }

    #[test]
    fn patterns_start_with_the_most_specific() {
        let of = |host: &'static str, partial| patterns(host, partial).collect::<Vec<_>>();
        assert_eq!(of("a.b.c", false), ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(of("*.b.c", false), ["*.b.c", "*.c", "*"]);
        assert_eq!(of("ab.c", true), ["ab.c", "*ab.c", "*b.c", "*.c", "*c", "*"]);
        assert_eq!(of("*b.c", true), ["*b.c", "*.c", "*c", "*"]);
        assert_eq!(of("*", true), ["*", "*"]);
        assert!(is_partial_wildcard("*-a.b") && !is_partial_wildcard("*.a") && !is_partial_wildcard("*"));
    }

    #[test]
    fn canonical_names_are_parsed() {
        for (host, expected) in [
            ("order.shop.svc.cluster.local", Some(("order", "shop"))),
            ("a.b.c.svc.cluster.local", None),
            (".shop.svc.cluster.local", None),
            ("order.svc.cluster.local", None),
            ("order.shop", None),
        ] {
            assert_eq!(parse_fqdn(host), expected, "{host}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = (normalise(&text).len(), split_port(&text), qualify(&text, "a"), names_of(&text, "a"));
        }

        #[test]
        fn a_bare_name_is_qualified_and_parsed_back(name in "[a-z][a-z0-9-]{0,20}", namespace in "[a-z]{1,9}") {
            let host = qualify(&name, &namespace);
            prop_assert_eq!(parse_fqdn(&host), Some((name.as_str(), namespace.as_str())));
        }

        #[test]
        fn patterns_are_exactly_those_that_apply(host in "[a-c.-]{1,8}", pattern in "\\*?[a-c.-]{0,6}") {
            let is_pattern = patterns(&host, true).any(|one| one == pattern);
            prop_assert_eq!(is_pattern, is_within(&host, &pattern), "{} {}", pattern, host);
        }
    }
}
