//! The streams that are open, by whose they are: how many one may have, and whether its token still holds. Knows
//! nothing of what goes through them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebpf_scaler_proto::TOKEN_AUDIENCE;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::hub::Hub;
use super::identity::User;

/// One owner's streams, the oldest first: number, and what ends it.
type Own = VecDeque<(u64, CancellationToken)>;

/// Open streams by owner: a node's name, a user's name.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<HashMap<String, Own>>>);

/// A stream's place among its owner's, given back when it ends.
#[derive(Debug)]
pub struct Session {
    sessions: Sessions,
    owner: String,
    id: u64,
    /// Cancelled when a newer stream needs the place
    pub superseded: CancellationToken,
}

impl Sessions {
    /// One more of the owner's; if it has `limit` already, the oldest ends.
    pub fn newest(&self, owner: &str, limit: usize) -> Session {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.entry(owner.to_owned()).or_default();
        while own.len() >= limit.max(1) {
            if let Some((_, oldest)) = own.pop_front() {
                oldest.cancel();
            }
        }
        self.add(owner, own)
    }

    /// One more of the owner's, if it does not have `limit` already.
    pub fn another(&self, owner: &str, limit: usize) -> Option<Session> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.entry(owner.to_owned()).or_default();
        (own.len() < limit).then(|| self.add(owner, own))
    }

    fn add(&self, owner: &str, own: &mut Own) -> Session {
        let id = own.back().map_or(0, |(id, _)| id + 1);
        let superseded = CancellationToken::new();
        own.push_back((id, superseded.clone()));
        Session {
            sessions: self.clone(),
            owner: owner.to_owned(),
            id,
            superseded,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut all = self
            .sessions
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get_mut(&self.owner) {
            own.retain(|(id, _)| *id != self.id);
            if own.is_empty() {
                all.remove(&self.owner);
            }
        }
    }
}

/// The token that a stream was opened with.
#[derive(Clone)]
pub struct Credential {
    token: Arc<str>,
    /// Whose it was
    pub user: User,
    period: Duration,
}

impl Credential {
    /// Reviewed again every `period`.
    pub fn new(token: &str, user: User, period: Duration) -> Self {
        Self {
            token: token.into(),
            user,
            period,
        }
    }

    /// Waits until the token is nobody's any more, or somebody else's: expired, revoked, its pod or node gone.
    /// While reviews fail the stream stays: kube-apiserver's outage must not become ours.
    pub async fn ended(&self, hub: &Hub) -> Status {
        loop {
            // Not all at once: all agents connect at the same time when a replica starts.
            let spread = self.period.mul_f64(0.75 + 0.25 * fraction(&self.token));
            tokio::time::sleep(spread).await;
            match hub.reviews.token_now(&self.token, TOKEN_AUDIENCE).await {
                Ok(Some(user)) if (&user.name, &user.uid) == (&self.user.name, &self.user.uid) => {}
                Ok(_) => {
                    hub.metrics.deny("token_ended");
                    return Status::unauthenticated("the token is not valid any more");
                }
                Err(error) => tracing::warn!(%error, "can not review a stream's token again"),
            }
        }
    }
}

/// Some number from 0 to 1 that depends on the text.
fn fraction(text: &str) -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(text) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_streams_of_an_owner_stay() {
        let sessions = Sessions::default();
        let first = sessions.newest("n1", 2);
        let second = sessions.newest("n1", 2);
        let elsewhere = sessions.newest("n2", 2);
        assert!(!first.superseded.is_cancelled());
        let third = sessions.newest("n1", 2);
        assert!(first.superseded.is_cancelled());
        // The end of what has been superseded takes nobody's place away.
        drop(first);
        assert!(!second.superseded.is_cancelled() && !third.superseded.is_cancelled());
        drop((second, third, elsewhere));
        assert!(sessions.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_owner_with_enough_gets_no_other() {
        let sessions = Sessions::default();
        let held = sessions.another("ann", 1).unwrap();
        assert!(sessions.another("ann", 1).is_none());
        assert!(sessions.another("eve", 1).is_some());
        drop(held);
        assert!(sessions.another("ann", 1).is_some());
    }
}
