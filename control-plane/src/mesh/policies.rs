//! Policies: the folder's and the API's, as one set.

use std::sync::Arc;

use prost::Message;
use weft_proto::v1::StoredPolicy;

use super::{Mesh, State, unix_now};
use crate::policy::folder::FolderState;
use crate::policy::{Document, Problem};
use crate::store::{self, MAX_OPS, Op, Table};
use crate::world::Changed;

impl Mesh {
    /// Takes the folder's documents and the problems of those that were refused.
    pub fn set_folder(&self, folder: Arc<FolderState>) {
        for problem in &folder.problems {
            tracing::warn!("{problem}");
        }
        let mut state = self.lock();
        state.folder = folder;
        let changed = state.apply_policies();
        self.publish(&mut state, changed);
    }

    /// Problems of the policies as they are now: what was refused of the folder's files, and what is odd about those that
    /// are applied, given who is registered.
    pub fn policy_problems(&self) -> Vec<Problem> {
        let state = self.lock();
        let refused = state.folder.problems.iter().cloned();
        refused.chain(crate::translate::warnings(&state.world, true)).collect()
    }

    /// The folder's documents and the API's.
    pub fn policies(&self) -> (Vec<Arc<Document>>, Vec<Arc<Document>>) {
        let state = self.lock();
        (state.folder.documents.clone(), state.api_policies.values().flatten().cloned().collect())
    }

    /// Gives documents of the API their age: it counts from when an object was first applied, unless it says so itself.
    pub fn date(&self, documents: &mut [Document]) {
        let state = self.lock();
        for document in documents.iter_mut().filter(|document| document.created == 0) {
            let old = state.api_policies.get(&document.reference()).and_then(|held| held.first());
            document.created = old.map_or_else(unix_now, |old| old.created);
        }
    }

    /// Replaces the API's documents named in `put`, and removes those in `delete`; in batches of a hundred.
    ///
    /// # Errors
    /// When the store refuses; of more than a hundred some may have been changed by then.
    pub async fn change_policies(&self, mut put: Vec<Document>, delete: &[Document]) -> Result<(), store::Error> {
        self.date(&mut put);
        let key = |d: &Document| d.reference();
        let mut ops: Vec<Op> = delete.iter().map(|d| Op::delete(Table::Policies, key(d))).collect();
        ops.extend(put.iter().map(|d| Op::put(Table::Policies, key(d), stored(d).encode_to_vec())));
        for ops in ops.chunks(MAX_OPS) {
            self.write(Vec::new(), ops.to_vec()).await?;
        }
        Ok(())
    }
}

impl State {
    /// Gives the world the policies of both kinds.
    pub(super) fn apply_policies(&mut self) -> Changed {
        // An object given by both: the folder owns it.
        let mut all: Vec<Arc<Document>> = self.folder.documents.clone();
        let owned = |a: &&Arc<Document>| !all.iter().any(|f| f.key() == a.key());
        let api: Vec<_> = self.api_policies.values().flatten().filter(owned).cloned().collect();
        all.extend(api);
        self.world.set_policies(all, unix_now())
    }
}

fn stored(document: &Document) -> StoredPolicy {
    StoredPolicy { yaml: document.yaml.clone(), created: document.created }
}
