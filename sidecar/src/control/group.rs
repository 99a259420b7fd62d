//! Joining by a WorkloadGroup (`--workload-group`): this pod is a workload entry for as long as it is registered, and its
//! health is the result of the group's probe.
//!
//! The control plane reads the group. The workload's status and the probe come with the inbound policy, so that a group that is
//! made or changed later needs no query.

mod probe;

use std::sync::Arc;

use tokio::sync::watch;
use weft_agent::checks::Sockets;
use weft_agent::entry::Task;
use weft_core::inbound::Inbound;
use weft_proto::v1::JoinedGroup;
use weft_registry_api::registration::{GROUP_ID, group_member};

use crate::control::agent::Delivery;
use crate::control::directory::Directory;
use crate::control::registration::Registrations;

/// Asks to join, unless that has been done. It is announced once there is a control plane. Probes may run programs where
/// `scripts` are allowed.
pub async fn join(name: &str, scripts: bool, registrations: &Arc<Registrations>, directory: &Directory) {
    if registrations.instances().iter().any(|instance| instance.service_id == GROUP_ID) {
        return;
    }
    if let Err(e) = registrations.register(group_member(name)).await {
        tracing::error!(workload_group = name, "registration refused: {e}");
        return;
    }
    // Not sooner: results of a probe refer to a registration.
    let sockets: Arc<dyn Sockets> = Arc::new(Delivery { scripts });
    tokio::spawn(keep(name.to_owned(), registrations.clone(), sockets, directory.inbound()));
}

/// Reports changes of the workload's status and runs the group's probe, for ever.
async fn keep(
    name: String,
    registrations: Arc<Registrations>,
    sockets: Arc<dyn Sockets>,
    mut inbound: watch::Receiver<Option<Arc<Inbound>>>,
) {
    let mut known = JoinedGroup::default();
    let mut probing: Option<Task> = None;
    loop {
        let group = inbound.borrow_and_update().as_ref().and_then(|inbound| inbound.group.clone());
        // Without a status the control plane has not seen this workload since it started, and the last one stays.
        if let Some(group) = group.filter(|group| group.name == name && *group != known) {
            say(&known, &group);
            if group.probe != known.probe {
                // The old one ends before the new one reports.
                drop(probing.take());
                match &group.probe {
                    Some(wanted) => {
                        let run = probe::run(name.clone(), wanted.clone(), registrations.clone(), sockets.clone());
                        probing = Some(Task(tokio::spawn(run).abort_handle()));
                    }
                    None => probe::forget(&registrations).await,
                }
            }
            known = group;
        }
        if inbound.changed().await.is_err() {
            return;
        }
    }
}

fn say(known: &JoinedGroup, group: &JoinedGroup) {
    let workload_group = &group.name;
    if !group.refused.is_empty() {
        tracing::warn!(workload_group, "not joined, and waiting for the group to change: {}", group.refused);
    } else if known.name.is_empty() || !known.refused.is_empty() {
        tracing::info!(workload_group, "joined");
    }
}
