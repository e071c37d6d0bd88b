//! What the parts of the role share: the state of the world, who may ask, what is wanted. Each lock is held
//! for one event or one answer, never across an await.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use ebpf_scaler_measure::state::Census;
use ebpf_scaler_measure::tally::PARTS;
use ebpf_scaler_measure::{Answer, Family, Metric, Query, State, Time, Window};

use tokio::sync::watch;

use super::clock::Clock;
use super::delegate::Delegates;
use super::demand::{Asked, Demand};
use super::identity::{LiveTrust, User};
use super::metrics::{FamilyLabels, Metrics};
use super::reviews::{Access, Action, Reviews};
use super::signals::board::Board;
use super::status::Failure;

/// What goes through everything stops so often, so that others get their turn...
const SPELL: Duration = Duration::from_micros(500);
/// ...and for so long.
const BREATH: Duration = Duration::from_millis(1);
/// Nodes that are swept together: some hundreds of pods.
const SOME_NODES: usize = 16;

/// Shared by everything that serves.
pub struct Hub {
    /// Time for the state
    pub clock: Clock,
    state: RwLock<State>,
    /// Which families are wanted
    pub demand: Demand,
    /// Tokens and rights
    pub reviews: Reviews,
    /// Whose certificates count
    pub trust: LiveTrust,
    /// The role's own metrics
    pub metrics: Metrics,
    /// Changes with every batch taken in
    pub ingested: watch::Sender<()>,
    /// What is computed for the readers of signals
    pub signals: Board,
    /// Other providers of our groups
    pub delegates: Delegates,
}

impl Hub {
    /// Knows nothing yet.
    pub fn new(
        client: kube::Client,
        demand: Demand,
        metrics: Metrics,
        delegates: Delegates,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::default(),
            state: RwLock::default(),
            demand,
            reviews: Reviews::new(client),
            trust: LiveTrust::default(),
            metrics,
            ingested: watch::Sender::new(()),
            signals: Board::default(),
            delegates,
        })
    }

    /// The state, to read.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, to change, with the time of the change.
    pub fn change(&self) -> (RwLockWriteGuard<'_, State>, Time) {
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        (state, self.clock.now())
    }

    /// Answers a query and keeps what it needs measured.
    pub fn answer(
        &self,
        namespace: &str,
        metric: Metric,
        query: &Query,
        windows: &[Window],
    ) -> Result<Answer, Failure> {
        let now = self.clock.now();
        self.demand(namespace, metric, query, now);
        let answer = self.state().answer(namespace, metric, query, windows, now);
        answer.map_err(|e| Failure::new(e.code(), e.to_string()).because(e.reason()))
    }

    /// Keeps a family measured, of all pods.
    pub fn keep(&self, family: Family) {
        self.hold("", family, &Query::default(), self.clock.now());
    }

    /// Keeps what a query needs measured.
    fn demand(&self, namespace: &str, metric: Metric, query: &Query, now: Time) {
        if query.narrow.misfit(metric).is_none() {
            self.hold(namespace, metric.family(), query, now);
        }
    }

    fn hold(&self, namespace: &str, family: Family, query: &Query, now: Time) {
        match self.demand.ask(family, namespace, query, now) {
            Asked::Known => {}
            Asked::News => self.demand.publish(&self.state(), now),
            Asked::TooMany => drop(self.metrics.narrowed_overflow.inc()),
        }
    }

    /// Answers a query for each pod on its own and keeps what it needs measured.
    pub fn answer_each(
        &self,
        namespace: &str,
        metric: Metric,
        query: &Query,
        windows: &[Window],
    ) -> Result<Answer, Failure> {
        let now = self.clock.now();
        self.demand(namespace, metric, query, now);
        let state = self.state();
        let answer = state.answer_each(namespace, metric, query, windows, now);
        answer.map_err(|e| Failure::new(e.code(), e.to_string()).because(e.reason()))
    }

    /// Whether the user may, as a failure if not.
    pub async fn authorize(&self, user: &User, action: &Action) -> Result<(), Failure> {
        match self.reviews.access(user, action).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => {
                self.metrics.deny("forbidden");
                Err(Failure::new(403, forbidden(user, action, &reason)))
            }
            Err(error) => {
                tracing::warn!(%error, "can not authorize");
                Err(Failure::new(500, error.to_string()))
            }
        }
    }

    /// Lets old readings go. Seldom: it goes through everything, a little at a time, so that neither reports nor
    /// queries wait for it.
    pub async fn sweep(&self) {
        let nodes = {
            let (mut state, now) = self.change();
            state.index.sweep(now);
            state.node_names()
        };
        let mut spell = Spell::begin();
        for part in 0..PARTS {
            spell.rest().await;
            let (mut state, now) = self.change();
            state.sweep_requests(part, now);
        }
        for some in nodes.chunks(SOME_NODES) {
            spell.rest().await;
            let (mut state, now) = self.change();
            state.sweep_nodes(some, now);
        }
        self.signals.sweep();
    }

    /// What else time changes: counters are drained, demand lapses, gauges follow. A little at a time, too.
    pub async fn tick(&self) {
        self.demand.publish(&self.state(), self.clock.now());
        let mut spell = Spell::begin();
        for part in 0..PARTS {
            spell.rest().await;
            let requests = self.change().0.drain_requests_of(part);
            for ((namespace, workload), count) in requests {
                self.metrics.workload(&namespace, &workload, count);
            }
        }
        let namespaces = self.state().index.namespaces();
        let mut census = Census::default();
        for namespace in &namespaces {
            spell.rest().await;
            let now = self.clock.now();
            self.state().count(namespace, &mut census, now);
        }
        let live = census.nodes.values().filter(|live| **live).count();
        self.metrics.nodes.set(census.nodes.len() as i64);
        self.metrics.nodes_live.set(live as i64);
        self.metrics.pods.set(self.state().index.len() as i64);
        for (family, covered) in Family::ALL.iter().zip(census.covered) {
            let family = family.as_str();
            let gauge = self
                .metrics
                .coverage
                .get_or_create(&FamilyLabels { family });
            gauge.set(if census.expected == 0 {
                1.0
            } else {
                covered as f64 / census.expected as f64
            });
        }
    }
}

/// Work that rests now and then.
struct Spell(Instant);

impl Spell {
    fn begin() -> Self {
        Self(Instant::now())
    }

    async fn rest(&mut self) {
        if self.0.elapsed() >= SPELL {
            tokio::time::sleep(BREATH).await;
            self.0 = Instant::now();
        }
    }
}

/// In the words of k8s.io/apiserver.
fn forbidden(user: &User, action: &Action, reason: &str) -> String {
    let what = match action {
        Action::ListMetric { namespace, metric } => format!(
            "{metric}.external.metrics.k8s.io is forbidden: User {:?} cannot list resource {metric:?} in API group \"external.metrics.k8s.io\" in the namespace {namespace:?}",
            user.name
        ),
        Action::Access(access) => forbidden_access(user, access),
        Action::GetPath(path) => {
            format!("forbidden: User {:?} cannot get path {path:?}", user.name)
        }
    };
    if reason.is_empty() {
        what
    } else {
        format!("{what}: {reason}")
    }
}

fn forbidden_access(user: &User, access: &Access) -> String {
    let object = match access.name.as_str() {
        "" => String::new(),
        name => format!(" {name:?}"),
    };
    let resource = match access.subresource.as_str() {
        "" => access.resource.clone(),
        subresource => format!("{}/{subresource}", access.resource),
    };
    let place = match access.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!(
        "{}.{}{object} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        access.resource, access.group, user.name, access.verb, access.group
    )
}
