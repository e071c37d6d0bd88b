//! Label selectors as the API server reads them: equality and set-based requirements with the same
//! grammar, leniencies and messages as k8s.io/apimachinery's `labels.Parse`. Knows nothing of our
//! reserved keys (see `query`).

use std::fmt;

/// The longest selector that is read; longer ones cost more than any user means.
pub const MAX_LENGTH: usize = 16 * 1024;

/// A selector that can not be read; the message is apimachinery's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label's value is one of the values (`=`, `==`, `in`)
    In,
    /// The label is absent, or its value is none of the values (`!=`, `notin`)
    NotIn,
    /// The label is there
    Exists,
    /// The label is not there
    DoesNotExist,
    /// The label's value is an integer above the value (`>`)
    GreaterThan,
    /// The label's value is an integer below the value (`<`)
    LessThan,
}

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key
    pub key: String,
    /// How its value relates to `values`
    pub operator: Operator,
    /// Sorted and unique
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether a pod whose label `key` has `value` (`None`: has no such label) meets it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value).is_some_and(|o| o.is_gt()),
            Operator::LessThan => self.compare(value).is_some_and(|o| o.is_lt()),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<std::cmp::Ordering> {
        let bound = self.values.first()?.parse::<i64>().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&bound))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = self.values.first().map_or("", String::as_str);
        match self.operator {
            Operator::In if self.values.len() == 1 => write!(f, "{}={one}", self.key),
            Operator::NotIn if self.values.len() == 1 => write!(f, "{}!={one}", self.key),
            Operator::In => write!(f, "{} in ({})", self.key, self.values.join(",")),
            Operator::NotIn => write!(f, "{} notin ({})", self.key, self.values.join(",")),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::GreaterThan => write!(f, "{}>{one}", self.key),
            Operator::LessThan => write!(f, "{}<{one}", self.key),
        }
    }
}

/// All of its requirements have to hold; without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// The conditions, sorted by key
    pub requirements: Vec<Requirement>,
}

impl Selector {
    /// Reads a selector.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_LENGTH {
            return Err(ParseError(format!(
                "the selector has {} bytes, more than {MAX_LENGTH}",
                text.len()
            )));
        }
        let mut requirements = Parser::new(text).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements })
    }

    /// Whether everything holds for the labels that `lookup` finds.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Identifier,
    In,
    NotIn,
    Equals,
    NotEquals,
    Greater,
    Less,
    Not,
    Comma,
    Open,
    Close,
    End,
    Bad,
}

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const SPECIAL: [char; 7] = ['=', '!', '(', ')', ',', '>', '<'];

