//! YAML as documents: finds the kind of each, reads its metadata, and hands its `spec` to the decoder of the kind.

pub(crate) mod annotations;
pub(crate) mod duration;
pub(crate) mod fields;
pub(crate) mod parse;
pub mod protocol;
pub(crate) mod table;
