//! Label selectors as the API server reads them: equality and set-based requirements with the same
//! grammar, leniencies and messages as k8s.io/apimachinery's `labels.Parse`. Knows nothing of our
//! reserved keys (see `query`).

use std::fmt;

mod names;
mod parser;

use parser::Parser;

/// The longest selector that is read; longer ones cost more than any user means.
pub const MAX_LENGTH: usize = 16 * 1024;

/// The most conditions that a selector may have: each is looked up in every pod of the namespace.
pub const MAX_REQUIREMENTS: usize = 64;

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
        let listed = |v: &str| self.values.binary_search_by(|x| x.as_str().cmp(v)).is_ok();
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
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(ParseError(format!(
                "the selector has {} conditions, more than {MAX_REQUIREMENTS}",
                requirements.len()
            )));
        }
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
        let conditions = |n: usize| "!a,".repeat(n - 1) + "!a";
        assert!(Selector::parse(&conditions(MAX_REQUIREMENTS)).is_ok());
        let error = Selector::parse(&conditions(MAX_REQUIREMENTS + 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the selector has 65 conditions, more than 64"
        );
    }

    #[test]
    fn a_list_of_thousands_is_searched_and_not_walked() {
        let list: Vec<_> = (0..2900).map(|i| format!("v{i}")).collect();
        let selector = Selector::parse(&format!("app in ({})", list.join(","))).unwrap();
        for i in 0..2900 {
            let value = format!("v{i}");
            assert!(selector.matches(|_| Some(&value)), "{value}");
        }
        assert!(!selector.matches(|_| Some("w")));
        assert!(!selector.matches(|_| None));
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
