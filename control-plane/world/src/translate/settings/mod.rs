//! The settings that documents give to a client: DestinationRules, PeerAuthentications, defaults of the mesh, and the
//! routes of an audience.

pub(in crate::translate) mod audience;
pub(in crate::translate) mod defaults;
pub(in crate::translate) mod mtls;
pub(in crate::translate) mod rules;
