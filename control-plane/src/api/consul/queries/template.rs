//! Templates of prepared queries: one query for all names with its own name as a prefix. Parts of the requested name
//! are inserted into its texts (`${name.full}`, `${name.prefix}`, `${name.suffix}`, `${match(N)}`).

use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};
use weft_registry_api::decode::Fields;

/// The only type.
const PREFIX: &str = "name_prefix_match";
/// Largest compiled expression, bytes.
const MAX_REGEXP: usize = 64 << 10;
/// Longest text after insertion, bytes: it may contain a name many times.
const MAX_TEXT: usize = 1024;

/// Reads `Template`; null: the query is not a template.
pub(super) fn of(fields: Option<Fields>) -> Result<Value, String> {
    let Some(mut fields) = fields else { return Ok(Value::Null) };
    let (kind, regexp) = (fields.text("type")?, fields.text("regexp")?);
    let remove = fields.flag("removeemptytags")?;
    fields.finish();
    match kind.as_str() {
        "" if regexp.is_empty() => return Ok(Value::Null),
        PREFIX => {}
        other => return Err(format!("Bad Template.Type {other:?}: only {PREFIX:?} is supported")),
    }
    compiled(&regexp).map_err(|e| format!("Bad Template.Regexp: {e}"))?;
    Ok(json!({ "Type": kind, "Regexp": regexp, "RemoveEmptyTags": remove }))
}

fn compiled(regexp: &str) -> Result<Option<Regex>, regex::Error> {
    if regexp.is_empty() {
        return Ok(None);
    }
    RegexBuilder::new(regexp).size_limit(MAX_REGEXP).build().map(Some)
}

/// # Errors
/// If a text has an unknown expression.
pub(super) fn check(service: &Value) -> Result<(), String> {
    let mut wrong = None;
    let mut service = service.clone();
    each_text(&mut service, &mut |text| {
        if let Err(expression) = put_in(text, &|expression| is_known(expression).then(String::new)) {
            wrong.get_or_insert(expression);
        }
    });
    match wrong {
        None => Ok(()),
        Some(expression) => Err(format!(
            "Template: there is no ${{{expression}}}, only ${{name.full}}, ${{name.prefix}}, ${{name.suffix}} and ${{match(N)}}"
        )),
    }
}

fn is_known(expression: &str) -> bool {
    matches!(expression, "name.full" | "name.prefix" | "name.suffix" | "agent.segment") || group(expression).is_some()
}

/// `N` of `match(N)`.
fn group(expression: &str) -> Option<usize> {
    expression.strip_prefix("match(")?.strip_suffix(')')?.trim().parse().ok()
}

/// The length of the common part of a template's name and the requested name; `None`: it is not a template, or does not
/// match that name.
pub(super) fn fits(query: &Value, name: &str) -> Option<usize> {
    let prefix = query["Name"].as_str().filter(|_| query["Template"].is_object())?;
    let begins = name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins.then_some(prefix.len())
}

/// The query for a name that matches its template; a query without a template is returned unchanged.
pub(super) fn render(query: &Value, name: &str) -> Value {
    let Some(length) = fits(query, name) else { return query.clone() };
    let mut rendered = query.clone();
    let template = &query["Template"];
    // It was compiled when the query was written.
    let regexp = compiled(template["Regexp"].as_str().unwrap_or_default()).ok().flatten();
    let captures = regexp.as_ref().and_then(|regexp| regexp.captures(name));
    let value = |expression: &str| -> Option<String> {
        Some(match expression {
            "name.full" => name.to_owned(),
            "name.prefix" => name[..length].to_owned(),
            "name.suffix" => name[length..].to_owned(),
            "agent.segment" => String::new(),
            other => {
                let number = group(other)?;
                captures
                    .as_ref()
                    .and_then(|found| found.get(number))
                    .map_or_else(String::new, |m| m.as_str().to_owned())
            }
        })
    };
    each_text(&mut rendered["Service"], &mut |text| {
        if let Ok(mut new) = put_in(text, &value) {
            if new.len() > MAX_TEXT {
                new.clear();
            }
            *text = new;
        }
    });
    if template["RemoveEmptyTags"] == true
        && let Some(tags) = rendered["Service"]["Tags"].as_array_mut()
    {
        tags.retain(|tag| tag != "");
    }
    rendered
}

fn each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(map) => map.values_mut().for_each(|item| each_text(item, change)),
        _ => {}
    }
}

/// A text with its expressions replaced; the error is an expression that `value` does not support.
fn put_in(text: &str, value: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (expression, after) = after.split_once('}').ok_or_else(|| after.to_owned())?;
        out.push_str(&value(expression.trim()).ok_or_else(|| expression.to_owned())?);
        rest = after;
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, regexp: &str, service: &str, tags: &[&str]) -> Value {
        let template = json!({ "Type": PREFIX, "Regexp": regexp, "RemoveEmptyTags": true });
        json!({ "Name": name, "Template": template, "Service": { "Service": service, "Tags": tags } })
    }

    #[test]
    fn parts_of_the_name_are_put_in() {
        let geo = query("geo-db-", "^geo-db-(.*?)-([^\\-]+?)$", "db-${match(1)}", &["${match(2)}", "${match(9)}", "x"]);
        let rendered = render(&geo, "geo-db-customer-primary");
        assert_eq!(rendered["Service"], json!({ "Service": "db-customer", "Tags": ["primary", "x"] }));
        let names = query("Geo", "", "${name.suffix} of ${ name.prefix }, ${name.full}", &[]);
        assert_eq!(render(&names, "geoX")["Service"]["Service"], "X of geo, geoX");
        assert_eq!(fits(&names, "ge"), None);
        assert_eq!((fits(&query("", "", "a", &[]), "any"), fits(&json!({ "Name": "a" }), "a")), (Some(0), None));
        let endless = query("", "", &"${name.full}".repeat(20), &[]);
        assert_eq!(render(&endless, &"n".repeat(100))["Service"]["Service"], "");
    }

    #[test]
    fn invalid_query_templates_are_refused() {
        let of_text = |text: &str| of(Some(Fields::of("Template", serde_json::from_str(text).unwrap()).unwrap()));
        assert_eq!((of(None).unwrap(), of_text("{}").unwrap()), (Value::Null, Value::Null));
        assert_eq!(of_text(r#"{"Type":"name_prefix_match"}"#).unwrap()["Regexp"], "");
        for (text, words) in [
            (r#"{"Type":"suffix"}"#, "Bad Template.Type"),
            (r#"{"Regexp":"a"}"#, "Bad Template.Type"),
            (r#"{"Type":"name_prefix_match","Regexp":"("}"#, "Bad Template.Regexp"),
        ] {
            assert!(of_text(text).unwrap_err().contains(words), "{text}");
        }
        assert!(check(&json!({ "Service": "a${match(1)}", "Tags": ["${name.full}"] })).is_ok());
        for wrong in ["${name}", "${match(x)}", "${"] {
            assert!(check(&json!({ "Service": wrong })).unwrap_err().contains("there is no"), "{wrong}");
        }
    }
}
