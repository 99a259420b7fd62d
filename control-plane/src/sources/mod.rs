//! Where policies come from.

pub mod folder;
