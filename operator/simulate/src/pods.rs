//! Pods that start, serve, are rolled over and go. Each has a number of workers and one queue, first come
//! first served: a request's begin is known when it arrives, so the result is exact and nothing has to be
//! scheduled. Never looks at a rate.

use std::time::Duration;

use crate::random::Random;

/// How long a request takes a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Service {
    /// Any time, exponential about the mean.
    Exponential,
    /// Always the mean.
    Fixed,
}

/// What all pods of a workload are like.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct PodModel {
    /// Requests that a pod works on at a time.
    pub workers: usize,
    /// Mean time that a request takes a worker.
    pub service_time: Duration,
    /// How that varies.
    pub service: Service,
    /// Median time from a pod's creation until it is ready.
    pub startup: Duration,
    /// How that varies: the deviation of its logarithm.
    pub startup_spread: f64,
    /// A request that would wait longer than this is given up.
    pub timeout: Duration,
}

impl PodModel {
    /// Requests per second that a pod can serve at most.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        self.workers as f64 / self.service_time.as_secs_f64().max(1e-6)
    }
}

#[derive(Clone, Debug)]
struct Pod {
    created: u64,
    ready_at: u64,
    node: usize,
    /// Of the workload's version that is being rolled out, or was last.
    new: bool,
    /// When each worker is free, in microseconds.
    free: Vec<u64>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// The node of its pod; none if no pod was ready.
    pub node: Option<usize>,
    /// Its begin and end in microseconds, unless it was given up.
    pub work: Option<(u64, u64)>,
}

/// The pods of a workload. Times are microseconds.
#[derive(Debug)]
pub struct Pods {
    model: PodModel,
    nodes: usize,
    made: usize,
    pods: Vec<Pod>,
    /// Indices of those that are ready.
    ready: Vec<usize>,
    /// Whether old pods are being replaced.
    rolling: bool,
    spec: usize,
    spent: u64,
    startup: Random,
    routing: Random,
}

/// More pods than this are not simulated.
pub const MOST: i32 = 10_000;

impl Pods {
    /// `spec` pods that are ready at time 0.
    #[must_use]
    pub fn new(model: PodModel, nodes: usize, spec: i32, seed: u64) -> Self {
        let mut pods = Self {
            model,
            nodes: nodes.max(1),
            made: 0,
            pods: Vec::new(),
            ready: Vec::new(),
            rolling: false,
            spec: count(spec),
            spent: 0,
            startup: Random::new(seed, 11),
            routing: Random::new(seed, 12),
        };
        for _ in 0..pods.spec {
            pods.create(0);
        }
        for pod in &mut pods.pods {
            pod.ready_at = 0;
        }
        pods.settle(0);
        pods
    }

    /// Pods that exist, with those that are starting.
    #[must_use]
    pub fn existing(&self) -> i32 {
        i32::try_from(self.pods.len()).unwrap_or(i32::MAX)
    }

    /// Pods that are ready.
    #[must_use]
    pub fn ready(&self) -> i32 {
        i32::try_from(self.ready.len()).unwrap_or(i32::MAX)
    }

    /// Pods that are asked for.
    #[must_use]
    pub fn spec(&self) -> i32 {
        i32::try_from(self.spec).unwrap_or(i32::MAX)
    }

    /// When the next pod becomes ready.
    #[must_use]
    pub fn next_ready(&self, now: u64) -> Option<u64> {
        let later = self.pods.iter().map(|p| p.ready_at).filter(|t| *t > now);
        later.min()
    }

    /// Asks for so many pods.
    pub fn scale(&mut self, spec: i32, now: u64) {
        self.spec = count(spec);
        self.settle(now);
    }

    /// Begins to replace all pods, as a Deployment does by default: a quarter more, a quarter fewer.
    pub fn roll_out(&mut self, now: u64) {
        for pod in &mut self.pods {
            pod.new = false;
        }
        self.rolling = true;
        self.settle(now);
    }

    /// Does what is due at `now`. Call it when a pod becomes ready.
    pub fn settle(&mut self, now: u64) {
        if self.rolling {
            self.replace(now);
        } else {
            while self.pods.len() < self.spec {
                self.create(now);
            }
            while self.pods.len() > self.spec {
                self.remove(now, |_| true);
            }
        }
        self.ready.clear();
        let ready = self.pods.iter().enumerate();
        let ready = ready.filter(|(_, p)| p.ready_at <= now).map(|(i, _)| i);
        self.ready.extend(ready);
    }

    fn replace(&mut self, now: u64) {
        let surge = self.spec.div_ceil(4);
        let least = self.spec - self.spec / 4;
        loop {
            let new = self.pods.iter().filter(|p| p.new).count();
            let available = self.pods.iter().filter(|p| p.ready_at <= now).count();
            let old_waits = self.pods.iter().any(|p| !p.new && p.ready_at > now);
            if new == self.pods.len() {
                self.rolling = false;
                return self.settle(now);
            }
            if new > self.spec {
                self.remove(now, |p| p.new);
            } else if old_waits {
                self.remove(now, |p| !p.new && p.ready_at > now);
            } else if available > least || self.spec == 0 {
                self.remove(now, |p| !p.new);
            } else if new < self.spec && self.pods.len() < self.spec + surge {
                self.create(now);
            } else {
                return;
            }
        }
    }

