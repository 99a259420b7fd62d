//! `agent/connect/authorize`, and reads of intentions: whether one service may call another.
//!
//! The mesh has no authorization policies yet: every caller with an identity of a trusted domain may call. So there are
//! no intentions, and every request is allowed, as in Consul if the default is to allow; a caller that is not a member
//! of the mesh is denied.

use serde_json::{Value, json};
use weft_core::identity::SpiffeId;
use weft_registry_api::decode::Fields;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use super::Consul;

/// `POST agent/connect/authorize`
pub(super) fn authorize(consul: &Consul, query: &Query, body: &[u8]) -> Result<Reply, ApiError> {
    let mut fields = Fields::of_body("the request", body).map_err(ApiError::bad_request)?;
    let mut text = |key: &str| fields.text(key).map_err(ApiError::bad_request);
    let (target, uri) = (text("target")?, text("clientcerturi")?);
    if target.is_empty() {
        return Err(ApiError::bad_request("Target service must be specified"));
    }
    let id: SpiffeId =
        uri.parse().map_err(|e| ApiError::bad_request(format!("ClientCertURI not a valid Connect identifier: {e}")))?;
    let own = consul.mesh.read(|world| world.trust_domain().to_owned());
    let (authorized, reason) = if id.trust_domain() == own {
        (true, "Allowed by default: the mesh has no authorization policy that denies it".to_owned())
    } else {
        (false, format!("Identity from an external trust domain: {}, not {own}", id.trust_domain()))
    };
    Ok(reply::json(&json!({ "Authorized": authorized, "Reason": reason }), query))
}

/// `connect/intentions/match`: an empty list for each requested name.
pub(super) fn matching(query: &Query) -> Result<Reply, ApiError> {
    match query.value("by") {
        Some("source" | "destination") => {}
        _ => {
            return Err(ApiError::bad_request(
                "required query parameter 'by' must be one of 'source' or 'destination'",
            ));
        }
    }
    let names: Vec<&str> = query.values("name").collect();
    if names.is_empty() {
        return Err(ApiError::bad_request("required query parameter 'name' not set"));
    }
    let none = names.into_iter().map(|name| (name.to_owned(), Value::Array(Vec::new())));
    Ok(reply::indexed(&Value::Object(none.collect()), 1, query))
}

/// `connect/intentions/check`
pub(super) fn check(query: &Query) -> Result<Reply, ApiError> {
    for key in ["source", "destination"] {
        if query.value(key).is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!("required query parameter '{key}' not set")));
        }
    }
    Ok(reply::json(&json!({ "Allowed": true }), query))
}
