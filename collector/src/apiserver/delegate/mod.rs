//! Another provider of a metrics API whose metrics are served through us (`--delegate`), since a cluster's API has
//! one provider. Only names that are not ours get here, and only after the user's own right was asked for; nothing
//! that happens to the other provider touches our own metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderName;
use axum::response::Response;
use tokio::sync::Semaphore;

use super::api::Caller;
use super::identity::percent_decode;
use super::metrics::Metrics;
use super::status::Failure;

mod follow;
mod names;
mod target;
mod upstream;

pub use follow::follow;
pub use names::Name;
pub use target::Target;
use upstream::{Link, Outcome};

/// Requests to one provider that are on their way at once, far fewer than we answer at once ourselves: one that
/// hangs must not use up our places.
const AT_ONCE: usize = 100;
/// Tells that a request came through one of us: it is never passed on again, or two that are each other's delegate
/// would send it round for ever.
pub const HOP: HeaderName = HeaderName::from_static("x-ebpf-scaler-delegated");

/// How other providers are reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bundle of the CAs that sign their certificates
    pub ca_file: PathBuf,
    /// Our service account's token, by which they know us
    pub token_file: PathBuf,
    /// How long an answer may take, with everything
    pub timeout: Duration,
    /// How often they are asked for their names
    pub period: Duration,
}

/// The other providers, by API group; most often there is none.
#[derive(Default)]
pub struct Delegates(BTreeMap<&'static str, Arc<Delegate>>);

impl Delegates {
    /// Those of `--delegate`; an error says what can not be.
    pub fn new(
        targets: &[Target],
        settings: &Settings,
        custom_metrics: bool,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for target in targets {
            let group = target.group;
            anyhow::ensure!(
                custom_metrics || group != super::custom::GROUP,
                "--delegate {group} needs --custom-metrics: without it the group is not served at all"
            );
            let delegate = Delegate {
                target: target.clone(),
                settings: settings.clone(),
                link: Link::default(),
                permits: Semaphore::new(AT_ONCE),
                metrics: metrics.clone(),
            };
            anyhow::ensure!(
                all.insert(group, Arc::new(delegate)).is_none(),
                "--delegate names {group} twice; there can be one"
            );
        }
        Ok(Self(all))
    }

    /// The one of a group.
    pub fn get(&self, group: &str) -> Option<&Arc<Delegate>> {
        self.0.get(group)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Delegate>> {
        self.0.values()
    }
}

/// The other provider of one group.
pub struct Delegate {
    target: Target,
    settings: Settings,
    link: Link,
    permits: Semaphore,
    metrics: Metrics,
}

impl Delegate {
    /// Passes a question on whose user may ask it, and its answer back as it is. Who asked is not told: the other
    /// provider sees our service account.
    pub async fn forward(&self, caller: &Caller) -> Result<Response, Failure> {
        let began = Instant::now();
        let (outcome, answer) = self.ask(caller).await;
        let took = began.elapsed();
        self.metrics
            .delegated(self.target.group, outcome.as_str(), took);
        answer
    }

    async fn ask(&self, caller: &Caller) -> (Outcome, Result<Response, Failure>) {
        let path = caller.uri.path();
        if caller.headers.contains_key(&HOP) {
            tracing::warn!(
                path,
                delegate = %self.target,
                "a request has come round: --delegate leads back to us"
            );
            let message = "the server could not find the metric: it was asked for by a delegate of ours already";
            return (Outcome::Loop, Err(Failure::new(404, message)));
        }
        // What we asked the user's right for has to be what the other one reads.
        if !path.split('/').skip(1).all(is_plain_segment) {
            let message = format!("{path} has a name that no metric can have");
            return (Outcome::Refused, Err(Failure::new(400, message)));
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            let message = "too many requests to the other provider, please try again later";
            return (Outcome::Busy, Err(Failure::new(429, message)));
        };
        let asked = self.link.ask(&self.target, caller);
        match tokio::time::timeout(self.settings.timeout, asked).await {
            Ok(Ok((outcome, response))) => (outcome, Ok(response)),
            Ok(Err(error)) => (error.outcome(), Err(error.failure(&self.target))),
            Err(_) => {
                let message = format!(
                    "the other provider of {}, {}, has not answered within {:?}",
                    self.target.group, self.target, self.settings.timeout
                );
                let failure = Failure::new(504, message).because("DelegateTimeout");
                (Outcome::Timeout, Err(failure))
            }
        }
    }
}

/// Whether a part of a path is one name also after decoding, as Kubernetes' IsValidPathSegmentName has it.
fn is_plain_segment(raw: &str) -> bool {
    let name = percent_decode(raw);
    !matches!(name.as_str(), "" | "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | '%') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_passed_on_only_if_it_can_not_be_read_as_a_path() {
        for plain in [
            "s0-cron-Etc-UTC",
            "*",
            "a.b",
            "deployments.apps",
            "a%20b",
            "...",
        ] {
            assert!(is_plain_segment(plain), "{plain}");
        }
        for other in [
            "", ".", "..", "%2e%2E", "a%2fb", "a%2Fb", "a%25b", "a%", "a%00", "a%0a",
        ] {
            assert!(!is_plain_segment(other), "{other}");
        }
    }
}
