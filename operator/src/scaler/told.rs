//! What one EbpfScaler tells of its decisions, and hears of its writes: status, history, events. Never decides.

use super::*;

impl Scaler {
    /// The write of replicas has ended.
    pub fn written(
        &mut self,
        from: i32,
        to: i32,
        why: &str,
        written: &Written,
        now: Now,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.writing = false;
        self.remember(written, now);
        match written {
            Written::Accepted(after) => {
                self.history.scaled(from, to, now.time);
                self.foreign.wrote(from, after.spec);
                self.last_scale = Some(now.wall);
                self.trouble = None;
                self.retry = None;
                self.decided = None;
                effects.push(Effect::Event(Event {
                    warning: false,
                    reason: "SuccessfulRescale",
                    note: format!("New size: {to}; reason: {why}"),
                }));
            }
            Written::Foreign(_) | Written::NotLeading => {}
            Written::Failed(error) => {
                let wait = match self.retry {
                    Some((_, last)) => (last * 2).min(RETRY.1),
                    None => RETRY.0,
                };
                self.retry = Some((now.instant + wait, wait));
                self.trouble = Some(("FailedUpdateScale", error.clone()));
                let note = format!("New size: {to}; reason: {why}; error: {error}");
                self.say(&mut effects, true, "FailedRescale", &note, now.instant);
            }
        }
        effects
    }

    /// Puts the decision whose write has ended into the journal.
    fn remember(&mut self, written: &Written, now: Now) {
        let (outcome, error) = match written {
            Written::Accepted(_) => (Outcome::Applied, None),
            Written::Foreign(_) => (Outcome::Superseded, None),
            Written::Failed(error) => (Outcome::Failed, Some(error.as_str())),
            // Whoever leads now decides, and remembers.
            Written::NotLeading => return,
        };
        if let (Some((decision, observation)), Some((_, plan))) = (&self.last, &self.plan) {
            let made = (decision, observation);
            self.journal.take(made, plan, outcome, error, now.wall);
        }
    }

    /// The write of the history has ended.
    pub fn history_written(&mut self, load: Option<&LoadSeries>, ok: bool) {
        self.journal.written(ok);
        if let Some(load) = load.filter(|_| ok) {
            self.load.written(load);
        }
    }

    /// What is not written down yet: there will be no other time.
    #[must_use]
    pub fn last_words(&self, wall: Timestamp) -> Option<Addition> {
        let decisions = self.journal.rest();
        let load = self.load.ended(wall);
        (decisions.is_some() || load.is_some()).then(|| Addition {
            decisions: decisions.unwrap_or_default(),
            load,
        })
    }

    /// The write of the status has ended.
    pub fn status_written(&mut self, ok: bool, now: Instant) {
        self.status_writing = false;
        if !ok {
            self.keeper.forget();
            self.status_retry = Some(now + Duration::from_secs(2));
        }
    }

    pub(super) fn report(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(decisions) = self.journal.due(now.instant, self.load.is_due(now.wall)) {
            effects.push(Effect::History(Addition {
                decisions,
                load: self.load.ended(now.wall),
            }));
        }
        if self.status_writing || self.status_retry.is_some_and(|t| t > now.instant) {
            return;
        }
        let empty;
        let plan = match &self.plan {
            Some((_, plan)) => plan,
            None => {
                empty = translate::plan(&self.object.spec, &self.object.key.0, "");
                &empty
            }
        };
        let view = View {
            generation: self.object.generation,
            plan,
            decision: self.last.as_ref().map(|(d, o)| (d, o)),
            trouble: self.trouble.clone(),
            conflict: self.conflict.clone(),
            held: self.foreign.held(now.instant),
            foreign: self.foreign.fact(now.instant),
            observing: self.object.spec.mode == Mode::Observe,
            last_scale: self.last_scale,
            curves: self.curves(plan, now.time),
        };
        let status = view.status(&self.keeper.written, now.wall);
        if self.keeper.is_due(&status, now.instant) {
            self.keeper.wrote(status.clone(), now.instant);
            self.status_writing = true;
            effects.push(Effect::Status(Box::new(status)));
        }
    }

    /// What was learned, of each metric that learns.
    fn curves(&self, plan: &Plan, now: Time) -> Vec<(usize, Vec<Point>)> {
        let learning = plan.beside.iter().filter_map(|b| {
            let metric = plan.policy.metrics.get(b.metric)?;
            Some((b.metric, self.history.learned(&metric.name, now)))
        });
        learning.collect()
    }

    /// An event, unless the same was said a moment ago.
    pub(super) fn say(
        &mut self,
        effects: &mut Vec<Effect>,
        warning: bool,
        reason: &'static str,
        note: &str,
        now: Instant,
    ) {
        self.said.retain(|(_, at)| now.duration_since(*at) < QUIET);
        if self.said.iter().any(|(r, _)| *r == reason) {
            return;
        }
        self.said.push((reason, now));
        effects.push(Effect::Event(Event {
            warning,
            reason,
            note: note.to_owned(),
        }));
    }
}