/// Cuts the text into tokens; `in` and `notin` are words that the parser may read as values.
fn scan(mut text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start_matches(SPACE);
        // As in Go's lexer, a NUL ends the text.
        if text.is_empty() || text.starts_with('\0') {
            tokens.push((Token::End, String::new()));
            return tokens;
        }
        let two = text.get(..2).unwrap_or_default();
        let (token, length) = match text.as_bytes() {
            _ if two == "==" => (Token::Equals, 2),
            _ if two == "!=" => (Token::NotEquals, 2),
            [b'=', ..] => (Token::Equals, 1),
            [b'!', ..] => (Token::Not, 1),
            [b'>', ..] => (Token::Greater, 1),
            [b'<', ..] => (Token::Less, 1),
            [b',', ..] => (Token::Comma, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            _ => {
                let end = text
                    .find(|c| SPACE.contains(&c) || SPECIAL.contains(&c) || c == '\0')
                    .unwrap_or(text.len());
                let token = match &text[..end] {
                    "in" => Token::In,
                    "notin" => Token::NotIn,
                    _ => Token::Identifier,
                };
                (token, end)
            }
        };
        tokens.push((token, text[..length].to_owned()));
        text = &text[length..];
    }
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn new(text: &str) -> Self {
        Self {
            tokens: scan(text),
            at: 0,
        }
    }

    /// The next token where a value or key may stand: there `in` and `notin` are ordinary words.
    fn peek(&self) -> (Token, &str) {
        match self.tokens.get(self.at) {
            Some((Token::In | Token::NotIn, word)) => (Token::Identifier, word),
            Some((token, word)) => (*token, word),
            None => (Token::Bad, ""),
        }
    }

    fn next(&mut self) -> (Token, String) {
        let (token, word) = self.peek();
        let taken = (token, word.to_owned());
        self.at += 1;
        taken
    }

    fn parse(mut self) -> Result<Vec<Requirement>, ParseError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::End, _) => return Ok(requirements),
                (Token::Identifier | Token::Not, _) => {}
                (_, word) => {
                    return Err(found(word, ", expected: !, identifier, or 'end of string'"));
                }
            }
            requirements.push(
                self.requirement()
                    .map_err(|e| ParseError(format!("unable to parse requirement: {}", e.0)))?,
            );
            match self.next() {
                (Token::End, _) => return Ok(requirements),
                (Token::Comma, _) => {}
                (_, word) => return Err(found(&word, ", expected: ',' or 'end of string'")),
            }
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {}
                (_, word) => return Err(found(word, ", expected: identifier after ','")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return Err(found(&key, ", expected: identifier"));
        }
        if let Some(problem) = key_problem(&key) {
            return Err(ParseError(format!(
                "<nil>: Invalid value: {key:?}: {problem}"
            )));
        }
        let alone = matches!(self.peek().0, Token::End | Token::Comma);
        let (operator, values) = if negated || alone {
            let operator = if negated {
                Operator::DoesNotExist
            } else {
                Operator::Exists
            };
            (operator, Vec::new())
        } else {
            self.operator_and_values()?
        };
        let mut problems = Vec::new();
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            problems.extend(values.iter().filter(|v| v.parse::<i64>().is_err()).map(|v| {
                format!("values[0]: Invalid value: {v:?}: for 'Gt', 'Lt' operators, the value must be an integer")
            }));
        }
        problems.extend(values.iter().enumerate().filter_map(|(i, v)| {
            let problem = value_problem(v)?;
            Some(format!(
                "values[{i}][{key}]: Invalid value: {v:?}: {problem}"
            ))
        }));
        match &problems[..] {
            [] => {}
            [one] => return Err(ParseError(one.clone())),
            several => return Err(ParseError(format!("[{}]", several.join(", ")))),
        }
        Ok(Requirement {
            key,
            operator,
            values,
        })
    }

    fn operator_and_values(&mut self) -> Result<(Operator, Vec<String>), ParseError> {
        let (token, word) = self
            .tokens
            .get(self.at)
            .cloned()
            .unwrap_or((Token::Bad, String::new()));
        self.at += 1;
        let operator = match token {
            Token::In | Token::Equals => Operator::In,
            Token::NotIn | Token::NotEquals => Operator::NotIn,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(found(&word, ", expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match token {
            Token::In | Token::NotIn => self.set()?,
            _ => vec![self.exact()?],
        };
        Ok((operator, values))
    }

    fn exact(&mut self) -> Result<String, ParseError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Identifier, word) => Ok(word),
            (_, word) => Err(found(&word, ", expected: identifier")),
        }
    }

    /// `(a,b)`; a missing value between, before or after commas is the empty string.
    fn set(&mut self) -> Result<Vec<String>, ParseError> {
        let (token, word) = self.next();
        if token != Token::Open {
            return Err(found(&word, " expected: '('"));
        }
        let (first, word) = self.peek();
        match first {
            Token::Identifier | Token::Comma => {}
            Token::Close => {
                self.at += 1;
                return Ok(vec![String::new()]);
            }
            _ => return Err(found(word, ", expected: ',', ')' or identifier")),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                (Token::Identifier, word) => {
                    values.push(word);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, word) => return Err(found(word, ", expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.push(String::new());
                            break;
                        }
                        Token::Comma => {
                            self.at += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, word) => return Err(found(&word, ", expected: ',', or identifier")),
            }
        }
        self.at += 1; // the closing parenthesis, seen above
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn found(word: &str, expected: &str) -> ParseError {
    ParseError(format!("found '{word}'{expected}"))
}

const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN_RULE: &str = "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn is_name(text: &str) -> bool {
    let plain = |c: &u8| c.is_ascii_alphanumeric();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|c| plain(c) || b"-_.".contains(c))
}

