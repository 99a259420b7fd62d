//! Consul's `filter` expressions over the items of a response: `Service.Meta.zone == "a" and "v1" in Service.Tags`.
//!
//! Semantics of Consul's documentation ("Filtering"): a selector into a list is true if it is true for any element, a
//! missing key of a map is neither equal to nor in anything, and a field that no item has is an error of the client.

use std::iter::Peekable;
use std::str::CharIndices;

use regex::Regex;
use serde_json::Value;

use crate::error::ApiError;
use crate::query::Query;

/// Maximum length of an expression, in bytes.
const MAX_LENGTH: usize = 8 * 1024;
/// Maximum nesting of parentheses and `not`.
const MAX_DEPTH: u32 = 64;
/// Fields whose keys are data, so that a missing key is not an error.
const MAPS: [&str; 8] =
    ["Meta", "NodeMeta", "ServiceMeta", "TaggedAddresses", "ServiceTaggedAddresses", "Proxy", "Connect", "Definition"];

/// A parsed expression.
#[derive(Debug)]
pub struct Filter(Expression);

#[derive(Debug)]
enum Expression {
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Not(Box<Expression>),
    Match(Vec<String>, Operator),
}

#[derive(Debug)]
enum Operator {
    Equal(String),
    NotEqual(String),
    In(String),
    NotIn(String),
    Empty,
    NotEmpty,
    Matches(Regex),
    NotMatches(Regex),
}

impl Filter {
    /// Parses the query's `filter`, if any.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn of(query: &Query) -> Result<Option<Filter>, ApiError> {
        let text = query.value("filter").filter(|text| !text.is_empty());
        text.map(|text| Filter::parse(text).map_err(ApiError::bad_request)).transpose()
    }

    /// Parses an expression.
    ///
    /// # Errors
    /// The mistake and its position.
    pub fn parse(text: &str) -> Result<Filter, String> {
        let refused = |why: String| format!("Failed to create boolean expression evaluator: {why}");
        if text.len() > MAX_LENGTH {
            return Err(refused(format!("the filter is longer than {MAX_LENGTH} bytes")));
        }
        let mut parser = Parser { tokens: tokens(text).map_err(refused)?.into_iter().peekable(), depth: 0 };
        let expression = parser.or().map_err(refused)?;
        match parser.tokens.next() {
            None => Ok(Filter(expression)),
            Some(token) => Err(refused(format!("{} is not expected there", token.describe()))),
        }
    }

    /// Whether the filter matches `item`.
    ///
    /// # Errors
    /// If the filter has a field that the item lacks.
    pub fn wants(&self, item: &Value) -> Result<bool, String> {
        self.0.holds(item)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A word or a number.
    Word(String),
    /// A quoted string, never a keyword.
    Quoted(String),
    Open,
    Close,
    Equal,
    NotEqual,
    /// `["key"]`, belonging to the preceding selector.
    Key(String),
}

impl Token {
    fn describe(&self) -> String {
        match self {
            Token::Word(word) => format!("{word:?}"),
            Token::Quoted(text) => format!("the string {text:?}"),
            Token::Open => "\"(\"".into(),
            Token::Close => "\")\"".into(),
            Token::Equal => "\"==\"".into(),
            Token::NotEqual => "\"!=\"".into(),
            Token::Key(key) => format!("[{key:?}]"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut list = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            '"' | '`' => Token::Quoted(quoted(&mut chars, c)?),
            '=' if chars.next_if(|(_, c)| *c == '=').is_some() => Token::Equal,
            '!' if chars.next_if(|(_, c)| *c == '=').is_some() => Token::NotEqual,
            '[' => {
                let quote = chars.next().map(|(_, c)| c).filter(|c| matches!(c, '"' | '`'));
                let key = quoted(&mut chars, quote.ok_or("\"[\" is followed by a quoted key")?)?;
                if chars.next().map(|(_, c)| c) != Some(']') {
                    return Err(format!("\"]\" is missing after [{key:?}"));
                }
                Token::Key(key)
            }
            c if is_word(c) => {
                let mut end = at + c.len_utf8();
                while let Some((at, c)) = chars.next_if(|(_, c)| is_word(*c)) {
                    end = at + c.len_utf8();
                }
                Token::Word(text[at..end].to_owned())
            }
            c => return Err(format!("{c:?} at offset {at} is not part of an expression")),
        };
        list.push(token);
    }
    Ok(list)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '|' | '~')
}

