//! ServiceExport: the service of this name is offered to other data centres.

use super::{Content, Descriptor, Object};
use crate::decode::fields::{Shape, not_yet};

/// A ServiceExport: its name and namespace are all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceExport;

pub(super) static DESCRIPTOR: Descriptor = Descriptor {
    group: "multicluster.x-k8s.io",
    versions: &["v1beta1", "v1alpha1"],
    plural: "serviceexports",
    short_names: &["svcex"],
    spec: SHAPE,
    requires_spec: false,
    identity: None,
    annotations: &[],
    decode: |_| Object::ServiceExport(ServiceExport),
};

/// Fields of `spec`.
const SHAPE: Shape = &[not_yet("exportedLabels"), not_yet("exportedAnnotations")];

impl Content for ServiceExport {}
