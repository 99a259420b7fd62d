//! Services and policies that are objects of a Kubernetes cluster. The crate `weft-kubernetes` reads them and judges each
//! alone; here is their last state.

use std::sync::Arc;

use weft_policy::{Document, Problem};

use super::PolicySource;

/// The documents of a cluster's objects.
#[derive(Debug, Default)]
pub struct KubernetesState {
    /// The last valid version of each object.
    pub documents: Vec<Arc<Document>>,
    /// Errors of versions that are not applied, and warnings.
    pub problems: Vec<Problem>,
}

impl PolicySource for KubernetesState {
    fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_> {
        Box::new(self.documents.iter())
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}
