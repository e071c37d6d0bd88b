//! A load generator as a pod of the cluster, followed through its log by the API: works whether or not pods can
//! be reached from here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use ebpf_scaler_sample::log::{self, Event, Line, Progress, Totals};
use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, LogParams},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    objects::{apply, sample_container},
    wait::eventually,
};

/// How old a live agent's report may be, and a question's way on top: hundredths of a second.
const STALE: u32 = 175;

/// A generator that was started; deleting its pod is up to `stop` or to the deletion of its namespace.
#[derive(Debug)]
pub struct Load {
    pods: Api<Pod>,
    name: String,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    progress: HashMap<usize, Vec<Progress>>,
    phases: HashMap<(usize, usize), u64>,
    totals: Option<Vec<Totals>>,
    last_text: String,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Load {
    /// Starts `sample ARGS` in a pod and waits until it runs.
    pub async fn start(
        client: &Client,
        namespace: &str,
        name: &str,
        args: &[&str],
    ) -> anyhow::Result<Self> {
        let mut container = sample_container("load", args);
        // The generator's schedule must hold when the node is busy.
        container["resources"] = json!({"requests": {"cpu": "200m"}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 15,
                "containers": [container],
            },
        });
        apply(client, &pod).await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        eventually(
            "the load generator runs",
            Duration::from_secs(60),
            async || {
                let status = pods.get(name).await?.status.unwrap_or_default();
                match status.phase.as_deref() {
                    Some("Running" | "Succeeded" | "Failed") => Ok(()),
                    phase => bail!("its pod is {phase:?}: {:?}", status.container_statuses),
                }
            },
        )
        .await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(follow(pods.clone(), name.to_owned(), Arc::clone(&seen)));
        Ok(Self {
            pods,
            name: name.to_owned(),
            seen,
            task,
        })
    }

    /// The last progress of a target.
    pub fn progress(&self, target: usize) -> Option<Progress> {
        lock(&self.seen).progress.get(&target)?.last().cloned()
    }

    /// The lowest and the highest rate that a target was really sent over a window that ended at `end` (wall clock,
    /// seconds) or up to [`STALE`] before: what an honest measurement may answer at that time. A starved generator
    /// sends in bursts. Ask for `--interval 20ms` and after the end, when all progress is known.
    pub fn true_rates(&self, target: usize, end: f64, window: f64) -> (f64, f64) {
        let seen = lock(&self.seen);
        let history = seen.progress.get(&target).map_or(&[][..], Vec::as_slice);
        let sent = |at: f64| {
            let after = history.partition_point(|progress| progress.t <= at);
            after.checked_sub(1).map_or(0, |last| history[last].sent)
        };
        let ends = (0..=STALE).map(|hundredths| end - f64::from(hundredths) / 100.0);
        let rates = ends.map(|end| (sent(end) - sent(end - window)) as f64 / window);
        rates.fold((f64::MAX, 0.0), |(least, most), rate| {
            (least.min(rate), most.max(rate))
        })
    }

    /// When the first request of a phase went out to a target, by the node's wall clock.
    pub fn phase_begun(&self, target: usize, phase: usize) -> Option<u64> {
        lock(&self.seen).phases.get(&(target, phase)).copied()
    }

    /// The exact counts, once the schedule is over.
    pub fn totals(&self) -> Option<Vec<Totals>> {
        lock(&self.seen).totals.clone()
    }

    /// Waits for the end of the schedule.
    pub async fn finished(&self, limit: Duration) -> anyhow::Result<Vec<Totals>> {
        eventually("the load generator ends", limit, async || {
            if let Some(totals) = self.totals() {
                return Ok(totals);
            }
            let status = self.pods.get(&self.name).await?.status.unwrap_or_default();
            let last = lock(&self.seen).last_text.clone();
            bail!("its pod is {:?} and wrote last: {last}", status.phase)
        })
        .await
    }

    /// Waits for a phase to begin and tells when that was.
    pub async fn await_phase(
        &self,
        target: usize,
        phase: usize,
        limit: Duration,
    ) -> anyhow::Result<u64> {
        eventually("the load generator's next phase", limit, async || {
            self.phase_begun(target, phase)
                .with_context(|| format!("it wrote last: {}", lock(&self.seen).last_text))
        })
        .await
    }

    /// Ends it at once and gives the counts so far.
    pub async fn stop(&self) -> anyhow::Result<Vec<Totals>> {
        // It prints its totals when told to end; the log is read meanwhile.
        let deleted = self.pods.delete(&self.name, &DeleteParams::default()).await;
        deleted.context("cannot delete the load generator")?;
        let limit = Duration::from_secs(15);
        eventually("the stopped load generator's totals", limit, async || {
            self.totals().context("no totals in its log")
        })
        .await
    }
}

/// Reads the log from its start until the totals are in it, again if the stream breaks off: every line can be
/// taken twice.
async fn follow(pods: Api<Pod>, name: String, seen: Arc<Mutex<Seen>>) {
    let params = LogParams {
        follow: true,
        ..LogParams::default()
    };
    while lock(&seen).totals.is_none() {
        if let Ok(stream) = pods.log_stream(&name, &params).await {
            let mut lines = stream.lines();
            while let Some(Ok(line)) = lines.next().await {
                take(&mut lock(&seen), line);
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn take(seen: &mut Seen, text: String) {
    match log::parse(&text) {
        Some(Line::Progress(progress)) => {
            let history = seen.progress.entry(progress.target).or_default();
            // A log that is read again repeats itself.
            if history.last().is_none_or(|last| last.t < progress.t) {
                history.push(progress);
            }
        }
        Some(Line::Event(Event::Phase {
            index,
            target,
            unix_micros,
            ..
        })) => {
            seen.phases.insert((target, index), unix_micros);
        }
        Some(Line::Event(Event::Totals { targets })) => seen.totals = Some(targets),
        None => {}
    }
    seen.last_text = text;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