fn is_subdomain(text: &str) -> bool {
    let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.split('.').all(|part| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(|c| plain(c) || *c == b'-')
    })
}

/// What is wrong with a label key, in the words of apimachinery's `IsQualifiedName`.
fn key_problem(key: &str) -> Option<String> {
    let mut problems = Vec::new();
    let name = match key.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > 253 {
                    problems.push("prefix part must be no more than 253 characters".to_owned());
                }
                if !is_subdomain(prefix) {
                    problems.push(SUBDOMAIN_RULE.to_owned());
                }
            }
            name
        }
        _ => {
            return Some(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                NAME_RULE
            ));
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_name(name) {
        problems.push(format!("name part {NAME_RULE}"));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// What is wrong with a label value, in the words of apimachinery's `IsValidLabelValue`.
fn value_problem(value: &str) -> Option<String> {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push("must be no more than 63 characters");
    }
    if !value.is_empty() && !is_name(value) {
        problems.push(VALUE_RULE);
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What apimachinery v0.34.4's labels.Parse said of each: text, OK or ERR, selector or message.
    const GO: &str = include_str!("../tests/selectors.tsv");

    #[test]
    fn reads_and_refuses_exactly_what_go_does_in_its_words() {
        let mut cases = 0;
        for line in GO.lines() {
            let mut fields = line.splitn(3, '\t');
            let (text, verdict, said) = (
                fields.next().unwrap(),
                fields.next().unwrap(),
                fields.next().unwrap(),
            );
            match (Selector::parse(text), verdict) {
                (Ok(selector), "OK") => {
                    assert_eq!(Ok(&selector), Selector::parse(said).as_ref(), "{text}");
                    // What we print reads back as the same.
                    assert_eq!(
                        Ok(&selector),
                        Selector::parse(&selector.to_string()).as_ref()
                    );
                }
                (Err(error), "ERR") => assert_eq!(error.to_string(), said, "{text}"),
                (ours, _) => panic!("{text:?}: ours {ours:?}, Go's {verdict} {said}"),
            }
            cases += 1;
        }
        assert!(cases > 60, "the table was not read: {cases}");
    }

    #[test]
    fn requirements_hold_as_for_any_kubernetes_object() {
        let web = |key: &str| match key {
            "app" => Some("web"),
            "shard" => Some("7"),
            _ => None,
        };
        for yes in [
            "",
            "app=web",
            "app",
            "!tier",
            "app in (api,web)",
            "app notin (api)",
            "tier!=db",
            "tier notin (db)",
            "shard>6",
            "shard<8",
            "app=web,shard=7",
        ] {
            assert!(Selector::parse(yes).unwrap().matches(web), "{yes}");
        }
        for no in [
            "app=api",
            "tier",
            "!app",
            "tier in (db)",
            "app!=web",
            "app=web,shard=8",
            "shard>7",
            "app>1",
            "tier>1",
            "tier=",
        ] {
            assert!(!Selector::parse(no).unwrap().matches(web), "{no}");
        }
    }

    #[test]
    fn a_selector_bomb_is_refused_before_it_is_read() {
        let bomb = "a,".repeat(MAX_LENGTH);
        assert!(Selector::parse(&bomb).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[a-c!=<>(), \\.\\-/\u{e9}innot]{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                let again = Selector::parse(&selector.to_string());
                proptest::prop_assert_eq!(Ok(selector), again);
            }
        }
    }
}
