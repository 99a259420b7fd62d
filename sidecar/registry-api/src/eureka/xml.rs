//! Conversion between Eureka's two formats: its JSON was derived from its XML by a rule, implemented here in both
//! directions.
//!
//! An attribute is a member whose name begins with `@`, the text beside attributes is `$`, and elements with the same
//! name form a list. Documents are therefore built and read once, as JSON, and XML is an encoding of them. Under
//! `metadata` every element is data: its name is a key, with characters that are invalid in XML names encoded as
//! `_xHHHH_` (ISO 9075-14, .NET's `XmlConvert`).

use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use serde_json::{Map, Value};

/// Maximum depth of elements; Eureka's documents have a depth of five.
const MAX_DEPTH: usize = 16;
/// Maximum number of attributes of an element: each is compared with all before it.
const MAX_ATTRIBUTES: usize = 8;
/// The element whose children are data.
const DATA: &str = "metadata";

struct Open {
    name: String,
    attributes: Map<String, Value>,
    children: Map<String, Value>,
    text: String,
}

impl Open {
    fn of(start: &BytesStart, in_data: bool) -> Result<Open, String> {
        let name = start.name().as_ref().to_owned();
        let mut attributes = Map::new();
        for (n, attribute) in start.attributes().enumerate() {
            if n == MAX_ATTRIBUTES {
                return Err(format!("<{name}> has more than {MAX_ATTRIBUTES} attributes"));
            }
            let attribute = attribute.map_err(|e| format!("<{name}>: {e}"))?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|e| format!("<{name}>: {e}"))?;
            attributes.insert(format!("@{}", attribute.key.as_ref()), value.into_owned().into());
        }
        if in_data || name == DATA {
            attributes.clear();
        }
        let name = if in_data { decoded(&name) } else { name };
        Ok(Open { name, attributes, children: Map::new(), text: String::new() })
    }

    fn close(self) -> (String, Value) {
        let mut all = self.attributes;
        if self.children.is_empty() && all.is_empty() {
            return (self.name, Value::String(self.text));
        }
        if self.children.is_empty() {
            all.insert("$".into(), self.text.into());
        } else {
            all.extend(self.children);
        }
        (self.name, Value::Object(all))
    }

    fn add(&mut self, name: String, value: Value) {
        match self.children.get_mut(&name) {
            None => drop(self.children.insert(name, value)),
            Some(Value::Array(all)) => all.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
}

/// Converts a document to JSON: an object with one member, named like the root element. Every value is a string.
///
/// # Errors
/// The mistake and its position.
pub fn read(text: &str) -> Result<Value, String> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let at = reader.buffer_position();
        let wrong = |e: &dyn std::fmt::Display| format!("invalid XML at byte {at}: {e}");
        let in_data = open.last().is_some_and(|parent| parent.name == DATA);
        let closed = match reader.read_event().map_err(|e| wrong(&e))? {
            Event::Start(_) if open.len() == MAX_DEPTH => return Err(wrong(&"elements are nested too deep")),
            Event::Start(start) => {
                open.push(Open::of(&start, in_data).map_err(|e| wrong(&e))?);
                None
            }
            Event::Empty(start) => Some(Open::of(&start, in_data).map_err(|e| wrong(&e))?),
            Event::End(_) => open.pop(),
            event => {
                let more = match event {
                    Event::Text(text) => text.xml10_content().into_owned(),
                    Event::CData(text) => text.xml10_content().into_owned(),
                    Event::GeneralRef(name) => match name.resolve_char_ref().map_err(|e| wrong(&e))? {
                        Some(char) => char.to_string(),
                        None => {
                            let name = name.xml10_content();
                            let known = quick_xml::escape::resolve_predefined_entity(&name);
                            known.ok_or_else(|| wrong(&format!("the entity {name:?} is unknown")))?.to_owned()
                        }
                    },
                    // A document type could define entities, and entities of entities.
                    Event::DocType(_) => return Err(wrong(&"document types are not supported")),
                    Event::Eof => return Err(wrong(&"it ends before its root element does")),
                    _ => String::new(),
                };
                if let Some(within) = open.last_mut() {
                    within.text.push_str(&more);
                }
                None
            }
        };
        if let Some(closed) = closed {
            let (name, value) = closed.close();
            match open.last_mut() {
                Some(parent) => parent.add(name, value),
                None => return Ok(Value::Object(Map::from_iter([(name, value)]))),
            }
        }
    }
}

/// Writes the members of an object as XML; a single member is the root element.
pub fn write(document: &Map<String, Value>) -> String {
    let mut out = String::new();
    document.iter().for_each(|(name, value)| element(&mut out, name, value));
    out
}

fn element(out: &mut String, name: &str, value: &Value) {
    let text = match value {
        Value::Null => return,
        Value::Array(all) => return all.iter().for_each(|value| element(out, name, value)),
        Value::Object(map) => return parent(out, name, map),
        Value::String(text) => escaped(text),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
    };
    if text.is_empty() {
        out.extend(["<", name, "/>"]);
    } else {
        out.extend(["<", name, ">", &text, "</", name, ">"]);
    }
}