fn quoted(chars: &mut Peekable<CharIndices<'_>>, quote: char) -> Result<String, String> {
    let mut text = String::new();
    while let Some((_, c)) = chars.next() {
        match c {
            c if c == quote => return Ok(text),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                Some((_, c)) => text.extend(['\\', c]),
                None => break,
            },
            c => text.push(c),
        }
    }
    Err(format!("the string that begins with {:?} has no end", text.chars().take(20).collect::<String>()))
}

struct Parser {
    tokens: Peekable<std::vec::IntoIter<Token>>,
    depth: u32,
}

impl Parser {
    fn keyword(&mut self, word: &str) -> bool {
        self.tokens.next_if(|token| matches!(token, Token::Word(text) if text == word)).is_some()
    }

    fn or(&mut self) -> Result<Expression, String> {
        self.joined("or", Self::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Expression, String> {
        self.joined("and", Self::not, Expression::And)
    }

    fn joined(
        &mut self,
        word: &str,
        mut part: impl FnMut(&mut Self) -> Result<Expression, String>,
        join: impl FnOnce(Vec<Expression>) -> Expression,
    ) -> Result<Expression, String> {
        let first = part(self)?;
        if !self.keyword(word) {
            return Ok(first);
        }
        let mut all = vec![first, part(self)?];
        while self.keyword(word) {
            all.push(part(self)?);
        }
        Ok(join(all))
    }

    fn not(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested more than {MAX_DEPTH} deep"));
        }
        let expression = if self.keyword("not") {
            Ok(Expression::Not(Box::new(self.not()?)))
        } else if self.tokens.next_if_eq(&Token::Open).is_some() {
            let inner = self.or()?;
            let closed = self.tokens.next_if_eq(&Token::Close);
            closed.map(|_| inner).ok_or_else(|| "\")\" is missing".to_owned())
        } else {
            self.comparison()
        };
        self.depth -= 1;
        expression
    }

    /// `selector op value`, `selector op`, or `value op selector`.
    fn comparison(&mut self) -> Result<Expression, String> {
        let first = self.tokens.next().ok_or("the expression ends where a selector or a value is expected")?;
        let keys = self.keys();
        if self.keyword("in") {
            return Ok(Expression::Match(self.selector()?, Operator::In(value(first)?)));
        }
        let negated = self.keyword("not");
        if negated && self.keyword("in") {
            return Ok(Expression::Match(self.selector()?, Operator::NotIn(value(first)?)));
        }
        let selector = selector(first, keys)?;
        let operator = match self.tokens.next() {
            Some(Token::Equal) if !negated => Operator::Equal(self.value()?),
            Some(Token::NotEqual) if !negated => Operator::NotEqual(self.value()?),
            Some(Token::Word(word)) => match (word.as_str(), negated) {
                ("contains", false) => Operator::In(self.value()?),
                ("contains", true) => Operator::NotIn(self.value()?),
                ("matches", false) => Operator::Matches(regex(&self.value()?)?),
                ("matches", true) => Operator::NotMatches(regex(&self.value()?)?),
                ("is", false) => {
                    let negated = self.keyword("not");
                    if !self.keyword("empty") {
                        return Err("\"is\" is followed by \"empty\" or \"not empty\"".into());
                    }
                    if negated { Operator::NotEmpty } else { Operator::Empty }
                }
                _ => return Err(format!("{word:?} is not an operator")),
            },
            Some(token) => return Err(format!("{} is not an operator", token.describe())),
            None => return Err(format!("an operator is missing after {:?}", selector.join("."))),
        };
        Ok(Expression::Match(selector, operator))
    }

    fn keys(&mut self) -> Vec<String> {
        let mut keys = Vec::new();
        while let Some(Token::Key(key)) = self.tokens.next_if(|token| matches!(token, Token::Key(_))) {
            keys.push(key);
        }
        keys
    }

    fn selector(&mut self) -> Result<Vec<String>, String> {
        let first = self.tokens.next().ok_or("a selector is missing at the end")?;
        let keys = self.keys();
        selector(first, keys)
    }

    fn value(&mut self) -> Result<String, String> {
        value(self.tokens.next().ok_or("a value is missing at the end")?)
    }
}

fn value(token: Token) -> Result<String, String> {
    match token {
        Token::Word(text) | Token::Quoted(text) => Ok(text),
        token => Err(format!("{} is not a value", token.describe())),
    }
}

/// `A.B["c"]`, or `"/A/B/c"`.
fn selector(first: Token, keys: Vec<String>) -> Result<Vec<String>, String> {
    let path: Vec<String> = match &first {
        Token::Word(text) => text.split('.').map(str::to_owned).collect(),
        Token::Quoted(text) if text.starts_with('/') => {
            text[1..].split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect()
        }
        token => return Err(format!("{} is not a selector", token.describe())),
    };
    if path.iter().any(String::is_empty) {
        return Err(format!("{} is not a selector", first.describe()));
    }
    Ok(path.into_iter().chain(keys).collect())
}

fn regex(pattern: &str) -> Result<Regex, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|e| format!("{pattern:?} is not a regular expression: {e}"))
}

