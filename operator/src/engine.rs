//! The leader's loop: feeds scalers with what is watched, streamed and polled, and carries out what
//! they ask for. Never computes replicas.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ebpf_scaler_crds::EbpfScaler;
use ebpf_scaler_decide::Time;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, core::DeserializeGuard};
use kube_runtime::events::{self, Recorder, Reporter};
use tokio::sync::{mpsc, watch as channel};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    answers::{Answers, Given, Source},
    apply::{Applier, MANAGER, Target, TargetKey, Written},
    args::CollectorArgs,
    metrics::Metrics,
    scaler::{Effect, Event, Now, Object, Scaler},
    status,
    stream::Told,
    translate::Query,
    watch::{self, Change, Key, follow},
};

/// A scaler without news is decided this often all the same: windows move on, bursts end.
const IDLE: Duration = Duration::from_secs(1);
/// Targets that are not watched are read this often.
const READ: Duration = Duration::from_secs(2);
/// Ours are polled once no stream has answered for this long.
const STREAMLESS: Duration = Duration::from_secs(3);
/// Inputs taken at once before deciding.
const BATCH: usize = 256;

/// A watched target.
#[derive(Debug)]
pub struct TargetObject {
    key: TargetKey,
    target: Target,
}

/// A HorizontalPodAutoscaler's target.
#[derive(Debug)]
pub struct HpaObject {
    key: Key,
    target: TargetKey,
}

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
    /// What the streams are told to ask for.
    pub stream_wanted: channel::Sender<Arc<BTreeMap<String, Query>>>,
    /// What the streams say.
    pub told: mpsc::Receiver<Told>,
    /// What is to be polled.
    pub poll_wanted: channel::Sender<Arc<BTreeMap<String, Query>>>,
    /// What polls say.
    pub polled: mpsc::Receiver<(String, Given)>,
}

struct Known {
    target: Result<Target, String>,
    /// Versions older than this are echoes from before our own write.
    floor: u64,
    read: Option<Instant>,
    reading: bool,
}

struct Engine {
    parts: Parts,
    input: mpsc::Sender<Input>,
    recorder: Recorder,
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
        recorder: Recorder::new(parts.client.clone(), reporter),
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
    engine.tasks.close();
    engine.tasks.wait().await;
    debug!("the engine has ended");
}

fn deployment(object: Deployment) -> TargetObject {
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let replicas = status.replicas.unwrap_or(0);
    target_object::<Deployment>(object.metadata, spec.replicas, replicas, ready)
}

fn stateful_set(object: StatefulSet) -> TargetObject {
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    target_object::<StatefulSet>(object.metadata, spec.replicas, status.replicas, ready)
}

fn target_object<K: Resource<DynamicType = ()>>(
    metadata: ObjectMeta,
    spec: Option<i32>,
    status: i32,
    ready: i32,
) -> TargetObject {
    let key = TargetKey {
        namespace: metadata.namespace.unwrap_or_default(),
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: metadata.name.unwrap_or_default(),
    };
    let target = Target {
        // The API server fills in 1 where it is left out.
        spec: spec.unwrap_or(1),
        status,
        ready: Some(ready),
        selector: format!("ebpfscaler.io/{}={}", key.kind.to_lowercase(), key.name),
        version: metadata.resource_version.unwrap_or_default(),
    };
    TargetObject { key, target }
}