fn parent(out: &mut String, name: &str, map: &Map<String, Value>) {
    out.extend(["<", name]);
    if name == DATA {
        out.push('>');
        map.iter().for_each(|(key, value)| element(out, &encoded(key), value));
    } else {
        for (key, value) in map {
            if let (Some(key), Some(value)) = (key.strip_prefix('@'), plain(value)) {
                out.extend([" ", key, "=\"", &escaped(&value), "\""]);
            }
        }
        out.push('>');
        for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('@')) {
            match plain(value) {
                Some(text) if key == "$" => out.push_str(&escaped(&text)),
                _ => element(out, key, value),
            }
        }
    }
    out.extend(["</", name, ">"]);
}

/// The text of a scalar.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Replaces characters that XML 1.0 (2.2) cannot represent by the replacement character.
fn escaped(text: &str) -> String {
    let representable = |c: char| match c {
        '\t' | '\n' | '\r' | '\u{20}'..='\u{fffd}' | '\u{10000}'.. => c,
        _ => char::REPLACEMENT_CHARACTER,
    };
    let text: String = text.chars().map(representable).collect();
    escape(text.as_str()).into_owned()
}

/// Encodes a key as an element name. A colon would denote a namespace.
fn encoded(key: &str) -> String {
    if key.is_empty() {
        return "_x_".into();
    }
    let mut name = String::new();
    let mut rest = key.chars().peekable();
    while let Some(c) = rest.next() {
        let first = name.is_empty();
        let plain = c.is_ascii_alphabetic()
            || (c == '_' && rest.peek() != Some(&'x'))
            || (!first && (c.is_ascii_digit() || c == '-' || c == '.'));
        if plain {
            name.push(c);
        } else {
            name.push_str(&format!("_x{:04X}_", u32::from(c)));
        }
    }
    name
}

/// Decodes a key written by [`encoded`]; other text is unchanged.
fn decoded(name: &str) -> String {
    let mut key = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("_x") {
        let code = rest[at + 2..].split_once('_');
        let char = code.and_then(|(hex, after)| {
            let char = if hex.is_empty() { None } else { Some(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?) };
            Some((char, after))
        });
        key.push_str(&rest[..at]);
        match char {
            Some((char, after)) => {
                key.extend(char);
                rest = after;
            }
            None => {
                key.push_str("_x");
                rest = &rest[at + 2..];
            }
        }
    }
    key.push_str(rest);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn xml_is_converted_to_eurekas_json() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <instance><!-- ours --><hostName>a &amp; b&#33;</hostName><port enabled="true">8080</port>
            <metadata class="java.util.Collections$EmptyMap"/><status><![CDATA[UP]]></status>
            <dataCenterInfo class="x.Y$Z"><name>MyOwn</name></dataCenterInfo>
            <list>1</list><list>2</list></instance>"#;
        let expected = json!({ "instance": {
            "hostName": "a & b!",
            "port": { "@enabled": "true", "$": "8080" },
            "metadata": "",
            "status": "UP",
            "dataCenterInfo": { "@class": "x.Y$Z", "name": "MyOwn" },
            "list": ["1", "2"],
        }});
        assert_eq!(read(text).unwrap(), expected);
        let again = write(expected.as_object().unwrap());
        assert_eq!(read(&again).unwrap(), expected, "{again}");
    }

    #[test]
    fn invalid_documents_are_refused_with_the_position() {
        for (text, words) in [
            ("", "ends before"),
            ("<a><b></a>", "at byte 6"),
            ("<a>&missing;</a>", "\"missing\" is unknown"),
            ("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", "document types"),
            ("<a b=1/>", "at byte 0"),
            (&"<a>".repeat(MAX_DEPTH + 1), "too deep"),
            ("<a b='' c='' d='' e='' f='' g='' h='' i='' j=''/>", "more than 8 attributes"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn invalid_xml_names_are_encoded() {
        for (key, name) in [
            ("management.port", "management.port"),
            ("app_name", "app_name"),
            ("a:b c", "a_x003A_b_x0020_c"),
            ("1st", "_x0031_st"),
            ("_x", "_x005F_x"),
            ("", "_x_"),
        ] {
            assert_eq!((encoded(key).as_str(), decoded(name).as_str()), (name, key));
        }
        assert_eq!(decoded("_xyz_ a_x"), "_xyz_ a_x");
    }

    proptest! {
        #[test]
        fn documents_round_trip(data in proptest::collection::btree_map(".*", "[^\u{0}-\u{8}\u{b}\u{c}\u{e}-\u{1f}\u{fffe}\u{ffff}]*", 1..5)) {
            let document = json!({ "metadata": data });
            let text = write(document.as_object().unwrap());
            prop_assert_eq!(read(&text).unwrap(), document, "{}", text);
        }

        #[test]
        fn arbitrary_input_never_panics(text in "[<>&;/a-c!?\\[\\]\"= -]{0,60}") {
            let _ = read(&text);
        }
    }
}
