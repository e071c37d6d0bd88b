//! The leader's loop: feeds scalers with what is watched, streamed and polled, and carries out what
//! they ask for. Never computes replicas.

mod effects;
mod index;
mod inputs;
mod known;
mod trim;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ebpf_scaler_crds::{EbpfScaler, v1alpha1::LoadSeries};
use ebpf_scaler_decide::Time;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
    },
    jiff::Timestamp,
};
use kube::{Api, Client, core::DeserializeGuard};
use kube_runtime::events::{Recorder, Reporter};
use tokio::sync::{mpsc, watch as channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    answers::{Answers, Given, Source},
    apply::{Applier, MANAGER, Target, TargetKey, Written},
    args::CollectorArgs,
    metrics::Metrics,
    scaler::{Now, Object, Scaler},
    stream::Told,
    translate::Query,
    watch::{Change, Key, follow},
};

/// A scaler without news is decided this often all the same: windows move on, bursts end.
const IDLE: Duration = Duration::from_secs(1);
/// Targets that are not watched are read this often.
const READ: Duration = Duration::from_secs(2);
/// Inputs taken at once before deciding.
const BATCH: usize = 256;

use effects::reference;
use known::Known;
use trim::{HpaObject, TargetObject, deployment, hpa, stateful_set};

enum Input {
    Scaler(Change<Box<Object>>),
    Deployment(Change<TargetObject>),
    StatefulSet(Change<TargetObject>),
    Hpa(Change<HpaObject>),
    Read(TargetKey, Result<Target, String>),
    Written {
        key: Key,
        target: TargetKey,
        from: i32,
        to: i32,
        sampled: Option<i64>,
        why: String,
        written: Written,
    },
    Reported(Key, Result<(), String>),
    Recorded(Key, Option<LoadSeries>, Result<(), String>),
}

/// What the engine is made of.
pub struct Parts {
    /// For watches and events.
    pub client: Client,
    /// Reads and writes scales and status.
    pub applier: Applier,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// How long answers count.
    pub collector: CollectorArgs,
    /// How often to look at all scalers.
    pub tick: Duration,
    /// Who we are, in events.
    pub identity: String,
    /// Decisions that a history keeps.
    pub history_entries: usize,
    /// What the streams are told to ask for.
    pub stream_wanted: channel::Sender<Arc<BTreeMap<String, Query>>>,
    /// What the streams say.
    pub told: mpsc::Receiver<Told>,
    /// What is to be polled.
    pub poll_wanted: channel::Sender<Arc<BTreeMap<String, Query>>>,
    /// What polls say.
    pub polled: mpsc::Receiver<(String, Given)>,
}

struct Engine {
    parts: Parts,
    input: mpsc::Sender<Input>,
    recorder: Recorder,
    reporter: Reporter,
    tasks: TaskTracker,
    begin: Instant,
    scalers: HashMap<Key, Scaler>,
    targets: HashMap<TargetKey, Known>,
    hpas: HashMap<Key, TargetKey>,
    by_target: HashMap<TargetKey, Vec<Key>>,
    by_query: HashMap<String, Vec<Key>>,
    answers: Answers,
    streamless: Option<Instant>,
    streams: HashSet<std::net::SocketAddr>,
    unsynced: HashSet<&'static str>,
    dirty: HashSet<Key>,
    replan: bool,
}

/// Runs until cancelled, and returns when all writes have ended.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let (input, mut inputs) = mpsc::channel::<Input>(4096);
    let reporter = Reporter {
        controller: MANAGER.into(),
        instance: Some(parts.identity.clone()),
    };
    let mut engine = Engine {
        recorder: Recorder::new(parts.client.clone(), reporter.clone()),
        reporter,
        input,
        tasks: TaskTracker::new(),
        begin: Instant::now(),
        scalers: HashMap::new(),
        targets: HashMap::new(),
        hpas: HashMap::new(),
        by_target: HashMap::new(),
        by_query: HashMap::new(),
        answers: Answers::default(),
        streamless: Some(Instant::now()),
        streams: HashSet::new(),
        unsynced: HashSet::from(["scalers", "deployments", "statefulsets", "hpas"]),
        dirty: HashSet::new(),
        replan: false,
        parts,
    };
    engine.watch(&stop);
    let mut tick = tokio::time::interval(engine.parts.tick);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(told) = engine.parts.told.recv() => engine.told(told),
            Some(input) = inputs.recv() => engine.take(input),
            Some((id, given)) = engine.parts.polled.recv() => engine.put(&id, Source::Poll, given),
            _ = tick.tick() => engine.tick(),
        }
        // News that are already here are decided together.
        for _ in 0..BATCH {
            if let Ok(input) = inputs.try_recv() {
                engine.take(input);
            } else if let Ok(told) = engine.parts.told.try_recv() {
                engine.told(told);
            } else {
                break;
            }
        }
        engine.settle();
    }
    engine.write_down();
    engine.tasks.close();
    // Nobody takes their news any more, and they must not wait for that.
    drop(inputs);
    engine.tasks.wait().await;
    debug!("the engine has ended");
}

