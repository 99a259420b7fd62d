//! Wire messages of Weft, generated from the `.proto` files beside this crate.
//!
//! `envoy` is the standard delta discovery protocol, wire-compatible with Envoy's; `etcd` is etcd's; `v1` contains
//! Weft's own resources and services.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]

pub mod codec;

/// The part of Envoy's `envoy.service.discovery.v3` that delta discovery uses.
pub mod envoy {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// The part of etcd's API that a store needs.
pub mod etcd {
    /// Records and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Requests and responses.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub use etcdserverpb::*;
}

/// Resources and services of Weft.
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// Type URL of [`v1::Service`].
pub const SERVICE_TYPE: &str = "type.googleapis.com/weft.v1.Service";
/// Type URL of [`v1::Endpoints`].
pub const ENDPOINTS_TYPE: &str = "type.googleapis.com/weft.v1.Endpoints";
/// Type URL of [`v1::Inbound`].
pub const INBOUND_TYPE: &str = "type.googleapis.com/weft.v1.Inbound";
/// Metadata of a discovery stream: the number of other control planes that its sidecar may try when this one refuses.
pub const OTHER_CONTROL_PLANES: &str = "weft-other-control-planes";