impl Expression {
    fn holds(&self, item: &Value) -> Result<bool, String> {
        match self {
            Expression::And(all) => {
                for part in all {
                    if !part.holds(item)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Expression::Or(any) => {
                for part in any {
                    if part.holds(item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Expression::Not(inner) => Ok(!inner.holds(item)?),
            Expression::Match(path, operator) => {
                operator.at(item, path, false).map_err(|()| format!("Selector {:?} is not valid", path.join(".")))
            }
        }
    }
}

impl Operator {
    /// Evaluates the operator on the value at `path` below `from`. `data`: `from` is a map whose keys are data.
    fn at(&self, from: &Value, path: &[String], data: bool) -> Result<bool, ()> {
        let Some((key, rest)) = path.split_first() else { return self.of(from) };
        match from {
            Value::Array(all) => {
                for one in all {
                    if self.at(one, path, data)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Value::Object(fields) => match fields.get(key) {
                Some(value) => self.at(value, rest, MAPS.contains(&key.as_str())),
                None if data => Ok(self.of_nothing()),
                None => Err(()),
            },
            // A map or list that an item may lack.
            Value::Null => Ok(self.of_nothing()),
            _ => Err(()),
        }
    }

    fn of(&self, value: &Value) -> Result<bool, ()> {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(bool) => Some(bool.to_string()),
            _ => None,
        };
        let has = |wanted: &String| match value {
            Value::Array(all) => Ok(all.iter().any(|one| text(one).as_ref() == Some(wanted))),
            Value::Object(fields) => Ok(fields.contains_key(wanted)),
            Value::String(text) => Ok(text.contains(wanted.as_str())),
            Value::Null => Ok(false),
            _ => Err(()),
        };
        let empty = || match value {
            Value::Array(all) => Ok(all.is_empty()),
            Value::Object(fields) => Ok(fields.is_empty()),
            Value::String(text) => Ok(text.is_empty()),
            Value::Null => Ok(true),
            _ => Err(()),
        };
        match self {
            Operator::Equal(wanted) => text(value).map(|text| text == *wanted).ok_or(()),
            Operator::NotEqual(wanted) => text(value).map(|text| text != *wanted).ok_or(()),
            Operator::In(wanted) => has(wanted),
            Operator::NotIn(wanted) => has(wanted).map(|has| !has),
            Operator::Empty => empty(),
            Operator::NotEmpty => empty().map(|empty| !empty),
            Operator::Matches(pattern) => text(value).map(|text| pattern.is_match(&text)).ok_or(()),
            Operator::NotMatches(pattern) => text(value).map(|text| !pattern.is_match(&text)).ok_or(()),
        }
    }

    fn of_nothing(&self) -> bool {
        matches!(self, Operator::NotEqual(_) | Operator::NotIn(_) | Operator::Empty | Operator::NotMatches(_))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn item() -> Value {
        json!({
            "Node": { "Node": "n1", "Meta": {} },
            "Service": {
                "ID": "web-1", "Service": "web", "Tags": ["v1", "primary"], "Port": 8080,
                "Meta": { "zone": "a", "a.b": "c" }, "EnableTagOverride": false, "TaggedAddresses": null,
            },
            "Checks": [{ "CheckID": "one", "Status": "passing" }, { "CheckID": "two", "Status": "critical" }],
        })
    }

    #[test]
    fn expressions_are_evaluated_as_in_consul() {
        for (text, wanted) in [
            (r#"Service.ID == "web-1""#, true),
            ("Service.ID == web-1", true),
            ("Service.ID != `web-1`", false),
            ("Service.Port == 8080", true),
            ("Service.EnableTagOverride == false", true),
            (r#""v1" in Service.Tags"#, true),
            ("v2 in Service.Tags", false),
            ("v2 not in Service.Tags", true),
            (r#"Service.Tags contains "primary""#, true),
            (r#"Service.Tags not contains "primary""#, false),
            (r#"Service.Meta.zone == a and "v1" in Service.Tags"#, true),
            ("Service.Meta.rack == a", false),
            ("Service.Meta.rack != a", true),
            ("Service.Meta.rack is empty", true),
            ("zone in Service.Meta", true),
            (r#"Service.Meta["a.b"] == c"#, true),
            (r#""/Service/Meta/a.b" == c"#, true),
            ("Node.Meta is empty", true),
            ("Service.Tags is not empty", true),
            ("Service.TaggedAddresses.lan == x", false),
            // Any element of a list.
            ("Checks.Status == critical", true),
            ("Checks.Status == warning", false),
            (r#"Service.Service matches "^w.b$""#, true),
            (r#"Service.Service not matches "^w.b$""#, false),
            // Precedence: "not" over "and" over "or".
            ("Service.ID == x or Service.ID == web-1 and Service.Port == 8080", true),
            ("(Service.ID == web-1 or Service.ID == x) and Service.Port == 1", false),
            ("not Service.ID == x and not (Service.Port == 1)", true),
        ] {
            assert_eq!(Filter::parse(text).and_then(|f| f.wants(&item())), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn invalid_expressions_are_refused_with_the_position() {
        for (text, part) in [
            ("", "ends where a selector"),
            ("Service.ID", "operator is missing"),
            ("Service.ID ==", "value is missing"),
            ("Service.ID = x", "'=' at offset 11"),
            ("Service.ID == \"x", "has no end"),
            ("(Service.ID == x", "\")\" is missing"),
            ("Service.ID == x Service", "\"Service\" is not expected"),
            ("Service.ID is x", "followed by \"empty\""),
            ("Service.ID like x", "\"like\" is not an operator"),
            ("Service..ID == x", "not a selector"),
            ("Service.ID matches \"(\"", "not a regular expression"),
            ("\"x\" == Service.ID", "is not a selector"),
        ] {
            let problem = Filter::parse(text).map(|_| ()).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
        for (text, selector) in [("Service.Nmae == x", "Service.Nmae"), ("Service.Port is empty", "Service.Port")] {
            let problem = Filter::parse(text).unwrap().wants(&item()).unwrap_err();
            assert_eq!(problem, format!("Selector {selector:?} is not valid"));
        }
        assert!(Filter::parse(&"(".repeat(5000)).is_err());
        assert!(Filter::parse(&"not ".repeat(2000)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "([a-zA-Z. ()=!\"`\\[\\]/]|in |not |and |or |is |empty |matches |contains ){0,40}") {
            if let Ok(filter) = Filter::parse(&text) {
                let _ = filter.wants(&item());
            }
        }
    }
}
