//! Control plane of Weft.
