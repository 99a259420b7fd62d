//! The decoder of all kinds: the known fields of a map are declared once, as a [`Shape`].
//!
//! The shape finds unknown fields (an error that names the nearest known one) and fields of Istio that Weft does not
//! support (also an error: a policy that silently does less than its text is worse than none), and is the source of the
//! table of all fields (`table.rs`). Decoding does not stop at the first problem: a reader returns a default and goes
//! on, and the document is dropped at the end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use crate::decode::duration;
use crate::yaml::{Key, Node, Place, Value};
use crate::{
    names,
    nearest::{nearest, suggest},
    problem::{Code, Problem, Severity},
};

/// The known fields of an object.
pub(crate) type Shape = &'static [Field];

/// One known field.
#[derive(PartialEq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) is: Is,
}

#[derive(PartialEq)]
pub(crate) enum Is {
    /// Read by the decoder of its object. `""`, `0` and empty lists and maps mean absence, as in proto3.
    Read,
    /// The same, with presence of its own (a member of a `oneof`, a wrapper such as `UInt32Value`): `""` and `0` are
    /// values.
    Explicit,
    /// Read, and an object (or a list of objects) of its own.
    Object(Shape),
    /// Istio's, and an error, with the alternative for its author or the reason.
    Refused(&'static str),
    /// Istio's, without effect on traffic: a warning.
    Skipped,
}

/// A supported field.
pub(crate) const fn read(name: &'static str) -> Field {
    Field { name, is: Is::Read }
}

/// A supported field for which an empty or zero value is not absence.
pub(crate) const fn explicit(name: &'static str) -> Field {
    Field { name, is: Is::Explicit }
}

/// A supported object or list of objects.
pub(crate) const fn object(name: &'static str, shape: Shape) -> Field {
    Field { name, is: Is::Object(shape) }
}

/// A field that is an error; `why` continues "is not supported: ".
pub(crate) const fn refused(name: &'static str, why: &'static str) -> Field {
    Field { name, is: Is::Refused(why) }
}

/// A field without effect on traffic, in a file that also has other fields: it is skipped with a warning.
pub(crate) const fn skipped(name: &'static str) -> Field {
    Field { name, is: Is::Skipped }
}

/// A field that is not supported yet: an error.
pub(crate) const fn not_yet(name: &'static str) -> Field {
    refused(name, "")
}

/// Collects the problems of one file.
pub(crate) struct Decoder<'a> {
    file: &'a str,
    problems: RefCell<Vec<Problem>>,
    errors: Cell<usize>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(file: &'a str) -> Self {
        Self { file, problems: RefCell::default(), errors: Cell::default() }
    }

    pub(crate) fn report(&self, severity: Severity, code: Code, place: Place, path: &str, text: impl Into<String>) {
        let (file, path, text) = (self.file.to_owned(), path.to_owned(), text.into());
        // Many decoders find unsupported values, always with these words.
        let code = if text.contains(" not supported") { Code::NotSupported } else { code };
        self.errors.update(|errors| errors + usize::from(severity == Severity::Error));
        self.problems.borrow_mut().push(Problem { file, place, severity, code, path, text });
    }

    /// The number of errors until now.
    pub(crate) fn errors(&self) -> usize {
        self.errors.get()
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// `node` as an object of `shape`; fields that are not in the shape are reported at once.
    pub(crate) fn fields(&'a self, node: &'a Node, path: String, shape: Shape) -> Fields<'a> {
        let entries: &[(Key, Node)] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                let text = format!("`{path}` must be a map, not {}", node.describe());
                self.report(Severity::Error, Code::InvalidValue, node.place, &path, text);
                &[]
            }
        };
        let fields = Fields { decoder: self, path, place: node.place, entries, shape };
        for (key, _) in entries {
            fields.check_known(key);
        }
        fields
    }
}

/// An object being decoded.
pub(crate) struct Fields<'a> {
    decoder: &'a Decoder<'a>,
    /// From `spec`, such as `subsets[0].trafficPolicy`.
    pub(crate) path: String,
    /// The place of the object's first character.
    pub(crate) place: Place,
    entries: &'a [(Key, Node)],
    shape: Shape,
}

