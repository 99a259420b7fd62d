//! `loadBalancer`: how an endpoint is picked, in which localities, and how new endpoints warm up.

use std::collections::BTreeMap;

use weft_core::locality::Pattern;
use weft_proto::v1;

use crate::decode::fields::{Fields, Shape, explicit, object, read, refused};
use crate::names;

const COOKIE: Shape = &[read("name"), read("path"), read("ttl"), object("attributes", &[read("name"), read("value")])];
const CONSISTENT_HASH: Shape = &[
    read("httpHeaderName"),
    object("httpCookie", COOKIE),
    read("useSourceIp"),
    read("httpQueryParameterName"),
    object("ringHash", &[read("minimumRingSize")]),
    object("maglev", &[read("tableSize")]),
    read("minimumRingSize"),
];
/// Fields of `localityLbSetting`.
pub(crate) const LOCALITY: Shape = &[
    read("enabled"),
    object("distribute", &[read("from"), read("to")]),
    object("failover", &[read("from"), read("to")]),
    read("failoverPriority"),
];
/// Its fields.
pub(super) const SHAPE: Shape = &[
    read("simple"),
    object("consistentHash", CONSISTENT_HASH),
    object("localityLbSetting", LOCALITY),
    refused(
        "zoneAwareLbSetting",
        "`localityLbSetting` keeps requests in their zone; a sidecar has no count of the callers in a zone",
    ),
    object("warmup", &[read("duration"), explicit("minimumPercent"), explicit("aggression")]),
    read("warmupDurationSecs"),
];
/// Reads it.
pub(super) fn decode(fields: &Fields<'_>) -> v1::LoadBalancer {
    use v1::load_balancer::Simple;
    const SIMPLE: &[(&str, Simple)] = &[
        ("UNSPECIFIED", Simple::LeastRequest),
        ("LEAST_REQUEST", Simple::LeastRequest),
        ("LEAST_CONN", Simple::LeastRequest),
        ("ROUND_ROBIN", Simple::RoundRobin),
        ("RANDOM", Simple::Random),
        ("PASSTHROUGH", Simple::Passthrough),
    ];
    if fields.has("simple") && fields.has("consistentHash") {
        fields.error("consistentHash", "give either `simple` or `consistentHash`, not both");
    }
    let simple = fields.one_of("simple", SIMPLE).unwrap_or_default();
    let warmup = warmup(fields);
    let takes_turns = matches!(simple, Simple::LeastRequest | Simple::RoundRobin) && !fields.has("consistentHash");
    for name in ["warmup", "warmupDurationSecs"].into_iter().filter(|name| fields.has(name) && !takes_turns) {
        fields.warn(name, format!("`{name}` has no effect: only LEAST_REQUEST and ROUND_ROBIN warm endpoints up"));
    }
    v1::LoadBalancer {
        simple: simple.into(),
        consistent_hash: fields.object("consistentHash").map(|fields| consistent_hash(&fields)),
        locality: fields.object("localityLbSetting").map(|fields| locality(&fields)),
        warmup: warmup.filter(|_| takes_turns),
    }
}

fn consistent_hash(fields: &Fields<'_>) -> v1::ConsistentHash {
    use v1::consistent_hash::Key;
    const KEYS: [&str; 4] = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];
    let header = fields.string("httpHeaderName");
    if let Some(name) = header.as_deref().filter(|name| !names::is_header(name)) {
        fields.error("httpHeaderName", format!("`{name}` is not a header name"));
    }
    let source_ip = fields.boolean("useSourceIp").filter(|&used| used);
    let keys = [
        header.map(Key::HttpHeaderName),
        fields.object("httpCookie").map(|fields| Key::HttpCookie(cookie(&fields))),
        source_ip.map(Key::UseSourceIp),
        fields.string("httpQueryParameterName").map(Key::HttpQueryParameterName),
    ];
    if keys.iter().flatten().count() != 1 && !KEYS.iter().any(|key| fields.misspelled(key)) {
        let text = format!("`{}` needs exactly one of {}", fields.path, KEYS.join(", "));
        fields.error_at(fields.place, text);
    }
    let ring = fields.object("ringHash");
    let maglev = fields.object("maglev");
    let algorithms = [ring.is_some(), maglev.is_some(), fields.has("minimumRingSize")];
    if algorithms.into_iter().filter(|&given| given).count() > 1 {
        fields.error_at(fields.place, "give only one of `ringHash`, `maglev` and the deprecated `minimumRingSize`");
    }
    if fields.has("minimumRingSize") {
        fields.warn("minimumRingSize", "`minimumRingSize` is deprecated: write `ringHash.minimumRingSize`");
    }
    let ring_size = |fields: &Fields<'_>| fields.number("minimumRingSize", 0..=8_388_608);
    v1::ConsistentHash {
        key: keys.into_iter().flatten().next(),
        minimum_ring_size: ring.as_ref().and_then(ring_size).or_else(|| ring_size(fields)).unwrap_or_default(),
        maglev_table_size: maglev.map(|fields| maglev_size(&fields)).unwrap_or_default(),
    }
}

fn maglev_size(fields: &Fields<'_>) -> u64 {
    fields.require("tableSize");
    let size = fields.number("tableSize", 2..=5_000_010).unwrap_or_default();
    if size != 0 && (2..).take_while(|n| n * n <= size).any(|n| size.is_multiple_of(n)) {
        fields.error("tableSize", format!("`tableSize` must be a prime number, such as 65537; {size} is not"));
    }
    size
}

