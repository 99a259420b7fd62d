//! Consul's blocking queries: one names the index that it has seen, and is answered when that of what it asks for is
//! another, or when its wait is over.
//!
//! The index is that of what is asked for, not of everything: a change to one service answers nobody who waits for another.

use weft_agent::query::Query;
use weft_agent::refused::Refused;

use crate::state::{Mesh, Topic};
use weft_world::World;

/// Waits as the query says.
///
/// # Errors
/// When the query's index or wait is none.
pub(super) async fn block(
    mesh: &Mesh,
    query: &Query,
    topics: &[Topic],
    index_of: impl Fn(&World) -> u64,
) -> Result<(), Refused> {
    if let Some((seen, wait)) = query.block().map_err(Refused::bad)? {
        mesh.wait_past(topics, seen, wait, index_of).await;
    }
    Ok(())
}
