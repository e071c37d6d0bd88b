//! Leader election by a Lease, with client-go's rule: a lease is free only after it stood unchanged
//! for its duration on *our* clock. The holder stops writing earlier than that. Never compares the
//! clocks of two machines.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How the lease is held.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are: unique among replicas.
    pub identity: String,
    /// Others wait this long after the last renewal that they saw.
    pub duration: Duration,
    /// We stop writing this long after the last renewal that succeeded. What is left of `duration`
    /// is longer than any write's own timeout, so no write of ours lands in another's term.
    pub renew_deadline: Duration,
    /// How often to renew, or to look.
    pub retry: Duration,
}

/// Whether this process may write. Cheap to clone and to ask.
#[derive(Clone)]
pub struct Leadership {
    until: Arc<ArcSwapOption<Instant>>,
    changes: watch::Receiver<bool>,
}

impl Leadership {
    /// Whether writing is allowed now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.until
            .load()
            .as_ref()
            .is_some_and(|until| Instant::now() < **until)
    }

    /// Waits until we lead (`true`) or no longer do (`false`).
    pub async fn wait_for(&mut self, leading: bool) {
        // The sender lives as long as the elector; without it there is nothing to wait for.
        if self.changes.wait_for(|now| *now == leading).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Leads for a day: for tests.
    #[cfg(test)]
    pub(crate) fn always() -> Self {
        let until = Instant::now() + Duration::from_secs(86_400);
        Self {
            until: Arc::new(ArcSwapOption::from_pointee(until)),
            changes: watch::channel(true).1,
        }
    }

    /// Never leads: for tests.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self {
            until: Arc::new(ArcSwapOption::empty()),
            changes: watch::channel(false).1,
        }
    }
}

/// What to do about the lease as it was read.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Step {
    /// Nobody holds it, its holder went silent, or it is ours: write our name.
    Take,
    /// Another's, and alive as far as we know.
    Wait,
}

/// The last version of the lease that we saw, and when we first saw it.
#[derive(Default)]
struct Observed {
    seen: Option<(String, Instant)>,
}

impl Observed {
    fn step(&mut self, lease: &Lease, identity: &str, now: Instant) -> Step {
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == identity {
            return Step::Take;
        }
        let duration = Duration::from_secs(
            u64::try_from(spec.lease_duration_seconds.unwrap_or(1)).unwrap_or(1),
        );
        if now.duration_since(since) >= duration {
            Step::Take
        } else {
            Step::Wait
        }
    }
}

/// Starts the election. It ends, giving the lease up, when `stop` is cancelled.
#[must_use]
pub fn spawn(
    client: Client,
    config: Config,
    stop: CancellationToken,
) -> (Leadership, tokio::task::JoinHandle<()>) {
    let (tx, changes) = watch::channel(false);
    let until = Arc::new(ArcSwapOption::empty());
    let leadership = Leadership {
        until: until.clone(),
        changes,
    };
    let elector = Elector {
        api: Api::namespaced(client, &config.namespace),
        config,
        until,
        changes: tx,
        observed: Observed::default(),
        held: None,
    };
    (leadership, tokio::spawn(elector.run(stop)))
}

struct Elector {
    api: Api<Lease>,
    config: Config,
    until: Arc<ArcSwapOption<Instant>>,
    changes: watch::Sender<bool>,
    observed: Observed,
    /// The lease as our last successful write left it.
    held: Option<Lease>,
}

