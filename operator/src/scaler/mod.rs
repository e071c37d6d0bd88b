//! One EbpfScaler: what is known of it, one decision at a time, and what is to be done about it.
//! Never talks to anything: it is fed, and returns effects.

mod foreign;
mod journal;
pub mod load;
mod model;
mod told;

pub use model::{Addition, Effect, Event, Object};

use std::time::{Duration, Instant};

use ebpf_scaler_crds::v1alpha1::{LearnedCapacity, LoadSeries, Mode, Outcome, Profile};
use ebpf_scaler_decide::{
    Beside, Decision, History, Observation, Point, Reading, Reason, Time, decide,
};
use k8s_openapi::jiff::Timestamp;

use foreign::Foreign;
use journal::Journal;
use load::Load;

use crate::{
    answers::Answers,
    apply::{Target, TargetKey, Written},
    metrics::Metrics,
    schedule,
    status::{Keeper, View, learned},
    translate::{self, Plan},
};

/// The HPA reconciles this often, and its rules without `behavior` mean it.
const HPA_PERIOD: Duration = Duration::from_secs(15);
/// A failed write is tried again after this, and then after twice as long each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Without answers to all of its queries, a new scaler is not decided before this: they are on their
/// way, and "no metrics" would be news for nothing.
const GRACE: Duration = Duration::from_secs(3);
/// Metrics that are missing for less are no event.
const BLINK: Duration = Duration::from_secs(10);
/// The same event is not repeated within this.
const QUIET: Duration = Duration::from_secs(300);

/// The two clocks of one moment, and the engine's.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For waiting.
    pub instant: Instant,
    /// For people.
    pub wall: Timestamp,
    /// For deciding.
    pub time: Time,
}

