//! Reads JSON values and knows where each came from, so that an error names the field. Never guesses:
//! a field that nobody asks for is reported.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::quantity;

/// What is wrong and where: "steps[3].t: ...".
pub type Error = String;

/// A value with its path.
pub struct At<'a> {
    value: &'a Value,
    path: String,
}

/// An object with its path, that remembers which fields were asked for.
pub struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> At<'a> {
    /// The whole line.
    pub fn top(value: &'a Value) -> Self {
        Self {
            value,
            path: String::new(),
        }
    }

    /// An error about this value.
    pub fn wrong(&self, what: &str) -> Error {
        format!("{}: {what}", self.name())
    }

    fn name(&self) -> &str {
        if self.path.is_empty() {
            "the line"
        } else {
            &self.path
        }
    }

    fn expected(&self, what: &str) -> Error {
        let mut found = self.value.to_string();
        if found.chars().count() > 40 {
            found = found.chars().take(40).chain("...".chars()).collect();
        }
        self.wrong(&format!("expected {what}, found {found}"))
    }

    pub fn is_null(&self) -> bool {
        self.value.is_null()
    }

    pub fn object(&self) -> Result<Object<'a>, Error> {
        let map = self.value.as_object();
        Ok(Object {
            map: map.ok_or_else(|| self.expected("an object"))?,
            path: self.path.clone(),
            asked: RefCell::default(),
        })
    }

    pub fn array(&self) -> Result<Vec<At<'a>>, Error> {
        let values = self.value.as_array();
        let values = values.ok_or_else(|| self.expected("an array"))?;
        let element = |(i, value)| At {
            value,
            path: format!("{}[{i}]", self.path),
        };
        Ok(values.iter().enumerate().map(element).collect())
    }

    pub fn text(&self) -> Result<&'a str, Error> {
        self.value.as_str().ok_or_else(|| self.expected("a string"))
    }

    pub fn flag(&self) -> Result<bool, Error> {
        let flag = self.value.as_bool();
        flag.ok_or_else(|| self.expected("true or false"))
    }

    /// A finite number that is not negative.
    pub fn number(&self) -> Result<f64, Error> {
        let number = self.value.as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        number.ok_or_else(|| self.expected("a number that is not negative"))
    }

    /// A whole number of at least `least`.
    pub fn whole(&self, least: i32) -> Result<i32, Error> {
        let number = self.value.as_i64().and_then(|n| i32::try_from(n).ok());
        let number = number.filter(|n| *n >= least);
        number.ok_or_else(|| self.expected(&format!("a whole number from {least} to {}", i32::MAX)))
    }

    /// What a quantity is in whole thousandths; a number or a string.
    pub fn thousandths(&self) -> Result<i64, Error> {
        quantity::thousandths(&self.quantity()?).map_err(|e| self.wrong(&e))
    }

    /// What a quantity is, nearly.
    pub fn approximate(&self) -> Result<f64, Error> {
        quantity::approximate(&self.quantity()?).map_err(|e| self.wrong(&e))
    }

    fn quantity(&self) -> Result<String, Error> {
        match self.value {
            Value::Number(n) => Ok(n.to_string()),
            Value::String(s) => Ok(s.trim().to_owned()),
            _ => Err(self.expected("a quantity such as 100 or \"500m\"")),
        }
    }

    /// One of several words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Error> {
        let text = self.value.as_str().unwrap_or_default();
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, t)| *t).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.expected(&words.join(" or "))
        })
    }
}

impl<'a> Object<'a> {
    /// A field that must be there.
    pub fn must(&self, name: &'static str) -> Result<At<'a>, Error> {
        let found = self.may(name);
        found.ok_or_else(|| format!("{}: missing", self.path_of(name)))
    }

    /// A field that may be absent or null.
    pub fn may(&self, name: &'static str) -> Option<At<'a>> {
        self.asked.borrow_mut().push(name);
        let value = self.map.get(name).filter(|v| !v.is_null())?;
        Some(At {
            value,
            path: self.path_of(name),
        })
    }

    /// The paths of fields that nobody asked for.
    pub fn unknown(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let unknown = self.map.keys().filter(|k| !asked.contains(&k.as_str()));
        unknown.map(|k| self.path_of(k)).collect()
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}
