//! Services and policies that are objects of a Kubernetes cluster. The crate `weft-kubernetes` reads them and judges each
//! alone.

use std::sync::Arc;

use weft_kubernetes::AllPolicies;
use weft_policy::{Document, Problem};

use super::PolicySource;

impl PolicySource for AllPolicies {
    fn list(&self) -> Box<dyn Iterator<Item = &Arc<Document>> + '_> {
        Box::new(self.documents.iter())
    }

    fn problems(&self) -> &[Problem] {
        &self.problems
    }
}
