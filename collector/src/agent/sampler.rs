//! The loop of the agent: follows cgroups, reads changed slots at each tick and publishes them. It owns the
//! kernel side and the pods, and never waits for the network.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebpf_scaler_proto::{Degraded, ReportRequest};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::cgroup::{self, Change, Kubepods, Throttling, Watcher};
use super::demand::Demand;
use super::kernel::Kernel;
use super::metrics::Metrics;
use super::pods::{Facts, Pods};
use super::probes::Family;
use super::report::Wanted;
use super::sample;
use super::store::Store;
use super::tls;

/// Inotify tells at once; this finds what it could not.
const RESCAN: Duration = Duration::from_secs(30);
/// How long a family that failed is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// How often the metrics are brought up to date.
const STATISTICS: Duration = Duration::from_secs(1);
/// Directories followed, per pod that can be measured: its own, a sandbox, containers, and what they nest.
const CGROUPS_PER_POD: usize = 16;

/// What a sampler needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the pods are.
    pub kubepods: Kubepods,
    /// How often to read.
    pub interval: Duration,
    /// Bound on pods.
    pub max_pods: u32,
    /// Pods' epochs are given out upward from here.
    pub first_epoch: u64,
    /// Families measured without demand.
    pub families: BTreeSet<Family>,
    /// For whom requests inside TLS may be counted.
    pub tls: tls::Allowed,
}

/// Everything that one tick touches.
pub struct Sampler<K> {
    kernel: K,
    pods: Pods,
    throttling: Throttling,
    demand: Demand,
    store: Store,
    metrics: Metrics,
    interval: Duration,
    families: BTreeSet<Family>,
    /// What the kernel side was last told; none before the first time.
    wanted: Option<BTreeSet<Family>>,
    failed: Vec<(Family, String)>,
    try_again: Instant,
    facts: Facts,
    misses: cgroup::Misses,
    changes: Vec<Change>,
    tls: tls::Follower,
}

impl<K: Kernel> Sampler<K> {
    /// A sampler that has seen no cgroup yet.
    pub fn new(
        kernel: K,
        options: Options,
        store: Store,
        metrics: Metrics,
    ) -> (Self, std::io::Result<Watcher>) {
        let bound = options.max_pods as usize * CGROUPS_PER_POD;
        let watcher = Watcher::new(&options.kubepods.dir, bound);
        let finder = (options.tls != tls::Allowed::Never)
            .then(|| tls::Finder::start(options.kubepods.dir.clone()));
        let finder = finder.and_then(|started| {
            started
                .inspect_err(|error| tracing::warn!(%error, "can not look for TLS libraries"))
                .ok()
        });
        let sampler = Self {
            kernel,
            pods: Pods::new(options.first_epoch),
            throttling: Throttling::new(options.kubepods),
            demand: Demand::new(options.families),
            store,
            metrics,
            interval: options.interval,
            families: BTreeSet::new(),
            wanted: None,
            failed: Vec::new(),
            try_again: Instant::now(),
            facts: Facts::default(),
            misses: cgroup::Misses::default(),
            changes: Vec::new(),
            tls: tls::Follower::new(options.tls, finder, Instant::now()),
        };
        (sampler, watcher)
    }

    /// Runs until `shutdown`, then publishes a last time.
    pub async fn run(
        mut self,
        watcher: Watcher,
        mut wanted: mpsc::Receiver<Wanted>,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        // SAFETY: the watcher owns its inotify descriptor, and nothing replaces or closes it in here.
        let mut watcher = unsafe { AsyncFd::register_with_interest(watcher, Interest::READABLE) }?;
        watcher.get_mut().rescan(&mut self.changes);
        self.apply_changes(true);
        self.follow_demand();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next_rescan = Instant::now() + RESCAN;
        let mut next_statistics = Instant::now();
        loop {
            tokio::select! {
                due = ticks.tick() => {
                    if due.elapsed() > self.interval {
                        self.metrics.readings_late.inc();
                    }
                    let now = Instant::now();
                    if now >= next_rescan {
                        next_rescan = now + RESCAN;
                        watcher.get_mut().rescan(&mut self.changes);
                        self.apply_changes(false);
                    }
                    self.follow_demand();
                    self.tick(now);
                    if now >= next_statistics {
                        next_statistics = now + STATISTICS;
                        self.publish_statistics(watcher.get_ref());
                    }
                }
                ready = watcher.readable_mut() => {
                    let mut ready = ready?;
                    ready.get_inner_mut().poll(&mut self.changes)?;
                    ready.clear_ready();
                    self.apply_changes(false);
                }
                Some(want) = wanted.recv() => {
                    let now = Instant::now();
                    self.demand.want(want.replica, want.families, want.divide, want.ttl, now);
                    self.demand.want_tls(want.replica, want.tls_pods);
                    self.follow_demand();
                }
                Some(found) = self.tls.found() => {
                    if self.tls.take(&mut self.kernel, found, Instant::now()) {
                        self.families = self.active();
                        self.publish_families();
                    }
                }
                () = shutdown.cancelled() => {
                    self.tick(Instant::now());
                    return Ok(());
                }
            }
        }
    }

    /// Reads what changed and publishes it. Without a change too: that a pod is idle is news as well.
    fn tick(&mut self, now: Instant) {
        self.throttling
            .read(|pod, micros| self.pods.throttled(pod, micros));
        let (monotonic_micros, wall_unix_micros) = clocks();
        let changes = self.pods.read(&mut self.kernel, now);
        self.store.publish(ReportRequest {
            monotonic_micros,
            wall_unix_micros,
            samples: changes.samples,
            parts: changes.parts,
            gone: changes.gone,
            families: self
                .families
                .iter()
                .map(|f| sample::family(*f) as i32)
                .collect(),
            ..ReportRequest::default()
        });
        self.metrics
            .read_duration
            .observe(now.elapsed().as_secs_f64());
    }

