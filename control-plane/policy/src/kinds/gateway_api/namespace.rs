//! Kubernetes' Namespace: the labels by which listeners of Gateways select namespaces.

use std::collections::BTreeMap;

use crate::decode::fields::{Shape, read};
use crate::kinds::{Content, Descriptor, Manifest, Object};

pub(in crate::kinds) static DESCRIPTOR: Descriptor = Descriptor {
    group: "",
    versions: &["v1"],
    plural: "namespaces",
    short_names: &["ns"],
    spec: SHAPE,
    requires_spec: false,
    identity: None,
    annotations: &[],
    decode: |manifest| Object::Namespace(decode(manifest)),
};

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

/// Fields of `spec`: bookkeeping of Kubernetes.
const SHAPE: Shape = &[read("finalizers")];

impl Content for Namespace {}

fn decode(manifest: &Manifest<'_>) -> Namespace {
    Namespace { labels: manifest.metadata.as_ref().map(|metadata| metadata.labels("labels")).unwrap_or_default() }
}
