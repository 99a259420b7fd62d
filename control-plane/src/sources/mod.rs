//! Sources of policies: the files of a [`folder`], the objects of a cluster ([`kubernetes`]), and the [`api`].
//!
//! Precedence, the one rule between sources: if several have an object, the policy folder's version applies, else that of
//! Kubernetes, else the API's; a version that its source has withdrawn applies only while no source has the object ([`effective`]). A
//! further source implements [`PolicySource`] and takes its place in the order in which `State::apply_policies` lists
//! them.
//!
//! Each source reports changes in its own way: the folder by a channel ([`folder::PolicyFolder::start`]), the API with
//! the store's watch, so that a writer has its answer once its own change applies.

pub mod api;
pub mod folder;
mod kubernetes;

use std::collections::HashSet;
use std::sync::Arc;

use weft_policy::{Document, Kind, Problem};

/// The content of a source at one time.
pub trait PolicySource {
    /// Its documents.
    fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_>;

    /// Documents that it no longer has, and that still apply for a while.
    fn withdrawn(&self) -> &[Arc<Document>] {
        &[]
    }

    /// Errors of versions that are not applied, and warnings about those that are.
    fn problems(&self) -> &[Problem] {
        &[]
    }
}

/// The documents that apply, of sources in the order of their precedence.
pub fn effective(sources: &[&dyn PolicySource]) -> Vec<Arc<Document>> {
    let present = sources.iter().flat_map(|source| source.list());
    let withdrawn = sources.iter().flat_map(|source| source.withdrawn());
    let mut seen: HashSet<(Kind, &str, &str)> = HashSet::new();
    let mut documents = Vec::new();
    for document in present.chain(withdrawn) {
        if seen.insert((document.kind(), &document.namespace, &document.name)) {
            documents.push(document.clone());
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::documents;

    struct Fixed(Vec<Arc<Document>>, Vec<Arc<Document>>);

    impl PolicySource for Fixed {
        fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_> {
            Box::new(self.0.iter())
        }

        fn withdrawn(&self) -> &[Arc<Document>] {
            &self.1
        }
    }

    fn rules(names: &[&str], host: &str) -> Vec<Arc<Document>> {
        let rule = |name: &&str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\n\
                 spec: {{host: {host}}}\n"
            )
        };
        documents(&names.iter().map(rule).collect::<Vec<_>>().join("---\n"))
    }

    #[test]
    fn the_first_source_wins_and_withdrawn_versions_are_last() {
        let folder = Fixed(rules(&["a"], "folder"), rules(&["b", "c"], "withdrawn"));
        let api = Fixed(rules(&["a", "b"], "api"), Vec::new());
        let found = effective(&[&folder, &api]);
        let found: Vec<(&str, &str)> = found.iter().map(|d| (d.name.as_str(), d.object.hosts()[0].as_str())).collect();
        assert_eq!(found, [("a", "folder"), ("b", "api"), ("c", "withdrawn")]);
    }
}