    fn apply_changes(&mut self, first: bool) {
        let now = Instant::now();
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Added { path, id } => {
                    let Some(of) = cgroup::parse(&path) else {
                        continue;
                    };
                    let uid = self.pods.added(&mut self.kernel, &of.uid, &path, id, now);
                    let is_pod_dir = path == of.pod_dir;
                    // Deeper ones have their limits from the container's own.
                    if is_pod_dir
                        || path.matches('/').count() == of.pod_dir.matches('/').count() + 1
                    {
                        self.throttling.watch(&path, &uid, is_pod_dir, first);
                    }
                }
                Change::Removed { path, id } => {
                    self.throttling.forget(&path);
                    let is_pod_dir = cgroup::parse(&path).is_some_and(|of| of.pod_dir == path);
                    self.pods.removed(&mut self.kernel, id, is_pod_dir, now);
                }
            }
        }
    }

    /// Measures what is wanted; what failed is tried again, but not at every tick.
    fn follow_demand(&mut self) {
        let now = Instant::now();
        let divide = self.demand.divisions(now);
        if !self.pods.wants(&divide) {
            self.pods.want(&mut self.kernel, divide, now);
        }
        let mut wanted = self.demand.families(now);
        let tls = self.demand.tls(now);
        if self.tls.want(&mut self.kernel, &tls) {
            let counted = if self.tls.is_wanted() {
                tls
            } else {
                BTreeSet::new()
            };
            self.pods.count_tls(&mut self.kernel, counted);
            self.wanted = None;
        }
        if self.tls.is_wanted() {
            wanted.insert(Family::Tls);
        } else {
            wanted.remove(&Family::Tls);
        }
        let again = !self.failed.is_empty() && now >= self.try_again;
        if self.wanted.as_ref() == Some(&wanted) && !again {
            return;
        }
        let failed = self.kernel.set_wanted(&wanted);
        for (family, reason) in failed.iter().filter(|f| !self.failed.contains(f)) {
            tracing::warn!(%family, reason, "can not measure the family");
        }
        self.wanted = Some(wanted);
        self.failed = failed;
        self.try_again = now + TRY_AGAIN;
        self.families = self.active();
        self.publish_families();
    }

    fn active(&self) -> BTreeSet<Family> {
        let mut active = self.kernel.active();
        let refused = self
            .kernel
            .degraded()
            .iter()
            .any(|(f, _)| *f == Family::Tls);
        active.remove(&Family::Tls);
        if self.tls.measures() && !refused {
            active.insert(Family::Tls);
        }
        active
    }

    fn publish_families(&self) {
        let mut degraded = self.kernel.degraded();
        let tls = self.tls.troubles().into_iter();
        for failed in self
            .failed
            .iter()
            .cloned()
            .chain(tls.map(|t| (Family::Tls, t)))
        {
            if !degraded.contains(&failed) {
                degraded.push(failed);
            }
        }
        for family in Family::ALL {
            let label = family.into();
            let active = self.families.contains(&family);
            self.metrics
                .family_active
                .get_or_create(&label)
                .set(active.into());
            let is_degraded = degraded.iter().any(|(f, _)| *f == family);
            self.metrics
                .family_degraded
                .get_or_create(&label)
                .set(is_degraded.into());
        }
        let wire = |(family, reason)| Degraded {
            family: sample::family(family) as i32,
            reason,
        };
        self.store
            .set_degraded(degraded.into_iter().map(wire).collect());
    }

    fn publish_statistics(&mut self, watcher: &Watcher) {
        let (m, facts, misses) = (&self.metrics, self.pods.facts(), watcher.misses());
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        m.pods.set(gauge(facts.measured));
        m.pods_unmeasured.set(gauge(facts.unmeasured));
        m.cgroups.set(gauge(watcher.len()));
        m.parts.set(gauge(facts.parts));
        m.pods_undivided.set(gauge(facts.undivided));
        m.cgroups_quarantined.set(gauge(facts.quarantined));
        m.history_bytes.set(gauge(self.store.history_bytes()));
        m.quarantine_claimed
            .inc_by(facts.claimed - self.facts.claimed);
        m.quarantine_forgotten
            .inc_by(facts.forgotten - self.facts.forgotten);
        m.cgroups_refused.inc_by(facts.refused - self.facts.refused);
        m.late_changes.inc_by(facts.late - self.facts.late);
        m.inotify_overflows
            .inc_by(misses.overflows - self.misses.overflows);
        m.cgroups_unwatched
            .inc_by(misses.unwatched - self.misses.unwatched);
        m.cgroups_ignored
            .inc_by(misses.ignored - self.misses.ignored);
        let mut statistics = self.kernel.statistics();
        let without = ("tls_without_symbols", self.tls.without_symbols());
        statistics.values.push(without);
        m.probes.set(statistics);
        (self.facts, self.misses) = (facts, misses);
    }
}

/// CLOCK_MONOTONIC and the wall clock, both in microseconds.
fn clocks() -> (u64, i64) {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is valid for writing; the clock exists on every Linux, so the call succeeds.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let monotonic = Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    );
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (
        u64::try_from(monotonic.as_micros()).unwrap_or(u64::MAX),
        i64::try_from(wall.as_micros()).unwrap_or(i64::MAX),
    )
}