impl Engine {
    fn watch(&self, stop: &CancellationToken) {
        let client = &self.parts.client;
        let (out, metrics) = (&self.input, &self.parts.metrics);
        macro_rules! follow {
            ($kind:ty, $trim:expr, $wrap:expr) => {
                tokio::spawn(follow::<$kind, _, _>(
                    Api::<DeserializeGuard<$kind>>::all(client.clone()),
                    $trim,
                    $wrap,
                    out.clone(),
                    metrics.clone(),
                    stop.clone(),
                ))
            };
        }
        follow!(EbpfScaler, |o| Box::new(Object::trim(o)), Input::Scaler);
        follow!(Deployment, deployment, Input::Deployment);
        follow!(StatefulSet, stateful_set, Input::StatefulSet);
        follow!(HorizontalPodAutoscaler, hpa, Input::Hpa);
    }

    fn now(&self) -> Now {
        let instant = Instant::now();
        let age = instant.duration_since(self.begin);
        Now {
            instant,
            wall: Timestamp::now(),
            time: Time::from_millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for (key, scaler) in &self.scalers {
            if scaler.decided.is_none_or(|t| now.duration_since(t) >= IDLE) {
                self.dirty.insert(key.clone());
            }
        }
        for (key, known) in &mut self.targets {
            let due = known.read.is_none_or(|t| now.duration_since(t) >= READ);
            if !key.is_watched() && !known.reading && due && self.by_target.contains_key(key) {
                known.reading = true;
                let (applier, out, key) =
                    (self.parts.applier.clone(), self.input.clone(), key.clone());
                self.tasks.spawn(async move {
                    let read = applier.read(&key).await;
                    let _ = out.send(Input::Read(key, read)).await;
                });
            }
        }
        self.choose_polls(now);
    }

    /// Writes down what histories lack, at the end.
    fn write_down(&self) {
        let wall = Timestamp::now();
        for (key, scaler) in &self.scalers {
            if let Some(addition) = scaler.last_words(wall) {
                self.record(key, &reference(scaler), addition);
            }
        }
    }

    /// Brings the indices up to date, and decides what has news.
    fn settle(&mut self) {
        if !self.unsynced.is_empty() {
            return;
        }
        if self.replan {
            self.index();
            self.replan = false;
        }
        if self.dirty.is_empty() {
            return;
        }
        let begun = Instant::now();
        let now = self.now();
        let mut new_plans = false;
        for key in std::mem::take(&mut self.dirty) {
            new_plans |= self.decide(&key, now);
        }
        if new_plans {
            self.replan = true;
        }
        let micros = begun.elapsed().as_micros();
        self.parts
            .metrics
            .last_pass_micros
            .set(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// Decides one scaler; says whether it has a new plan, whose queries nobody asks for yet.
    fn decide(&mut self, key: &Key, now: Now) -> bool {
        let Some(scaler) = self.scalers.get_mut(key) else {
            return false;
        };
        let target_key = scaler.target.clone();
        let known = self.targets.get(&target_key);
        let missing = format!(
            "{} {}/{} does not exist",
            target_key.kind, target_key.namespace, target_key.name
        );
        let target = match known {
            Some(Known { target: Ok(t), .. }) => Ok(t),
            // Not read yet.
            Some(Known { target: Err(e), .. }) if e.is_empty() => return false,
            Some(Known { target: Err(e), .. }) => Err(e.as_str()),
            None => Err(missing.as_str()),
        };
        let is_new = match target {
            Ok(t) => scaler.plan_for(&t.selector),
            Err(_) => false,
        };
        let effects = scaler.step(target, &mut self.answers, now, &self.parts.metrics);
        let reference = reference(scaler);
        self.carry_out(key, target_key, &reference, effects);
        is_new
    }
}
