//! A query's selector, split into what picks pods and what shapes the answer: the reserved keys under
//! `ebpfscaler.io/`. A reserved key we do not know is refused, never silently taken for a pod label.

use crate::metric::Window;
use crate::selector::{Operator, ParseError, Requirement, Selector};

/// What every reserved key starts with.
pub const RESERVED_PREFIX: &str = "ebpfscaler.io/";

/// Keys that describe the pod and are matched like labels.
const DESCRIBES_POD: [&str; 8] = [
    "deployment",
    "statefulset",
    "daemonset",
    "replicaset",
    "job",
    "workload",
    "pod",
    "node",
];
/// Keys that shape the answer.
const SHAPES_ANSWER: [&str; 2] = ["window", "group-by"];
/// Keys that will narrow what is measured inside a pod, once agents report it split.
const NOT_YET: [&str; 3] = ["port", "container", "protocol"];

/// Why a selector can not be used; every case is a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a label selector.
    #[error("unable to parse the label selector: {0}")]
    Parse(#[from] ParseError),
    /// Under our prefix, but not one of our keys.
    #[error(
        "{RESERVED_PREFIX}{key} is not a reserved key; these are: deployment, statefulset, daemonset, replicaset, job, workload, pod, node, window, group-by"
    )]
    UnknownKey {
        /// The key without its prefix.
        key: String,
    },
    /// A key that this version can not honour; ignoring it would answer another question.
    #[error(
        "{RESERVED_PREFIX}{key} is not supported yet: agents do not report measurements split by {key}"
    )]
    NotYet {
        /// The key without its prefix.
        key: String,
    },
    /// `window` or `group-by` with anything but `=` and one value.
    #[error(
        "{RESERVED_PREFIX}{key} needs exactly one value, as in {RESERVED_PREFIX}{key}={example}"
    )]
    OneValue {
        /// The key without its prefix.
        key: String,
        /// A value that would do.
        example: &'static str,
    },
    /// Not one of the fixed windows.
    #[error("window {text:?} is not one of 1s, 3s, 10s, 30s, 60s, 5m")]
    Window {
        /// What was asked for.
        text: String,
    },
    /// Not a grouping we have.
    #[error("group-by {text:?} is not supported; \"pod\" is")]
    GroupBy {
        /// What was asked for.
        text: String,
    },
}

/// Which pods, over which window, in how many items.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Query {
    /// Picks pods by labels and by the reserved keys that describe a pod
    pub selector: Selector,
    /// `None`: the caller's default
    pub window: Option<Window>,
    /// One item a pod instead of one for all
    pub by_pod: bool,
}

impl Query {
    /// Reads a selector with reserved keys.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut query = Self::default();
        for requirement in Selector::parse(text)?.requirements {
            match requirement.key.strip_prefix(RESERVED_PREFIX) {
                None => query.selector.requirements.push(requirement),
                Some(key) if DESCRIBES_POD.contains(&key) => {
                    query.selector.requirements.push(requirement);
                }
                Some(key) if SHAPES_ANSWER.contains(&key) => query.shape(key, &requirement)?,
                Some(key) if NOT_YET.contains(&key) => {
                    return Err(QueryError::NotYet {
                        key: key.to_owned(),
                    });
                }
                Some(key) => {
                    return Err(QueryError::UnknownKey {
                        key: key.to_owned(),
                    });
                }
            }
        }
        Ok(query)
    }

    fn shape(&mut self, key: &str, requirement: &Requirement) -> Result<(), QueryError> {
        let is_window = key == "window";
        let text = match (requirement.operator, &requirement.values[..]) {
            (Operator::In, [one]) => one,
            _ => {
                return Err(QueryError::OneValue {
                    key: key.to_owned(),
                    example: if is_window { "30s" } else { "pod" },
                });
            }
        };
        if is_window {
            let window =
                Window::parse(text).ok_or_else(|| QueryError::Window { text: text.clone() })?;
            self.window = Some(window);
        } else if text == "pod" {
            self.by_pod = true;
        } else {
            return Err(QueryError::GroupBy { text: text.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_keys_shape_the_answer_and_the_rest_picks_pods() {
        let query = Query::parse(
            "app=web,ebpfscaler.io/window=3s,ebpfscaler.io/deployment in (web,api),ebpfscaler.io/group-by=pod",
        )
        .unwrap();
        assert_eq!(query.window, Some(Window::S3));
        assert!(query.by_pod);
        assert_eq!(
            query.selector.to_string(),
            "app=web,ebpfscaler.io/deployment in (api,web)"
        );
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_and_says_why() {
        for (text, says) in [
            (
                "ebpfscaler.io/window=7s",
                "is not one of 1s, 3s, 10s, 30s, 60s, 5m",
            ),
            ("ebpfscaler.io/window in (3s,10s)", "exactly one value"),
            ("ebpfscaler.io/window", "exactly one value"),
            ("ebpfscaler.io/port=8080", "not supported yet"),
            ("!ebpfscaler.io/container", "not supported yet"),
            ("ebpfscaler.io/deploymnet=web", "is not a reserved key"),
            ("ebpfscaler.io/group-by=node", "\"pod\" is"),
            ("a b", "unable to parse the label selector"),
        ] {
            let message = Query::parse(text).unwrap_err().to_string();
            assert!(message.contains(says), "{text}: {message}");
        }
    }

    #[test]
    fn other_peoples_keys_are_labels() {
        let query = Query::parse("example.com/window=7s").unwrap();
        assert_eq!(query.window, None);
        assert_eq!(query.selector.requirements.len(), 1);
    }
}
