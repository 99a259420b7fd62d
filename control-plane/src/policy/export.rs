//! `exportTo`: the namespaces whose clients see a document.

use std::collections::BTreeSet;

use super::{fields::Fields, names};

/// Who sees a document. By default everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Export(Option<BTreeSet<String>>);

impl Export {
    /// Whether clients of `client` see a document of `own`.
    pub fn reaches(&self, own: &str, client: &str) -> bool {
        self.0.as_ref().is_none_or(|namespaces| namespaces.contains(client) || self.is_private() && own == client)
    }

    /// Everybody does.
    pub fn is_public(&self) -> bool {
        self.0.is_none()
    }

    /// The document's own namespace is named by a dot.
    pub fn is_private(&self) -> bool {
        self.0.as_ref().is_some_and(|namespaces| namespaces.contains("."))
    }

    /// The namespaces as written; `None`: all.
    pub fn namespaces(&self) -> Option<impl Iterator<Item = &str>> {
        self.0.as_ref().map(|namespaces| namespaces.iter().map(String::as_str))
    }
}

/// Reads it.
pub(crate) fn decode(fields: &Fields<'_>) -> Export {
    let mut namespaces = BTreeSet::new();
    let mut all = false;
    for (name, place) in fields.strings("exportTo") {
        match name.as_str() {
            "*" => all = true,
            // Nobody: a set without a namespace.
            "." | "~" => {}
            name if names::is_label(name) => {}
            name => fields.error_at(place, format!("`{name}` is not a namespace, nor one of `.`, `*` and `~`")),
        }
        if !namespaces.insert(name.clone()) {
            fields.error_at(place, format!("`{name}` is there twice"));
        }
    }
    for alone in ["*", "~"].into_iter().filter(|alone| namespaces.contains(*alone) && namespaces.len() > 1) {
        fields.error("exportTo", format!("`{alone}` stands alone in `exportTo`"));
    }
    Export((!all && !namespaces.is_empty()).then_some(namespaces))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(namespaces: &[&str]) -> Export {
        Export(Some(namespaces.iter().map(|name| name.to_string()).collect()))
    }

    #[test]
    fn who_sees_what() {
        for (export, own, client, sees) in [
            (Export::default(), "a", "b", true),
            (export(&["."]), "a", "a", true),
            (export(&["."]), "a", "b", false),
            (export(&["b", "c"]), "a", "b", true),
            (export(&["b", "c"]), "a", "a", false),
            (export(&[".", "b"]), "a", "a", true),
            (export(&["~"]), "a", "a", false),
        ] {
            assert_eq!(export.reaches(own, client), sees, "{export:?} {own} {client}");
        }
    }
}
