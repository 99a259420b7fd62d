//! `mirror` and `mirrors`: copies of requests.

use super::{DESTINATION, Destination, Mirror, fault, read_destination};
use crate::decode::fields::{Fields, Shape, object};

/// Fields of an entry of `mirrors`.
pub(super) const SHAPE: Shape = &[object("destination", DESTINATION), object("percentage", fault::PERCENTAGE)];

/// Reads the mirrors of a route.
pub(super) fn decode(route: &Fields<'_>) -> Vec<Mirror> {
    let mut mirrors: Vec<Mirror> = Vec::new();
    let shares: Vec<&'static str> =
        ["mirrorPercentage", "mirrorPercent", "mirror_percent"].into_iter().filter(|name| route.has(name)).collect();
    if let Some(mirror) = route.object("mirror") {
        if route.has("mirrors") {
            route.error("mirrors", "`mirror` and `mirrors` exclude each other");
        }
        let percent = fault::percentage(route, "mirrorPercentage").unwrap_or(100.0);
        let old = ["mirrorPercent", "mirror_percent"].into_iter().find(|name| route.has(name));
        let old = old.and_then(|name| {
            route.warn(name, format!("`{name}` is deprecated: write `mirrorPercentage.value`"));
            route.number(name, 0..=100).and_then(|percent| u32::try_from(percent).ok())
        });
        let percent = if route.has("mirrorPercentage") { percent } else { old.map_or(percent, f64::from) };
        let mut destination = Destination::nowhere(mirror.place);
        read_destination(&mirror, &mut destination);
        mirrors.push(Mirror { destination, percent });
    } else if let Some(name) = shares.first() {
        route.error(name, format!("`{name}` has no effect without `mirror`"));
    }
    for mirror in route.objects("mirrors") {
        mirror.require("destination");
        let mut destination = Destination::nowhere(mirror.place);
        if let Some(fields) = mirror.object("destination") {
            read_destination(&fields, &mut destination);
        }
        let percent = fault::percentage(&mirror, "percentage").unwrap_or(100.0);
        mirrors.push(Mirror { destination, percent });
    }
    mirrors
}
