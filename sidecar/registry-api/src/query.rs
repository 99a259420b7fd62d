//! Query strings: many of Consul's flags are true by their presence, and the wait of blocking queries is bounded.

use std::time::Duration;

use crate::decode::{go_bool, go_duration};

/// The decoded query of a request.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// Consul's default wait and maximum wait.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

impl Query {
    /// Parses the text after the question mark.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (unescape(key, true), unescape(value, true)))
                .collect(),
        )
    }

    /// A query with a single pair.
    pub fn of(key: &str, value: &str) -> Query {
        Query(vec![(key.to_owned(), value.to_owned())])
    }

    /// The value of `key`; `None`: absent.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    /// All values of `key`.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let key = key.to_owned();
        self.0.iter().filter(move |(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    /// All pairs, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether `key` is present, whatever its value: in Consul `?stale=false` is true.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The flag `passing`, which has a value, unlike other flags.
    ///
    /// # Errors
    /// If the value is not a boolean.
    pub fn passing(&self) -> Result<bool, String> {
        match self.value("passing") {
            None => Ok(false),
            Some("") => Ok(true),
            Some(text) => go_bool(text).ok_or_else(|| "Invalid value for ?passing".into()),
        }
    }

    /// Checks the consistency flags of a read for contradictions and invalid values.
    ///
    /// # Errors
    /// The message for status 400, in Consul's words.
    pub fn consistency(&self) -> Result<(), String> {
        for other in ["stale", "cached"] {
            if self.has("consistent") && self.has(other) {
                return Err(format!("Cannot specify ?{other} with ?consistent, conflicting semantics."));
            }
        }
        match self.value("max_stale").filter(|text| !text.is_empty()) {
            Some(text) if go_duration(text).is_none() => Err(format!("Invalid max_stale value {text:?}")),
            _ => Ok(()),
        }
    }

    /// The index after which to respond, and the wait; `None`: respond at once.
    ///
    /// # Errors
    /// The message for status 400, in Consul's words.
    pub fn block(&self) -> Result<Option<(u64, Duration)>, String> {
        let wait = match self.value("wait") {
            None | Some("") => DEFAULT_WAIT,
            Some(text) => go_duration(text).ok_or("Invalid wait time")?,
        };
        let index = match self.value("index") {
            None | Some("") => 0,
            Some(text) => text.parse().map_err(|_| "Invalid index")?,
        };
        let wait = if wait.is_zero() { DEFAULT_WAIT } else { wait.min(MAX_WAIT) };
        Ok((index > 0).then_some((index, wait)))
    }
}

/// The text of a query without the pairs of these keys; all other pairs are unchanged.
pub fn without(text: &str, keys: &[&str]) -> String {
    let key = |pair: &str| unescape(pair.split('=').next().unwrap_or_default(), true);
    let rest: Vec<&str> = text.split('&').filter(|pair| !pair.is_empty() && !keys.contains(&&*key(pair))).collect();
    rest.join("&")
}

/// Decodes `%2F` and the like; invalid escapes are unchanged. With `plus`, a plus is a space.
pub fn unescape(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if plus && bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_true_by_presence() {
        let query = Query::parse("stale=false&tag=a&tag=b%20c&passing&note=all+well");
        assert!(query.has("stale") && !query.has("cached"));
        assert_eq!(query.values("tag").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(query.value("note"), Some("all well"));
        assert_eq!(query.passing(), Ok(true));
        for (text, passing) in [("", false), ("passing=True", true), ("passing=0", false)] {
            assert_eq!(Query::parse(text).passing(), Ok(passing), "{text}");
        }
        assert_eq!(Query::parse("passing=maybe").passing(), Err("Invalid value for ?passing".into()));
    }

    #[test]
    fn contradicting_consistency_flags_are_refused() {
        for fine in ["", "stale", "consistent", "cached&stale", "stale&max_stale=10s", "max_stale="] {
            assert_eq!(Query::parse(fine).consistency(), Ok(()), "{fine}");
        }
        for (text, words) in [
            ("stale&consistent", "Cannot specify ?stale with ?consistent, conflicting semantics."),
            ("consistent=false&cached", "Cannot specify ?cached with ?consistent, conflicting semantics."),
            ("stale&max_stale=soon", "Invalid max_stale value \"soon\""),
        ] {
            assert_eq!(Query::parse(text).consistency().unwrap_err(), words, "{text}");
        }
    }

    #[test]
    fn waits_are_limited() {
        let seconds = |s| Duration::from_secs(s);
        for (text, block) in [
            ("", Ok(None)),
            ("index=0&wait=1s", Ok(None)),
            ("index=7", Ok(Some((7, seconds(300))))),
            ("index=7&wait=30s", Ok(Some((7, seconds(30))))),
            ("index=7&wait=20m", Ok(Some((7, seconds(600))))),
            ("index=7&wait=soon", Err("Invalid wait time".to_owned())),
            ("index=-1", Err("Invalid index".to_owned())),
        ] {
            assert_eq!(Query::parse(text).block(), block, "{text}");
        }
    }

    #[test]
    fn pairs_are_removed_by_key() {
        let text = "tag=a%26b&index=7&stale&w%61it=1s&&indexed=1";
        assert_eq!(without(text, &["index", "wait"]), "tag=a%26b&stale&indexed=1");
        assert_eq!(without("", &["index"]), "");
    }
}
