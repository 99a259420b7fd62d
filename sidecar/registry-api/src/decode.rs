//! Decoding of the input that Consul's clients really send: keys in any case and in snake case, null for absent fields,
//! durations as Go's strings or as nanoseconds, a missing or wrong content type.
//!
//! Serde's derive supports none of this, and its errors name Rust types; so a body is decoded field by field, and the
//! fields that are left are unknown ones.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// The fields of one JSON object, each taken once. Errors name the field.
pub struct Fields {
    what: &'static str,
    values: BTreeMap<String, (String, Value)>,
}

impl Fields {
    /// The fields of a body; an empty body has none.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn of_body(what: &'static str, body: &[u8]) -> Result<Fields, String> {
        if body.trim_ascii().is_empty() {
            return Ok(Fields { what, values: BTreeMap::new() });
        }
        let value = serde_json::from_slice(body).map_err(|e| format!("Request decode error: {e}"))?;
        Fields::of(what, value)
    }

    /// The fields of a value.
    ///
    /// # Errors
    /// If it is not an object.
    pub fn of(what: &'static str, value: Value) -> Result<Fields, String> {
        let Value::Object(map) = value else {
            return Err(format!("Request decode error: {what} is to be an object, not {value}"));
        };
        let present = map.into_iter().filter(|(_, value)| !value.is_null());
        Ok(Fields { what, values: present.map(|(key, value)| (plain(&key), (key, value))).collect() })
    }

    /// Whether a field is present and not null.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).map(|(_, value)| value)
    }

    fn wrong<T>(&self, key: &str, expected: &str, found: &Value) -> Result<T, String> {
        Err(format!("Request decode error: {} of {} must be {expected}, got {found}", key, self.what))
    }

    /// A string; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn text(&mut self, key: &str) -> Result<String, String> {
        match self.take(key) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => self.wrong(key, "a string", &other),
        }
    }

    /// An integer; absent: 0.
    ///
    /// # Errors
    /// If it is of another type, or negative.
    pub fn number(&mut self, key: &str) -> Result<u32, String> {
        match self.take(key) {
            None => Ok(0),
            Some(value) => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(number) => Ok(number),
                None => self.wrong(key, "an integer", &value),
            },
        }
    }

    /// A 64-bit integer; absent: 0.
    ///
    /// # Errors
    /// If it is of another type, or negative.
    pub fn large_number(&mut self, key: &str) -> Result<u64, String> {
        match self.take(key) {
            None => Ok(0),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(number),
                None => self.wrong(key, "an integer", &value),
            },
        }
    }

    /// A number, with or without a fraction; absent: 0.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn decimal(&mut self, key: &str) -> Result<f64, String> {
        match self.take(key) {
            None => Ok(0.0),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(number),
                None => self.wrong(key, "a number", &value),
            },
        }
    }

    /// A list of any values; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn list(&mut self, key: &str) -> Result<Vec<Value>, String> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) => Ok(all),
            Some(other) => self.wrong(key, "a list", &other),
        }
    }

    /// A boolean; absent: false.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => self.wrong(key, "true or false", &other),
        }
    }

    /// A boolean; absent: `default`.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn flag_or(&mut self, key: &str, default: bool) -> Result<bool, String> {
        if self.values.contains_key(key) { self.flag(key) } else { Ok(default) }
    }

    /// A duration; absent or empty: zero.
    ///
    /// # Errors
    /// If it is neither one of Go's strings nor a number of nanoseconds.
    pub fn duration(&mut self, key: &str) -> Result<Duration, String> {
        let expected = "a duration such as \"10s\" or a number of nanoseconds";
        match self.take(key) {
            None => Ok(Duration::ZERO),
            Some(Value::String(text)) if text.is_empty() => Ok(Duration::ZERO),
            Some(Value::String(text)) => match go_duration(&text) {
                Some(duration) => Ok(duration),
                None => self.wrong(key, expected, &Value::String(text)),
            },
            Some(value) => match value.as_u64() {
                Some(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
                None => self.wrong(key, expected, &value),
            },
        }
    }

    /// A duration whose numbers below 1000 are seconds, as Consul reads the lock delay of a session.
    ///
    /// # Errors
    /// If it is neither one of Go's strings nor a number.
    pub fn lock_delay(&mut self, key: &str) -> Result<Duration, String> {
        let given = self.duration(key)?;
        let small = given < Duration::from_nanos(1000);
        Ok(if small { Duration::from_secs(u64::from(given.subsec_nanos())) } else { given })
    }

    /// A list of strings; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn texts(&mut self, key: &str) -> Result<Vec<String>, String> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        // Go reads null as the zero value, in lists too.
        let text = |v: &Value| if v.is_null() { Some(String::new()) } else { v.as_str().map(str::to_owned) };
        let texts = value.as_array().map(|all| all.iter().map(text).collect());
        match texts {
            Some(Some(texts)) => Ok(texts),
            _ => self.wrong(key, "a list of strings", &value),
        }
    }

    /// A map whose keys keep their case; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn map(&mut self, key: &str) -> Result<BTreeMap<String, Value>, String> {
        match self.take(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => Ok(map.into_iter().collect()),
            Some(other) => self.wrong(key, "an object", &other),
        }
    }

    /// A map of strings; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn text_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, String> {
        let mut texts = BTreeMap::new();
        for (name, value) in self.map(key)? {
            match value {
                Value::String(text) => drop(texts.insert(name, text)),
                Value::Null => drop(texts.insert(name, String::new())),
                other => return self.wrong(&format!("{key}.{name}"), "a string", &other),
            }
        }
        Ok(texts)
    }

    /// A nested object; absent: `None`.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn object(&mut self, key: &str, what: &'static str) -> Result<Option<Fields>, String> {
        self.take(key).map(|value| Fields::of(what, value)).transpose()
    }

    /// A list of objects; absent: empty.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn objects(&mut self, key: &str, what: &'static str) -> Result<Vec<Fields>, String> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) => {
                all.into_iter().filter(|v| !v.is_null()).map(|value| Fields::of(what, value)).collect()
            }
            Some(other) => self.wrong(key, "a list", &other),
        }
    }

    /// Whether a field has another value than Go's zero value, which clients send for unset fields. Takes the field.
    pub fn means(&mut self, key: &str) -> bool {
        match self.take(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(all)) => !all.is_empty(),
            Some(Value::Object(all)) => !all.is_empty(),
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::Bool(true)) => true,
        }
    }

    /// Whether all fields were taken.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Refuses remaining fields, unless they have Go's zero value; `place` is the prefix of their names.
    ///
    /// # Errors
    /// Names the first such field.
    pub fn refuse_rest(mut self, place: &str) -> Result<(), String> {
        let keys: Vec<String> = self.values.keys().cloned().collect();
        for key in keys {
            let name = self.values.get(&key).map(|(name, _)| name.clone()).unwrap_or_default();
            if self.means(&key) {
                return Err(format!("{place}{name}: this field is not supported here"));
            }
        }
        Ok(())
    }

    /// Logs the remaining fields.
    pub fn finish(self) {
        let unknown: Vec<&str> = self.values.values().map(|(name, _)| name.as_str()).collect();
        if !unknown.is_empty() {
            tracing::warn!("agent API: ignoring unknown fields of {}: {}", self.what, unknown.join(", "));
        }
    }
}

