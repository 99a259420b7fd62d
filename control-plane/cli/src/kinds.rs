//! Names of objects on a command line: kubectl's words for kinds and its forms of names.

use std::fmt;

use anyhow::{Result, anyhow, ensure};
use weft_proto::v1::ObjectName;

use weft_policy::{Kind, nearest_kind};

/// The kind of a word: its name or plural in any case, with or without its API group, or its short name.
///
/// # Errors
/// If there is none; the error names the nearest kind, or all of them.
pub(super) fn kind(word: &str) -> Result<Kind> {
    let (bare, group) = word.split_once('.').unwrap_or((word, ""));
    let lower = bare.to_ascii_lowercase();
    let named = || Kind::ALL.iter().filter(|kind| is_named(**kind, &lower));
    let found = named().find(|kind| !group.is_empty() && kind.descriptor().group == group).or_else(|| named().next());
    found.copied().ok_or_else(|| anyhow!("there is no kind {word:?}{}", nearest_kind(bare)))
}

/// Whether a word in lower case is a name of a kind, its plural or an abbreviation.
fn is_named(kind: Kind, word: &str) -> bool {
    let descriptor = kind.descriptor();
    let names = [kind.name(), kind.written(), descriptor.plural];
    names.iter().any(|name| name.eq_ignore_ascii_case(word)) || descriptor.short_names.contains(&word)
}

/// One object, or all of some kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    /// None: all kinds.
    pub(super) kinds: Vec<Kind>,
    /// None: the command's option.
    pub(super) namespace: Option<String>,
    /// None: all objects.
    pub(super) name: Option<String>,
}

impl Selector {
    /// Whether it selects an object; `namespace` is the option's, empty: all.
    pub(super) fn means(&self, object: &ObjectName, namespace: &str) -> bool {
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.name() == object.kind))
            && (namespace.is_empty() || namespace == object.namespace)
            && self.name.as_ref().is_none_or(|name| *name == object.name)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
        write!(f, "{}", if kinds.is_empty() { "object".to_owned() } else { kinds.join(", ") })?;
        self.name.iter().try_for_each(|name| write!(f, " {name:?}"))?;
        self.namespace.iter().try_for_each(|namespace| write!(f, " in the namespace {namespace:?}"))
    }
}

/// The selectors of a command line: `KIND[,KIND]... [NAME]...`, or `KIND/NAME` and `KIND/NAMESPACE/NAME` in any number;
/// none: all.
///
/// # Errors
/// If there is no such kind, or the forms are mixed.
pub(super) fn selectors(words: &[String]) -> Result<Vec<Selector>> {
    let Some((first, names)) = words.split_first() else {
        return Ok(vec![Selector { kinds: Vec::new(), namespace: None, name: None }]);
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| path(word)).collect();
    }
    let kinds: Vec<Kind> = match first.as_str() {
        "all" => Vec::new(),
        list => list.split(',').filter(|word| !word.is_empty()).map(kind).collect::<Result<_>>()?,
    };
    if names.is_empty() {
        return Ok(vec![Selector { kinds, namespace: None, name: None }]);
    }
    let of = |name: &String| Selector { kinds: kinds.clone(), namespace: None, name: Some(name.clone()) };
    Ok(names.iter().map(of).collect())
}

fn path(word: &str) -> Result<Selector> {
    let parts: Vec<&str> = word.split('/').collect();
    let form = || anyhow!("{word:?} is not KIND/NAME or KIND/NAMESPACE/NAME; the two forms cannot be mixed");
    let (of, namespace, name) = match parts[..] {
        [of, name] => (of, None, name),
        [of, namespace, name] => (of, Some(namespace), name),
        _ => return Err(form()),
    };
    ensure!(!name.is_empty() && namespace != Some(""), form());
    Ok(Selector { kinds: vec![kind(of)?], namespace: namespace.map(str::to_owned), name: Some(name.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_short_names_plurals_and_groups() {
        for (word, meant) in [
            ("dr", Kind::DestinationRule),
            ("VS", Kind::VirtualService),
            ("gateways", Kind::Gateway),
            ("gateway.networking.istio.io", Kind::Gateway),
            ("gateways.gateway.networking.k8s.io", Kind::KubernetesGateway),
            ("gtw", Kind::KubernetesGateway),
            ("ServiceEntries", Kind::ServiceEntry),
            ("workloadentries.networking.istio.io", Kind::WorkloadEntry),
            ("svc", Kind::Service),
            ("sidecars", Kind::Sidecar),
        ] {
            assert_eq!(kind(word).unwrap(), meant, "{word}");
        }
        for each in Kind::ALL {
            assert_eq!(kind(each.name()).unwrap(), *each);
        }
        assert!(kind("VirtualServise").unwrap_err().to_string().contains("did you mean `VirtualService`?"));
        assert!(kind("pods").unwrap_err().to_string().contains("DestinationRule, VirtualService"));
    }

    #[test]
    fn objects_are_named_as_with_kubectl() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let shown =
            |text: &str| -> Vec<String> { selectors(&words(text)).unwrap().iter().map(ToString::to_string).collect() };
        assert_eq!(shown(""), ["object"]);
        assert_eq!(shown("all"), ["object"]);
        assert_eq!(shown("dr,vs"), ["DestinationRule, VirtualService"]);
        assert_eq!(shown("vs a b"), [r#"VirtualService "a""#, r#"VirtualService "b""#]);
        assert_eq!(
            shown("vs/a dr/shop/b"),
            [r#"VirtualService "a""#, r#"DestinationRule "b" in the namespace "shop""#]
        );
        for wrong in ["pods", "vs/a b", "vs/", "vs//a", "vs/a/b/c", "dr,x"] {
            assert!(selectors(&words(wrong)).is_err(), "{wrong}");
        }
        let object = |namespace: &str| ObjectName {
            kind: "VirtualService".into(),
            namespace: namespace.into(),
            name: "a".into(),
        };
        let [one] = &selectors(&words("vs/a")).unwrap()[..] else { panic!() };
        assert!(one.means(&object("shop"), "") && one.means(&object("shop"), "shop"));
        assert!(!one.means(&object("shop"), "default"));
    }
}
