//! Writes virtual IPs to the store.

use std::sync::{Arc, Weak};

use prost::Message;
use tokio::sync::Notify;
use weft_core::backoff::jittered;
use weft_proto::v1::StoredVirtualIp;

use super::{Mesh, RETRY};
use crate::store::{self, Condition, MAX_OPS, Op, Table};
use weft_world::Keep;

/// Writes changes, for as long as the mesh is in use.
pub(super) async fn keep(mesh: Weak<Mesh>, changed: Arc<Notify>) {
    loop {
        // Periodically, because the mesh may not be in use any more.
        let _ = tokio::time::timeout(10 * RETRY, changed.notified()).await;
        {
            let Some(mesh) = mesh.upgrade() else { return };
            let keep = mesh.lock().world.take_changed_virtual_ips();
            let Err((e, left)) = mesh.keep_virtual_ips(keep).await else { continue };
            tracing::error!("virtual IPs could not be kept and are tried again: {e}");
            mesh.lock().world.put_back_virtual_ips(left);
        }
        tokio::time::sleep(jittered(2 * RETRY, rand::random())).await;
        changed.notify_one();
    }
}

impl Mesh {
    /// Writes changes; on failure returns those that are not written.
    async fn keep_virtual_ips(&self, mut changed: Vec<Keep>) -> Result<(), (store::Error, Vec<Keep>)> {
        // Many at a time, each with its condition; if another control plane was faster, one by one: its choice arrives
        // by the watch.
        while !changed.is_empty() {
            let batch: Vec<Keep> = changed.drain(..changed.len().min(MAX_OPS)).collect();
            let result = match self.try_keep(&batch).await {
                Ok(false) => self.keep_each(&batch).await,
                other => other.map(drop),
            };
            if let Err(e) = result {
                return Err((e, batch.into_iter().chain(changed).collect()));
            }
        }
        Ok(())
    }

    async fn keep_each(&self, batch: &[Keep]) -> Result<(), store::Error> {
        for one in batch {
            self.try_keep(std::slice::from_ref(one)).await?;
        }
        Ok(())
    }

    async fn try_keep(&self, batch: &[Keep]) -> Result<bool, store::Error> {
        let unchanged = |k: &Keep| Condition::unchanged(Table::VirtualIps, k.address.to_string(), k.modified);
        let op = |k: &Keep| match &k.holder {
            Some((host, released)) => {
                let stored = StoredVirtualIp { host: host.clone(), released: released.unwrap_or(0) };
                Op::put(Table::VirtualIps, k.address.to_string(), stored.encode_to_vec())
            }
            None => Op::delete(Table::VirtualIps, k.address.to_string()),
        };
        self.write(batch.iter().map(unchanged).collect(), batch.iter().map(op).collect()).await
    }
}
