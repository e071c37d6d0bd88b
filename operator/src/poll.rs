//! Asks the aggregated external metrics API, for metrics that are not ours and for ours while no
//! stream answers. Never judges an answer (see `answers`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use ebpf_scaler_decide::{Reading, Sample, Time, WindowSample};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{answers::Given, metrics::Metrics, translate::Query};

/// Queries at one time.
const AT_ONCE: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked what is due.
const LOOK: Duration = Duration::from_millis(100);

/// What is polled, by id.
pub type Wanted = Arc<BTreeMap<String, Query>>;

/// The part of an ExternalMetricValueList that counts.
#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    value: ebpf_scaler_crds::Quantity,
    #[serde(default)]
    timestamp: Option<String>,
}

/// Everything that polling needs.
pub struct Poller {
    /// For the API server.
    pub client: Client,
    /// What is polled.
    pub wanted: watch::Receiver<Wanted>,
    /// How often metrics that are not ours are asked for.
    pub external_period: Duration,
    /// How often ours are.
    pub fallback_period: Duration,
    /// Where answers go.
    pub out: mpsc::Sender<(String, Given)>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

impl Poller {
    /// Polls until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut due: HashMap<String, Instant> = HashMap::new();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let wanted = self.wanted.borrow().clone();
            due.retain(|id, _| wanted.contains_key(id));
            let now = Instant::now();
            for (id, query) in wanted.iter() {
                if due.get(id).is_some_and(|t| *t > now) {
                    continue;
                }
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    break;
                };
                let period = if query.is_ours() {
                    self.fallback_period
                } else {
                    self.external_period
                };
                due.insert(id.clone(), now + period);
                let (client, out, metrics) =
                    (self.client.clone(), self.out.clone(), self.metrics.clone());
                let (id, query) = (id.clone(), query.clone());
                tokio::spawn(async move {
                    metrics.polls.inc();
                    let given = ask(&client, &query, period * 3).await;
                    if matches!(given.reading, Reading::Missing(_)) {
                        metrics.poll_errors.inc();
                    }
                    let _ = out.send((id, given)).await;
                    drop(slot);
                });
            }
        }
    }
}

/// One query, in as many requests as it has windows.
async fn ask(client: &Client, query: &Query, valid: Duration) -> Given {
    let mut windows = Vec::new();
    let mut sampled = i64::MAX;
    let mut failed = None;
    if query.windows.is_empty() {
        match one(client, query, &query.selector).await {
            Ok((value, at)) => {
                sampled = at;
                windows.push(window(Duration::from_secs(30), value));
            }
            Err(e) => failed = Some(e),
        }
    }
    for seconds in &query.windows {
        let name = if *seconds == 300 {
            "5m".to_owned()
        } else {
            format!("{seconds}s")
        };
        let selector = format!("{},ebpfscaler.io/window={name}", query.selector);
        match one(client, query, &selector).await {
            Ok((value, at)) => {
                sampled = sampled.min(at);
                windows.push(window(Duration::from_secs((*seconds).into()), value));
            }
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    let reading = match failed {
        Some(why) => Reading::Missing(why),
        None => Reading::Known(Sample {
            sampled: Time::from_millis(u64::try_from(sampled / 1000).unwrap_or(0)),
            windows,
            coverage: 1.0,
            estimated: false,
        }),
    };
    Given {
        reading,
        sampled_unix_micros: sampled,
        received: Instant::now(),
        valid: valid + TIMEOUT,
    }
}

fn window(window: Duration, value: f64) -> WindowSample {
    WindowSample {
        window,
        value,
        events: None,
        covered: window,
    }
}

/// The sum of all items, as the HPA takes it, and the oldest one's time.
async fn one(client: &Client, query: &Query, selector: &str) -> Result<(f64, i64), String> {
    let request = http::Request::get(path(query, selector))
        .body(Vec::new())
        .map_err(|e| e.to_string())?;
    let list: List = tokio::time::timeout(TIMEOUT, client.request(request))
        .await
        .map_err(|_| "the metrics API does not answer".to_owned())?
        .map_err(|e| match e {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        })?;
    if list.items.is_empty() {
        return Err("the metrics API returned no value".into());
    }
    let now = Timestamp::now().as_microsecond();
    let oldest = list
        .items
        .iter()
        .filter_map(|i| i.timestamp.as_ref()?.parse::<Timestamp>().ok())
        .map(Timestamp::as_microsecond)
        .min()
        .unwrap_or(now);
    Ok((list.items.iter().map(|i| i.value.get()).sum(), oldest))
}

fn path(query: &Query, selector: &str) -> String {
    format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={}",
        encode(&query.namespace),
        encode(&query.metric),
        encode(selector)
    )
}

/// Percent-encoding of everything that is not unreserved (RFC 3986).
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_path_that_any_selector_survives() {
        let query = Query {
            namespace: "shop".into(),
            metric: "queue_depth".into(),
            selector: String::new(),
            windows: vec![],
            tls: false,
        };
        assert_eq!(
            path(&query, "queue=jobs,tier in (a,b)"),
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/queue_depth?labelSelector=queue%3Djobs%2Ctier%20in%20%28a%2Cb%29"
        );
    }

    #[test]
    fn a_list_as_the_api_gives_it_parses() {
        let list: List = serde_json::from_str(
            r#"{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{},
                "items":[{"metricName":"q","metricLabels":{},"timestamp":"2026-08-20T10:48:17Z","value":"83"},
                         {"metricName":"q","metricLabels":{},"timestamp":"2026-08-20T10:48:18Z","value":"500m"}]}"#,
        )
        .unwrap();
        let sum: f64 = list.items.iter().map(|i| i.value.get()).sum();
        assert_eq!(sum, 83.5);
    }
}
