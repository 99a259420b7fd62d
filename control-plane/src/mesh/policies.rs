//! Policies: the folder's and the API's, as one set.

use std::sync::Arc;

use anyhow::Result;
use prost::Message;
use weft_proto::v1::StoredPolicy;

use super::{Mesh, unix_now};
use crate::policy::folder::FolderState;
use crate::policy::{Document, Problem};
use crate::store::{Op, Table};

impl Mesh {
    /// Takes the folder's documents and the problems of those that were refused.
    pub async fn set_folder(&self, folder: Arc<FolderState>) {
        let _writer = self.writer.lock().await;
        for problem in &folder.problems {
            tracing::warn!("{problem}");
        }
        self.lock().folder = folder;
        self.apply_policies().await;
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
        (state.folder.documents.clone(), state.api_policies.clone())
    }

    /// Replaces the API's documents named in `put`, and removes those in `delete`.
    ///
    /// # Errors
    /// When the store refuses; nothing changed then.
    pub async fn change_policies(&self, mut put: Vec<Document>, delete: &[Document]) -> Result<()> {
        let _writer = self.writer.lock().await;
        {
            // Age counts from when an object was first applied, unless it says so itself.
            let state = self.lock();
            for document in put.iter_mut().filter(|document| document.created == 0) {
                let old = state.api_policies.iter().find(|old| old.key() == document.key());
                document.created = old.map_or_else(unix_now, |old| old.created);
            }
        }
        let key = |d: &Document| d.reference();
        let mut ops: Vec<Op> = delete.iter().map(|d| Op::Delete(Table::Policies, key(d))).collect();
        ops.extend(put.iter().map(|d| Op::Put(Table::Policies, key(d), stored(d).encode_to_vec())));
        self.store.commit(ops).await?;
        {
            let mut state = self.lock();
            state.api_policies.retain(|old| !put.iter().chain(delete).any(|new| new.key() == old.key()));
            state.api_policies.extend(put.into_iter().map(Arc::new));
        }
        self.apply_policies().await;
        Ok(())
    }

    async fn apply_policies(&self) {
        {
            let mut state = self.lock();
            // An object given by both: the folder owns it.
            let mut all: Vec<Arc<Document>> = state.folder.documents.clone();
            let api = state.api_policies.iter().filter(|a| !all.iter().any(|f| f.key() == a.key())).cloned();
            let api: Vec<_> = api.collect();
            all.extend(api);
            let changed = state.world.set_policies(all, unix_now());
            self.publish(&mut state, changed);
        }
        self.keep_virtual_ips().await;
    }
}

fn stored(document: &Document) -> StoredPolicy {
    StoredPolicy { yaml: document.yaml.clone(), created: document.created }
}
