//! Where this is: an agent is told by its control plane, and answers before it has been.

use std::sync::{Arc, PoisonError, RwLock};

/// The data centre of whoever has not been told.
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
    /// One of this name.
    pub fn new(name: &str) -> Datacenter {
        Datacenter(Arc::new(RwLock::new(name.into())))
    }

    /// Its name.
    pub fn name(&self) -> Arc<str> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is this one.
    pub fn set(&self, name: &str) {
        if *self.name() != *name {
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = name.into();
        }
    }
}
