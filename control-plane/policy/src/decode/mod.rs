//! Fields of a YAML tree, and the forms of values that several kinds use.

pub(crate) mod annotations;
pub(crate) mod connection_pool;
pub(crate) mod duration;
pub(crate) mod fields;
pub mod protocol;
