//! The gRPC service: who may open which stream. The streams themselves are in `report` and `subscribe`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ebpf_scaler_proto as proto;
use ebpf_scaler_proto::TOKEN_AUDIENCE;
use ebpf_scaler_proto::collector_server::{Collector, CollectorServer};
use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::hub::Hub;
use super::identity::User;
use super::sessions::{Credential, Sessions};
use super::{report, subscribe};

/// A snapshot of a full node is some hundreds of kilobytes.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// An agent that connects again may find its old stream not yet ended; more of a node is a mistake.
const STREAMS_OF_A_NODE: usize = 2;
/// Operators' replicas and dashboards of one user.
const STREAMS_OF_A_USER: usize = 8;
/// Where a bound token's node stands in its user's extra, since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The service.
#[derive(Clone)]
pub struct Service {
    hub: Arc<Hub>,
    /// The user name of the agents' service account.
    agent: Arc<str>,
    token_review_period: Duration,
    reports: Sessions,
    watches: Sessions,
    shutdown: CancellationToken,
}

impl Service {
    /// Serves agents whose token belongs to the service account `agent` of `namespace`.
    pub fn new(
        hub: Arc<Hub>,
        namespace: &str,
        agent: &str,
        token_review_period: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            hub,
            agent: format!("system:serviceaccount:{namespace}:{agent}").into(),
            token_review_period,
            reports: Sessions::default(),
            watches: Sessions::default(),
            shutdown,
        }
    }

    /// The routes of the report port.
    pub fn router(self) -> Router {
        let server = CollectorServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Routes::new(server).into_axum_router()
    }

    async fn credential(&self, metadata: &MetadataMap) -> Result<Credential, Status> {
        let denied = |reason, message: &str| {
            self.hub.metrics.deny(reason);
            Status::unauthenticated(message)
        };
        let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let header = header.and_then(|v| v.split_once(' '));
        let Some((_, token)) = header.filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
        else {
            return Err(denied("no_identity", "a bearer token is needed"));
        };
        let token = token.trim();
        match self.hub.reviews.token(token, TOKEN_AUDIENCE).await {
            Ok(Some(user)) => Ok(Credential::new(token, user, self.token_review_period)),
            Ok(None) => {
                let message = format!("the token is not valid for audience {TOKEN_AUDIENCE}");
                Err(denied("bad_token", &message))
            }
            Err(error) => {
                tracing::warn!(%error, "can not authenticate a stream");
                Err(Status::unavailable(error.to_string()))
            }
        }
    }

    /// The node that an agent's token is bound to.
    fn agent_node(&self, user: &User) -> Result<Arc<str>, Status> {
        if *user.name != *self.agent {
            self.hub.metrics.deny("not_an_agent");
            return Err(Status::permission_denied(format!(
                "only {} may report, not {}",
                self.agent, user.name
            )));
        }
        let node = user.extra.get(NODE_NAME).and_then(|names| names.first());
        node.map(|n| Arc::from(n.as_str())).ok_or_else(|| {
            self.hub.metrics.deny("unbound_token");
            Status::permission_denied(
                "the token names no node: it has to be a projected one, on Kubernetes 1.30 or later",
            )
        })
    }
}

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Collector for Service {
    type ReportStream = Answers<proto::Want>;
    type WatchStream = Answers<proto::WatchResponse>;

    async fn report(
        &self,
        request: Request<Streaming<proto::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let credential = self.credential(request.metadata()).await?;
        let node = self.agent_node(&credential.user)?;
        let session = self.reports.newest(&node, STREAMS_OF_A_NODE);
        let opened = (credential, session);
        let inbound = request.into_inner();
        let wants = report::run(
            self.hub.clone(),
            node,
            opened,
            inbound,
            self.shutdown.clone(),
        );
        Ok(Response::new(Box::pin(wants)))
    }

    async fn watch(
        &self,
        request: Request<Streaming<proto::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let credential = self.credential(request.metadata()).await?;
        let name = &credential.user.name;
        let Some(session) = self.watches.another(name, STREAMS_OF_A_USER) else {
            self.hub.metrics.deny("too_many_streams");
            let message = format!("{name} has {STREAMS_OF_A_USER} streams already");
            return Err(Status::resource_exhausted(message));
        };
        let opened = (credential, session);
        let inbound = request.into_inner();
        let answers = subscribe::run(self.hub.clone(), opened, inbound, self.shutdown.clone());
        Ok(Response::new(Box::pin(answers)))
    }
}
