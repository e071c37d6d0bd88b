//! Follows a kind of object and says what changed, also what vanished while nobody looked. Never
//! keeps the objects.

use std::{collections::HashSet, fmt::Debug, sync::Arc};

use futures::TryStreamExt;
use kube::{Api, Resource, ResourceExt, core::DeserializeGuard};
use kube_runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;

/// Namespace and name.
pub type Key = (String, String);

/// What happened.
#[derive(Debug)]
pub enum Change<T> {
    /// It is so now.
    Applied(T),
    /// It is gone.
    Deleted(Key),
    /// All that exist have been told.
    Synced,
}

/// The key of an object.
pub fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Follows until cancelled. `trim` makes of each object what is sent on; objects that do not parse
/// are counted, logged and skipped.
pub async fn follow<K, T, I>(
    api: Api<DeserializeGuard<K>>,
    trim: fn(K) -> T,
    wrap: fn(Change<T>) -> I,
    out: mpsc::Sender<I>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    DeserializeGuard<K>: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut known: HashSet<Key> = HashSet::new();
    let mut fresh: HashSet<Key> = HashSet::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.try_next() => event,
        };
        let mut send = Vec::new();
        match event {
            Ok(None) => return,
            Err(error) => {
                warn!(%error, kind = %K::kind(&()), "watch interrupted; going on");
                continue;
            }
            Ok(Some(watcher::Event::Init)) => fresh.clear(),
            Ok(Some(watcher::Event::InitApply(object))) => {
                let key = key(&object);
                fresh.insert(key);
                send.extend(parsed(object, trim, &metrics));
            }
            Ok(Some(watcher::Event::InitDone)) => {
                send.extend(known.difference(&fresh).cloned().map(Change::Deleted));
                known = std::mem::take(&mut fresh);
                send.push(Change::Synced);
            }
            Ok(Some(watcher::Event::Apply(object))) => {
                known.insert(key(&object));
                send.extend(parsed(object, trim, &metrics));
            }
            Ok(Some(watcher::Event::Delete(object))) => {
                let key = key(&object);
                known.remove(&key);
                send.push(Change::Deleted(key));
            }
        }
        for change in send {
            if out.send(wrap(change)).await.is_err() {
                return;
            }
        }
    }
}

fn parsed<K: Resource<DynamicType = ()>, T>(
    object: DeserializeGuard<K>,
    trim: fn(K) -> T,
    metrics: &Metrics,
) -> Option<Change<T>> {
    match object.0 {
        Ok(object) => Some(Change::Applied(trim(object))),
        Err(invalid) => {
            metrics.invalid_objects.inc();
            let name = invalid.metadata.name.unwrap_or_default();
            warn!(kind = %K::kind(&()), name, error = invalid.error, "object does not parse; skipped");
            None
        }
    }
}
