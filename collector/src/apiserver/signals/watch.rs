//! A watch: what has changed, once a second at most, as a stream of events. A client that reads slowly misses
//! what is between, never what is last; nothing is queued for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::Answerer;
use super::board::{Board, Start, Topic, Watching};
use super::request::WatchOptions;
use super::snapshot::{Change, Entry, Snapshot};
use crate::apiserver::hub::Hub;
use crate::apiserver::status::Failure;

/// From one look to the next.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How old a snapshot that somebody else had computed may be to serve as the next look.
const SHARED: Duration = Duration::from_millis(900);
/// From one bookmark to the next.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Another replica may have seen a pod end this much later, microseconds.
const LATER: u64 = 2_000_000;

/// Answers with the stream.
pub async fn respond(
    hub: Arc<Hub>,
    topic: Topic,
    answerer: Answerer,
    options: WatchOptions,
) -> Result<Response, Failure> {
    let held = Board::watch(&hub).ok_or_else(|| {
        let message = "too many watches are open, try again later";
        Failure::new(429, message)
    })?;
    let start = match options.version {
        Some(version) => Some(hub.signals.start(&topic, version).await),
        None => None,
    };
    let mut watch = Watch {
        until: Instant::now() + options.timeout,
        last: None,
        said: Instant::now(),
        out: VecDeque::new(),
        hub,
        topic,
        answerer,
        options,
        with_columns: true,
        _held: held,
    };
    match start {
        Some(Start::Expired) => {
            let version = watch.options.version.unwrap_or_default();
            let message = format!("too old resource version: {version}");
            return Err(Failure::new(410, message).because("ResourceExpired"));
        }
        Some(Start::Known(snapshot)) => watch.last = Some(snapshot),
        Some(Start::Recent(ago)) => watch.begin(Change::Modified, Some(ago)).await?,
        None => watch.begin(Change::Added, None).await?,
    }
    let content_type = HeaderValue::from_static("application/json");
    let stream = futures::stream::unfold(watch, |mut watch| async move {
        let bytes = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watch))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

struct Watch {
    hub: Arc<Hub>,
    topic: Topic,
    answerer: Answerer,
    options: WatchOptions,
    until: Instant,
    /// What the client knows.
    last: Option<Arc<Snapshot>>,
    /// When something was last sent.
    said: Instant,
    out: VecDeque<Bytes>,
    with_columns: bool,
    _held: Watching,
}

impl Watch {
    /// Everything that is there, as this change; what went `ago` milliseconds ago or later is told as well.
    async fn begin(&mut self, change: Change, ago: Option<u64>) -> Result<(), Failure> {
        let snapshot = Board::snapshot(&self.hub, &self.topic, SHARED).await?;
        if let Some(ago) = ago {
            let micros = ago.saturating_mul(1000).saturating_add(LATER);
            for entry in Board::gone(&self.hub, &self.topic, micros, &snapshot) {
                if self.answerer.wanted.picks(&entry.item) {
                    self.say(Change::Deleted.as_str(), &entry, snapshot.version);
                }
            }
        }
        for entry in &snapshot.entries {
            if self.answerer.wanted.picks(&entry.item) {
                self.say(change.as_str(), entry, snapshot.version);
            }
        }
        if self.options.initial_events {
            self.bookmark(&snapshot, true);
        }
        self.last = Some(snapshot);
        Ok(())
    }

    /// The next events; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Some(bytes);
            }
            let due = self
                .last
                .as_ref()
                .map_or_else(Instant::now, |s| s.taken + PERIOD);
            if due >= self.until {
                tokio::select! {
                    () = tokio::time::sleep_until(self.until.into()) => {}
                    () = self.hub.signals.closed.cancelled() => {}
                }
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = self.hub.signals.closed.cancelled() => return None,
            }
            if let Err(failure) = self.look().await {
                let event = json!({"type": "ERROR", "object": failure.status()});
                self.out.push_back(line(&event));
                // The client begins again with a list.
                self.until = Instant::now();
            }
        }
    }

    async fn look(&mut self) -> Result<(), Failure> {
        let snapshot = Board::snapshot(&self.hub, &self.topic, SHARED).await?;
        if let Some(last) = self.last.replace(snapshot.clone()) {
            let changes = snapshot.changes(&last, |item| self.answerer.wanted.picks(item));
            for (change, entry) in changes {
                self.say(change.as_str(), entry, snapshot.version);
            }
        }
        if self.options.bookmarks && self.said.elapsed() >= BOOKMARK {
            self.bookmark(&snapshot, false);
        }
        Ok(())
    }

    fn say(&mut self, what: &str, entry: &Entry, version: u64) {
        let object = self.answerer.event(entry, version, self.with_columns);
        self.with_columns = false;
        self.send(what, &object);
    }

    fn bookmark(&mut self, snapshot: &Snapshot, end_of_initial: bool) {
        let object = self.answerer.bookmark(snapshot.version, end_of_initial);
        self.send("BOOKMARK", &object);
    }

    fn send(&mut self, what: &str, object: &Value) {
        self.said = Instant::now();
        self.out
            .push_back(line(&json!({"type": what, "object": object})));
    }
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}