/// Normalised key: `enable_tag_override`, `EnableTagOverride` and `enabletagoverride` are equal.
fn plain(key: &str) -> String {
    key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

/// Parses a Go duration: `1h30m`, `1.5s`, `100ms`, `0`. Negative ones are invalid here.
pub fn go_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// Parses a boolean as Go does.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_in_any_case_and_null_is_absent() {
        let body = br#"{"name":"a","EnableTagOverride":true,"tagged_addresses":{"LAN_x":"1"},"ID":null,"Nonsense":1}"#;
        let mut fields = Fields::of_body("a service", body).unwrap();
        assert_eq!(fields.text("name").unwrap(), "a");
        assert!(fields.flag("enabletagoverride").unwrap());
        assert_eq!(fields.text("id").unwrap(), "");
        assert_eq!(fields.text_map("taggedaddresses").unwrap()["LAN_x"], "1", "data keeps its case");
        assert!(!fields.is_empty(), "the unknown one is left");
        assert_eq!(fields.refuse_rest("a.").unwrap_err(), "a.Nonsense: this field is not supported here");
        let zeros = Fields::of_body("a service", br#"{"a":"","b":0,"c":[]}"#).unwrap();
        assert_eq!(zeros.refuse_rest(""), Ok(()));
        assert!(Fields::of_body("a service", b" ").unwrap().is_empty());
        for bad in [&b"[1]"[..], b"{", b"\"x\""] {
            assert!(Fields::of_body("a service", bad).is_err());
        }
        let mut fields = Fields::of_body("a service", br#"{"port":"80","tags":[1],"meta":{"a":1}}"#).unwrap();
        assert_eq!(
            fields.number("port").unwrap_err(),
            "Request decode error: port of a service must be an integer, got \"80\""
        );
        assert!(fields.texts("tags").is_err() && fields.text_map("meta").is_err());
    }

    #[test]
    fn durations_are_parsed_as_in_go() {
        for (text, ms) in [
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("100ms", 100),
            ("0", 0),
            ("1500us", 1),
            (".5s", 500),
        ] {
            assert_eq!(go_duration(text).map(|d| d.as_millis()), Some(ms), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1x", "1 s", "1s2", "..s", "9999999999999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
        let mut fields = Fields::of_body("a check", br#"{"interval":10000000000,"timeout":"","ttl":true}"#).unwrap();
        assert_eq!(fields.duration("interval").unwrap(), Duration::from_secs(10));
        assert_eq!(fields.duration("timeout").unwrap(), Duration::ZERO);
        assert!(fields.duration("ttl").is_err());
    }

    #[test]
    fn zero_values_count_as_unset() {
        let body = br#"{"a":"","b":[],"c":{},"d":0,"e":false,"f":"x","g":1}"#;
        let mut fields = Fields::of_body("a check", body).unwrap();
        for (key, means) in
            [("a", false), ("b", false), ("c", false), ("d", false), ("e", false), ("f", true), ("g", true)]
        {
            assert_eq!(fields.means(key), means, "{key}");
        }
    }
}
