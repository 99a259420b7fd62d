//! YAML as a tree whose every node has its line and column.
//!
//! serde would lose the places, and with them the line of a mistake, so this reads the parser's events itself. Scalars
//! stay text and are resolved (YAML 1.2 core schema) when a type is expected. Files are untrusted: size, depth and node
//! count are bounded, and anchors, whose expansion is not, are refused.

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// Largest text.
pub const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Most nodes of a text.
pub const MAX_NODES: usize = 500_000;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

/// A value and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its first character.
    pub place: Place,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unique keys in the order written.
    Map(Vec<(Key, Node)>),
    /// A list.
    Seq(Vec<Node>),
    /// Text; `plain` if it was not quoted and so may be a number or a boolean.
    Scalar {
        /// Unescaped.
        text: String,
        /// Not quoted.
        plain: bool,
    },
    /// Nothing, `~` or `null`.
    Null,
}

/// A key and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// As text, whatever its type in YAML.
    pub name: String,
    /// Its first character.
    pub place: Place,
}

/// The reason why a text is not YAML, or is not accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct YamlError {
    /// The place of the error.
    pub place: Place,
    /// The error.
    pub text: String,
}

/// One document of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct YamlDocument {
    /// Its value.
    pub root: Node,
    /// The text of its lines.
    pub text: String,
}

impl Node {
    /// The text of a string: quoted, or plain and of no other type in the core schema.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, plain } if !plain || !is_bool_or_number(text) => Some(text),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        match self.plain()? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        }
    }

    /// An integer.
    pub fn as_i64(&self) -> Option<i64> {
        parse_int(self.plain()?)
    }

    /// A number, with a fraction or without; finite.
    pub fn as_f64(&self) -> Option<f64> {
        let text = self.plain()?;
        // Rust's parser also accepts inf and nan, which begin otherwise.
        let digits = text.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
        text.parse().ok().filter(|number: &f64| digits && number.is_finite())
    }

    /// The value of a map's key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// An item of a list.
    pub fn item(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::Seq(items) => items.get(index),
            _ => None,
        }
    }

    /// The type of the value, for messages.
    pub fn describe(&self) -> &'static str {
        match &self.value {
            Value::Map(_) => "a map",
            Value::Seq(_) => "a list",
            Value::Null => "nothing",
            Value::Scalar { .. } if self.as_str().is_some() => "a string",
            Value::Scalar { .. } if self.as_bool().is_some() => "a boolean",
            Value::Scalar { .. } => "a number",
        }
    }

    /// The value as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
            Value::Scalar { text, .. } => match (self.as_bool(), self.as_i64(), self.as_f64()) {
                (Some(flag), ..) => flag.into(),
                (_, Some(number), _) => number.into(),
                (_, _, Some(number)) => number.into(),
                _ => text.clone().into(),
            },
        }
    }

    fn plain(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, plain: true } => Some(text),
            _ => None,
        }
    }
}

fn parse_int(text: &str) -> Option<i64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok();
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i64::from_str_radix(octal, 8).ok();
    }
    text.parse().ok()
}

fn is_bool_or_number(text: &str) -> bool {
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") || parse_int(text).is_some() {
        return true;
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") || is_float(unsigned)
}

/// `[0-9]+ (. [0-9]*)? (e [+-]? [0-9]+)?` or without digits before the point. Rust's own parser also accepts "inf" and
/// "nan", which are words in YAML.
fn is_float(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && text.contains(|c: char| c.is_ascii_digit())
        && text.parse::<f64>().is_ok()
}

/// Reads all documents of `text`. After a syntax error the documents before it are still returned.
pub fn parse(text: &str) -> (Vec<YamlDocument>, Vec<YamlError>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        let text = format!("the file has {} bytes, more than the {MAX_BYTES} that are accepted", text.len());
        return (Vec::new(), vec![YamlError { place: Place { line: 1, column: 1 }, text }]);
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), nodes: 0, errors: Vec::new() };
    let mut found = Vec::new();
    if let Err(error) = reader.documents(&mut found) {
        reader.errors.push(error);
    }
    let lines: Vec<&str> = text.lines().collect();
    let ends: Vec<u32> = found.iter().skip(1).map(|(start, _)| *start).collect();
    let documents = found.into_iter().enumerate().map(|(n, (start, root))| {
        let end = ends.get(n).map_or(lines.len(), |end| *end as usize - 1);
        let lines = lines.get(start as usize - 1..end).unwrap_or_default();
        let lines = if lines.first().is_some_and(|line| line.trim_end() == "---") { &lines[1..] } else { lines };
        YamlDocument { root, text: format!("{}\n", lines.join("\n").trim_end()) }
    });
    (documents.collect(), reader.errors)
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    nodes: usize,
    errors: Vec<YamlError>,
}

impl<'a> Reader<'a> {
    fn documents(&mut self, found: &mut Vec<(u32, Node)>) -> Result<(), YamlError> {
        while let Some((event, span)) = self.next()? {
            match event {
                Event::DocumentStart(_) => {
                    // An implicit first document begins at the start of the text, comments included.
                    let start = if found.is_empty() { 1 } else { place(&span).line };
                    if let Some((event, span)) = self.next()? {
                        let root = self.node(event, &span, 0)?;
                        found.push((start, root));
                    }
                }
                Event::StreamEnd => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, YamlError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => {
                let marker = error.marker();
                Err(YamlError { place: at(marker.line(), marker.col()), text: format!("not YAML: {}", error.info()) })
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, YamlError> {
        let place = place(span);
        let refuse = |text: &str| Err(YamlError { place, text: text.to_owned() });
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return refuse("the file has too many values: at most 500,000 are accepted");
        }
        if depth > MAX_DEPTH {
            return refuse("nested too deeply: at most 64 levels are accepted");
        }
        let (anchor, tagged) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if anchor != 0 || matches!(event, Event::Alias(_)) {
            return refuse("anchors and aliases are not accepted: write the value out");
        }
        if tagged {
            return refuse("tags are not accepted: quote the value where it must be a string");
        }
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") => {
                Value::Null
            }
            Event::Scalar(text, style, ..) => {
                Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                while let Some((event, span)) = self.next()? {
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, &span, depth + 1)?);
                }
                Value::Seq(items)
            }
            Event::MappingStart(..) => self.map(depth)?,
            _ => return refuse("not YAML: a value is missing"),
        };
        Ok(Node { value, place })
    }

    fn map(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((event, span)) = self.next()? {
            let place = place(&span);
            let name = match event {
                Event::MappingEnd => break,
                Event::Scalar(ref text, _, 0, None) => text.clone().into_owned(),
                Event::Scalar(..) | Event::Alias(_) => {
                    let text = "anchors, aliases and tags are not accepted".to_owned();
                    return Err(YamlError { place, text });
                }
                _ => return Err(YamlError { place, text: "a key must be a single word".to_owned() }),
            };
            let Some((event, span)) = self.next()? else { break };
            let mut value = self.node(event, &span, depth + 1)?;
            if value.value == Value::Null {
                // An absent value has no place of its own.
                value.place = place;
            }
            if seen.insert(name.clone()) {
                entries.push((Key { name, place }, value));
            } else {
                self.errors.push(YamlError { place, text: format!("`{name}` is given twice") });
            }
        }
        Ok(Value::Map(entries))
    }
}

fn place(span: &Span) -> Place {
    at(span.start.line(), span.start.col())
}

fn at(line: usize, column_from_0: usize) -> Place {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: small(line.max(1)), column: small(column_from_0 + 1) }
}

#[cfg(test)]
mod tests;
