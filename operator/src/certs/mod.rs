//! Our own certificate authority: keeps the objects that hold it as `plan` wants them, for as long
//! as this process leads. Never takes over an APIService that is not ours.

mod contest;
pub mod plan;
pub mod store;
pub mod x509;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{leader::Leadership, metrics::Metrics};
pub use contest::Contest;
use plan::{ApiService, Lifetimes, State, Unix};
use store::{Names, Store};

/// How often the objects are looked at. A deleted one is back after this.
const PERIOD: Duration = Duration::from_secs(5);
/// Rounds of read, plan and apply at once, before something must be wrong.
const ROUNDS: usize = 8;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// At the API server.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// With a certificate.
    #[error(transparent)]
    Certificate(#[from] x509::Error),
    /// The CA went away between reading and writing.
    #[error("the CA's Secret changed meanwhile")]
    Gone,
    /// Each round made another necessary.
    #[error("the certificates do not settle")]
    Unsettled,
}

/// The task that keeps the certificates.
pub struct Certs {
    /// Objects.
    pub names: Names,
    /// Lifetimes.
    pub lifetimes: Lifetimes,
    /// Whether to make them at all; otherwise somebody else does (cert-manager), and only the
    /// bundle is read.
    pub manage: bool,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// What others do to the APIServices meanwhile.
    pub contest: Contest,
    /// Receives the bundle that verifies the collector.
    pub bundle: watch::Sender<Option<String>>,
}

impl Certs {
    /// Runs until cancelled.
    pub async fn run(self, client: Client, leadership: Leadership, stop: CancellationToken) {
        let store = Store::new(client, self.names.clone());
        let mut foreign = BTreeMap::new();
        loop {
            let now = k8s_openapi::jiff::Timestamp::now().as_second();
            match self.round(&store, &leadership, now).await {
                Ok(state) => self.report(&state, &mut foreign),
                // Somebody wrote meanwhile: read again soon.
                Err(Error::Api(kube::Error::Api(e))) if e.code == 409 => {
                    debug!("a certificate object changed meanwhile");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
                Err(error) => {
                    self.metrics.certificate_errors.inc();
                    warn!(%error, "cannot keep the certificates; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Reads, plans and applies until nothing is left to do.
    pub(crate) async fn round(
        &self,
        store: &Store,
        leadership: &Leadership,
        now: Unix,
    ) -> Result<State, Error> {
        for _ in 0..ROUNDS {
            let (state, raw) = store.read(now).await?;
            // cert-manager puts the CA beside the certificate; a ConfigMap may be left from before.
            let issued = (!self.manage).then(|| raw.issuer()).flatten();
            let bundle = issued.or_else(|| state.bundle.clone());
            self.bundle.send_if_modified(|b| {
                let changed = *b != bundle;
                *b = bundle;
                changed
            });
            if !self.manage {
                return Ok(state);
            }
            let actions = plan::plan(&state, &self.lifetimes, now);
            let contested = i64::try_from(self.contest.look(&state)).unwrap_or(i64::MAX);
            self.metrics.api_service_contested.set(contested);
            if actions.is_empty() {
                return Ok(state);
            }
            // Who undoes it at once would have us write without end.
            let by = |name: &str| raw.bundle_writer(name);
            let (again, mine): (Vec<_>, Vec<_>) = actions
                .iter()
                .partition(|action| self.contest.undone(action, by));
            let settles = again.is_empty();
            for action in mine.into_iter().chain(again) {
                if !leadership.holds() {
                    return Ok(state);
                }
                info!(action = name(action), "certificates");
                store
                    .apply(action, &state, &raw, &self.lifetimes, now)
                    .await?;
                self.metrics.certificate_action(name(action));
                self.contest.done(action);
            }
            if !settles {
                return Ok(state);
            }
        }
        Err(Error::Unsettled)
    }

    fn report(&self, state: &State, foreign: &mut BTreeMap<String, String>) {
        let mut now_foreign = BTreeMap::new();
        for (name, found) in &state.api_services {
            if let ApiService::Foreign(service) = found {
                now_foreign.insert(name.clone(), service.clone());
            }
        }
        for (api_service, service) in &now_foreign {
            if foreign.get(api_service) != Some(service) {
                warn!(
                    api_service,
                    service,
                    "another provider serves this API; not taking it over. \
                     HPAs do not see our metrics there, EbpfScalers still work"
                );
            }
        }
        *foreign = now_foreign;
        let count = i64::try_from(foreign.len()).unwrap_or(i64::MAX);
        self.metrics.api_service_foreign.set(count);
        if let Some(leaf) = &state.leaf {
            self.metrics.certificate_not_after.set(leaf.not_after);
        }
        if let Some(ca) = &state.ca {
            self.metrics.ca_not_after.set(ca.current.not_after);
        }
    }
}

fn name(action: &plan::Action) -> &'static str {
    use plan::{Action, Cause};
    match action {
        Action::CreateCa { .. } => "create-ca",
        Action::IntroduceNext => "introduce-next-ca",
        Action::Promote => "promote-next-ca",
        Action::DropPrevious => "drop-previous-ca",
        Action::PublishBundle(_) => "publish-bundle",
        Action::PatchApiService { .. } => "patch-api-service",
        Action::IssueLeaf(Cause::Unusable) => "issue-certificate",
        Action::IssueLeaf(Cause::Expiring) => "renew-certificate",
        Action::IssueLeaf(Cause::Rotation) => "rotate-certificate",
    }
}
