//! Takes in what is watched, streamed, polled and written, and marks who has news. Never decides.

use std::time::Instant;

use tracing::{info, warn};

use super::{Engine, Input, Known, TargetObject, reference};
use crate::{
    answers::{Given, Source},
    apply::{Target, TargetKey, Written},
    scaler::{Object, Scaler},
    stream::Told,
    watch::{Change, Key},
};

impl Engine {
    pub(super) fn told(&mut self, told: Told) {
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

    pub(super) fn put(&mut self, id: &str, source: Source, given: Given) {
        if self.answers.put(id, source, given, Instant::now())
            && let Some(keys) = self.by_query.get(id)
        {
            self.dirty.extend(keys.iter().cloned());
        }
    }

    pub(super) fn take(&mut self, input: Input) {
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
            Input::Recorded(key, load, result) => {
                let outcome = if result.is_ok() { "ok" } else { "error" };
                self.parts.metrics.write("history", outcome);
                if let Err(error) = &result {
                    warn!(
                        namespace = key.0,
                        name = key.1,
                        error,
                        "cannot write the history"
                    );
                }
                if let Some(scaler) = self.scalers.get_mut(&key) {
                    scaler.history_written(load.as_ref(), result.is_ok());
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
                let scaler = Scaler::new(object, self.parts.history_entries);
                self.scalers.insert(key, scaler);
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
            let version = target.as_ref().ok().and_then(|t| t.version.parse().ok());
            // A read that began before our own write ended is an echo of what was.
            if version.is_some_and(|version: u64| version < known.floor) {
                return;
            }
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
            known.wrote(seen);
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
}