fn hpa(object: HorizontalPodAutoscaler) -> HpaObject {
    let key = watch::key(&object);
    let r = object.spec.unwrap_or_default().scale_target_ref;
    HpaObject {
        target: TargetKey {
            namespace: key.0.clone(),
            api_version: r.api_version.unwrap_or_default(),
            kind: r.kind,
            name: r.name,
        },
        key,
    }
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

    fn told(&mut self, told: Told) {
        match told {
            Told::Connected(address, up) => {
                if up {
                    self.streams.insert(address);
                    self.streamless = None;
                } else {
                    self.streams.remove(&address);
                    self.answers.drop_source(Source::Stream(address));
                    if self.streams.is_empty() {
                        self.streamless = Some(Instant::now());
                    }
                }
            }
            Told::Answers(address, answers) => {
                let valid = self.parts.collector.stale_after;
                let now = Instant::now();
                for answer in answers {
                    let given = Given::from_stream(&answer, now, valid);
                    self.put(&answer.id, Source::Stream(address), given);
                }
            }
        }
    }

    fn put(&mut self, id: &str, source: Source, given: Given) {
        if self.answers.put(id, source, given, Instant::now())
            && let Some(keys) = self.by_query.get(id)
        {
            self.dirty.extend(keys.iter().cloned());
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Scaler(Change::Applied(object)) => self.scaler(*object),
            Input::Scaler(Change::Deleted(key)) => {
                self.scalers.remove(&key);
                self.replan = true;
            }
            Input::Scaler(Change::Synced) => self.synced("scalers"),
            Input::Deployment(change) => self.target_change(change, "Deployment", "deployments"),
            Input::StatefulSet(change) => {
                self.target_change(change, "StatefulSet", "statefulsets");
            }
            Input::Hpa(Change::Applied(hpa)) => {
                if self.hpas.get(&hpa.key) != Some(&hpa.target) {
                    self.hpas.insert(hpa.key, hpa.target);
                    self.replan = true;
                }
            }
            Input::Hpa(Change::Deleted(key)) => {
                self.hpas.remove(&key);
                self.replan = true;
            }
            Input::Hpa(Change::Synced) => self.synced("hpas"),
            Input::Read(key, target) => self.read(key, target),
            Input::Written {
                key,
                target,
                from,
                to,
                sampled,
                why,
                written,
            } => self.written(&key, &target, (from, to), sampled, &why, &written),
            Input::Reported(key, result) => {
                let outcome = if result.is_ok() { "ok" } else { "error" };
                self.parts.metrics.write("status", outcome);
                if let Err(error) = &result {
                    warn!(
                        namespace = key.0,
                        name = key.1,
                        error,
                        "cannot write the status"
                    );
                }
                if let Some(scaler) = self.scalers.get_mut(&key) {
                    scaler.status_written(result.is_ok(), Instant::now());
                }
            }
        }
    }

    fn synced(&mut self, what: &'static str) {
        if self.unsynced.remove(what) && self.unsynced.is_empty() {
            info!(
                scalers = self.scalers.len(),
                "everything is known; deciding"
            );
            self.replan = true;
        }
    }

    fn scaler(&mut self, object: Object) {
        let key = object.key.clone();
        self.dirty.insert(key.clone());
        match self.scalers.get_mut(&key) {
            Some(scaler) => {
                if scaler.object.generation != object.generation || scaler.object.uid != object.uid
                {
                    self.replan = true;
                }
                scaler.update(object);
            }
            None => {
                self.scalers.insert(key, Scaler::new(object));
                self.replan = true;
            }
        }
    }

    fn target_change(
        &mut self,
        change: Change<TargetObject>,
        kind: &'static str,
        what: &'static str,
    ) {
        match change {
            Change::Applied(object) => {
                let version = object.target.version.parse().unwrap_or(u64::MAX);
                let known = self.targets.entry(object.key.clone()).or_insert(Known {
                    target: Err(String::new()),
                    floor: 0,
                    read: None,
                    reading: false,
                });
                if version < known.floor {
                    return;
                }
                let target = Ok(object.target);
                if known.target != target {
                    known.target = target;
                    self.touch(&object.key);
                }
            }
            Change::Deleted((namespace, name)) => {
                let key = TargetKey {
                    namespace,
                    api_version: "apps/v1".into(),
                    kind: kind.into(),
                    name,
                };
                self.targets.remove(&key);
                self.touch(&key);
            }
            Change::Synced => self.synced(what),
        }
    }

    fn touch(&mut self, key: &TargetKey) {
        if let Some(keys) = self.by_target.get(key) {
            self.dirty.extend(keys.iter().cloned());
        }
    }

    fn read(&mut self, key: TargetKey, target: Result<Target, String>) {
        if let Some(known) = self.targets.get_mut(&key) {
            known.reading = false;
            known.read = Some(Instant::now());
            if known.target != target {
                known.target = target;
                self.touch(&key);
            }
        }
    }

    fn written(
        &mut self,
        key: &Key,
        target: &TargetKey,
        (from, to): (i32, i32),
        sampled: Option<i64>,
        why: &str,
        written: &Written,
    ) {
        let now = self.now();
        let outcome = match written {
            Written::Accepted(_) => "ok",
            Written::Foreign(_) => "conflict",
            Written::Failed(_) => "error",
            Written::NotLeading => "not-leading",
        };
        self.parts.metrics.write("scale", outcome);
        info!(
            namespace = key.0,
            name = key.1,
            from,
            to,
            why,
            outcome,
            "scale"
        );
        if let (Written::Accepted(seen) | Written::Foreign(seen), Some(known)) =
            (written, self.targets.get_mut(target))
        {
            known.floor = seen.version.parse().unwrap_or(0);
            let before = known.target.as_ref().ok();
            known.target = Ok(Target {
                ready: seen.ready.or(before.and_then(|t| t.ready)),
                selector: before.map_or_else(|| seen.selector.clone(), |t| t.selector.clone()),
                ..seen.clone()
            });
        }
        if let (Written::Accepted(_), Some(sampled)) = (written, sampled) {
            let micros = now.wall.as_microsecond().saturating_sub(sampled);
            self.parts
                .metrics
                .reaction
                .observe(micros.max(0) as f64 / 1e6);
        }
        if let Some(scaler) = self.scalers.get_mut(key) {
            let effects = scaler.written(from, to, why, written, now);
            let reference = reference(scaler);
            self.carry_out(key, target.clone(), &reference, effects);
            self.dirty.insert(key.clone());
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

    /// External metrics always; ours only while no stream brings them.
    fn choose_polls(&mut self, now: Instant) {
        let streamless = self
            .streamless
            .is_some_and(|t| now.duration_since(t) >= STREAMLESS);
        let mut wanted = BTreeMap::new();
        for scaler in self.scalers.values() {
            for query in scaler.plan().iter().flat_map(|p| &p.queries) {
                if !query.is_ours() || streamless {
                    wanted.insert(query.id(), query.clone());
                }
            }
        }
        self.parts.poll_wanted.send_if_modified(|old| {
            let changed = **old != wanted;
            if changed {
                *old = Arc::new(wanted);
            }
            changed
        });
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

    /// Who scales what, who is asked what, and who is in whose way.
    fn index(&mut self) {
        self.by_target.clear();
        self.by_query.clear();
        let mut wanted = BTreeMap::new();
        for (key, scaler) in &self.scalers {
            self.by_target
                .entry(scaler.target.clone())
                .or_default()
                .push(key.clone());
            for query in scaler.plan().iter().flat_map(|p| &p.queries) {
                let id = query.id();
                self.by_query
                    .entry(id.clone())
                    .or_default()
                    .push(key.clone());
                self.answers.expect(&id);
                if query.is_ours() {
                    wanted.insert(id, query.clone());
                }
            }
        }
        let by_query = &self.by_query;
        self.answers.retain(|id| by_query.contains_key(id));
        for target in self.by_target.keys() {
            // A place for what is read; watched targets come by themselves.
            if !target.is_watched() && !self.targets.contains_key(target) {
                let known = Known {
                    target: Err(String::new()),
                    floor: 0,
                    read: None,
                    reading: false,
                };
                self.targets.insert(target.clone(), known);
            }
        }
        self.conflicts();
        self.dirty.extend(self.scalers.keys().cloned());
        self.parts.metrics.scalers.set(self.scalers.len() as i64);
        self.parts.stream_wanted.send_if_modified(|old| {
            let changed = **old != wanted;
            if changed {
                *old = Arc::new(wanted);
            }
            changed
        });
    }

    fn conflicts(&mut self) {
        let same = |a: &TargetKey, b: &TargetKey| {
            (a.group(), &a.kind, &a.name, &a.namespace)
                == (b.group(), &b.kind, &b.name, &b.namespace)
        };
        let mut found: Vec<(Key, Option<(&'static str, String)>)> = Vec::new();
        for (target, keys) in &self.by_target {
            let hpa = self.hpas.iter().find(|(_, t)| same(t, target));
            let age = |k: &Key| {
                (
                    self.scalers.get(k).and_then(|s| s.object.created),
                    k.clone(),
                )
            };
            let oldest = keys.iter().min_by_key(|k| age(k));
            for key in keys {
                let conflict = match (hpa, oldest) {
                    (Some(((_, name), _)), _) => Some((
                        "HorizontalPodAutoscaler",
                        format!(
                            "HorizontalPodAutoscaler {name} scales the same target; delete one of the two"
                        ),
                    )),
                    (None, Some(oldest)) if oldest != key => Some((
                        "EbpfScaler",
                        format!(
                            "EbpfScaler {} scales the same target and is older; delete one of the two",
                            oldest.1
                        ),
                    )),
                    _ => None,
                };
                found.push((key.clone(), conflict));
            }
        }
        for (key, conflict) in found {
            if let Some(scaler) = self.scalers.get_mut(&key) {
                scaler.set_conflict(conflict);
            }
        }
    }

    fn carry_out(
        &self,
        key: &Key,
        target: TargetKey,
        reference: &ObjectReference,
        effects: Vec<Effect>,
    ) {
        for effect in effects {
            match effect {
                Effect::Scale {
                    seen,
                    to,
                    sampled,
                    why,
                } => {
                    let (applier, out) = (self.parts.applier.clone(), self.input.clone());
                    let (key, target) = (key.clone(), target.clone());
                    self.tasks.spawn(async move {
                        let written = applier.scale(&target, &seen, to).await;
                        let input = Input::Written {
                            key,
                            target,
                            from: seen.spec,
                            to,
                            sampled,
                            why,
                            written,
                        };
                        let _ = out.send(input).await;
                    });
                }
                Effect::Status(status) => {
                    let (applier, out, key) =
                        (self.parts.applier.clone(), self.input.clone(), key.clone());
                    self.tasks.spawn(async move {
                        let patch = status::patch(&status);
                        let result = applier.status(&key.0, &key.1, patch).await;
                        let _ = out.send(Input::Reported(key, result)).await;
                    });
                }
                Effect::Event(event) => self.publish(event, reference.clone()),
            }
        }
    }

    fn publish(&self, event: Event, reference: ObjectReference) {
        let (recorder, metrics) = (self.recorder.clone(), self.parts.metrics.clone());
        self.tasks.spawn(async move {
            let event = events::Event {
                type_: if event.warning {
                    events::EventType::Warning
                } else {
                    events::EventType::Normal
                },
                reason: event.reason.into(),
                // The API allows 1024 bytes.
                note: Some(event.note.chars().take(1000).collect()),
                action: "Scale".into(),
                secondary: None,
            };
            match recorder.publish(&event, &reference).await {
                Ok(()) => metrics.write("event", "ok"),
                Err(error) => {
                    metrics.write("event", "error");
                    debug!(%error, "cannot publish an event");
                }
            }
        });
    }
}

fn reference(scaler: &Scaler) -> ObjectReference {
    ObjectReference {
        api_version: Some(EbpfScaler::api_version(&()).into_owned()),
        kind: Some(EbpfScaler::kind(&()).into_owned()),
        namespace: Some(scaler.object.key.0.clone()),
        name: Some(scaler.object.key.1.clone()),
        uid: Some(scaler.object.uid.clone()),
        ..ObjectReference::default()
    }
}
