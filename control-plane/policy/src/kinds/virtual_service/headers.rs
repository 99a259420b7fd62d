//! `headers`: changes to the headers of requests and responses.

use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, object, read};
use crate::names;

const CHANGE: Shape = &[read("set"), read("add"), read("remove")];
/// Its fields.
pub(super) const SHAPE: Shape = &[object("request", CHANGE), object("response", CHANGE)];

/// Reads it.
pub(super) fn decode(fields: &Fields<'_>) -> v1::HeaderOperations {
    let change = |name| fields.object(name).map(|fields| header_change(&fields, name == "request"));
    v1::HeaderOperations { request: change("request"), response: change("response") }
}

/// Whether a header's name stands for the authority.
fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// `of_request`: a request's authority may be set, with the effect of `rewrite.authority`.
fn header_change(fields: &Fields<'_>, of_request: bool) -> v1::HeaderChange {
    let check = |name: &str, place, sets: bool| {
        if is_authority(name) && !(sets && of_request) {
            fields
                .error_at(place, format!("`{name}` can be set in requests, not removed and not changed in responses"));
        } else if name.starts_with(':') && !is_authority(name) {
            fields.error_at(place, format!("`{name}` cannot be changed; `rewrite` changes path and authority"));
        } else if !is_authority(name) && !names::is_header(name) {
            fields.error_at(place, format!("`{name}` is not a header name"));
        }
    };
    let values = |name| {
        for (key, _) in fields.map(name) {
            check(&key.name, key.place, true);
        }
        let values = fields.string_map(name).into_iter();
        values.map(|(name, value)| v1::HeaderValue { name, value }).collect()
    };
    let remove = fields.strings("remove").into_iter().map(|(name, place)| {
        check(&name, place, false);
        name
    });
    v1::HeaderChange { set: values("set"), add: values("add"), remove: remove.collect() }
}

/// Reports an authority that a route sets in more than one way.
pub(super) fn check_authority(
    route: &Fields<'_>,
    headers: Option<&v1::HeaderOperations>,
    rewrite: Option<&v1::Rewrite>,
) {
    let request = headers.and_then(|headers| headers.request.as_ref());
    let sets = request.into_iter().flat_map(|request| request.set.iter().chain(&request.add));
    let set = sets.filter(|header| is_authority(&header.name)).count();
    let rewritten = rewrite.is_some_and(|rewrite| rewrite.authority.is_some());
    if set + usize::from(rewritten) > 1 {
        route.error("headers", "the authority is set twice: by `rewrite.authority`, `:authority` or `host`");
    }
}
