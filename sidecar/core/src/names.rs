//! Names of services: what an authority header means, and which names mean a service to a client.

use std::borrow::Cow;

/// Suffix of the canonical names of the mesh's own services, after `<name>.<namespace>`.
pub const SERVICE_SUFFIX: &str = ".svc.cluster.local";
/// Suffix by which Consul's users ask for a service.
pub const CONSUL_SUFFIX: &str = ".service.consul";

/// Whether only the mesh can know this name: it is below the mesh's own domain.
pub fn is_of_mesh(name: &str) -> bool {
    name.ends_with(SERVICE_SUFFIX) || name == &SERVICE_SUFFIX[1..]
}

/// An authority as names are compared: lower case, without port, brackets of an IPv6 address and trailing dot.
///
/// Allocates only where a letter has to be lowered.
pub fn normalise(authority: &str) -> Cow<'_, str> {
    let (host, _) = split_port(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Host and port of an authority. Brackets of an IPv6 address are taken off; a bare IPv6 address is a host without port;
/// a port that is not a number in 0..=65535 is dropped.
pub fn split_port(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[')
        && let Some((host, after)) = rest.split_once(']')
    {
        return (host, after.strip_prefix(':').and_then(parse_port));
    }
    match authority.split_once(':') {
        // More than one colon without brackets: an IPv6 address.
        Some((_, rest)) if rest.contains(':') => (authority, None),
        Some((host, port)) => (host, parse_port(port)),
        None => (authority, None),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` would take a leading plus.
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Whether `pattern` (a host, a wildcard such as `*.suffix` and `*-suffix`, or `*`) covers `host`, which may be a wildcard
/// itself. The `*` stands for one character at least, dots included, as in the domains of Envoy's virtual hosts.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

/// Whether what a policy says of `pattern` is said of `host` too, which may be a wildcard itself: it covers it, or is it. As in
/// Istio (`SubsetOf`) `*foo.example` is for `foo.example` as well.
pub fn is_within(host: &str, pattern: &str) -> bool {
    covers(pattern, host) || pattern == host || pattern.strip_prefix('*') == Some(host)
}

/// How specific `pattern` is for `host`: the more the better, the host itself before the longest suffix and that before `*`,
/// which is for an empty name too. `None`: it does not cover the host.
pub fn specificity(pattern: &str, host: &str) -> Option<usize> {
    match pattern {
        "*" => Some(0),
        _ if pattern == host => Some(usize::MAX),
        _ => covers(pattern, host).then(|| pattern.len() - 1),
    }
}

/// Whether the `*` of a host stands for a part of a label only, as in `*-suffix.example`.
pub fn is_partial_wildcard(host: &str) -> bool {
    host.strip_prefix('*').is_some_and(|rest| !rest.is_empty() && !rest.starts_with('.'))
}

/// The hosts that a policy for `host` may be written for (see [`is_within`]), the most specific first: `host`, the wildcards of its
/// suffixes, the longest first, and `*`. With `partial` those that stand for a part of a label are among them, which are many:
/// one for each character.
pub fn patterns(host: &str, partial: bool) -> impl Iterator<Item = String> + '_ {
    let suffixes = host.char_indices().skip(usize::from(host.starts_with('*')));
    let suffixes = suffixes.filter(move |(at, char)| partial && *char != '*' || *char == '.' && *at > 0);
    let wildcards = suffixes.map(|(at, _)| format!("*{}", &host[at..])).filter(move |pattern| pattern != host);
    std::iter::once(host.to_owned()).chain(wildcards).chain(std::iter::once("*".to_owned()))
}

/// Canonical name of a host as a policy in `namespace` writes it: a name without dot is a service of that namespace;
/// anything with a dot, an IP address or `*` stays. Lower case.
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

/// The names that mean a host to a client in `client_namespace`, the canonical one first. A host outside
/// `svc.cluster.local` has only its own name.
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
    fn authorities() {
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
    fn qualified() {
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
    fn names_for_clients() {
        let host = "order.shop.svc.cluster.local";
        let far = [host, "order.shop.svc", "order.shop"];
        assert_eq!(names_of(host, "other"), far);
        let near = [&far[..], &["order", "order.service.consul"]].concat();
        assert_eq!(names_of(host, "shop"), near);
        assert_eq!(names_of("api.example.com", "shop"), ["api.example.com"]);
    }

    #[test]
    fn wildcards_cover_what_ends_as_they_do() {
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
    fn patterns_begin_with_the_most_specific() {
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
        fn patterns_are_those_that_cover(host in "[a-c.-]{1,8}", pattern in "\\*?[a-c.-]{0,6}") {
            let found = patterns(&host, true).any(|one| one == pattern);
            prop_assert_eq!(found, is_within(&host, &pattern), "{} {}", pattern, host);
        }
    }
}
