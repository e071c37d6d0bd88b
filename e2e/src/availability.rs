//! Whether anybody notices what is done to the API server role: questions without a pause, the HPA controller's own
//! evaluations, and the condition of our APIServices. Observes only.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use k8s_openapi::{
    api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Event},
    jiff::Timestamp,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{Api, Client, api::ListParams};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    client::{connect_once, controller_manager},
    metrics::{get_raw, parse, request_rate, sum},
    wait::eventually,
};

/// Questions a second.
const EVERY: Duration = Duration::from_millis(50);
/// Time for one, as an HPA would wait much longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often client-go asks again.
const ATTEMPTS: usize = 10;
/// How far an answer may be from the truth: replicas come and go, the load is what it is.
const TOLERANCE: f64 = 0.1;
/// The HPA controller's default period.
const ROUND: Duration = Duration::from_secs(15);
/// Why events say that an HPA could not be evaluated.
const FAILURES: [&str; 3] = [
    "FailedGetExternalMetric",
    "FailedComputeMetricsReplicas",
    "FailedGetScale",
];

/// A question without the right answer.
#[derive(Clone, Debug)]
pub struct Failed {
    /// When it was asked.
    pub asked: Instant,
    /// What came back.
    pub error: String,
}

/// What came of the questions.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// With the right answer.
    pub answered: usize,
    /// Of those, told before to ask again later.
    pub put_off: usize,
    /// The others.
    pub failed: Vec<Failed>,
}