impl<'a> Fields<'a> {
    fn check_known(&self, key: &Key) {
        let path = self.path_of(&key.name);
        let (code, text) = match self.shape.iter().find(|field| field.name == key.name) {
            Some(Field { is: Is::Refused(""), .. }) => (Code::NotSupported, format!("`{path}` is not supported yet")),
            Some(Field { is: Is::Refused(why), .. }) => {
                (Code::NotSupported, format!("`{path}` is not supported: {why}"))
            }
            Some(Field { is: Is::Skipped, .. }) => return self.skip(&path, key.place),
            Some(_) => return,
            None => {
                let known: Vec<&str> = self.shape.iter().map(|field| field.name).collect();
                let hint = suggest(&key.name, &known, "known here are");
                (Code::UnknownField, format!("unknown field `{}`{hint}", key.name))
            }
        };
        self.decoder.report(Severity::Error, code, key.place, &path, text);
    }

    /// Warns that the field at `path` is skipped.
    pub(crate) fn skip(&self, path: &str, place: Place) {
        let text = format!("`{path}` does not concern the traffic: skipped");
        self.decoder.report(Severity::Warning, Code::ForeignField, place, path, text);
    }

    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value of `name`, unless it is absent, null or, in a field without presence, empty or zero.
    pub(crate) fn node(&self, name: &'static str) -> Option<&'a Node> {
        self.written_node(name).filter(|node| !self.is_unset(name, &node.value))
    }

    /// The value of `name` as written, unless it is absent or null.
    pub(crate) fn written_node(&self, name: &'static str) -> Option<&'a Node> {
        debug_assert!(self.shape.iter().any(|field| field.name == name), "`{name}` is not declared");
        self.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node).filter(|n| n.value != Value::Null)
    }

    /// Whether a value means that its field is not set: Istio's fields are proto3's, and most have no other
    /// representation of absence.
    fn is_unset(&self, name: &str, value: &Value) -> bool {
        let is = self.shape.iter().find(|field| field.name == name).map(|field| &field.is);
        match value {
            Value::Null => true,
            Value::Seq(items) => items.is_empty(),
            // A written message is set even if it is empty; a map is not.
            Value::Map(entries) => entries.is_empty() && !matches!(is, Some(Is::Object(_))),
            Value::Scalar { text, plain } => {
                matches!(is, Some(Is::Read)) && (text.is_empty() || (*plain && text == "0"))
            }
        }
    }

    /// Whether `name` is written at all, even if empty: `outlierDetection: {}` and `retries:` have a meaning.
    pub(crate) fn has(&self, name: &'static str) -> bool {
        self.node(name).is_some()
    }

    /// Whether the shape has a field `name`.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.shape.iter().any(|field| field.name == name)
    }

    /// The number of written fields.
    pub(crate) fn written(&self) -> usize {
        self.entries.len()
    }

    /// The place of `name`, or of the object if `name` is absent.
    pub(crate) fn place_of(&self, name: &str) -> Place {
        self.entries.iter().find(|(key, _)| key.name == name).map_or(self.place, |(_, node)| node.place)
    }

    /// Reports an error of `name`.
    pub(crate) fn error(&self, name: &str, text: impl Into<String>) {
        let path = self.path_of(name);
        self.decoder.report(Severity::Error, Code::InvalidValue, self.place_of(name), &path, text);
    }

    /// Reports an error at a place of its own.
    pub(crate) fn error_at(&self, place: Place, text: impl Into<String>) {
        self.decoder.report(Severity::Error, Code::InvalidValue, place, &self.path, text);
    }

    /// Reports a problem at a place of its own.
    pub(crate) fn report(&self, severity: Severity, code: Code, place: Place, name: &str, text: impl Into<String>) {
        self.decoder.report(severity, code, place, &self.path_of(name), text);
    }

    /// Reports a warning about `name`.
    pub(crate) fn warn(&self, name: &str, text: impl Into<String>) {
        let path = self.path_of(name);
        self.decoder.report(Severity::Warning, Code::Ineffective, self.place_of(name), &path, text);
    }

    /// Whether an unknown field is probably a misspelled `name`: then its absence is not reported separately.
    pub(crate) fn misspelled(&self, name: &str) -> bool {
        let known: Vec<&str> = self.shape.iter().map(|field| field.name).collect();
        let mut unknown = self.entries.iter().map(|(key, _)| key.name.as_str()).filter(|key| !known.contains(key));
        unknown.any(|key| nearest(key, &known) == Some(name))
    }

