//! Responses to reads, in the client's format.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use serde_json::{Map, Value, json};

use super::instance::{Instance, Status};
use super::xml;
use crate::reply::{self, Reply};

/// Format of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Python's client reads XML only, and sends no Accept header.
    Xml,
    /// All other clients.
    Json,
}

impl Format {
    /// As in Netflix's server: JSON for clients that list it.
    pub fn of(headers: &HeaderMap) -> Format {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let json = accepted.into_iter().any(|value| value.to_ascii_lowercase().contains("json"));
        if json { Format::Json } else { Format::Xml }
    }

    fn media_type(self) -> &'static str {
        match self {
            Format::Xml => "application/xml",
            Format::Json => "application/json",
        }
    }
}

/// Instances by application.
pub type Apps = BTreeMap<String, Vec<Instance>>;

/// A document as a response.
pub fn encode(document: Value, format: Format) -> Reply {
    let Value::Object(map) = document else { return reply::text("") };
    let body = match format {
        Format::Xml => xml::write(&map),
        Format::Json => Value::Object(map).to_string(),
    };
    let mut reply = Reply::new(body.into());
    reply::set(&mut reply, "content-type", format.media_type());
    reply::set(&mut reply, "vary", "accept");
    reply
}

/// Converts a response to the client's format: an empty one gets its media type, and a text, which is an error, becomes
/// a document.
pub fn in_format(mut reply: Reply, headers: &HeaderMap) -> Reply {
    let format = Format::of(headers);
    let kind = reply.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match kind {
        kind if kind.starts_with("text/plain") && !reply.body().is_empty() => {
            let text = String::from_utf8_lossy(reply.body()).into_owned();
            let document = encode(json!({ "error": text }), format);
            *reply.body_mut() = document.body().clone();
            reply.headers_mut().extend(document.headers().clone());
            reply
        }
        kind if kind.is_empty() || kind.starts_with("text/plain") => {
            reply::set(&mut reply, "content-type", format.media_type());
            reply::set(&mut reply, "vary", "accept");
            reply
        }
        _ => reply,
    }
}

/// `apps`, `apps/delta`, `vips`: `version` changes with every change, and `hash` describes the whole registry.
pub fn applications(apps: &Apps, version: u64, hash: &str) -> Value {
    let all: Vec<Value> = apps.iter().map(|(name, instances)| Value::Object(app(name, instances))).collect();
    json!({ "applications": {
        "versions__delta": version.to_string(),
        "apps__hashcode": hash,
        "application": all,
    }})
}

/// `apps/:app`
pub fn application(name: &str, instances: &[Instance]) -> Value {
    json!({ "application": app(name, instances) })
}

/// One instance.
pub fn instance(instance: &Instance) -> Value {
    json!({ "instance": instance.json() })
}

fn app(name: &str, instances: &[Instance]) -> Map<String, Value> {
    let instances: Vec<Value> = instances.iter().map(|instance| Value::Object(instance.json())).collect();
    Map::from_iter([("name".to_owned(), json!(name)), ("instance".to_owned(), Value::Array(instances))])
}

/// Number of instances per status, by which clients detect missed changes: `DOWN_1_UP_3_`.
pub fn hashcode(statuses: impl Iterator<Item = Status>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    statuses.for_each(|status| *counts.entry(status.as_str()).or_default() += 1);
    counts.iter().map(|(status, count)| format!("{status}_{count}_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_requires_an_accept_header() {
        for (accept, format) in [
            (None, Format::Xml),
            (Some("*/*"), Format::Xml),
            (Some("application/xml"), Format::Xml),
            (Some("application/json"), Format::Json),
            (Some("application/json, application/*+json"), Format::Json),
        ] {
            let accept = accept.map(|value| (header::ACCEPT, value.parse().unwrap()));
            assert_eq!(Format::of(&HeaderMap::from_iter(accept.clone())), format, "{accept:?}");
        }
    }

    #[test]
    fn single_items_are_lists_too() {
        let one = Instance { app: "ORDER".into(), host_name: "pod-1".into(), ..Default::default() };
        let apps = Apps::from([("ORDER".to_owned(), vec![one.clone()])]);
        let document = applications(&apps, 7, "UP_1_");
        assert_eq!(document["applications"]["application"][0]["instance"][0]["app"], "ORDER");
        let json = encode(document.clone(), Format::Json);
        assert_eq!(json.headers()["content-type"], "application/json");
        assert_eq!(serde_json::from_slice::<Value>(json.body()).unwrap(), document);
        let xml = encode(document, Format::Xml);
        let text = std::str::from_utf8(xml.body()).unwrap();
        assert!(text.starts_with("<applications>"), "{text}");
        for part in
            ["<apps__hashcode>UP_1_</apps__hashcode>", "<versions__delta>7</versions__delta>", "<name>ORDER</name>"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let none = encode(applications(&Apps::new(), 1, ""), Format::Xml);
        assert!(none.body().ends_with(b"</applications>"));
    }

    #[test]
    fn the_hash_counts_instances_by_status() {
        use Status::{Down, OutOfService, Up};
        assert_eq!(hashcode([Up, Down, Up, OutOfService, Up].into_iter()), "DOWN_1_OUT_OF_SERVICE_1_UP_3_");
        assert_eq!(hashcode([].into_iter()), "");
    }
}
