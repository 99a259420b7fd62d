//! The decisions of Weft, without I/O.
pub mod pool;
