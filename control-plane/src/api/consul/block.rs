//! Consul's blocking queries: a query names the last seen index, and is answered when the index of its result differs
//! or its wait is over.
//!
//! The index is that of the result, not of everything: a change to one service wakes no query for another.

use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;

use crate::state::{Mesh, Topic};
use weft_world::World;

/// Waits according to the query.
///
/// # Errors
/// If the query's index or wait is invalid.
pub(super) async fn block(
    mesh: &Mesh,
    query: &Query,
    topics: &[Topic],
    index_of: impl Fn(&World) -> u64,
) -> Result<(), ApiError> {
    if let Some((seen, wait)) = query.block().map_err(ApiError::bad_request)? {
        mesh.wait_past(topics, seen, wait, index_of).await;
    }
    Ok(())
}
