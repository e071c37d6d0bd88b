//! The grammar of label selectors: tokens, and the requirements they spell.

use super::names::{key_problem, value_problem};
use super::{Operator, ParseError, Requirement};

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

pub(super) struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    pub(super) fn new(text: &str) -> Self {
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

    pub(super) fn parse(mut self) -> Result<Vec<Requirement>, ParseError> {
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