impl Elector {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            // A request that outlives the period would only report the past.
            match tokio::time::timeout(self.config.retry, self.turn()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.held = None;
                    warn!(%error, lease = self.config.name, "cannot read or write the lease");
                }
                Err(_) => {
                    self.held = None;
                    warn!(lease = self.config.name, "the lease request timed out");
                }
            }
            self.announce();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.pause() => {}
            }
            self.announce();
        }
        self.release().await;
    }

    /// Until the next turn, or until our own term ends if that is sooner.
    async fn pause(&self) {
        let end = self.until.load().as_ref().map(|u| **u);
        let mut wait = self.config.retry;
        if let Some(end) = end {
            wait = wait.min(end.saturating_duration_since(Instant::now()));
        }
        tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
    }

    async fn turn(&mut self) -> kube::Result<()> {
        let lease = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.config.name).await?,
        };
        let sent = Instant::now();
        let written = match lease {
            None => {
                let lease = self.ours(None);
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => match self.observed.step(&lease, &self.config.identity, sent) {
                Step::Wait => {
                    self.until.store(None);
                    return Ok(());
                }
                Step::Take => {
                    let lease = self.ours(Some(&lease));
                    self.api
                        .replace(&self.config.name, &PostParams::default(), &lease)
                        .await
                }
            },
        };
        match written {
            Ok(lease) => {
                self.held = Some(lease);
                let end = sent + self.config.renew_deadline;
                self.until.store(Some(Arc::new(end)));
                Ok(())
            }
            // Somebody else wrote first; the next turn reads what.
            Err(kube::Error::Api(e)) if e.code == 409 => {
                debug!("the lease changed under us");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn ours(&self, old: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old_spec = old.and_then(|l| l.spec.clone()).unwrap_or_default();
        let kept = old_spec.holder_identity.as_deref() == Some(&self.config.identity);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                resource_version: old.and_then(|l| l.metadata.resource_version.clone()),
                ..old.map(|l| l.metadata.clone()).unwrap_or_default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.config.identity.clone()),
                lease_duration_seconds: i32::try_from(self.config.duration.as_secs()).ok(),
                acquire_time: if kept {
                    old_spec.acquire_time
                } else {
                    Some(now.clone())
                },
                renew_time: Some(now),
                lease_transitions: Some(
                    old_spec.lease_transitions.unwrap_or(0) + i32::from(!kept && old.is_some()),
                ),
                ..old_spec
            }),
        }
    }

    fn announce(&self) {
        let leading = self
            .until
            .load()
            .as_ref()
            .is_some_and(|until| Instant::now() < **until);
        self.changes.send_if_modified(|was| {
            if *was != leading {
                info!(leading, identity = self.config.identity, "leadership");
            }
            std::mem::replace(was, leading) != leading
        });
    }

    /// Lets the next one begin at once. Whoever writes has stopped before this is called.
    async fn release(&mut self) {
        self.until.store(None);
        self.announce();
        let Some(mut lease) = self.held.take() else {
            return;
        };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        let write = self.api.replace(&self.config.name, &params, &lease);
        match tokio::time::timeout(self.config.retry, write).await {
            Ok(Ok(_)) => info!("released the lease"),
            Ok(Err(error)) => warn!(%error, "cannot release the lease; it will expire"),
            Err(_) => warn!("cannot release the lease in time; it will expire"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(10),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_silent_holder_is_replaced_only_after_the_lease_stood_still_for_its_duration() {
        let mut observed = Observed::default();
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        assert_eq!(observed.step(&lease("a", "1"), "b", at(0)), Step::Wait);
        assert_eq!(observed.step(&lease("a", "1"), "b", at(9)), Step::Wait);
        // It renewed: the wait begins anew, whatever the time in the lease says.
        assert_eq!(observed.step(&lease("a", "2"), "b", at(9)), Step::Wait);
        assert_eq!(observed.step(&lease("a", "2"), "b", at(18)), Step::Wait);
        assert_eq!(observed.step(&lease("a", "2"), "b", at(19)), Step::Take);
    }

    #[test]
    fn a_released_lease_and_our_own_are_taken_at_once() {
        let mut observed = Observed::default();
        let now = Instant::now();
        assert_eq!(observed.step(&lease("", "1"), "b", now), Step::Take);
        assert_eq!(observed.step(&lease("b", "2"), "b", now), Step::Take);
    }
}
