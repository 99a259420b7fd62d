//! PeerAuthentication: a port's mode takes precedence over the workload's, that over the namespace's, and that over the
//! mesh's.

use std::collections::BTreeMap;

use weft_proto::v1::MtlsMode;

use crate::world::{World, has_all};
use weft_policy::{Document, PeerAuthentication, ROOT_NAMESPACES, is_root};

/// The modes of a workload.
#[derive(Debug, Default)]
pub(crate) struct Modes {
    /// On ports without a mode of their own.
    pub(in crate::translate) mode: MtlsMode,
    /// By port of the workload.
    pub(crate) ports: BTreeMap<u32, MtlsMode>,
    /// Document that decided `mode`, or else `ports`; empty: the default.
    pub(crate) policy: String,
}

/// The mode of a workload on a port, in words: `STRICT (PeerAuthentication/<namespace>/<name>)`.
pub(crate) fn accepted(world: &World, namespace: &str, labels: &BTreeMap<String, String>, port: u32) -> String {
    let modes = Modes::of(world, namespace, labels);
    let mode = match modes.at(port) {
        MtlsMode::Strict => "STRICT",
        MtlsMode::MtlsDisable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
    };
    if modes.policy.is_empty() { mode.to_owned() } else { format!("{mode} ({})", modes.policy) }
}

impl Modes {
    /// The oldest policy of each level applies; one without a mode leaves the decision to the level above.
    pub(crate) fn of(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let oldest =
            |namespace, wanted: &dyn Fn(&PeerAuthentication) -> bool| -> Option<(&Document, &PeerAuthentication)> {
                world.policies().authentications(namespace).find(|(_, policy)| wanted(policy))
            };
        let without_selector = |policy: &PeerAuthentication| policy.selector.is_empty();
        let this = |policy: &PeerAuthentication| !without_selector(policy) && has_all(labels, &policy.selector);
        // The policy of the root namespace that takes precedence comes last.
        let mut levels: Vec<_> = ROOT_NAMESPACES.iter().rev().map(|root| oldest(root, &without_selector)).collect();
        if !is_root(namespace) {
            levels.push(oldest(namespace, &without_selector));
            // A selector in the root namespace has no meaning.
            levels.push(oldest(namespace, &this));
        }
        let mut modes = Self::default();
        for (document, policy) in levels.into_iter().flatten() {
            if let Some(mode) = policy.mode {
                modes.mode = mode;
                modes.policy = document.reference();
            }
            modes.ports = policy.ports.iter().map(|(port, mode)| (*port, mode.unwrap_or(modes.mode))).collect();
            if modes.policy.is_empty() && !modes.ports.is_empty() {
                modes.policy = document.reference();
            }
        }
        modes
    }

    /// The mode on a port.
    pub(crate) fn at(&self, port: u32) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}