/// One EbpfScaler.
pub struct Scaler {
    /// The object.
    pub object: Object,
    /// What it scales.
    pub target: TargetKey,
    plan: Option<(String, Plan)>,
    history: History,
    /// What was learned before we came, until the first decision.
    found: Vec<LearnedCapacity>,
    last: Option<(Decision, Observation)>,
    keeper: Keeper,
    journal: Journal,
    load: Load,
    entries: usize,
    conflict: Option<(&'static str, String)>,
    foreign: Foreign,
    trouble: Option<(&'static str, String)>,
    /// When it was last decided.
    pub decided: Option<Instant>,
    last_scale: Option<Timestamp>,
    writing: bool,
    status_writing: bool,
    retry: Option<(Instant, Duration)>,
    status_retry: Option<Instant>,
    said: Vec<(&'static str, Instant)>,
    /// When it was first to be decided.
    since: Option<Instant>,
    /// Since when metrics are missing.
    missing: Option<Instant>,
}

impl Scaler {
    /// A scaler seen for the first time, whose history has so many entries.
    #[must_use]
    pub fn new(object: Object, entries: usize) -> Self {
        Self {
            journal: Journal::new(entries),
            load: Load::of(&object.uid),
            entries,
            target: object.target(),
            keeper: Keeper::new(object.status.clone()),
            plan: None,
            history: History::default(),
            // Of another spec it may be about another target.
            found: if object.status.observed_generation == object.generation {
                object.status.learned.clone()
            } else {
                Vec::new()
            },
            last: None,
            conflict: None,
            foreign: Foreign::default(),
            trouble: None,
            decided: None,
            last_scale: object.status.last_scale_time.as_ref().map(|t| t.0),
            writing: false,
            status_writing: false,
            retry: None,
            status_retry: None,
            said: Vec::new(),
            since: None,
            missing: None,
            object,
        }
    }

    /// The object changed, or its status was written (also by us).
    pub fn update(&mut self, object: Object) {
        let target = object.target();
        if target != self.target || object.uid != self.object.uid {
            *self = Self::new(object, self.entries);
            return;
        }
        if object.spec != self.object.spec {
            self.plan = None;
            self.decided = None;
        }
        self.object = object;
    }

    /// What the spec means for pods that `pods` selects, and whether that is news.
    pub fn plan_for(&mut self, pods: &str) -> bool {
        if self.plan.as_ref().is_some_and(|(p, _)| p == pods) {
            return false;
        }
        let plan = translate::plan(&self.object.spec, &self.object.key.0, pods);
        self.plan = Some((pods.to_owned(), plan));
        true
    }

    /// What the spec means, once its pods are known.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref().map(|(_, p)| p)
    }

    /// Who else scales the target.
    pub fn set_conflict(&mut self, conflict: Option<(&'static str, String)>) {
        self.conflict = conflict;
    }

    /// Decides on what is at hand, and returns what is to be done.
    pub fn step(
        &mut self,
        target: Result<&Target, &str>,
        answers: &mut Answers,
        now: Now,
        metrics: &Metrics,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match target {
            Err(why) => {
                self.last = None;
                self.trouble = Some(("FailedGetScale", why.to_owned()));
                self.decided = Some(now.instant);
                self.say(&mut effects, true, "FailedGetScale", why, now.instant);
            }
            Ok(target) => {
                if self
                    .trouble
                    .as_ref()
                    .is_some_and(|(r, _)| *r == "FailedGetScale")
                {
                    self.trouble = None;
                }
                if self.writing {
                    return effects;
                }
                if self.is_due(now.instant) {
                    self.decided = Some(now.instant);
                    self.decide(target, answers, now, metrics, &mut effects);
                }
            }
        }
        if let Some((reason, why)) = self.conflict.clone() {
            self.say(&mut effects, true, reason, &why, now.instant);
        }
        self.report(now, &mut effects);
        effects
    }

    fn is_due(&self, now: Instant) -> bool {
        let hpa = self.object.spec.profile == Profile::Hpa;
        !hpa || self
            .decided
            .is_none_or(|t| now.duration_since(t) >= HPA_PERIOD)
    }

    fn decide(
        &mut self,
        target: &Target,
        answers: &mut Answers,
        now: Now,
        metrics: &Metrics,
        effects: &mut Vec<Effect>,
    ) {
        if let Some((reason, note)) = self
            .foreign
            .see(target.spec, target.manager.as_deref(), now)
        {
            metrics.foreign_changes.inc();
            self.say(effects, true, reason, &note, now.instant);
        }
        let Some((_, plan)) = &mut self.plan else {
            return;
        };
        plan.policy.floor = plan.schedules.floor(now.wall);
        plan.policy.pause = schedule::pause(self.object.spec.pause.as_ref(), now.wall);
        let mut samples = Vec::with_capacity(plan.queries.len());
        let readings: Vec<Reading> = plan
            .queries
            .iter()
            .map(|q| {
                let best = answers.best(&q.id(), now.instant);
                samples.push(best.sampled_unix_micros);
                best.reading
            })
            .collect();
        let observation = Observation {
            spec_replicas: target.spec,
            status_replicas: target.status,
            ready_replicas: target.ready.unwrap_or(target.status),
            metrics: readings,
            beside: plan
                .beside
                .iter()
                .map(|b| Beside {
                    metric: b.metric,
                    load: answers.best(&b.load.id(), now.instant).reading,
                    waiting: answers.best(&b.waiting.id(), now.instant).reading,
                })
                .collect(),
        };
        let since = *self.since.get_or_insert(now.instant);
        if self.last.is_none()
            && samples.contains(&None)
            && now.instant.duration_since(since) < GRACE
        {
            self.decided = None;
            return;
        }
        for found in std::mem::take(&mut self.found) {
            learned::restore(&mut self.history, &found, now);
        }
        let begun = Instant::now();
        let decision = decide(&observation, &plan.policy, &self.history, now.time);
        metrics.decide.observe(begun.elapsed().as_secs_f64());
        metrics.reconciliations.inc();
        self.history
            .record(&observation, &plan.policy, &decision, now.time);
        let before = self.last.as_ref().map(|(d, _)| d.reason);
        if before != Some(decision.reason) {
            metrics.decision(decision.reason.as_str());
        }
        let why = format!(
            "{}: {}",
            decision.reason.as_str(),
            decision.message(&plan.policy)
        );
        self.missing = match decision.reason {
            Reason::NoMetrics | Reason::SomeMetricsMissing | Reason::Fallback => {
                self.missing.or(Some(now.instant))
            }
            _ => None,
        };
        if self
            .missing
            .is_some_and(|t| now.instant.duration_since(t) >= BLINK)
        {
            self.say(effects, true, "FailedGetMetrics", &why, now.instant);
        }
        let may_write = self.conflict.is_none()
            && !self.foreign.holds(now.instant)
            && self.object.spec.mode == Mode::Enforce
            && self.retry.is_none_or(|(at, _)| at <= now.instant);
        if let Some((_, plan)) = self.plan.as_ref().filter(|_| self.entries > 0) {
            self.load.see(&decision, plan, now.wall);
        }
        let writes = decision.changes() && may_write;
        if !writes {
            let outcome = if !decision.changes() {
                Outcome::Held
            } else if self.object.spec.mode == Mode::Observe {
                Outcome::Observed
            } else if self.retry.is_some() {
                Outcome::Failed
            } else {
                Outcome::Withheld
            };
            // A write that failed was remembered with its error.
            if let Some((_, plan)) = self.plan.as_ref().filter(|_| outcome != Outcome::Failed) {
                let made = (&decision, &observation);
                self.journal.take(made, plan, outcome, None, now.wall);
            }
        }
        if writes {
            self.writing = true;
            let sampled = match decision.top {
                Some(top) => samples.get(top).copied().flatten(),
                None => None,
            };
            effects.push(Effect::Scale {
                seen: target.clone(),
                to: decision.replicas,
                sampled,
                why,
            });
        }
        self.last = Some((decision, observation));
    }

    /// Replicas and reason of the last decision: for tests and logs.
    #[must_use]
    pub fn last(&self) -> Option<&Decision> {
        self.last.as_ref().map(|(d, _)| d)
    }
}
