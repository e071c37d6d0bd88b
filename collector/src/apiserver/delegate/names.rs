//! The names that another provider has, out of its discovery. Only names and scopes are taken over: what can be
//! done with them is our own word, for the cluster's garbage collection listens to it.

use std::collections::BTreeSet;

use serde::Deserialize;

/// More than the largest adapters have; beyond, names are left out of discovery but still served.
pub const MAX_NAMES: usize = 20_000;
/// Bytes of a name: a resource, a slash, and a metric.
const MAX_LENGTH: usize = 512;

/// A metric of another provider, as discovery tells of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// In external metrics the metric's, in custom metrics `RESOURCE/METRIC`
    pub name: String,
    /// Whether it is of something in a namespace
    pub namespaced: bool,
}

/// The names in an APIResourceList, sorted so that replicas tell the same; with it how many were left out.
pub fn read(body: &[u8]) -> Result<(Vec<Name>, usize), String> {
    #[derive(Deserialize)]
    struct List {
        kind: String,
        #[serde(default)]
        resources: Option<Vec<Entry>>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        #[serde(default)]
        namespaced: bool,
    }
    let list: List = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if list.kind != "APIResourceList" {
        return Err(format!("kind {:?} instead of APIResourceList", list.kind));
    }
    let told = list.resources.unwrap_or_default();
    let count = told.len();
    let sound = |name: &str| {
        let plain = |c: char| !(c.is_control() || c.is_whitespace() || c == '%');
        (1..=MAX_LENGTH).contains(&name.len()) && name.chars().all(plain)
    };
    let names = told.into_iter().filter(|entry| sound(&entry.name));
    let names = names.map(|entry| Name {
        name: entry.name,
        namespaced: entry.namespaced,
    });
    let mut seen = BTreeSet::new();
    let mut names: Vec<_> = names.filter(|n| seen.insert(n.name.clone())).collect();
    names.sort();
    names.truncate(MAX_NAMES);
    let left_out = count - names.len();
    Ok((names, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_sorted_and_only_sound_ones_are_kept() {
        let long = "a".repeat(MAX_LENGTH + 1);
        let entries = [
            "pods/b", "pods/a", "pods/a", "", "a b", "a\nb", "a%2fb", &long,
        ];
        let entries =
            entries.map(|name| json!({"name": name, "namespaced": true, "verbs": ["delete"]}));
        let list = json!({"kind": "APIResourceList", "resources": entries});
        let (names, left_out) = read(list.to_string().as_bytes()).unwrap();
        let names: Vec<_> = names.iter().map(|n| n.name.as_str()).collect();
        assert_eq!((names, left_out), (vec!["pods/a", "pods/b"], 6));
        // Go writes an empty list as null.
        let none = br#"{"kind":"APIResourceList","resources":null}"#;
        assert_eq!(read(none), Ok((vec![], 0)));
        for other in [
            "",
            "[]",
            r#"{"kind":"Status"}"#,
            r#"{"kind":"APIResourceList","resources":3}"#,
        ] {
            assert!(read(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn there_is_a_bound() {
        let entries: Vec<_> = (0..MAX_NAMES + 5)
            .map(|n| json!({"name": n.to_string()}))
            .collect();
        let list = json!({"kind": "APIResourceList", "resources": entries});
        let (names, left_out) = read(list.to_string().as_bytes()).unwrap();
        assert_eq!((names.len(), left_out), (MAX_NAMES, 5));
    }
}