/// Questions that are asked at a steady rate, whatever comes of them.
pub struct Questions {
    asked: Arc<Mutex<Asked>>,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Questions {
    /// Asks for the request rate of a Deployment, which is known, as the HPA controller does: again only when the answer
    /// says when.
    pub async fn start(
        kubeconfig: &Path,
        namespace: &str,
        deployment: &str,
        rate: f64,
    ) -> anyhow::Result<Self> {
        let client = connect_once(kubeconfig).await?;
        let asked = Arc::new(Mutex::new(Asked::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let what = (client, namespace.to_owned(), deployment.to_owned());
        let task = tokio::spawn(ask(what, rate, asked.clone(), stopped));
        Ok(Self { asked, stop, task })
    }

    /// What came of them until now.
    #[must_use]
    pub fn so_far(&self) -> Asked {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks no more, and waits for the answers.
    pub async fn finish(self) -> Asked {
        let _ = self.stop.send(());
        let _ = self.task.await;
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn ask(
    (client, namespace, deployment): (Client, String, String),
    rate: f64,
    asked: Arc<Mutex<Asked>>,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let mut tick = tokio::time::interval(EVERY);
    let mut questions = JoinSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = &mut stopped => break,
        }
        while questions.try_join_next().is_some() {}
        let (client, asked) = (client.clone(), asked.clone());
        let (namespace, deployment) = (namespace.clone(), deployment.clone());
        questions.spawn(async move {
            let begun = Instant::now();
            let mut put_off = 0;
            let question = async {
                loop {
                    let answer = request_rate(&client, &namespace, &deployment, "10s").await;
                    match answer.as_ref().err().and_then(retry_after) {
                        Some(wait) if put_off < ATTEMPTS => tokio::time::sleep(wait).await,
                        _ => return answer,
                    }
                    put_off += 1;
                }
            };
            let error = match tokio::time::timeout(PATIENCE, question).await {
                Ok(Ok(value)) if (value - rate).abs() <= rate * TOLERANCE => None,
                Ok(Ok(value)) => Some(format!("{value} instead of {rate} requests/s")),
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("no answer".to_owned()),
            };
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            match error {
                None => {
                    asked.answered += 1;
                    asked.put_off += usize::from(put_off > 0);
                }
                Some(error) => asked.failed.push(Failed {
                    asked: begun,
                    error,
                }),
            }
        });
    }
    questions.join_all().await;
}

/// When to ask again, if the answer says so.
fn retry_after(error: &anyhow::Error) -> Option<Duration> {
    match error.downcast_ref::<kube::Error>()? {
        kube::Error::Api(status) => {
            let seconds = status.details.as_ref()?.retry_after_seconds;
            (seconds > 0).then(|| Duration::from_secs(seconds.into()))
        }
        _ => None,
    }
}

/// Our APIServices, which were available when this was made.
pub struct StaysAvailable(Vec<(String, Timestamp)>);

impl StaysAvailable {
    /// Remembers since when they are.
    pub async fn begin(client: &Client) -> anyhow::Result<Self> {
        Ok(Self(available_since(client).await?))
    }

    /// Fails if one was not available for a while, or is not now.
    pub async fn finish(self, client: &Client) -> anyhow::Result<()> {
        let now = available_since(client).await?;
        ensure!(
            now == self.0,
            "an APIService was not available in between: {:?}, before {:?}",
            now,
            self.0
        );
        Ok(())
    }
}

/// The condition keeps the time of its last change, so no moment is overlooked.
async fn available_since(client: &Client) -> anyhow::Result<Vec<(String, Timestamp)>> {
    let services: Api<APIService> = Api::all(client.clone());
    let mut since = Vec::new();
    for name in [
        "v1beta1.external.metrics.k8s.io",
        "v1alpha1.signals.ebpfscaler.io",
    ] {
        let status = services.get(name).await?.status;
        let conditions = status.and_then(|status| status.conditions);
        let available = conditions
            .into_iter()
            .flatten()
            .find(|c| c.type_ == "Available");
        let available = available.with_context(|| format!("{name} has no status yet"))?;
        ensure!(
            available.status == "True",
            "{name} is not available: {:?}",
            available.message
        );
        let changed = available.last_transition_time.context("no time")?;
        since.push((name.to_owned(), changed.0));
    }
    Ok(since)
}

/// What the HPA controller did with the HPAs of a namespace.
pub struct Evaluations {
    client: Client,
    kubeconfig: PathBuf,
    namespace: String,
    begun: Timestamp,
    /// Evaluations before, good and failed, where the controller manager's metrics can be read.
    before: Option<(f64, f64)>,
}

/// A failed evaluation, by its event.
#[derive(Debug)]
struct FailedEvent {
    at: Timestamp,
    text: String,
}

impl Evaluations {
    /// Waits until all HPAs, so many, have been evaluated with success.
    pub async fn begin(
        client: &Client,
        kubeconfig: &Path,
        namespace: &str,
        hpas: usize,
    ) -> anyhow::Result<Self> {
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
        eventually("all HPAs are active", ROUND * 4, async || {
            let active = api.list(&ListParams::default()).await?;
            let active = active.items.iter().filter(|hpa| inactive(hpa).is_none());
            let active = active.count();
            ensure!(active == hpas, "{active} of {hpas}");
            Ok(())
        })
        .await?;
        let mut this = Self {
            client: client.clone(),
            kubeconfig: kubeconfig.to_owned(),
            namespace: namespace.to_owned(),
            begun: Timestamp::now(),
            before: None,
        };
        this.before = this.counters().await;
        Ok(this)
    }

    /// Waits until each HPA has been evaluated again.
    pub async fn a_round(&self) {
        tokio::time::sleep(ROUND + Duration::from_secs(1)).await;
    }

    /// Fails if an evaluation has failed so far.
    pub async fn none_failed(&self) -> anyhow::Result<()> {
        let failed = self.failed().await?;
        ensure!(failed.is_empty(), "evaluations failed: {failed:?}");
        self.all_active().await?;
        if let (Some((_, before)), Some((_, now))) = (self.before, self.counters().await) {
            ensure!(
                now == before,
                "the HPA controller counts {} failed evaluations",
                now - before
            );
        }
        Ok(())
    }

    /// Fails if one failed at another time than from `since` for `time`, or if an HPA has not recovered. Tells how many
    /// there were.
    pub async fn tell(&self, since: Instant, time: Duration) -> anyhow::Result<String> {
        let ago = Timestamp::now().as_second() - since.elapsed().as_secs() as i64;
        let failed = self.failed().await?;
        let others: Vec<_> = failed
            .iter()
            // Events' times are whole seconds.
            .filter(|event| {
                !(ago - 2..=ago + time.as_secs() as i64 + 2).contains(&event.at.as_second())
            })
            .collect();
        ensure!(others.is_empty(), "evaluations failed: {others:?}");
        self.all_active().await?;
        Ok(match (self.before, self.counters().await) {
            (Some(before), Some(now)) => format!(
                "{} evaluations by the HPA controller, {} failed",
                now.0 + now.1 - before.0 - before.1,
                now.1 - before.1
            ),
            _ => format!(
                "the HPA controller's metrics can not be read here; its events tell of {} failed evaluations",
                failed.len()
            ),
        })
    }

    async fn all_active(&self) -> anyhow::Result<()> {
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let hpas = api.list(&ListParams::default()).await?;
        let inactive: Vec<_> = hpas.items.iter().filter_map(inactive).collect();
        ensure!(inactive.is_empty(), "HPAs are not active: {inactive:?}");
        Ok(())
    }

    async fn failed(&self) -> anyhow::Result<Vec<FailedEvent>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let events = events.list(&ListParams::default()).await?;
        let failed = events.items.into_iter().filter_map(|event| {
            let reason = event.reason.filter(|r| FAILURES.contains(&r.as_str()))?;
            let at = event.last_timestamp.map(|time| time.0);
            let at = at.or(event.event_time.map(|time| time.0))?;
            let text = format!("{reason}: {}", event.message.unwrap_or_default());
            Some(FailedEvent { at, text })
        });
        Ok(failed
            .filter(|event| event.at >= self.begun && !event.text.is_empty())
            .collect())
    }

    /// Metrics of type External computed with and without success, since the controller manager runs.
    async fn counters(&self) -> Option<(f64, f64)> {
        let manager = controller_manager(&self.kubeconfig).await.ok()?;
        let page = get_raw(&manager, "/metrics");
        let page = tokio::time::timeout(Duration::from_secs(3), page).await;
        let samples = parse(&page.ok()?.ok()?);
        let name = "horizontal_pod_autoscaler_controller_metric_computation_total";
        let all = sum(&samples, name, &["metric_type=\"External\""])?;
        let good = ["metric_type=\"External\"", "error=\"none\""];
        let good = sum(&samples, name, &good).unwrap_or(0.0);
        Some((good, all - good))
    }
}

/// What an HPA that could not be evaluated says.
fn inactive(hpa: &HorizontalPodAutoscaler) -> Option<String> {
    let conditions = hpa.status.as_ref().and_then(|s| s.conditions.as_ref());
    let active = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "ScalingActive");
    match active {
        Some(active) if active.status == "True" => None,
        Some(active) => Some(active.message.clone().unwrap_or_default()),
        None => Some("not evaluated yet".to_owned()),
    }
}
