//! A query's selector, split into what picks pods and what shapes the answer: the reserved keys under
//! `ebpfscaler.io/`. A reserved key we do not know is refused, never silently taken for a pod label.

use crate::metric::{Metric, Window};
use crate::narrow::{MAX_CONTAINERS, MAX_PORTS, Narrow};
use crate::protocol::Protocol;
use crate::selector::{Operator, ParseError, Requirement, Selector};

/// What every reserved key starts with.
pub const RESERVED_PREFIX: &str = "ebpfscaler.io/";

/// Every reserved key that is honoured: an example, and what it does, in one sentence for people.
pub const KEYS: [(&str, &str); 12] = [
    (
        "deployment=web",
        "The Deployment that owns the pod, with every operator of label selectors",
    ),
    (
        "statefulset=db",
        "The StatefulSet that owns the pod, likewise",
    ),
    (
        "daemonset=agent",
        "The DaemonSet that owns the pod, likewise",
    ),
    (
        "replicaset=web-5f7",
        "The ReplicaSet that owns the pod, likewise",
    ),
    ("job=nightly", "The Job that owns the pod, likewise"),
    (
        "workload=web",
        "Whatever owns the pod at the top, by its name, likewise",
    ),
    ("pod=web-0", "The pod's name, likewise"),
    ("node=n1", "The pod's node, likewise"),
    (
        "port=8080",
        "Only what is at these local TCP and UDP ports, `=` and `in` only; not for the run queue",
    ),
    (
        "container=app",
        "Only what containers of these names do, `=` and `in` only; not for `cpu_throttled_ratio`",
    ),
    ("window=3s", "The time that the metric is taken over"),
    (
        "group-by=pod",
        "One item a pod, with the labels `pod` and `node`, instead of one for all; for people, since an HPA sums all items",
    ),
];

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
const SHAPES_ANSWER: [&str; 3] = ["window", "group-by", "protocol"];
/// Keys that narrow what counts inside a pod.
const NARROWS: [&str; 2] = ["port", "container"];

