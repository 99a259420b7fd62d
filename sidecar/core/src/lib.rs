//! The decisions of Weft, without I/O.
