//! Whether a connection is still of use: a client that asks for nothing, or does not take what it asked for,
//! holds memory and a place. Closes nothing itself.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// A client that takes nothing of an answer for so long will not.
const STALLED: Duration = Duration::from_secs(30);

/// Why we close a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// No TLS handshake in time
    Handshake,
    /// No request in time
    Idle,
    /// An answer was not read
    Stalled,
}

impl Closing {
    /// One word, for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
        }
    }
}

/// What goes on on one connection.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests so far.
    begun: u64,
    /// Requests whose answers are not wholly handed over.
    busy: usize,
    /// Since when there are none.
    idle_since: Instant,
    /// Of those, the ones that wait for the client to take more, and since when.
    waiting: HashMap<u64, Instant>,
}

impl Activity {
    /// Nothing has been asked for yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            begun: 0,
            busy: 0,
            idle_since: Instant::now(),
            waiting: HashMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come.
    pub fn begin(&self) -> Busy {
        let mut state = self.state();
        state.begun += 1;
        state.busy += 1;
        Busy {
            activity: self.clone(),
            id: state.begun,
        }
    }

    /// Waits until the connection is of no use any more: without a first request for `first`, without
    /// another for `idle`, or with an answer that is not taken.
    pub async fn over(&self, first: Duration, idle: Duration) -> Closing {
        loop {
            let (left, closing) = self.left(first, idle);
            if left.is_zero() {
                return closing;
            }
            tokio::time::sleep(left).await;
        }
    }

    fn left(&self, first: Duration, idle: Duration) -> (Duration, Closing) {
        let state = self.state();
        if state.busy == 0 {
            let allowed = if state.begun == 0 { first } else { idle };
            let left = allowed.saturating_sub(state.idle_since.elapsed());
            return (left, Closing::Idle);
        }
        match state.waiting.values().min() {
            Some(since) => (STALLED.saturating_sub(since.elapsed()), Closing::Stalled),
            None => (idle.min(STALLED), Closing::Stalled),
        }
    }
}

/// A request until its answer is handed over.
#[derive(Debug)]
pub struct Busy {
    activity: Activity,
    id: u64,
}

impl Busy {
    /// Goes with the answer's body.
    pub fn until_sent(self, body: Body) -> Body {
        self.waits();
        Body::new(Sending { body, busy: self })
    }

    fn waits(&self) {
        let now = Instant::now();
        self.activity.state().waiting.insert(self.id, now);
    }

    fn goes_on(&self) {
        self.activity.state().waiting.remove(&self.id);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.waiting.remove(&self.id);
        state.busy -= 1;
        if state.busy == 0 {
            state.idle_since = Instant::now();
        }
    }
}

/// A body that knows whether the client takes it: it is asked for more only when there is room for it.
struct Sending {
    body: Body,
    busy: Busy,
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(_)) => self.busy.waits(),
            Poll::Ready(None) | Poll::Pending => self.busy.goes_on(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    const FIRST: Duration = Duration::from_secs(15);
    const IDLE: Duration = Duration::from_secs(120);

    /// How long the connection may go on as it is, rounded up to seconds.
    fn left(activity: &Activity) -> (u64, Closing) {
        let (left, closing) = activity.left(FIRST, IDLE);
        (left.as_secs_f64().ceil() as u64, closing)
    }

    #[tokio::test]
    async fn a_connection_without_requests_is_over_sooner_than_one_that_has_had_some() {
        let activity = Activity::new();
        assert_eq!(left(&activity), (15, Closing::Idle));
        drop(activity.begin());
        assert_eq!(left(&activity), (120, Closing::Idle));
        let none = Duration::ZERO;
        assert_eq!(activity.over(none, none).await, Closing::Idle);
    }

    #[tokio::test]
    async fn a_stream_without_news_goes_on_and_an_answer_that_is_not_taken_does_not() {
        let activity = Activity::new();
        let waits = || activity.state().waiting.len();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(4);
        let news = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut body = activity.begin().until_sent(Body::from_stream(news));
        assert_eq!(waits(), 1, "nobody has asked for it yet");
        assert!(futures::poll!(std::pin::pin!(body.frame())).is_pending());
        assert_eq!(waits(), 0, "there is nothing to take");

        sender.send(Ok("news".into())).await.unwrap();
        assert!(body.frame().await.is_some());
        assert_eq!(waits(), 1, "it has to be asked for more");
        assert_eq!(left(&activity), (30, Closing::Stalled));
        drop(body);
        assert_eq!(left(&activity), (120, Closing::Idle));
    }
}
