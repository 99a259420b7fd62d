//! The agent's data centre: set by the control plane, with a default until then.

use std::sync::{Arc, PoisonError, RwLock};

/// The name until the control plane has set one.
pub const DEFAULT: &str = "dc1";

/// The name of the data centre; clones share it.
#[derive(Debug, Clone)]
pub struct Datacenter(Arc<RwLock<Arc<str>>>);

impl Default for Datacenter {
    fn default() -> Datacenter {
        Datacenter::new(DEFAULT)
    }
}

impl Datacenter {
    /// A data centre with this name.
    pub fn new(name: &str) -> Datacenter {
        Datacenter(Arc::new(RwLock::new(name.into())))
    }

    /// The current name.
    pub fn name(&self) -> Arc<str> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the name.
    pub fn set(&self, name: &str) {
        if *self.name() != *name {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = name.into();
        }
    }
}
