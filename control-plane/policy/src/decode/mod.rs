//! Fields of a YAML tree, and the values in them that several kinds have.

pub(crate) mod annotations;
pub(crate) mod duration;
pub(crate) mod fields;
pub mod protocol;