/// Why a selector can not be used; every case is a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a label selector.
    #[error("unable to parse the label selector: {0}")]
    Parse(#[from] ParseError),
    /// Under our prefix, but not one of our keys.
    #[error(
        "{RESERVED_PREFIX}{key} is not a reserved key; these are: deployment, statefulset, daemonset, replicaset, job, workload, pod, node, port, container, protocol, window, group-by"
    )]
    UnknownKey {
        /// The key without its prefix.
        key: String,
    },
    /// `window`, `group-by` or `protocol` with anything but `=` and one value.
    #[error(
        "{RESERVED_PREFIX}{key} needs exactly one value, as in {RESERVED_PREFIX}{key}={example}"
    )]
    OneValue {
        /// The key without its prefix.
        key: String,
        /// A value that would do.
        example: &'static str,
    },
    /// `port` with anything but ports to look at.
    #[error(
        "{RESERVED_PREFIX}port needs TCP or UDP ports, at most {MAX_PORTS} of 1 to 65535, as in {RESERVED_PREFIX}port=8080 or {RESERVED_PREFIX}port in (8080,8443); {text:?} is not that"
    )]
    Port {
        /// What was asked for.
        text: String,
    },
    /// `container` with anything but containers to look at.
    #[error(
        "{RESERVED_PREFIX}container needs names of containers, at most {MAX_CONTAINERS}, as in {RESERVED_PREFIX}container=app or {RESERVED_PREFIX}container in (app,proxy); {text:?} is not that"
    )]
    Container {
        /// What was asked for.
        text: String,
    },
    /// Not one of the fixed windows.
    #[error("window {text:?} is not one of 1s, 3s, 10s, 30s, 60s, 5m")]
    Window {
        /// What was asked for.
        text: String,
    },
    /// Not a protocol whose requests are counted.
    #[error("protocol {text:?} is not one of {}", Protocol::NAMES.join(", "))]
    Protocol {
        /// What was asked for.
        text: String,
    },
    /// A metric that is not counted by protocol.
    #[error(
        "{RESERVED_PREFIX}protocol can not narrow {metric}, only requests_per_second: nothing else is counted by protocol"
    )]
    NotByProtocol {
        /// What was asked for.
        metric: Metric,
    },
    /// Inside TLS nothing is known of ports.
    #[error(
        "{RESERVED_PREFIX}port can not narrow requests inside TLS: a TLS library does not know its connection's port"
    )]
    PortInsideTls,
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
    /// What of each pod counts
    pub narrow: Narrow,
    /// Only requests of this protocol
    pub protocol: Option<Protocol>,
    /// Requests inside TLS are to be in it: nodes that do not count them cover nothing
    pub tls: bool,
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
                Some(key) if NARROWS.contains(&key) => query.narrow_by(key, &requirement)?,
                Some(key) => {
                    return Err(QueryError::UnknownKey {
                        key: key.to_owned(),
                    });
                }
            }
        }
        Ok(query)
    }

    fn narrow_by(&mut self, key: &str, requirement: &Requirement) -> Result<(), QueryError> {
        let text = || requirement.to_string();
        // Given twice both would have to hold, which nothing does.
        let once = requirement.operator == Operator::In;
        if key == "port" {
            let port = |text: &String| text.parse::<u16>().ok().filter(|port| *port != 0);
            let ports: Option<Vec<u16>> = requirement.values.iter().map(port).collect();
            let ports = ports.filter(|ports| ports.len() <= MAX_PORTS && once);
            self.narrow.ports = ports
                .filter(|_| self.narrow.ports.is_empty())
                .ok_or_else(|| QueryError::Port { text: text() })?;
            self.narrow.ports.sort_unstable();
            self.narrow.ports.dedup();
        } else {
            let names = &requirement.values;
            let named = names.len() <= MAX_CONTAINERS && names.iter().all(|name| !name.is_empty());
            if !once || !named || !self.narrow.containers.is_empty() {
                return Err(QueryError::Container { text: text() });
            }
            self.narrow.containers.clone_from(names);
        }
        Ok(())
    }

    /// Refuses what `metric` can not be narrowed by.
    pub fn check(&self, metric: Metric) -> Result<(), QueryError> {
        if self.protocol.is_some() && metric != Metric::RequestsPerSecond {
            return Err(QueryError::NotByProtocol { metric });
        }
        if self.tls && !self.narrow.ports.is_empty() {
            return Err(QueryError::PortInsideTls);
        }
        Ok(())
    }

    fn shape(&mut self, key: &str, requirement: &Requirement) -> Result<(), QueryError> {
        let text = match (requirement.operator, &requirement.values[..]) {
            (Operator::In, [one]) => one,
            _ => {
                return Err(QueryError::OneValue {
                    key: key.to_owned(),
                    example: match key {
                        "window" => "30s",
                        "protocol" => "redis",
                        _ => "pod",
                    },
                });
            }
        };
        if key == "protocol" {
            let protocol = Protocol::from_name(text)
                .ok_or_else(|| QueryError::Protocol { text: text.clone() })?;
            self.protocol = Some(protocol);
        } else if key == "window" {
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
            (
                "ebpfscaler.io/port=http",
                "\"ebpfscaler.io/port=http\" is not",
            ),
            ("ebpfscaler.io/port=0", "ebpfscaler.io/port needs"),
            ("ebpfscaler.io/port=65536", "of 1 to 65535"),
            ("ebpfscaler.io/port", "ebpfscaler.io/port needs"),
            ("ebpfscaler.io/port!=80", "ebpfscaler.io/port needs"),
            ("ebpfscaler.io/port>80", "ebpfscaler.io/port needs"),
            (
                "ebpfscaler.io/port=80,ebpfscaler.io/port=81",
                "ebpfscaler.io/port needs",
            ),
            ("ebpfscaler.io/port in (1,2,3,4,5,6,7,8,9)", "at most 8"),
            ("!ebpfscaler.io/container", "ebpfscaler.io/container needs"),
            ("ebpfscaler.io/container=", "ebpfscaler.io/container needs"),
            (
                "ebpfscaler.io/container notin (proxy)",
                "ebpfscaler.io/container needs",
            ),
            ("ebpfscaler.io/deploymnet=web", "is not a reserved key"),
            ("ebpfscaler.io/group-by=node", "\"pod\" is"),
            (
                "ebpfscaler.io/protocol=amqp",
                "is not one of http1, http2, redis, postgresql",
            ),
            ("ebpfscaler.io/protocol!=redis", "exactly one value"),
            ("a b", "unable to parse the label selector"),
        ] {
            let message = Query::parse(text).unwrap_err().to_string();
            assert!(message.contains(says), "{text}: {message}");
        }
    }

    #[test]
    fn ports_and_containers_narrow_what_counts_and_pick_no_pods() {
        let query = Query::parse(
            "app=web,ebpfscaler.io/port in (8443,8080,08080),ebpfscaler.io/container=app",
        )
        .unwrap();
        assert_eq!(query.narrow.ports, [8080, 8443]);
        assert_eq!(query.narrow.containers, ["app"]);
        assert_eq!(query.selector.to_string(), "app=web");
    }

    #[test]
    fn every_documented_key_is_honoured() {
        for (example, help) in KEYS {
            let text = format!("{RESERVED_PREFIX}{example}");
            assert!(Query::parse(&text).is_ok() && !help.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_protocol_narrows_requests_and_nothing_else() {
        let query = Query::parse("app=web,ebpfscaler.io/protocol=redis").unwrap();
        assert_eq!(query.protocol, Some(Protocol::Redis));
        assert_eq!(query.selector.to_string(), "app=web");
        assert_eq!(query.check(Metric::RequestsPerSecond), Ok(()));
        let refused = query.check(Metric::RequestLatencyP99).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("can not narrow request_latency_p99_microseconds")
        );
    }

    #[test]
    fn other_peoples_keys_are_labels() {
        let query = Query::parse("example.com/window=7s").unwrap();
        assert_eq!(query.window, None);
        assert_eq!(query.selector.requirements.len(), 1);
    }
}
