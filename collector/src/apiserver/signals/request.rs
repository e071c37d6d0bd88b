//! What a request asks for: which objects, over which window, as a list or a watch. Refuses what can not be
//! honoured, with the reason; decides nothing about rights.

use std::time::Duration;

use ebpf_scaler_measure::selector::Selector;
use ebpf_scaler_measure::{Query, Window};

use super::item::{Item, Resource};
use super::table::Include;
use crate::apiserver::options::Options;
use crate::apiserver::status::Failure;

/// How a watch is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// For how long
    pub timeout: Duration,
    /// From which version; `None`: from now, with everything that is there
    pub version: Option<u64>,
    /// Whether to tell versions when nothing else is told
    pub bookmarks: bool,
    /// Whether everything that is there comes first, and then a bookmark that says so
    pub initial_events: bool,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Over which window
    pub window: Window,
    /// By labels
    pub selector: Selector,
    /// By metadata.name; it counts for rights as well
    pub name: Option<String>,
    /// By other fields: `metadata.name` or `metadata.namespace`, and which value it must not, or must, have
    fields: Vec<(Field, bool, String)>,
    /// What goes with the rows of a table
    pub include: Include,
    /// `Some`: not a list but a watch
    pub watch: Option<WatchOptions>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

/// A watch that names no time ends after this; clients begin another.
const WATCH: Duration = Duration::from_secs(1800);

impl Wanted {
    /// Reads the parameters of a list, a watch or (with `single`) a get.
    pub fn read(resource: Resource, options: &Options, single: bool) -> Result<Self, Failure> {
        let text = |key| options.get(key);
        let bad = |message: String| Failure::new(400, message);
        let query = Query::parse(text("labelSelector"))
            .map_err(|e| bad(e.to_string()).because("BadSelector"))?;
        refuse_keys(resource, &query)?;
        let mut wanted = Self {
            window: Window::DEFAULT,
            selector: query.selector,
            name: None,
            fields: Vec::new(),
            include: match text("includeObject") {
                "" | "Metadata" => Include::Metadata,
                "Object" => Include::Object,
                "None" => Include::None,
                other => {
                    return Err(bad(format!(
                        "includeObject {other:?} is not one of None, Metadata, Object"
                    )));
                }
            },
            watch: None,
        };
        let by_field = wanted.read_fields(text("fieldSelector"))?;
        wanted.window = match (query.window, by_field) {
            (Some(a), Some(b)) if a != b => {
                return Err(bad(format!("two windows are asked for, {a} and {b}")));
            }
            (a, b) => a.or(b).unwrap_or(Window::DEFAULT),
        };
        if !text("continue").is_empty() {
            return Err(bad(
                "continue key is not valid: lists are always whole here, whatever their limit"
                    .to_owned(),
            ));
        }
        if !single && options.watch() {
            wanted.watch = Some(watch_options(options)?);
        } else if text("resourceVersionMatch") == "Exact" {
            return Err(Failure::new(
                410,
                "there are no lists of the past here, so resourceVersionMatch=Exact can not be met",
            ));
        }
        Ok(wanted)
    }

    /// Reads the field selector; what it says of the window comes back.
    fn read_fields(&mut self, text: &str) -> Result<Option<Window>, Failure> {
        let mut window = None;
        for term in text.split(',').filter(|t| !t.is_empty()) {
            let parsed = ["!=", "==", "="].into_iter().find_map(|operator| {
                let (key, value) = term.split_once(operator)?;
                Some((key, operator != "!=", value.to_owned()))
            });
            let Some((key, equal, value)) = parsed else {
                let message = format!("invalid field selector {term:?}: can't understand it");
                return Err(Failure::new(400, message));
            };
            match (key, equal) {
                ("metadata.name", true) => {
                    self.name = Some(value.clone());
                    self.fields.push((Field::Name, true, value));
                }
                ("metadata.name", false) => self.fields.push((Field::Name, false, value)),
                ("metadata.namespace", _) => self.fields.push((Field::Namespace, equal, value)),
                ("window", true) => {
                    let read = Window::parse(&value).ok_or_else(|| {
                        let message =
                            format!("window {value:?} is not one of 1s, 3s, 10s, 30s, 60s, 5m");
                        Failure::new(400, message)
                    })?;
                    window = Some(read);
                }
                _ => {
                    let message = format!(
                        "field label not supported: {key}; there are metadata.name, \
                         metadata.namespace and window"
                    );
                    return Err(Failure::new(400, message));
                }
            }
        }
        Ok(window)
    }

    /// Whether an object is one of those asked for.
    pub fn picks(&self, item: &Item) -> bool {
        let fields = self.fields.iter().all(|(field, equal, value)| {
            let is = match field {
                Field::Name => item.name == *value,
                Field::Namespace => **item.namespace() == **value,
            };
            is == *equal
        });
        fields && item.is_picked_by(&self.selector)
    }
}

/// Keys that the metrics API understands and that mean nothing here; ignored, they would answer another question.
fn refuse_keys(resource: Resource, query: &Query) -> Result<(), Failure> {
    let refuse = |key: &str, why: &str| {
        let message = format!("ebpfscaler.io/{key} can not be used here: {why}");
        Err(Failure::new(400, message).because("BadSelector"))
    };
    if query.by_pod {
        return refuse(
            "group-by",
            "podsignals are by pod, workloadsignals by workload",
        );
    }
    if !query.narrow.is_whole() {
        let key = match query.narrow.ports.is_empty() {
            true => "container",
            false => "port",
        };
        return refuse(key, "signals are of whole pods");
    }
    if query.protocol.is_some() {
        return refuse("protocol", "signals are of all protocols together");
    }
    let has = |key: &str| {
        let key = format!("{}{key}", ebpf_scaler_measure::query::RESERVED_PREFIX);
        query.selector.requirements.iter().any(|r| r.key == key)
    };
    match resource {
        Resource::Workloads if has("pod") => refuse("pod", "ask for podsignals"),
        Resource::Workloads if has("node") => refuse("node", "ask for podsignals"),
        _ if has("replicaset") => refuse("replicaset", "ask for the workload that it belongs to"),
        _ => Ok(()),
    }
}

fn watch_options(options: &Options) -> Result<WatchOptions, Failure> {
    let text = |key| options.get(key);
    let timeout = match text("timeoutSeconds") {
        "" => WATCH,
        seconds => match seconds.parse::<u64>() {
            Ok(0) => WATCH,
            Ok(seconds) => Duration::from_secs(seconds).min(WATCH),
            Err(_) => {
                let message = format!("timeoutSeconds {seconds:?} is not a number of seconds");
                return Err(Failure::new(400, message));
            }
        },
    };
    let version = match text("resourceVersion") {
        "" | "0" => None,
        version => {
            let message = || format!("resourceVersion: Invalid value: {version:?}: not a number");
            let version = version.parse::<u64>();
            Some(version.map_err(|_| Failure::new(400, message()))?)
        }
    };
    let initial_events = options.is_true("sendInitialEvents");
    let matching = text("resourceVersionMatch");
    if initial_events && matching != "NotOlderThan" {
        let message = "resourceVersionMatch: Forbidden: sendInitialEvents needs NotOlderThan";
        return Err(Failure::new(422, message));
    }
    Ok(WatchOptions {
        timeout,
        // All that is there is not older than any version.
        version: version.filter(|_| !initial_events),
        bookmarks: options.is_true("allowWatchBookmarks") || initial_events,
        initial_events,
    })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
