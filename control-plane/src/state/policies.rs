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
use weft_policy::{Document, Problem};
use weft_world::Changed;

impl Mesh {
    /// Takes the folder's documents and the problems of those that were refused.
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

    /// Problems of the policies as they are now: what was refused of the folder's files, and what is odd about those that
    /// are applied, given who is registered.
    pub fn policy_problems(&self) -> Vec<Problem> {
        let state = self.lock();
        let refused = state.folder.problems().iter().cloned();
        refused.chain(weft_world::translate::warnings(&state.world, true)).collect()
    }

    /// The folder's documents and the API's.
    pub fn policies(&self) -> (Vec<Arc<Document>>, Vec<Arc<Document>>) {
        let state = self.lock();
        (state.folder.documents.clone(), state.api.list().cloned().collect())
    }

    /// Documents that no file of the folder has any more, and that still apply.
    pub fn withdrawn_policies(&self) -> Vec<Arc<Document>> {
        self.lock().folder.withdrawn.clone()
    }

    /// Gives documents of the API their age: it counts from when an object was first applied, unless it says so itself.
    pub fn date(&self, documents: &mut [Document]) {
        let state = self.lock();
        for document in documents.iter_mut().filter(|document| document.created == 0) {
            document.created = state.api.created(document).unwrap_or_else(unix_now);
        }
    }

    /// Removes the API's documents in `delete`, and replaces those named in `put`.
    ///
    /// # Errors
    /// When the store refuses; what was changed by then, counted in the order of the removed and then the replaced ones.
    pub async fn change_policies(&self, put: Vec<Document>, delete: &[Document]) -> Result<(), Interrupted> {
        self.write_batch(self.policy_ops(put, delete)).await
    }

    /// The operations of that.
    pub(super) fn policy_ops(&self, mut put: Vec<Document>, delete: &[Document]) -> Vec<Op> {
        self.date(&mut put);
        let key = |d: &Document| d.reference();
        let mut ops: Vec<Op> = delete.iter().map(|d| Op::delete(Table::Policies, key(d))).collect();
        ops.extend(put.iter().map(|d| Op::put(Table::Policies, key(d), record(d).encode_to_vec())));
        ops
    }
}

impl State {
    /// Gives the world the policies that apply, of all sources.
    pub(super) fn apply_policies(&mut self) -> Changed {
        let sources: [&dyn PolicySource; 2] = [&*self.folder, &self.api];
        self.world.set_policies(effective(&sources), unix_now())
    }
}

/// What a policy folder cannot see.
pub struct BesideFolder(pub Weak<Mesh>);

impl Surroundings for BesideFolder {
    fn documents(&self) -> Vec<Arc<Document>> {
        self.0.upgrade().map(|mesh| mesh.policies().1).unwrap_or_default()
    }

    fn offers(&self, host: &str) -> bool {
        self.0.upgrade().is_some_and(|mesh| mesh.read(|world| world.offers(host)))
    }
}
