//! Follows what may change while we run: the serving certificate and whom to trust. A change that can not be
//! used is logged and the last good one stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube_runtime::{WatchStreamExt, watcher};

use super::identity::{LiveTrust, Trust};
use super::tls::Serving;

/// Files are looked at this often: kubelets update mounted Secrets about once a minute.
const POLL: Duration = Duration::from_secs(5);

/// Follows the Secret with the serving certificate; waits for it as long as it is not there.
pub async fn secret(client: kube::Client, namespace: &str, name: &str, serving: Arc<Serving>) {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let what = format!("Secret {namespace}/{name}");
    each(&what, watcher::watch_object(api, name), |secret| {
        let Some(secret) = secret else {
            tracing::warn!("{what} is not there; the operator creates it");
            return;
        };
        let data = secret.data.unwrap_or_default();
        match (data.get("tls.crt"), data.get("tls.key")) {
            (Some(cert), Some(key)) => set(&serving, &what, &cert.0, &key.0),
            _ => tracing::error!("{what} has no tls.crt and tls.key"),
        }
    })
    .await;
}

/// Follows the serving certificate in files.
pub async fn files(cert: PathBuf, key: PathBuf, serving: Arc<Serving>) {
    let mut last = None;
    loop {
        match (read(&cert).await, read(&key).await) {
            (Ok(cert_pem), Ok(key_pem)) => {
                let now = Some((cert_pem, key_pem));
                if now != last {
                    if let Some((cert_pem, key_pem)) = &now {
                        set(&serving, &cert.display().to_string(), cert_pem, key_pem);
                    }
                    last = now;
                }
            }
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no serving certificate"),
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = tokio::fs::read(path).await;
    read.map_err(|e| format!("can not read {}: {e}", path.display()))
}

fn set(serving: &Serving, what: &str, cert: &[u8], key: &[u8]) {
    match serving.set(cert, key) {
        Ok(()) => tracing::info!("serving with the certificate of {what}"),
        Err(error) => tracing::error!(%error, "{what} can not be used; the last certificate stays"),
    }
}

/// Follows the ConfigMap that says whose certificates speak for users.
pub async fn trust(client: kube::Client, trust: LiveTrust) {
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let what = format!("ConfigMap {namespace}/{name}");
    each(&what, watcher::watch_object(api, name), |config| {
        let Some(config) = config else {
            tracing::error!("{what} is not there: nobody can be authenticated by certificate");
            return;
        };
        match Trust::read(&config) {
            Ok(read) => {
                tracing::info!("trusting the front proxy of {what}");
                trust.store(Some(Arc::new(read)));
            }
            Err(error) => tracing::error!(%error, "{what} can not be used; the last one stays"),
        }
    })
    .await;
}

async fn each<K: Send>(
    what: &str,
    stream: impl Stream<Item = watcher::Result<Option<K>>> + Send,
    mut f: impl FnMut(Option<K>),
) {
    let stream = stream.default_backoff();
    tokio::pin!(stream);
    while let Some(item) = stream.next().await {
        match item {
            Ok(object) => f(object),
            Err(error) => tracing::warn!(%error, "can not watch {what}"),
        }
    }
}
