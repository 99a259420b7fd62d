//! Kubernetes' label selectors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A label selector: all of its requirements together. One without requirements selects everything, as in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Expression>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether the labels fulfil it.
    pub(crate) fn matches(&self, labels: &Map<String, Value>) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        self.match_labels.iter().all(|(key, value)| label(key) == Some(value))
            && self.match_expressions.iter().all(|one| {
                let value = label(&one.key);
                let listed = value.is_some_and(|value| one.values.iter().any(|known| known == value));
                match one.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_fulfil_all_requirements() {
        for (selector, selected) in [
            (json!({}), true),
            (json!({ "matchLabels": { "app": "a" } }), true),
            (json!({ "matchLabels": { "app": "a", "tier": "b" } }), false),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["b", "a"] }] }), true),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["a"] }] }), false),
            (json!({ "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["a"] }] }), true),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "Exists" }] }), true),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] }), false),
            (
                json!({ "matchLabels": { "app": "a" }, "matchExpressions": [{ "key": "x", "operator": "Exists" }] }),
                false,
            ),
        ] {
            let parsed: Selector = serde_json::from_value(selector.clone()).unwrap();
            let labels = json!({ "app": "a" });
            assert_eq!(parsed.matches(labels.as_object().unwrap()), selected, "{selector}");
        }
    }
}
