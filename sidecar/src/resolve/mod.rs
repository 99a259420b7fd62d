//! Name resolution of the proxy itself: name servers, and the names of endpoints.

pub mod forward;
pub mod framing;
pub mod lookup;
pub mod resolv;