    /// Reports that `name` must be given.
    pub(crate) fn require(&self, name: &'static str) {
        if !self.has(name) && !self.misspelled(name) {
            let path = self.path_of(name);
            let text = match self.written_node(name) {
                Some(_) => format!("`{path}` is required and must not be empty"),
                None => format!("`{path}` is required"),
            };
            self.decoder.report(Severity::Error, Code::Required, self.place_of(name), &path, text);
        }
    }

    pub(crate) fn string(&self, name: &'static str) -> Option<String> {
        self.text(self.node(name)?, &self.path_of(name))
    }

    pub(crate) fn required_string(&self, name: &'static str) -> String {
        self.require(name);
        self.string(name).unwrap_or_default()
    }

    pub(crate) fn boolean(&self, name: &'static str) -> Option<bool> {
        let node = self.node(name)?;
        self.expect(node, &self.path_of(name), node.as_bool(), "true or false")
    }

    /// An integer within `range`.
    pub(crate) fn number(&self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<u64> {
        self.number_of(self.node(name)?, &self.path_of(name), range)
    }

    /// An integer that fits the wire; Istio's `int32` limits, for which 0 means unset.
    pub(crate) fn limit(&self, name: &'static str) -> Option<u32> {
        self.number(name, 0..=i64::from(i32::MAX)).and_then(|n| u32::try_from(n).ok())
    }

    /// Integers within `range`.
    pub(crate) fn numbers(&self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> Vec<u64> {
        let path = self.path_of(name);
        let items = self.seq(name).iter().enumerate();
        items.filter_map(|(n, node)| self.number_of(node, &format!("{path}[{n}]"), range.clone())).collect()
    }

    /// A number within `range`, with a fraction or without.
    pub(crate) fn decimal(&self, name: &'static str, range: std::ops::RangeInclusive<f64>) -> Option<f64> {
        let node = self.node(name)?;
        let value = node.as_f64().filter(|n| range.contains(n));
        let wanted = match *range.end() {
            f64::MAX => format!("a number, at least {}", range.start()),
            most => format!("a number from {} to {most}", range.start()),
        };
        self.expect(node, &self.path_of(name), value, &wanted)
    }

    /// A port number.
    pub(crate) fn port(&self, name: &'static str) -> Option<u32> {
        self.number(name, 1..=65535).and_then(|n| u32::try_from(n).ok())
    }

    /// Milliseconds, at least `least`.
    pub(crate) fn duration(&self, name: &'static str, least: u64) -> Option<u64> {
        // An empty message cannot be distinguished from an absent one in Istio.
        let node = self.written_node(name)?;
        let text = self.text(node, &self.path_of(name))?;
        let wrong = match duration::parse_ms(&text) {
            Ok(ms) if ms >= least => return Some(ms),
            Ok(_) => format!("must be at least {least}ms"),
            Err(why) => why.to_owned(),
        };
        self.error(name, format!("`{}`: \"{text}\" {wrong}", self.path_of(name)));
        None
    }

    /// One of `values`, exactly as spelled.
    pub(crate) fn one_of<T: Copy>(&self, name: &'static str, values: &[(&str, T)]) -> Option<T> {
        let text = self.string(name)?;
        if let Some((_, value)) = values.iter().find(|(known, _)| *known == text) {
            return Some(*value);
        }
        let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
        let hint = suggest(&text, &known, "allowed are");
        self.error(name, format!("`{}`: unknown value `{text}`{hint}", self.path_of(name)));
        None
    }

    pub(crate) fn strings(&self, name: &'static str) -> Vec<(String, Place)> {
        let path = self.path_of(name);
        let items = self.seq(name).iter().enumerate();
        items.filter_map(|(n, node)| Some((self.text(node, &format!("{path}[{n}]"))?, node.place))).collect()
    }

    pub(crate) fn string_map(&self, name: &'static str) -> BTreeMap<String, String> {
        let path = self.path_of(name);
        let entries = self.map(name).iter();
        entries
            .filter_map(|(key, node)| Some((key.name.clone(), self.text(node, &format!("{path}.{}", key.name))?)))
            .collect()
    }

    /// The labels of an object, which must be valid in Kubernetes.
    pub(crate) fn labels(&self, name: &'static str) -> BTreeMap<String, String> {
        for (key, node) in self.map(name) {
            if !names::is_label_key(&key.name) {
                let text = format!(
                    "`{}` is not a label's name: letters, digits, `-`, `_` and `.`, at most 63, with a DNS prefix and `/` \
                     before them or none",
                    key.name
                );
                self.error_at(key.place, text);
            }
            if node.as_str().is_some_and(|value| !names::is_label_value(value)) {
                let text = format!(
                    "`{}.{}` must be letters, digits, `-`, `_` and `.`, at most 63, with a letter or digit at both ends",
                    self.path_of(name),
                    key.name
                );
                self.error_at(node.place, text);
            }
        }
        self.string_map(name)
    }

    /// The object `name`, with the shape that this object's shape declares for it.
    pub(crate) fn object(&self, name: &'static str) -> Option<Fields<'a>> {
        Some(self.decoder.fields(self.node(name)?, self.path_of(name), self.shape_of(name)))
    }

    /// The objects of the list `name`.
    pub(crate) fn objects(&self, name: &'static str) -> Vec<Fields<'a>> {
        let path = self.path_of(name);
        let items = self.seq(name).iter().enumerate();
        let paths = items.map(|(n, node)| (node, format!("{path}[{n}]")));
        paths.map(|(node, path)| self.decoder.fields(self.not_null(node, &path), path, self.shape_of(name))).collect()
    }

    /// Reports an entry of a list or map of objects that is null: in Istio it is neither an empty object nor none.
    fn not_null(&self, node: &'a Node, path: &str) -> &'a Node {
        if node.value == Value::Null {
            let text = format!("`{path}` must be a map, not null; an empty one is written {{}}");
            self.decoder.report(Severity::Error, Code::InvalidValue, node.place, path, text);
        }
        node
    }

    /// The objects of the map `name`, by key.
    pub(crate) fn object_map(&self, name: &'static str) -> Vec<(&'a Key, Fields<'a>)> {
        let path = self.path_of(name);
        let entries = self.map(name).iter();
        let paths = entries.map(|(key, node)| (key, node, format!("{path}.{}", key.name)));
        paths
            .map(|(key, node, path)| (key, self.decoder.fields(self.not_null(node, &path), path, self.shape_of(name))))
            .collect()
    }

    /// The numbers of the map `name`, by key.
    pub(crate) fn number_map(&self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> BTreeMap<String, u32> {
        let path = self.path_of(name);
        let number = |key: &Key, node| self.number_of(node, &format!("{path}.{}", key.name), range.clone());
        let entries = self.map(name).iter();
        entries.filter_map(|(key, node)| Some((key.name.clone(), u32::try_from(number(key, node)?).ok()?))).collect()
    }

    fn shape_of(&self, name: &str) -> Shape {
        self.shape
            .iter()
            .find_map(|field| match field.is {
                Is::Object(shape) if field.name == name => Some(shape),
                _ => None,
            })
            .unwrap_or_default()
    }

    fn seq(&self, name: &'static str) -> &'a [Node] {
        match self.node(name) {
            Some(Node { value: Value::Seq(items), .. }) => items,
            Some(node) => {
                self.error(name, format!("`{}` must be a list, not {}", self.path_of(name), node.describe()));
                &[]
            }
            None => &[],
        }
    }

    pub(crate) fn map(&self, name: &'static str) -> &'a [(Key, Node)] {
        match self.node(name) {
            Some(Node { value: Value::Map(entries), .. }) => entries,
            Some(node) => {
                self.error(name, format!("`{}` must be a map, not {}", self.path_of(name), node.describe()));
                &[]
            }
            None => &[],
        }
    }

    fn text(&self, node: &Node, path: &str) -> Option<String> {
        let hint = if matches!(node.value, Value::Scalar { .. }) { "a string: put it in quotes" } else { "a string" };
        self.expect(node, path, node.as_str().map(str::to_owned), hint)
    }

    fn number_of(&self, node: &Node, path: &str, range: std::ops::RangeInclusive<i64>) -> Option<u64> {
        let (least, most) = (*range.start(), *range.end());
        let value = node.as_i64().filter(|n| range.contains(n)).and_then(|n| u64::try_from(n).ok());
        self.expect(node, path, value, &format!("a whole number from {least} to {most}"))
    }

    fn expect<T>(&self, node: &Node, path: &str, value: Option<T>, wanted: &str) -> Option<T> {
        if value.is_none() {
            let text = format!("`{path}` must be {wanted}");
            self.decoder.report(Severity::Error, Code::InvalidValue, node.place, path, text);
        }
        value
    }
}
