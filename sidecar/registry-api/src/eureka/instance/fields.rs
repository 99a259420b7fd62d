//! The fields of an instance as clients send them: numbers as strings, ports bare or with attributes, empty elements.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{DATA_CENTER_CLASS, DURATION_S, DataCenter, Lease, Port, RENEWAL_S};
use crate::eureka::xml::plain;

/// The members of an object.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl Fields<'_> {
    /// A scalar as a string; absent: empty.
    pub(super) fn text(&self, key: &str) -> Result<String, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            // An element with attributes.
            Some(Value::Object(map)) if map.contains_key("$") => Fields(map).text("$"),
            Some(value) => plain(value).ok_or_else(|| format!("{key} must be a string, got {value}")),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        let text = self.text(key)?;
        let text = text.trim();
        if text.is_empty() {
            return Ok(default);
        }
        text.parse().map_err(|_| format!("{key} must be an integer, got {text:?}"))
    }

    /// An object; an element without content is an empty object.
    fn object(&self, key: &str) -> Result<Option<Map<String, Value>>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(Some(Map::new())),
            Some(other) => Err(format!("{key} must be an object, got {other}")),
        }
    }

    /// An object of strings, without the class that Java adds.
    pub(super) fn texts(&self, key: &str) -> Result<BTreeMap<String, String>, String> {
        let map = self.object(key)?.unwrap_or_default();
        let fields = Fields(&map);
        let names = map.keys().filter(|name| *name != "@class");
        names.map(|name| Ok((name.clone(), fields.text(name).map_err(|e| format!("{key}: {e}"))?))).collect()
    }

    pub(super) fn port(&self, key: &str, default: Port) -> Result<Port, String> {
        let number = self.number(key, default.number)?;
        let enabled = match self.0.get(key) {
            None | Some(Value::Null) => default.enabled,
            Some(Value::Object(map)) => Fields(map).text("@enabled")?.eq_ignore_ascii_case("true"),
            Some(_) => true,
        };
        Ok(Port { number, enabled })
    }

    pub(super) fn data_center(&self) -> Result<Option<DataCenter>, String> {
        let Some(map) = self.object("dataCenterInfo")? else { return Ok(None) };
        let fields = Fields(&map);
        let class = fields.text("@class")?;
        let class = class.split_whitespace().collect::<Vec<_>>().join(" ");
        let class = if class.is_empty() { DATA_CENTER_CLASS.into() } else { class };
        Ok(Some(DataCenter { class, name: fields.text("name")?, metadata: fields.texts("metadata")? }))
    }

    pub(super) fn lease(&self) -> Result<Lease, String> {
        let map = self.object("leaseInfo")?.unwrap_or_default();
        let fields = Fields(&map);
        // A duration of 0 selects the default in Eureka too (`LeaseInfo.Builder`).
        let seconds = |key: &str, default| fields.number(key, default).map(|s| if s == 0 { default } else { s });
        Ok(Lease {
            renewal_s: seconds("renewalIntervalInSecs", RENEWAL_S)?,
            duration_s: seconds("durationInSecs", DURATION_S)?,
            registered: fields.number("registrationTimestamp", 0)?,
            renewed: fields.number("lastRenewalTimestamp", 0)?,
            evicted: fields.number("evictionTimestamp", 0)?,
            up: fields.number("serviceUpTimestamp", 0)?,
        })
    }
}
