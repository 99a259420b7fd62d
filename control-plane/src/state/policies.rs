//! The policies of all sources as one set.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use prost::Message;

use super::{Mesh, State};
use crate::clock::unix_now;
use crate::sources::api::record;
use crate::sources::folder::{FolderState, Surroundings};
use crate::sources::{PolicySource, effective};
use crate::store::batch::Interrupted;
use crate::store::{Op, Table};
use weft_kubernetes::Delta;
use weft_policy::{Document, Problem};
use weft_world::Changed;

/// The documents of each source, in the order of precedence.
pub struct Policies {
    /// Those of the policy folder.
    pub folder: Vec<Arc<Document>>,
    /// Those of objects of the cluster.
    pub kubernetes: Vec<Arc<Document>>,
    /// Those of the API.
    pub api: Vec<Arc<Document>>,
}

impl Policies {
    /// Those of all sources.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.folder.iter().chain(&self.kubernetes).chain(&self.api)
    }
}

impl Mesh {
    /// Sets the folder's documents and the problems of the refused ones.
    pub fn set_folder(&self, folder: Arc<FolderState>) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.folder, folder.clone());
        let known: HashSet<&Problem> = before.problems.iter().collect();
        for problem in folder.problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::warn!("{problem}");
        }
        let changed = state.apply_policies();
        self.publish(&mut state, changed);
    }

    /// The current problems of policies: errors of the folder's refused versions, and warnings about the applied ones,
    /// given the registrations.
    pub fn policy_problems(&self) -> Vec<Problem> {
        let state = self.lock();
        let refused = state.folder.problems().iter().chain(state.kubernetes.problems()).cloned();
        refused.chain(weft_world::translate::warnings(&state.world, true)).collect()
    }

    /// The documents of each source.
    pub fn policies(&self) -> Policies {
        let state = self.lock();
        Policies {
            folder: state.folder.documents.clone(),
            kubernetes: state.kubernetes.documents.clone(),
            api: state.api.list().cloned().collect(),
        }
    }

    /// Applies a change of the cluster. Instances come before the documents that lead to them.
    pub fn set_kubernetes(&self, delta: Delta) {
        let mut state = self.lock();
        let now = unix_now();
        let mut changed = Changed::default();
        if !(delta.upserts.is_empty() && delta.removed.is_empty()) {
            state.world.at_next_index();
        }
        for instance in delta.upserts {
            changed.merge(&state.world.upsert(instance, now));
        }
        for ((namespace, name), pod) in delta.pods {
            changed.merge(&state.world.set_pod(&namespace, &name, pod));
        }
        for key in &delta.removed {
            changed.merge(&state.world.remove(key, now));
        }
        // A rollout changes endpoints alone.
        if let Some(policies) = delta.policies {
            let known: HashSet<&Problem> = state.kubernetes.problems.iter().collect();
            for problem in policies.problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::warn!("{problem}");
            }
            state.kubernetes = policies;
            changed.merge(&state.apply_policies());
        }
        self.publish(&mut state, changed);
    }

    /// Documents that no file of the folder has any more, and that still apply.
    pub fn withdrawn_policies(&self) -> Vec<Arc<Document>> {
        self.lock().folder.withdrawn.clone()
    }

    /// Sets the age of documents of the API: it counts from the first application of an object, unless the document has
    /// one.
    pub fn date(&self, documents: &mut [Document]) {
        let state = self.lock();
        for document in documents.iter_mut().filter(|document| document.created == 0) {
            document.created = state.api.created(document).unwrap_or_else(unix_now);
        }
    }

    /// Removes the API's documents in `delete`, and replaces those named in `put`.
    ///
    /// # Errors
    /// If the store refuses, with the number of changes until then: the removals come first, then the replacements.
    pub async fn change_policies(&self, put: Vec<Document>, delete: &[Document]) -> Result<(), Interrupted> {
        self.write_batch(self.policy_ops(put, delete)).await
    }

    /// The operations of such a change.
    pub(super) fn policy_ops(&self, mut put: Vec<Document>, delete: &[Document]) -> Vec<Op> {
        self.date(&mut put);
        let key = |d: &Document| d.reference();
        let mut ops: Vec<Op> = delete.iter().map(|d| Op::delete(Table::Policies, key(d))).collect();
        ops.extend(put.iter().map(|d| Op::put(Table::Policies, key(d), record(d).encode_to_vec())));
        ops
    }
}

impl State {
    /// Sets the policies that apply, of all sources, in the world.
    pub(super) fn apply_policies(&mut self) -> Changed {
        let sources: [&dyn PolicySource; 3] = [&*self.folder, &self.kubernetes, &self.api];
        self.world.set_policies(effective(&sources), unix_now())
    }
}

/// The mesh besides the policy folder.
pub struct BesideFolder(pub Weak<Mesh>);

impl Surroundings for BesideFolder {
    fn documents(&self) -> Vec<Arc<Document>> {
        let Some(mesh) = self.0.upgrade() else { return Vec::new() };
        let Policies { kubernetes, api, .. } = mesh.policies();
        [kubernetes, api].concat()
    }

    fn offers(&self, host: &str) -> bool {
        self.0.upgrade().is_some_and(|mesh| mesh.read(|world| world.offers(host)))
    }
}