    fn create(&mut self, now: u64) {
        let spread = self.model.startup_spread.clamp(0.0, 2.0) * self.startup.normal();
        let startup = micros(self.model.startup) as f64 * spread.exp();
        self.pods.push(Pod {
            created: now,
            ready_at: now.saturating_add(startup as u64).max(1),
            node: self.made % self.nodes,
            new: true,
            free: vec![0; self.model.workers.max(1)],
        });
        self.made += 1;
    }

    /// Removes one of those that `which` allows: not ready ones first, then the youngest, as a ReplicaSet
    /// does. It ends when it has answered what it has taken.
    fn remove(&mut self, now: u64, which: impl Fn(&Pod) -> bool) {
        let candidates = self.pods.iter().enumerate().filter(|(_, p)| which(p));
        let victim = candidates.max_by_key(|(_, p)| (p.ready_at > now, p.ready_at));
        let Some((i, _)) = victim else { return };
        let pod = self.pods.remove(i);
        self.spent = self.spent.saturating_add(lifetime(&pod, now));
    }

    /// Hands a request to a ready pod, whichever, as kube-proxy does.
    pub fn handle(&mut self, at: u64, service: u64) -> Handled {
        let chosen = self.routing.below(self.ready.len() as u64);
        let chosen = usize::try_from(chosen).ok();
        let index = chosen.and_then(|i| self.ready.get(i));
        let Some(pod) = index.and_then(|i| self.pods.get_mut(*i)) else {
            return Handled {
                node: None,
                work: None,
            };
        };
        let node = Some(pod.node);
        let Some(worker) = pod.free.iter_mut().min() else {
            return Handled { node, work: None };
        };
        let begin = at.max(*worker);
        if begin - at > micros(self.model.timeout) {
            return Handled { node, work: None };
        }
        *worker = begin.saturating_add(service);
        Handled {
            node,
            work: Some((begin, *worker)),
        }
    }

    /// Pod-microseconds so far, if all ended at `now`: from creation to the last answer.
    #[must_use]
    pub fn spent(&self, now: u64) -> u64 {
        let living = self.pods.iter().map(|p| now.saturating_sub(p.created));
        self.spent.saturating_add(living.sum())
    }
}

fn lifetime(pod: &Pod, now: u64) -> u64 {
    let last = pod.free.iter().copied().max().unwrap_or(0);
    last.max(now).saturating_sub(pod.created)
}

fn count(n: i32) -> usize {
    usize::try_from(n.clamp(0, MOST)).unwrap_or(0)
}

pub(crate) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> PodModel {
        PodModel {
            workers: 2,
            service_time: Duration::from_millis(10),
            service: Service::Fixed,
            startup: Duration::from_secs(2),
            startup_spread: 0.0,
            timeout: Duration::from_millis(15),
        }
    }

    #[test]
    fn a_queue_is_first_come_first_served_and_patience_ends() {
        let mut pods = Pods::new(model(), 1, 1, 1);
        let work = |pods: &mut Pods, at| pods.handle(at, 10_000).work;
        assert_eq!(work(&mut pods, 0), Some((0, 10_000)));
        assert_eq!(work(&mut pods, 1000), Some((1000, 11_000)));
        assert_eq!(work(&mut pods, 2000), Some((10_000, 20_000)));
        assert_eq!(work(&mut pods, 3000), Some((11_000, 21_000)));
        // It would begin at 20,000.
        assert_eq!(work(&mut pods, 4000), None);
        assert_eq!(work(&mut pods, 5000), Some((20_000, 30_000)));
    }

    #[test]
    fn pods_start_and_go_and_their_time_is_counted() {
        let mut pods = Pods::new(model(), 2, 2, 1);
        pods.scale(4, 1_000_000);
        assert_eq!((pods.existing(), pods.ready()), (4, 2));
        assert_eq!(pods.next_ready(1_000_000), Some(3_000_000));
        pods.settle(3_000_000);
        assert_eq!(pods.ready(), 4);
        pods.scale(1, 5_000_000);
        assert_eq!((pods.existing(), pods.ready()), (1, 1));
        assert_eq!(pods.spent(6_000_000), 6_000_000 + 5_000_000 + 2 * 4_000_000);
        pods.scale(0, 6_000_000);
        assert_eq!(pods.handle(6_000_000, 1).node, None);
    }

    #[test]
    fn a_rollout_keeps_three_quarters_and_ends_with_new_pods_only() {
        let mut pods = Pods::new(model(), 2, 8, 1);
        let (mut now, mut most) = (1_000_000, 0);
        pods.roll_out(now);
        while let Some(next) = pods.next_ready(now) {
            assert!(pods.ready() >= 6, "{} are ready", pods.ready());
            most = most.max(pods.existing());
            now = next;
            pods.settle(now);
        }
        assert_eq!((pods.existing(), pods.ready(), most), (8, 8, 10));
        assert!(!pods.rolling && pods.pods.iter().all(|p| p.created > 0));
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_ends_where_it_should() {
        for (first, then) in [(8, 3), (3, 9), (1, 0), (0, 2), (5, 1)] {
            let mut pods = Pods::new(model(), 2, first, 1);
            pods.roll_out(1_000_000);
            pods.scale(then, 1_500_000);
            let mut now = 1_500_000;
            while let Some(next) = pods.next_ready(now) {
                now = next;
                pods.settle(now);
            }
            assert_eq!((pods.existing(), pods.ready()), (then, then));
        }
    }
}