fn cookie(fields: &Fields<'_>) -> v1::HttpCookie {
    let mut attributes: Vec<v1::HeaderValue> = Vec::new();
    for attribute in fields.objects("attributes") {
        let name = attribute.required_string("name");
        if attributes.iter().any(|known| known.name.eq_ignore_ascii_case(&name)) {
            attribute.error("name", format!("attribute `{name}` is given twice"));
        }
        attributes.push(v1::HeaderValue { name, value: attribute.string("value").unwrap_or_default() });
    }
    v1::HttpCookie {
        name: fields.required_string("name"),
        path: fields.string("path").unwrap_or_default(),
        ttl_ms: fields.duration("ttl", 0),
        attributes,
    }
}

/// Labels with the location of an endpoint.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Reads `localityLbSetting`.
pub(crate) fn locality(fields: &Fields<'_>) -> v1::LocalityLb {
    let given: Vec<&str> =
        ["distribute", "failover", "failoverPriority"].into_iter().filter(|name| fields.has(name)).collect();
    if let [first @ "distribute", second, ..] = given[..] {
        fields.error(second, format!("`{first}` and `{second}` exclude each other"));
    }
    let mut failover = BTreeMap::new();
    for one in fields.objects("failover") {
        let (from, to) = (one.required_string("from"), one.required_string("to"));
        for (name, region) in [("from", &from), ("to", &to)] {
            if region.contains(['/', '*']) {
                one.error(
                    name,
                    format!("`{region}` is not a region: failover is between regions, without `/` and `*`"),
                );
            }
        }
        if !from.is_empty() && from == to {
            one.error("to", format!("`{to}` is the region itself: name another one"));
        }
        if failover.insert(from.clone(), to).is_some() {
            one.error("from", format!("region `{from}` has a failover already"));
        }
    }
    let distribute = distribute(fields);
    let labels = fields.strings("failoverPriority").into_iter().map(|(label, place)| {
        let (name, value) = label.split_once('=').unwrap_or((&label, "a"));
        if name.is_empty() || value.is_empty() {
            fields.error_at(place, format!("`{label}` is neither a label nor label=value"));
        }
        // As in Istio: `failover` decides between localities then, and labels between other properties.
        if fields.has("failover") && TOPOLOGY.contains(&&*label) {
            fields.error_at(place, format!("`{label}` excludes `failover`, which is about localities too"));
        }
        label
    });
    v1::LocalityLb {
        disabled: fields.boolean("enabled") == Some(false),
        distribute,
        failover: failover.into_iter().collect(),
        failover_priority: labels.collect(),
    }
}

fn distribute(fields: &Fields<'_>) -> Vec<v1::LocalityShares> {
    let pattern = |text: &str, report: &dyn Fn(String)| Pattern::parse(text).map_err(report).ok();
    let mut all: Vec<v1::LocalityShares> = Vec::new();
    let mut froms: Vec<Pattern> = Vec::new();
    for one in fields.objects("distribute") {
        let from = one.required_string("from");
        if let Some(parsed) = pattern(&from, &|problem| one.error("from", problem)).filter(|_| !from.is_empty()) {
            if froms.iter().any(|known| known.overlaps(&parsed)) {
                one.error("from", format!("`{from}` overlaps with one above: the first would always win"));
            }
            froms.push(parsed);
        }
        one.require("to");
        let to = one.number_map("to", 1..=100);
        let mut patterns: Vec<Pattern> = Vec::new();
        for (key, _) in one.map("to") {
            let Some(parsed) = pattern(&key.name, &|problem| one.error_at(key.place, problem)) else { continue };
            if patterns.iter().any(|known| known.overlaps(&parsed)) {
                one.error_at(key.place, format!("`{}` overlaps with another locality of this list", key.name));
            }
            patterns.push(parsed);
        }
        let sum: u32 = to.values().sum();
        if sum != 100 && to.len() == one.map("to").len() && one.has("to") {
            one.error("to", format!("the weights must add up to 100, and add up to {sum}"));
        }
        all.push(v1::LocalityShares { from, to: to.into_iter().collect() });
    }
    all
}

/// The deprecated `warmupDurationSecs` is a duration; the other fields have their defaults.
fn warmup(fields: &Fields<'_>) -> Option<v1::Warmup> {
    if fields.has("warmupDurationSecs") {
        fields.warn("warmupDurationSecs", "`warmupDurationSecs` is deprecated: write `warmup.duration`");
        if fields.has("warmup") {
            fields.error("warmupDurationSecs", "`warmup` and `warmupDurationSecs` exclude each other");
        }
    }
    let old = fields.duration("warmupDurationSecs", 1).map(|duration_ms| v1::Warmup {
        duration_ms,
        minimum_percent: 10.0,
        aggression: 1.0,
    });
    let new = fields.object("warmup").map(|fields| {
        fields.require("duration");
        v1::Warmup {
            duration_ms: fields.duration("duration", 1).unwrap_or_default(),
            minimum_percent: fields.decimal("minimumPercent", 0.0..=100.0).unwrap_or(10.0),
            aggression: fields.decimal("aggression", 1.0..=f64::MAX).unwrap_or(1.0),
        }
    });
    new.or(old)
}
