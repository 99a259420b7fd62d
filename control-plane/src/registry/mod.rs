//! Registration of instances: by [`sidecar`]s over their stream, and by [`external`] programs through the API.

pub mod external;
pub mod sidecar;

use weft_proto::v1;

use crate::identity::bounds;

/// Whether an instance has the form that the registry accepts, from every registrant.
///
/// # Errors
/// If it has not; the error gives the reason.
pub(crate) fn fits(instance: &v1::Instance) -> Result<(), String> {
    if instance.service_id.is_empty() || instance.service_id.len() > bounds::NAME {
        return Err("a service id of 1 to 253 characters is required".into());
    }
    // Without a port (0) it is found by name and has no endpoint, as in Consul.
    if instance.port > 65535 {
        return Err(format!("Port {} is out of range: 1 to 65535, or 0 for a service without a port", instance.port));
    }
    Ok(())
}
